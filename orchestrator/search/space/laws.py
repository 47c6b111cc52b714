"""Distributions over experts: a value each, and the boundaries between them. Pure."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.search.space.context import Context
from orchestrator.search.space.fields import Options
from orchestrator.search.space.points import Values
from orchestrator.search.space.sources import NumberSource
from workloads.config.base import Flag, StrictConfig, Whole
from workloads.config.diffusion import DiffusionConfig
from workloads.config.explain import suggest
from workloads.config.intervals import check_cuts, uniform_cuts
from workloads.errors import ConfigError

Option = TypeVar("Option")

Positive = Annotated[Whole, Field(ge=1)]

LAWS = ("free", "equal_t", "equal_log_snr")


class Each(StrictConfig):
    """For a path with `*`: one of several values for each element, for instance split ratios for each expert."""

    each: Options
    monotone: Flag = False
    """Never fall back to an earlier value as the index rises (MEME's design rule: attention rises with t)."""

    def draw(self, source: NumberSource, path: str, context: Context) -> Values:
        places = context.spread(path)
        if self.monotone:
            return dict(zip(places, draw_rising(source, path, self.each, len(places)), strict=True))
        return {place: source.category(place, self.each) for place in places}

    def grid(self, path: str, context: Context) -> Iterable[Values]:
        places = context.spread(path)
        sequences: Iterable[tuple[Any, ...]] = itertools.product(self.each, repeat=len(places))
        if self.monotone:
            sequences = itertools.combinations_with_replacement(self.each, len(places))
        return (dict(zip(places, sequence, strict=True)) for sequence in sequences)


def draw_rising(source: NumberSource, name: str, options: Sequence[Option], count: int) -> list[Option]:
    """One of the sequences that never fall back to an earlier option, by "stars and bars" as likely as any other."""
    chosen = source.combination(name, len(options) + count - 1, count)
    return [options[place - index] for index, place in enumerate(chosen)]


def _listed(raw: Any) -> Any:
    # A single one is written without brackets.
    return raw if isinstance(raw, list | tuple) else (raw,)


class BoundariesLaw(StrictConfig):
    """By a law, on multiples of a step so that configurations share experts; or from a list."""

    num_experts: Annotated[tuple[Positive, ...], BeforeValidator(_listed)] = ()
    """Number of intervals, or several of which one is drawn."""

    law: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] = ("free",)
    """free: every set of cuts equally likely; equal_t: intervals of equal length; equal_log_snr: intervals over each of
    which log(abar / (1 - abar)) falls equally far. Several: one is drawn."""

    step: Positive = 50
    """Cuts are multiples of it, in timesteps."""

    cuts: tuple[tuple[Whole, ...], ...] = ()
    """Instead of a law: the sets of cuts to choose from."""

    @model_validator(mode="after")
    def _check(self) -> "BoundariesLaw":
        if bool(self.num_experts) == bool(self.cuts):
            raise ValueError("give either num_experts or cuts")
        if self.cuts and self.model_fields_set & {"law", "step"}:
            raise ValueError("law and step have no effect on given cuts; leave them out")
        for law in self.law:
            if law not in LAWS:
                raise ValueError(f"law is {law!r}{suggest(law, LAWS)}")
        return self


class Boundaries(StrictConfig):
    """The cuts between experts' intervals; T and the schedule are the run's."""

    boundaries: BoundariesLaw

    def draw(self, source: NumberSource, path: str, context: Context) -> Values:
        law, diffusion = self.boundaries, context.diffusion
        if law.cuts:
            return {path: list(source.category(path, self._checked_cuts(path, diffusion)))}
        num_experts = _one_of(source, f"{path}.num_experts", law.num_experts)
        kind = _one_of(source, f"{path}.law", law.law)
        places = self._places(path, diffusion, num_experts)
        if kind == "free":
            # A name per number of experts: the first of one cut and the first of three are different things.
            chosen = source.combination(f"{path}.{num_experts}", len(places), num_experts - 1)
            return {path: [places[index] for index in chosen]}
        return {path: list(_equal_cuts(kind, num_experts, places, diffusion))}

    def grid(self, path: str, context: Context) -> Iterator[Values]:
        law, diffusion = self.boundaries, context.diffusion
        for cuts in self._checked_cuts(path, diffusion):
            yield {path: list(cuts)}
        for num_experts in law.num_experts:
            places = self._places(path, diffusion, num_experts)
            found: Iterable[tuple[int, ...]] = itertools.combinations(places, num_experts - 1)
            if "free" not in law.law:  # of which the others are special cases
                found = sorted({_equal_cuts(kind, num_experts, places, diffusion) for kind in law.law})
            for cuts in found:
                yield {path: list(cuts)}

    def _checked_cuts(self, path: str, diffusion: DiffusionConfig) -> tuple[tuple[int, ...], ...]:
        for cuts in self.boundaries.cuts:
            try:
                check_cuts(cuts, diffusion.num_timesteps)
            except ValueError as error:
                raise ConfigError(f"space.{path}: {error}") from None
        return self.boundaries.cuts

    def _places(self, path: str, diffusion: DiffusionConfig, num_experts: int) -> range:
        """Where a cut may lie."""
        step = self.boundaries.step
        places = range(step, diffusion.num_timesteps, step)
        if num_experts - 1 > len(places):
            raise ConfigError(
                f"space.{path}: {num_experts - 1} cuts do not fit on the {len(places)} multiples of step {step} "
                f"inside (0, {diffusion.num_timesteps}); make the step smaller"
            )
        return places


def _one_of(source: NumberSource, name: str, options: Sequence[Option]) -> Option:
    drawn: Option = options[0] if len(options) == 1 else source.category(name, options)
    return drawn


def _equal_cuts(kind: str, num_experts: int, places: range, diffusion: DiffusionConfig) -> tuple[int, ...]:
    """The law's own cuts moved to the nearest places; one that is taken gives way to the next."""
    wanted: Sequence[float] = uniform_cuts(num_experts, diffusion.num_timesteps)
    if kind == "equal_log_snr":
        from workloads.diffusion.log_snr import log_snr_cuts

        wanted = log_snr_cuts(diffusion, num_experts)
    found: list[int] = []
    lowest = 0
    for index, cut in enumerate(wanted):
        nearest = math.floor(cut / places.step + 0.5) - 1
        highest = len(places) - (len(wanted) - index)  # leaves room for those after
        place = min(max(nearest, lowest), highest)
        found.append(places[place])
        lowest = place + 1
    return tuple(found)
