"""How experts come to be: one network, several alike, several of different architecture, or mixtures of bases.

A new strategy is a class here and its name in AnyStrategy at the end; if its jobs are of a new kind, that kind is a
class here too, and its trainer a line in workloads/training/trainers.py.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from workloads.config.base import GrownConfig, Real, StrictConfig, Whole
from workloads.config.execution import ExecutionConfig, Resources
from workloads.config.intervals import Interval, IntervalTable, uniform_cuts
from workloads.config.job import CommonFields, ExpertJob, Job
from workloads.config.models import AnyModel
from workloads.config.training import TrainingConfig

Probability = Annotated[Real, Field(ge=0, le=1)]
Cuts = tuple[Whole, ...]


class Growable(NamedTuple):
    """What of a strategy may be larger in another that starts from its weights."""

    fields: frozenset[str]
    """The strategy's fields that may differ."""

    num_bases: int


class Strategy(StrictConfig, ABC):
    """What a run asks of its strategy. Unless a class says otherwise, experts are networks, each trained by itself."""

    if TYPE_CHECKING:  # a field here would come first in every stored description, where each class has its own place
        kind: str

    trains_alone: ClassVar[bool] = True
    """Whether there are several networks, each trained by itself, that can be chosen one by one."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of experts."""

    def resolve_cuts(self, num_timesteps: int) -> Cuts:
        """Interior cuts between the experts' intervals: equal ones, unless cuts are given."""
        return uniform_cuts(self.count, num_timesteps)

    @property
    def num_jobs(self) -> int:
        """How many jobs there are."""
        return self.count

    def jobs(self, model: AnyModel, common: CommonFields) -> tuple[Job, ...]:
        """What is to be trained, nearest the clean image first; `model` is the run's architecture."""
        num_timesteps = common["diffusion"].num_timesteps
        models = self.architectures or (model,) * self.count
        jobs = []
        for index, interval in enumerate(IntervalTable(self.resolve_cuts(num_timesteps), num_timesteps)):
            # Own interval and whole range are the same for a single expert: one job, one key.
            own = 1.0 if interval.num_timesteps == num_timesteps else self.specialisation_of(index)
            name = f"expert_{index:02d}"
            jobs.append(ExpertJob(name=name, interval=interval, specialisation=own, model=models[index], **common))
        return tuple(jobs)

    @property
    def architectures(self) -> tuple[AnyModel, ...] | None:
        """Each expert's own architecture, nearest the clean image first; None where all have the run's."""
        return None

    def specialisation_of(self, index: int) -> float:  # noqa: ARG002
        """Probability that a training timestep of expert `index` comes from its own interval."""
        return 1.0

    def resources_of(self, index: int) -> Resources | None:  # noqa: ARG002
        """What expert `index` asks of the cluster; None: execution.resources."""
        return None

    def num_workers(self, execution: ExecutionConfig) -> int:
        """How many workers train each job together."""
        return execution.workers_per_expert

    def can_share(self, num_workers: int, training: TrainingConfig) -> bool:
        """Whether so many workers can have equal parts of every batch."""
        return training.batch_size % num_workers == 0

    def check_run(self, execution: ExecutionConfig, training: TrainingConfig) -> None:
        """Raise ValueError if the run's execution or training does not go with the strategy."""
        if execution.num_workers > 1:
            raise ValueError(
                f"execution.num_workers is {execution.num_workers}, but strategy.kind {self.kind} trains each "
                "expert by itself; say execution.workers_per_expert for workers that share an expert"
            )
        if not self.can_share(execution.workers_per_expert, training):
            raise ValueError(
                f"training.batch_size {training.batch_size} is not a multiple of execution.workers_per_expert "
                f"{execution.workers_per_expert}"
            )

    @property
    def growable(self) -> Growable | None:
        """What may be larger in a run that starts from this one's weights; None if nothing."""
        return None


class Single(Strategy):
    """One network for all timesteps: the baseline."""

    kind: Literal["single"] = "single"

    trains_alone: ClassVar[bool] = False

    @property
    def count(self) -> int:
        """One."""
        return 1


class _Intervals(Strategy):
    num_experts: Whole | None = Field(None, ge=1, le=10_000)
    """Number of equal intervals; or give cuts."""

    cuts: Cuts | None = None
    """Interior cut points, in timesteps, rising. N - 1 cuts make N experts."""

    @model_validator(mode="after")
    def _check_either(self) -> "_Intervals":
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
        """The cuts that are given, or equal ones."""
        return super().resolve_cuts(num_timesteps) if self.cuts is None else self.cuts


class Independent(_Intervals):
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

    def specialisation_of(self, index: int) -> float:
        """The expert's, or that of all."""
        return self.specialisation[index] if isinstance(self.specialisation, tuple) else self.specialisation


class MemeExpert(StrictConfig):
    """One expert of a MEME ensemble; expert 0 is nearest the clean image."""

    specialisation: Probability
    """p_n: with this probability a training timestep is drawn from the expert's own interval, otherwise from the
    whole range (soft interval assignment, MEME arXiv:2306.04990)."""

    model: AnyModel
    """This expert's architecture. In a file, give just what differs from the run's `model`."""

    resources: Resources | None = None
    """What this expert asks of the cluster; None: execution.resources."""


class Meme(Strategy):
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

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.experts)

    def resolve_cuts(self, num_timesteps: int) -> Cuts:
        """The cuts that are given, or equal ones."""
        return super().resolve_cuts(num_timesteps) if self.cuts is None else self.cuts

    @property
    def architectures(self) -> tuple[AnyModel, ...]:
        """Each expert's own."""
        return tuple(expert.model for expert in self.experts)

    def specialisation_of(self, index: int) -> float:
        """The expert's own."""
        return self.experts[index].specialisation

    def resources_of(self, index: int) -> Resources | None:
        """The expert's own, if it names some."""
        return self.experts[index].resources


class Remix(_Intervals, GrownConfig):
    """K basis networks mixed into N experts in weight space, trained jointly (Remix-DiT, arXiv:2412.05628).

    Expert i has the weights theta_i = sum_k alpha_ik beta_k, with learned coefficients alpha (Eq. 2).
    """

    later = frozenset({"prior_schedule", "prior_order"})

    kind: Literal["remix"] = "remix"

    trains_alone: ClassVar[bool] = False

    num_bases: Whole = Field(4, ge=1)
    """K."""

    mixer: Literal["softmax", "per_layer", "raw", "one_hot", "continuous"] = "softmax"
    """Where coefficients come from. softmax: softmax of one N x K table of logits, the paper's; per_layer: such a table
    for each mixed layer (the paper's "local"); raw: a table as it is; one_hot: the prior, not trained ("oracle");
    continuous: a small network from an interval's middle to logits, so that neighbours share and N is free."""

    mixed: tuple[str, ...] = Field(("*.attn.qkv.*", "*.attn.proj.*", "*.mlp.fc1.*", "*.mlp.fc2.*"), min_length=1)
    """Names of the parameters that bases differ in, with wildcards; all others are shared. The default is the paper's:
    attention and MLP projections with their biases, in a DiT."""

    experts_per_step: Whole = Field(4, ge=1)
    """Experts trained in one step, each on an equal part of the batch; the draw avoids repeats. The paper has 1 per
    worker. Workers divide them among themselves, so the result does not depend on how many there are. With few, a step
    knows few timesteps, and its noise may cost more than bases bring (rememe compare remix-settings)."""

    coefficient_learning_rate: Real = Field(1e-2, gt=0)
    """Peak learning rate of the coefficients; follows training.lr_schedule."""

    prior_strength: Real = Field(1e-4, ge=0)
    """Weight of the cross-entropy to the one-hot prior (Eq. 6) at the start."""

    prior_schedule: Literal["linear", "constant"] = "linear"
    """linear: the weight falls to zero at the end, as in the paper; constant: it stays, a control without annealing."""

    prior_order: Literal["contiguous", "shuffled"] = "contiguous"
    """Which basis the prior gives an expert. contiguous: runs of neighbours share one, the paper's; shuffled: the same
    ones dealt out by the seed, a control in which any likeness of neighbours has been learned."""

    prior_logit: Real = Field(3.0, ge=0)
    """What the prior adds to the standard normal logits at the start."""

    @model_validator(mode="after")
    def _check_bases(self) -> "Remix":
        if self.num_bases > self.count:
            raise ValueError(
                f"num_bases is {self.num_bases}, but {self.count} experts cannot use more than {self.count} bases"
            )
        if self.prior_order == "shuffled" and self.mixer == "continuous":
            raise ValueError("prior_order shuffled does not go with mixer continuous, which has no such prior")
        return self

    @property
    def num_jobs(self) -> int:
        """One: all bases are trained together."""
        return 1

    def jobs(self, model: AnyModel, common: CommonFields) -> tuple[Job, ...]:
        """The one job."""
        return (RemixJob(name="remix", model=model, remix=self, **common),)

    def num_workers(self, execution: ExecutionConfig) -> int:
        """All train the one job."""
        return execution.num_workers

    def can_share(self, num_workers: int, training: TrainingConfig) -> bool:
        """Whether so many workers can have equal parts of every batch, and of the experts of a step."""
        more, fewer = sorted((num_workers, self.experts_per_step), reverse=True)
        return super().can_share(num_workers, training) and more % fewer == 0

    def check_run(self, execution: ExecutionConfig, training: TrainingConfig) -> None:
        """Raise ValueError unless workers and experts of a step divide each other and the batch."""
        num_workers, per_step = execution.num_workers, self.experts_per_step
        if execution.workers_per_expert > 1:
            raise ValueError(
                f"execution.workers_per_expert is {execution.workers_per_expert}, but a remix trains all its experts "
                "together; say execution.num_workers"
            )
        for name, value in (("execution.num_workers", num_workers), ("strategy.experts_per_step", per_step)):
            if training.batch_size % value:
                raise ValueError(f"training.batch_size {training.batch_size} is not a multiple of {name} {value}")
        if not self.can_share(num_workers, training):
            raise ValueError(
                f"execution.num_workers {num_workers} and strategy.experts_per_step {per_step} do not divide evenly; "
                "one must be a multiple of the other"
            )
        # Mixed parameters are views of one long vector, which has no such layout.
        if training.channels_last:
            raise ValueError("training.channels_last does not go with strategy.kind remix; set it to false")

    @property
    def growable(self) -> Growable:
        """More experts and more bases."""
        return Growable(frozenset({"num_experts", "cuts", "num_bases"}), self.num_bases)


class RemixJob(Job):
    """K bases and their coefficients, trained together by any number of workers."""

    remix: Remix

    is_joint: ClassVar[bool] = True

    @property
    def intervals(self) -> IntervalTable:
        """Which expert owns which timesteps."""
        num_timesteps = self.diffusion.num_timesteps
        return IntervalTable(self.remix.resolve_cuts(num_timesteps), num_timesteps)

    @property
    def interval(self) -> Interval:
        """All timesteps."""
        return Interval(0, self.diffusion.num_timesteps)

    @property
    def share(self) -> str:
        """Bases and experts."""
        return f"{self.remix.num_bases}-{self.remix.count}"

    @property
    def summary(self) -> dict[str, Any]:
        """How many experts there are of how many bases, and how they are mixed."""
        return {"num_experts": self.remix.count, "num_bases": self.remix.num_bases, "mixer": self.remix.mixer}


AnyStrategy = Annotated[Single | Independent | Meme | Remix, Field(discriminator="kind")]
