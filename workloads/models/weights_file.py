"""What a file of weights is, told by its content and never by its name, and what it holds; none of its code runs."""

import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from workloads.errors import ConfigError
from workloads.files import sha256_file
from workloads.sealed import content_hash

INDEX = ".index.json"
"""Ending of the file that says in which of several parts each tensor is."""

PART = re.compile(r"-(\d{5})-of-(\d{5})\.\w+$")

HEAD_BYTES = 512
"""Read of a file to know what it is."""

LONGEST_INDEX = 64 * 2**20
"""Bytes; that of the largest published networks has one."""

DOWNLOAD = "download the file itself"
OTHER_FORMS = (
    (
        0,
        b"version https://git-lfs",
        "is a Git LFS pointer: the large file was not downloaded; get it with: git lfs pull",
    ),
    (0, b"\x1f\x8b", "is compressed (gzip); unpack it"),
    (0, b"\xfd7zXZ", "is compressed (xz); unpack it"),
    (257, b"ustar", "is a tar archive; unpack it"),
    (0, b"GGUF", "is a GGUF file, whose weights are quantised; give safetensors"),
    (0, b"\x89HDF", "is an HDF5 file; give safetensors, or what torch.save writes"),
    (0, b"\x93NUMPY", "is one NumPy array; give safetensors, or what torch.save writes"),
)
"""Where, which bytes, and what they tell."""

WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")


class _Beside:
    """Stands for an object that lies beside the weights; it is made of anything, does nothing and is not looked at."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __new__(cls, *_: Any, **__: Any) -> "_Beside":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...


BESIDE = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"pathlib{module}.{kind}" for module in ("", "._local") for kind in (
        "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath",
    )),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    "numpy.dtype",
    *(f"datetime.{kind}" for kind in ("date", "datetime", "time", "timedelta")),
)  # fmt: skip
"""What trainers keep with their weights: arguments, paths, figures, dates. Each becomes a _Beside."""


def open_weights(file: Path) -> Any:
    """Tensors in containers as they were saved: of a .pt anything, of safetensors a flat map. ConfigError otherwise."""
    if file.name.endswith(INDEX):
        found: dict[str, Any] = {}
        for part in parts_of(file):
            content = open_weights(part)
            if not isinstance(content, dict):
                raise ConfigError(f"initial_weights {part} holds no state dict (a map of names to tensors)")
            found |= content
        return found
    head = _head(file)
    try:
        if _is_safetensors(head):
            return safetensors.torch.load_file(file)
        if is_pickle(file):
            return _unpickle(file, is_zip=head.startswith(b"PK"))
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"initial_weights {file} is damaged or cut short ({reason}); copy or download it again"
        ) from None
    raise ConfigError(f"initial_weights {file} {_what_else(head)}")


def weights_sha256(file: Path) -> str:
    """SHA-256 of a file, or of all parts that an index names. ConfigError if one is not there."""
    try:
        if not file.name.endswith(INDEX):
            return sha256_file(file)
        return content_hash({part.name: sha256_file(part) for part in parts_of(file)})
    except OSError as error:
        raise ConfigError(f"initial_weights {file} cannot be read ({error.strerror}); mend that first") from None


def files_of(file: Path) -> list[Path]:
    """All that is read of weights: the file, and the parts that an index names."""
    return [file, *(parts_of(file) if file.name.endswith(INDEX) else [])]


def is_pickle(file: Path) -> bool:
    """Whether torch.save wrote the file, in its form of today (a zip archive) or the one before."""
    head = _head(file)
    return not _is_safetensors(head) and head.startswith((b"PK", b"\x80"))


def parts_of(index: Path) -> list[Path]:
    """The files an index names, all beside it. ConfigError if it names others, or one that is not there."""
    where = f"initial_weights {index}"
    try:
        if index.stat().st_size > LONGEST_INDEX:
            raise ConfigError(f"{where} is too large for an index of parts; download it again")
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{where} is no index of parts (a weight_map of names to files); download it again") from None
    if not names:
        raise ConfigError(f"{where} names no parts; download it again")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ConfigError(f"{where} names the part {name!r}, which is no file beside it; download it again")
        if not (index.parent / name).is_file():
            raise ConfigError(f"{where} names the part {name}, which is missing; download it too")
    return [index.parent / name for name in names]


def refuse_one_part(file: Path) -> None:
    """ConfigError if the file is, by its name, one of several."""
    part = PART.search(file.name)
    if part is not None and int(part[2]) > 1:
        stem = file.name[: part.start()]
        raise ConfigError(
            f"initial_weights {file} is one part of {int(part[2])}; give their directory, or {stem}{file.suffix}{INDEX}"
        )


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD_BYTES)
    except OSError as error:
        raise ConfigError(f"initial_weights {file} cannot be read ({error.strerror}); mend that first") from None


def _is_safetensors(head: bytes) -> bool:
    # The length of the header, and the header, which is JSON; a length that is cut off never begins a file.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _what_else(head: bytes) -> str:
    """What a file is that holds no weights, and what to do."""
    if not head:
        return f"is empty (0 bytes); {DOWNLOAD} again"
    for offset, beginning, told in OTHER_FORMS:
        if head[offset:].startswith(beginning):
            return told
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(WEB_PAGE):
        return f"is a web page, perhaps about the file; {DOWNLOAD}"
    if all(32 <= byte < 127 or byte in b"\t\n\r\f" for byte in head[:64]):
        return f"is a text file (it begins with {head[:40].decode()!r}); {DOWNLOAD}"
    return "is neither safetensors nor what torch.save writes, or its beginning is damaged; copy or download it again"


def _unpickle(file: Path, *, is_zip: bool) -> Any:
    if is_zip:
        _check_archive(file)
    try:
        allowed: Any = [(_Beside, name) for name in BESIDE]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols other than torch's own, which are refused or read
            # weights_only runs no code; mapped, for of a training checkpoint most is never looked at.
            if file.suffix != ".safetensors":
                return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
            with file.open("rb") as opened:  # by its name torch would take it for what it is not
                return torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise ConfigError(
                f"initial_weights {file} is damaged, or no plain state dict: it holds Python objects, which could run "
                "code; save model.state_dict() alone"
            ) from None
        raise ConfigError(
            f"initial_weights {file} is not a plain state dict: it holds Python objects ({named[1]}), which could run "
            "code; save model.state_dict() alone"
        ) from None


def _check_archive(file: Path) -> None:
    """A zip archive has its table of contents at the end."""
    if not zipfile.is_zipfile(file):
        raise ConfigError(f"initial_weights {file} is cut short; copy or download it again")
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise ConfigError(f"initial_weights {file} is a TorchScript program; save its state_dict() alone")
    if not any(name.endswith("/data.pkl") for name in names):
        shown = ", ".join(names[:3]) or "nothing"
        raise ConfigError(
            f"initial_weights {file} is a zip archive that torch.save did not write (it holds {shown}); unpack it"
        )
