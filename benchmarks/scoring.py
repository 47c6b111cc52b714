#!/usr/bin/env python3
"""A score of N samples by 2,048 features: seconds of each part, and the memory it takes. Of any network but its own.

python benchmarks/scoring.py --samples 50000
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from workloads.evaluation.blocks import extracted, first
from workloads.evaluation.extractors import Extractor
from workloads.evaluation.metrics import inception_score, kernel_distance, precision_recall
from workloads.evaluation.moments import Statistics, feature_statistics, frechet_distance, frechet_estimate

SIDE, WIDTH, NUM_CLASSES, NUM_COMPARED = 8, 2048, 1008, 10_000


class Projection(nn.Module):
    """Random features, as wide as Inception's."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3 * SIDE**2, WIDTH, generator=torch.Generator().manual_seed(0)))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD = ((images_BCHW.float().flatten(1) / 255) @ self.weights / SIDE).relu()
        return features_BD, features_BD[:, :NUM_CLASSES]


class Noise(Dataset[Tensor]):
    """Images that are made when asked for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Tensor:
        pixels = np.random.default_rng(index).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
        return torch.from_numpy(pixels)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [self[index] for index in indices]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--bootstrap", action="store_true", help="also time one resample of a bootstrap")
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    before_bytes = peak_bytes()

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started_s = time.perf_counter()
        found = call()
        seconds[name] = round(time.perf_counter() - started_s, 1)
        return found

    extractor = Extractor("projection", Projection(), "wide", "logits", "0", "none", "fd", WIDTH)
    root = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    expected = Statistics(np.full(WIDTH, 0.3), root @ root.T)
    started_s = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        extracted(Noise(options.samples), extractor, Path(folder)) as features,
    ):
        seconds["extraction"] = round(time.perf_counter() - started_s, 1)
        own = features["wide"]
        found = timed("mean and covariance", lambda: feature_statistics(own))
        timed("distance and its error", lambda: frechet_estimate(own, found, expected))
        timed("inception score", lambda: inception_score(features["logits"]))
        if options.bootstrap:
            timed("one resample", lambda: frechet_distance(feature_statistics(own), expected))
        compared = first(own, NUM_COMPARED)
        timed("kid", lambda: kernel_distance(compared, compared.flip(0)))
        timed("precision and recall", lambda: precision_recall(compared, compared.flip(0)))
    grown_mb = round((peak_bytes() - before_bytes) / 1e6)
    print(json.dumps({"samples": options.samples, "seconds": seconds, "memory_mb": grown_mb}, indent=2))


if __name__ == "__main__":
    main()
