"""What of the expert store is not as it was written, and setting it aside, so that it is made anew."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.store.experts import ExpertStore, set_aside
from orchestrator.store.inventory import StoreEntry
from workloads.analysis.curves import LossCurve
from workloads.errors import DamagedFileError
from workloads.places import JobDir
from workloads.sealed import num_damaged_lines, read_json, read_lines, require_intact, write_lines
from workloads.training.result import read_result, to_train_again


class Damage(NamedTuple):
    """Something that is not as it was written."""

    part: Path
    """What has to be made anew because of it: a job, a checkpoint, or the file alone."""

    text: str
    """In a sentence, with the next step."""


def damage_of(entries: Sequence[StoreEntry], on_progress: Callable[[int, int], None]) -> list[Damage]:
    """Of every job that nobody is training now. Changes nothing."""
    found = []
    on_progress(0, len(entries))
    for index, entry in enumerate(entries):
        found += damage_of_job(JobDir(entry.path))
        on_progress(index + 1, len(entries))
    return found


def damage_of_job(job: JobDir) -> list[Damage]:
    """Of its result and all it relies on, its checkpoints, its curves. Changes nothing."""
    from workloads.checkpoint import CheckpointFolder  # brings torch

    found = [Damage(job.path, text) for text in _damage_of_result(job.path)]
    checkpoints = CheckpointFolder(job.checkpoints, job.path.name)
    found += [Damage(folder, text) for folder, text in checkpoints.damage().items()]
    for file in (job.records, job.coefficients):
        if num_damaged := num_damaged_lines(file):
            found.append(Damage(file, f"{file} has {num_damaged} damaged lines; they are left out of curves"))
    for file in sorted(job.curves.glob("*.json")):
        try:
            read_json(file, LossCurve.from_json, "remove it to have it measured again")
        except DamagedFileError as error:
            found.append(Damage(file, str(error)))
    return found


def _damage_of_result(work_dir: Path) -> Iterator[str]:
    try:
        result = read_result(work_dir)
    except DamagedFileError as error:
        yield str(error)
        return
    for name, sha256 in result.sha256_of.items() if result is not None else ():
        try:
            require_intact(work_dir / name, sha256, to_train_again(work_dir))
        except DamagedFileError as error:
            yield str(error)


def repair(store: ExpertStore, damages: Sequence[Damage]) -> Iterator[str]:
    """Set damaged parts aside, so that the next run makes them anew; says what, one by one."""
    for part in dict.fromkeys(damage.part for damage in damages):
        key = part.relative_to(store.root).parts[0]
        claim = store.claim(key)
        if claim is None:
            yield f"{part} was left as it is: a run is training it now"
            continue
        try:
            yield _repair(part)
        finally:
            claim.release()


def _repair(part: Path) -> str:
    if part.suffix == ".jsonl":
        write_lines(part, read_lines(part, dict))
        return f"{part} was written again without its damaged lines"
    return f"{part} was moved to {set_aside(part).name}"
