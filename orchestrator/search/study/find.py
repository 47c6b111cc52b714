"""Which study a user means: one of the presets by name, or a YAML file that has a space."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.search.study.study import Study
from workloads.config import RunConfig
from workloads.config.comparison import Comparison
from workloads.config.explain import suggest
from workloads.config.load import apply_override, is_file, listed, mark_of, named, read_raw, validate
from workloads.errors import ConfigError
from workloads.presets import list_presets

OWN_FIELDS = Study.model_fields.keys() - RunConfig.model_fields.keys() - Comparison.model_fields.keys()
"""What only a study has."""


def find_study(source: str | Path, overrides: Sequence[str] | str) -> Study | None:
    """The study of this name or in this YAML file; None if it is a run description, or nothing."""
    source, overrides = named(source), listed(overrides)
    # A study's name goes before a run's, and both before a file.
    if source not in list_presets("studies") and (source in list_presets() or not is_file(source)):
        return None
    raw = read_raw(source, "studies")
    # Misspelt, it is a study all the same, and is told so.
    if mark_of(raw)[0] != "space" and not ("base" in raw and raw.keys() & OWN_FIELDS):
        return None
    # Only a mapping can be changed, so a base that is named is read first.
    if isinstance(raw.get("base"), str) and any(re.match(r"\s*base\s*[.=]", override) for override in overrides):
        raw["base"] = read_raw(raw["base"])
    for override in overrides:
        raw = apply_override(raw, override)
    return validate(Study, raw)


def whole_description(study: Study) -> dict[str, Any]:
    """The study as plain values from which the same is read anywhere: its base is in it, not named."""
    return study.model_dump(mode="json") | {"base": study.base_raw}


def require_study(source: str | Path, overrides: Sequence[str] | str) -> Study:
    """The same; ConfigError with the nearest name if there is none."""
    study = find_study(source, overrides)
    if study is None:
        hint = suggest(str(source), list_presets("studies"))
        raise ConfigError(f"no study is called {str(source)!r}, and no file of that name has a space{hint}")
    return study
