"""Where things lie under the runs directory."""

from pathlib import Path

from workloads.places import JobDir, RunDir


class RunsDir:
    """runs/: everything a machine or a shared disk keeps.

    data  store  cache  studies  mlflow.db  mlartifacts  spool  NAME-FINGERPRINT (a run)
    """

    def __init__(self, path: Path) -> None:
        self.given = path
        """As the user wrote it, for messages."""

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

    @property
    def mlflow_database(self) -> Path:
        """MLflow's store, unless $MLFLOW_TRACKING_URI names another."""
        return self.path / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Files that MLflow shows."""
        return self.path / "mlartifacts"

    @property
    def mlflow_lock(self) -> Path:
        """Held while the database is made."""
        return self.path / ".mlflow.lock"

    @property
    def spool(self) -> Path:
        """What MLflow has not taken yet."""
        return self.path / "spool"

    def run(self, name: str, fingerprint: str) -> RunDir:
        """One configuration's directory; the same configuration always gets the same."""
        return RunDir(self.path / f"{name}-{fingerprint[:8]}")

    def job(self, key: str) -> JobDir:
        """Where the job with this key is, or will be, trained."""
        return JobDir(self.store / key)

    def table(self, name: str) -> Path:
        """Of a comparison or a study, for other programs."""
        return self.path / f"{name}.csv"

    def picture(self, name: str) -> Path:
        """Of a comparison: samples of every row."""
        return self.path / f"{name}.png"
