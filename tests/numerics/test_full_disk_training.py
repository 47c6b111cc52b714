"""A disk that fills up under training: named, and gone on from as if nothing had been."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workloads.config import RunConfig
from workloads.data.prepare import ensure_prepared
from workloads.errors import StorageError
from workloads.places import JobDir
from workloads.training.job import train_job


def test_training_goes_on_to_the_same_bits(
    tiny_run: dict[str, Any], tmp_path: Path, mounted: Callable[[str], Path]
) -> None:
    training = {"images": 96, "batch_size": 16, "log_every_images": 16, "checkpoint_every_images": 32}
    config = RunConfig.model_validate(tiny_run | {"training": training, "strategy": {"kind": "single"}})
    dataset = ensure_prepared(config.data, tmp_path / "data")
    (job,) = config.jobs(dataset.spec(config.data))
    unbroken = train_job(job, dataset.path, tmp_path / "unbroken")
    disk = mounted("4m")
    filler, place = disk / "filler", JobDir(disk / "job")

    def fill(images_seen: int) -> None:
        """To the last byte, behind the first checkpoint."""
        if images_seen == 32:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(b"x" * 512):
                    pass

    with pytest.raises(StorageError, match=rf"no space left to write {place.path}/.*; free some"):
        train_job(job, dataset.path, place.path, on_checkpoint=fill)
    assert place.checkpointed_images() == 32
    filler.unlink()
    seen: list[int] = []
    again = train_job(job, dataset.path, place.path, report=lambda record: seen.append(record.images_seen))
    assert again.weights_sha256 == unbroken.weights_sha256
    assert min(seen) > 32
