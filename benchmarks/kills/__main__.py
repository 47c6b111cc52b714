"""SIGKILL at any moment: runs of `workloads` are killed and started again until they are through; all end the same.

    python -m benchmarks.kills --kills 400 --out kills.jsonl     # again: more of them, with the next seeds
    python -m benchmarks.kills --summary kills.jsonl             # what the lines of such files say together

A run is prepared data, training, gathering, samples and a score; or what a driver logs, to MLflow. Its processes are
forked from one that has imported all (commands.py has real commands). A process is killed at a random time, or by
itself at a chosen moment: the n-th call of a function of the project, or the n-th file opened, renamed or removed, in a
stage. In the end every file the run has left must have the bytes of the undisturbed run's, measured times aside, and no
other file may lie there; so must every checkpoint on the way; and after a kill no more is trained again than since the
last checkpoint. MLflow must have each run and row once.

Every run is a line of the file, so a series that is cut short is not lost.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kills.runs import Outcome, Scenario, kill_and_compare, read, undisturbed
from benchmarks.kills.scenarios import empty_database, runs_of_workloads, sampling_of, tracking, write_pictures
from benchmarks.kills.tracer import ROOT


def import_all() -> None:
    """What every process of a run would import; with no thread started, so that forking is safe."""
    import torch

    torch.set_num_threads(1)
    import diffusers  # noqa: F401
    import mlflow  # noqa: F401
    import torch.distributed

    import workloads.__main__
    import workloads.data.prepare
    import workloads.evaluation.extractors
    import workloads.evaluation.fashion_cnn
    import workloads.evaluation.score
    import workloads.grid
    import workloads.models.build
    import workloads.models.dit
    import workloads.models.iunet
    import workloads.pipeline
    import workloads.training.job
    import workloads.training.jobs  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=400, help="at least so many")
    parser.add_argument("--per-run", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="meme, independent, remix, tracking (these by default), sampling")
    parser.add_argument("--out", type=Path, default=Path("kills.jsonl"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--summary", type=Path, nargs="+", help="only say what such files hold")
    options = parser.parse_args()
    if options.summary:
        print(json.dumps(summary(options.summary), indent=2))
        return
    import_all()
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        data, database = write_pictures(Path(scratch) / "data"), empty_database(Path(scratch) / "empty.db")
        known = [*runs_of_workloads(data), tracking(database)]
        if "sampling" in (options.only or []):
            known.append(sampling_of(known[1], Path(scratch) / "trained"))
        series([one for one in known if one.name in (options.only or one.name)], Path(scratch), options)


def series(chosen: Sequence[Scenario], scratch: Path, options: argparse.Namespace) -> None:
    """Runs of all scenarios in turn, a line each."""
    deadline_s = time.monotonic() + options.seconds
    whole = {one.name: undisturbed(one, scratch / one.name) for one in chosen}
    done = Counter(line["scenario"] for line in (read(options.out)))
    num_kills = 0
    while num_kills < options.kills and time.monotonic() < deadline_s:
        for one in chosen:
            folder = scratch / f"{one.name}-{done[one.name]}"
            outcome = kill_and_compare(whole[one.name], folder, num_kills=options.per_run, seed=done[one.name])
            append(options.out, outcome)
            num_kills += len(outcome.kills)
            done[one.name] += 1
            if not outcome.differences:
                shutil.rmtree(folder)


def append(file: Path, outcome: Outcome) -> None:
    """One line; told on the terminal if it shows a fault."""
    with file.open("a") as opened:
        opened.write(json.dumps(asdict(outcome)) + "\n")
    for one in outcome.differences:
        print(f"{outcome.scenario} {outcome.seed}: {one}", flush=True)


def summary(files: Sequence[Path]) -> dict[str, Any]:
    """Counts over all lines, and what the machine and the commit are."""
    lines = [line for file in files for line in read(file)]
    kills = [(line["scenario"], kill) for line in lines for kill in line["kills"]]
    again = sorted(kill["images_again"] for _, kill in kills)
    recover = sorted(kill["recover_s"] for _, kill in kills if kill["recover_s"] is not None)
    ask = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(ask, capture_output=True, text=True, check=True)
    return {
        "command": " ".join(["python", "-m", "benchmarks.kills", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "runs": len(lines),
        "runs_that_ended_otherwise": sum(bool(line["differences"]) for line in lines),
        "kills": len(kills),
        "by_scenario": Counter(name for name, _ in kills),
        "by_process": Counter(kill["process"] for _, kill in kills),
        "by_stage": Counter(kill["stage"] for _, kill in kills),
        "distinct_points": len({(kill["stage"], kill["point"]) for _, kill in kills}),
        "images_again_of_a_kill": {"mean": sum(again) / max(1, len(again)), "most": again[-1] if again else 0},
        "recover_s": {"median": recover[len(recover) // 2], "most": recover[-1]} if recover else {},
        "differences": [f"{line['scenario']} {line['seed']}: {one}" for line in lines for one in line["differences"]],
    }


if __name__ == "__main__":
    main()
