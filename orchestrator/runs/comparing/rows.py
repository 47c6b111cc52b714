"""The rows of a comparison before anything is trained: what each would be, and why one could not be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.runs.data import as_configured, check_network, plan_as_far_as_known
from workloads.config import ProtocolConfig, RunConfig
from workloads.config.comparison import Comparison, Published
from workloads.errors import ConfigError
from workloads.models.initial import resolve_initial
from workloads.pipeline import check_score

NO_START = "nothing"


@dataclass(frozen=True)
class PlannedRow:
    """One row of a comparison: what would run."""

    name: str
    plan: Plan
    start: str
    """What its networks start from, in words."""

    published: Published | None

    def to_json(self) -> dict[str, Any]:
        """One entry of `rememe plan --json` of a comparison."""
        published = None if self.published is None else self.published.model_dump(mode="json", exclude_defaults=True)
        return {"row": self.name, "start": self.start, "published": published, **self.plan.to_json()}


def plan_rows(comparison: Comparison, runs_dir: Path) -> list[PlannedRow]:
    """Every row for the first seed. ConfigError, with the row's name, if one could not be compared."""
    check_rows(comparison, is_to_run=False)
    seed = comparison.seeds[0]
    return [
        PlannedRow(
            name,
            plan_as_far_as_known(comparison.run(name, seed), runs_dir, row=name),
            _start(comparison, name),
            comparison.published.get(name),
        )
        for name in comparison.row_names
    ]


def check_rows(comparison: Comparison, *, is_to_run: bool = True) -> None:
    """A mistake in the last row is to be found before the first is trained. ConfigError with the row's name.

    Nothing is written, and no data is read. is_to_run: what trains and scores must be here too, weights of starts and
    of metrics; a plan is made without.
    """
    base = comparison.base_run(comparison.seeds[0])
    _check_named("base", base, is_to_run=is_to_run)
    for row in comparison.rows:
        config = comparison.row_run(row, comparison.seeds[0], None)
        if _measured_by(config) != _measured_by(base):
            raise ConfigError(
                f"rows.{row} has another evaluation than the base, so their scores could not be compared; leave it out"
            )
        _check_named(f"rows.{row}", config, is_to_run=is_to_run)
        if comparison.starts_from_base(row):
            _check_same_network(row, config, base)


def _check_named(name: str, config: RunConfig, *, is_to_run: bool) -> None:
    try:
        _check_alone(config, is_to_run=is_to_run)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _check_alone(config: RunConfig, *, is_to_run: bool) -> None:
    check_network(config)
    if not is_to_run:
        return
    check_score(config)
    spec = as_configured(config.data)
    # Weights that are named must be here, and of these networks as far as those are known without the data.
    if config.initial_weights is not None:
        resolve_initial(config.initial_weights, config.initial_conversion)
        if spec.num_classes is not None or not config.data.class_conditional:
            make_plan(config, spec)


def published_notes(comparison: Comparison) -> list[str]:
    """Where the paper's figures are from, and why they, or ours, are not the same: a line each."""
    if not comparison.published:
        return []
    notes = [f"  {row}: {published.note}" for row, published in comparison.published.items() if published.note]
    return [f"paper: {comparison.source}", *notes]


def _start(comparison: Comparison, row: str) -> str:
    if comparison.starts_from_base(row):
        return comparison.base_name
    own = comparison.run(row, comparison.seeds[0]).initial_weights
    return NO_START if own is None else own.name


def _check_same_network(row: str, config: RunConfig, base: RunConfig) -> None:
    """The base's weights must fit each of the row's networks as they are."""
    otherwise = "say initial_weights: null for a row that starts from nothing, or name its own start there"
    if base.strategy.count != 1 or base.strategy.growable is not None:
        raise ConfigError(
            f"rows.{row} starts from the base's weights, but base.strategy.kind is {base.strategy.kind}, not one "
            f"network; {otherwise}"
        )
    shapes = [as_configured(one.data).input_shape for one in (config, base)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"rows.{row} starts from the base's weights, but its data are {shapes[0]}, the base's "
            f"{shapes[1]}; {otherwise}"
        )
    for model in _networks(config):
        if model != base.model:
            raise ConfigError(
                f"rows.{row} starts from the base's weights, but its network is another ({_difference(model, base)}); "
                f"{otherwise}"
            )


def _networks(config: RunConfig) -> Sequence[Any]:
    return config.strategy.architectures or (config.model,)


def _difference(model: Any, base: RunConfig) -> str:
    """The first field in which it differs, with both values."""
    if model.kind != base.model.kind:
        return f"model.kind {model.kind}, not {base.model.kind}"
    own, other = model.model_dump(mode="json"), base.model.model_dump(mode="json")
    field = next(name for name in own if own[name] != other[name])
    return f"model.{field} {own[field]}, not {other[field]}"


def _measured_by(config: RunConfig) -> ProtocolConfig:
    """Whatever it is called."""
    return config.evaluation.model_copy(update={"name": ""})
