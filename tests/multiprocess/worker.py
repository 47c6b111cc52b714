"""One worker of a process group, started by torchrun: runs the tasks of a JSON file, or alone the same in-process."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workloads.config import ExpertJob, Job, RemixJob
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import BatchStream
from workloads.training.job import train_job
from workloads.training.processes import SharedStop, Workers
from workloads.training.remix.state import RemixState
from workloads.training.result import TrainingStopped
from workloads.training.state import TrainState
from workloads.training.trainers import trainer_of


def job_of(raw: dict[str, Any]) -> Job:
    """A job from its JSON."""
    return RemixJob.model_validate(raw) if "remix" in raw else ExpertJob.model_validate(raw)


def step(job: Job, data_path: Path, out: Path) -> None:
    """One optimiser step from perturbed weights; every worker writes what it ends up with."""
    out.mkdir(parents=True, exist_ok=True)
    workers, cpu = Workers.current(), torch.device("cpu")
    state, take_step = trainer_of(job).begin(cpu, workers)
    if isinstance(state, RemixState):
        trained, optimizers = [*state.shared, *state.bases.vectors, *state.coefficients], state.optimizers
        perturbed = trained[:-1]
    else:
        assert isinstance(state, TrainState)
        trained = perturbed = state.parameters
        optimizers = [state.optimizer]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in perturbed:
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch_size, world_size = job.training.batch_size, workers.world_size
    dataset = PreparedDataset(data_path)
    stream = BatchStream(dataset, batch_size=batch_size // world_size, seed=0, rank=workers.rank, world_size=world_size)
    gradients: list[Tensor] = []

    def capture(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    for optimizer in optimizers:
        optimizer.register_step_pre_hook(capture)
    loss = take_step(state, stream.at(0)).item()
    found = {"gradients": gradients, "weights": trained, "loss": loss, "bytes": workers.bytes_summed}
    torch.save(found, out / f"{world_size}-{workers.rank}.pt")


def whole(job: Job, data_path: Path, out: Path) -> None:
    """The whole job, or until out/stop exists; the last worker is who sees that."""
    out.mkdir(parents=True, exist_ok=True)
    workers = Workers.current()
    is_last = workers.rank == workers.world_size - 1
    stop = SharedStop(workers, lambda: is_last and (out / "stop").exists(), job.training)
    try:
        train_job(job, data_path, out, num_threads=1, workers=workers, should_stop=stop)
    except TrainingStopped:
        (out / f"stopped-{workers.rank}").touch()


def stopped(job: Job, data_path: Path, out: Path) -> None:
    """The job up to its second record."""
    looks = iter([False, True])
    workers = Workers.current()
    with suppress(TrainingStopped):
        stop = SharedStop(workers, lambda: next(looks), job.training)
        train_job(job, data_path, out, num_threads=1, workers=workers, should_stop=stop)


TASKS = {"step": step, "whole": whole, "stopped": stopped}

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for task in json.loads(Path(sys.argv[1]).read_text()):
        TASKS[task["kind"]](job_of(task["job"]), Path(task["data"]), Path(task["out"]))
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()
