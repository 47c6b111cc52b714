"""What is carried out while processes are killed, each small enough for a second or two."""

import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.kills.runs import Scenario, in_fork


def run_workloads(description: Path, out: Path) -> int:
    """As `python -m workloads run` does: data, training, ensemble, samples, score."""
    import torch

    from workloads.__main__ import main

    torch.set_num_threads(1)
    return main(["run", str(description), "--out", str(out)])


def runs_of_workloads(data: Path) -> list[Scenario]:
    """A MEME, independent experts, and a remix by two workers; small enough for a run a second."""
    base: dict[str, Any] = {
        "data": {"kind": "folder", "path": str(data), "image_size": 8, "channels": 1},
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "training": {
            "images": 96,
            "batch_size": 8,
            "ema_halflife_images": 40,
            "checkpoint_every_images": 24,
            "log_every_images": 8,
        },
        "evaluation": {
            "name": "tiny",
            "extractor": "fashion-cnn",
            "num_samples": 8,
            "batch_size": 4,
            "sampling": {"num_steps": 2},
        },
    }
    iunet = {
        "kind": "iunet",
        "channels": 8,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_levels": [1],
        "head_dim": 4,
        "norm_groups": 4,
        "mixer_levels": [1],
        "attention_share": ["1/2"],
        "pool_sizes": [1],
    }
    experts = [{"specialisation": 0.8, "model": {"attention_share": ["1/4"]}}, {"specialisation": 0.2}]
    remix = {"strategy": {"kind": "remix", "num_experts": 4, "num_bases": 2}, "execution": {"num_workers": 2}}
    return [
        Scenario(
            "meme",
            base | {"name": "meme", "model": iunet, "strategy": {"kind": "meme", "experts": experts}},
            run_workloads,
        ),
        Scenario(
            "independent", base | {"name": "ind", "strategy": {"kind": "independent", "num_experts": 2}}, run_workloads
        ),
        Scenario("remix", base | {"name": "remix"} | remix, run_workloads, num_workers=2),
    ]


def sampling_of(scenario: Scenario, folder: Path) -> Scenario:
    """What follows training, by itself: of trained experts in `folder`, which are trained there unless they are."""
    trained = folder / "trained"
    if not trained.exists():
        description = folder / "run.yaml"
        folder.mkdir()
        description.write_text(json.dumps(scenario.raw))
        assert in_fork(lambda: run_workloads(description, trained)) == 0

    def begin(out: Path) -> None:
        for name in ("data", "store"):
            shutil.copytree(trained / name, out / name)

    return Scenario("sampling", scenario.raw, run_workloads, begin=begin)


def write_pictures(folder: Path, number: int = 60) -> Path:
    """So many real images in a folder per class."""
    from workloads.config.data import EmbeddedData
    from workloads.data.sources import open_source

    for index, item in enumerate(islice(open_source(EmbeddedData()).items(0), number)):
        content = item.read()
        assert isinstance(content, bytes)
        file = folder / str(item.label) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


EXPERTS, RECORDS = 3, 12


def track(description: Path, out: Path) -> int:
    """A configuration of three experts as a driver logs it, without the training."""
    from orchestrator.tracking import tracker as module
    from workloads.training.records import TrainingRecord

    module.FLUSH_INTERVAL_S = 0.05
    if not (out / "mlflow.db").exists():  # made once for all runs: it takes MLflow seconds
        out.mkdir(exist_ok=True)
        shutil.copyfile(json.loads(description.read_text())["database"], out / "new.db")
        (out / "new.db").rename(out / "mlflow.db")
    with module.Tracker(out) as tracker:
        run = tracker.configuration("tiny", "f" * 16, {"seed": 0, "name": "tiny"}, "seed: 0")
        for number in range(EXPERTS):
            expert = tracker.expert(run, f"expert_{number:02d}", f"expert {number}", f"k{number}", {"number": number})
            for seen in range(1, RECORDS + 1):
                record = TrainingRecord(64 * seen, 1 / seen, 10.0, 1e-3, 0.0, written_s=1e9 + seen)
                expert.records([record])
                if seen % 4 == 0:
                    tracker.flush()
            expert.log_metrics({"final_loss": 0.5 + number}, measured_s=1e9)
            expert.finish("FINISHED")
        run.log_metrics({"fd-fashion-cnn": 3.25})
        run.log_text("a score", "score.json")
        run.set_tags({"rememe.protocol": "tiny"})
        run.finish("FINISHED")
    return 0


def rows_of(out: Path) -> Mapping[str, str]:
    """Every run of MLflow by its identity, with each row there is about it; and what the spool still holds."""
    with closing(sqlite3.connect(out / "mlflow.db")) as database:
        runs = database.execute("select run_uuid, status from runs where lifecycle_stage = 'active'").fetchall()
        found = {}
        for run, status in runs:
            rows = {
                table: sorted(database.execute(f"select {columns} from {table} where run_uuid = ?", [run]).fetchall())
                for table, columns in ROWS.items()
            }
            tags = dict(rows["tags"])
            ours = {key: value for key, value in tags.items() if key.startswith("rememe.") and value not in dict(runs)}
            folder = out / "mlartifacts" / run / "artifacts"
            files = {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}
            told = {"status": status, "files": files, **rows, "tags": ours, "links": len(tags) - len(ours)}
            name = tags["rememe.identity"]
            found[f"a second {name}" if name in found else name] = json.dumps(told, sort_keys=True)
    left = [file for file in (out / "spool").rglob("*") if file.is_file() and file.suffix != ".lock"]
    return found | {str(file.relative_to(out)): "" for file in left}


ROWS = {"params": "key, value", "tags": "key, value", "metrics": "key, step, value"}


def empty_database(file: Path) -> Path:
    """One of MLflow's. Made in a process that ends, for MLflow starts threads."""
    from orchestrator.tracking.address import open_client

    assert in_fork(lambda: open_client(f"sqlite:///{file}")) == 0
    return file


def tracking(database: Path) -> Scenario:
    """Notes, spool and MLflow. `database`: an empty one of MLflow's."""
    return Scenario("tracking", {"database": str(database)}, track, look=rows_of)
