"""Training goes on while a checkpoint is written, and what is written is what there was."""

import threading
from pathlib import Path

import pytest
import torch

from workloads.checkpoint import Checkpoint, CheckpointFolder
from workloads.errors import StorageError
from workloads.memory import available_bytes
from workloads.training.hooks import CheckpointHook
from workloads.training.result import TrainingStopped

LOSS = torch.zeros(())


class Counting:
    """A state of one number that every step raises."""

    def __init__(self) -> None:
        self.images_seen = 0
        self.weight = torch.zeros(1000)

    def step(self) -> "Counting":
        self.images_seen += 1
        self.weight += 1
        return self

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.images_seen, {"weight": self.weight})


class SlowFolder(CheckpointFolder):
    """A disk that takes as long as it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "key")
        self.may_write = threading.Event()
        self.error: Exception | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        assert self.may_write.wait(60)
        if self.error is not None:
            raise self.error
        super().save(checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> SlowFolder:
    return SlowFolder(tmp_path / "checkpoints")


class Training:
    """A state and its hook, which saves every second step; `told` has what was heard of, and by which thread."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self.state, self.should_stop = Counting(), False
        self.told: list[tuple[int, threading.Thread]] = []
        self.hook = CheckpointHook(
            folder,
            start_images=0,
            every_images=2,
            should_stop=lambda: self.should_stop,
            on_checkpoint=lambda images: self.told.append((images, threading.current_thread())),
        )

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.hook(self.state.step(), LOSS)


def written(folder: CheckpointFolder) -> tuple[int, float]:
    """Images seen at the newest checkpoint, and its number."""
    newest = folder.load_latest()
    assert newest is not None
    (number,) = newest.tensors["weight"].unique().tolist()
    return newest.images_seen, number


def test_steps_go_on_and_what_is_written_is_of_its_moment(folder: SlowFolder) -> None:
    training = Training(folder)
    training.steps(3)  # the third while the disk holds the second up
    assert training.told == []
    folder.may_write.set()
    training.hook.finish()
    assert training.told == [(2, threading.current_thread())]
    assert written(folder) == (2, 2.0)
    training.hook.close()


def test_one_is_written_at_a_time_and_a_stop_waits_for_the_last(folder: SlowFolder) -> None:
    training = Training(folder)
    training.steps(2)
    release = threading.Timer(0.2, folder.may_write.set)
    release.start()
    training.steps(2)  # the fourth waits for what the second began
    assert [images for images, _ in training.told] == [2]
    training.should_stop = True
    with pytest.raises(TrainingStopped, match="stopped at image 5"):
        training.steps(1)
    assert [images for images, _ in training.told] == [2, 4, 5]
    assert written(folder) == (5, 5.0)
    training.hook.close()
    release.join()


def test_what_goes_wrong_is_raised_where_training_hears_it(folder: SlowFolder) -> None:
    training = Training(folder)
    training.steps(2)
    folder.error = StorageError("no space left")
    folder.may_write.set()
    with pytest.raises(StorageError, match="no space left"):
        training.hook.finish()
    assert training.told == []
    training.hook.finish()  # it was said
    training.hook.close()


def test_where_a_copy_does_not_fit_training_waits(folder: SlowFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.training.hooks.available_bytes", lambda: 2 * 4 * 1000 - 1)
    training = Training(folder)
    folder.may_write.set()
    training.steps(2)
    assert [images for images, _ in training.told] == [2]
    assert written(folder) == (2, 2.0)
    training.hook.close()


def test_closing_leaves_nothing_unwritten(folder: SlowFolder) -> None:
    training = Training(folder)
    training.steps(2)
    folder.may_write.set()
    training.hook.close()
    assert written(folder) == (2, 2.0)


@pytest.mark.parametrize(
    ("limit", "current", "left"),
    [(None, None, 2048 * 1024), ("max\n", "5\n", 2048 * 1024), ("1000000\n", "400000\n", 700_000)],
)
def test_memory_that_is_left_is_the_machines_or_the_containers(
    limit: str | None, current: str | None, left: int, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       4096 kB\nMemFree:         512 kB\nMemAvailable:   2048 kB\n")
    if limit is not None and current is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(current)
        (tmp_path / "memory.stat").write_text("anon 250000\nfile 150000\ninactive_file 100000\n")
    assert available_bytes(meminfo, tmp_path) == left


def test_memory_of_this_machine_is_known() -> None:
    assert 2**20 < available_bytes() < 2**50
