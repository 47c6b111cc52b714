"""How a job ends. Free of torch, so that who only reads results starts at once."""

import json
from dataclasses import dataclass
from pathlib import Path

from workloads.errors import CheckpointError, RememeError
from workloads.files import sha256_file
from workloads.places import JobDir


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


def completed(work_dir: Path) -> JobResult | None:
    """The result of a finished job, None if it is not finished.

    Raises CheckpointError if its weights are missing or not the ones it was finished with.
    """
    file = JobDir(work_dir).result
    if not file.exists():
        return None
    try:
        raw = json.loads(file.read_text())
        result = JobResult(**raw | {"loss_by_timestep": tuple((t, loss) for t, loss in raw["loss_by_timestep"])})
        intact = sha256_file(work_dir / result.weights_file) == result.weights_sha256
    except (OSError, ValueError, TypeError, KeyError):
        intact = False
    if not intact:
        raise CheckpointError(f"the weights in {work_dir} are damaged; remove {work_dir} to train them again")
    return result
