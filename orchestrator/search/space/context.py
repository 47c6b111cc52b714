"""What a distribution may know besides its own numbers: the run description so far. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workloads.config.base import merge
from workloads.config.diffusion import DiffusionConfig
from workloads.config.load import validate
from workloads.errors import ConfigError


@dataclass(frozen=True)
class Context:
    """The run description so far, which is the base with the values drawn before."""

    raw: Mapping[str, Any]

    @property
    def diffusion(self) -> DiffusionConfig:
        """Timesteps and schedule."""
        try:
            return validate(DiffusionConfig, self.raw.get("diffusion", {}))
        except ConfigError as error:
            raise ConfigError(f"diffusion: {error}") from None

    def model(self, section: str) -> Any:
        """The mapping at `model`, or at `strategy.experts.N.model` completed from it."""
        model = self.raw.get("model")
        if section == "model":
            return model
        # An expert of a MEME writes down only what differs from the common model.
        expert = self.raw["strategy"]["experts"][int(section.split(".")[2])]
        return merge(model, expert.get("model", {})) if isinstance(expert, dict) else None

    def spread(self, path: str) -> list[str]:
        """A path with `*` becomes one per element of the list it stands for. ConfigError if there is none."""
        before, star, after = path.partition("*")
        if not star:
            return [path]
        node: Any = self.raw
        for key in before.rstrip(".").split("."):
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, list) or not node:
            raise ConfigError(f"space.{path}: the base has no list at {before.rstrip('.')}")
        return [f"{before}{index}{after}" for index in range(len(node))]
