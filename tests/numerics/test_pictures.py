"""A picture becomes the pixels that NumPy makes of the same numbers, whatever its format, depth and orientation."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from workloads.data.pictures import BadPictureError, read_picture

SIDE = 12
Turn = Callable[[np.ndarray], np.ndarray]

STORED: dict[int, Turn] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}
"""What a camera stores of an upright picture under each orientation of EXIF 2.32, 4.6.4.A."""


def noise(seed: int, *shape: int, highest: int = 255) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest + 1, shape)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def read(content: bytes | np.ndarray | Image.Image, channels: int = 3, size: int = SIDE) -> np.ndarray:
    """(H, W, C)"""
    return read_picture(content, size, channels).pixels_CHW.transpose(1, 2, 0).astype(int)


def png(values: np.ndarray, *, depth: int, colour: int, chunks: bytes = b"") -> bytes:
    """Written by hand: (H, W, C) of `depth` bits, 8 or 16."""
    lines = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND")
    )


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff(values: np.ndarray, *, bits: int, photometric: int = 1, sample_format: int = 1, big: bool = False) -> bytes:
    """Written by hand: one grey channel (H, W)."""
    order = ">" if big else "<"
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(pixels)), (339, sample_format)]
    entries = b"".join(struct.pack(order + "HHI", tag, 4, 1) + struct.pack(order + "I", value) for tag, value in tags)
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", 8 + len(pixels))
    return head + pixels + struct.pack(order + "H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "QOI", "JPEG2000"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "1", "P"])
def test_eight_bits_come_as_they_are(form: str, mode: str) -> None:
    colours = noise(1, SIDE, SIDE, 3).astype(np.uint8)
    image = Image.fromarray(colours).quantize(64) if mode == "P" else Image.fromarray(colours).convert(mode)
    if mode in {"RGBA", "LA"}:
        image.putalpha(Image.fromarray(noise(2, SIDE, SIDE).astype(np.uint8)))
    options = {"WEBP": {"lossless": True, "exact": True}, "JPEG2000": {"irreversible": False}}.get(form, {})
    try:
        content = encoded(image, form, **options)
    except (OSError, ValueError):
        pytest.skip(f"Pillow does not write {mode} as {form}")
    stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")).astype(float)
    alpha = stored[..., 3:] / 255
    expected = stored[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(read(content) - expected).max() <= (1 if mode in {"RGBA", "LA"} or form == "GIF" else 0)
    if mode in {"L", "RGB"} and form != "GIF":
        assert np.array_equal(read(content), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("highest", [65535, 40000, 300, 255, 1])
def test_sixteen_bits_are_scaled_by_their_depth_not_by_what_occurs(highest: int) -> None:
    grey = noise(3, SIDE, SIDE, highest=highest).astype(np.uint16)
    expected = np.floor(grey / 65535 * 255 + 0.5)
    for content in (
        png(grey[..., None], depth=16, colour=0),
        tiff(grey, bits=16),
        tiff(grey, bits=16, big=True),
        encoded(Image.fromarray(grey), "PNG"),
        encoded(Image.fromarray(grey), "TIFF", compression="tiff_lzw"),
        b"P5 %d %d 65535\n" % (SIDE, SIDE) + grey.astype(">u2").tobytes(),
    ):
        assert np.array_equal(read(content, 1)[..., 0], expected)
        assert np.array_equal(read(content, 3)[..., 2], expected)
    white_is_zero = read(tiff(grey, bits=16, photometric=0), 1)[..., 0]
    assert np.array_equal(white_is_zero, 255 - expected)
    colour = noise(4, SIDE, SIDE, 3, highest=highest).astype(np.uint16)
    assert np.abs(read(png(colour, depth=16, colour=2)) - colour / 65535 * 255).max() <= 1


def test_other_depths_say_how_high_white_is_or_are_refused() -> None:
    fractions = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    read_back = read(tiff(fractions, bits=32, sample_format=3), 1)[..., 0]
    assert np.abs(read_back - fractions * 255).max() <= 0.5 + 1e-4
    for values, bits, kind in (
        (fractions * 255, 32, 3),
        (fractions - 0.5, 32, 3),
        (np.full_like(fractions, np.nan), 32, 3),
        ((fractions * 65535).astype(np.uint32), 32, 1),
        ((fractions * 200 - 100).astype(np.int16), 16, 2),
    ):
        with pytest.raises(BadPictureError, match=r"of unknown scale|NaN"):
            read(tiff(values, bits=bits, sample_format=kind))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [0, *STORED, 9, 300])
def test_pictures_are_turned_as_their_exif_data_say(form: str, orientation: int) -> None:
    upright = np.kron(noise(5, 3, 3, 3), np.ones((8, 8, 1))).astype(np.uint8)
    stored = np.ascontiguousarray(STORED.get(orientation, STORED[1])(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
    content = encoded(Image.fromarray(stored), form, exif=exif, **options.get(form, {}))
    # Not the borders between squares, which JPEG blurs.
    assert np.abs(read(content, size=24) - upright)[3::8, 3::8].max() <= 12


def test_turning_comes_before_cropping() -> None:
    upright = np.zeros((30, 20, 3), np.uint8)
    upright[:5], upright[25:] = 255, 128  # outside the middle square
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(np.ascontiguousarray(STORED[6](upright))), "PNG", exif=exif)
    assert not read(content, size=20).any()


def test_colours_of_print_and_of_photo_editors() -> None:
    cyan = read(encoded(Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)), "JPEG", quality=95))
    assert cyan[..., 0].max() < 60
    assert cyan[..., 1:].min() > 150
    red = ImageCms.applyTransform(
        Image.new("RGB", (SIDE, SIDE), (200, 30, 40)),
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    assert red is not None
    assert np.abs(read(encoded(red, "TIFF")) - [200, 30, 40]).max() <= 4


def test_a_transparent_colour_is_background_at_every_depth() -> None:
    grey = np.arange(SIDE * SIDE).reshape(SIDE, SIDE, 1)
    expected = np.where(grey == 7, 255, grey)
    eight = png(grey, depth=8, colour=0, chunks=chunk(b"tRNS", struct.pack(">H", 7)))
    sixteen = png(grey * 257, depth=16, colour=0, chunks=chunk(b"tRNS", struct.pack(">H", 7 * 257)))
    for content in (eight, sixteen):
        assert np.array_equal(read(content, 1), expected)
    assert read(png(np.zeros((SIDE, SIDE, 4)), depth=16, colour=6)).min() == 255


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "WEBP", "PNG", "AVIF"):
        picture = read_picture(encoded(frames[0], form, save_all=True, append_images=frames[1:]), SIDE, 3)
        assert np.abs(picture.pixels_CHW.reshape(3, -1).astype(int).T - [255, 0, 0]).max() <= 8
        assert "first of several frames" in picture.treatment


def test_texts_beside_the_pixels_are_no_reason_to_refuse_them() -> None:
    info = PngInfo()
    for step in range(70):
        info.add_text(f"step {step}", "x" * 1_000_000, zip=True)
    pixels = noise(6, SIDE, SIDE, 3).astype(np.uint8)
    assert np.array_equal(read(encoded(Image.fromarray(pixels), "PNG", pnginfo=info)), pixels)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "HEIC"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "too large"),
        (encoded(Image.new("L", (300, 300)), "JPEG")[:600], "cut short"),
    ],
)
def test_what_is_no_picture_is_told(content: bytes, reason: str) -> None:
    with pytest.raises(BadPictureError, match=reason):
        read(content)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "PPM"])
def test_damage_is_told_and_never_a_traceback(form: str) -> None:
    rng = np.random.default_rng(7)
    whole = np.frombuffer(encoded(Image.fromarray(noise(8, 20, 20, 3).astype(np.uint8)), form), np.uint8)
    for _ in range(25):
        damaged = whole[: rng.integers(1, len(whole) + 1)].copy()
        places = rng.integers(0, len(damaged), rng.integers(0, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        with contextlib.suppress(BadPictureError):
            assert read(damaged.tobytes()).shape == (SIDE, SIDE, 3)
