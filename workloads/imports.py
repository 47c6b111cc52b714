"""Importing torch and what stands on it, a sixth faster."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fast_imports() -> Iterator[None]:
    """Python collects no garbage inside the block, which is for imports alone.

    They make a million objects that stay, and Python would look through all of them again and again.
    """
    if not gc.isenabled():  # an outer block's, or the user's wish
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
