"""Where and how jobs run. Nothing here can change a result, so nothing here enters a content key."""

import re
from typing import Literal

from pydantic import Field, model_validator

from workloads.config.base import Real, StrictConfig, Whole


class Resources(StrictConfig):
    """What one worker of an expert asks of the cluster while it trains (Ray's logical resources)."""

    num_cpus: Real = Field(1.0, ge=0)
    """CPU cores; also the number of threads torch uses (at least one)."""

    num_gpus: Real = Field(0.0, ge=0)
    """GPUs; a fraction lets experts share one. 0 trains on the CPU."""

    custom: dict[str, Real] = Field(default_factory=dict)
    """Custom Ray resources, for instance {"highmem": 1}."""

    accelerator_type: str | None = None
    """Kind of GPU, as Ray names it ("H100", "A100"); None: any."""

    label_selector: dict[str, str] = Field(default_factory=dict)
    """Labels a node must have, as Ray selects them: {"zone": "eu-1"}, "!spot", "in(a, b)", "!in(a, b)"."""

    @property
    def device(self) -> str:
        """What torch calls the kind of device that was asked for."""
        return "cuda" if self.num_gpus > 0 else "cpu"

    @property
    def num_threads(self) -> int:
        """Threads for torch; Ray only sets OMP_NUM_THREADS, and to 1 for fractions."""
        return max(1, int(self.num_cpus))

    @model_validator(mode="after")
    def _check_gpus(self) -> "Resources":
        if self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError(f"num_gpus {self.num_gpus} must be a fraction below 1 or a whole number")
        if self.accelerator_type is not None and self.num_gpus == 0:
            raise ValueError(f"accelerator_type is {self.accelerator_type}, but num_gpus is 0; ask for a GPU too")
        for name, value in self.label_selector.items():
            if not re.fullmatch(r"!?(in\([\w., -]+\)|[\w.-]+)", value):
                raise ValueError(
                    f"label_selector {name} is {value!r}; say it as Ray does: a, !a, in(a, b) or !in(a, b)"
                )
        for name, amount in self.custom.items():
            if amount < 0:
                raise ValueError(f"custom resource {name} is {amount}; it must not be negative")
        return self


class ExecutionConfig(StrictConfig):
    """How experts are scheduled and supervised."""

    resources: Resources = Resources()
    """Of each worker, unless an expert names its own."""

    num_workers: Whole = Field(1, ge=1)
    """Workers that train a remix together, each on its part of every batch. Like workers_per_expert it is no part of a
    key: all draws are those of the whole batch, so only the order of sums, and with it the last bits, depends on it."""

    workers_per_expert: Whole = Field(1, ge=1)
    """Workers that train one expert together where experts are trained alone, each on its part of every batch."""

    min_workers: Whole | None = Field(None, ge=1)
    """Fewest workers to train one job with where the cluster has no room for all: then the most that fit and can have
    equal, larger parts of a batch (training.micro_batch_size bounds what is in memory at once). None: all or none."""

    grow_every_s: Real = Field(300.0, gt=0)
    """Workers that are missing are asked for again this long after a start, when nothing else waits for a place; once
    there is room for all, a checkpoint is written and all go on from there."""

    placement: Literal["PACK", "SPREAD", "STRICT_PACK"] = "PACK"
    """Workers of one job: on as few nodes as possible, on as many, or all on one."""

    max_attempts: Whole = Field(3, ge=1)
    """How often an expert is started before it is given up; losing a node does not count."""

    wait_timeout_s: Real = Field(1800.0, gt=0)
    """An expert that asks for what no live node has is given up after this long; an autoscaler may add one before."""

    watchdog_s: Real = Field(60.0, gt=0)
    """An expert that neither answers nor makes a step for this long is named with its node."""

    cache_size_gb: Real = Field(100.0, gt=0)
    """How much of a --storage each node keeps on its own disk; what was used least lately is removed first."""

    tracked_model_gb: Real = Field(1.0, ge=0)
    """A trained ensemble of no more than this is logged to MLflow as a model, a copy of its weights; 0: none is."""

    node_metrics_every_s: Real = Field(30.0, ge=0)
    """How often the load of each node that trains is logged to MLflow (CPU, memory, disk, network, GPUs); 0: never."""

    heartbeat_timeout_s: Real = Field(120.0, gt=0)
    """An expert that does not answer for this long is killed and restarted from its checkpoint."""
