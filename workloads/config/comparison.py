"""Several strategies from one start, under one budget and one protocol, as the tables of Remix-DiT compare them."""

from typing import Any

from pydantic import Field, ValidationError

from workloads.config.base import Name, StrictConfig, Whole, merge
from workloads.config.explain import explain_error
from workloads.config.run import RunConfig
from workloads.errors import ConfigError


class Comparison(StrictConfig):
    """A base network, and what becomes of it by each strategy with the same number of training images in total."""

    name: Name
    """Name of the comparison."""

    base: dict[str, Any]
    """Run description of the base network (strategy single), the first row."""

    budget_images: Whole = Field(ge=1)
    """Images each row's networks see together after the base: N experts trained alone get an N-th each."""

    training: dict[str, Any] = Field(default_factory=dict)
    """What the rows' training changes of the base's."""

    rows: dict[str, dict[str, Any]] = Field(min_length=1)
    """By name: what each row changes of the base's run description, at least its strategy."""

    seeds: tuple[Whole, ...] = Field((0, 1), min_length=1)
    """Each row is trained once per seed, base included; the spread is the error bar."""

    def base_run(self, seed: int) -> RunConfig:
        """The base network's run."""
        return self._run("base", "base", {"seed": seed})

    def row_run(self, row: str, seed: int, initial_weights: str | None) -> RunConfig:
        """A row's run, from the base network of the same seed."""
        changes = merge({"training": self.training}, self.rows[row]) | {"seed": seed}
        # Of the base network, which has been converted already.
        changes |= {"initial_weights": initial_weights, "initial_conversion": None}
        config = self._run(f"rows.{row}", row, changes)
        # Last: the budget is the comparison's, whatever a row says of its training.
        images = self.budget_images // config.strategy.num_jobs
        return config.model_copy(update={"training": config.training.model_copy(update={"images": images})})

    def _run(self, where: str, name: str, changes: dict[str, Any]) -> RunConfig:
        base = self.base | {"strategy": self.base.get("strategy", {"kind": "single"})}
        raw: dict[str, Any] = merge(base, changes)
        raw["name"] = f"{self.name}-{name}-seed{changes['seed']}"
        if isinstance(raw.get("evaluation"), str):
            raw["evaluation"] = {"name": raw["evaluation"]}
        try:
            return RunConfig.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(f"{where}: {explain_error(RunConfig, error)}") from None
