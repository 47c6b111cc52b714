#!/usr/bin/env python3
"""A training step of Remix-DiT-S/2 4-20 over one of the plain DiT-S/2: time, and peak memory beyond the bases' own.

    python benchmarks/remix_step.py --rounds 8

Real images (the embedded set at 32 x 32, 256 tokens), equal batch, AdamW fused and weight averaging on both. The steps
take turns, so that a machine that slows down slows both. Memory is the peak of a process of its own per kind, less
what K bases need by definition: weights, two moments and the average of each basis beyond the first.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_RATIO = 1.08
MAX_MEMORY_RATIO = 1.10


def configuration(strategy: dict[str, Any], batch_size: int, precision: str) -> Any:
    from workloads.config import RunConfig

    return RunConfig.model_validate(
        {
            "name": "benchmark",
            "data": {"kind": "embedded", "image_size": 32, "channels": 3, "class_conditional": True},
            "model": {"kind": "dit", "size": "S", "patch_size": 2},
            "strategy": strategy,
            "training": {"images": 10**9, "batch_size": batch_size, "precision": precision},
            "evaluation": "demo",
        }
    )


def stepper(kind: str, options: argparse.Namespace, scratch: Path) -> Callable[[], float]:
    """A function that takes one step and returns its seconds."""
    import torch

    from workloads.data.prepare import ensure_prepared
    from workloads.data.stream import BatchStream
    from workloads.training.processes import Workers
    from workloads.training.trainers import trainer_of

    strategy: dict[str, Any] = {"kind": "single"}
    if kind != "plain":
        per_step = int(kind.removeprefix("remix-"))
        strategy = {"kind": "remix", "num_experts": 20, "num_bases": 4, "experts_per_step": per_step}
    config = configuration(strategy, options.batch_size, options.precision)
    dataset = ensure_prepared(config.data, scratch / "data")
    (job,) = config.jobs(dataset.spec(config.data))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state, step = trainer_of(job).begin(device, Workers())
    batch = BatchStream(dataset, batch_size=options.batch_size, seed=0).at(0)

    def run() -> float:
        started_s = time.perf_counter()
        step(state, batch).item()
        return time.perf_counter() - started_s

    return run


def peak_bytes(kind: str, options: argparse.Namespace) -> int:
    """Peak memory of a process that takes three steps."""
    command = [sys.executable, __file__, "--only", kind, f"--batch-size={options.batch_size}"]
    result = subprocess.run([*command, f"--precision={options.precision}"], capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1])


def own_bytes(options: argparse.Namespace) -> int:
    """Weights, moments and average of three bases beyond the first."""
    from workloads.config import DataSpec
    from workloads.training.trainers import trainer_of

    config = configuration({"kind": "remix", "num_experts": 20, "num_bases": 4}, options.batch_size, "fp32")
    spec = DataSpec(fingerprint="", channels=3, image_size=32, num_classes=10)
    (job,) = config.jobs(spec)
    cost = trainer_of(job).cost()
    return 4 * 4 * (cost.num_parameters - cost.num_active_parameters)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = ["plain", "remix-1", "remix-4"]
    with tempfile.TemporaryDirectory() as scratch:
        if options.only:
            run = stepper(options.only, options, Path(scratch))
            for _ in range(3):
                run()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            return 0
        # First: a child starts with its parent's peak as its own.
        memory = {kind: peak_bytes(kind, options) for kind in kinds}
        steps = {kind: stepper(kind, options, Path(scratch)) for kind in kinds}
        times_s: dict[str, list[float]] = {kind: [] for kind in kinds}
        for round_index in range(options.rounds + 1):
            for kind, run in steps.items():
                elapsed_s = run()
                if round_index:
                    times_s[kind].append(elapsed_s)
    report = {
        "batch_size": options.batch_size,
        "precision": options.precision,
        "plain_step_s": round(statistics.median(times_s["plain"]), 3),
        "ratio": {
            kind: round(statistics.median(b / a for a, b in zip(times_s["plain"], times_s[kind], strict=True)), 4)
            for kind in kinds[1:]
        },
        "limit": MAX_RATIO,
        "peak_bytes": memory,
        "memory_ratio": {kind: round((memory[kind] - own_bytes(options)) / memory["plain"], 4) for kind in kinds[1:]},
        "memory_limit": MAX_MEMORY_RATIO,
    }
    print(json.dumps(report, indent=2))
    return 0 if report["ratio"]["remix-1"] <= MAX_RATIO and report["memory_ratio"]["remix-1"] <= MAX_MEMORY_RATIO else 1


if __name__ == "__main__":
    raise SystemExit(main())
