#!/usr/bin/env python3
"""Four equal experts on two slots against one alone: from first submission to last result, over the ideal.

    python benchmarks/parallel_experts.py --seconds 60

The ideal is twice the time of one expert alone in the same kind of slot, measured in the same run before and after,
so that a machine that slows down or speeds up shows. On a machine of few cores one expert alone may run faster than
beside another (shared caches, boost clocks); the slots' own contention is printed as steps_ratio.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from orchestrator.execution.environment import prepare_ray_environment

SLOTS = 2
EXPERTS = 4
MAX_RATIO = 1.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of one expert")
    options = parser.parse_args()
    prepare_ray_environment(None)
    from orchestrator.execution.cluster import connect
    from orchestrator.plan.jobs import make_plan
    from workloads.config.load import load_config
    from workloads.data.prepare import ensure_prepared

    with tempfile.TemporaryDirectory() as scratch, connect(None, num_cpus=SLOTS):
        root = Path(scratch)
        config = load_config("demo-meme", ["training.images=1920"])
        dataset = ensure_prepared(config.data, root / "data")
        job = make_plan(config, dataset.spec(config.data)).jobs[0]

        def experts(count: int, num_images: int, first_seed: int) -> list:  # type: ignore[type-arg]
            training = job.job.training.model_copy(update={"images": num_images})
            changes = [{"training": training, "seed": first_seed + index} for index in range(count)]
            return [replace(job, job=job.job.model_copy(update=change)) for change in changes]

        def timed(jobs: list) -> tuple[float, list[float]]:  # type: ignore[type-arg]
            from orchestrator.execution.supervisor import train_experts
            from orchestrator.store.experts import ExpertStore

            started_s = time.perf_counter()
            outcome = train_experts(jobs, dataset.path, ExpertStore(root / "store"), config.execution)
            elapsed_s = time.perf_counter() - started_s
            assert len(outcome.completed) == len(jobs), outcome
            return elapsed_s, [result.train_s for result in outcome.completed.values()]

        # Speed in a loaded slot decides how many images take --seconds.
        _, speeds = timed(experts(SLOTS, 1920, 100))
        num_images = int(1920 / statistics.mean(speeds) * options.seconds) // 32 * 32
        before_s, before = timed(experts(1, num_images, 200))
        together_s, together = timed(experts(EXPERTS, num_images, 300))
        after_s, after = timed(experts(1, num_images, 400))
    alone_s = (before_s + after_s) / 2
    alone_steps_s = statistics.mean(before + after)
    report = {
        "images_per_expert": num_images,
        "alone_s": [round(before_s, 2), round(after_s, 2)],
        "together_s": round(together_s, 2),
        "ratio": round(together_s / (EXPERTS / SLOTS * alone_s), 4),
        "steps_ratio": round(statistics.mean(together) / alone_steps_s, 4),
        "limit": MAX_RATIO,
    }
    print(json.dumps(report, indent=2))
    return 0 if report["ratio"] <= MAX_RATIO else 1


if __name__ == "__main__":
    raise SystemExit(main())
