#!/usr/bin/env python3
"""What sampling with Remix-DiT-S/2 4-20 costs over the plain DiT-S/2: with baked experts, and mixing at run time.

    python benchmarks/remix_latency.py --rounds 5

Baked: calls at batch 1, plain and baked networks taking turns call by call; another expert every third call, as in 50
steps through all 20. Its ratio is the median over blocks of 50 calls each. Mixed: a trajectory of 50 DDIM steps through
all experts, which run-time mixing mixes once each, plain and mixed taking turns. Weights are random, which changes no
time.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_BAKED = 1.005
MAX_MIXED = 1.05
NUM_EXPERTS = 20
CALLS_PER_EXPERT = 3
CALLS_PER_BLOCK = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4, help="of trajectories")
    parser.add_argument("--calls", type=int, default=400)
    options = parser.parse_args()
    import torch

    from workloads.config.evaluation import SamplingConfig
    from workloads.config.intervals import IntervalTable, uniform_cuts
    from workloads.config.job import DataSpec
    from workloads.config.run import RunConfig
    from workloads.diffusion.sampling import sample
    from workloads.models.build import new_model
    from workloads.models.remix import RemixNetwork
    from workloads.training.remix.state import RemixState

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = RunConfig.model_validate(
        {
            "name": "benchmark",
            "data": {"kind": "embedded", "image_size": 32, "channels": 3},
            "model": {"kind": "dit", "size": "S", "patch_size": 2},
            "strategy": {"kind": "remix", "num_experts": NUM_EXPERTS, "num_bases": 4},
            "training": {"images": 256},
            "evaluation": "demo",
        }
        | {"evaluation": {"name": "demo", "sampling": {"guidance_scale": 1}}}
    )
    (job,) = config.jobs(DataSpec(fingerprint="f" * 64, channels=3, image_size=32))
    intervals = IntervalTable(uniform_cuts(NUM_EXPERTS, 1000), 1000)
    with tempfile.TemporaryDirectory() as scratch:
        state = RemixState(job, device)
        state.save(Path(scratch))
        from safetensors.torch import load_file

        tensors = load_file(Path(scratch) / "remix" / "remix.safetensors")
        folder = Path(scratch) / "remix"
        mixed = RemixNetwork(lambda: new_model(folder), tensors, device, capacity=1)
        all_baked = RemixNetwork(lambda: new_model(folder), tensors, device, capacity=NUM_EXPERTS)
        plain = new_model(folder).to(device).eval()
        baked = [all_baked.expert(index) for index in range(NUM_EXPERTS)]

        def trajectory(expert: Callable[[int], Any]) -> float:
            def denoise(x_BCHW: Any, timestep: int, _: Any) -> Any:
                t_B = torch.full((len(x_BCHW),), timestep, device=device)
                return expert(intervals.expert_of(timestep))(x_BCHW, t_B).sample

            started_s = time.perf_counter()
            sample(
                denoise,
                shape_CHW=(3, 32, 32),
                diffusion=config.diffusion,
                sampling=SamplingConfig(num_steps=50),
                seeds=range(options.batch_size),
                device=device,
            ).sum().item()
            return time.perf_counter() - started_s

        def call(network: Any) -> float:
            started_s = time.perf_counter()
            network(one_BCHW, t_B).sample.sum().item()
            return time.perf_counter() - started_s

        one_BCHW, t_B = torch.zeros(1, 3, 32, 32, device=device), torch.zeros(1, device=device)
        calls_s: dict[str, list[float]] = {"plain": [], "baked": []}
        with torch.inference_mode():
            for index in range(options.calls):
                calls_s["plain"].append(call(plain))
                calls_s["baked"].append(call(baked[index // CALLS_PER_EXPERT % NUM_EXPERTS]))
        kinds: dict[str, Callable[[int], Any]] = {"plain": lambda _: plain, "mixed": mixed.expert}
        times_s: dict[str, list[float]] = {kind: [] for kind in kinds}
        for round_index in range(options.rounds + 1):
            for kind, expert in kinds.items():
                elapsed_s = trajectory(expert)
                if round_index:
                    times_s[kind].append(elapsed_s)
    found = {
        "baked": [b / a for a, b in zip(_by_block(calls_s["plain"]), _by_block(calls_s["baked"]), strict=True)],
        "mixed": [b / a for a, b in zip(times_s["plain"], times_s["mixed"], strict=True)],
    }
    ratios = {
        name: {
            "median": round(statistics.median(values), 4),
            "least": round(min(values), 4),
            "most": round(max(values), 4),
        }
        for name, values in found.items()
    }
    report = {
        "batch_size": options.batch_size,
        "plain_call_s": round(statistics.median(calls_s["plain"]), 4),
        "plain_trajectory_s": round(statistics.median(times_s["plain"]), 3),
        "ratio": ratios,
        "limits": {"baked": MAX_BAKED, "mixed": MAX_MIXED},
    }
    print(json.dumps(report, indent=2))
    return 0 if ratios["baked"]["median"] <= MAX_BAKED and ratios["mixed"]["median"] <= MAX_MIXED else 1


def _by_block(values: list[float]) -> list[float]:
    """The median of each block."""
    starts = range(0, len(values), CALLS_PER_BLOCK)
    return [statistics.median(values[start : start + CALLS_PER_BLOCK]) for start in starts]


if __name__ == "__main__":
    raise SystemExit(main())
