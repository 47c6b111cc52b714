"""Notes for the tracker on disk, in order, until they are written.

A note is handed on at least once: whoever writes it asks the store what it has already.
"""

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from orchestrator.tracking.notes import Note, RefusedNoteError, halves
from workloads.locks import Lock, try_lock
from workloads.sealed import content_hash

MAX_LINE_BYTES = 16 * 2**20
"""A run of a thousand experts has parameters of 2 MB."""
MAX_TOGETHER = 1000
"""Notes handed on in one call."""

Apply = Callable[[Sequence[Note]], None]
"""Writes notes of one kind about one run. RefusedNoteError: never; any other error: not now."""


class Rejected(NamedTuple):
    """A note that nobody will ever take."""

    file: Path
    """Where it is set aside."""
    reason: str


class LateFile(NamedTuple):
    """A file to upload that the disk had no room for."""

    identity: str
    name: str
    kind: str
    """Of the note that uploads it."""
    more: dict[str, object]
    """What the note says besides."""
    write: Callable[[Path], object]
    """Puts it at a path."""


class _Line(NamedTuple):
    text: str
    end: int
    """Where it ends in its file, in bytes."""
    note: Note | None
    problem: str = ""


class Spool:
    """An append-only file per process and a folder of files to upload; those of ended processes count too.

    notes-PID-HEX.jsonl is what is to be written, .will what is to be written if the process dies, .rejected what nobody
    takes, line by line with the reason. A lock beside them is held while the process lives. Folders of files have
    names that begin with it too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rejected: list[Rejected] = []
        """What was set aside by replay()."""

        # The number is for people: what counts is the lock.
        self._own = path / f"notes-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._lock: Lock | None = None
        self._taking = threading.Lock()
        """Files are staged in one thread, notes written in another."""
        self._heirs: set[str] = set()
        self._done: dict[Path, int] = {}
        self._memory: list[Note] = []
        self._late: list[LateFile] = []

    def append(self, notes: Sequence[Note], late: Sequence[LateFile] = ()) -> None:
        """Keep notes until replay() has handed them on.

        Raises OSError when the disk does not take them; they are kept in memory, and the next call tries again.
        """
        self._memory += notes
        self._late += late
        self._write_will([note.identity for note in self._memory if note.kind == "open"])
        self._append_to(self._own, self._memory)
        self._memory.clear()
        while self._late:
            one = self._late[0]
            try:
                self._memory.append(self.stage(one))
            except FileNotFoundError as error:
                self.rejected.append(Rejected(self.path, f"{one.name} is gone ({error})"))
            self._late.pop(0)
        if self._memory:
            self.append([])

    def num_in_memory(self) -> int:
        """Notes that would be lost with the process."""
        return len(self._memory) + len(self._late)

    def stage(self, late: LateFile) -> Note:
        """Have a file to upload written into the spool; the note that uploads it."""
        place = self._files / f"{self._own.stem}-{uuid.uuid4().hex}"
        try:
            self._show_life()
            place.mkdir(parents=True)
            late.write(place / late.name)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return Note(late.kind, late.identity, {"file": f"{place.name}/{late.name}", **late.more})

    def staged(self, name: str) -> Path:
        """Where a file to upload lies. Raises RefusedNoteError for a path that leads anywhere else."""
        place = self._files.resolve()
        file = (place / name).resolve()
        if file.parent.parent != place or file.is_dir():
            raise RefusedNoteError(f"{name[:200]!r} is none of the spool's files")
        return file

    def replay(self, apply: Apply) -> None:
        """Hand on everything kept, oldest process first, in runs of one kind and identity.

        A line that is no note, and a note that apply refuses, is set aside. After another error the next call goes on
        where this one stopped; after the end of the process, the next one begins anew.
        """
        for base in self._left_over():
            lock = _lock_of(base)
            # Its process lives, or another is at it.
            if lock is None:
                continue
            try:
                for suffix in (".jsonl", ".will"):
                    self._replay_file(base.with_suffix(suffix), apply)
                _lock_file(base).unlink(missing_ok=True)
            finally:
                lock.release()
        self._replay_file(self._own, apply)
        self._remove_orphans()
        for _, group in groupby(list(self._memory), key=lambda note: note[:2]):
            while together := list(islice(group, MAX_TOGETHER)):
                self._hand_on(self._own, [_Line(_text_of(note), 0, note) for note in together], apply)
                del self._memory[: len(together)]

    def close(self) -> None:
        """The process ends well: nothing is to be done in its name, but what is not written yet."""
        self._own.with_suffix(".will").unlink(missing_ok=True)
        if self._lock is not None:
            _lock_file(self._own).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    @property
    def _files(self) -> Path:
        return self.path / "files"

    def _append_to(self, file: Path, notes: Sequence[Note]) -> None:
        """Whole lines or none."""
        if not notes:
            return
        self._show_life()
        size = file.stat().st_size if file.exists() else 0
        try:
            with file.open("a") as opened:
                opened.writelines(_text_of(note) + "\n" for note in notes)
        except OSError:
            with suppress(OSError):
                os.truncate(file, size)
            raise

    def _show_life(self) -> None:
        with self._taking:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or _lock_of(self._own)

    def _remove_orphans(self) -> None:
        """Files of processes that were killed before their notes were written, which nothing speaks of."""
        for folder in self._files.glob("notes-*"):
            base = self.path / folder.name.rpartition("-")[0]
            kept = [base.with_suffix(suffix) for suffix in (".jsonl", ".will", ".rejected")]
            if base.name == self._own.stem or any(file.exists() for file in kept):
                continue
            if (lock := _lock_of(base)) is not None:  # its process is dead
                shutil.rmtree(folder, ignore_errors=True)
                _lock_file(base).unlink(missing_ok=True)
                lock.release()

    def _write_will(self, identities: Sequence[str]) -> None:
        """Runs that this process opens are to end with it, whatever ends it."""
        new = [identity for identity in dict.fromkeys(identities) if identity not in self._heirs]
        status = {"status": "KILLED", "if_running": True}
        self._append_to(self._own.with_suffix(".will"), [Note("finish", identity, status) for identity in new])
        self._heirs.update(new)

    def _left_over(self) -> list[Path]:
        """Of other processes, without suffix, oldest first."""
        own = self._own.with_suffix("")
        bases: dict[Path, float] = {}
        for file in self.path.glob("notes-*"):
            with suppress(FileNotFoundError):
                is_notes = file.suffix in {".jsonl", ".will"} and _is_plain(file) and file.with_suffix("") != own
                if is_notes:
                    base, time_s = file.with_suffix(""), file.stat().st_mtime
                    bases[base] = max(time_s, bases.get(base, time_s))
        return sorted(bases, key=lambda base: (bases[base], base))

    def _replay_file(self, file: Path, apply: Apply) -> None:
        if not _is_plain(file):
            return
        with file.open("rb") as opened:
            opened.seek(self._done.get(file, 0))
            for _, group in groupby(_read_lines(opened), key=lambda line: line.note and line.note[:2]):
                while together := list(islice(group, MAX_TOGETHER)):
                    self._hand_on(file, together, apply)
                    self._done[file] = together[-1].end
        file.unlink(missing_ok=True)
        self._done.pop(file, None)

    def _hand_on(self, file: Path, lines: Sequence[_Line], apply: Apply) -> None:
        notes = [line.note for line in lines if line.note is not None]
        if not notes:
            for line in lines:
                self._set_aside(file, line.text, line.problem)
            return
        try:
            apply(notes)
        except RefusedNoteError as error:
            # One is at fault, or a part of one; the others are not to go with it.
            parts = [] if error.is_all else _halves(lines)
            for part in parts:
                self._hand_on(file, part, apply)
            if not parts:
                for line in lines:
                    self._set_aside(file, line.text, str(error))

    def _set_aside(self, file: Path, text: str, reason: str) -> None:
        aside = file.with_suffix(".rejected")
        with aside.open("a") as opened:
            opened.write(json.dumps({"reason": reason, "line": text}) + "\n")
        self.rejected.append(Rejected(aside, reason))


def _read_lines(opened: BinaryIO) -> Iterator[_Line]:
    while raw := opened.readline(MAX_LINE_BYTES + 1):
        text = raw.decode(errors="backslashreplace").rstrip("\n")
        if len(raw) > MAX_LINE_BYTES:
            while not raw.endswith(b"\n") and (raw := opened.readline(MAX_LINE_BYTES)):
                pass
            yield _Line(text[:1000], opened.tell(), None, f"is longer than {MAX_LINE_BYTES} bytes")
            continue
        try:
            kind, identity, content, *checksum = json.loads(text)
        # Deeply nested brackets end in a RecursionError.
        except (ValueError, TypeError, RecursionError):
            yield _Line(text, opened.tell(), None, "is no note; it was torn or written by something else")
            continue
        if checksum and checksum != [content_hash([kind, identity, content])]:
            yield _Line(text, opened.tell(), None, "was changed since it was written")
        elif isinstance(kind, str) and isinstance(identity, str) and isinstance(content, dict):
            yield _Line(text, opened.tell(), Note(kind, identity, content))
        else:
            yield _Line(text, opened.tell(), None, "is no note")


def _text_of(note: Note) -> str:
    """A line; its checksum shows what a disk has changed, which would be a wrong point of a curve."""
    return json.dumps([*note, content_hash(note)])


def _halves(lines: Sequence[_Line]) -> list[Sequence[_Line]]:
    """Fewer lines each, or one line with fewer values; nothing if there are no fewer."""
    first = lines[0]
    if len(lines) > 1 or first.note is None:
        return [lines[: len(lines) // 2], lines[len(lines) // 2 :]]
    parts = halves(first.note)
    return [[_Line(_text_of(part), first.end, part)] for part in parts] if len(parts) > 1 else []


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _lock_file(base: Path) -> Path:
    return base.with_name(f".{base.stem}.lock")


def _lock_of(base: Path) -> Lock | None:
    """None if another process has it, or the file system has no locks: then nobody can tell who lives."""
    try:
        return try_lock(_lock_file(base))
    except (OSError, NotImplementedError):
        return None
