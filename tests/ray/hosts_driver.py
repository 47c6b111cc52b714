"""Trains one configuration's jobs on a cluster and prints what happens to them in lines of JSON; run by test_hosts."""

import json
import sys
from enum import Enum
from pathlib import Path

from orchestrator.execution.environment import prepare_ray_environment

address = sys.argv[1]
prepare_ray_environment(address)

from orchestrator.execution import supervisor  # noqa: E402
from orchestrator.execution.cluster import connect  # noqa: E402
from orchestrator.plan.events import ExpertEvent, Progressed  # noqa: E402
from orchestrator.plan.jobs import make_plan  # noqa: E402
from orchestrator.store.experts import ExpertStore  # noqa: E402
from workloads.config import RunConfig  # noqa: E402
from workloads.data.prepared import PreparedDataset  # noqa: E402

config = RunConfig.model_validate(json.loads(Path(sys.argv[2]).read_text()))
dataset = PreparedDataset(Path(sys.argv[3]))
store = ExpertStore(Path(sys.argv[4]))


def tell(event: ExpertEvent) -> None:
    said = {"event": type(event).__name__}
    if isinstance(event, Progressed):
        said["images_seen"] = event.images_seen
    else:
        said |= {name: value.name if isinstance(value, Enum) else value for name, value in vars(event).items()}
    print(json.dumps({"key": event.key} | said), flush=True)


supervisor.POLL_INTERVAL_S = 0.1  # as in the other tests of this folder
jobs = make_plan(config, dataset.spec(config.data)).jobs
with connect(address):
    outcome = supervisor.train_experts(jobs, dataset.path, store, config.execution, [tell])
print(json.dumps({"failed": outcome.failed, "stopped": outcome.stopped}), flush=True)
