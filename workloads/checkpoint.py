"""Checkpoints that survive crashes: atomic, checksummed, and never down to a single copy while one is written.

A checkpoint is a directory named by images seen, holding one safetensors file and a manifest. A damaged one is
reported, skipped, and the one before it is used.
"""

import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError

from workloads.errors import DamagedFileError
from workloads.files import new_directory, sha256_file
from workloads.sealed import read_json, require_intact, write_json

logger = logging.getLogger(__name__)

NUM_KEPT = 2
"""The newest may be unproven, so one before it is kept."""

MANIFEST = "manifest.json"
NEXT_STEP = "the one before it is used, or training begins anew"


class Checkpoint(NamedTuple):
    """A flat, named set of tensors and where training stood."""

    images_seen: int
    tensors: dict[str, torch.Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def copied(self) -> "Checkpoint":
        """The same in memory of its own, on the CPU; what training does next does not change it."""
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.tensors.items()}
        return Checkpoint(self.images_seen, tensors)


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
            write_json(scratch / MANIFEST, manifest)
        for old in self._folders()[NUM_KEPT:]:
            shutil.rmtree(old)

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint whose content matches its manifest, or None."""
        for folder in self._folders():
            try:
                return self._load(folder)
            except (DamagedFileError, OSError, SafetensorError) as error:
                logger.warning("checkpoint %s is damaged (%s)", folder, error)
        return None

    def damage(self) -> dict[Path, str]:
        """What is wrong with the checkpoints that are not whole. Changes nothing."""
        found = {}
        for folder in self._folders():
            try:
                self._verified(folder)
            except (DamagedFileError, OSError) as error:
                found[folder] = str(error)
        return found

    def clear(self) -> None:
        """Remove all checkpoints; of a finished job more than one process may be at it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted((path for path in self.path.glob("[0-9]*") if path.is_dir()), reverse=True)

    def _load(self, folder: Path) -> Checkpoint:
        file = self._verified(folder)
        return Checkpoint(int(folder.name), safetensors.torch.load_file(file))

    def _verified(self, folder: Path) -> Path:
        """The file with the tensors. DamagedFileError if it, or its manifest, is not as it was written."""
        file = folder / "state.safetensors"
        manifest = read_json(folder / MANIFEST, dict, NEXT_STEP)
        if manifest.get("key") != self.key or manifest.get("images_seen") != int(folder.name):
            raise DamagedFileError(
                f"{folder} belongs to job {manifest.get('key')} after {manifest.get('images_seen')} images; {NEXT_STEP}"
            )
        require_intact(file, str(manifest.get("sha256")), NEXT_STEP)
        return file
