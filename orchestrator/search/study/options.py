"""How a study is carried out: its budget, its ladder of scores, when to give up early. Pure."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.plan.jobs import Plan
from workloads.config.base import Real, StrictConfig, Whole
from workloads.config.evaluation import HeldOutSpec

Objective = Literal["score", "macs", "num_parameters", "latency_s"]

BRIEF = "loss@"
LOSS, QUICK, FULL = "loss", "quick", "full"
"""Names of rungs; a brief one is loss@ and the share of the training."""


class Budget(StrictConfig):
    """When to stop looking; the first limit that is reached counts."""

    num_configurations: Whole | None = Field(None, ge=1)
    """Configurations to look at. None: all of a grid; random and model-based search need a limit of some kind."""

    images_trained: Whole | None = Field(None, ge=1)
    """Training images of all networks together, each counted once however many configurations contain it. A
    configuration that would go beyond is not begun."""

    wall_clock_s: Real | None = Field(None, gt=0)
    """Seconds after which no further configuration is begun."""

    @property
    def is_unlimited(self) -> bool:
        return self.num_configurations is None and self.images_trained is None and self.wall_clock_s is None


class Ladder(StrictConfig):
    """Scores from cheap to dear. A configuration climbs as far as it pays."""

    brief: tuple[Annotated[Real, Field(gt=0, lt=1)], ...] = ()
    """Shares of the training after which the held-out loss is measured first, on networks trained that long only."""

    held_out: HeldOutSpec | None = None
    """The held-out denoising loss: what every network is measured on. Needs data.held_out. None: not measured."""

    quick: dict[str, Any] | None = None
    """What a quick score changes of the protocol, for instance {num_samples: 1000, sampling: {num_steps: 10}}."""

    finalists: Whole | None = Field(None, ge=1)
    """How many get the full protocol, the best by the rung before. None: all."""

    @model_validator(mode="after")
    def _check(self) -> "Ladder":
        for left, right in pairwise(self.brief):
            if left >= right:
                raise ValueError(f"ladder.brief must rise; found {left:g} followed by {right:g}")
        if self.brief and self.held_out is None:
            raise ValueError("ladder.brief is measured by the held-out loss; give ladder.held_out, for instance {}")
        if self.finalists is not None and self.quick is None and self.held_out is None:
            raise ValueError("ladder.finalists are chosen by a cheaper score; give ladder.quick or ladder.held_out")
        return self

    @property
    def target(self) -> str:
        """The rung every configuration is to reach, which the sampler learns from."""
        if self.finalists is None:
            return FULL
        return LOSS if self.quick is None else QUICK

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the training, each on networks of its own; the whole comes last."""
        return (*self.brief, 1.0)

    @property
    def rungs(self) -> tuple[str, ...]:
        """All of them, cheapest first."""
        names = [loss_rung(share) for share in self.brief]
        names += [LOSS] if self.held_out is not None else []
        names += [QUICK] if self.quick is not None else []
        return (*names, FULL)


def loss_rung(share: float) -> str:
    """Name of the held-out loss after a share of the training."""
    return LOSS if share == 1 else f"{BRIEF}{share:g}"


class LimitsConfig(StrictConfig):
    """What a configuration may cost at most; others are not begun, and a forecast proposes none."""

    num_parameters: Whole | None = Field(None, ge=1)
    """Stored parameters of all networks together."""

    macs: Real | None = Field(None, gt=0)
    """Multiply-adds of a denoising step, averaged over timesteps."""

    latency_s: Real | None = Field(None, gt=0)
    """Seconds of a call for one image, averaged over timesteps; only a forecast can tell beforehand."""

    def admits(self, plan: Plan) -> bool:
        """Whether a configuration keeps to those limits that its plan tells."""
        # Latency is left out: it is not known before it was measured.
        macs = plan.mean_over_timesteps([job.macs for job in plan.jobs])
        return (self.num_parameters is None or plan.num_parameters <= self.num_parameters) and (
            self.macs is None or macs <= self.macs
        )


class EarlyStop(StrictConfig):
    """Give a configuration up when its held-out loss is behind the others' at the same share of the training."""

    kind: Literal["asha", "median"] = "asha"
    """asha: only the best 1/reduction_factor go on (arXiv:1810.05934); median: those above the median stop."""

    reduction_factor: Real = Field(3.0, gt=1)
    """Of asha."""

    min_configurations: Whole = Field(4, ge=2)
    """Of median: others that must have come as far before any is stopped."""
