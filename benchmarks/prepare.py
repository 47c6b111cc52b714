#!/usr/bin/env python3
"""Images per second that `rememe data prepare` makes ready, beside a plain loop with Pillow that gives the same pixels.

    python benchmarks/prepare.py                photos of 500 x 375 as JPEG, to 64 x 64
    python benchmarks/prepare.py --side 256

Three times the plain loop on two cores is out of reach with the same pixels. Of the CPU time of an image at 64 x 64
(2.8 ms), decoding takes 46 % and resampling 50 %; at 256 x 256 (5.1 ms) 27 % and 51 %, and copies into shards,
checksums and writing the rest. The first two are the plain loop's own, in the same library. "bound" of the report,
cores x CPU of the plain loop / CPU of preparing, is 1.8 and 1.6: no ratio can pass it. Processes instead of threads
would not raise it, for the decoder lets go of the interpreter. To decode a JPEG at a fraction of its size would, and
would give other pixels, and so other scores than everybody else's.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from workloads.config.data import FolderData
from workloads.data.prepare import prepare
from workloads.data.prepared import PreparedDataset

NUM_SHARED = 300
"""Images that the steps are measured with."""


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


def fill(images: np.ndarray, source: Iterator[np.ndarray]) -> None:
    for number, image in enumerate(source):
        images[number] = image


def cpu_ms(work: Callable[[], object], count: int) -> float:
    """CPU time for each of so many images, of all threads."""
    started_s = time.process_time()
    work()
    return round((time.process_time() - started_s) * 1e3 / count, 2)


def shares(folder: Path, side: int) -> dict[str, float]:
    """CPU milliseconds for each image of the two steps that have to be."""
    contents = [file.read_bytes() for file in sorted(folder.iterdir())[:NUM_SHARED]]
    opened = [Image.open(io.BytesIO(content)) for content in contents]
    decode = cpu_ms(lambda: [image.load() for image in opened], len(opened))
    resize = cpu_ms(lambda: [ImageOps.fit(one, (side, side), Image.Resampling.LANCZOS) for one in opened], len(opened))
    return {"decode_cpu_ms": decode, "resize_cpu_ms": resize}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    options = parser.parse_args()
    count, side = options.images, options.side
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photos = root / "photos" / "all"
        write_photos(photos, count)
        expected = np.empty((count, 3, side, side), np.uint8)
        started_s = time.perf_counter()
        plain_ms = cpu_ms(
            lambda: [np.copyto(row, one) for row, one in zip(expected, plain_loop(photos, side), strict=True)], count
        )
        plain_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        ours_ms = cpu_ms(lambda: prepare(FolderData(path=root / "photos", image_size=side), root / "out"), count)
        ours_s = time.perf_counter() - started_s
        same = np.array_equal(PreparedDataset(root / "out").images(np.arange(count)), expected)
        steps = shares(photos, side)
    cores = len(os.sched_getaffinity(0))
    report = {
        "cores": cores,
        "plain_images_per_s": round(count / plain_s),
        "prepare_images_per_s": round(count / ours_s),
        "ratio": round(plain_s / ours_s, 2),
        "bound": round(cores * plain_ms / ours_ms, 2),
        "plain_cpu_ms": plain_ms,
        "prepare_cpu_ms": ours_ms,
        **steps,
        "same_pixels": bool(same),
    }
    print(json.dumps(report, indent=2))
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
