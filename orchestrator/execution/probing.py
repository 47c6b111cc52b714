"""Whether every node can work where jobs are trained: asked of each before anything is."""

from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.store.sites import Site
from workloads.errors import ConfigError, RememeError

ANSWER_TIMEOUT_S = 60.0
"""A node that has not answered by then is busy or dying; what it cannot do is told when an expert comes to it."""


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _look(site: Site, node: str) -> str:
    try:
        site.check(node)
    except RememeError as error:
        return str(error)
    return ""


def refuse_unfit_nodes(site: Site) -> None:
    """Raise ConfigError with the node's name if one of several nodes cannot write where the others read."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return  # the driver is on it, and has written there
    asked = [_ask(site, node) for node in nodes if node["Resources"].get("CPU") or node["Resources"].get("GPU")]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_TIMEOUT_S) if asked else ([], [])
    for reference in answered:
        try:
            problem = ray.get(reference)
        except RayError:  # the node died
            continue
        if problem:
            raise ConfigError(problem)


def _ask(site: Site, node: dict[str, Any]) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    name = f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
    return _look.options(scheduling_strategy=strategy).remote(site, name)
