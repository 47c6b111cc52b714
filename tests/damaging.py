"""Files as a broken disk leaves them."""

from pathlib import Path


def damage(file: Path) -> None:
    """Turn all bits of its last byte: a byte that was written in its place might be the one that was there."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 0xFF
    file.write_bytes(content)
