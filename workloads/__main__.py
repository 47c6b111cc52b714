"""Train, gather and score without Ray: `python -m workloads run CONFIG --out DIR`, or the same under torchrun.

Under torchrun, experts that are trained alone are dealt out to groups of execution.workers_per_expert ranks; a remix is
trained by all together.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.config import Job, ProtocolConfig, RunConfig, load_config
from workloads.errors import ConfigError, RememeError
from workloads.imports import ends_at_once
from workloads.places import RunDir, SharedDir
from workloads.training.records import TrainingRecord

if TYPE_CHECKING:
    from workloads.training.processes import Workers


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors a user can act on into one sentence and an exit code."""
    parser = argparse.ArgumentParser(prog="python -m workloads", description=__doc__)
    parser.add_argument("action", choices=["run", "train"], help="run: train, sample and score; train: only train")
    parser.add_argument("config", help="a preset's name or a YAML file")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--out", type=Path, required=True, help="directory for data, experts and ensemble")
    parser.add_argument("--device", default=None, help="cpu or cuda; default: cuda if there is one")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        _run(config, options.out, options.device, score=options.action == "run")
    except RememeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if os.environ.get("REMEME_TRACEBACK"):
            raise
        print(
            f"error: {error.filename or 'a file'}: {error.strerror}; set REMEME_TRACEBACK=1 to see where",
            file=sys.stderr,
        )
        return 1
    return 0


def _run(config: RunConfig, out: Path, device: str | None, *, score: bool) -> None:
    import torch

    from workloads.device import require_device
    from workloads.pipeline import check_comparable, check_score, gather, reference_data, training_data
    from workloads.training.jobs import check_memory, jobs_of

    num_threads = torch.get_num_threads()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = str(require_device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if world_size > 1:
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if score:
        check_score(config)
    if rank == 0:
        data = training_data(config, SharedDir(out).data)
        if score:  # data that cannot be had, or compared with, is to be known before training
            check_comparable(data, reference_data(config, SharedDir(out).data))
    _barrier(world_size)
    dataset = training_data(config, SharedDir(out).data)
    jobs = jobs_of(config, dataset.spec(config.data))
    check_memory(jobs, on_gpu=device == "cuda")
    folders = [SharedDir(out).job(job.key).path for job in jobs]
    workers = _own_group(config, world_size, is_joint=jobs[0].is_joint)
    num_groups = world_size // workers.world_size
    for index, (job, folder) in enumerate(zip(jobs, folders, strict=True)):
        if index % num_groups == rank // workers.world_size:
            _train(job, dataset.path, folder, device, config.expert_resources(index).num_threads, workers)
    _barrier(world_size)
    torch.set_num_threads(num_threads)  # training has its own number, for its weights depend on it
    if rank == 0:
        gather(RunDir(out), config, dataset, folders)
        if score:
            _score(config, out, device)
    if world_size > 1:
        torch.distributed.destroy_process_group()


def _own_group(config: RunConfig, world_size: int, *, is_joint: bool) -> "Workers":
    """Those this process trains with. ConfigError if the ranks do not make whole groups."""
    import torch

    from workloads.training.processes import Workers

    size = world_size if is_joint else min(config.num_workers, world_size)
    if world_size % size or config.training.batch_size % size:
        raise ConfigError(
            f"{world_size} processes and training.batch_size {config.training.batch_size} do not make whole groups of "
            f"{size} workers; start another number of processes"
        )
    if size in {1, world_size}:
        return Workers.current() if size > 1 else Workers()
    return Workers.current(torch.distributed.new_subgroups(size)[0])


def _train(job: Job, data_path: Path, folder: Path, device: str, num_threads: int, workers: "Workers") -> None:
    from workloads.training.job import train_job

    result = train_job(
        job,
        data_path,
        folder,
        device=device,
        # As under Ray: the last bits of the weights depend on it, and a key stands for the same weights everywhere.
        num_threads=num_threads,
        workers=workers,
        report=partial(_print_record, job.name),
    )
    if workers.is_first:
        print(json.dumps({"expert": job.name, "done": True, "train_s": result.train_s}), flush=True)


def _print_record(expert: str, record: TrainingRecord) -> None:
    print(json.dumps({"expert": expert, **asdict(record)}), flush=True)


def _score(config: RunConfig, out: Path, device: str) -> None:
    from workloads.ensemble import Ensemble
    from workloads.evaluation.samples import SampleStore
    from workloads.evaluation.score import evaluate_samples
    from workloads.pipeline import draw_here, reference_data, score_ensemble

    sampling_s = 0.0

    def draw(ensemble: Ensemble, protocol: ProtocolConfig, samples: SampleStore) -> None:
        nonlocal sampling_s
        started_s = time.perf_counter()
        draw_here(ensemble, protocol, samples)
        sampling_s = time.perf_counter() - started_s

    scored = score_ensemble(
        Ensemble.load(out, device),
        config.evaluation,
        reference_data(config, SharedDir(out).data),
        RunDir(out),
        cache_dir=SharedDir(out).cache,
        draw=draw,
        measure=partial(evaluate_samples, device=device),
    )
    print(json.dumps({**asdict(scored.score), "sampling_s": sampling_s}), flush=True)


def _barrier(world_size: int) -> None:
    if world_size > 1:
        import torch

        torch.distributed.barrier()


if __name__ == "__main__":
    with ends_at_once():
        sys.exit(main())
