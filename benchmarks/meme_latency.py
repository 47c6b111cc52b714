#!/usr/bin/env python3
"""How much faster MEME's experts are than the large network they replace, at the sizes of the paper's Table 1.

    python benchmarks/meme_latency.py --rounds 3

One call for one image, LDM-L and each of the four experts taking turns; and trajectories of DDIM steps, in which the
ensemble changes experts on the way, LDM-L and the ensemble taking turns. Weights are random, which changes no time.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

CALLS = 8
MIN_RATIO = 3.3
"""arXiv:2306.04990."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of trajectories")
    parser.add_argument("--steps", type=int, default=50, help="of a trajectory")
    parser.add_argument("--comparison", default="meme-table1", help="whose base and row LDM-L are measured")
    options = parser.parse_args()
    import torch

    from orchestrator.runs.data import as_configured
    from workloads.config.evaluation import SamplingConfig
    from workloads.config.load import load_comparison
    from workloads.diffusion.sampling import sample
    from workloads.models.build import build_model

    comparison = load_comparison(options.comparison)
    meme, large = (comparison.run(row, 0, None) for row in (comparison.base_name, "LDM-L"))
    spec = as_configured(meme.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def networks(config: Any) -> list[Any]:
        shape = {"channels": spec.channels, "image_size": spec.image_size, "num_classes": spec.num_classes}
        return [build_model(job.model, **shape).to(device).eval() for job in config.jobs(spec)]

    experts, (alone,) = networks(meme), networks(large)
    shape_CHW = (spec.channels, spec.image_size, spec.image_size)
    labels_B = None if spec.num_classes is None else torch.zeros(1, dtype=torch.long, device=device)

    def elapsed_s(act: Callable[[], Any]) -> float:
        started_s = time.perf_counter()
        act().sum().item()  # waits for the device
        return time.perf_counter() - started_s

    def call(network: Any, x_BCHW: Any, timestep: float) -> Any:
        t_B = torch.full((len(x_BCHW),), timestep, device=device)
        return network(x_BCHW, t_B, class_labels=labels_B).sample

    def trajectory(of_timestep: Callable[[int], Any]) -> Any:
        return sample(
            lambda x_BCHW, timestep, _: call(of_timestep(int(timestep)), x_BCHW, timestep),
            shape_CHW=shape_CHW,
            diffusion=meme.diffusion,
            sampling=SamplingConfig(sampler="ddim", num_steps=options.steps),
            seeds=range(1),
            device=device,
        )

    one_BCHW = torch.zeros(1, *shape_CHW, device=device)
    calls_s: list[list[float]] = []
    with torch.inference_mode():
        for index in range(CALLS + 1):
            found_s = [elapsed_s(lambda network=network: call(network, one_BCHW, 0)) for network in (alone, *experts)]
            if index:
                calls_s.append(found_s)
    kinds = {"LDM-L": lambda _: alone, "MEME": lambda timestep: experts[meme.intervals.expert_of(timestep)]}
    rounds_s: list[dict[str, float]] = []
    for number in range(options.rounds):
        rounds_s.append({kind: elapsed_s(lambda of=of: trajectory(of)) for kind, of in kinds.items()})
        print(f"round {number + 1} of {options.rounds}: {rounds_s[-1]}", file=sys.stderr)

    def ratios(pairs: list[tuple[float, float]]) -> dict[str, float]:
        found = [over / ours for over, ours in pairs]
        summary = {"median": statistics.median(found), "least": min(found), "most": max(found)}
        return {name: round(value, 4) for name, value in summary.items()}

    report = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "num_parameters": [sum(one.numel() for one in network.parameters()) for network in (alone, *experts)],
        "ldm_call_s": round(statistics.median(found[0] for found in calls_s), 4),
        "steps": options.steps,
        "ldm_trajectory_s": round(statistics.median(one["LDM-L"] for one in rounds_s), 3),
        "ratio": {
            "call": ratios([(found[0], statistics.mean(found[1:])) for found in calls_s]),
            "trajectory": ratios([(one["LDM-L"], one["MEME"]) for one in rounds_s]),
        },
        "limit": MIN_RATIO,
    }
    print(json.dumps(report, indent=2))
    return 0 if report["ratio"]["trajectory"]["median"] >= MIN_RATIO else 1  # type: ignore[index]


if __name__ == "__main__":
    raise SystemExit(main())
