"""How long one call of a network takes."""

import statistics
import time

import torch

from workloads.ensemble import Ensemble

REPEATS = 20


def latency_s(ensemble: Ensemble, timestep: int = 0) -> float:
    """Of one call for one image at this timestep: the median of several, after a first that is not counted."""
    x_BCHW = torch.zeros(1, *ensemble.shape_CHW, device=ensemble.device)
    labels_B = None if ensemble.num_classes is None else torch.zeros(1, dtype=torch.long, device=ensemble.device)
    times_s = []
    with torch.inference_mode():
        for _ in range(REPEATS + 1):
            started_s = time.perf_counter()
            # item() waits for the device, which has only begun when the call returns.
            ensemble.denoise(x_BCHW, timestep, labels_B).sum().item()
            times_s.append(time.perf_counter() - started_s)
    # The first loads or mixes the expert.
    return statistics.median(times_s[1:])
