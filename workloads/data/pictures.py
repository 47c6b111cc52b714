"""From the bytes of a picture to the pixels a network sees: the one place where that is done, whatever the source."""

import io
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from workloads.errors import DataError

FORMATS = ("PNG", "JPEG", "JPEG2000", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "QOI")
"""What is tried: formats that say what they are in their first bytes, and whose reader starts no other program."""

SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".pjp", ".pjpeg", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf",
    ".jpx", ".webp", ".avif", ".avifs", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi",
    ".heic", ".heif", ".jxl",
})  # fmt: skip
"""Names that promise a picture: one that cannot be read then counts as bad instead of being left out."""

MAX_FILE_BYTES = 2**28
MAX_DECODED_BYTES = 2**29
"""Of one picture, and of all that are decoded at the same time."""

BACKGROUND = "white"
"""What transparent parts are put on."""

STRIP_ROWS = 512
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of EXIF's orientation."""

ORIENTATION, TIFF_BITS, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 0x0112, 258, 262, 0
PACKINGS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7-Zip", b"Rar!\x1a\x07": "RAR",
}  # fmt: skip
"""Programs by the first bytes of what they pack."""

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

PictureContent = bytes | np.ndarray | Image.Image
"""A picture's file; or its pixels as uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or what a library decoded."""


class BadPictureError(Exception):
    """This one picture cannot be read: in two or three words, which many may share, and in detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


class SeenPicture(NamedTuple):
    """What the network sees of a picture, and what was done to it."""

    pixels_CHW: np.ndarray
    """uint8."""

    form: str
    """Format and mode, for instance "JPEG RGB"."""

    size: tuple[int, int]
    """Width and height, upright, before it was cropped."""

    treatment: tuple[str, ...]
    """Whatever was done beyond cropping and resizing."""


class _Room:
    """Lets pictures be decoded at the same time as long as they fit into memory together."""

    def __init__(self, num_bytes: int) -> None:
        self._free = self._all = num_bytes
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        wanted = min(num_bytes, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


_ROOM = _Room(MAX_DECODED_BYTES)


def read_picture(content: PictureContent, size: int, channels: int) -> SeenPicture:
    """Decoded, upright, 8 bits, on a background, cropped to the middle square and resized.

    BadPictureError with the reason if that cannot be done.
    """
    try:
        return _read(content, size, channels)
    except BadPictureError:
        raise
    except MemoryError:
        raise BadPictureError("too large to decode", "out of memory") from None
    except Exception as error:  # Pillow's readers fail with whatever the damage makes them stumble on
        words = str(error) or type(error).__name__
        cut = isinstance(error, EOFError) or any(word in words.lower() for word in ("truncat", "not enough", "buffer"))
        raise BadPictureError("cut short" if cut else "damaged", words.splitlines()[0][:200]) from None


def to_array(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """uint8 (C, size, size) of 8-bit pixels: transparent parts on white, centre square, Lanczos when resized."""
    if _is_transparent(image):
        image = _on_background(image)
    mode = "L" if channels == 1 else "RGB"
    # To convert to the same mode would copy the whole picture.
    image = image if image.mode == mode else image.convert(mode)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def read_file(file: Path) -> bytes:
    """A file's bytes. BadPictureError if it is not a file that can be read to its end: pipes, devices, dead links."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadPictureError("not a file", entry_kind(found.st_mode))
        if found.st_size > MAX_FILE_BYTES:
            raise BadPictureError("too large to decode", f"{found.st_size:,} bytes")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        reason = "a link that leads nowhere" if file.is_symlink() else "cannot be opened"
        raise BadPictureError(reason, getattr(error, "strerror", None) or str(error)) from None


def entry_kind(mode: int) -> str:
    """What a name in a folder stands for, in words."""
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def looks_like_picture(head: bytes, suffix: str) -> bool:
    """Whether the first 32 bytes of a file with another name are a picture's.

    A TIFF only if its name ends in nothing: raw photos of cameras begin like one, and hold a thumbnail.
    """
    starts = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"qoif", b"\xff\x4f\xff\x51")
    boxed = head[4:8] == b"ftyp" and head[8:12] in {b"avif", b"avis", *HEIF_BRANDS}
    bitmap = (
        head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in {struct.pack("<I", n) for n in (40, 108, 124)}
    )
    tiff = not suffix and head[:4] in {b"II*\0", b"MM\0*"}
    return (
        head.startswith(starts) or boxed or bitmap or tiff
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:8] in {b"jP  ", b"JXL "}
    )  # fmt: skip


def no_data_reason(head: bytes) -> str | None:
    """What a file is that stands where data should: nothing, a pointer, a page, a packed file. None: none of these."""
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; get it with: git lfs pull"
    packing = next((name for magic, name in PACKINGS.items() if head.startswith(magic)), None)
    if packing is not None:
        return f"compressed with {packing}; unpack it first"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")) or (start.startswith(b"<") and b"<html" in start):
        return "a web page"
    return None


def require_file(file: Path, what: str) -> None:
    """DataError, with the file's name and what it is instead, unless it is a file that may hold `what`."""
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DataError(f"{file} is {entry_kind(mode)}, not {what}; take it away")
        with file.open("rb") as opened:
            reason = no_data_reason(opened.read(512))
    except OSError as error:
        raise DataError(f"{file} cannot be opened ({error.strerror}); it should be {what}") from None
    if reason is not None:
        raise DataError(f"{file} is not {what} but {reason}")


def _read(content: PictureContent, size: int, channels: int) -> SeenPicture:
    image = _opened(content)
    form = f"{image.format or 'array'} {image.mode}"
    treatment = []
    with _ROOM.taken(_decoded_bytes(image)):
        if ";16" in str(image.tile[:1] if hasattr(image, "tile") else "") or image.mode.startswith(("I", "F")):
            treatment.append("scaled to 8 bits")
        if getattr(image, "is_animated", False):
            treatment.append("first of several frames")
        image.load()
        turn = TURNS.get(_orientation(image))
        if turn is not None:
            treatment.append("turned upright as its EXIF data say")
        if image.mode.startswith(("I", "F")):
            image = _eight_bits(image)
        if _is_transparent(image):
            treatment.append(f"transparent, put on {BACKGROUND}")
        if image.mode == "LAB":
            image = _from_lab(image)
        if turn is not None:
            image = image.transpose(turn)
        if min(image.size) < size:
            treatment.append("enlarged")
        # What is handed on must not keep the whole picture in memory.
        return SeenPicture(np.ascontiguousarray(to_array(image, size, channels)), form, image.size, tuple(treatment))


def _opened(content: PictureContent) -> Image.Image:
    if isinstance(content, Image.Image):
        return content
    if isinstance(content, np.ndarray):
        return Image.fromarray(content[..., 0] if content.ndim == 3 and content.shape[2] == 1 else content)
    reason = no_data_reason(content[:512])
    if reason is not None:
        raise BadPictureError(reason)
    try:
        image = _identified(content)
    except UnidentifiedImageError:
        raise BadPictureError(_what_else(content)) from None
    return image


def _identified(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadPictureError("too large to decode", str(error).partition(",")[0]) from None
    except ValueError:
        if not content.startswith(b"\x89PNG"):
            raise
        # Texts beside the pixels, too many for Pillow, are no reason to refuse them.
        return Image.open(io.BytesIO(_without_texts(content)), formats=FORMATS)


def _without_texts(png: bytes) -> bytes:
    """The same pixels without the chunks that hold texts and colour profiles."""
    kept, start = [png[:8]], 8
    while start + 8 <= len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        if png[start + 4 : start + 8] not in TEXT_CHUNKS:
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def _what_else(content: bytes) -> str:
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS:
        return "HEIC, which is not read here; convert it to JPEG or PNG"
    if content[:2] == b"\xff\x0a" or content[4:8] == b"JXL ":
        return "JPEG XL, which is not read here; convert it to JPEG or PNG"
    if b"<svg" in content[:1024]:
        return "a drawing (SVG), not a picture"
    if looks_like_picture(content[:32], ""):
        return "damaged or cut short, or a picture of an unusual form"
    return "not a picture"


def _decoded_bytes(image: Image.Image) -> int:
    """What decoding it takes, about. BadPictureError if that is too much for one picture."""
    plain = image.mode in {"1", "L", "P", "RGB"} and not _is_transparent(image) and not image.info.get("progressive")
    if image.format == "JPEG2000":
        each = 24  # its library keeps every number of a picture in 32 bits, twice
    else:
        each = 4 if plain and image.format in {"PNG", "JPEG", "MPO", "BMP", "GIF", "PPM", None} else 10
    num_bytes = image.width * image.height * each
    if num_bytes > MAX_DECODED_BYTES:
        raise BadPictureError("too large to decode", f"{image.width} x {image.height} pixels")
    return num_bytes


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data say nothing about how to turn it
        return 1


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info


def _on_background(image: Image.Image) -> Image.Image:
    """In strips, for a picture and its copies with and without transparency would not fit into memory together."""
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))
        strip = strip.convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", strip.size, BACKGROUND), strip).convert("RGB"), (0, top))
    return whole


def _from_lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    assert converted is not None
    return converted


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deeper values scaled so that the highest the file can hold becomes 255.

    BadPictureError where the file does not say how high white is.
    """
    if image.mode.startswith("I;16"):
        return _scaled(image, *_sixteen_bit_range(image))
    if image.mode == "I":
        if image.format not in {"PNG", "PPM"}:
            low, high = image.getextrema()
            detail = f"32-bit or signed, {low} to {high}: save it with 8 or 16 bits"
            raise BadPictureError("whole numbers of unknown scale", detail)
        return _scaled(image, 65535, False)
    if image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:
            detail = f"{low:g} to {high:g}, not 0 to 1: save it with 8 or 16 bits"
            raise BadPictureError("fractions of unknown scale", detail)
        return Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    return image


def _sixteen_bit_range(image: Image.Image) -> tuple[int, bool]:
    """The highest value, and whether 0 is white."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(TIFF_BITS, 16)
    return 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1, tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO


def _scaled(image: Image.Image, highest: int, white_is_zero: bool) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    scaled = ((values * 255 + highest // 2) // highest).astype(np.uint8)
    if white_is_zero:
        scaled = 255 - scaled
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled)
