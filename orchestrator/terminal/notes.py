"""Remarks on stderr, so that what a command prints on stdout stays whole."""

import logging
import sys

from orchestrator.plan.masking import masked


def print_note(text: str) -> None:
    """A remark on stderr, so that --json on stdout stays whole."""
    print(f"note: {masked(text)}", file=sys.stderr)


def print_beginning(doing: str) -> None:
    """First of all, for what a command needs takes half a minute to load on a busy machine, and silence looks wrong."""
    print_note(f"{doing}: loading what that needs")
    sys.stderr.flush()


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_note(record.getMessage())


def show_warnings_as_notes() -> None:
    """Let people see what modules that know no terminal have to say: they warn through `logging`."""
    # It has two lines to say of a home directory that cannot be written.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    for name in ("orchestrator", "workloads"):
        logger = logging.getLogger(name)
        # Once, however many commands a process runs.
        if not any(isinstance(handler, _Notes) for handler in logger.handlers):
            logger.addHandler(_Notes(logging.WARNING))
