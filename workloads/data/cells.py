"""What a cell of a table holds: a picture's file, its pixels, or where it lies."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workloads.data.pictures import BadPictureError, PictureContent, looks_like_picture, read_file

ADDRESSES = ("http://", "https://", "s3://", "gs://")
BASE64_HEAD = 44
"""Letters of base64 that hold as many bytes as tell whether it is a picture."""


def holds_pictures(kind: Any) -> bool:
    """Whether a column of this Arrow type can hold pictures: bytes, {bytes, path}, paths, or nested lists."""
    kind = _storage(kind)
    if pa.types.is_struct(kind):
        names = {field.name: field.type for field in kind}
        return any(name in names and holds_pictures(names[name]) for name in ("bytes", "path"))
    return _is_bytes(kind) or _is_text(kind) or _is_list(kind)


def is_image_struct(kind: Any) -> bool:
    """Whether it is how Hugging Face keeps images."""
    kind = _storage(kind)
    return pa.types.is_struct(kind) and {field.name for field in kind} >= {"bytes", "path"}


def content_of(cell: Any, folder: Path, root: Path) -> PictureContent:
    """The picture in an Arrow scalar. BadPictureError if there is none.

    folder, root: where relative paths start, and what they must not lead out of.
    """
    if not cell.is_valid:
        raise BadPictureError("no picture", "the cell is empty")
    if isinstance(cell, pa.ExtensionScalar):
        return _pixels_of_tensor(cell)
    if isinstance(cell, pa.DictionaryScalar):
        return content_of(cell.value, folder, root)
    if isinstance(cell, pa.StructScalar):
        return _content_of_struct(cell, folder, root)
    if _is_bytes(cell.type):
        content: bytes = cell.as_py()
        return content
    if _is_text(cell.type):
        text: str = cell.as_py()
        written = _content_of_base64(text)
        return written if written is not None else _content_at(text, folder, root)
    return _content_of_list(cell)


def _content_of_struct(cell: Any, folder: Path, root: Path) -> PictureContent:
    present = [name for name in ("bytes", "path") if name in cell.keys() and cell[name].is_valid]  # noqa: SIM118
    if not present:
        raise BadPictureError("no picture", "neither bytes nor a path")
    return content_of(cell[present[0]], folder, root)


def _content_of_base64(text: str) -> bytes | None:
    """A picture's file written as letters, plain or as a data: address; None if the text is nothing like that."""
    letters = text.partition(",")[2] if text.startswith("data:") else text
    try:
        if looks_like_picture(base64.b64decode(letters[:BASE64_HEAD], validate=True)[:32], ""):
            return base64.b64decode(letters)
    except ValueError:
        pass
    return None


def _content_at(path: str, folder: Path, root: Path) -> bytes:
    if path.startswith(ADDRESSES):
        raise BadPictureError("a web address, not a picture", path[:80])
    try:
        file = next(file for file in (folder / path, root / path, root) if file.exists())
        inside = file.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError) as error:
        raise BadPictureError("no path of a file", f"{str(error)[:80]}") from None
    if not inside:
        raise BadPictureError("a path that leads out of the data", f"{path}, out of {root}")
    if file == root:
        raise BadPictureError("a path to nothing", f"{path[:80]} is not beside the table")
    return read_file(file)


def _content_of_list(cell: Any) -> PictureContent:
    values, shape = cell.values, [len(cell)]
    while _is_list(values.type):
        lengths = (
            set(values.value_lengths().to_pylist()) if hasattr(values, "value_lengths") else {values.type.list_size}
        )
        if len(lengths) != 1 or None in lengths:
            raise BadPictureError("rows of different lengths")
        shape.append(lengths.pop())
        values = values.flatten()
    if values.null_count or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise BadPictureError("no pixels", f"lists of {values.type}, or with gaps")
    flat = values.to_numpy(zero_copy_only=False)
    if len(shape) == 1:
        return _encoded(flat)
    return _as_pixels(flat.reshape(shape))


def _encoded(numbers: np.ndarray) -> bytes:
    """A picture's file as a list of its bytes."""
    if numbers.dtype.kind in "iu" and len(numbers) and numbers.min() >= 0 and numbers.max() <= 255:
        content = numbers.astype(np.uint8).tobytes()
        if looks_like_picture(content[:32], ""):
            return content
    raise BadPictureError(
        "a list of numbers, not a picture", f"{len(numbers)} of them; pixels need rows, as nested lists"
    )


def _pixels_of_tensor(cell: Any) -> PictureContent:
    kind = cell.type
    if isinstance(kind, pa.FixedShapeTensorType):
        return _as_pixels(cell.value.values.to_numpy().reshape(kind.shape))
    return _content_of_list(cell.value)


def _as_pixels(values: np.ndarray) -> np.ndarray:
    """uint8 (H, W) or (H, W, C), from whole numbers 0..255 or fractions 0..1, channels last or first."""
    if values.ndim == 3 and values.shape[2] not in {1, 3, 4} and values.shape[0] in {1, 3, 4}:
        values = values.transpose(1, 2, 0)
    if values.size == 0 or values.ndim not in {2, 3} or (values.ndim == 3 and values.shape[2] not in {1, 3, 4}):
        raise BadPictureError("no pixels", f"numbers of the shape {values.shape}")
    highest = 255 if values.dtype.kind in "iu" else 1
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= highest:
        raise BadPictureError("pixels of unknown scale", f"{low:g} to {high:g}, not 0 to {highest}")
    return np.ascontiguousarray(values if highest == 255 else values * 255 + 0.5).astype(np.uint8)


def _storage(kind: Any) -> Any:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_bytes(kind: Any) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: Any) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_list(kind: Any) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
