"""A study: a base run description, what may vary in it, and how many configurations to look at. Pure."""

import random
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from orchestrator.search.space import KINDS, MAX_TRIES, AnyDistribution, Condition, Values
from workloads.config import RunConfig
from workloads.config.base import StrictConfig
from workloads.config.explain import suggest
from workloads.config.load import apply_value, read_raw, validate
from workloads.errors import ConfigError


class Study(StrictConfig):
    """Read from YAML like a run description; `rememe plan` says what it would take."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study."""

    base: str | dict[str, Any]
    """What does not vary: a preset's name, a file, or a run description."""

    space: dict[str, Any] = Field(min_length=1)
    """Distribution of each field that varies, by dotted path; `*` stands for every element of a list."""

    conditions: tuple[Condition, ...] = ()
    """What a configuration must satisfy, for instance strategy.num_bases < strategy.num_experts."""

    sampler: Literal["grid", "random"] = "random"
    """grid: every combination; random: independent draws."""

    num_configurations: int | None = Field(None, ge=1)
    """How many to look at. None: all of a grid."""

    seed: int = 0
    """Of the random sampler."""

    @field_validator("space")
    @classmethod
    def _parse_space(cls, space: dict[str, Any]) -> dict[str, Any]:
        return {path: _distribution(path, raw) for path, raw in space.items()}

    def configurations(self) -> Iterator[tuple[Values, RunConfig]]:
        """Distinct points of the space with their run descriptions, in the study's order.

        ConfigError if a point is no valid run description, or if no point satisfies the conditions.
        """
        base = read_raw(self.base) if isinstance(self.base, str) else self.base
        limit = self.num_configurations
        if self.sampler == "random" and limit is None:
            raise ConfigError("num_configurations: missing; a random search needs to know when to stop")
        found: set[str] = set()
        for values in self._grid(base) if self.sampler == "grid" else self._draws(base):
            raw = _applied(base, values)
            if str(values) in found or not all(condition.holds(raw) for condition in self.conditions):
                continue
            found.add(str(values))
            yield values, self._run(raw, len(found) - 1)
            if limit is not None and len(found) >= limit:
                return
        if not found:
            listed = ", ".join(map(str, self.conditions))
            raise ConfigError(f"no configuration of study {self.name} satisfies its conditions: {listed}")

    def _run(self, raw: dict[str, Any], index: int) -> RunConfig:
        try:
            return validate(RunConfig, raw | {"name": f"{self.name}-{index:04d}"})
        except ConfigError as error:
            raise ConfigError(f"study {self.name}, configuration {index}: {error}") from None

    def _grid(self, base: dict[str, Any]) -> Iterator[Values]:
        points: list[Values] = [{}]
        for path, distribution in self.space.items():
            options = distribution.grid(len(_elements(base, path))) if "*" in path else distribution.grid()
            if options is None:
                raise ConfigError(f"space.{path} is continuous; a grid needs choice, int, boundaries or each")
            spread = [_spread(base, path, option) for option in options]
            points = [point | values for point in points for values in spread]
        return iter(points)

    def _draws(self, base: dict[str, Any]) -> Iterator[Values]:
        rng = random.Random(self.seed)
        for _ in range(MAX_TRIES):
            point: Values = {}
            for path, distribution in self.space.items():
                drawn = distribution.draw(rng, len(_elements(base, path))) if "*" in path else distribution.draw(rng)
                point |= _spread(base, path, drawn)
            yield point


def _distribution(path: str, raw: Any) -> AnyDistribution:
    kind = next((key for key in raw if key in KINDS), None) if isinstance(raw, dict) else None
    if kind is None:
        word = next(iter(raw)) if isinstance(raw, dict) and raw else repr(raw)
        raise ValueError(f"space.{path} has no distribution: {word!r}{suggest(str(word), KINDS)}")
    if (kind == "each") != ("*" in path):
        raise ValueError(f"space.{path}: a path with * takes each, and each takes a path with *")
    try:
        return KINDS[kind].model_validate(raw)
    except ValidationError as error:
        details = error.errors()[0]
        reason = details["ctx"]["error"] if details["type"] == "value_error" else details["msg"]
        raise ValueError(f"space.{path}: {reason}") from None


def _elements(base: dict[str, Any], path: str) -> list[Any]:
    """The list that `*` in a path stands for."""
    node: Any = base
    for key in path.split(".*", maxsplit=1)[0].split("."):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, list) or not node:
        raise ConfigError(f"space.{path}: the base has no list at {path.split('.*', maxsplit=1)[0]}")
    return node


def _spread(base: dict[str, Any], path: str, value: Any) -> Values:
    """A path with `*` becomes one per element."""
    if "*" not in path:
        return {path: value}
    before, _, after = path.partition("*")
    return {f"{before}{index}{after}": value[index] for index in range(len(_elements(base, path)))}


def _applied(base: dict[str, Any], values: Values) -> dict[str, Any]:
    raw = base
    for path, value in values.items():
        raw = apply_value(raw, path, value)
    return raw
