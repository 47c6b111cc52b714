"""What of a study can be known to be wrong before anything runs: `rememe plan` refuses what `rememe search` would."""

from itertools import islice

from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.trial_plans import PlansOf, images_by_key, with_training_share
from workloads.config import RunConfig
from workloads.config.load import validate
from workloads.errors import ConfigError
from workloads.training.schedule import warmup_remark

NUM_CHECKED = 200
"""Configurations looked at for one that the budget admits."""


def measured_runs(configurations: Configurations) -> list[RunConfig]:
    """A run under each protocol that scores. ConfigError if the ladder measures what the base does not admit."""
    study = configurations.study
    config = configurations.seeded(configurations.first()[0], 0)[0]
    if study.ladder.held_out is not None and not config.data.held_out:
        raise ConfigError("ladder.held_out measures on images kept out of training; set base.data.held_out, e.g. 500")
    if study.ladder.quick is None:
        return [config]
    quick = study.quick_protocol(config).model_dump(mode="json")
    return [config, validate(RunConfig, config.model_dump(mode="json") | {"evaluation": quick})]


def require_affordable(configurations: Configurations, plans_of: PlansOf) -> None:
    """ConfigError if the budget admits no configuration."""
    limit = configurations.study.budget.images_trained
    if limit is None:
        return
    cheapest = min(
        sum(images_by_key(plans_of(values, 0)).values()) for values, _ in islice(configurations, NUM_CHECKED)
    )
    if cheapest > limit:
        raise ConfigError(
            f"budget.images_trained is {limit}, but the cheapest configuration trains on {cheapest} images; "
            "raise the budget or lower training.images"
        )


def warmup_remark_of(configurations: Configurations) -> str:
    """That the warm-up of a configuration, the first such one, is longer than its training; empty if none is.

    A brief training of the ladder counts too.
    """
    for _, config in islice(configurations, NUM_CHECKED):
        for share in reversed(configurations.study.ladder.shares):
            if remark := warmup_remark(with_training_share(config, share).training):
                return remark if share == 1 else f"ladder.brief {share:g}: {remark}"
    return ""
