"""A shard as it is written: Arrow, and beside it what was found. One without a description is written again."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from workloads.data.decode import Block
from workloads.data.found import BadItem
from workloads.data.latents import LatentEncoder
from workloads.files import new_file, remove_unfinished_file, sha256_file
from workloads.sealed import UNREADABLE, load_json, write_json

logger = logging.getLogger(__name__)


def sidecar_of(out: Path, index: int) -> Path:
    """The description of a shard in a directory of prepared data."""
    return out / f"shard-{index:05d}.json"


def sidecars_in(out: Path) -> list[Path]:
    """Those that are there, in order."""
    return sorted(out.glob("shard-*.json"))


def is_whole(sidecar: Path) -> bool:
    """Whether a shard is as it was written, by the description beside it."""
    if not sidecar.is_file():
        return False
    try:
        described = load_json(sidecar)
    except UNREADABLE:
        logger.warning("%s is damaged; its images are read again", sidecar)
        return False
    # None of its images decoded.
    if described["shard"] is None:
        return True
    # One that was damaged since is made again.
    file = sidecar.with_suffix(".arrow")
    return file.is_file() and sha256_file(file) == described["shard"]["sha256"]


def write_shard(out: Path, index: int, block: Block, encoder: LatentEncoder | None) -> None:
    """Images, or their latents, with labels; and beside it what was found. DataError for latents of a strange scale."""
    file = sidecar_of(out, index).with_suffix(".arrow")
    shard = None
    shape: tuple[int, ...] = ()
    if len(block.labels):
        rows = np.ascontiguousarray(block.images if encoder is None else encoder.encode(block.images))
        if encoder is not None and index == 0:
            encoder.info(iter([rows])).check_scale()  # not only after hours
        shape = rows.shape[1:]
        width = int(np.prod(shape)) * rows.itemsize
        # One value of bytes per image: read from Parquet, lists of numbers took ten times as long.
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows)])
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
    found = {"bad": [one.model_dump() for one in block.bad], "tally": block.tally.model_dump()}
    write_json(file.with_suffix(".json"), {"shard": shard, "shape": shape, **found})


def bad_of(sidecar: Path) -> list[BadItem]:
    """Its pictures that do not decode."""
    return [BadItem(**one) for one in load_json(sidecar)["bad"]]
