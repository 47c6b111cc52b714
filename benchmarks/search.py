#!/usr/bin/env python3
"""What a search costs, and what training each network once saves.

    python benchmarks/search.py reuse       search-ratios, every configuration scored, with less training
    python benchmarks/search.py overhead    200 configurations whose score is there at once: Tune, ledger, MLflow
    python benchmarks/search.py table       5,000 configurations in MLflow's SQLite: the ten best, and the run table

`reuse` also compares random search with the store and without it. The score of a configuration does not depend on the
order of the search, so both are replayed over the 81 measured scores; five seeds decide the orders.
"""

import argparse
import json
import math
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.execution.environment import prepare_ray_environment

MAX_SHARE = 12 / 324
MAX_REPLAY_SHARE = 1 / 3
MAX_OVERHEAD_S = 0.3
MAX_QUERY_S = 2.0
NUM_SEEDS = 5
BUDGETS = (10, 20, 40)
"""Configurations that random search without the store can afford."""

BASE = {
    "name": "b",
    "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
    "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
    "strategy": {"kind": "independent", "num_experts": 2},
    "training": {"images": 64, "batch_size": 32},
    "evaluation": "demo",
}
SPACE = {
    "training.learning_rate": {"log_uniform": [1e-5, 1e-2]},
    "strategy.cuts": {"boundaries": {"num_experts": [2, 3, 4], "step": 100}},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["reuse", "overhead", "table"])
    parser.add_argument("--runs-dir", type=Path, help="where to keep it and go on with it (default: nowhere)")
    parser.add_argument("--images", type=int, default=2560, help="training images of an expert (reuse)")
    parser.add_argument("--configurations", type=int, help="how many (overhead: 200, table: 5000)")
    parser.add_argument("--screenshot", type=Path, default=Path("table.png"), help="of the run table (table)")
    options = parser.parse_args()
    prepare_ray_environment(None)
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs_dir or Path(scratch) / "runs"
        if options.what == "reuse":
            report, kept = reuse(runs, options.images)
        elif options.what == "overhead":
            report, kept = overhead(runs, options.configurations or 200)
        else:
            report, kept = table(runs, options.configurations or 5000, options.screenshot)
    print(json.dumps(report, indent=2))
    return 0 if kept else 1


def reuse(runs: Path, images: int) -> tuple[dict[str, Any], bool]:
    """The example study, and the replay over its scores."""
    from orchestrator.search.running.search import SearchOptions, run_study
    from orchestrator.search.study.find import find_study

    changes = [f"base.training.images={images}", "base.evaluation.num_samples=400"]
    study = find_study("search-ratios", [*changes, "base.evaluation.sampling.num_steps=8"])
    assert study is not None
    started_s = time.perf_counter()
    trials = run_study(study, runs, SearchOptions())
    elapsed_s = time.perf_counter() - started_s
    alone = sum(job.images for trial in trials for job in trial.jobs)
    trained = sum(trial.images_trained for trial in trials)
    further = [trial for trial in trials if not trial.images_trained]
    evaluation_s = [sum(rung.elapsed_s for rung in trial.rungs) for trial in further]
    rest_s = [trial.elapsed_s - own for trial, own in zip(further, evaluation_s, strict=True)]
    shares = {str(budget): _replay(study, trials, budget) for budget in BUDGETS}
    report = {
        "num_configurations": len(trials),
        "elapsed_s": round(elapsed_s, 1),
        "images_trained": trained,
        "images_alone": alone,
        "share": round(trained / alone, 4),
        "limit": round(MAX_SHARE, 4),
        "further_configurations": len(further),
        "further_median_s": {"evaluation": _median(evaluation_s), "all the rest": _median(rest_s)},
        "scores": [round(found(trial), 3) for trial in sorted(trials, key=found)[:: len(trials) - 1]],
        "images_to_the_best_score_without_store": shares,
        "limit_of_each": round(MAX_REPLAY_SHARE, 4),
    }
    worst = max(share for of_budget in shares.values() for share in of_budget)
    return report, trained / alone <= MAX_SHARE + 1e-9 and worst <= MAX_REPLAY_SHARE


def found(trial: Any) -> float:
    """The full score of a configuration."""
    score: float = trial.rung("full").value
    return score


def _replay(study: Any, trials: list[Any], budget: int) -> list[float]:
    """Images with the store, until the best score that the budget finds without it, over that budget; per seed."""
    from orchestrator.search.study.configurations import Configurations

    known = {json.dumps(trial.values, sort_keys=True): trial for trial in trials}

    def order(seed: int) -> Iterator[Any]:
        random = study.model_copy(update={"sampler": "random", "seed": seed})
        for values, _ in Configurations(random):
            yield known[json.dumps(values, sort_keys=True)]

    shares = []
    for seed in range(NUM_SEEDS):
        without = list(islice(order(seed), budget))
        spent = sum(job.images for trial in without for job in trial.jobs)
        target = min(map(found, without))
        have: dict[str, int] = {}
        for trial in order(seed + NUM_SEEDS):
            have |= {job.key: job.images for job in trial.jobs}
            if found(trial) <= target:
                break
        shares.append(round(sum(have.values()) / spent, 4))
    return shares


def overhead(runs: Path, num_configurations: int) -> tuple[dict[str, Any], bool]:
    """A search whose configurations take no time: what is left is ours, Tune's and MLflow's."""
    from orchestrator.search.running import search
    from orchestrator.search.running.search import SearchOptions, run_study
    from orchestrator.search.study.trial import Trial

    class Instant(search.TrialRunner):
        """Has the score at once."""

        def __call__(self, trial: Trial, _: Any) -> Trial:
            return _scored(trial, trial.values["training.learning_rate"], f"run-{trial.number}")

    ends_s: list[float] = []
    resident_mb: list[float] = []
    tracked_s: list[float] = []
    tell = search.Driver.tell

    def timed_tell(self: Any, trial: Trial) -> None:
        tell(self, trial)
        if trial.state == "finished":
            ends_s.append(time.perf_counter())
            if len(ends_s) % (num_configurations // 4) == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                resident_mb.append(pages * resource.getpagesize() / 1e6)

    conclude = search._Search.conclude

    def timed_conclude(self: Any) -> Path:
        self._tracker.flush()
        tracked_s.append(time.perf_counter())
        return conclude(self)

    search._Search.conclude = timed_conclude  # type: ignore[method-assign]
    search.TrialRunner = Instant  # type: ignore[misc]
    search.Driver.tell = timed_tell  # type: ignore[method-assign]
    study = _study(num_configurations)
    started_s = time.perf_counter()
    run_study(study, runs, SearchOptions())
    whole_s = time.perf_counter() - started_s
    quarter = len(ends_s) // 4
    quarters_s = [(ends_s[(i + 1) * quarter - 1] - ends_s[i * quarter]) / (quarter - 1) for i in range(4)]
    each_s = (ends_s[-1] - ends_s[0]) / (len(ends_s) - 1)
    until_s = (tracked_s[0] - ends_s[0]) / (len(ends_s) - 1)
    report = {
        "num_configurations": len(ends_s),
        "each_s": round(each_s, 4),
        "each_s_until_mlflow_has_it": round(until_s, 4),
        "each_s_by_quarter": [round(value, 4) for value in quarters_s],
        "driver_mb_by_quarter": [round(value) for value in resident_mb],
        "driver_grown_mb": round(resident_mb[-1] - resident_mb[0], 1),
        "last_quarter_over_first": round(quarters_s[-1] / quarters_s[0], 3),
        "start_and_report_s": round(whole_s - (tracked_s[0] - ends_s[0]), 1),
        "limit_s": MAX_OVERHEAD_S,
    }
    return report, until_s <= MAX_OVERHEAD_S and quarters_s[-1] <= 1.5 * quarters_s[0]


def table(runs: Path, num_configurations: int, screenshot: Path) -> tuple[dict[str, Any], bool]:
    """Configurations tracked as a search tracks them; their score is that of a made-up valley, for none is trained."""
    from mlflow import MlflowClient

    from orchestrator.plan.places import RunsDir
    from orchestrator.runs.data import prepare_data_of
    from orchestrator.search.running.log import StudyLog
    from orchestrator.search.study.configurations import Configurations
    from orchestrator.search.study.trial import Trial
    from orchestrator.search.study.trial_plans import plans_by_point
    from orchestrator.store.experts import ExpertStore
    from orchestrator.tracking.tracker import Tracker

    study, places = _study(num_configurations), RunsDir(runs)
    plans_of = plans_by_point(study, lambda config: prepare_data_of(config, places).spec(config.data))
    started_s = time.perf_counter()
    if not (runs / "mlflow.db").exists():
        with Tracker(runs) as tracker:
            log = StudyLog(study, tracker, places, ExpertStore(places.store, None), plans_of)
            for number, (values, _) in enumerate(Configurations(study)):
                score = (math.log10(values["training.learning_rate"]) + 3) ** 2
                log(_scored(Trial(number=number, values=values), score, f"run-{number}"))
                if number % 100 == 99:
                    tracker.flush()
                    print(f"{number + 1} configurations written", file=sys.stderr)
            log.end("FINISHED", None)
    written_s = time.perf_counter() - started_s
    client = MlflowClient(tracking_uri=f"sqlite:///{(runs / 'mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name("rememe")
    timings_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        best = client.search_runs(
            [experiment.experiment_id],
            f"tags.`rememe.study` = '{study.name}' and metrics.`score` >= 0",
            order_by=["metrics.`score` ASC"],
            max_results=10,
        )
        timings_s.append(time.perf_counter() - started_s)
        assert len(best) == 10
    report: dict[str, Any] = {
        "num_configurations": num_configurations,
        "written_s_each": round(written_s / num_configurations, 4),
        "ten_best_s": [round(value, 3) for value in timings_s],
        "limit_s": MAX_QUERY_S,
        "best": [round(run.data.metrics["score"], 6) for run in best],
    }
    shown_s = _open_table(runs, experiment.experiment_id, screenshot)
    report["table_shown_s"] = "not measured: no chromium" if shown_s is None else round(shown_s, 1)
    return report, max(timings_s) <= MAX_QUERY_S and shown_s is not None


def _open_table(runs: Path, experiment_id: str, screenshot: Path) -> float | None:
    """Seconds from opening the page of runs, best first, to its first rows."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        return None
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rememe = Path(sys.executable).with_name("rememe")
    server = subprocess.Popen(
        [rememe, "ui", "--port", str(port), "--runs-dir", str(runs)], stdout=subprocess.PIPE, text=True
    )
    settings = webdriver.ChromeOptions()
    settings.binary_location = chromium
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1900,1100"):
        settings.add_argument(flag)
    try:
        assert server.stdout is not None
        next(line for line in server.stdout if "results at" in line)
        browser = webdriver.Chrome(options=settings, service=webdriver.ChromeService(chromedriver))
        try:
            started_s = time.perf_counter()
            order = "orderByKey=metrics.%60score%60&orderByAsc=true"
            browser.get(f"http://127.0.0.1:{port}/#/experiments/{experiment_id}/runs?{order}")
            WebDriverWait(browser, 120, ignored_exceptions=[Exception]).until(
                lambda page: "run-" in page.find_element(By.TAG_NAME, "body").text
            )
            shown_s = time.perf_counter() - started_s
            time.sleep(3)
            browser.save_screenshot(str(screenshot))
        finally:
            browser.quit()
    finally:
        server.terminate()
        server.wait()
    return shown_s


def _study(num_configurations: int) -> Any:
    from orchestrator.search.study.study import Study
    from workloads.config.load import validate

    return validate(
        Study, {"name": "many", "base": BASE, "space": SPACE, "budget": {"num_configurations": num_configurations}}
    )


def _scored(trial: Any, score: float, run: str) -> Any:
    from orchestrator.search.study.trial import Rung

    rung = Rung(name="full", value=score, stderr=0.1, score_name="score", protocol_hash="none", num_samples=1)
    return trial.model_copy(update={"state": "finished", "runs": (run,), "rungs": (rung,)})


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


if __name__ == "__main__":
    raise SystemExit(main())
