"""A trained ensemble as one of MLflow's models: a copy of its directory, and how mlflow.pyfunc loads it."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.tracking.names import ENSEMBLE_TAG
from orchestrator.tracking.notes import ModelContent

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOADER = "rememe.pyfunc"
"""Weights are safetensors and the code is the installed package's: nothing is pickled."""

DATA = "data"
"""Where in the model's files the ensemble is."""


def log_ensemble(
    client: "MlflowClient", experiment_id: str | None, run_id: str, folder: Path, content: ModelContent
) -> None:
    """Make it a model of the run, unless it is one; one whose files are not all there is gone on with."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    query = f"source_run_id = '{run_id}' AND tags.`{ENSEMBLE_TAG}` = '{content.fingerprint}'"
    found = client.search_logged_models([str(experiment_id)], filter_string=query, max_results=1)
    model = (
        found[0]
        if found
        else client.create_logged_model(
            str(experiment_id),
            name=content.run,
            source_run_id=run_id,
            tags={ENSEMBLE_TAG: content.fingerprint},
            model_type="ensemble",
        )
    )
    if model.status == LoggedModelStatus.READY:
        return
    client.log_model_artifacts(model.model_id, str(folder), DATA)
    with tempfile.TemporaryDirectory() as scratch:
        _describe(run_id, model.model_id).save(Path(scratch) / "MLmodel")
        client.log_model_artifacts(model.model_id, scratch)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    # Last: only then it is not gone on with any more.
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _describe(run_id: str, model_id: str) -> Any:
    """What MLflow reads of a model before it is loaded."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    optional = [ColSpec("long", name, required=False) for name in ("index", "label")]
    params = [ParamSpec("sampler", "string", ""), ParamSpec("num_steps", "long", 0)]
    signature = ModelSignature(
        inputs=Schema([ColSpec("long", "seed"), *optional]),
        outputs=Schema([ColSpec("string", "png")]),
        params=ParamSchema([*params, ParamSpec("guidance_scale", "double", -1.0)]),
    )
    model = Model(run_id=run_id, model_id=model_id, signature=signature)
    pyfunc.add_to_model(model, loader_module=LOADER, data=DATA)
    return model
