"""Read the IDX files MNIST-like data sets come in."""

import gzip
from pathlib import Path

import numpy as np


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes as an array."""
    with gzip.open(path) as file:
        content = file.read()
    kind, num_axes = content[2], content[3]
    if kind != 0x08:
        raise SystemExit(f"{path} does not hold unsigned bytes")
    shape = np.frombuffer(content, ">u4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,) of "train" or "t10k"."""
    return read_idx(folder / f"{split}-images-idx3-ubyte.gz"), read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
