"""Notes for the tracker on disk, in order, until they are written."""

import json
import os
import uuid
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple


class Note(NamedTuple):
    """Something to write about one run."""

    kind: str
    identity: str
    content: dict[str, Any]


class Point(NamedTuple):
    """One value of a curve."""

    name: str
    value: float
    time_ms: int
    step: int


def new_points(notes: Sequence[Note], last_step: int) -> tuple[list[Point], int]:
    """What notes of metrics add to a run whose records reach last_step, and how far they reach then.

    A note marked `once` is a training record: after a restart it comes again, and is left out.
    """
    points: list[Point] = []
    for note in notes:
        content = note.content
        if content.get("once"):
            if content["step"] <= last_step:
                continue
            last_step = content["step"]
        points += [Point(name, value, content["time_ms"], content["step"]) for name, value in content["values"].items()]
    return points, last_step


class Spool:
    """An append-only file per process and a folder of files to upload; those of ended processes count too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The pid tells whether its writer is alive; the rest is there because pids come again.
        self._own = path / f"notes-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._done = 0

    def append(self, notes: Sequence[Note]) -> None:
        """Keep notes until replay() has handed them on."""
        if notes:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._own.open("a") as file:
                file.writelines(json.dumps(note) + "\n" for note in notes)

    def stage(self, name: str) -> Path:
        """A path to put a file to upload."""
        folder = self.path / "files" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name

    def replay(self, apply: Callable[[Sequence[Note]], None]) -> None:
        """Hand on everything kept, oldest process first, in runs of one kind and identity.

        What was handed on before an error is not handed on again, unless the process dies in between.
        """
        for file in self._left_over():
            self._replay_file(file, apply)
            file.unlink()
        if self._own.exists():
            self._replay_file(self._own, apply)
            self._own.unlink()

    def _replay_file(self, file: Path, apply: Callable[[Sequence[Note]], None]) -> None:
        lines = file.read_text().splitlines()
        notes = [Note(*json.loads(line)) for line in lines]
        num_done = 0
        try:
            for _, group in groupby(notes, key=lambda note: (note.kind, note.identity)):
                together = list(group)
                apply(together)
                num_done += len(together)
        # Interruptions too: what was handed on must not be handed on again.
        except BaseException:
            file.write_text("".join(f"{line}\n" for line in lines[num_done:]))
            raise

    def _left_over(self) -> list[Path]:
        files = [file for file in self.path.glob("notes-*.jsonl") if file != self._own]
        return sorted((file for file in files if not _is_being_written(file)), key=lambda file: file.stat().st_mtime)


def _is_being_written(file: Path) -> bool:
    """Whether the process that writes the file is still there (on this machine)."""
    pid = int(file.name.split("-")[1])
    # Not this spool's own, so of an ended process that had the same number, or of a tracker that was closed.
    if pid == os.getpid():
        return False
    try:
        # Signal 0 reaches nobody; it only fails if nobody is there.
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # It is there, and another user's.
    except PermissionError:
        return True
    return True
