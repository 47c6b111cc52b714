"""Turn any source into Arrow shards. Interrupted, the same command goes on at the last whole shard."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workloads.config.data import AnyData, LatentFilesData, PreparedData
from workloads.data.decode import Block, decode_block
from workloads.data.found import (
    BadItem,
    ClassCount,
    SourceContents,
    Tally,
    check_bad,
    printable,
    read_found,
    summary_of_bad,
)
from workloads.data.latents import LatentEncoder
from workloads.data.prepared import (
    MANIFEST,
    POSTERIOR_PARTS,
    LatentInfo,
    Manifest,
    PreparedDataset,
    Shard,
    open_shard,
    read_manifest,
    rows_in_order,
)
from workloads.data.shard_files import bad_of, is_whole, sidecar_of, sidecars_in, write_shard
from workloads.data.source import ImageSource, OrderedItems
from workloads.data.sources import open_source
from workloads.errors import DataError
from workloads.files import SCRATCH, write_text
from workloads.locks import is_locked, locked
from workloads.progress import Progress
from workloads.sealed import content_hash, load_json, write_json

logger = logging.getLogger(__name__)

SHARD_IMAGES = 8192
"""Part of what prepared data is named by: another number would prepare all of it again."""
SHARD_LATENTS = 1024
"""Encoding is slow, so an interruption should cost little of it."""

SHARD_BYTES = 2**27
"""Of pixels, for a shard is made in memory; large images lie in shards of fewer."""

CHECKED_IMAGES = 1024
"""That are held at a time when nothing is written."""

READING_VERSION = 3
"""Raise it when the same source may be read as other pixels or labels; what was prepared before is then made anew."""

FOUND = "found.json"
LOCK = ".lock"
PLAN = "preparation.json"
"""What a directory is being prepared from, so that a resumed run cannot mix two."""


class PrepareSummary(NamedTuple):
    """What prepare() did."""

    path: Path
    num_images: int
    bad: tuple[str, ...]
    manifest: Manifest
    found: SourceContents | None
    """None for what an earlier version prepared."""

    is_new: bool
    """Whether it was not there before."""


def prepare(
    config: AnyData,
    out: Path,
    *,
    vae: Path | None = None,
    posterior: bool = False,
    max_bad: int = 0,
    on_progress: Progress | None = None,
    shard_images: int | None = None,
) -> PrepareSummary:
    """Decode, crop to a square, resize and store every image (or its latent); does nothing where that is done.

    posterior: as LatentEncoder takes it.
    Images that do not decode are left out and named; more than max_bad of them is a DataError.
    """
    source = _open(config)
    encoder = _encoder(config, vae, posterior=posterior)
    shard_images = shard_images or _shard_images(config, source, encoder)
    _claim(out, config, source, encoder, shard_images)
    if (out / MANIFEST).is_file():
        return _summary(out, is_new=False)
    with _alone(out):
        is_new = not (out / MANIFEST).is_file()
        if is_new:
            with _given_up_without_a_shard(out):
                _prepare(config, source, encoder, out, max_bad, shard_images, on_progress)
    return _summary(out, is_new=is_new)


def _prepare(
    config: AnyData,
    source: ImageSource,
    encoder: LatentEncoder | None,
    out: Path,
    max_bad: int,
    shard_images: int,
    on_progress: Progress | None,
) -> None:
    bad: list[BadItem] = []
    items = OrderedItems(source)
    for index, start in enumerate(range(0, source.num_images, shard_images)):
        sidecar = sidecar_of(out, index)
        if not is_whole(sidecar):
            block = _decode(items, config, start, shard_images, max_bad - len(bad), on_progress)
            # Before it is written: decoding stopped where there were too many.
            check_bad([*bad, *block.bad], max_bad)
            write_shard(out, index, block, encoder if source.latent_shape is None else None)
        bad += bad_of(sidecar)
        check_bad(bad, max_bad)
        if on_progress is not None:
            on_progress(min(start + shard_images, source.num_images), source.num_images)
    _finish(out, source, bad, encoder, name_of_source(config))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Whoever prepares the same at the same time is waited for, and what it made is taken."""
    file = out / LOCK
    if is_locked(file):
        logging.getLogger(__name__).warning("another process is preparing %s; waiting for it", out)
    with locked(file, if_supported=True):
        yield


@contextmanager
def _given_up_without_a_shard(out: Path) -> Iterator[None]:
    """Where the data was refused before anything was made of it, OUT is free for other data."""
    try:
        yield
    except DataError:
        if not sidecars_in(out):
            (out / PLAN).unlink(missing_ok=True)
        raise


def check(config: AnyData, *, on_progress: Progress | None = None) -> SourceContents:
    """Read all of a source and say what is there, without writing anything; how many are bad is for the caller."""
    source = _open(config)
    tally, labels, bad = Tally(), np.zeros(len(source.class_names), np.int64), list[BadItem]()
    items, step = OrderedItems(source), min(CHECKED_IMAGES, _shard_images(config, source, None))
    for start in range(0, source.num_images, step):
        block = _decode(items, config, start, step, None, on_progress)
        tally, bad = tally + block.tally, bad + block.bad
        labels += np.bincount(block.labels, minlength=len(labels))
        if on_progress is not None:
            on_progress(min(start + step, source.num_images), source.num_images)
    return _found(source, name_of_source(config), dict(enumerate(labels.tolist())), tally, bad)


def ensure_prepared(config: AnyData, cache_dir: Path, *, on_progress: Progress | None = None) -> PreparedDataset:
    """The prepared form of any data section: opened, or made once in cache_dir.

    Raises DataError if prepared data is of another size, number of channels or classes than the section says.
    """
    if isinstance(config, PreparedData):
        # Workers may have another working directory.
        dataset = PreparedDataset(config.path.absolute())
        _check_against(config, dataset)
        return dataset
    source, encoder = _open(config), _encoder(config, None)
    shard_images = _shard_images(config, source, encoder)
    out = cache_dir / content_hash(_determinants(config, source, encoder, shard_images))[:16]
    summary = prepare(config, out, on_progress=on_progress)
    if summary.is_new and summary.found is not None:
        _tell_what_is_odd(summary.found)
    return PreparedDataset(summary.path)


def name_of_source(config: AnyData) -> str:
    """What the images come from, for people."""
    parts = [
        config.kind,
        getattr(config, "dataset", None),
        getattr(config, "path", None),
        getattr(config, "split", None),
    ]
    return " ".join(str(part) for part in parts if part is not None)


def _open(config: AnyData) -> ImageSource:
    if isinstance(config, PreparedData):
        raise DataError(f"data.path {config.path} is prepared already")
    return open_source(config)


def _encoder(config: AnyData, vae: Path | None, *, posterior: bool = False) -> LatentEncoder | None:
    """What makes the latents; for latents that are there already, what made them."""
    if posterior and (isinstance(config, LatentFilesData) or vae is None):
        raise DataError("--posterior is of latents that are made here; give images and --vae, or leave it out")
    if isinstance(config, LatentFilesData):
        return LatentEncoder(config.vae)
    return LatentEncoder(vae, posterior=posterior) if vae is not None else None


def _shard_images(config: AnyData, source: ImageSource, encoder: LatentEncoder | None) -> int:
    if source.latent_shape is None and encoder is None:
        image_bytes = config.image_size**2 * config.channels
        return max(1, min(SHARD_IMAGES, SHARD_BYTES // image_bytes))
    return max(1, min(SHARD_LATENTS, SHARD_BYTES // (config.image_size**2 * 3)))


def _decode(
    items: OrderedItems, config: AnyData, start: int, count: int, may_be_bad: int | None, on_progress: Progress | None
) -> Block:
    source = items.source

    def advance(done: int) -> None:
        if on_progress is not None:
            on_progress(start + done, source.num_images)

    shape = source.latent_shape or (config.channels, config.image_size, config.image_size)
    dtype = np.dtype(np.float16 if source.latent_shape else np.uint8)
    num = min(count, source.num_images - start)
    block = decode_block(
        items.take(start, count), np.empty((num, *shape), dtype), len(source.class_names), may_be_bad, advance
    )
    if len(block.labels) + len(block.bad) != num and (may_be_bad is None or len(block.bad) <= may_be_bad):
        raise DataError(
            f"data.path {getattr(config, 'path', '')} changed while it was read; run the same command again"
        )
    return block


def _tell_what_is_odd(found: SourceContents) -> None:
    """A line in the log about what a training run would otherwise never hear of."""
    odd = [*found.remarks[:3], *(f"{one.count} files left out: {one.reason}" for one in found.left_out[:3])]
    odd += [f"{len(found.empty_classes)} classes without images"] if found.empty_classes else []
    if found.left_out or found.empty_classes or len(found.remarks) > 1:
        logger.warning("data of %s: %s", found.source, "; ".join(odd))


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
        "vae": None if encoder is None else _identity(encoder),
        "shard_images": shard_images,
        "reading": READING_VERSION,
    }


def _identity(encoder: LatentEncoder) -> list[object]:
    kept = ["posterior"] if encoder.posterior else []
    return [encoder.weights_sha256, encoder.scaling_factor, encoder.shift_factor, *kept]


def _claim(out: Path, config: AnyData, source: ImageSource, encoder: LatentEncoder | None, shard_images: int) -> None:
    wanted = content_hash(_determinants(config, source, encoder, shard_images))
    plan = out / PLAN
    if plan.is_file():
        if plan.read_bytes() != json.dumps(wanted).encode():
            raise DataError(
                f"{out} holds data prepared from another source, size or VAE, or by an earlier version, or its "
                f"{plan.name} is damaged; choose another directory"
            )
        return
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is not a directory; choose another place to write to")
    # What a killed process was writing is no data.
    if out.exists() and not all(entry.match(SCRATCH) or entry.name in {PLAN, LOCK} for entry in out.iterdir()):
        raise DataError(f"{out} is not empty and not prepared data; choose another directory")
    write_text(plan, json.dumps(wanted))


def _finish(
    out: Path, source: ImageSource, bad: list[BadItem], encoder: LatentEncoder | None, description: str
) -> None:
    sidecars = [load_json(file) for file in sidecars_in(out)]
    shards = [Shard(**sidecar["shard"]) for sidecar in sidecars if sidecar["shard"] is not None]
    if not shards:
        raise DataError(f"none of the {source.num_images} images decode ({summary_of_bad(bad)})")
    channels, height, width = next(sidecar["shape"] for sidecar in sidecars if sidecar["shard"] is not None)
    row_shape = (int(channels), int(height), int(width))
    dtype = np.dtype(np.uint8 if encoder is None else np.float16)
    opened = [open_shard(out / shard.file, row_shape, dtype) for shard in shards]
    labels = np.concatenate([labels for _, labels in opened])
    latent: LatentInfo | None = None
    if encoder is not None:
        latent = encoder.info(rows_in_order(opened))
        latent.check_scale()
    has_posterior = encoder is not None and encoder.posterior
    shape = (row_shape[0] // (POSTERIOR_PARTS if has_posterior else 1), *row_shape[1:])
    tally = sum((Tally(**sidecar["tally"]) for sidecar in sidecars), Tally())
    found = _found(source, description, Counter(labels.tolist()), tally, bad)
    write_json(out / FOUND, found.model_dump(mode="json"))
    manifest = Manifest(
        kind="images" if encoder is None else "latents",
        num_images=len(labels),
        shape=shape,
        class_names=source.class_names,
        shards=tuple(shards),
        source=description,
        bad=tuple(one.name for one in bad),
        fingerprint=_fingerprint(shape, source.class_names, opened, labels),
        latent=latent,
    )
    write_json(out / MANIFEST, manifest.model_dump(mode="json"))


def _fingerprint(
    shape: tuple[int, int, int],
    class_names: tuple[str, ...],
    shards: list[tuple[np.ndarray, np.ndarray]],
    labels: np.ndarray,
) -> str:
    digest = hashlib.sha256(json.dumps([shape, class_names]).encode())
    for rows in rows_in_order(shards):
        digest.update(rows.data)
    digest.update(labels.tobytes())
    return digest.hexdigest()


def _found(
    source: ImageSource, description: str, counts: Mapping[int, int], tally: Tally, bad: list[BadItem]
) -> SourceContents:
    return SourceContents(
        source=printable(description),
        classes=tuple(ClassCount(name, counts.get(label, 0)) for label, name in enumerate(source.class_names)),
        tally=tally,
        remarks=source.remarks,
        left_out=source.left_out,
        bad=tuple(bad),
    )


def _summary(out: Path, *, is_new: bool) -> PrepareSummary:
    manifest = read_manifest(out)
    return PrepareSummary(out, manifest.num_images, manifest.bad, manifest, read_found(out / FOUND), is_new)
