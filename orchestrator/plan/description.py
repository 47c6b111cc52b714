"""A run description outside: as a file, and as flat names and values."""

from typing import Any

import yaml

from workloads.config import RunConfig
from workloads.config.base import StrictConfig


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as a file `rememe train` takes."""
    # As JSON first: safe_dump refuses paths and fractions.
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: StrictConfig) -> dict[str, object]:
    """Dotted names to values, for instance strategy.experts.0.specialisation; a list of scalars is one value."""
    flat: dict[str, object] = {}

    def visit(prefix: str, node: Any) -> None:
        # An empty mapping has no children that would stand for it, so it is a value.
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
