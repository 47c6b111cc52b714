#!/usr/bin/env python3
"""Training steps of DiT-S/2 and Remix-DiT-S/2 4-20: ours, compiled, in bf16, beside the public code's and the limit.

    python benchmarks/training_step.py --rounds 5
    python benchmarks/training_step.py --peers DIR      DIR/DiT and DIR/Remix-DiT are checkouts of the public code

Equal work: the embedded images at 32 x 32 x 3 (256 tokens), the same batch, learned variance, label dropout, AdamW,
weight averaging, no clipping, float32 where nothing else is said. Steps take turns, and each ratio is the median over
rounds, so that a machine that slows down slows all. The public steps are those of their train.py, with the networks,
diffusion and update_ema as they are, without DDP. A step's arithmetic is three times the forward pass (rememe plan),
its limit a product of 2048 x 2048 matrices that takes turns with it.
"""

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from workloads.config import RunConfig
from workloads.data.prepare import ensure_prepared
from workloads.data.stream import Batch, BatchStream
from workloads.training.processes import Workers
from workloads.training.trainers import trainer_of

KINDS = (
    *("plain", "remix-1", "remix-4"),
    *("plain-compiled", "remix-1-compiled"),
    *("plain-bf16", "remix-1-bf16", "plain-bf16-compiled"),
)
PAIRS = (
    *(("plain", "public DiT"), ("plain-bf16-compiled", "public DiT")),
    *(("remix-1", "public Remix-DiT"), ("remix-4", "public Remix-DiT"), ("remix-1-bf16", "public Remix-DiT")),
    *(("remix-1", "plain"), ("remix-4", "plain")),
    *(("plain", "plain-compiled"), ("remix-1", "remix-1-compiled")),
    *(("plain", "plain-bf16"), ("remix-1", "remix-1-bf16")),
)
"""Whose time is divided by whose."""

Step = Callable[[], float]
"""Takes one step; its seconds."""

PRODUCT_SIDE = 2048
NUM_EXPERTS, NUM_BASES, NUM_TIMESTEPS = 20, 4, 1000
PUBLIC_MODULES = ("models", "diffusion", "remix_dit", "train", "download")
"""Both checkouts call theirs so."""


def configuration(kind: str, batch_size: int) -> RunConfig:
    """Of plain, remix-1 (experts per step) or the like, with "-bf16", "-compiled" or both behind."""
    name = kind.removesuffix("-compiled").removesuffix("-bf16")
    strategy: dict[str, Any] = {"kind": "single"}
    if name != "plain":
        strategy = {"kind": "remix", "num_experts": NUM_EXPERTS, "num_bases": NUM_BASES}
        strategy["experts_per_step"] = int(name.removeprefix("remix-"))
    return RunConfig.model_validate(
        {
            "name": "benchmark",
            "data": {"kind": "embedded", "image_size": 32, "channels": 3, "class_conditional": True},
            "model": {"kind": "dit", "size": "S", "patch_size": 2, "variance": "learned"},
            "diffusion": {"schedule": "linear"},
            "strategy": strategy,
            "training": {
                "images": 10**9,
                "batch_size": batch_size,
                "clip_grad_norm": None,
                "compile": kind.endswith("-compiled"),
                "precision": "bf16" if "-bf16" in kind else "fp32",
            },
            "evaluation": "demo",
        }
    )


def timed(step: Callable[[], object]) -> Step:
    """A step that says how long it took."""

    def run() -> float:
        started_s = time.perf_counter()
        step()
        return time.perf_counter() - started_s

    return run


def ours(kind: str, batch_size: int, scratch: Path) -> tuple[Callable[[], float], float]:
    """The step, and its multiply-adds."""
    config = configuration(kind, batch_size)
    dataset = ensure_prepared(config.data, scratch / "data")
    (job,) = config.jobs(dataset.spec(config.data))
    trainer = trainer_of(job)
    state, step = trainer.begin(torch.device("cpu"), Workers())
    batch = first_batch(scratch, batch_size)
    return lambda: step(state, batch).item(), 3 * trainer.cost().macs * batch_size


def first_batch(scratch: Path, batch_size: int) -> Batch:
    """Real images and labels, the same for all."""
    config = configuration("plain", batch_size)
    return BatchStream(ensure_prepared(config.data, scratch / "data"), batch_size=batch_size, seed=0).at(0)


@contextmanager
def modules_of(checkout: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Import by name from a checkout, whose modules another one's may be called like."""
    sys.path.insert(0, str(checkout))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if name.partition(".")[0] in PUBLIC_MODULES]:
            del sys.modules[name]


def public(checkout: Path, batch: Batch) -> Callable[[], float]:
    """The step of the public DiT or Remix-DiT, without DDP: one process needs none."""
    is_remix = (checkout / "remix_dit.py").is_file()
    with modules_of(checkout) as load:
        models, diffusion = load("models"), load("diffusion").create_diffusion(timestep_respacing="")
        update_ema = load("train").update_ema
        options: dict[str, Any] = {"input_size": 32, "in_channels": 3, "num_classes": 10}
        if is_remix:
            options |= {"n_basis": NUM_BASES, "n_experts": NUM_EXPERTS}
        name = "RemixDiT-S/2" if is_remix else "DiT-S/2"
        network = models.DiT_models[name](**options).train()
        average = models.DiT_models[name](**options)
    average.requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5, weight_decay=0)
    images_BCHW, labels_B = batch
    per_expert = NUM_TIMESTEPS // NUM_EXPERTS

    def step() -> float:
        first, behind = 0, NUM_TIMESTEPS
        if is_remix:
            expert = int(torch.randint(NUM_EXPERTS, ()))
            first, behind = expert * per_expert, (expert + 1) * per_expert
        timesteps_B = torch.randint(first, behind, (len(images_BCHW),))
        optimizer.zero_grad()
        loss = diffusion.training_losses(network, images_BCHW, timesteps_B, {"y": labels_B})["loss"].mean()
        if is_remix:
            loss = loss + 1e-4 * network.get_prior_loss().mean()
        loss.backward()
        optimizer.step()
        update_ema(average, network)
        return float(loss.item())

    return step


def ratio(times: list[float], over: list[float]) -> dict[str, float]:
    """Round by round: the median, and the least and most."""
    each = [one / other for one, other in zip(times, over, strict=True)]
    return {name: round(of(each), 3) for name, of in (("median", statistics.median), ("least", min), ("most", max))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--peers", type=Path, help="directory with the public code's checkouts")
    options = parser.parse_args()
    steps: dict[str, Step] = {}
    macs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            step, macs[kind] = ours(kind, options.batch_size, Path(folder))
            steps[kind] = timed(step)
        batch = first_batch(Path(folder), options.batch_size)
        for name in ("DiT", "Remix-DiT"):
            if options.peers is not None and (options.peers / name).is_dir():
                steps[f"public {name}"] = timed(public(options.peers / name, batch))
        matrix = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE)
        steps["product"] = timed(lambda: matrix @ matrix)
        for _ in range(3):  # what is compiled is compiled again for what it sees change
            for run in steps.values():
                run()
        compiled_before = dict(torch._dynamo.utils.counters["stats"])
        times_s: dict[str, list[float]] = {kind: [] for kind in steps}
        for _ in range(options.rounds):
            for kind, run in steps.items():
                times_s[kind].append(run())
    compiled = torch._dynamo.utils.counters
    macs_per_s = [PRODUCT_SIDE**3 / taken for taken in times_s["product"]]
    least_s = [macs["plain"] / speed for speed in macs_per_s]
    report = {
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "step_s": {kind: round(statistics.median(taken), 4) for kind, taken in times_s.items()},
        "ratio": {f"{a} over {b}": ratio(times_s[a], times_s[b]) for a, b in PAIRS if b in times_s},
        "product_gflops": round(2e-9 * statistics.median(macs_per_s), 1),
        "share_of_product": ratio(least_s, times_s["plain"]),
        "graphs": compiled["stats"]["unique_graphs"],
        "graphs_while_timed": compiled["stats"]["unique_graphs"] - compiled_before.get("unique_graphs", 0),
        "graph_breaks": sum(compiled["graph_break"].values()),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
