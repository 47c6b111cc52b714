"""Where things lie under the runs directory."""

import os
import re
import reprlib
from pathlib import Path

from workloads.errors import ConfigError
from workloads.places import RunDir, SharedDir


def confined(name: str) -> str:
    """A name from outside that is to be one of a directory. ConfigError if it would lead out of it."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name or len(os.fsencode(name)) > 200:
        raise ConfigError(f"{reprlib.repr(name)} is no name of a run or a study; give the name alone, without a path")
    return name


def is_run_name(name: str) -> bool:
    """Whether a run's directory may be called so: NAME-FINGERPRINT."""
    return re.fullmatch(r".+-[0-9a-f]{8}", name) is not None


class RunsDir(SharedDir):
    """runs/: everything a machine or a shared disk keeps.

    data  store  cache  studies  mlflow.db  mlartifacts  spool  NAME-FINGERPRINT (a run)
    """

    def __init__(self, path: Path, *, copy_of: str | None = None) -> None:
        super().__init__(path)
        self.given = path
        """As the user wrote it, for messages."""

        self.is_copy = copy_of is not None
        """Whether drivers work elsewhere on what is here, so that locks here tell nothing."""

        self.shown = copy_of or str(self.path)
        """Where a user finds it."""

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

    def probe(self, word: str) -> Path:
        """A directory that is there for a moment, to see who sees it."""
        return self.path / f".probe-{word}"

    def run(self, name: str, fingerprint: str) -> RunDir:
        """One configuration's directory; the same configuration always gets the same."""
        return RunDir(self.path / f"{name}-{fingerprint[:8]}")

    def run_named(self, name: str) -> RunDir:
        """By its directory's name."""
        return RunDir(self.path / confined(name))

    def all_plans(self) -> list[RunDir]:
        """The runs that have a plan."""
        return [RunDir(file.parent) for file in sorted(self.path.glob(f"*/{RunDir(self.path).plan.name}"))]

    def all_with_status(self) -> list[RunDir]:
        """Runs and studies that a driver has worked on."""
        name = RunDir(self.path).status.name
        return [RunDir(file.parent) for where in (self.path, self.studies) for file in sorted(where.glob(f"*/{name}"))]

    def table(self, name: str) -> Path:
        """Of a comparison or a study, for other programs."""
        return self.path / f"{name}.csv"

    def picture(self, name: str) -> Path:
        """Of a comparison: samples of every row."""
        return self.path / f"{name}.png"

    def page(self, name: str) -> Path:
        """The HTML page about a comparison."""
        return self.path / f"{name}.html"

    def study(self, name: str) -> "StudyDir":
        """What a study keeps, whether it has begun or not. ConfigError for a name that leads elsewhere."""
        return StudyDir(self, confined(name))

    def all_studies(self) -> list["StudyDir"]:
        """By name, those included that have not got further than a directory."""
        return [self.study(folder.name) for folder in sorted(self.studies.glob("*/"))]


class StudyDir:
    """studies/NAME/{study.json, trials, progress, tune, report.html, stop, owner.txt, .lock} and a RunDir's status;
    NAME.csv in the runs directory.
    """

    def __init__(self, runs: RunsDir, name: str) -> None:
        self.name = name
        self.path = runs.studies / name
        self.table_file = runs.table(name)
        """All configurations with their scores, where a user finds it."""

    @property
    def description_file(self) -> Path:
        """What the study is; its presence means that the study has begun."""
        return self.path / "study.json"

    def trial_file(self, number: int) -> Path:
        """One configuration: its point of the space, how far it came, what it scored, what it cost."""
        return self.path / "trials" / f"{number:04d}.json"

    def trial_files(self) -> list[Path]:
        """Those there are, in order."""
        return sorted((self.path / "trials").glob("[0-9]*.json"))

    def progress_file(self, number: int) -> Path:
        """How far the training of a running configuration is, in words."""
        return self.path / "progress" / f"{number:04d}"

    def remarks_file(self, number: int) -> Path:
        """What was warned of while a configuration was carried out, for the driver to show."""
        return self.path / "progress" / f"{number:04d}.jsonl"

    def remarks_files(self) -> list[Path]:
        """Those there are."""
        return sorted((self.path / "progress").glob("*.jsonl"))

    @property
    def tune_dir(self) -> Path:
        """Ray Tune's own state; thrown away at every start, nothing depends on it."""
        return self.path / "tune"

    @property
    def report_file(self) -> Path:
        """The HTML page, unless it is wanted elsewhere."""
        return RunDir(self.path).report

    @property
    def stop_file(self) -> Path:
        """Its presence asks running configurations to write checkpoints and end."""
        return self.path / "stop"

    @property
    def owner_file(self) -> Path:
        """Which process runs the study, for people."""
        return self.path / "owner.txt"

    @property
    def lock_file(self) -> Path:
        """Held by that process."""
        return self.path / ".lock"
