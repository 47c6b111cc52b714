"""Turn any source into Arrow shards. Interrupted, the same command goes on at the last whole shard."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from workloads.config.base import content_hash
from workloads.config.data import AnyData, PreparedData
from workloads.data.latents import LatentEncoder
from workloads.data.prepared import (
    MANIFEST,
    LatentInfo,
    Manifest,
    PreparedDataset,
    Shard,
    open_shard,
    read_manifest,
    rows_in_order,
)
from workloads.data.sources import ImageSource, Item, open_source
from workloads.errors import DataError
from workloads.files import SCRATCH, new_file, remove_unfinished_file, sha256_file, write_text
from workloads.progress import Progress

SHARD_IMAGES = 8192
"""Part of what prepared data is named by: another number would prepare all of it again."""
SHARD_LATENTS = 1024
"""Encoding is slow, so an interruption should cost little of it."""

PROGRESS_EVERY = 256
PLAN = "preparation.json"
"""What a directory is being prepared from, so that a resumed run cannot mix two."""


class PrepareSummary(NamedTuple):
    """What prepare() did."""

    path: Path
    num_images: int
    bad: tuple[str, ...]
    manifest: Manifest


class _Block(NamedTuple):
    """Consecutive source items as arrays."""

    images: np.ndarray
    labels: np.ndarray
    bad: list[str]


def prepare(
    config: AnyData,
    out: Path,
    *,
    vae: Path | None = None,
    max_bad: int = 0,
    on_progress: Progress | None = None,
    shard_images: int | None = None,
) -> PrepareSummary:
    """Decode, crop to a square, resize and store every image (or its latent); does nothing where that is done.

    Images that do not decode are left out and named; more than max_bad of them is a DataError.
    """
    if isinstance(config, PreparedData):
        raise DataError(f"data.path {config.path} is prepared already")
    source = open_source(config)
    encoder = LatentEncoder(vae) if vae is not None else None
    shard_images = shard_images or (SHARD_IMAGES if encoder is None else SHARD_LATENTS)
    _claim(out, config, source, encoder, shard_images)
    if (out / MANIFEST).is_file():
        manifest = read_manifest(out)
        return PrepareSummary(out, manifest.num_images, manifest.bad, manifest)
    bad: list[str] = []
    for index, start in enumerate(range(0, source.num_images, shard_images)):
        sidecar = out / f"shard-{index:05d}.json"
        if not _finished(sidecar):

            def advance(done: int, start: int = start) -> None:
                if on_progress is not None:
                    on_progress(start + done, source.num_images)

            block = _decode(islice(source.items(start), shard_images), config, advance)
            _write_shard(out, index, block, encoder)
        bad += json.loads(sidecar.read_text())["bad"]
        if len(bad) > max_bad:
            named = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
            raise DataError(f"{len(bad)} images do not decode ({named}), more than --max-bad {max_bad}")
        if on_progress is not None:
            on_progress(min(start + shard_images, source.num_images), source.num_images)
    manifest = _finish(out, source, tuple(bad), encoder, name_of_source(config))
    return PrepareSummary(out, manifest.num_images, manifest.bad, manifest)


def ensure_prepared(config: AnyData, cache_dir: Path, *, on_progress: Progress | None = None) -> PreparedDataset:
    """The prepared form of any data section: opened, or made once in cache_dir.

    Raises DataError if prepared data is of another size, number of channels or classes than the section says.
    """
    if isinstance(config, PreparedData):
        # Workers may have another working directory.
        dataset = PreparedDataset(config.path.absolute())
        _check_against(config, dataset)
        return dataset
    out = cache_dir / content_hash(_determinants(config, open_source(config), None, SHARD_IMAGES))[:16]
    return PreparedDataset(prepare(config, out, on_progress=on_progress).path)


def name_of_source(config: AnyData) -> str:
    """What the images come from, for people."""
    parts = [
        config.kind,
        getattr(config, "dataset", None),
        getattr(config, "path", None),
        getattr(config, "split", None),
    ]
    return " ".join(str(part) for part in parts if part is not None)


def _check_against(config: PreparedData, dataset: PreparedDataset) -> None:
    channels, height, width = dataset.shape
    if (height, width) != (config.image_size, config.image_size):
        raise DataError(f"data.image_size is {config.image_size}, but {config.path} holds {height} x {width}")
    if dataset.manifest.kind == "images" and channels != config.channels:
        raise DataError(f"data.channels is {config.channels}, but {config.path} holds images of {channels}")
    if config.num_classes is not None and dataset.num_classes > config.num_classes:
        raise DataError(
            f"data.num_classes is {config.num_classes}, but {config.path} has {dataset.num_classes} classes"
        )


def _determinants(
    config: AnyData, source: ImageSource, encoder: LatentEncoder | None, shard_images: int
) -> dict[str, object]:
    """What the content of a prepared directory depends on."""
    return {
        "source": source.signature(),
        "kind": config.kind,
        "image_size": config.image_size,
        "channels": config.channels,
        "vae": None if encoder is None else [encoder.weights_sha256, encoder.scaling_factor, encoder.shift_factor],
        "shard_images": shard_images,
    }


def _claim(out: Path, config: AnyData, source: ImageSource, encoder: LatentEncoder | None, shard_images: int) -> None:
    wanted = content_hash(_determinants(config, source, encoder, shard_images))
    plan = out / PLAN
    if plan.is_file():
        if json.loads(plan.read_text()) != wanted:
            raise DataError(f"{out} holds data prepared from another source, size or VAE; choose another directory")
        return
    # What a killed process was writing is no data.
    if out.exists() and not all(entry.match(SCRATCH) for entry in out.iterdir()):
        raise DataError(f"{out} is not empty and not prepared data; choose another directory")
    write_text(plan, json.dumps(wanted))


def _finished(sidecar: Path) -> bool:
    if not sidecar.is_file():
        return False
    described = json.loads(sidecar.read_text())
    # None of its images decoded.
    if described["shard"] is None:
        return True
    # One that was damaged since is made again.
    file = sidecar.with_suffix(".arrow")
    return file.is_file() and sha256_file(file) == described["shard"]["sha256"]


def _decode(items: Iterator[Item], config: AnyData, advance: Callable[[int], None]) -> _Block:
    images, labels, bad = [], [], []

    def pixels(item: Item) -> np.ndarray | None:
        try:
            return to_array(item.decode(), config.image_size, config.channels)
        except (OSError, ValueError, SyntaxError):  # what PIL raises for damaged files
            return None

    # Threads, for Pillow lets go of the interpreter while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        listed = list(items)
        for number, (item, array) in enumerate(zip(listed, pool.map(pixels, listed), strict=True)):
            if number % PROGRESS_EVERY == 0:
                advance(number)
            if array is None:
                bad.append(item.name)
            else:
                images.append(array)
                labels.append(item.label)
    return _Block(np.stack(images) if images else np.empty(0), np.array(labels, np.int64), bad)


def to_array(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """uint8 (C, size, size): transparent parts on white, centre square, Lanczos with antialiasing when resized."""
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _write_shard(out: Path, index: int, block: _Block, encoder: LatentEncoder | None) -> None:
    file = out / f"shard-{index:05d}.arrow"
    shard = None
    shape: tuple[int, ...] = ()
    if len(block.labels):
        rows = block.images if encoder is None else encoder.encode(block.images)
        if encoder is not None and index == 0:
            encoder.info(iter([rows])).check_scale()  # not only after hours
        shape = rows.shape[1:]
        width = int(np.prod(shape)) * rows.itemsize
        # One value of bytes per image: read from Parquet, lists of numbers took ten times as long.
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows.tobytes())])
        batch = pa.record_batch({"image": column, "label": pa.array(block.labels)})
        remove_unfinished_file(file)
        with (
            new_file(file) as scratch,
            pa.OSFile(str(scratch), "wb") as sink,
            pa.ipc.new_file(sink, batch.schema) as writer,
        ):
            writer.write_batch(batch)
        shard = {"file": file.name, "num_images": len(rows), "sha256": sha256_file(file)}
    # After the shard: one without a description is written again.
    write_text(file.with_suffix(".json"), json.dumps({"shard": shard, "shape": shape, "bad": block.bad}))


def _finish(
    out: Path, source: ImageSource, bad: tuple[str, ...], encoder: LatentEncoder | None, description: str
) -> Manifest:
    sidecars = [json.loads(file.read_text()) for file in sorted(out.glob("shard-*.json"))]
    shards = [Shard(**sidecar["shard"]) for sidecar in sidecars if sidecar["shard"] is not None]
    if not shards:
        raise DataError(f"none of the {source.num_images} images decode ({', '.join(bad[:5])})")
    channels, height, width = next(sidecar["shape"] for sidecar in sidecars if sidecar["shard"] is not None)
    shape = (int(channels), int(height), int(width))
    dtype = np.dtype(np.uint8 if encoder is None else np.float16)
    opened = [open_shard(out / shard.file, shape, dtype) for shard in shards]
    labels = np.concatenate([labels for _, labels in opened])
    if labels.min() < 0 or labels.max() >= len(source.class_names):
        raise DataError(f"label {labels.max()} is outside the {len(source.class_names)} classes the data declares")
    digest = hashlib.sha256(json.dumps([shape, source.class_names]).encode())
    for rows in rows_in_order(opened):
        digest.update(rows.tobytes())
    digest.update(labels.tobytes())
    latent: LatentInfo | None = None
    if encoder is not None:
        latent = encoder.info(rows_in_order(opened))
        latent.check_scale()
    manifest = Manifest(
        kind="images" if encoder is None else "latents",
        num_images=len(labels),
        shape=shape,
        class_names=source.class_names,
        shards=tuple(shards),
        source=description,
        bad=bad,
        fingerprint=digest.hexdigest(),
        latent=latent,
    )
    write_text(out / MANIFEST, manifest.model_dump_json(indent=2))
    return manifest
