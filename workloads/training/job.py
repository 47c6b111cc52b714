"""Train one expert from start to finish; run again, it goes on from its last checkpoint."""

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from workloads.analysis.loss_by_timestep import loss_by_timestep
from workloads.checkpoint import CheckpointFolder
from workloads.config.job import ExpertJob
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import BatchStream
from workloads.diffusion.process import DiffusionProcess
from workloads.errors import CheckpointError, DataError
from workloads.files import new_directory, sha256_file, write_text
from workloads.models.build import build_model
from workloads.seeding import derive_seed
from workloads.training.hooks import CheckpointHook, RecordHook
from workloads.training.loop import train
from workloads.training.records import TrainingRecord, read_records, write_records
from workloads.training.state import TrainState
from workloads.training.step import DenoisingStep

WEIGHTS = "diffusion_pytorch_model.safetensors"
CURVE_IMAGES = 256
"""Images behind each point of an expert's loss by timestep."""


@dataclass(frozen=True)
class JobResult:
    """What a finished job yields besides its weights."""

    key: str
    images_seen: int
    final_loss: float
    train_s: float
    """Seconds spent in training steps, restarts included, start-up not."""
    weights_sha256: str
    loss_by_timestep: tuple[tuple[int, float], ...]
    """(timestep, mean squared error of the prediction), over the whole range."""


def completed(work_dir: Path) -> JobResult | None:
    """The result of a finished job, None if it is not finished.

    Raises CheckpointError if its weights are missing or not the ones it was finished with.
    """
    file = work_dir / "result.json"
    if not file.exists():
        return None
    weights = work_dir / "expert" / WEIGHTS
    try:
        raw = json.loads(file.read_text())
        result = JobResult(**raw | {"loss_by_timestep": tuple((t, loss) for t, loss in raw["loss_by_timestep"])})
        intact = sha256_file(weights) == result.weights_sha256
    except (OSError, ValueError, TypeError, KeyError):
        intact = False
    if not intact:
        raise CheckpointError(
            f"the weights in {work_dir / 'expert'} are damaged; remove {work_dir} to train them again"
        )
    return result


def train_job(
    job: ExpertJob,
    data_path: Path,
    work_dir: Path,
    *,
    device: str = "cpu",
    num_threads: int | None = None,
    report: Callable[[TrainingRecord], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> JobResult:
    """Train until the job's budget is used up; idempotent.

    In the end work_dir holds expert/ (averaged weights, as save_pretrained writes them), records.jsonl and,
    written last, result.json. Raises TrainingStopped after writing a checkpoint when should_stop() says so.
    """
    if (result := completed(work_dir)) is not None:
        return result
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    dataset = PreparedDataset(data_path)
    if dataset.fingerprint != job.data.fingerprint:
        raise DataError(
            f"{data_path} holds data {dataset.fingerprint[:16]}, but job {job.name} was planned for "
            f"{job.data.fingerprint[:16]}; plan again"
        )
    training = _Training(job, dataset, work_dir, torch.device(device))
    training.run(report, should_stop)
    return training.finish()


class _Training:
    """What the steps of training one expert share."""

    def __init__(self, job: ExpertJob, dataset: PreparedDataset, work_dir: Path, device: torch.device) -> None:
        self._job = job
        self._dataset = dataset
        self._work_dir = work_dir
        self._device = device
        self._records_file = work_dir / "records.jsonl"
        self._checkpoints = CheckpointFolder(work_dir / "checkpoints", job.key)
        self._state = _initial_state(job, device)
        if (checkpoint := self._checkpoints.load_latest()) is not None:
            self._state.restore(checkpoint)

    def run(self, report: Callable[[TrainingRecord], None], should_stop: Callable[[], bool]) -> None:
        """Train from wherever the state stands to the end of the budget."""
        job, config, start = self._job, self._job.training, self._state.images_seen
        self._work_dir.mkdir(parents=True, exist_ok=True)
        # Records past the checkpoint are about to be made again.
        kept = [record for record in read_records(self._records_file) if record.images_seen <= start]
        write_records(self._records_file, kept)
        order_seed = derive_seed("order", job.seed, *job.interval)
        stream = BatchStream(self._dataset, batch_size=config.batch_size, seed=order_seed, flip=job.data.flip)
        recorder = RecordHook(
            stream, start_images=start, every_images=config.log_every_images, file=self._records_file, report=report
        )
        saver = CheckpointHook(
            self._checkpoints, start_images=start, every_images=config.checkpoint_every_images, should_stop=should_stop
        )
        step = DenoisingStep(job, self._device)
        with closing(stream.iterate(start)) as batches:
            train(self._state, batches, step=step, total_images=config.images, hooks=(recorder, saver))
        recorder.flush(self._state)

    def finish(self) -> JobResult:
        """Measure, save the averaged weights, and only then say that the job is done."""
        job, model = self._job, self._state.model.eval()
        self._state.load_average()
        curve = loss_by_timestep(
            model,
            DiffusionProcess(job.diffusion, self._device),
            self._dataset,
            num_images=CURVE_IMAGES,
            seed=job.seed,
            class_conditional=job.data.num_classes is not None,
        )
        with new_directory(self._work_dir / "expert") as scratch:
            saved: Any = model.to(memory_format=torch.contiguous_format)
            saved.save_pretrained(scratch)
            weights_sha256 = sha256_file(scratch / WEIGHTS)
        records = read_records(self._records_file)
        spans = pairwise([0, *(record.images_seen for record in records)])
        result = JobResult(
            key=job.key,
            images_seen=self._state.images_seen,
            final_loss=records[-1].loss if records else math.nan,
            train_s=sum((b - a) / record.images_per_s for (a, b), record in zip(spans, records, strict=True)),
            weights_sha256=weights_sha256,
            loss_by_timestep=curve,
        )
        write_text(self._work_dir / "job.json", job.model_dump_json(indent=2))
        write_text(self._work_dir / "result.json", json.dumps(asdict(result), indent=2))
        self._checkpoints.clear()
        return result


def _initial_state(job: ExpertJob, device: torch.device) -> TrainState:
    torch.manual_seed(derive_seed("weights", job.seed, *job.interval))
    model = build_model(
        job.model, channels=job.data.channels, image_size=job.data.image_size, num_classes=job.data.num_classes
    )
    model.to(device, memory_format=torch.channels_last if job.training.channels_last else torch.preserve_format)
    return TrainState(model.train(), job.training)
