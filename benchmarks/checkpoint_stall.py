#!/usr/bin/env python3
"""What a checkpoint holds training up for: written beside training, as it is, and waited for.

    python benchmarks/checkpoint_stall.py --rounds 5

DiT-S/2 at 32 x 32 x 3 with its average and moments, half a gigabyte. Rounds of the same number of steps take turns:
without a checkpoint, with one in the middle that is written beside the steps behind it, and with one that training
waits for. What a round with a checkpoint takes longer is its stall; it has all that the writing takes from the cores
of training. `seconds_between` is how far apart checkpoints must be for that to be 1 %.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from workloads.checkpoint import CheckpointFolder
from workloads.config import RunConfig
from workloads.data.prepare import ensure_prepared
from workloads.data.stream import Batch, BatchStream
from workloads.training.hooks import CheckpointHook
from workloads.training.processes import Workers
from workloads.training.trainers import trainer_of

CONFIG = {
    "name": "benchmark",
    "data": {"kind": "embedded", "image_size": 32, "channels": 3, "class_conditional": True},
    "model": {"kind": "dit", "size": "S", "patch_size": 2},
    "strategy": {"kind": "single"},
    "training": {"images": 10**9, "batch_size": 4},
    "evaluation": "demo",
}
SHARE = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="of a round")
    options = parser.parse_args()
    config = RunConfig.model_validate(CONFIG)
    elapsed_s: dict[str, list[float]] = {"none": [], "beside": [], "waited": []}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = ensure_prepared(config.data, Path(scratch) / "data")
        (job,) = config.jobs(dataset.spec(config.data))
        state, step = trainer_of(job).begin(torch.device("cpu"), Workers())
        folder = CheckpointFolder(Path(scratch) / "checkpoints", job.key)
        batch: Batch = BatchStream(dataset, batch_size=4, seed=0).at(0)
        step(state, batch)  # the moments are made
        num_bytes = state.checkpoint().num_bytes

        def round_s(save: Callable[[], CheckpointHook | None]) -> float:
            started_s, hook = time.perf_counter(), None
            for index in range(options.steps):
                loss = step(state, batch)
                if index == options.steps // 4:
                    hook = save()
                if hook is not None:
                    hook(state, loss)
            if hook is not None:
                hook.finish()
                hook.close()
            return time.perf_counter() - started_s

        def beside() -> CheckpointHook:
            """Due at once, and not again."""
            start = state.images_seen - 10**6
            return CheckpointHook(folder, start_images=start, every_images=10**6, should_stop=lambda: False)

        def waited() -> None:
            folder.save(state.checkpoint())

        kinds = {"none": lambda: None, "beside": beside, "waited": waited}
        for _ in range(options.rounds):
            for name, save in kinds.items():
                elapsed_s[name].append(round_s(save))
    stall_s = {
        name: [with_s - without_s for with_s, without_s in zip(elapsed_s[name], elapsed_s["none"], strict=True)]
        for name in ("beside", "waited")
    }
    median_s = {name: statistics.median(values) for name, values in stall_s.items()}
    report = {
        "checkpoint_mb": round(num_bytes / 1e6),
        "step_s": round(statistics.median(elapsed_s["none"]) / options.steps, 3),
        "stall_s": {
            name: {"median": round(median_s[name], 3), "least": round(min(values), 3), "most": round(max(values), 3)}
            for name, values in stall_s.items()
        },
        "ratio": round(median_s["beside"] / median_s["waited"], 3),
        "seconds_between": round(max(0.0, median_s["beside"]) / SHARE, 1),
    }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
