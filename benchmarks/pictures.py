#!/usr/bin/env python3
"""What pictures in the course of training cost: their share of it, at the default number of them.

    python benchmarks/pictures.py demo-meme demo-remix

An expert of the preset is trained on a few images, with a picture at every hundredth or so. CPU seconds of a picture,
over those of all images from one picture to the next as the preset has it; seconds of the processor, for other work
on the machine changes them little. Workers who wait for the first are counted.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

MAX_SHARE = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--pictures", type=int, default=5)
    options = parser.parse_args()
    shares = {preset: measure(preset, options.images, options.pictures) for preset in options.presets}
    print(json.dumps({"share_of_training": shares, "limit": MAX_SHARE}, indent=2))
    return int(max(shares.values()) > MAX_SHARE)


def measure(preset: str, images: int, num_pictures: int) -> float:
    """Share of the preset's training, on one core of the CPU."""
    from torch import Tensor

    from workloads.config import load_config
    from workloads.data.prepare import ensure_prepared
    from workloads.training import job, pictures
    from workloads.training.state import State
    from workloads.training.trainers import trainer_of

    seconds: list[float] = []
    at_s: list[float] = []

    class Timed(pictures.PictureHook):
        def __call__(self, state: State, loss: Tensor) -> None:
            began_s = time.process_time()
            super().__call__(state, loss)
            ended_s = time.process_time()
            seconds.append(ended_s - began_s)
            at_s.append(ended_s)

    config = load_config(preset)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = ensure_prepared(config.data, Path(scratch) / "data")
        whole = config.jobs(dataset.spec(config.data))[-1]
        few = whole.training.model_copy(update={"images": images, "num_pictures": num_pictures})
        limit, hook, pictures.MAX_SHARE, job.PictureHook = pictures.MAX_SHARE, job.PictureHook, 1e9, Timed  # type: ignore[misc]
        place = Path(scratch) / "job"
        job.train_job(whole.model_copy(update={"training": few}), dataset.path, place, num_threads=1)
        pictures.MAX_SHARE, job.PictureHook = limit, hook  # type: ignore[misc]
    intervals = trainer_of(whole).intervals
    every_images = pictures.picture_interval_images(whole, intervals, config.num_workers, on_gpu=False)
    if every_images is None:
        return 0.0
    num_drawn = whole.training.images // every_images + 1
    # The first one warms up, as happens once in a training.
    of_picture_s = sorted(seconds)[-num_pictures:][: num_pictures - 1]
    steps_s = at_s[-1] - at_s[0] - sum(seconds[1:])
    of_image_s = steps_s / ((len(at_s) - 1) * few.batch_size) / config.num_workers
    of_pictures_s = num_drawn * sum(of_picture_s) / len(of_picture_s)
    return round(of_pictures_s / (whole.training.images * of_image_s), 4)


if __name__ == "__main__":
    raise SystemExit(main())
