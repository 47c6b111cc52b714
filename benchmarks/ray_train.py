#!/usr/bin/env python3
"""Steps per second of a remix under Ray over plain torchrun, at the median record.

    python benchmarks/ray_train.py --images 12800

Both run the same training of workloads on the demo's network, one after the other, twice each in alternation; speed is
that of training's own records (rank 0), of which the first, with start-up effects, is left out. Ray's own processes
need some CPU: with as many workers as cores they share those with training.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.execution.environment import prepare_ray_environment

MIN_RATIO = 0.99
ROUNDS = 2


def overrides(images: int, num_workers: int) -> list[str]:
    return [
        f"execution.num_workers={num_workers}",
        f"training.images={images}",
        "training.log_every_images=640",
        "training.checkpoint_every_images=1000000",
    ]


def under_torchrun(images: int, num_workers: int, out: Path) -> list[float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={num_workers}",
        f"--master-port={port}",
    ]
    command += ["-m", "workloads", "train", "demo-remix", *overrides(images, num_workers), "--out", str(out)]
    # Ray gives each worker as many threads as CPUs; torchrun does so for several workers only.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return [line["images_per_s"] for line in lines if "images_per_s" in line][1:]


def under_ray(images: int, num_workers: int, out: Path) -> list[float]:
    from orchestrator.execution.supervisor import train_experts
    from orchestrator.plan.jobs import make_plan
    from orchestrator.store.experts import ExpertStore
    from workloads.config.load import load_config
    from workloads.data.prepare import ensure_prepared
    from workloads.training.records import read_records

    config = load_config("demo-remix", overrides(images, num_workers))
    dataset = ensure_prepared(config.data, out / "data")
    job = make_plan(config, dataset.spec(config.data)).jobs[0]
    store = ExpertStore(out / "store")
    outcome = train_experts([job], dataset.path, store, config.execution)
    assert outcome.completed, outcome
    return [record.images_per_s for record in read_records(store.path(job.key) / "records.jsonl")][1:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12800)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    prepare_ray_environment(None)
    from orchestrator.execution.cluster import connect

    found: dict[str, list[float]] = {"torchrun": [], "ray": []}
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(ROUNDS):
            found["torchrun"] += under_torchrun(options.images, options.workers, Path(scratch) / f"torchrun{index}")
            with connect(None, num_cpus=2):
                found["ray"] += under_ray(options.images, options.workers, Path(scratch) / f"ray{index}")
    medians = {name: statistics.median(values) for name, values in found.items()}
    report: dict[str, Any] = {
        "workers": options.workers,
        "images_per_s": {name: round(value, 1) for name, value in medians.items()},
        "ratio": round(medians["ray"] / medians["torchrun"], 4),
        "limit": MIN_RATIO,
    }
    print(json.dumps(report, indent=2))
    return 0 if report["ratio"] >= MIN_RATIO else 1


if __name__ == "__main__":
    raise SystemExit(main())
