"""Statistics of a reference set that somebody else has computed."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workloads.errors import ConfigError
from workloads.evaluation.moments import Statistics
from workloads.evaluation.npz_images import NpzImages, has_images

NAMES, SPATIAL_NAMES = ("mu", "sigma"), ("mu_s", "sigma_s")
"""In the file; the second are ADM's, for sFID."""


CLEAN_FID_NAME = re.compile(r"_(clean|legacy_pytorch|legacy_tensorflow)_\w+?_(\d+)\.npz$")
"""How clean-fid names its files: data set, resizing, split, image size."""


def check_origin(path: Path, resize: str, image_size: int | None) -> None:
    """Raise ConfigError if the file tells that its images were of another size, or were resized otherwise.

    ADM's files tell it by the images in them, clean-fid's by their names; others do not.
    """
    if not path.is_file():
        return  # said by who reads it
    mode, size = None, None
    if (named := CLEAN_FID_NAME.search(path.name)) is not None:
        mode, size = "clean" if named[1] == "clean" else named[1].removeprefix("legacy_"), int(named[2])
    elif has_images(path):
        mode, size = "tensorflow", NpzImages(path).shape_NHWC[1]
    if mode not in {None, resize}:
        raise ConfigError(
            f"evaluation.reference_statistics {path} are of images resized by {mode}, but "
            f"evaluation.resize is {resize}; set it to the same, or take other statistics"
        )
    if None not in {size, image_size} and size != image_size:
        raise ConfigError(
            f"evaluation.reference_statistics {path} are of images of {size} x {size}, but the samples are of "
            f"{image_size} x {image_size}; take statistics of that size, for resizing changes the score"
        )


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
