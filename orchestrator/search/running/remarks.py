"""Warnings from processes whose output nobody sees, those that carry configurations out: by a file to the driver."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workloads.errors import StorageError
from workloads.sealed import append_line, read_lines

LOGGERS = ("orchestrator", "workloads")


@contextmanager
def remarks_kept(file: Path) -> Iterator[None]:
    """What is warned of during the block is added to a file that remarks_of reads, each text once."""
    handler = _ToFile(file)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)


def remarks_of(file: Path) -> list[str]:
    """In order; a line that is just being written comes with the next look."""
    return read_lines(file, lambda raw: str(raw["text"]))


class _ToFile(logging.Handler):
    def __init__(self, file: Path) -> None:
        super().__init__(logging.WARNING)
        self._file, self._said = file, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text in self._said:
            return
        self._said.add(text)
        with suppress(OSError, StorageError):  # a full disk is told by what must be kept
            self._file.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._file, {"text": text})
