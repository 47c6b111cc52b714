"""Files by relative path, in a folder, a zip or tars; which of them are pictures, and which are not data at all."""

import json
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from workloads.data.found import LeftOutFiles, printable
from workloads.data.pictures import (
    MAX_FILE_BYTES,
    SUFFIXES,
    BadPictureError,
    entry_kind,
    looks_like_picture,
    read_file,
    require_file,
)
from workloads.errors import DataError
from workloads.sealed import content_hash

Parts = tuple[str, ...]
"""A relative path, name by name."""

LEFTOVERS = {
    "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__",
    "Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r",
}  # fmt: skip
UNFINISHED = {".bak", ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".filepart", ".orig", ".old"}
PACKED = {".zip", ".tar", ".tgz", ".tbz", ".txz", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar"}
HEAD_BYTES = 32
ZIP_END_BYTES = 22 + 2**16
"""In which the last record of a zip lies, with the comment behind it."""

DESCRIPTION = "dataset.json"
"""Where the trees of StyleGAN and EDM keep the labels."""


class Tree(ABC):
    """Pictures and other files by path, in the order of their paths."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.pictures: list[Parts] = []
        self.others: list[Parts] = []
        """Files that no rule leaves out and that are no pictures; whoever needs one reads it."""
        self.folders: set[Parts] = set()
        self.left_out = LeftOutFiles()

    @abstractmethod
    def read(self, path: Parts) -> bytes:
        """A file. BadPictureError if it cannot be read."""

    @abstractmethod
    def head(self, path: Parts) -> bytes:
        """Its first bytes; none if it cannot be read."""

    @abstractmethod
    def signature(self, used: Sequence[Parts] = ()) -> str:
        """Changes when a picture does, or another file that is used; looks at names, sizes and times only."""

    def name(self, path: Parts) -> str:
        """What messages call it."""
        return "/".join(path)

    def place_of(self, path: Parts) -> str:
        """What errors call it: with all folders, or its archive."""
        return printable(f"{self.place}/{'/'.join(path)}")

    def inside(self, path: Parts) -> Parts:
        """The path without the name of the archive it is in."""
        return path

    def _sort_in(self, paths: Sequence[Parts]) -> None:
        """Put every file where it belongs."""
        for path in sorted(paths):
            suffix = PurePosixPath(path[-1]).suffix.lower()
            if suffix in UNFINISHED or path[-1].endswith("~"):
                self.left_out.add("unfinished or a backup", self.name(path))
            elif suffix in SUFFIXES or looks_like_picture(self.head(path), suffix):
                self.pictures.append(path)
            else:
                self.others.append(path)

    def leave_out_others(self, used: Collection[Parts] = ()) -> None:
        """Note what is no picture and was not used either."""
        used = set(used)
        for path in self.others:
            if path not in used:
                suffix = PurePosixPath(path[-1]).suffix.lower()
                reason = (
                    "an archive within, not unpacked" if suffix in PACKED else f"no picture ({suffix or 'no suffix'})"
                )
                self.left_out.add(reason, self.name(path))


def ignored(name: str) -> str | None:
    """Why a file or folder of this name is nobody's data; None: it may be."""
    if name in LEFTOVERS:
        return "left behind by another program"
    return "hidden" if name.startswith(".") else None


class DirectoryTree(Tree):
    """A folder on disk, links followed."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._sort_in(self._walk())

    def read(self, path: Parts) -> bytes:
        return read_file(self.place.joinpath(*path))

    def head(self, path: Parts) -> bytes:
        try:
            with self.place.joinpath(*path).open("rb") as file:
                return file.read(HEAD_BYTES)
        except OSError:
            return b""

    def signature(self, used: Sequence[Parts] = ()) -> str:
        return files_signature([self.place.joinpath(*path) for path in (*self.pictures, *used)], self.place)

    def _walk(self) -> list[Parts]:
        found: list[Parts] = []
        waiting: list[tuple[Parts, frozenset[tuple[int, int]]]] = [((), frozenset())]
        while waiting:
            above, ancestors = waiting.pop()
            try:
                status = self.place.joinpath(*above).stat()
                entries = list(os.scandir(self.place.joinpath(*above)))
            except OSError as error:
                place = self.place.joinpath(*above)
                raise DataError(f"{place} cannot be read ({error.strerror}); its pictures would be missing") from None
            own = (status.st_dev, status.st_ino)
            if own in ancestors:
                self.left_out.add("a link to a folder above", self.name(above))
                continue
            if above:
                self.folders.add(above)
            for entry in entries:
                path = (*above, entry.name)
                reason = ignored(entry.name)
                if reason is not None:
                    self.left_out.add(reason, self.name(path))
                elif _is_folder(entry):
                    waiting.append((path, ancestors | {own}))
                elif _is_file(entry) or PurePosixPath(entry.name).suffix.lower() in SUFFIXES:
                    found.append(path)
                else:
                    self.left_out.add(f"not a file ({_kind(entry)})", self.name(path))
        return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return entry_kind(entry.stat().st_mode)
    except OSError:
        return "a link that leads nowhere"


class ArchiveTree(Tree):
    """Files in archives; nothing is unpacked to disk, so no name leads anywhere."""

    def __init__(self, place: Path, archives: Sequence[Path]) -> None:
        super().__init__(place)
        self._archives = archives
        self._places: dict[Parts, tuple[int, Any]] = {}
        """Number of the archive and place in it, by path; the archive's name comes first where there are several."""
        names = [archive.name for archive in archives]
        if len(set(names)) < len(names):
            names = [str(archive.relative_to(place)) for archive in archives]
        for number, archive in enumerate(archives):
            require_file(archive, "an archive")
            for name, where, is_file in self._members(number):
                self._note((names[number],) * (len(archives) > 1), name, (number, where), is_file)
        self._sort_in(list(self._places))

    @abstractmethod
    def _members(self, archive: int) -> list[tuple[str, Any, bool]]:
        """Name, place and whether it is a file, of each."""

    def name(self, path: Parts) -> str:
        return f"{self._archives[0].name}:{'/'.join(path)}" if len(self._archives) == 1 else "/".join(path)

    def inside(self, path: Parts) -> Parts:
        return path[1:] if len(self._archives) > 1 else path

    def signature(self, used: Sequence[Parts] = ()) -> str:  # noqa: ARG002
        root = self.place if self.place.is_dir() else self.place.parent
        return files_signature(list(self._archives), root)

    def _note(self, prefix: Parts, name: str, where: tuple[int, Any], is_file: bool) -> None:
        inside = tuple(part for part in name.replace("\\", "/").split("/") if part not in {"", "."})
        reason = next((reason for reason in map(ignored, inside) if reason is not None), None)
        path = prefix + inside
        if reason is not None:
            self.left_out.add(reason, self.name(path))
        elif not inside:
            return
        elif is_file:
            if path in self._places:
                raise DataError(
                    f"{self._archives[where[0]]} holds {printable('/'.join(inside))} twice, and only one can be meant; "
                    "make the archive anew, each file once"
                )
            self._places[path] = where
            self.folders.update(inside[:depth] for depth in range(1, len(inside)))
        elif name.endswith("/"):
            self.folders.add(inside)
        else:
            self.left_out.add("not a file (a link or a device)", self.name(path))


class ZipTree(ArchiveTree):
    """One zip."""

    def _members(self, archive: int) -> list[tuple[str, Any, bool]]:
        file = self._archives[archive]
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise DataError(f"{file} is no zip, or a damaged one ({error}); get it again") from None
        listed, counted = len(self._zip.infolist()), _counted_entries(file)
        if counted not in {None, listed % 2**16}:
            raise DataError(f"{file} is damaged: it counts {counted} files and lists {listed}; get it again")
        return [(info.filename, info, not info.is_dir()) for info in self._zip.infolist()]

    def read(self, path: Parts) -> bytes:
        info: zipfile.ZipInfo = self._places[path][1]
        if info.file_size > MAX_FILE_BYTES:
            raise BadPictureError("too large to decode", f"{info.file_size:,} bytes")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError, zlib.error) as error:
            raise BadPictureError("damaged or encrypted in its zip", str(error)) from None

    def head(self, path: Parts) -> bytes:
        info: zipfile.ZipInfo = self._places[path][1]
        try:
            with self._zip.open(info) as member:
                return member.read(HEAD_BYTES)
        except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError, zlib.error):
            return b""


def _counted_entries(file: Path) -> int | None:
    """How many files the last record of a zip counts, modulo 2**16; None where another record does."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - ZIP_END_BYTES))
        tail = opened.read()
    last = tail[tail.rfind(b"PK\5\6") :]
    count = int.from_bytes(last[10:12], "little")
    return None if count == 2**16 - 1 else count


def _only_zeros(file: IO[bytes], start: int) -> bool:
    """Whether there is a block of zeros from a place on, and nothing else behind."""
    file.seek(start)
    first = file.read(tarfile.BLOCKSIZE)
    return len(first) == tarfile.BLOCKSIZE and not any(map(any, (first, *iter(lambda: file.read(2**20), b""))))


class TarTree(ArchiveTree):
    """One or several uncompressed tars."""

    def _members(self, archive: int) -> list[tuple[str, Any, bool]]:
        file = self._archives[archive]
        if archive == 0:
            self._files: list[IO[bytes]] = []
        self._files.append(file.open("rb"))
        found: list[tuple[str, Any, bool]] = []
        try:
            with tarfile.open(file, "r:") as opened:
                for member in opened:
                    place = (member.offset_data, member.size)
                    found.append((member.name + "/" * member.isdir(), place, member.isreg()))
                # The library takes a damaged header for the end.
                is_whole = _only_zeros(self._files[-1], opened.offset)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(
                f"{file} is no uncompressed tar, or a damaged one ({error}); unpack it or get it again"
            ) from None
        if not is_whole:
            last = f"behind {printable(found[-1][0])}" if found else "at its start"
            raise DataError(f"{file} is cut short or damaged {last}, where the tar should go on or end; get it again")
        return found

    def read(self, path: Parts) -> bytes:
        return self._bytes(path, MAX_FILE_BYTES)

    def head(self, path: Parts) -> bytes:
        return self._bytes(path, HEAD_BYTES, whole=False)

    def _bytes(self, path: Parts, limit: int, *, whole: bool = True) -> bytes:
        archive, (start, length) = self._places[path]
        if whole and length > limit:
            raise BadPictureError("too large to decode", f"{length:,} bytes")
        return os.pread(self._files[archive].fileno(), min(length, limit), start)


def described_labels(tree: Tree) -> dict[str, Any] | None:
    """Labels by path as the dataset.json of a tree has them; None if it gives none. DataError if it is none."""
    file = (DESCRIPTION,)
    try:
        labels = json.loads(tree.read(file))["labels"]
        return None if labels is None else {str(path): label for path, label in labels}
    except (ValueError, TypeError, KeyError, BadPictureError, RecursionError) as error:
        raise DataError(
            f"{tree.place_of(file)} is not the description of a data set ({error}); it should be "
            '{"labels": [[path, label], ...]}; take it away to go by folders'
        ) from None


def files_signature(files: Sequence[Path], root: Path) -> str:
    """Of names, sizes and times."""
    return content_hash([(str(file.relative_to(root)), *_size_and_time(file)) for file in files])


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (0, 0)
