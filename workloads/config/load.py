"""Read a run description: a preset or YAML file, then dotted overrides, then validation with one clear sentence."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from workloads.config.comparison import Comparison
from workloads.config.explain import explain_error, suggest
from workloads.config.run import RunConfig
from workloads.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def list_presets(folder: str = "") -> list[str]:
    """Names of the presets in the package, or of what one of its folders holds (comparisons, studies)."""
    files = resources.files("workloads.presets").joinpath(folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_comparison(source: str, overrides: Sequence[str] = ()) -> Comparison:
    """Comparison from its name or a YAML file, with overrides like `budget_images=1000`. Raises ConfigError."""
    raw = read_raw(source, "comparisons")
    for override in overrides:
        raw = apply_override(raw, override)
    return validate(Comparison, raw)


def load_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """RunConfig from a preset's name or a YAML file, with overrides like `training.batch_size=64`.

    Raises ConfigError, one sentence naming the field, the value and what is allowed.
    """
    raw = read_raw(source)
    for override in overrides:
        raw = apply_override(raw, override)
    return validate(RunConfig, raw)


def read_raw(source: str, folder: str = "") -> dict[str, Any]:
    """The YAML mapping behind a name (of a preset, or of what a folder of presets holds) or a path."""
    presets = list_presets(folder)
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        if not path.is_file():
            raise ConfigError(f"config file {source} does not exist; presets are: {', '.join(presets)}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"config file {source} is not text in UTF-8; save it as such") from None
    elif source in presets:
        text = resources.files("workloads.presets").joinpath(folder, f"{source}.yaml").read_text()
    else:
        raise ConfigError(f"no preset or file is called {source!r}{suggest(source, presets)}")
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{source} must hold a mapping of sections; it holds {type(raw).__name__}")
    if isinstance(raw.get("evaluation"), str):  # so that overrides can change single fields of a named protocol
        raw["evaluation"] = {"name": raw["evaluation"]}
    return dict(raw)


def apply_override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy of raw with one `dotted.path=yaml-value` applied; setting a new `kind` starts its section afresh."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    changed: dict[str, Any] = _set(raw, keys, value, override)
    return changed


def apply_value(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The same for a value that needs no parsing."""
    changed: dict[str, Any] = _set(raw, path.split("."), value, path)
    return changed


def _set(node: Any, keys: Sequence[str], value: Any, override: str) -> Any:
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not (key.isdigit() and int(key) < len(node)):
            raise ConfigError(f"override {override!r}: {key!r} is not an index below {len(node)}")
        index = int(key)
        return [
            *node[:index],
            _set(node[index], rest, value, override) if rest else value,
            *node[index + 1 :],
        ]
    mapping = node if isinstance(node, dict) else {}
    if not rest:
        return {"kind": value} if key == "kind" and value != mapping.get("kind") else mapping | {key: value}
    return mapping | {key: _set(mapping.get(key), rest, value, override)}


def validate(model: type[Model], raw: Any) -> Model:
    """Build the model or raise ConfigError about the first thing that is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain_error(model, error)) from None
