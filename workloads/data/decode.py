"""Items to arrays on all cores, with no more of them in memory than are being worked on."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from workloads.data.found import BadItem, Counting, Tally
from workloads.data.pictures import BadPictureError, PictureContent, SeenPicture, read_picture
from workloads.data.source import Item
from workloads.errors import DataError

PROGRESS_EVERY = 64
ITEMS_PER_THREAD = 4
"""That wait for their turn: enough to keep threads busy, few enough to be held in memory."""


class Block(NamedTuple):
    """Consecutive items as arrays, and what is to be said about them."""

    images: np.ndarray
    labels: np.ndarray
    bad: list[BadItem]
    tally: Tally


def decode_block(
    items: Iterator[Item], images: np.ndarray, num_classes: int, may_be_bad: int | None, advance: Callable[[int], None]
) -> Block:
    """Fill `images` (N, C, H, W) with the items in their order, bad ones left out; stops early if those are too many.

    images of float16 take latents as they are. may_be_bad: None for any number. DataError for a label that is no class.
    """
    counting, labels, bad = Counting(), list[int](), list[BadItem]()
    size, channels = images.shape[2], images.shape[1]
    as_they_are = images.dtype == np.float16

    def decoded(item: Item) -> SeenPicture | BadItem:
        try:
            content = item.read()
            return _latent(content) if as_they_are else read_picture(content, size, channels)
        except BadPictureError as error:
            return BadItem(name=item.name, reason=error.reason, detail=str(error))

    with warnings.catch_warnings():
        # Damage is told by what comes out; a size that Pillow warns of is measured when it is decoded.
        warnings.simplefilter("ignore")
        for number, (item, result) in enumerate(_in_order(decoded, items)):
            if number % PROGRESS_EVERY == 0:
                advance(number)
            if not 0 <= item.label < num_classes:
                raise DataError(f"{item.name}: label {item.label} is outside the {num_classes} classes of the data")
            if isinstance(result, SeenPicture):
                images[len(labels)] = result.pixels_CHW
                labels.append(item.label)
                counting.add(result)
            else:
                bad.append(result)
                if may_be_bad is not None and len(bad) > may_be_bad:
                    break
    return Block(images[: len(labels)], np.array(labels, np.int64), bad, counting.tally())


def _in_order(
    decoded: Callable[[Item], SeenPicture | BadItem], items: Iterator[Item]
) -> Iterator[tuple[Item, SeenPicture | BadItem]]:
    """Threads, for Pillow lets go of the interpreter while it decodes."""
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[tuple[Item, Future[SeenPicture | BadItem]]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for item in items:
            waiting.append((item, pool.submit(decoded, item)))
            if len(waiting) >= ITEMS_PER_THREAD * num_threads:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _latent(content: PictureContent) -> SeenPicture:
    assert isinstance(content, np.ndarray)
    _, height, width = content.shape
    return SeenPicture(content, f"latent {content.dtype}", (width, height), ())
