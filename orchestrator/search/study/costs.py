"""What a configuration contains and costs, from its plan to the figures that are kept with it. Pure."""

from collections.abc import Iterable, Sequence

from orchestrator.plan.jobs import Plan, PlannedJob, architecture_of
from orchestrator.search.study.trial import Trial, UsedJob
from workloads.config import AnyModel


def used_job(job: PlannedJob, paths: Iterable[str], *, trained: bool, brief: bool) -> UsedJob:
    """What is kept of a job; paths are those of the study's space."""
    return UsedJob(
        key=job.key,
        name=job.name,
        interval=job.interval,
        architecture=architecture_of(job.job.model),
        label=_label(job.job.model, paths),
        images=job.job.training.images,
        num_parameters=job.num_parameters,
        macs=job.macs,
        trained=trained,
        brief=brief,
    )


def with_costs(trial: Trial, plan: Plan, latencies_s: Sequence[float] | None) -> Trial:
    """The configuration with what its plan tells, and with measured seconds of each expert's call if there are any."""
    latency_s, jobs = None, trial.jobs
    if latencies_s is not None:
        latency_s = plan.mean_over_timesteps(latencies_s)
        # A remix has one job and a latency for each of its experts, which are all alike.
        by_key = {job.key: value for job, value in zip(plan.jobs, latencies_s, strict=False)}
        jobs = tuple(job.model_copy(update={"latency_s": by_key.get(job.key)}) for job in jobs)
    changes = {
        "jobs": jobs,
        "num_parameters": plan.num_parameters,
        "macs": plan.mean_over_timesteps([job.macs for job in plan.jobs]),
        "latency_s": latency_s,
    }
    return trial.model_copy(update=changes)


def _label(model: AnyModel, paths: Iterable[str]) -> str:
    """What tells an architecture from others of the study: its varied fields, or its kind."""
    dumped = model.model_dump(mode="json")
    fields = [path.partition("model.")[2].split(".")[0] for path in paths if "model." in path]
    words = [f"{field} {_spaced(dumped[field])}" for field in dict.fromkeys(fields) if field in dumped]
    return ", ".join(words) or str(dumped["kind"])


def _spaced(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
