"""Where things lie in the directory of a job, of an ensemble and of a run: each name on disk is here and nowhere else.

Names of the files of checkpoints, of prepared data and of samples belong to the modules that write them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from workloads.errors import ConfigError

SAMPLES, DENOISED = "samples", "denoised"
PICTURE_KINDS = (SAMPLES, DENOISED)
"""What a network draws in the course of training."""


@dataclass(frozen=True)
class JobDir:
    """What one job is trained in, and leaves behind."""

    path: Path

    @property
    def description(self) -> Path:
        """The job itself."""
        return self.path / "job.json"

    @property
    def result(self) -> Path:
        """How it ended; written last, so a job with one is finished."""
        return self.path / "result.json"

    @property
    def records(self) -> Path:
        """Loss and speed over training."""
        return self.path / "records.jsonl"

    @property
    def coefficients(self) -> Path:
        """Of a remix, over training."""
        return self.path / "coefficients.jsonl"

    def picture(self, kind: str, images_seen: int) -> Path:
        """What it drew in the course of training; not in a folder, so that it goes along with the records."""
        return self.path / f"{kind}-{images_seen:012d}.png"

    def pictures(self, kind: str) -> dict[int, Path]:
        """Those there are, by images seen."""
        digits = "[0-9]" * 12
        files = sorted(self.path.glob(f"{kind}-{digits}.png"))
        return {int(file.stem.rpartition("-")[2]): file for file in files}

    @property
    def checkpoints(self) -> Path:
        """While it is trained: a directory each, named by images seen."""
        return self.path / "checkpoints"

    @property
    def curves(self) -> Path:
        """Losses measured of it, a file per way of measuring."""
        return self.path / "curves"

    @property
    def expert(self) -> Path:
        """The trained network, as save_pretrained writes it."""
        return self.path / "expert"

    @property
    def remix(self) -> Path:
        """Or the trained bases and their coefficients."""
        return self.path / "remix"

    @property
    def lock(self) -> Path:
        """Held by the process that writes here."""
        return self.path / ".lock"

    @property
    def writer(self) -> Path:
        """A random word of that process."""
        return self.path / ".writer"

    @property
    def tenant(self) -> Path:
        """Which process is to write here, where several might."""
        return self.path / ".tenant"

    @property
    def first_for(self) -> Path:
        """Which configuration of which study the job was begun for."""
        return self.path / "first-for"

    def checkpointed_images(self) -> int | None:
        """Images seen at the newest checkpoint, by its name; None if there is none."""
        try:
            names = [folder.name for folder in self.checkpoints.glob("[0-9]*") if folder.is_dir()]
        except OSError:  # cleared by who has finished the job, while we looked
            return None
        return max((int(name) for name in names if name.isdigit()), default=None)


@dataclass(frozen=True)
class EnsembleDir:
    """What sampling reads."""

    path: Path

    @property
    def index(self) -> Path:
        """Run description, data, intervals and checksums."""
        return self.path / "ensemble.json"

    def expert(self, index: int) -> Path:
        """One network as save_pretrained writes it; 0 is nearest the clean image."""
        return self.path / f"expert_{index:02d}"

    @property
    def remix(self) -> Path:
        """Instead of them: bases, and the coefficients that mix them into experts."""
        return self.path / "remix"

    @property
    def vae(self) -> Path:
        """What makes images of latents."""
        return self.path / "vae"


@dataclass(frozen=True)
class ExportDir:
    """What other tools read: a pipeline of diffusers, which calls each part by its directory's name."""

    path: Path

    @property
    def experts(self) -> EnsembleDir:
        """Where networks are called as in an ensemble."""
        return EnsembleDir(self.path / "experts")

    @property
    def second_of_two(self) -> Path:
        """In the form of Wan's pipelines, the one nearest the clean image."""
        return self.path / "transformer_2"

    @property
    def scheduler(self) -> Path:
        """What makes images of noise."""
        return self.path / "scheduler"

    @property
    def vae(self) -> Path:
        """What makes images of latents."""
        return self.path / "vae"


@dataclass(frozen=True)
class RunDir:
    """What one configuration leaves behind."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved run description; it can be run again."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """The jobs it consists of."""
        return self.path / "plan.json"

    @property
    def status(self) -> Path:
        """How far it is, kept up to date by who carries it out."""
        return self.path / "status.json"

    @property
    def driver_lock(self) -> Path:
        """Held by who does so."""
        return self.path / ".driver.lock"

    @property
    def scores(self) -> Path:
        """By the hash of their protocol."""
        return self.path / "scores.json"

    @property
    def ensemble(self) -> EnsembleDir:
        """Its trained experts."""
        return EnsembleDir(self.path / "ensemble")

    def samples(self, key: str) -> Path:
        """Generated images; see samples_key."""
        return self.path / "samples" / key

    @property
    def figures(self) -> Path:
        """Pictures of what was learned."""
        return self.path / "figures"

    def figure(self, name: str) -> Path:
        """One of them."""
        return self.figures / f"{name}.png"

    def figure_table(self, name: str) -> Path:
        """The numbers it shows."""
        return self.figures / f"{name}.csv"

    @property
    def report(self) -> Path:
        """The HTML page about the configuration, unless it is wanted elsewhere."""
        return self.path / "report.html"

    @property
    def grid(self) -> Path:
        """Samples side by side, drawn under the run's own protocol."""
        return self.path / "grid.png"

    def other_grid(self, protocol: str, protocol_hash: str) -> Path:
        """The same under another protocol; `*` as its name is a pattern for any."""
        return self.path / f"grid-{protocol}-{protocol_hash[:8]}.png"

    def all_grids(self) -> list[Path]:
        """Those there are."""
        return sorted(self.path.glob("grid*.png"))


@dataclass(frozen=True)
class LoneEnsembleDir(RunDir):
    """An ensemble that lies in no run, such as a baked one or a copy: what is measured of it is kept in itself."""

    @property
    def ensemble(self) -> EnsembleDir:
        """Itself."""
        return EnsembleDir(self.path)


class SharedDir:
    """What the configurations below one directory share."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def data(self) -> Path:
        """Prepared data, one directory per source and size."""
        return self.path / "data"

    @property
    def store(self) -> Path:
        """Trained jobs, one directory per content key."""
        return self.path / "store"

    @property
    def cache(self) -> Path:
        """Reference statistics and converted extractor weights."""
        return self.path / "cache"

    def job(self, key: str) -> JobDir:
        """Where the job with this key is, or will be, trained."""
        return JobDir(self.store / key)


@dataclass(frozen=True)
class CacheDir:
    """What is computed of images once, whoever asks."""

    path: Path

    @property
    def blocks(self) -> Path:
        """Features, while something is made of them; of a measurement that was killed they stay, for it to go on."""
        return self.path / "blocks"

    @property
    def statistics(self) -> Path:
        """Of reference images."""
        return self.path / "statistics"

    @property
    def features(self) -> Path:
        """Of some of them."""
        return self.path / "features"


def require_ensemble(path: Path) -> EnsembleDir:
    """The ensemble of a run's directory, or the one that lies there itself. ConfigError if there is none."""
    place = EnsembleDir(path) if EnsembleDir(path).index.is_file() else RunDir(path).ensemble
    if not place.index.is_file():
        _refuse(path, place.index.name)
    return place


def results_of(ensemble: Path) -> RunDir:
    """Where scores, samples and pictures of an ensemble belong: its run or, if it lies in none, the ensemble itself."""
    run = RunDir(ensemble.absolute().parent)
    is_in_run = run.ensemble.path == ensemble.absolute() and run.plan.is_file() and run.config.is_file()
    return run if is_in_run else LoneEnsembleDir(ensemble.absolute())


def _refuse(path: Path, index: str) -> NoReturn:
    """What to do depends on what is there instead: nothing, a run that is not trained to its end, or anything else."""
    if (config := RunDir(path).config).is_file():
        raise ConfigError(
            f"{path} holds no ensemble yet ({index} is missing); train it to its end: rememe train {config}"
        )
    if path.exists():
        raise ConfigError(
            f"{path} holds no ensemble ({index} is missing); give the directory of a run, or train one: rememe train"
        )
    others = sorted(run.parent.parent.name for run in path.parent.glob(f"*/{RunDir(path).ensemble.path.name}/{index}"))
    there = f"trained runs in {path.parent}: {', '.join(others)}" if others else "train one: rememe train demo-meme"
    raise ConfigError(f"{path} does not exist; {there}")
