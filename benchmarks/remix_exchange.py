#!/usr/bin/env python3
"""What two workers exchange per step of Remix-DiT-S/2 with K = 4, and the peak memory of one, by experts per step.

    python benchmarks/remix_exchange.py

The plain path, which reduces the gradient of every basis, would exchange shared + K * mixed parameters; here it is
shared + min(G, K) * mixed for G experts per step, and no basis's gradient is kept. Two gloo workers, one step each.
"""

import argparse
import json
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BATCH_SIZE = 16
NUM_BASES = 4


def configuration(experts_per_step: int) -> Any:
    from workloads.config import RunConfig

    strategy = {"kind": "remix", "num_experts": 20, "num_bases": NUM_BASES, "experts_per_step": experts_per_step}
    return RunConfig.model_validate(
        {
            "name": "benchmark",
            "data": {"kind": "embedded", "image_size": 32, "channels": 3, "class_conditional": True},
            "model": {"kind": "dit", "size": "S", "patch_size": 2},
            "strategy": strategy,
            "training": {"images": 10**9, "batch_size": BATCH_SIZE, "micro_batch_size": 1},
            "evaluation": "demo",
        }
    )


def work(experts_per_step: int, data: Path) -> None:
    """One worker, under torchrun."""
    import torch

    from workloads.config import RemixJob
    from workloads.data.prepare import ensure_prepared
    from workloads.data.stream import BatchStream
    from workloads.training.processes import Workers
    from workloads.training.remix.state import RemixState
    from workloads.training.remix.step import RemixStep

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    workers, cpu = Workers.current(), torch.device("cpu")
    config = configuration(experts_per_step)
    dataset = ensure_prepared(config.data, data)
    (job,) = config.jobs(dataset.spec(config.data))
    assert isinstance(job, RemixJob)
    state = RemixState(job, cpu)
    stream = BatchStream(dataset, batch_size=BATCH_SIZE // 2, seed=0, rank=workers.rank, world_size=2)
    RemixStep(job, cpu, workers)(state, stream.at(0))
    if workers.is_first:
        shared = sum(parameter.numel() for parameter in state.shared)
        plain = 4 * (shared + NUM_BASES * state.bases.size)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"exchanged_bytes": workers.bytes_summed, "plain_bytes": plain, "peak_bytes": peak}))
    torch.distributed.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.data)
        return 0
    report = {}
    from workloads.data.prepare import ensure_prepared

    with tempfile.TemporaryDirectory() as scratch:
        ensure_prepared(configuration(1).data, Path(scratch) / "data")  # by one process, before two read it
        for experts_per_step in (1, 2, 4, 8):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
            command += [__file__, f"--work={experts_per_step}", f"--data={scratch}/data"]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(result.stdout.splitlines()[-1])
            found["share_of_plain"] = round(found["exchanged_bytes"] / found["plain_bytes"], 4)
            report[f"experts_per_step={experts_per_step}"] = found
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
