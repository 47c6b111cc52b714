#!/usr/bin/env python3
"""Train the feature network of FD-fashion-cnn on the embedded set and measure it on the Fashion-MNIST test split.

The IDX folder is that of Debian's package dataset-fashion-mnist (usr/share/datasets/fashion-mnist after dpkg -x).
The score of every run so far depends on the weights: a new network makes a new protocol.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from idx import read_split
from safetensors.torch import save_file
from torch import Tensor

from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.evaluation.extractors import FASHION_CARD, FASHION_WEIGHTS
from workloads.evaluation.fashion_cnn import NUM_FEATURES, FashionCNN, to_grey
from workloads.files import sha256_file

BATCH_SIZE = 128
MAX_SHIFT = 2
"""Pixels by which a training image is moved at most."""


def augment(images_B1HW: Tensor) -> Tensor:
    """Each image moved by up to MAX_SHIFT pixels (zeros come in) and mirrored half of the time."""
    padded = F.pad(images_B1HW, (MAX_SHIFT,) * 4, value=-1.0)
    size = images_B1HW.shape[-1]
    batch = len(images_B1HW)
    top, left = torch.randint(2 * MAX_SHIFT + 1, (2, batch, 1))
    rows = top + torch.arange(size)
    columns = left + torch.arange(size)
    columns = torch.where(torch.rand(batch, 1) < 0.5, columns, columns.flip(1))
    return padded[torch.arange(batch)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(images: Tensor, labels: Tensor, *, num_epochs: int) -> FashionCNN:
    """AdamW under a one-cycle learning rate with label smoothing; returns the network in evaluation mode."""
    network = FashionCNN().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    steps_per_epoch = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=num_epochs * steps_per_epoch)
    for epoch in range(num_epochs):
        started, total = time.monotonic(), 0.0
        for chosen in torch.randperm(len(images))[: steps_per_epoch * BATCH_SIZE].split(BATCH_SIZE):
            batch = augment(images[chosen]).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(batch), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / steps_per_epoch:.3f}, {time.monotonic() - started:.1f} s", flush=True)
    return network.eval()


@torch.inference_mode()
def accuracy(network: FashionCNN, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose class is found."""
    batches = torch.from_numpy(images)[:, None].split(500)
    found = torch.cat([network(to_grey(batch)).argmax(1) for batch in batches])
    return float((found == torch.from_numpy(labels)).float().mean())


def load_training_set(dataset: PreparedDataset) -> tuple[Tensor, Tensor]:
    indices = np.arange(dataset.num_images)
    return to_grey(torch.from_numpy(dataset.images(indices))), torch.from_numpy(dataset.labels(indices))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("idx", type=Path, help="folder with t10k-images-idx3-ubyte.gz and its labels")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        dataset = ensure_prepared(EmbeddedData(), Path(scratch))
        network = train(*load_training_set(dataset), num_epochs=options.epochs)
    train_s = time.monotonic() - started
    test_accuracy = accuracy(network, *read_split(options.idx, "t10k"))
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, FASHION_WEIGHTS)
    card = {
        "weights_sha256": sha256_file(FASHION_WEIGHTS),
        "test_accuracy": round(test_accuracy, 4),
        "num_features": NUM_FEATURES,
        "trained_on": {"source": "embedded", "num_images": dataset.num_images, "fingerprint": dataset.fingerprint},
        "recipe": {"epochs": options.epochs, "seed": options.seed, "batch_size": BATCH_SIZE},
    }
    FASHION_CARD.write_text(json.dumps(card, indent=2) + "\n")
    size = FASHION_WEIGHTS.stat().st_size
    print(f"test accuracy {test_accuracy:.2%} after {train_s:.0f} s; {FASHION_WEIGHTS.name} has {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
