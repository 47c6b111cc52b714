"""How the coefficients of a remix move while it is trained."""

from pathlib import Path
from typing import Any

from torch import Tensor

from workloads.sealed import append_line, read_lines, write_lines


class CoefficientHistory:
    """Appends the table of coefficients (averaged over layers) to a file every `every_images` images."""

    def __init__(self, file: Path, *, start_images: int, every_images: int) -> None:
        self._file, self._every_images, self._written_images = file, every_images, start_images
        # Entries past the checkpoint are about to be made again.
        kept = [entry for entry in read_coefficients(file) if entry["images_seen"] <= start_images]
        write_lines(file, kept)

    def __call__(self, state: Any, loss: Tensor) -> None:  # noqa: ARG002
        if state.images_seen - self._written_images >= self._every_images:
            self._written_images = state.images_seen
            table_NK = state.mixer.table().mean(1).cpu()
            entry = {"images_seen": state.images_seen, "coefficients": table_NK.round(decimals=5).tolist()}
            append_line(self._file, entry)


def read_coefficients(file: Path) -> list[dict[str, Any]]:
    """Entries {"images_seen", "coefficients": N x K}; what a crash has cut short or what is damaged is left out."""
    return read_lines(file, _entry_of)


def _entry_of(raw: dict[str, Any]) -> dict[str, Any]:
    table_NK = [[float(share) for share in row] for row in raw["coefficients"]]
    return {"images_seen": int(raw["images_seen"]), "coefficients": table_NK}
