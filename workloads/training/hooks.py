"""What happens around the loop: records, checkpoints, stopping."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from workloads.checkpoint import Checkpoint, CheckpointFolder
from workloads.data.stream import BatchStream
from workloads.errors import RememeError
from workloads.memory import available_bytes
from workloads.training.records import TrainingRecord, append_record
from workloads.training.result import TrainingStopped
from workloads.training.state import State


class TrainingDivergedError(RememeError):
    """The loss is not a number any more; trying again would give the same."""


class RecordHook:
    """Averages loss and speed and reports them every `every_images` images."""

    def __init__(
        self,
        stream: BatchStream,
        *,
        start_images: int,
        every_images: int,
        file: Path,
        report: Callable[[TrainingRecord], None],
        told_of: Callable[[int], str],
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """told_of: says what the step that starts at an image has drawn; asked when its loss is no number."""
        self._stream = stream
        self._told_of = told_of
        self._every_images = every_images
        self._file = file
        self._report = report
        self._before_write = before_write
        self._losses: list[Tensor] = []
        self._from_images = start_images
        self._from_s = time.perf_counter()
        self._waited_s = 0.0

    def __call__(self, state: State, loss: Tensor) -> None:
        self._losses.append(loss)
        if state.images_seen - self._from_images >= self._every_images:
            self.flush(state)

    def flush(self, state: State) -> None:
        """Report what has gathered since the last record, if anything."""
        if not self._losses:
            return
        # The only point that waits for the device.
        mean_loss = torch.stack(self._losses).mean().item()
        now_s = time.perf_counter()
        elapsed_s = now_s - self._from_s
        if not math.isfinite(mean_loss):
            raise self._diverged(state)
        record = TrainingRecord(
            images_seen=state.images_seen,
            loss=mean_loss,
            images_per_s=(state.images_seen - self._from_images) / elapsed_s,
            learning_rate=state.learning_rate,
            loader_wait_share=(self._stream.waited_s - self._waited_s) / elapsed_s,
            written_s=time.time(),
        )
        self._losses.clear()
        self._from_images, self._from_s, self._waited_s = state.images_seen, now_s, self._stream.waited_s
        self._before_write()
        append_record(self._file, record)
        self._report(record)

    def _diverged(self, state: State) -> TrainingDivergedError:
        """Names the first step whose loss is no number; all it drew is a function of where it starts."""
        losses = torch.stack(self._losses)
        step = int((~torch.isfinite(losses)).nonzero()[0]) if not torch.isfinite(losses).all() else len(losses) - 1
        size = (state.images_seen - self._from_images) // len(losses)
        start = self._from_images + step * size
        indices, _ = self._stream.places_at(start)
        return TrainingDivergedError(
            f"the loss became {losses[step].item()} in the step from image {start} to {start + size}, with data "
            f"indices {first_of(indices.tolist())} and {self._told_of(start)}; the same would happen again: lower "
            "training.learning_rate, set training.precision to fp32, or look at these images (rememe data show)"
        )


def first_of(values: Sequence[int], number: int = 8) -> str:
    """So many of them, for a message."""
    shown = ", ".join(map(str, values[:number]))
    return f"{shown}, ... ({len(values)} in all)" if len(values) > number else shown


class CheckpointHook:
    """Writes a checkpoint every `every_images` images, and one on request before stopping.

    Training goes on while one is written, from a copy; where that does not fit into half of the memory that is left,
    it waits. A worker that is not the first has no folder and only stops. Close it when training is over, well or not.
    """

    def __init__(
        self,
        folder: CheckpointFolder | None,
        *,
        start_images: int,
        every_images: int,
        should_stop: Callable[[], bool],
        before_save: Callable[[], None] = lambda: None,
        on_checkpoint: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._every_images = every_images
        self._saved_images = start_images
        self._should_stop = should_stop
        self._before_save = before_save
        self._on_checkpoint = on_checkpoint
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rememe-checkpoint")
        self._writing: Future[int] | None = None

    def __call__(self, state: State, loss: Tensor) -> None:  # noqa: ARG002
        if self._writing is not None and self._writing.done():
            self.finish()
        stop = self._should_stop()
        if stop or state.images_seen - self._saved_images >= self._every_images:
            # Nothing new since the last one: a stop right behind a checkpoint writes none.
            if self._folder is not None and state.images_seen > self._saved_images:
                self._save(self._folder, state)
            self._saved_images = state.images_seen
        if stop:
            self.finish()
            raise TrainingStopped(f"stopped at image {state.images_seen}; run the same command again to continue")

    def _save(self, folder: CheckpointFolder, state: State) -> None:
        self.finish()
        self._before_save()
        checkpoint = state.checkpoint()
        if in_background := checkpoint.num_bytes <= available_bytes() // 2:
            checkpoint = checkpoint.copied()
        self._writing = self._writer.submit(_write, folder, checkpoint)
        if not in_background:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written and tell of it. Raises what went wrong, as StorageError."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._on_checkpoint(writing.result())

    def close(self) -> None:
        """Nothing is written any more after this."""
        self._writer.shutdown()


def _write(folder: CheckpointFolder, checkpoint: Checkpoint) -> int:
    folder.save(checkpoint)
    return checkpoint.images_seen
