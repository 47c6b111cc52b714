#!/usr/bin/env python3
"""What this machine can do: multiply matrices, copy memory, decode JPEG. All cores; the best of several.

python benchmarks/limits.py
"""

import argparse
import io
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

SIDE, COPIED_BYTES, NUM_PICTURES = 2048, 2**29, 200


def best_s(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest call."""
    taken = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started_s)
    return min(taken)


def photo() -> bytes:
    """JPEG of 500 x 375 pixels, as ImageNet's are on average: a smooth picture with some noise."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
    noisy = np.asarray(smooth) + rng.normal(0, 8, (375, 500, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    matrix = torch.randn(SIDE, SIDE)
    source, target = (torch.ones(COPIED_BYTES, dtype=torch.uint8) for _ in range(2))
    cores, picture = len(os.sched_getaffinity(0)), photo()

    def decode(_: int) -> None:
        Image.open(io.BytesIO(picture)).load()

    with ThreadPoolExecutor(cores) as pool:
        decoded_s = best_s(lambda: list(pool.map(decode, range(NUM_PICTURES))), options.repeats)
    report = {
        "cores": cores,
        "matmul_gflops": round(2e-9 * SIDE**3 / best_s(lambda: matrix @ matrix, options.repeats), 1),
        "copy_gb_per_s": round(2e-9 * COPIED_BYTES / best_s(lambda: target.copy_(source), options.repeats), 2),
        "jpeg_images_per_s": round(NUM_PICTURES / decoded_s),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
