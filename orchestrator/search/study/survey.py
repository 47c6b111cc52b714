"""What a study would take: its configurations, the jobs they share, what training each once saves. Pure counting."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from orchestrator.search.space.points import Values
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial_plans import PlansOf, images_by_key

MAX_SURVEYED = 2000
"""Configurations looked at where the budget is not in their number."""


@dataclass(frozen=True)
class SurveyRow:
    """One configuration."""

    values: Values
    num_jobs: int
    num_new_jobs: int
    """Those that no configuration before it contains."""

    num_parameters: int
    """Stored parameters of all networks together."""

    macs: float
    """Multiply-adds of a denoising step, averaged over timesteps."""


@dataclass(frozen=True)
class Survey:
    """All configurations, and what they come to together."""

    name: str
    rows: Sequence[SurveyRow]
    images: Mapping[str, int]
    """Training images of every distinct job, by key."""

    images_without_store: int
    """The same if every configuration trained all of its jobs."""

    @property
    def num_jobs(self) -> int:
        return sum(row.num_jobs for row in self.rows)

    @property
    def images_trained(self) -> int:
        return sum(self.images.values())

    @property
    def factor_saved(self) -> float:
        return self.images_without_store / self.images_trained

    def to_json(self) -> dict[str, Any]:
        """What `rememe plan STUDY --json` prints."""
        return {
            "name": self.name,
            "num_configurations": len(self.rows),
            "num_jobs": self.num_jobs,
            "num_distinct_jobs": len(self.images),
            "images_trained": self.images_trained,
            "images_without_store": self.images_without_store,
            "factor_saved": self.factor_saved,
            "jobs": [{"key": key, "images": count} for key, count in self.images.items()],
        }


def survey(study: Study, plans_of: PlansOf, on_progress: Callable[[int, int], None]) -> Survey:
    """Plan every configuration, in order; on_progress(done, total) hears of each."""
    images: dict[str, int] = {}
    rows, images_without_store = [], 0
    points = [values for values, _ in islice(Configurations(study), MAX_SURVEYED)]
    on_progress(0, len(points))
    for index, values in enumerate(points):
        plans = plans_of(values, index)
        wanted = images_by_key(plans)
        num_new = len(wanted.keys() - images.keys())
        images |= wanted
        images_without_store += sum(wanted.values())
        whole = plans[-1]  # what is trained for an early rung costs the same per step
        macs = whole.mean_over_timesteps([job.macs for job in whole.jobs])
        rows.append(SurveyRow(values, len(wanted), num_new, whole.num_parameters, macs))
        on_progress(index + 1, len(points))
    return Survey(study.name, rows, images, images_without_store)
