"""The plans behind a configuration of a study. Pure."""

from collections.abc import Callable, Sequence

from orchestrator.plan.jobs import Plan, plan
from orchestrator.search.space.points import Values
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.study import Study
from workloads.config import DataSpec, RunConfig

Plans = Callable[[Values, int], Sequence[Plan]]
"""plans(values, number): of every share of the training, briefest first, one plan per seed."""


def make_plans(study: Study, spec_of: Callable[[RunConfig], DataSpec]) -> Plans:
    """Plans by point and number; data is looked at once for each description of it."""
    configurations, specs = Configurations(study), dict[str, DataSpec]()

    def plans(values: Values, number: int) -> list[Plan]:
        configs = configurations.seeded(values, number)
        data = configs[0].data.model_dump_json()
        if data not in specs:
            specs[data] = spec_of(configs[0])
        shares = (*study.ladder.brief, 1.0)
        return [plan(with_share(config, share), specs[data]) for share in shares for config in configs]

    return plans


def images_by_key(plans: Sequence[Plan]) -> dict[str, int]:
    """Training images of every distinct job."""
    return {job.key: job.job.training.images for planned in plans for job in planned.jobs}


def with_share(config: RunConfig, share: float) -> RunConfig:
    """The same run with a part of the training images."""
    if share == 1:
        return config
    images = max(config.training.batch_size, round(share * config.training.images))
    return config.model_copy(update={"training": config.training.model_copy(update={"images": images})})
