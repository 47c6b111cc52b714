"""Statistics of a reference set that somebody else has computed."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workloads.errors import ConfigError
from workloads.evaluation.moments import Statistics

NAMES, SPATIAL_NAMES = ("mu", "sigma"), ("mu_s", "sigma_s")
"""In the file; the second are ADM's, for sFID."""


def read_statistics(path: Path, width: int, *, spatial: bool = False) -> Statistics:
    """Of ADM's or clean-fid's .npz or torch-fidelity's .pt; spatial: those of sFID.

    Raises ConfigError unless they are there and are the mean and covariance of `width` features.
    """
    mean, covariance = NAMES if not spatial else SPATIAL_NAMES
    found = _arrays(path)
    if missing := [name for name in (mean, covariance) if name not in found]:
        raise ConfigError(f"evaluation.reference_statistics {path} holds no {missing[0]}, but {', '.join(found)}")
    mu, sigma = np.asarray(found[mean]), np.asarray(found[covariance])
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise ConfigError(
            f"evaluation.reference_statistics {path} are of shapes {mu.shape} and {sigma.shape}, but the feature "
            f"network has {width} features; they are of another network"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all() and np.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-6)):
        raise ConfigError(f"evaluation.reference_statistics {path} are no mean and covariance; the file is damaged")
    return Statistics(mu.astype(np.float64), sigma.astype(np.float64))


def _arrays(path: Path) -> dict[str, Any]:
    try:
        if path.suffix != ".npz":
            with torch.serialization.safe_globals(_numpy_globals()):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with np.load(path, allow_pickle=False) as file:  # ADM's has ten thousand images besides
                loaded = {name: file[name] for name in (*NAMES, *SPATIAL_NAMES) if name in file} or dict.fromkeys(file)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"evaluation.reference_statistics {path} cannot be read: {reason}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"evaluation.reference_statistics {path} holds no named arrays; give an .npz or .pt of them")
    return loaded


def _numpy_globals() -> list[Any]:
    """What a pickled array of numbers is made of; nothing of it runs code."""
    kinds = [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    reconstruct = np.zeros(1).__reduce__()[0]
    return [reconstruct, np.ndarray, np.dtype, *kinds]
