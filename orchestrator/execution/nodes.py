"""One task on every node of the connected cluster: what the node says of itself, and whether it can train there."""

import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.plan.fitness import NodeFacts
from orchestrator.store.remote_files import RemoteFiles
from orchestrator.store.sites import Site
from workloads.errors import ConfigError, RememeError

ANSWER_TIMEOUT_S = 60.0
"""A first process on a busy node has taken half as long."""


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Of the packages installed here; empty for one that is not."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return versions


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _look_around(
    packages: Sequence[str], directories: Sequence[Path], probe: Path, stores: Mapping[str, str], has_gpus: bool
) -> dict[str, Any]:
    clock_s, sees_probe = time.time(), probe.is_dir()
    if sees_probe:
        with suppress(OSError):  # the driver will miss it
            (probe / ray.get_runtime_context().get_node_id()).touch()
    gpus_seen = None
    if has_gpus:
        import torch

        gpus_seen = torch.cuda.device_count()
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    places = [place for place in (*directories, session) if place.exists()]
    return {
        "python": python_version(),
        "versions": package_versions(packages),
        "gpus_seen": gpus_seen,
        "clock_s": clock_s,
        "free_bytes": {str(place): shutil.disk_usage(place).free for place in places},
        "sees_probe": sees_probe,
        "has_token": has_token(),
        "store_problems": [problem for option, uri in stores.items() if (problem := _problem_with(option, uri))],
    }


def _problem_with(option: str, uri: str) -> str:
    try:
        RemoteFiles(uri, option).check()
    except RememeError as error:
        return str(error)
    return ""


def facts_of_nodes(
    packages: Sequence[str], runs_dir: Path, probe: Path, stores: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[NodeFacts], dict[str, str]]:
    """What each node says, and in a sentence each, by address, why others say nothing.

    probe is a directory below runs_dir, which the nodes see if they share that; stores are URIs, by the option that
    names them.
    """
    asked: dict[Any, tuple[Mapping[str, Any], float]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            has_gpus = node["Resources"].get("GPU", 0) > 0
            reference = _on(node, _look_around).remote(list(packages), [runs_dir], probe, dict(stores), has_gpus)
            asked[reference] = (node, time.time())
    facts, silent = [], {}
    deadline_s, waiting = time.monotonic() + ANSWER_TIMEOUT_S, list(asked)
    while waiting and time.monotonic() < deadline_s:
        ready, waiting = ray.wait(waiting, timeout=1.0)
        for reference in ready:
            node, asked_s = asked[reference]
            address = node["NodeManagerAddress"]
            try:
                said = ray.get(reference)
            except RayError as error:
                silent[address] = _why(error)
                continue
            facts.append(
                NodeFacts(
                    node=address,
                    gpus_offered=node["Resources"].get("GPU", 0.0),
                    asked_s=asked_s,
                    answered_s=time.time(),
                    answers_probe=(probe / node["NodeID"]).exists(),
                    **said,
                )
            )
    for reference in waiting:
        silent[asked[reference][0]["NodeManagerAddress"]] = f"it did not answer within {ANSWER_TIMEOUT_S:g} s"
    return facts, silent


def _why(error: RayError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = [line for line in lines if "ModuleNotFoundError" in line or "No module named" in line]
    return (missing or lines or [type(error).__name__])[-1][:200]


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _problem_of(site: Site, node: str) -> str:
    try:
        site.check(node)
    except RememeError as error:
        return str(error)
    return ""


def refuse_unfit_nodes(site: Site) -> None:
    """Raise ConfigError with the node's name if one of several nodes cannot write where the others read.

    Of one that has not answered in time, what it cannot do is told when an expert comes to it.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return  # the driver is on it, and has written there
    asked = []
    for node in nodes:
        if node["Resources"].get("CPU") or node["Resources"].get("GPU"):
            name = f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
            asked.append(_on(node, _problem_of).remote(site, name))
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_TIMEOUT_S) if asked else ([], [])
    for reference in answered:
        try:
            problem = ray.get(reference)
        except RayError:  # the node died
            continue
        if problem:
            raise ConfigError(problem)


def _on(node: Mapping[str, Any], task: Any) -> Any:
    """The task, for this node and no other."""
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))


def dashboard_address() -> str:
    """HOST:PORT of the connected cluster's dashboard, with the host's address for its name; empty if it has none."""
    from ray._private.worker import get_dashboard_url

    host, _, port = (get_dashboard_url() or "").rpartition(":")
    if not host:
        return ""
    try:
        return f"{socket.gethostbyname(host)}:{port}"
    except OSError:
        return f"{host}:{port}"


def has_token() -> bool:
    """Whether this process and its cluster ask for one."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())
