"""Content keys of everything that ships, pinned: a key that moves makes every stored expert of it train again."""

import json
from pathlib import Path

import pytest

from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.study import Study
from workloads.config import DataSpec, RunConfig, load_config
from workloads.config.load import load_comparison, read_raw, validate
from workloads.presets import list_presets

PINS: dict[str, dict[str, object]] = json.loads(Path(__file__).with_name("key_pins.json").read_text())
"""Literals: never made anew from the code under test."""


def keys(config: RunConfig) -> list[str]:
    """Of the configuration's jobs, on data of its size with a made-up fingerprint."""
    data = config.data
    spec = DataSpec(
        fingerprint="0" * 64,
        channels=data.channels,
        image_size=data.image_size,
        num_classes=data.num_classes if data.class_conditional else None,
        held_out=data.held_out,
    )
    return [job.key for job in config.model_copy(update={"initial_weights": None}).jobs(spec)]


@pytest.mark.parametrize("preset", list_presets())
def test_keys_of_presets_stay_what_they_are(preset: str) -> None:
    assert keys(load_config(preset)) == PINS["presets"][preset]


@pytest.mark.parametrize("name", list_presets("comparisons"))
def test_keys_of_comparisons_stay_what_they_are(name: str) -> None:
    comparison = load_comparison(name)
    rows = {row: comparison.run(row, 0) for row in comparison.row_names}
    assert {row: keys(config) for row, config in rows.items()} == PINS["comparisons"][name]


@pytest.mark.parametrize("name", list_presets("studies"))
def test_keys_of_a_studys_first_configuration_stay_what_they_are(name: str) -> None:
    study = validate(Study, read_raw(name, "studies"))
    assert keys(Configurations(study).first()[1]) == PINS["studies"][name]
