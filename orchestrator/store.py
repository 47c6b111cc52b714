"""The expert store: one directory per content key. A finished expert serves every configuration that contains it."""

import logging
import uuid
from pathlib import Path

from workloads.errors import CheckpointError, StorageError
from workloads.files import write_text
from workloads.training.job import JobResult, completed

logger = logging.getLogger(__name__)


ID_FILE = "store-id"


def check_store(root: Path, identity: str, node: str) -> None:
    """Raise StorageError unless the store a worker sees on its node is the driver's."""
    file = root / ID_FILE
    if not file.is_file() or file.read_text() != identity:
        raise StorageError(
            f"the expert store {root} is not the same directory on node {node}; "
            "set --runs-dir to a path all nodes share"
        )


class ExpertStore:
    """Trained (and half-trained) experts under one directory that every node must see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._id_file = root / ID_FILE
        if not self._id_file.exists():
            write_text(self._id_file, uuid.uuid4().hex)

    @property
    def identity(self) -> str:
        """A random word in the directory, by which another node can tell that it sees the same one."""
        return self._id_file.read_text()

    def path(self, key: str) -> Path:
        """Where the job with this key is, or will be, trained."""
        return self.root / key

    def completed(self, key: str) -> JobResult | None:
        """The result of a finished job. A damaged one is named, set aside and reported as missing."""
        try:
            return completed(self.path(key))
        except CheckpointError as error:
            aside = self.root / f"damaged-{key}-{uuid.uuid4().hex[:6]}"
            self.path(key).rename(aside)
            logger.warning("%s; it was moved to %s and will be trained again", error, aside.name)
            return None
