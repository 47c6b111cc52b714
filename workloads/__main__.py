"""Train, gather and score without Ray: `python -m workloads run CONFIG --out DIR`, or the same under torchrun.

Under torchrun, experts that are trained alone are dealt out to the ranks, and a remix is trained by all together.
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

from workloads.config import RunConfig, load_config
from workloads.errors import RememeError
from workloads.training.records import TrainingRecord


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
    return 0


def _run(config: RunConfig, out: Path, device: str | None, *, score: bool) -> None:
    import torch

    from workloads.data.prepare import ensure_prepared
    from workloads.ensemble import write_ensemble
    from workloads.evaluation.extractors import check_extractor
    from workloads.models.initial import resolve_initial
    from workloads.training.job import train_job
    from workloads.training.processes import Workers

    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if world_size > 1:
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if score:
        check_extractor(config.evaluation)
    if rank == 0:
        ensure_prepared(config.data, out / "data")
    _barrier(world_size)
    dataset = ensure_prepared(config.data, out / "data")
    initial = None if config.initial_weights is None else resolve_initial(config.initial_weights)
    jobs = config.jobs(dataset.spec(config.data), initial)
    for index, job in enumerate(jobs):
        together = job.is_joint
        if not together and index % world_size != rank:
            continue
        result = train_job(
            job,
            dataset.path,
            out / "store" / job.key,
            device=device,
            workers=Workers.current() if together else None,
            report=partial(_print_record, job.name),
        )
        if not together or rank == 0:
            print(json.dumps({"expert": job.name, "done": True, "train_s": result.train_s}), flush=True)
    _barrier(world_size)
    if rank == 0:
        write_ensemble(out / "ensemble", config, dataset, [out / "store" / job.key for job in jobs])
        if score:
            _score(config, out, device)
    if world_size > 1:
        torch.distributed.destroy_process_group()


def _print_record(expert: str, record: TrainingRecord) -> None:
    print(json.dumps({"expert": expert, **asdict(record)}), flush=True)


def _score(config: RunConfig, out: Path, device: str) -> None:
    from workloads.data.prepare import ensure_prepared
    from workloads.ensemble import Ensemble
    from workloads.evaluation.generate import batch_indices, generate_batch
    from workloads.evaluation.samples import SampleStore
    from workloads.evaluation.score import evaluate_samples

    ensemble, protocol = Ensemble.load(out, device), config.evaluation
    samples = SampleStore(out / "samples")
    batches = batch_indices(protocol)
    started_s = time.perf_counter()
    for index in samples.missing(protocol):
        images, _ = generate_batch(ensemble, protocol, batches[index])
        samples.write(index, images)
    sampling_s = time.perf_counter() - started_s
    reference = ensure_prepared(config.data, out / "data")
    score = evaluate_samples(samples, reference, protocol, cache_dir=out / "cache", device=device)
    print(json.dumps({**asdict(score), "sampling_s": sampling_s}), flush=True)


def _barrier(world_size: int) -> None:
    if world_size > 1:
        import torch

        torch.distributed.barrier()


if __name__ == "__main__":
    sys.exit(main())
