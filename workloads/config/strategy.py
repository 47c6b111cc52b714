"""How experts come to be: one network, several alike, or several of different architecture."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workloads.config.base import StrictConfig
from workloads.config.execution import Resources
from workloads.config.intervals import uniform_cuts
from workloads.config.models import AnyModel

Probability = Annotated[float, Field(ge=0, le=1)]
Cuts = tuple[int, ...]


class Single(StrictConfig):
    """One network for all timesteps: the baseline."""

    kind: Literal["single"] = "single"

    def resolve_cuts(self, num_timesteps: int) -> Cuts:  # noqa: ARG002
        return ()


class Independent(StrictConfig):
    """N networks of the same architecture, one per interval (MEME's "multi-expert" baseline)."""

    kind: Literal["independent"] = "independent"

    num_experts: int | None = Field(None, ge=1)
    """Number of equal intervals; or give cuts."""

    cuts: Cuts | None = None
    """Interior cut points, in timesteps, rising. N - 1 cuts make N experts."""

    specialisation: Probability | tuple[Probability, ...] = 1.0
    """Probability that a training timestep comes from the expert's own interval, for all experts or one each;
    1 is a hard interval."""

    @model_validator(mode="after")
    def _check_count(self) -> "Independent":
        if (self.num_experts is None) == (self.cuts is None):
            raise ValueError("give either num_experts or cuts")
        count = self.num_experts if self.cuts is None else len(self.cuts) + 1
        if isinstance(self.specialisation, tuple) and len(self.specialisation) != count:
            raise ValueError(f"specialisation has {len(self.specialisation)} values for {count} experts")
        return self

    def resolve_cuts(self, num_timesteps: int) -> Cuts:
        if self.cuts is not None:
            return self.cuts
        assert self.num_experts is not None
        return uniform_cuts(self.num_experts, num_timesteps)


class MemeExpert(StrictConfig):
    """One expert of a MEME ensemble; expert 0 is nearest the clean image."""

    specialisation: Probability
    """p_n: with this probability a training timestep is drawn from the expert's own interval, otherwise from the
    whole range (soft interval assignment, MEME arXiv:2306.04990)."""

    model: AnyModel
    """This expert's architecture. In a file, give just what differs from the run's `model`."""

    resources: Resources | None = None
    """What this expert asks of the cluster; None: execution.resources."""


class Meme(StrictConfig):
    """N networks, each with its own architecture and soft interval (MEME, arXiv:2306.04990)."""

    kind: Literal["meme"] = "meme"

    cuts: Cuts | None = None
    """Interior cut points, in timesteps, rising; one fewer than experts. None: equal intervals, as in the paper."""

    experts: tuple[MemeExpert, ...] = Field(min_length=1)
    """From the clean end to the noisy end."""

    @model_validator(mode="after")
    def _check_count(self) -> "Meme":
        if self.cuts is not None and len(self.cuts) + 1 != len(self.experts):
            raise ValueError(
                f"{len(self.cuts)} cuts make {len(self.cuts) + 1} intervals, but there are {len(self.experts)} experts"
            )
        return self

    def resolve_cuts(self, num_timesteps: int) -> Cuts:
        return uniform_cuts(len(self.experts), num_timesteps) if self.cuts is None else self.cuts


AnyStrategy = Annotated[Single | Independent | Meme, Field(discriminator="kind")]


def merge(base: Any, update: Any) -> Any:
    """Nested mappings merged key by key; anything else is replaced. A new `kind` starts its section afresh."""
    if not (isinstance(base, dict) and isinstance(update, dict)):
        return update
    if "kind" in update and update["kind"] != base.get("kind"):
        return update
    return base | {key: merge(base.get(key), value) for key, value in update.items()}
