"""Read a run description: a preset or YAML file, then dotted overrides, then validation with one clear sentence."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from workloads.config.base import merge
from workloads.config.comparison import Comparison
from workloads.config.explain import OTHER_WORDS, explain_error, nearest, short, suggest
from workloads.config.run import RunConfig
from workloads.config.text import MAX_CHARACTERS, MAX_DEPTH, parse_yaml
from workloads.errors import ConfigError
from workloads.files import sha256_file
from workloads.places import RunDir
from workloads.presets import FOLDERS, list_presets, text_of
from workloads.sealed import UNREADABLE, load_json

logger = logging.getLogger(__name__)

PRESET = "preset"
"""The key of a file that names what it starts from."""

CONFIG_SHA256 = "config_sha256"
"""In a run's plan, of the run description beside it."""

MARKS = ("space", "rows")
"""Keys by which a study and a comparison are known from a run description."""

OF_ANY_DATA = ("class_conditional", "flip", "held_out")
"""What may be said of data wherever it comes from."""

OF_LATENTS = frozenset({"prepared", "latent_files"})
"""Kinds of data that may hold latents, whose sizes are not those of images."""

Model = TypeVar("Model", bound=BaseModel)


def load_comparison(source: str | Path, overrides: Sequence[str] | str = ()) -> Comparison:
    """Comparison from its name or a YAML file, with overrides like `budget_images=1000`. Raises ConfigError."""
    raw = read_raw(named(source), "comparisons")
    # Only a mapping can be changed, so a base that is named, or is made of a preset, is read first.
    if isinstance(base := raw.get("base"), str | dict):
        raw["base"] = read_raw(base) if isinstance(base, str) else _on_preset(base)
    for override in listed(overrides):
        raw = apply_override(raw, override)
    return validate(Comparison, raw)


def find_comparison(source: str | Path, overrides: Sequence[str] | str = ()) -> Comparison | None:
    """The comparison of this name or in this YAML file; None if it is a run description, or nothing."""
    source = named(source)
    is_preset = source in list_presets("comparisons")
    if is_preset or (source not in list_presets() and is_file(source) and _is_comparison(read_raw(source))):
        return load_comparison(source, overrides)
    return None


def _is_comparison(raw: dict[str, Any]) -> bool:
    own = Comparison.model_fields.keys() - RunConfig.model_fields.keys()
    return mark_of(raw)[0] == "rows" or ("space" not in raw and len(own & raw.keys()) > 1)


def mark_of(raw: dict[str, Any]) -> tuple[str, str]:
    """Which of MARKS a description has, and how it spells it: with a base, it may be misspelt. Empty if none."""
    for mark in MARKS:
        if mark in raw:
            return mark, mark
    if "base" in raw:
        for key in raw:
            known = key in RunConfig.model_fields or key in Comparison.model_fields
            if not known and (near := nearest(str(key), MARKS)):
                return near, str(key)
    return "", ""


def load_config(source: str | Path, overrides: Sequence[str] | str = ()) -> RunConfig:
    """RunConfig from a preset's name or a YAML file, with overrides like `training.batch_size=64`, one or several.

    Raises ConfigError, one sentence naming the field, the value and what is allowed.
    """
    source = named(source)
    raw = before = read_raw(source)
    for override in listed(overrides):
        raw = apply_override(raw, override)
    _tell_what_is_dropped(before, raw, source)
    _require_a_run(raw)
    config = validate(RunConfig, raw)
    check_reference(config)
    return config


def named(source: str | Path) -> str:
    """A preset's name or a file's, however Python holds it. ConfigError for what is neither."""
    if not isinstance(source, str | Path):
        raise ConfigError(f"{short(source)} is no description; give a preset's name or a YAML file")
    return str(source)


def listed(overrides: Sequence[str] | str) -> Sequence[str]:
    """A single one is a list of one."""
    return [overrides] if isinstance(overrides, str) else overrides


def check_reference(config: RunConfig) -> None:
    """ConfigError if the description says that the reference's images are of another size than the data's.

    What may be latents says nothing of its images before it is read. Grey images are compared with coloured ones.
    """
    data, reference = config.data, config.reference
    if reference is None or {data.kind, reference.kind} & OF_LATENTS or data.image_size == reference.image_size:
        return
    raise ConfigError(
        f"reference.image_size is {reference.image_size} and data.image_size {data.image_size}; a score compares "
        "images of one size"
    )


def _require_a_run(raw: dict[str, Any]) -> None:
    """ConfigError if it is another kind of description; a study's base would be called a mistake before its space."""
    mark, key = mark_of(raw)
    if mark:
        hint = OTHER_WORDS[mark]
        if key != mark:
            hint = f"; did you mean {mark!r}? {hint.strip('; ').capitalize()}"
        raise ConfigError(f"{key}: unknown key{hint}")


def read_raw(source: str, folder: str = "") -> dict[str, Any]:
    """The YAML mapping behind a name (of a preset, or of what a folder of presets holds) or a path."""
    presets = list_presets(folder)
    if source.endswith((".yaml", ".yml")) or is_file(source):
        text = _read_file(source, presets)
        _require_as_recorded(Path(source))
    elif source in presets:
        text = text_of(source, folder)
    else:
        raise ConfigError(f"no preset or file is called {short(source)}{suggest(source, presets)}")
    raw = parse_yaml(text, source)
    if not isinstance(raw, dict):
        held = "nothing" if raw is None else "a list" if isinstance(raw, list) else f"only {short(raw)}"
        raise ConfigError(f"{source} must hold a mapping of sections; it holds {held}")
    if isinstance(raw.get("evaluation"), str):  # so that overrides can change single fields of a named protocol
        raw["evaluation"] = {"name": raw["evaluation"]}
    return _on_preset(raw)


def _on_preset(raw: dict[str, Any]) -> dict[str, Any]:
    """The preset that `preset: NAME` starts from, with everything else that is said merged into it."""
    own = {key: value for key, value in raw.items() if key != PRESET}
    name = raw.get(PRESET)
    if name is None:
        return own
    # Of any kind: whoever reads the file may not know yet which kind it is.
    folders = {preset: folder for folder in FOLDERS for preset in list_presets(folder)}
    if not isinstance(name, str) or name not in folders:
        raise ConfigError(f"preset is {short(name)}, which is none{suggest(str(name), folders)}")
    preset = read_raw(name, folders[name])
    merged: dict[str, Any] = merge(preset, own)
    _tell_what_is_dropped(preset, merged, name)
    return merged


def _tell_what_is_dropped(before: dict[str, Any], after: dict[str, Any], source: str) -> None:
    """Other data starts afresh, and so does what was said of how it is trained on; without a word few would notice."""
    old, new = before.get("data"), after.get("data")
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return
    dropped = {key: old[key] for key in OF_ANY_DATA if old.get(key) and key not in new}
    if dropped:
        listed = ", ".join(f"{key}: {str(value).lower()}" for key, value in dropped.items())
        logger.warning("data replaces that of %s, and with it %s; say so again to keep it", source, listed)


def is_file(source: str) -> bool:
    """Whether there is such a file; what no file can be called is none."""
    try:
        return Path(source).is_file()
    except (OSError, ValueError):
        return False


def _read_file(source: str, presets: Sequence[str]) -> str:
    if not is_file(source):
        raise ConfigError(f"config file {short(source)} does not exist; presets are: {', '.join(presets)}")
    try:
        with Path(source).open(encoding="utf-8-sig", newline=None) as file:
            # One more than parse_yaml takes, so that it says so.
            return file.read(MAX_CHARACTERS + 1)
    except UnicodeDecodeError:
        raise ConfigError(f"config file {source} is not text in UTF-8; save it as such") from None
    except OSError as error:
        raise ConfigError(f"config file {source} cannot be read ({error.strerror}); mend that first") from None


def _require_as_recorded(file: Path) -> None:
    """ConfigError if the description lies in a run's directory and is not the one that the run was made of."""
    run = RunDir(file.absolute().parent)
    if file.absolute() != run.config or not run.plan.is_file():
        return
    try:
        recorded = load_json(run.plan).get(CONFIG_SHA256)
    except (OSError, *UNREADABLE):
        logger.warning("%s is damaged, so whether %s is what the run was made of is not known", run.plan, file)
        return
    if recorded is not None and sha256_file(file) != recorded:
        raise ConfigError(
            f"{file} was changed since the run was made of it; to train what it says now, copy it out of "
            f"{run.path.name} and train the copy"
        )


def apply_override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy of raw with one `dotted.path=yaml-value` applied.

    A mapping changes the fields it names, as in a file that starts from a preset; setting a new `kind` starts its
    section afresh.
    """
    if not isinstance(override, str):
        raise ConfigError(f"override {short(override)} is not of the form section.key=value")
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    shown = short(override)
    if not equals or not all(keys) or len(keys) > MAX_DEPTH:
        raise ConfigError(f"override {shown} is not of the form section.key=value")
    value = parse_yaml(text, f"override {shown}")
    changed: dict[str, Any] = _set(raw, keys, value, override)
    return changed


def apply_value(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The same for a value that needs no parsing."""
    changed: dict[str, Any] = _set(raw, path.split("."), value, path)
    return changed


def _set(node: Any, keys: Sequence[str], value: Any, override: str) -> Any:
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not (re.fullmatch("[0-9]{1,9}", key) and int(key) < len(node)):
            raise ConfigError(f"override {short(override)}: {short(key)} is not an index below {len(node)}")
        index = int(key)
        return [
            *node[:index],
            _set(node[index], rest, value, override) if rest else merge(node[index], value),
            *node[index + 1 :],
        ]
    mapping = node if isinstance(node, dict) else {}
    if not rest and key == "evaluation" and isinstance(value, str):
        # Spelt out, so that later ones can change single fields; a name alone is that protocol, unchanged.
        return mapping | {key: {"name": value}}
    if not rest:
        is_new_kind = key == "kind" and value != mapping.get("kind")
        return {"kind": value} if is_new_kind else mapping | {key: merge(mapping.get(key), value)}
    return mapping | {key: _set(mapping.get(key), rest, value, override)}


def validate(model: type[Model], raw: Any) -> Model:
    """Build the model or raise ConfigError about the first thing that is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain_error(model, error)) from None
