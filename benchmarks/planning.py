#!/usr/bin/env python3
"""Planning N experts, each of another architecture interval: time and memory beyond imports.

python benchmarks/planning.py --experts 1000
"""

import argparse
import json
import resource
import time
from fractions import Fraction

from orchestrator.plan.jobs import make_plan
from workloads.config import DataSpec, RunConfig
from workloads.config.load import load_config
from workloads.models.cost import model_cost

SHARES = [Fraction(1, 4), Fraction(1, 2), Fraction(5, 8), Fraction(3, 4)]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=1000)
    options = parser.parse_args()
    base = load_config("demo-meme").model_dump(mode="json")
    experts = [
        {"specialisation": 0.5, "model": {"attention_share": ["1/4", str(SHARES[index % len(SHARES)])]}}
        for index in range(options.experts)
    ]
    data = DataSpec(fingerprint="f" * 64, channels=3, image_size=20, num_classes=10)
    # The first use of the meta device imports lazily; that is not planning.
    model_cost(load_config("demo-meme").model, channels=3, image_size=20, num_classes=10)
    before_bytes, started_s = peak_bytes(), time.perf_counter()
    config = RunConfig.model_validate(base | {"strategy": {"kind": "meme", "experts": experts}})
    plan = make_plan(config, data)
    keys = {job.key for job in plan.jobs}
    elapsed_s, grown_bytes = time.perf_counter() - started_s, peak_bytes() - before_bytes
    assert len(keys) == options.experts
    report = {
        "experts": len(keys),
        "architectures": len({job.num_parameters for job in plan.jobs}),
        "elapsed_s": round(elapsed_s, 3),
        "grown_mb": round(grown_bytes / 1e6, 1),
    }
    print(json.dumps(report, indent=2))
    return 0 if elapsed_s < 2 and grown_bytes < 200e6 else 1


if __name__ == "__main__":
    raise SystemExit(main())
