"""Ray Tune carries the configurations out. The only file that knows Tune; nothing of it leaves here.

A configuration is a driver without resources of its own: what it starts (experts, sampling, scoring) asks for CPUs and
GPUs, so configurations that share a cluster cannot wait for each other. Tune's own state is never read back: a study
goes on from its ledger.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.search.study.options import EarlyStop
from orchestrator.search.study.trial import Trial

ReportTrial = Callable[[Trial, float | None, float | None], None]
"""Tell how far a configuration is: its record, and a loss at a share of the training that may be judged (or None)."""

RunTrial = Callable[[Trial, ReportTrial], Trial]
"""Carry a configuration out; runs in a process of its own on the cluster, and must survive pickling."""

NO_RESOURCES = {"cpu": 0, "memory": 1}
"""One byte of memory: Tune does not take a request for nothing."""

MAX_RESTARTS = 2
"""Of a configuration whose process died."""

LAST_PERCENT = 100


def run_trials(
    ask: Callable[[], Trial | None],
    run: RunTrial,
    tell: Callable[[Trial], None],
    *,
    state_dir: Path,
    max_concurrent: int,
    early_stop: EarlyStop | None = None,
    first_percent: int = LAST_PERCENT,
    is_here: bool = False,
) -> None:
    """Ask for configurations and run them, max_concurrent at a time, until ask() gives None and all have ended.

    tell() hears of every report (state running) and of every end; ended by early_stop is state stopped. ask and tell
    are called in this process. is_here: run on this node alone, for others do not see its directories.
    """
    _quiet()
    from ray import tune

    names = {"storage_path": str(state_dir.parent), "name": state_dir.name}
    # num_samples -1: ask() says when there is nothing left.
    options = {"reuse_actors": True, "num_samples": -1, "max_concurrent_trials": max_concurrent}
    # A process that is used again costs a tenth of a second per configuration, a new one ten seconds of imports.
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_run_one, run=run, directory=_here()), _resources(is_here=is_here)),
        tune_config=tune.TuneConfig(
            search_alg=_searcher(_InThisProcess(ask, tell)), scheduler=_scheduler(early_stop, first_percent), **options
        ),
        run_config=tune.RunConfig(
            verbose=0,
            callbacks=[_failures(_InThisProcess(ask, tell))],
            failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
            **names,
        ),
    )
    # What it returns is dropped, for tell() has heard all of it.
    tuner.fit()


def _resources(*, is_here: bool) -> Any:
    import ray
    from ray.tune import PlacementGroupFactory

    if not is_here:
        return NO_RESOURCES
    node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return PlacementGroupFactory([NO_RESOURCES], bundle_label_selector=[node])


def _here() -> Path | None:
    """The command's directory; None if it is gone, as a job's may be once Ray has cleared it away."""
    with suppress(FileNotFoundError):
        return Path.cwd()
    return None


def _run_one(config: dict[str, Any], run: RunTrial, directory: Path | None) -> None:
    """directory: what relative paths of the description are relative to, where this node has it."""
    from ray import tune

    if directory is not None:
        with suppress(OSError):  # Tune's own directory, where this process is now, has to do
            os.chdir(directory)
    latest: dict[str, Any] = {}
    """Schedulers want their figures in every report, the last included."""

    def report(trial: Trial, share: float | None = None, loss: float | None = None) -> None:
        if share is not None and loss is not None:
            latest.update(percent=round(LAST_PERCENT * share), loss=loss)
        # As text: Tune would flatten a mapping into a column per field.
        tune.report({"record": trial.model_dump_json(), **latest})

    report(run(Trial.model_validate_json(config["trial"]), report))


def _quiet() -> None:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Results are kept in the ledger and in MLflow, not in Tune's CSV and TensorBoard files.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # A study without held-out losses reports no figures.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is ours: running experts write checkpoints
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    # Reports are told one by one, so that the display and early stopping are not behind.
    os.environ["TUNE_RESULT_BUFFER_LENGTH"] = "0"
    import logging

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is told in one sentence


class _InThisProcess:
    """What only this process can do. Tune pickles its parts into a state that nobody reads; this is empty there."""

    def __init__(
        self, ask: Callable[[], Trial | None] = lambda: None, tell: Callable[[Trial], None] = lambda _: None
    ) -> None:
        self.ask, self.tell = ask, tell

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _InThisProcess, ()


def _searcher(here: _InThisProcess) -> Any:
    from ray.tune.search import Searcher

    class AskTell(Searcher):  # type: ignore[misc]
        """Tune's way to ask for a configuration and to hear of it."""

        def __init__(self) -> None:
            super().__init__(metric=None, mode=None)
            self._latest: dict[str, Trial] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            trial = here.ask()
            if trial is None:
                finished: str = Searcher.FINISHED
                return finished
            self._latest[trial_id] = trial
            return {"trial": trial.model_dump_json()}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            self._latest[trial_id] = Trial.model_validate_json(result["record"])
            if self._latest[trial_id].state == "running":  # how it ended is told once, below
                here.tell(self._latest[trial_id])

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            trial = self._latest.pop(trial_id)
            if result is not None and "record" in result:
                trial = Trial.model_validate_json(result["record"])
            if not error:  # else on_trial_error knows why
                ended_early = trial.state == "running"
                here.tell(trial.model_copy(update={"state": "stopped"}) if ended_early else trial)

        def save(self, checkpoint_path: str) -> None:
            # Tune wants a file; what is in it does not matter.
            Path(checkpoint_path).write_text(json.dumps("the ledger is what counts"))

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError(checkpoint_path)

    return AskTell()


def _scheduler(early_stop: EarlyStop | None, first_percent: int) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    if early_stop is None:
        return FIFOScheduler()
    measured = {"time_attr": "percent", "metric": "loss", "mode": "min"}
    if early_stop.kind == "asha":
        return AsyncHyperBandScheduler(
            # Beyond the last, so that Tune does not end what still has to be scored.
            max_t=LAST_PERCENT + 1,
            grace_period=first_percent,
            reduction_factor=early_stop.reduction_factor,
            **measured,
        )
    return MedianStoppingRule(
        grace_period=first_percent,
        min_samples_required=early_stop.min_configurations,
        min_time_slice=LAST_PERCENT + 1,  # never pause one to let another run: a pause costs its process
        **measured,
    )


def _failures(here: _InThisProcess) -> Any:
    from ray import tune

    # A searcher hears only that there was an error; a callback may look at which.
    class Failures(tune.Callback):  # type: ignore[misc]
        """A configuration whose process died for good, or that met an error nobody expected."""

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
            failed = Trial.model_validate_json(trial.config["trial"])
            file = Path(trial.error_file) if trial.error_file else None
            lines = file.read_text().strip().splitlines() if file and file.exists() else ["its process died"]
            here.tell(failed.model_copy(update={"state": "failed", "error": lines[-1].strip()}))

    return Failures()
