#!/usr/bin/env python3
"""A training step of two gloo workers: gradients through DDP's buckets, behind one flat sum, and not exchanged at all.

    python benchmarks/gradient_exchange.py --rounds 7

DiT-S/2 at 32 x 32 x 3, the step of an expert of a group as it is (DDP, buckets summed while the backward pass goes on),
the same step with gradients that are views of one flat tensor, summed in one piece after the backward pass, and each
worker for itself. They take turns; the median over rounds of the slower worker's times. `overlapped` is the share of
the flat exchange's cost that DDP hides behind the backward pass; workers on one machine share its memory.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

CONFIG = {
    "name": "benchmark",
    "data": {"kind": "embedded", "image_size": 32, "channels": 3, "class_conditional": True},
    "model": {"kind": "dit", "size": "S", "patch_size": 2},
    "strategy": {"kind": "single"},
    "training": {"images": 10**9, "batch_size": 8},
    "evaluation": "demo",
}


def _exchanged(state: Any, group: Any) -> Callable[[], None]:
    """Have gradients summed in one piece, behind the backward pass; to be called before each."""
    import torch

    flat = torch.zeros(sum(parameter.numel() for parameter in state.parameters))
    parts = flat.split([parameter.numel() for parameter in state.parameters])

    def exchange(*_: Any) -> None:
        group.sum_(flat)
        flat.div_(group.world_size)

    def begin() -> None:
        flat.zero_()
        for parameter, part in zip(state.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    state.optimizer.register_step_pre_hook(exchange)
    return begin


def _one_step(step: Any, state: Any, batch: Any, begin: Callable[[], None]) -> None:
    begin()
    step(state, batch)


def work(rounds: int, data: Path) -> None:
    """One worker, under torchrun."""
    import torch

    from workloads.config import RunConfig
    from workloads.data.prepare import ensure_prepared
    from workloads.data.stream import BatchStream
    from workloads.training.processes import Workers
    from workloads.training.trainers import trainer_of

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    group, cpu = Workers.current(), torch.device("cpu")
    config = RunConfig.model_validate(CONFIG)
    dataset = ensure_prepared(config.data, data)
    (job,) = config.jobs(dataset.spec(config.data))
    batch = BatchStream(dataset, batch_size=4, seed=0, rank=group.rank, world_size=2).at(0)
    steps: dict[str, Callable[[], Any]] = {}
    for name, workers in {"DDP": group, "alone": Workers(), "flat": Workers()}.items():
        state, step = trainer_of(job).begin(cpu, workers)
        exchange = _exchanged(state, group) if name == "flat" else lambda: None
        steps[name] = partial(_one_step, step, state, batch, exchange)
    times_s: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds + 2):
        for name, step in steps.items():
            torch.distributed.barrier()
            started_s = time.perf_counter()
            step()
            slowest_s = torch.tensor([time.perf_counter() - started_s])
            torch.distributed.all_reduce(slowest_s, torch.distributed.ReduceOp.MAX)
            if index >= 2:
                times_s[name].append(slowest_s.item())
    if group.is_first:
        print(json.dumps(times_s))
    torch.distributed.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data:
        work(options.rounds, options.data)
        return 0
    from workloads.config import RunConfig
    from workloads.data.prepare import ensure_prepared

    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        ensure_prepared(RunConfig.model_validate(CONFIG).data, data)  # by one process, before two read it
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
        command += [__file__, f"--rounds={options.rounds}", f"--data={data}"]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    times_s: dict[str, list[float]] = json.loads(result.stdout.splitlines()[-1])
    median_s = {name: statistics.median(values) for name, values in times_s.items()}
    ratios = [flat / ddp for flat, ddp in zip(times_s["flat"], times_s["DDP"], strict=True)]
    flat_cost_s, ddp_cost_s = (median_s[name] - median_s["alone"] for name in ("flat", "DDP"))
    report = {
        "step_s": {name: round(value, 4) for name, value in median_s.items()},
        "ratio": {
            "flat over DDP": {
                "median": round(statistics.median(ratios), 4),
                "least": round(min(ratios), 4),
                "most": round(max(ratios), 4),
            }
        },
        "overlapped": round(1 - ddp_cost_s / flat_cost_s, 3) if flat_cost_s > 0 else None,
    }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
