"""How the coefficients of a remix move while it is trained."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from workloads.files import write_text


class CoefficientHistory:
    """Appends the table of coefficients (averaged over layers) to a file every `every_images` images."""

    def __init__(self, file: Path, *, start_images: int, every_images: int) -> None:
        self._file, self._every_images, self._written_images = file, every_images, start_images
        # Entries past the checkpoint are about to be made again.
        kept = [entry for entry in read_coefficients(file) if entry["images_seen"] <= start_images]
        write_text(file, "".join(json.dumps(entry) + "\n" for entry in kept))

    def __call__(self, state: Any, loss: Tensor) -> None:  # noqa: ARG002
        if state.images_seen - self._written_images >= self._every_images:
            self._written_images = state.images_seen
            table_NK = state.mixer.table().mean(1).cpu()
            entry = {"images_seen": state.images_seen, "coefficients": table_NK.round(decimals=5).tolist()}
            with self._file.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def read_coefficients(file: Path) -> list[dict[str, Any]]:
    """Entries {"images_seen", "coefficients": N x K}; a last line cut short by a crash is left out."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
