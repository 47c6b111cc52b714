"""How a job ends. Free of torch, so that who only reads results starts at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.errors import RememeError
from workloads.places import JobDir
from workloads.sealed import read_json, require_intact


class TrainingStopped(RememeError):  # noqa: N818  (an outcome that was asked for, not an error)
    """Training stopped on request; a checkpoint was written and the same command continues it."""


@dataclass(frozen=True)
class JobResult:
    """What a finished job yields besides its weights."""

    key: str
    images_seen: int
    final_loss: float
    train_s: float
    """Seconds spent in training steps, restarts included, start-up not."""
    peak_memory_bytes: int
    """Of the first worker while it trained: what the GPU held at most, or what the whole process did on a CPU."""
    weights_file: str
    """Relative to the job's directory."""
    weights_sha256: str
    loss_by_timestep: tuple[tuple[int, float], ...]
    """(timestep, mean squared error of the prediction), over the whole range."""
    files_sha256: dict[str, str] = field(default_factory=dict)
    """Of what else says what the weights are: the job, and how the network is built. Empty in earlier versions."""

    @property
    def sha256_of(self) -> dict[str, str]:
        """Of each file that others rely on, by its path in the job's directory."""
        return {self.weights_file: self.weights_sha256, **self.files_sha256}


def completed(work_dir: Path) -> JobResult | None:
    """The result of a finished job, None if it is not finished.

    Raises DamagedFileError if its weights, or what says what they are, are not those it was finished with.
    """
    result = read_result(work_dir)
    if result is not None:
        for name, sha256 in result.sha256_of.items():
            require_intact(work_dir / name, sha256, to_train_again(work_dir))
    return result


def read_result(work_dir: Path) -> JobResult | None:
    """The same without a look at the weights."""
    file = JobDir(work_dir).result
    return read_json(file, _result_of, to_train_again(work_dir)) if file.exists() else None


def to_train_again(work_dir: Path) -> str:
    """The next step where a finished job is damaged."""
    return f"remove {work_dir} to train it again"


def _result_of(raw: dict[str, Any]) -> JobResult:
    return JobResult(**raw | {"loss_by_timestep": tuple((t, loss) for t, loss in raw["loss_by_timestep"])})
