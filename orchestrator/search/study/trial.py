"""A configuration of a study while and after it is tried: what it contains, its scores, which is best. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from orchestrator.search.space.points import Values
from orchestrator.search.study.options import BRIEF, FULL, LOSS
from workloads.config import Interval
from workloads.config.base import StrictConfig
from workloads.evaluation.estimates import Estimate, tied

TrialState = Literal["running", "interrupted", "finished", "stopped", "failed"]
"""running, interrupted: begun, and to be gone on with; stopped: given up early because others were better."""


class Rung(StrictConfig):
    """One score of a configuration. Rungs rise in cost: held-out loss (perhaps after brief training), quick, full."""

    name: str
    """loss@0.25 (after a quarter of the training), loss, quick or full."""

    value: float
    """Lower is better."""

    stderr: float | None = None
    """Standard error, where it was measured."""

    score_name: str = "held_out_loss"
    protocol_hash: str = ""
    """Of the score's protocol; empty for a loss."""

    num_samples: int = 0
    """Generated images behind it."""

    doubts: tuple[str, ...] = ()
    """Why the score is not to be trusted."""

    others: dict[str, Estimate] = Field(default_factory=dict)
    """The protocol's other metrics of the same samples, by name."""

    unavailable: dict[str, str] = Field(default_factory=dict)
    """Why metrics that were asked for cannot be had."""

    elapsed_s: float = 0.0
    """What measuring took, training left out."""


class UsedJob(StrictConfig):
    """A network that a configuration contains."""

    key: str
    name: str
    interval: Interval
    architecture: str
    """Hash of the model's description: equal for equal architectures."""

    label: str
    """What tells the architecture from others of the study, for people."""

    images: int
    num_parameters: int
    macs: int
    latency_s: float | None = None
    """Of one call for one image; None if not measured."""

    trained: bool
    """False if it was there already, or was trained for another configuration meanwhile."""

    brief: bool = False
    """Trained with a part of the budget for an early rung only."""


class Trial(StrictConfig):
    """One configuration of a study."""

    number: int
    values: Values
    draws: dict[str, Any] = Field(default_factory=dict)
    """What a model-based sampler drew."""

    state: TrialState = "running"
    origin: Literal["sampler", "planner"] = "sampler"
    runs: tuple[str, ...] = ()
    """Names of the run directories, one per seed."""

    predicted_loss: float | None = None
    """Held-out loss that a forecast expected."""

    grown_from: int | None = None
    """Number of the configuration whose trained remix this one starts from."""

    growth: Values = Field(default_factory=dict)
    """What growing changes of the configuration at its point."""

    rungs: tuple[Rung, ...] = ()
    jobs: tuple[UsedJob, ...] = ()
    num_parameters: int = 0
    """Stored parameters of all networks together."""

    macs: float = 0.0
    """Multiply-adds of a denoising step, averaged over timesteps."""

    latency_s: float | None = None
    """Of one call for one image, averaged over timesteps; None if not measured."""

    error: str = ""
    elapsed_s: float = 0.0

    def rung(self, name: str) -> Rung | None:
        """The rung of that name, if it was reached."""
        return next((rung for rung in self.rungs if rung.name == name), None)

    @property
    def values_with_growth(self) -> Values:
        """What the base becomes the configuration with: its point, and what growing changes."""
        return self.values | self.growth

    def with_rung(self, rung: Rung) -> "Trial":
        """The same with a score, in place of an earlier one of that name."""
        return self.model_copy(update={"rungs": (*(known for known in self.rungs if known.name != rung.name), rung)})

    def with_run(self, name: str) -> "Trial":
        """The same with a run directory."""
        return self.model_copy(update={"runs": tuple(dict.fromkeys((*self.runs, name)))})

    def with_jobs(self, jobs: Iterable[UsedJob]) -> "Trial":
        """The same with further networks; one that is known already stays as it is."""
        found = {job.key: job for job in self.jobs}
        for job in jobs:
            found.setdefault(job.key, job)
        return self.model_copy(update={"jobs": tuple(found.values())})

    @property
    def images_trained(self) -> int:
        """Training images this configuration added."""
        return sum(job.images for job in self.jobs if job.trained)

    @property
    def images_reused(self) -> int:
        """Training images it had for nothing."""
        return sum(job.images for job in self.jobs if not job.trained)


def reached(trials: Sequence[Trial], rung: str) -> list[Trial]:
    """Those that have a score on that rung, best first; what is not to be trusted comes behind all that is."""
    return sorted((trial for trial in trials if trial.rung(rung)), key=lambda trial: _place(trial, rung))


def _place(trial: Trial, rung: str) -> tuple[bool, float]:
    found = trial.rung(rung)
    assert found is not None
    return bool(found.doubts), found.value


def ranked(trials: Sequence[Trial], rungs: Sequence[str]) -> list[Trial]:
    """Best first: by the dearest rung a configuration has, those with a dearer one in front."""
    # It was the best who got a dearer score, so it leads whatever its value.
    best: list[Trial] = []
    for name in reversed(rungs):
        best += [trial for trial in reached(trials, name) if trial not in best]
    return best


def metric_name(rung: Rung) -> str:
    """One name per rung in all of MLflow: held_out_loss_0.25, held_out_loss, fid_quick, fid."""
    if rung.name.startswith(BRIEF):
        return f"held_out_loss_{rung.name.removeprefix(BRIEF)}"
    if rung.name == LOSS:
        return "held_out_loss"
    return rung.score_name if rung.name == FULL else f"{rung.score_name}_{rung.name}"


def other_name(rung: Rung, name: str) -> str:
    """The same of another metric of a rung: kid_quick, kid."""
    return name if rung.name == FULL else f"{name}_{rung.name}"


def other_metrics(trials: Sequence[Trial], rung: str) -> list[str]:
    """Names of what was measured beside a rung's score, of any of them."""
    return list(dict.fromkeys(name for trial in trials if (found := trial.rung(rung)) for name in found.others))


def rung_heading(trials: Sequence[Trial], rung: str) -> str:
    """Of a column with a rung's scores."""
    return metric_name(next(found for trial in trials if (found := trial.rung(rung))))


def is_tied(best: Trial, other: Trial, rungs: Sequence[str]) -> bool:
    """Whether it is not worse than the best beyond chance, on the dearest rung both have."""
    for name in reversed(rungs):
        a, b = best.rung(name), other.rung(name)
        if a is not None and b is not None:
            return not (a.doubts or b.doubts) and tied(Estimate(a.value, a.stderr), Estimate(b.value, b.stderr))
    return False


def is_doubtful(trial: Trial, rungs: Sequence[str]) -> bool:
    """Whether the score it would be judged by, on the dearest rung it has, is not to be trusted."""
    return next((bool(found.doubts) for name in reversed(rungs) if (found := trial.rung(name))), False)


def total_images(trials: Sequence[Trial]) -> tuple[int, int]:
    """Training images that the configurations added, and that they had for nothing."""
    return sum(trial.images_trained for trial in trials), sum(trial.images_reused for trial in trials)


def factor_saved(trained: int, reused: int) -> float | None:
    """How many times fewer images were trained on than without reuse; None if on none."""
    return (trained + reused) / trained if trained else None
