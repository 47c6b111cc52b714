#!/usr/bin/env python3
"""Images per second that `rememe data prepare` makes ready, beside a plain loop with Pillow that gives the same pixels.

    python benchmarks/prepare.py                photos of 500 x 375 as JPEG, to 64 x 64
    python benchmarks/prepare.py --side 256

With the pixels the same, the ratio cannot be more than the number of cores: nearly all of the time is spent in the
decoder and the resampling, which the plain loop uses too.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from workloads.config.data import FolderData
from workloads.data.prepare import prepare
from workloads.data.prepared import PreparedDataset


def write_photos(folder: Path, count: int) -> None:
    """Smooth colours with some grain, of the size of ImageNet's."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-12, 13, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)


def plain_loop(folder: Path, side: int) -> Iterator[np.ndarray]:
    """What everybody writes first."""
    for file in sorted(folder.iterdir()):
        image = Image.open(file).convert("RGB")
        yield np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)).transpose(2, 0, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_photos(root / "photos" / "all", options.images)
        started_s = time.perf_counter()
        expected = np.stack(list(plain_loop(root / "photos" / "all", options.side)))
        plain_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        prepare(FolderData(path=root / "photos", image_size=options.side), root / "out")
        ours_s = time.perf_counter() - started_s
        same = np.array_equal(PreparedDataset(root / "out").images(np.arange(options.images)), expected)
    cores = len(os.sched_getaffinity(0))
    report = {
        "cores": cores,
        "plain_images_per_s": round(options.images / plain_s),
        "prepare_images_per_s": round(options.images / ours_s),
        "ratio": round(plain_s / ours_s, 2),
        "same_pixels": bool(same),
    }
    print(json.dumps(report, indent=2))
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
