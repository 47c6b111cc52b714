"""What a run description leads to: the jobs to train, checked as far as that is possible before training."""

from workloads.config.job import DataSpec, Job
from workloads.config.run import RunConfig
from workloads.models.initial import resolve_initial
from workloads.training.trainers import trainer_of


def jobs_of(config: RunConfig, data: DataSpec) -> tuple[Job, ...]:
    """One job per network trained by itself, nearest the clean image first; or one for what is trained together.

    ConfigError if there are no such initial weights, or if they are of another network.
    """
    if config.initial_weights is None:
        return config.jobs(data)
    initial = resolve_initial(config.initial_weights, config.initial_conversion)
    jobs = config.jobs(data, initial)
    for job in {job.model: job for job in jobs}.values():  # equal networks are checked once
        trainer_of(job).check_initial(initial)
    return jobs
