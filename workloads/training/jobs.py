"""What a run description leads to: the jobs to train, checked as far as that is possible before training."""

from collections.abc import Sequence

from workloads.config.job import DataSpec, Job
from workloads.config.run import RunConfig
from workloads.errors import ConfigError
from workloads.memory import total_bytes
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


def check_memory(jobs: Sequence[Job], *, on_gpu: bool) -> None:
    """Raise ConfigError if a job certainly needs more memory than this machine has; nothing is allocated.

    On a CPU weights, gradients and two moments are kept, in fp32, and a batch; on a GPU the weights come first here.
    """
    has = total_bytes()
    for job in jobs:
        num_parameters = trainer_of(job).cost().num_parameters
        batch = job.training.batch_size * job.data.channels * job.data.image_size**2
        needs = 4 * ((1 if on_gpu else 4) * num_parameters + batch)
        if needs > has:
            raise ConfigError(
                f"{job.name} has {num_parameters:,} parameters and batches of {job.training.batch_size:,}, which take "
                f"at least {needs / 1e9:,.0f} GB; this machine has {has / 1e9:,.0f} GB: make model or "
                "training.batch_size smaller, or train on a cluster (--address)"
            )
