"""What would run for a configuration of a study: a plan for every share of the training and every seed. Pure."""

from collections.abc import Callable, Sequence

from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.search.space.points import Values
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.study import Study
from workloads.config import DataSpec, RunConfig

PlansOf = Callable[[Values, int], Sequence[Plan]]
"""plans_of(values, number): of every share of the training, briefest first, one plan per seed."""


def plans_by_point(study: Study, spec_of: Callable[[RunConfig], DataSpec]) -> PlansOf:
    """Plans by point and number; data is looked at once for each description of it."""
    configurations, specs = Configurations(study), dict[str, DataSpec]()

    def plans_of(values: Values, number: int) -> list[Plan]:
        configs = configurations.seeded(values, number)
        data = configs[0].data.model_dump_json()
        if data not in specs:
            specs[data] = spec_of(configs[0])
        shares = study.ladder.shares
        return [make_plan(with_training_share(config, share), specs[data]) for share in shares for config in configs]

    return plans_of


def images_by_key(plans: Sequence[Plan]) -> dict[str, int]:
    """Training images of every distinct job."""
    return {job.key: job.job.training.images for plan in plans for job in plan.jobs}


def with_training_share(config: RunConfig, share: float) -> RunConfig:
    """The same run with a part of the training images."""
    # The whole training must stay the very same description: its key is what other configurations share it by.
    if share == 1:
        return config
    images = max(config.training.batch_size, round(share * config.training.images))
    return config.model_copy(update={"training": config.training.model_copy(update={"images": images})})
