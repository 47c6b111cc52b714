#!/usr/bin/env python3
"""The Frechet distance of two normal distributions: our seconds beside SciPy's matrix square root and torch-fidelity's.

    python benchmarks/frechet.py --width 2048 --repeats 5

The covariances share their eigenvectors, so the distance has a closed form, sum (sqrt(a) - sqrt(b))^2 of their
eigenvalues: how far each is from it stands beside. The spectrum falls as that of images' features does, by a power.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from workloads.evaluation.moments import Statistics, frechet_distance


def drawn(width: int) -> tuple[Statistics, Statistics, float]:
    """Two distributions and their distance."""
    rng = np.random.default_rng(0)
    basis_DD, _ = np.linalg.qr(rng.normal(size=(width, width)))
    falling_D = np.arange(1, width + 1) ** -1.5
    one_D, other_D = falling_D * rng.uniform(0.5, 1.5, width), falling_D * rng.uniform(0.5, 1.5, width)
    shift_D = rng.normal(size=width) / width
    exact = float(shift_D @ shift_D + np.square(np.sqrt(one_D) - np.sqrt(other_D)).sum())
    one_DD, other_DD = (basis_DD * one_D) @ basis_DD.T, (basis_DD * other_D) @ basis_DD.T
    return Statistics(np.zeros(width), one_DD), Statistics(shift_D, other_DD), exact


def by_scipy(found: Statistics, expected: Statistics) -> float:
    """As pytorch-fid and clean-fid do: Tr of scipy.linalg.sqrtm of the product."""
    root_DD = scipy.linalg.sqrtm(found.sigma @ expected.sigma)
    shift_D = found.mu - expected.mu
    return float(shift_D @ shift_D + np.trace(found.sigma) + np.trace(expected.sigma) - 2 * np.trace(root_DD).real)


def by_torch_fidelity(found: Statistics, expected: Statistics) -> float:
    """By the eigenvalues of the product."""
    distance: float = fid_statistics_to_metric(found._asdict(), expected._asdict(), verbose=False)[KEY_METRIC_FID]
    return distance


WAYS: dict[str, Callable[[Statistics, Statistics], float]] = {
    "rememe": frechet_distance,
    "SciPy sqrtm": by_scipy,
    "torch-fidelity": by_torch_fidelity,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048, help="features, as many as Inception has")
    parser.add_argument("--repeats", type=int, default=5, help="of each, in turn")
    options = parser.parse_args()
    found, expected, exact = drawn(options.width)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    off: dict[str, float] = {}
    for _ in range(options.repeats):
        for name, way in WAYS.items():
            started_s = time.perf_counter()
            distance = way(found, expected)
            seconds[name].append(time.perf_counter() - started_s)
            off[name] = abs(distance - exact)
    rows = {
        name: {
            "median_s": round(statistics.median(taken), 3),
            "slowest_s": round(max(taken), 3),
            "times_ours": round(statistics.median(taken) / statistics.median(seconds["rememe"]), 2),
            "off_closed_form": off[name],
        }
        for name, taken in seconds.items()
    }
    print(json.dumps({"width": options.width, "exact": exact, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
