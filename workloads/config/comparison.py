"""Several strategies under one budget and one protocol, from one start or from their own, as papers compare them."""

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from workloads.config.base import Name, Real, Seeds, StrictConfig, Whole, merge
from workloads.config.explain import explain_error, suggest
from workloads.config.run import RunConfig
from workloads.errors import ConfigError


class Published(StrictConfig):
    """What a paper prints of a row."""

    fid: Real | None = None
    """As printed; lower is better."""

    inception_score: Real | None = None
    """As printed; higher is better."""

    precision: Real | None = None
    """As printed (arXiv:1904.06991)."""

    recall: Real | None = None
    """As printed (arXiv:1904.06991)."""

    num_parameters: Real | None = None
    """As printed: of one network, unless the note says otherwise."""

    macs: Real | None = None
    """As printed, of one denoising step of one image."""

    note: str = ""
    """One line: why its figures, or ours, are not the same."""


class Comparison(StrictConfig):
    """A base network, and what becomes of it, or of other networks, with the same number of training images."""

    name: Name
    """Name of the comparison."""

    base: dict[str, Any]
    """Run description of the first row's network. Rows are changes of it, and start from its weights unless they say
    otherwise; then its strategy is single."""

    base_name: Name = "base"
    """What the first row is called."""

    budget_images: Whole = Field(ge=1)
    """Images each row's networks see after their start. The base has its own, in base.training.images."""

    budget_for: Literal["row", "network"] = "row"
    """row: N experts trained alone get an N-th of it each; network: each gets all of it, as where experts take the
    place of a network N times as large."""

    training: dict[str, Any] = Field(default_factory=dict)
    """What the rows' training changes of the base's."""

    rows: dict[str, dict[str, Any]] = Field(min_length=1)
    """By name: what each row changes of the base's run description, at least its strategy. `initial_weights` is a start
    of its own (null: none, so that its architecture is free), `budget_images` a budget of its own."""

    seeds: Seeds = (0, 1)
    """Each row is trained once per seed, base included; the spread is the error bar."""

    against: Name | None = None
    """The row whose score is subtracted from every other's, seed by seed; None: no such column."""

    source: str = ""
    """The paper and table that `published` quotes."""

    published: dict[str, Published] = Field(default_factory=dict)
    """By row: the paper's figures, to be shown beside ours."""

    @model_validator(mode="after")
    def _check_names(self) -> "Comparison":
        if self.base_name in self.rows:
            raise ValueError(f"rows.{self.base_name} has the name of the base's row; change base_name")
        names = [name for name in (self.against, *self.published) if name is not None]
        for name in names:
            if name not in self.row_names:
                raise ValueError(f"{name!r} is no row{suggest(name, self.row_names)}")
        return self

    @property
    def row_names(self) -> tuple[str, ...]:
        """All rows in order, the base's first."""
        return (self.base_name, *self.rows)

    def starts_from_base(self, row: str) -> bool:
        """Whether a row begins with the base's weights; the base itself does not."""
        return row in self.rows and "initial_weights" not in self.rows[row]

    def run(self, row: str, seed: int, start: str | None = None) -> RunConfig:
        """Any row's run; start: the base network's weights."""
        return self.base_run(seed) if row == self.base_name else self.row_run(row, seed, start)

    def base_run(self, seed: int) -> RunConfig:
        """The base network's run."""
        return self._run("base", self.base_name, {"seed": seed})

    def row_run(self, row: str, seed: int, initial_weights: str | None) -> RunConfig:
        """A row's run, from the base network of the same seed unless the row has a start of its own."""
        own = {key: value for key, value in self.rows[row].items() if key != "budget_images"}
        changes = merge({"training": self.training}, own) | {"seed": seed}
        if self.starts_from_base(row):
            # Of the base network, which has been converted already.
            changes |= {"initial_weights": initial_weights, "initial_conversion": None}
        else:
            changes.setdefault("initial_conversion", None)
        config = self._run(f"rows.{row}", row, changes)
        # Last: the budget is the comparison's, whatever a row says of its training.
        images = self._budget(row) // (config.strategy.num_jobs if self.budget_for == "row" else 1)
        return config.model_copy(update={"training": config.training.model_copy(update={"images": images})})

    def _budget(self, row: str) -> int:
        budget = self.rows[row].get("budget_images", self.budget_images)
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise ConfigError(f"rows.{row}.budget_images is {budget!r}; it must be a whole number of at least 1")
        return budget

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
