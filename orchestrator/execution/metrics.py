"""How a run goes, as metrics of the Ray cluster: every node serves its own to Prometheus; clusters/grafana.json draws
them.
"""

import time
from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge

from orchestrator.plan.events import ExpertEvent, ExpertState
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.standing import ExpertStanding

GAUGES = {
    "images_per_s": "Training images per second of an expert",
    "loss": "Mean training loss of an expert since its last record",
    "images_seen": "Training images an expert has seen",
    "experts": "Experts of a run by state; those that are queued are the queue",
    "goodput": "Share of the time since experts were begun that no restart has cost",
}
"""Names without the prefix, and what they say."""

COUNTERS = {
    "restarts": "Restarts of experts by cause",
    "lost_seconds": "Seconds that restarts have cost, by cause: since the last checkpoint, and until training went on",
}

PREFIX = "rememe_"
"""Ray puts `ray_` before it, and `_total` behind a counter."""

TAGS: Mapping[str, tuple[str, ...]] = {
    "experts": ("run", "state"),
    "goodput": ("run",),
    "restarts": ("run", "cause"),
    "lost_seconds": ("run", "cause"),
}


class ClusterMetrics:
    """Sets the metrics of a run on the connected cluster. A listener of train_experts."""

    def __init__(self, run: str, jobs: Sequence[PlannedJob]) -> None:
        self._experts = {job.key: ExpertStanding.of(job) for job in jobs}
        self._run = {"run": run}
        self._gauges = {name: Gauge(PREFIX + name, text, _tags(name)) for name, text in GAUGES.items()}
        self._counters = {name: Counter(PREFIX + name, text, _tags(name)) for name, text in COUNTERS.items()}
        self._show_states()

    def __call__(self, event: ExpertEvent) -> None:
        now_s = time.time()
        before = self._experts[event.key]
        expert = self._experts[event.key] = before.after(event, now_s)
        self._count(before, expert)
        tags = self._run | {"expert": expert.name}
        self._gauges["images_seen"].set(expert.images_seen, tags)
        self._gauges["images_per_s"].set(0.0 if expert.state.has_ended else expert.images_per_s, tags)
        if expert.loss is not None:
            self._gauges["loss"].set(expert.loss, tags)
        if expert.state is not before.state:
            self._show_states()
        shares = [one.goodput(now_s) for one in self._experts.values()]
        known = [share for share in shares if share is not None]
        if known:
            self._gauges["goodput"].set(sum(known) / len(known), self._run)

    def _count(self, before: ExpertStanding, after: ExpertStanding) -> None:
        for number, restart in enumerate(after.restarts):
            tags = self._run | {"cause": restart.cause.name.lower()}
            is_new = number >= len(before.restarts)
            lost_s = restart.lost_s - (0.0 if is_new else before.restarts[number].lost_s)
            if is_new:
                self._counters["restarts"].inc(1.0, tags)
            if lost_s > 0:  # a counter refuses nothing at all
                self._counters["lost_seconds"].inc(lost_s, tags)

    def _show_states(self) -> None:
        states = [expert.state for expert in self._experts.values()]
        for state in ExpertState:
            self._gauges["experts"].set(states.count(state), self._run | {"state": state.value})


def _tags(name: str) -> tuple[str, ...]:
    return TAGS.get(name, ("run", "expert"))
