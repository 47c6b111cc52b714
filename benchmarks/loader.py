#!/usr/bin/env python3
"""Share of a training step that is spent waiting for data, at CIFAR-10's size (50,000 images of 32 x 32).

    python benchmarks/loader.py --data data/cifar10.npz      CIFAR-10 itself
    python benchmarks/loader.py                              the embedded images, enlarged to 32 x 32 x 3

The network is cifar10-meme's; the share is the one every run logs as loader_wait_share.
"""

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from workloads.config.data import CIFAR10Data, EmbeddedData
from workloads.config.load import load_config
from workloads.data.prepare import ensure_prepared
from workloads.data.stream import BatchStream
from workloads.training.job import train_job
from workloads.training.records import read_records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10: .npz or torchvision's directory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        dataset = ensure_prepared(
            EmbeddedData(image_size=32) if options.data is None else CIFAR10Data(path=options.data), root / "data"
        )
        images = 128 * options.steps
        overrides = [f"training.images={images}", f"training.log_every_images={images}", "data.path=unused"]
        config = load_config("cifar10-meme", overrides)
        job = config.jobs(dataset.spec(config.data))[0]
        result = train_job(job, dataset.path, root / "expert", device=options.device, num_threads=2)
        (record,) = read_records(root / "expert" / "records.jsonl")
        reader = BatchStream(dataset, batch_size=128, seed=0, flip=True)
        started_s, read = time.perf_counter(), 0
        with closing(reader.iterate()) as batches:
            while read < 50_000:
                read += len(next(batches).labels_B)
        epoch_s = time.perf_counter() - started_s
    report = {
        "num_images": dataset.num_images,
        "step_s": round(result.train_s / options.steps, 4),
        "loader_wait_share": record.loader_wait_share,
        "reading_alone_images_per_s": round(read / epoch_s),
    }
    print(json.dumps(report, indent=2))
    return 0 if record.loader_wait_share < 0.02 else 1


if __name__ == "__main__":
    raise SystemExit(main())
