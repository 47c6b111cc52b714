"""`rememe plan`, and what a configuration becomes outside: YAML, flat parameters, prepared data. No Ray, no MLflow."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from orchestrator.plan.places import RunsDir
from orchestrator.plan.jobs import plan
from orchestrator.terminal.view import print_note, print_plan, progress
from workloads.config import DataSpec, RunConfig
from workloads.config.base import StrictConfig
from workloads.config.data import AnyData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.errors import DataError


def plan_configuration(config: RunConfig, runs_dir: Path, *, as_json: bool) -> None:
    """Print what would run. Works without data and initial weights too; keys are then unknown."""
    spec = spec_of(config, runs_dir)
    if config.initial_weights is not None and not config.initial_weights.exists():
        print_note(f"initial_weights {config.initial_weights} does not exist; content keys need it and are left out")
        config, spec = config.model_copy(update={"initial_weights": None}), spec.model_copy(update={"fingerprint": ""})
    planned = plan(config, spec)
    if as_json:
        print(json.dumps(planned.to_json(), indent=2))
    else:
        print_plan(planned)


def spec_of(config: RunConfig, runs_dir: Path) -> DataSpec:
    """The data a plan needs to know, as configured where it cannot be had; then with a note and no fingerprint."""
    return _spec(config.data, runs_dir)


@lru_cache(maxsize=64)
def _spec(data: AnyData, runs_dir: Path) -> DataSpec:
    try:
        return _prepare(data, RunsDir(runs_dir)).spec(data)
    except DataError as error:
        print_note(f"{error}. Sizes are shown as configured; content keys need the data and are left out")
    conditional = data.num_classes if data.class_conditional else None
    return DataSpec(fingerprint="", channels=data.channels, image_size=data.image_size, num_classes=conditional)


def prepare_data_of(config: RunConfig, runs: RunsDir) -> PreparedDataset:
    """The configuration's data as shards, made on first use with a progress bar. DataError if it cannot be had."""
    return _prepare(config.data, runs)


def prepare_reference_of(config: RunConfig, runs: RunsDir) -> PreparedDataset:
    """The images its score compares with, in the same way."""
    return _prepare(config.reference or config.data, runs)


def _prepare(data: AnyData, runs: RunsDir) -> PreparedDataset:
    with progress("preparing data", "images") as advance:
        return ensure_prepared(data, runs.data, on_progress=advance)


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as a file `rememe train` takes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: StrictConfig) -> dict[str, object]:
    """Dotted names to values, for instance strategy.experts.0.specialisation; a list of scalars is one value."""
    flat: dict[str, object] = {}

    def visit(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            children = list(node.items())
        elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
            children = list(enumerate(node))
        else:
            flat[prefix] = node
            return
        for key, value in children:
            visit(f"{prefix}.{key}" if prefix else str(key), value)

    visit("", config.model_dump(mode="json"))
    return flat
