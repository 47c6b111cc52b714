"""What torch and all that stands on it cost a process: seconds of imports, and seconds at its end."""

import atexit
import gc
import importlib.util
import logging
import os
import sys
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


@contextmanager
def unopened(*packages: str) -> Iterator[None]:
    """Modules of these packages are imported inside the block without the packages' own __init__, which imports all.

    Whoever imports a package later gets it whole, with the modules that are there already.
    """
    mine = {}
    for name in packages:
        if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
            mine[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        for name, module in mine.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Around a whole program, whose process ends as soon as threads and exit handlers have.

    Python would look for garbage among all that was imported: three seconds for nothing.
    """
    code = 1

    def leave() -> None:
        logging.shutdown()  # the only handler that is registered before this one, and would come after it
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)

    atexit.register(leave)
    try:
        yield
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
