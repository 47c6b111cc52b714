"""Where things lie under the runs directory."""

from pathlib import Path


class RunsDir:
    """runs/{mlflow.db, data, store, cache, studies, NAME-FINGERPRINT}: everything a machine or a shared disk keeps."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def data(self) -> Path:
        """Prepared data, one directory per source and size."""
        return self.path / "data"

    @property
    def store(self) -> Path:
        """Trained experts, one directory per content key."""
        return self.path / "store"

    @property
    def cache(self) -> Path:
        """Reference statistics and converted extractor weights."""
        return self.path / "cache"

    @property
    def studies(self) -> Path:
        """Searches, one directory per name."""
        return self.path / "studies"

    def run(self, name: str, fingerprint: str) -> Path:
        """One configuration's directory; the same configuration always gets the same."""
        return self.path / f"{name}-{fingerprint[:8]}"
