"""Whether what lies in a directory is as it was written, and for each broken file what to do."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.plan.fitness import Finding
from orchestrator.plan.places import RunsDir, is_run_name
from orchestrator.runs.status import view_run
from orchestrator.store.damage import damage_of_job
from orchestrator.store.remote import INDEX
from orchestrator.store.storage import STORED_BELOW, Storage
from workloads.config.load import CONFIG_SHA256
from workloads.data.found import read_found
from workloads.data.prepare import FOUND
from workloads.data.prepared import MANIFEST, PreparedDataset
from workloads.ensemble import Ensemble
from workloads.errors import RememeError
from workloads.evaluation.samples import SampleStore
from workloads.files import sha256_file
from workloads.grid import is_whole_png
from workloads.pipeline import read_scores
from workloads.places import EnsembleDir, JobDir, LoneEnsembleDir, RunDir, results_of
from workloads.sealed import read_json


def is_examined(path: Path) -> bool:
    """Whether a directory is one of those that `examine_directory` knows."""
    return _examiner_of(path) is not None


def examine_directory(path: Path) -> Iterator[Finding]:
    """A line for each part of a run, an expert, an ensemble or prepared data, and one for each broken file."""
    examiner = _examiner_of(path)
    assert examiner is not None
    yield from examiner(path)


def examine_in_storage(storage: Storage, named: str) -> Iterator[Finding]:
    """The same for what lies in a storage: a study, or a run with its ensemble, its experts and its data.

    ConfigError if nothing is called so there.
    """
    study = storage.study(named)
    for what, name in [("study", study)] if study is not None else storage.folders_of(storage.name_of(named)):
        yield from told(what, f"{storage.shown}/{name} is as it was sent", storage.damage(name))


def _in_storage(path: Path) -> Iterator[Finding]:
    """A directory of a storage, whatever lies there."""
    path = path.absolute()
    if is_run_name(path.name):
        yield from examine_in_storage(Storage.at(path.parent.as_uri()), path.name)
        return
    depth = 1 if path.parent.name in STORED_BELOW or (path.parent / INDEX).is_file() else 0
    root = path.parents[depth]
    name = str(path.relative_to(root))
    yield from told("storage", f"{name} is as it was sent", Storage.at(root.as_uri()).damage(name))


def _examiner_of(path: Path) -> Callable[[Path], Iterator[Finding]] | None:
    job, run = JobDir(path), RunDir(path)
    if (path / INDEX).is_file():
        return _in_storage
    if job.result.exists() or job.description.exists() or job.checkpoints.is_dir():
        return _expert
    if (path / MANIFEST).is_file():
        return _data
    if EnsembleDir(path).index.is_file():
        return _lone_ensemble if isinstance(results_of(path), LoneEnsembleDir) else _ensemble
    known = (run.plan, run.config, run.scores, run.ensemble.index)
    return _run if any(file.is_file() for file in known) else None


def told(subject: str, whole: str, problems: Iterable[str]) -> Iterator[Finding]:
    """A finding per problem, or one that says what is whole."""
    found = list(problems)
    yield from (Finding(False, subject, problem) for problem in found)
    if not found:
        yield Finding(True, subject, whole)


def problem_with(check: Callable[[], object]) -> list[str]:
    """What a check has to say."""
    try:
        check()
    except RememeError as error:
        return [str(error)]
    return []


def _expert(path: Path) -> Iterator[Finding]:
    yield from told("expert", f"{path.name} is whole", [damage.text for damage in damage_of_job(JobDir(path))])


def _data(path: Path) -> Iterator[Finding]:
    problems = problem_with(lambda: PreparedDataset(path).verify()) + problem_with(lambda: read_found(path / FOUND))
    yield from told("data", f"{path.name} is whole", problems)


def _ensemble(path: Path) -> Iterator[Finding]:
    problems = []
    try:
        checks = list(Ensemble.load(path).checks())
    except RememeError as error:
        problems, checks = [str(error)], []
    problems += [text for check in checks for text in problem_with(check)]
    yield from told("ensemble", f"{path.name} is whole", problems)


def _lone_ensemble(path: Path) -> Iterator[Finding]:
    """And what was measured of it, which it keeps itself."""
    yield from _ensemble(path)
    yield from _measured(results_of(path))


def _run(path: Path) -> Iterator[Finding]:
    run, runs = RunDir(path.absolute()), RunsDir(path.absolute().parent)
    keys: list[str] = []
    problems = problem_with(lambda: keys.extend(_planned(run)))
    yield from told("plan", f"{len(keys)} experts", problems)
    yield from told("status", "as it was written", problem_with(lambda: view_run(run)))
    for key in keys:
        if runs.job(key).path.is_dir():
            yield from _expert(runs.job(key).path)
    if run.ensemble.index.exists():
        yield from _ensemble(run.ensemble.path)
        yield from _data_of(run, runs)
    yield from _measured(run)


def _measured(run: RunDir) -> Iterator[Finding]:
    yield from told("scores", "as they were written", problem_with(lambda: read_scores(run.scores)))
    yield from told("samples", "as they were drawn", _damaged_samples(run))
    yield from told("pictures", "as they were drawn", _damaged_pictures(run))


def _planned(run: RunDir) -> Sequence[str]:
    """Keys of a run's experts. DamagedFileError if its plan, or the description it was made of, has changed."""
    again = "run rememe train again, which writes it anew"

    def keys_of(raw: dict[str, Any]) -> list[str]:
        if CONFIG_SHA256 in raw and sha256_file(run.config) != raw[CONFIG_SHA256]:
            raise ValueError(f"{run.config.name} beside it is not the one the run was made of")
        return [str(job["key"]) for job in raw["jobs"]]

    return read_json(run.plan, keys_of, again) if run.plan.exists() else []


def _data_of(run: RunDir, runs: RunsDir) -> Iterator[Finding]:
    """What it was trained on, if that lies in the same runs directory."""
    try:
        fingerprint = Ensemble.load(run.path).data.fingerprint
    except RememeError:
        return  # told already
    for path in sorted(runs.data.glob("*/")):
        if (path / INDEX).exists():
            continue  # a storage's, which whoever fetches it compares with its index
        try:
            is_its = PreparedDataset(path).fingerprint == fingerprint
        except RememeError:
            is_its = True
        if is_its:
            yield from _data(path)


def _damaged_samples(run: RunDir) -> Iterator[str]:
    for folder in sorted(run.samples("").glob("*/")):
        for file in SampleStore(folder).damaged():
            yield f"{file} is damaged; rememe evaluate {run.path} draws it again"


def _damaged_pictures(run: RunDir) -> Iterator[str]:
    for file in [*run.all_grids(), *sorted(run.figures.glob("*.png"))]:
        if not is_whole_png(file.read_bytes()):
            again = f"evaluate {run.path}" if isinstance(run, LoneEnsembleDir) else f"train {run.config}"
            yield f"{file} is damaged; rememe {again} draws it again"
