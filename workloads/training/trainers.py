"""Which trainer a job has; a new kind of job is a line here."""

from typing import Any

from workloads.config.job import ExpertJob, Job
from workloads.config.strategy import RemixJob
from workloads.training.expert import ExpertTrainer
from workloads.training.remix.trainer import RemixTrainer
from workloads.training.trainer import Trainer

TRAINERS: dict[type[Job], type[Trainer[Any]]] = {ExpertJob: ExpertTrainer, RemixJob: RemixTrainer}


def trainer_of(job: Job) -> Trainer[Any]:
    """The job's trainer."""
    return TRAINERS[type(job)](job)
