"""How experts come to be: one network, several alike, several of different architecture, or mixtures of bases."""

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


class _Counted(StrictConfig):
    num_experts: int | None = Field(None, ge=1)
    """Number of equal intervals; or give cuts."""

    cuts: Cuts | None = None
    """Interior cut points, in timesteps, rising. N - 1 cuts make N experts."""

    @model_validator(mode="after")
    def _check_either(self) -> "_Counted":
        if (self.num_experts is None) == (self.cuts is None):
            raise ValueError("give either num_experts or cuts")
        return self

    @property
    def count(self) -> int:
        """Number of experts."""
        if self.cuts is not None:
            return len(self.cuts) + 1
        assert self.num_experts is not None
        return self.num_experts

    def resolve_cuts(self, num_timesteps: int) -> Cuts:
        return uniform_cuts(self.count, num_timesteps) if self.cuts is None else self.cuts


class Independent(_Counted):
    """N networks of the same architecture, one per interval (MEME's "multi-expert" baseline)."""

    kind: Literal["independent"] = "independent"

    specialisation: Probability | tuple[Probability, ...] = 1.0
    """Probability that a training timestep comes from the expert's own interval, for all experts or one each;
    1 is a hard interval."""

    @model_validator(mode="after")
    def _check_count(self) -> "Independent":
        if isinstance(self.specialisation, tuple) and len(self.specialisation) != self.count:
            raise ValueError(f"specialisation has {len(self.specialisation)} values for {self.count} experts")
        return self


class Remix(_Counted):
    """K basis networks mixed into N experts in weight space, trained jointly (Remix-DiT, arXiv:2412.05628).

    Expert i has the weights theta_i = sum_k alpha_ik beta_k, with learned coefficients alpha (Eq. 2).
    """

    kind: Literal["remix"] = "remix"

    num_bases: int = Field(4, ge=1)
    """K."""

    mixer: Literal["softmax", "per_layer", "raw", "one_hot", "continuous"] = "softmax"
    """Where coefficients come from. softmax: softmax of one N x K table of logits, the paper's; per_layer: such a table
    for each mixed layer (the paper's "local"); raw: a table as it is; one_hot: the prior, not trained ("oracle");
    continuous: a small network from an interval's middle to logits, so that neighbours share and N is free."""

    mixed: tuple[str, ...] = Field(("*.attn.qkv.*", "*.attn.proj.*", "*.mlp.fc1.*", "*.mlp.fc2.*"), min_length=1)
    """Names of the parameters that bases differ in, with wildcards; all others are shared. The default is the paper's:
    attention and MLP projections with their biases, in a DiT."""

    experts_per_step: int = Field(4, ge=1)
    """Experts trained in one step, each on an equal part of the batch; the draw avoids repeats. The paper has 1 per
    worker. Workers divide them among themselves, so the result does not depend on how many there are."""

    coefficient_learning_rate: float = Field(1e-2, gt=0)
    """Peak learning rate of the coefficients; follows training.lr_schedule."""

    prior_strength: float = Field(1e-4, ge=0)
    """Weight of the cross-entropy to the one-hot prior (Eq. 6) at the start; falls linearly to zero at the end."""

    prior_logit: float = Field(3.0, ge=0)
    """What the prior adds to the standard normal logits at the start."""

    @model_validator(mode="after")
    def _check_bases(self) -> "Remix":
        if self.num_bases > self.count:
            raise ValueError(
                f"num_bases is {self.num_bases}, but {self.count} experts cannot use more than {self.count} bases"
            )
        return self


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


AnyStrategy = Annotated[Single | Independent | Meme | Remix, Field(discriminator="kind")]


def merge(base: Any, update: Any) -> Any:
    """Nested mappings merged key by key; anything else is replaced. A new `kind` starts its section afresh."""
    if not (isinstance(base, dict) and isinstance(update, dict)):
        return update
    if "kind" in update and update["kind"] != base.get("kind"):
        return update
    return base | {key: merge(base.get(key), value) for key, value in update.items()}
