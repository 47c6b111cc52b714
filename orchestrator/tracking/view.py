"""What MLflow's browser opens on: the configurations, best first, with what tells them apart as columns.

MLflow keeps columns in each browser; what can be set from outside is a view to share, which an address names.
"""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from orchestrator.tracking.names import FINGERPRINT_TAG, PROTOCOL_TAG, SCORE_TAG, TRAINING_PAGES, TRUST_TAG, VIEW_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VIEW = "rememe"
CONFIGURATIONS = f"tags.`{FINGERPRINT_TAG}` LIKE '%'"
"""Not the experts, nor studies."""
NUM_LOOKED_AT = 1000
MAX_SCORES = 3
WIDTHS = {"attributes.`Run Name`": 230, "runDateAndNestInfo": 120, "duration": 80}
WIDTH = 110


def set_first_view(client: "MlflowClient", experiment_name: str) -> str:
    """Write the view to the experiment; the part of its address behind the server's. "" if there is no experiment."""
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        return ""
    runs = client.search_runs([experiment.experiment_id], CONFIGURATIONS, max_results=NUM_LOOKED_AT)
    view = json.dumps(first_view(runs))
    # Only what is new: whoever may look need not be one who may write.
    if experiment.tags.get(VIEW_TAG + VIEW) != view:
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG + VIEW, view)
    return f"#/experiments/{experiment.experiment_id}/runs?{TRAINING_PAGES}&viewStateShareKey={VIEW}"


def first_view(runs: "list[Run]") -> dict[str, Any]:
    """State of MLflow's run table for these configurations."""
    scores = Counter(run.data.tags[SCORE_TAG] for run in runs if SCORE_TAG in run.data.tags)
    names = [name for name, _ in scores.most_common(MAX_SCORES)]
    known = {name for run in runs for name in run.data.metrics}
    columns = [
        *(f"metrics.`{shown}`" for name in names for shown in (name, f"{name}_stderr") if shown in known),
        *(f"params.`{name}`" for name in ("strategy.kind", "num_experts", "strategy.num_bases")),
        "params.`training.images`",
        *(f"metrics.`{name}`" for name in ("num_parameters", "macs")),
        *(f"tags.`{name}`" for name in (PROTOCOL_TAG, TRUST_TAG)),
    ]
    order = [*WIDTHS, *columns]
    # All of the state: what is left out is not as it is by default, but missing.
    return {
        "searchFilter": CONFIGURATIONS,
        "orderByKey": f"metrics.`{names[0]}`" if names else "attributes.start_time",
        "orderByAsc": bool(names),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*(f"attributes.`{name}`" for name in ("Duration", "Dataset", "Models")), *columns],
        "columnOrder": order,
        "columnWidths": {name: WIDTHS.get(name, WIDTH) for name in order},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": True,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
