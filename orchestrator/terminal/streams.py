"""What a command finds itself in: closed or broken streams, a directory that is gone, errors of the system."""

import errno
import os
import sys
from typing import Any

from orchestrator.plan.masking import masked
from workloads.errors import ConfigError
from workloads.files import working_directory

GONE = {errno.EPIPE, errno.EIO}
"""What writing ends with when the reader has left: a pipe's, or a terminal's."""

WRONG_NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}


class _Lasting:
    """A stream that outlives its reader: `train | head -1` goes on, and writes to nowhere.

    All that a command says passes through here, and no secret in it: neither a result nor an error, nor a traceback.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._lasting(lambda: self._stream.write(masked(text))) or len(text)

    def flush(self) -> None:
        self._lasting(self._stream.flush)

    def _lasting(self, act: Any) -> Any:
        try:
            return act()
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def settle() -> None:
    """Make the streams bear whatever happens to them, and show no secret.

    Raises ConfigError where there is no working directory.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed; the next file to be opened would be taken for it
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, _Lasting):
            continue
        if hasattr(stream, "reconfigure"):
            # A letter that the terminal does not know is written as a number.
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Lasting(stream))
    if working_directory() is None:
        raise ConfigError("the working directory has been removed; change to another one")


def explain(error: OSError) -> tuple[str, int]:
    """What to say of an error that nobody below has explained, and the exit code."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file or a stream"
    place = place if len(place) <= 200 else f"{place[:80]}..."
    return f"{place}: {error.strerror or error}", 2 if error.errno in WRONG_NAMES else 1
