"""Tags of MLflow runs."""

EXPERIMENT_KIND_TAG = "mlflow.experimentKind"
"""Makes MLflow's pages show metrics columns rather than language-model traces."""

FINGERPRINT_TAG = "rememe.fingerprint"
KEY_TAG = "rememe.key"
COMPARISON_TAG = "rememe.comparison"
STUDY_TAG = "rememe.study"
TRIED_TAG = "rememe.tried"
"""Of an experiment: when it was last looked whether the store can be written."""

PARENT_TAG = "mlflow.parentRunId"
LINK_TAG = "rememe.run_of."
"""Plus an expert's name: the id of its run, which may be below another configuration that has the same expert."""

IDENTITY_TAG = "rememe.identity"
"""Finds a run again after a restart; a configuration, and an expert of it, has one run."""
