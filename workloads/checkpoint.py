"""Checkpoints that survive crashes: atomic, checksummed, and never down to a single copy while one is written.

A checkpoint is a directory named by images seen, holding one safetensors file and a manifest. A damaged one is
reported, skipped, and the one before it is used.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError

from workloads.files import new_directory, sha256_file, write_text

logger = logging.getLogger(__name__)

NUM_KEPT = 2
"""The newest may be unproven, so one before it is kept."""


class Checkpoint(NamedTuple):
    """A flat, named set of tensors and where training stood."""

    images_seen: int
    tensors: dict[str, torch.Tensor]


class CheckpointFolder:
    """The checkpoints of one job. `key` ties them to it: another job's are not loaded."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a whole checkpoint or none, then drop all but the newest two. StorageError on a full disk."""
        target = self.path / f"{checkpoint.images_seen:012d}"
        tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
        with new_directory(target) as scratch:
            file = scratch / "state.safetensors"
            safetensors.torch.save_file(tensors, file)
            manifest = {"images_seen": checkpoint.images_seen, "key": self.key, "sha256": sha256_file(file)}
            write_text(scratch / "manifest.json", json.dumps(manifest))
        for old in self._folders()[NUM_KEPT:]:
            shutil.rmtree(old)

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint whose content matches its manifest, or None."""
        for folder in self._folders():
            try:
                return self._load(folder)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                logger.warning("checkpoint %s is damaged (%s); using the one before it", folder, error)
        return None

    def clear(self) -> None:
        """Remove all checkpoints; of a finished job more than one process may be at it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted((path for path in self.path.glob("[0-9]*") if path.is_dir()), reverse=True)

    def _load(self, folder: Path) -> Checkpoint:
        manifest = json.loads((folder / "manifest.json").read_text())
        file = folder / "state.safetensors"
        if manifest["key"] != self.key:
            raise ValueError(f"it belongs to job {manifest['key']}")
        if sha256_file(file) != manifest["sha256"]:
            raise ValueError("its content does not match its checksum")
        return Checkpoint(manifest["images_seen"], safetensors.torch.load_file(file))
