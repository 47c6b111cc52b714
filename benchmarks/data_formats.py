#!/usr/bin/env python3
"""Images per second into training, shuffled, from the same pixels in four forms.

    python benchmarks/data_formats.py --images 10000

prepared: our shards through BatchStream. npy: a file per image through torch's DataLoader, by as many workers as there
are cores or none, whichever is faster. PNG: the same with a PNG file per image. Ray Data: the images in Parquet,
read_parquet() and iter_torch_batches() with a shuffled buffer, the start of an epoch included. Files are in the page
cache for all; an epoch each, after one that is not timed.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from orchestrator.execution.environment import prepare_ray_environment
from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import BatchStream

BATCH_SIZE = 128


class Files(Dataset[tuple[torch.Tensor, int]]):
    """An image per file, as training scripts read them: float32 in [-1, 1]."""

    def __init__(self, files: list[Path], labels: np.ndarray, read: Callable[[Path], np.ndarray]) -> None:
        self.files, self.labels, self.read = files, labels, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image_CHW = torch.from_numpy(self.read(self.files[index]))
        return image_CHW.float() / 127.5 - 1, int(self.labels[index])


def read_png(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).transpose(2, 0, 1).copy()


def of_loader(files: Files, num_workers: int) -> Callable[[], Iterable[Any]]:
    loader = DataLoader(
        files, BATCH_SIZE, shuffle=True, drop_last=True, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    return lambda: loader


def images_per_s(epoch: Callable[[], Iterable[Any]], num_batches: int) -> float:
    """Of the second epoch."""
    elapsed_s = 0.0
    for _ in range(2):
        started_s, count = time.perf_counter(), 0
        for _ in islice(epoch(), num_batches):
            count += 1
        elapsed_s = time.perf_counter() - started_s
        assert count == num_batches
    return num_batches * BATCH_SIZE / elapsed_s


def of_stream(dataset: PreparedDataset, num_batches: int) -> float:
    with closing(BatchStream(dataset, batch_size=BATCH_SIZE, seed=0).iterate()) as batches:
        return images_per_s(lambda: batches, num_batches)


def of_ray_data(images_NCHW: np.ndarray, labels_N: np.ndarray, folder: Path, num_batches: int) -> float:
    import pyarrow
    import pyarrow.parquet
    import ray

    size = images_NCHW[0].size
    flat = pyarrow.FixedSizeListArray.from_arrays(images_NCHW.reshape(-1), size)
    table = pyarrow.table({"image": flat, "label": labels_N})
    pyarrow.parquet.write_table(table, folder / "images.parquet", row_group_size=1024)
    from orchestrator.execution.cluster import connect

    with connect(None):
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.read_parquet(str(folder / "images.parquet"))

        def epoch() -> Iterable[Any]:
            for batch in dataset.iter_torch_batches(
                batch_size=BATCH_SIZE, local_shuffle_buffer_size=8 * BATCH_SIZE, drop_last=True
            ):
                yield batch["image"].reshape(-1, *images_NCHW.shape[1:]).float() / 127.5 - 1, batch["label"]

        return images_per_s(epoch, num_batches)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10000)
    options = parser.parse_args()
    prepare_ray_environment(None)
    torch.set_num_threads(1)
    num_batches = options.images // BATCH_SIZE - 1  # DataLoader and Ray Data drop an unfinished batch
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        dataset = ensure_prepared(EmbeddedData(image_size=32, channels=3), root / "data")
        indices = np.arange(options.images)
        images_NCHW, labels_N = dataset.images(indices), dataset.labels(indices)
        found["prepared"] = of_stream(dataset, num_batches)
        forms: dict[str, tuple[Callable[[Path, np.ndarray], None], Callable[[Path], np.ndarray]]] = {
            "npy": (np.save, np.load),
            "png": (lambda file, image: Image.fromarray(image.transpose(1, 2, 0)).save(file), read_png),
        }
        for suffix, (write, read) in forms.items():
            (root / suffix).mkdir()
            files = [root / suffix / f"{index:06d}.{suffix}" for index in indices]
            for file, image in zip(files, images_NCHW, strict=True):
                write(file, image)
            for num_workers in (0, os.cpu_count() or 1):
                speed = images_per_s(of_loader(Files(files, labels_N, read), num_workers), num_batches)
                found[suffix] = max(found.get(suffix, 0.0), speed)
        found["ray data"] = of_ray_data(images_NCHW, labels_N, root, num_batches)
    report = {
        "images": options.images,
        "images_per_s": {name: round(speed) for name, speed in found.items()},
        "times": {name: round(found["prepared"] / speed, 2) for name, speed in found.items()},
    }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
