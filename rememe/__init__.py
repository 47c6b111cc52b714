"""rememe in notebooks and scripts: the functions behind the command line.

    import rememe

    config = rememe.load_config("demo-meme", ["training.images=50000"])
    outcome = rememe.train(config)                          # as `rememe train`: again = resume
    ensemble = rememe.Ensemble.load(outcome.run.path)
    ensemble.sample(16, seed=1)                             # a notebook shows the grid
    rememe.evaluate(outcome.run.path, protocol="fid10k").value

Importing it costs nothing; torch, Ray and MLflow are imported by what needs them. What a user can mend is a
`rememe.RememeError` of one sentence.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.imports import fast_imports

if TYPE_CHECKING:
    from orchestrator.runs.configuration import Outcome
    from orchestrator.search.study.study import Study
    from orchestrator.search.study.trial import Trial
    from workloads.config import RunConfig
    from workloads.config.load import load_config
    from workloads.ensemble import Ensemble, swap_expert
    from workloads.errors import RememeError
    from workloads.evaluation.draw import Samples
    from workloads.evaluation.protocol import Score
    from workloads.interop import MultiExpertPipeline, TwoExpertPipeline, sample_generators

__version__ = "0.1.0"

__all__ = [
    "Ensemble",
    "MultiExpertPipeline",
    "RememeError",
    "TwoExpertPipeline",
    "__version__",
    "evaluate",
    "load_config",
    "sample",
    "sample_generators",
    "search",
    "swap_expert",
    "train",
]

_HOMES = {
    "Ensemble": "workloads.ensemble",
    "MultiExpertPipeline": "workloads.interop",
    "RememeError": "workloads.errors",
    "TwoExpertPipeline": "workloads.interop",
    "load_config": "workloads.config.load",
    "sample_generators": "workloads.interop",
    "swap_expert": "workloads.ensemble",
}
"""Where names of this module come from, when somebody first asks for them."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rememe' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def train(
    config: "RunConfig | Path | str",
    overrides: Sequence[str] | str = (),
    *,
    runs_dir: Path | str = "runs",
    address: str | None = None,
    evaluate: bool = True,
    store: str | None = None,
    storage: str | None = None,
) -> "Outcome":
    """Train every expert in parallel, gather the ensemble, score it; called again, it goes on or finds all done.

    config: what load_config gives, or the name of a preset or a YAML file, with overrides as `training.images=50000`.
    runs_dir: where data, experts, results and MLflow's store are kept. address: a Ray cluster; None: a private one on
    this machine, for the time of the call. store, storage: URIs, see `rememe train --help`.

    The outcome has .run.path (the run's directory), .results (of each job) and .score (None with evaluate=False).
    Raises ConfigError before anything is started, ExpertsFailedError after the others have finished, and
    RunStoppedError when it was interrupted and checkpoints were written.
    """
    loaded = _loaded(config, overrides)
    _before_ray(address)
    with fast_imports():
        from orchestrator.runs.configuration import train_configuration

    return train_configuration(loaded, Path(runs_dir), address=address, evaluate=evaluate, store=store, storage=storage)


def sample(
    run: Path | str,
    num: int = 64,
    *,
    seed: int = 0,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    device: str | None = None,
    runs_dir: Path | str = "runs",
    storage: str | None = None,
) -> "Samples":
    """Draw images from a run directory (or its ensemble); the same arguments give the same images.

    sampler, num_steps, guidance_scale: None is what the run's protocol says. device: None is cuda if there is one.
    Raises ConfigError if there is no ensemble, or the settings do not go with it. For more than one call, load it once:
    Ensemble.load(run).sample(...).
    """
    from orchestrator.runs.stored import run_at_hand

    with run_at_hand(Path(run), Path(runs_dir), storage) as folder:
        with fast_imports():
            from orchestrator.runs.sampling import sample_run

        return sample_run(
            folder,
            num,
            seed=seed,
            sampler=sampler,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            device=device,
        )


def evaluate(
    run: Path | str,
    *,
    protocol: str | None = None,
    overrides: Sequence[str] | str = (),
    runs_dir: Path | str = "runs",
    address: str | None = None,
    storage: str | None = None,
) -> "Score":
    """Score a trained run under a protocol (fid50k, fid10k, fid2k, demo; None: its own) and log it to MLflow.

    overrides: fields of the protocol, as `num_samples=2000`. Scores are compared only where .protocol_hash is equal.
    Raises ConfigError if there is no ensemble, or the protocol does not go with it.
    """
    _before_ray(address)
    from orchestrator.runs.stored import run_at_hand

    with run_at_hand(Path(run), Path(runs_dir), storage, is_changed=True) as folder:
        with fast_imports():
            from orchestrator.runs.configuration import evaluate_run

        return evaluate_run(
            folder, Path(runs_dir), protocol=protocol, overrides=overrides, address=address, storage=storage
        )


def search(
    study: "Study | Path | str",
    overrides: Sequence[str] | str = (),
    *,
    runs_dir: Path | str = "runs",
    address: str | None = None,
    max_failures: int = 0,
    plan_from: str | None = None,
    num_planned: int = 3,
    store: str | None = None,
    storage: str | None = None,
) -> "list[Trial]":
    """Search boundaries, architectures and numbers of experts, each expert trained once; called again, it goes on.

    study: a name (demo-search) or a YAML file with a space. plan_from: an earlier study, whose experts' losses propose
    the first num_planned configurations. Returns all configurations, in order. Raises ConfigError before anything is
    started, RememeError when more than max_failures configurations failed.
    """
    found = _study(study, overrides)
    _before_ray(address)
    with fast_imports():
        from orchestrator.search.running.search import SearchOptions, run_study

    options = SearchOptions(address, store, max_failures, plan_from, num_planned, storage)
    return run_study(found, Path(runs_dir), options)


def _loaded(config: "RunConfig | Path | str", overrides: Sequence[str] | str) -> "RunConfig":
    from workloads.config import RunConfig
    from workloads.config.load import load_config
    from workloads.errors import ConfigError

    if not isinstance(config, RunConfig):
        return load_config(config, overrides)
    if overrides:
        raise ConfigError("overrides are for a preset's name or a file; give them to load_config")
    return config


def _study(study: "Study | Path | str", overrides: Sequence[str] | str) -> "Study":
    from orchestrator.search.study.find import require_study
    from orchestrator.search.study.study import Study
    from workloads.errors import ConfigError

    if not isinstance(study, Study):
        return require_study(study, overrides)
    if overrides:
        raise ConfigError("overrides are for a study's name or file; change the study itself")
    return study


def _before_ray(address: str | None) -> None:
    """Ray reads its environment when it is first imported, so that is arranged before; once per process."""
    from orchestrator.execution import environment

    if "ray" not in sys.modules:
        environment.prepare_ray_environment(address)
    elif address is None and not sys.modules["ray"].is_initialized() and os.environ.get("RAY_AUTH_MODE") != "token":
        from workloads.errors import ConfigError

        raise ConfigError(
            "ray was imported before rememe could give a private cluster its token, and other users of this machine "
            "could reach it; call rememe first in a new process, or name a cluster with address"
        )
