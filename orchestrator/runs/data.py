"""The data of a configuration: made ready on first use, and what a plan needs to know of it."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.plan.places import RunsDir
from orchestrator.terminal.notes import print_note
from orchestrator.terminal.progress import progress
from workloads.config import DataSpec, RunConfig
from workloads.config.base import StrictConfig
from workloads.config.data import AnyData
from workloads.config.load import validate
from workloads.data.prepare import PrepareSummary, ensure_prepared, prepare
from workloads.data.prepared import PreparedDataset
from workloads.data.sources import detect_source
from workloads.errors import DataError
from workloads.pipeline import reference_data, training_data

PREPARING = "preparing data"


def plan_as_far_as_known(config: RunConfig, runs_dir: Path) -> Plan:
    """What would run. Works without data and initial weights too; keys are then unknown."""
    spec = spec_of(config, runs_dir)
    if config.initial_weights is not None and not config.initial_weights.exists():
        print_note(f"initial_weights {config.initial_weights} does not exist; content keys need it and are left out")
        config, spec = config.model_copy(update={"initial_weights": None}), spec.model_copy(update={"fingerprint": ""})
    return make_plan(config, spec)


def spec_of(config: RunConfig, runs_dir: Path) -> DataSpec:
    """The data a plan needs to know, as configured where it cannot be had; then with a note and no fingerprint."""
    return _spec(config.data, runs_dir)


# A study plans many configurations of one data set: it is looked at, and a note about it printed, once.
@lru_cache(maxsize=64)
def _spec(data: AnyData, runs_dir: Path) -> DataSpec:
    try:
        with progress(PREPARING, "images") as advance:
            return ensure_prepared(data, RunsDir(runs_dir).data, on_progress=advance).spec(data)
    except DataError as error:
        print_note(f"{error}. Sizes are shown as configured; content keys need the data and are left out")
    conditional = data.num_classes if data.class_conditional else None
    return DataSpec(fingerprint="", channels=data.channels, image_size=data.image_size, num_classes=conditional)


def prepare_data_of(config: RunConfig, runs: RunsDir) -> PreparedDataset:
    """The configuration's data as shards, made on first use with a progress bar. DataError if it cannot be had."""
    with progress(PREPARING, "images") as advance:
        return training_data(config, runs.data, advance)


def prepare_reference_of(config: RunConfig, runs: RunsDir) -> PreparedDataset:
    """The images its score compares with, in the same way."""
    with progress(PREPARING, "images") as advance:
        return reference_data(config, runs.data, advance)


class _DataSection(StrictConfig):
    data: AnyData


def prepare_source(
    source: str, out: Path, *, size: int, channels: int, vae: Path | None, split: str, max_bad: int
) -> PrepareSummary:
    """Any source of images as shards in `out`, with a progress bar."""
    fields: dict[str, Any] = detect_source(source) | {"image_size": size, "channels": channels}
    # The other kinds have no parts, and refuse the field.
    if fields["kind"] in {"torchvision", "cifar10"}:
        fields["split"] = split
    config = validate(_DataSection, {"data": fields}).data
    with progress("preparing", "images") as advance:
        return prepare(config, out, vae=vae, max_bad=max_bad, on_progress=advance)
