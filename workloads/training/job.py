"""Train one job from start to finish; run again, it goes on from its last checkpoint."""

import gc
import logging
import math
import resource
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch

from workloads.checkpoint import Checkpoint, CheckpointFolder
from workloads.config.intervals import Interval
from workloads.config.job import Job
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import BatchStream
from workloads.diffusion.process import DiffusionProcess
from workloads.errors import CheckpointError, DataError, TakenOverError
from workloads.files import clear_storage_errors, remove_unfinished, sha256_file, write_text
from workloads.locks import try_lock
from workloads.models.build import NETWORK
from workloads.places import JobDir
from workloads.sealed import write_json
from workloads.seeding import derive_seed
from workloads.training.hooks import CheckpointHook, RecordHook
from workloads.training.loop import Hook, train
from workloads.training.loss_by_timestep import NUM_BINS, Curve, loss_by_timestep, uniform_bins
from workloads.training.pictures import PictureHook
from workloads.training.processes import Workers
from workloads.training.records import TrainingRecord, read_records, write_records
from workloads.training.result import JobResult, completed
from workloads.training.state import slow_precision
from workloads.training.trainers import trainer_of

logger = logging.getLogger(__name__)

LINGERING_TIMEOUT_S = 120.0
"""A process whose driver was killed may write for a little while yet; half a minute to a minute was measured."""

CURVE_IMAGES = 256
"""Images behind each point of an expert's loss by timestep."""


def train_job(
    job: Job,
    data_path: Path,
    work_dir: Path,
    *,
    device: str = "cpu",
    num_threads: int | None = None,
    workers: Workers | None = None,
    report: Callable[[TrainingRecord], None] = lambda _: None,
    on_checkpoint: Callable[[int], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> JobResult:
    """Train until the job's budget is used up; idempotent.

    In the end work_dir holds the averaged weights (expert/ as save_pretrained writes them, or remix/), records.jsonl
    and, written last, result.json. on_checkpoint hears the images_seen of every checkpoint once it is whole. Raises
    TrainingStopped after writing a checkpoint when should_stop() says so.
    Several workers may train it together; all call this, and the first one alone reads and writes its work_dir.
    """
    workers = workers or Workers()
    if (result := _result(work_dir, workers)) is not None:
        if workers.is_first:  # who finished it may not have come to that
            CheckpointFolder(JobDir(work_dir).checkpoints, job.key).clear()
        return result
    # The last bits depend on it, and a process that is used again has the number of its last job.
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    dataset = open_data(job, data_path)
    assert job.training.batch_size % workers.world_size == 0, "every worker has an equal part of a batch"
    with _sole_writer(work_dir) if workers.is_first else nullcontext(_nothing) as insist:
        if (result := _result(work_dir, workers)) is not None:
            return result
        training = _Training(job, dataset, work_dir, torch.device(device), workers, insist)
        training.run(report, on_checkpoint, should_stop)
        if workers.is_first:
            training.finish()
        result = _result(work_dir, workers)  # the others wait until it is there
    assert result is not None
    return result


def _result(work_dir: Path, workers: Workers) -> JobResult | None:
    return workers.from_first(completed(work_dir) if workers.is_first else None)


def _start(checkpoints: CheckpointFolder, workers: Workers) -> Checkpoint | None:
    """The newest that the first worker finds, the same for all; None if there is none."""
    newest = checkpoints.load_latest() if workers.is_first else None
    if (images_seen := workers.from_first(newest.images_seen if newest else None)) is None:
        return None
    return Checkpoint(images_seen, workers.tensors_from_first(newest.tensors if newest else {}))


def _nothing() -> None:
    """For who writes nothing."""


@contextmanager
def _sole_writer(work_dir: Path) -> Iterator[Callable[[], None]]:
    """Wait until no other process writes here. Raises CheckpointError if one stays, StorageError if nobody can.

    What is yielded raises TakenOverError once another one does: a shared file system frees the lock of a host that it
    does not hear of, and that host may come back.
    """
    with clear_storage_errors(work_dir):
        lock = try_lock(JobDir(work_dir).lock, timeout_s=LINGERING_TIMEOUT_S)
    if lock is None:
        raise CheckpointError(f"another process trains in {work_dir}; wait until it ends, or stop it")
    word, file = uuid.uuid4().hex, JobDir(work_dir).writer

    def is_sole() -> bool:
        return file.is_file() and file.read_bytes() == word.encode()

    def insist() -> None:
        if not is_sole():
            raise TakenOverError(f"another process has taken over what was trained in {work_dir}; this one ends")

    try:
        remove_unfinished(work_dir)
        write_text(file, word)
        yield insist
    finally:
        if is_sole():
            file.unlink()
        lock.release()


def open_data(job: Job, data_path: Path) -> PreparedDataset:
    """The data the job is about. Raises DataError if other data lies there, or if it is damaged."""
    dataset = PreparedDataset(data_path)
    if dataset.fingerprint != job.data.fingerprint:
        raise DataError(
            f"{data_path} holds data {dataset.fingerprint[:16]}, but job {job.name} was planned for "
            f"{job.data.fingerprint[:16]}; plan again"
        )
    # Here too, where it is read: the disk may be another node's than the driver's.
    dataset.verify_once()
    return dataset


class _Training:
    """What the steps of one job share."""

    def __init__(
        self,
        job: Job,
        dataset: PreparedDataset,
        work_dir: Path,
        device: torch.device,
        workers: Workers,
        insist: Callable[[], None],
    ) -> None:
        """insist: asked before anything is written; raises if this process may not any more."""
        self._job, self._insist = job, insist
        self._dataset = dataset
        self._indices = dataset.split(job.data.held_out).training
        self._device = device
        _forget_peak_memory(device)
        self._workers = workers
        self._place = JobDir(work_dir)
        self._checkpoints = CheckpointFolder(self._place.checkpoints, job.key)
        self._trainer = trainer_of(job)
        if workers.is_first and (remark := slow_precision(device, job.training)):
            logger.warning("%s", remark)
        self._state, self._step = self._trainer.begin(device, workers)
        if (checkpoint := _start(self._checkpoints, workers)) is not None:
            self._state.restore(checkpoint)

    def run(
        self,
        report: Callable[[TrainingRecord], None],
        on_checkpoint: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Train from wherever the state stands to the end of the budget."""
        job, config, start, workers = self._job, self._job.training, self._state.images_seen, self._workers
        stream = BatchStream(
            self._dataset,
            batch_size=config.batch_size // workers.world_size,
            seed=derive_seed("order", job.seed, *job.interval),
            rank=workers.rank,
            world_size=workers.world_size,
            flip=job.data.flip,
            indices=self._indices,
        )
        saver = CheckpointHook(
            self._checkpoints if workers.is_first else None,
            start_images=start,
            every_images=config.checkpoint_every_images,
            should_stop=should_stop,
            before_save=self._insist,
            on_checkpoint=on_checkpoint,
        )
        recorder = None
        hooks: list[Hook] = [saver]
        if workers.is_first:
            recorder = self._recorder(stream, report)
            # The saver last: records up to a checkpoint are never made again, so they are on disk before it.
            hooks = [recorder, *self._pictures(), *self._trainer.hooks(self._place.path, start), saver]
        # Closed, so that the threads of loader and saver end when training raises.
        with closing(saver), closing(stream.iterate(start)) as batches:
            train(self._state, batches, step=self._step, total_images=config.images, hooks=hooks)
            saver.finish()
        if recorder is not None:
            recorder.flush(self._state)

    def _recorder(self, stream: BatchStream, report: Callable[[TrainingRecord], None]) -> RecordHook:
        start = self._state.images_seen
        self._place.path.mkdir(parents=True, exist_ok=True)
        # Records past the checkpoint are about to be made again.
        kept = [record for record in read_records(self._place.records) if record.images_seen <= start]
        write_records(self._place.records, kept)
        every_images = self._job.training.log_every_images
        return RecordHook(
            stream,
            start_images=start,
            every_images=every_images,
            file=self._place.records,
            before_write=self._insist,
            report=report,
            told_of=lambda images_seen: f"{self._job.name}'s {self._trainer.drawn_at(images_seen)}",
        )

    def _pictures(self) -> list[Hook]:
        """Those of the beginning are drawn."""
        if self._job.training.num_pictures == 0:
            return []
        hook = PictureHook(
            self._job,
            self._trainer.intervals,
            self._dataset,
            self._place,
            self._device,
            self._workers,
            indices=self._indices,
            start_images=self._state.images_seen,
            before_write=self._insist,
        )
        hook.begin(self._state)
        return [hook]

    def finish(self) -> None:
        """Measure, save the averaged weights, and only then say that the job is done."""
        self._state.use_average()
        curve = self._loss_by_timestep()
        self._insist()
        weights = self._state.save(self._place.path)
        write_json(self._place.description, self._job.model_dump(mode="json"))
        beside = (self._place.description, weights.with_name(NETWORK))
        records = read_records(self._place.records)
        spans = pairwise([0, *(record.images_seen for record in records)])
        result = JobResult(
            key=self._job.key,
            images_seen=self._state.images_seen,
            final_loss=records[-1].loss if records else math.nan,
            train_s=sum((b - a) / record.images_per_s for (a, b), record in zip(spans, records, strict=True)),
            peak_memory_bytes=_peak_memory_bytes(self._device),
            weights_file=str(weights.relative_to(self._place.path)),
            weights_sha256=sha256_file(weights),
            loss_by_timestep=curve,
            files_sha256={str(file.relative_to(self._place.path)): sha256_file(file) for file in beside},
        )
        self._insist()
        write_json(self._place.result, asdict(result))
        # Last: a process killed before the result is written still has them.
        self._checkpoints.clear()

    def _loss_by_timestep(self) -> Curve:
        """Each network's loss at the timesteps it is to be judged at, in about NUM_BINS bins, or one per network.

        On training images.
        """
        job, num_timesteps = self._job, self._job.diffusion.num_timesteps
        process = DiffusionProcess(job.diffusion, self._device)
        curve: Curve = ()
        for (lo, hi), model in self._state.networks():
            num_bins = max(1, round(NUM_BINS * (hi - lo) / num_timesteps))
            curve += loss_by_timestep(
                model,
                process,
                self._dataset,
                bins=[Interval(lo + a, lo + b) for a, b in uniform_bins(hi - lo, num_bins)],
                # More networks than bins share the images of so many, and measuring takes no longer for them.
                num_images=max(16, min(CURVE_IMAGES, CURVE_IMAGES * NUM_BINS // self._trainer.num_networks)),
                seed=job.seed,
                class_conditional=job.data.num_classes is not None,
                indices=self._indices,
            )
        return curve


def _forget_peak_memory(device: torch.device) -> None:
    """What an earlier job of this process needed is not this one's."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # 5 resets the peak of resident memory that getrusage reports.
        with suppress(OSError):  # Linux only
            Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
