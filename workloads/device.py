"""Whether a device that a user names is there."""

import torch

from workloads.config.explain import short
from workloads.errors import ConfigError


def require_device(named: str | torch.device) -> torch.device:
    """The device of this name. ConfigError, saying which there are, if this machine has none."""
    try:
        device = torch.device(named)
        if _is_here(device):
            return device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):  # as each of torch's parts says it
        pass
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    raise ConfigError(f"device is {short(str(named))}, which this machine does not have; there is {', '.join(there)}")


def _is_here(device: torch.device) -> bool:
    if device.type == "cuda":  # asked without taking its memory
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    torch.empty(0, device=device)
    return device.type != "meta"  # which holds no values
