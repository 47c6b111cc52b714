"""What came of training a configuration's experts."""

from dataclasses import dataclass, field

from workloads.training.result import JobResult


@dataclass
class TrainingOutcome:
    """By key; every expert is in one of completed, failed and stopped."""

    completed: dict[str, JobResult] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    """Those of the completed that were trained here and now, not found or waited for."""

    failed: dict[str, str] = field(default_factory=dict)
    """One sentence each."""

    stopped: list[str] = field(default_factory=list)
