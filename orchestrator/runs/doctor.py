"""Whether this machine or cluster is fit for a run: what is wrong, and how to fix it."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from platform import python_version

from orchestrator.execution.cluster import alive_nodes, connect, local_node
from orchestrator.execution.nodes import dashboard_address, facts_of_nodes, has_token, package_versions
from orchestrator.plan.fitness import (
    MIN_FREE_BYTES,
    SAFE_SINCE,
    Finding,
    judge_dashboard,
    judge_demand,
    judge_nodes,
    judge_versions,
)
from orchestrator.plan.places import RunsDir
from orchestrator.store.remote_files import RemoteFiles
from orchestrator.store.storage import OPTION
from orchestrator.tracking.address import count_experiments, tracking_uri, try_out
from workloads.config import RunConfig
from workloads.config.evaluation import ProtocolConfig
from workloads.errors import ConfigError, RememeError
from workloads.evaluation.extractors import check_extractor
from workloads.evaluation.inception import THREE_WAYS

PACKAGES = ("rememe", "ray", "torch", "diffusers", "mlflow", "torch-fidelity", "timm")
MIN_SHM_BYTES = 256 * 2**20
"""The object store of a private cluster takes 200 MiB of it."""


def examine(
    runs_dir: Path,
    address: str | None,
    *,
    config: RunConfig | None = None,
    store: str | None = None,
    storage: str | None = None,
) -> Iterator[Finding]:
    """Findings as they are made; the slow ones (Ray, MLflow) last. config: also whether its experts find a place.

    store, storage: URIs that this machine and every node of the cluster are to reach.
    """
    stores = {option: uri for option, uri in (("--store", store), (OPTION, storage)) if uri is not None}
    yield _versions()
    yield judge_versions(package_versions(tuple(SAFE_SINCE)))
    yield _devices()
    yield _disk(runs_dir)
    yield _shared_memory()
    yield _inception()
    yield _attempt("mlflow", lambda: _mlflow(runs_dir))
    for option, uri in stores.items():
        yield _attempt(option.lstrip("-"), partial(_store, option, uri))
    yield from _cluster(runs_dir, address, config, stores)


def _versions() -> Finding:
    # Looked for, not imported: that would take seconds.
    missing = [name for name in PACKAGES[1:] if find_spec(name.replace("-", "_")) is None]
    if missing:
        return Finding(False, "packages", f"{', '.join(missing)} not installed; run: make setup")
    return Finding(
        True,
        "packages",
        f"Python {python_version()}, " + ", ".join(f"{name} {has}" for name, has in package_versions(PACKAGES).items()),
    )


def _devices() -> Finding:
    node = local_node()
    gpus = int(node["GPU"])
    text = f"{int(node['CPU'])} CPU cores, {gpus} GPUs visible here"
    if gpus == 0 and shutil.which("nvidia-smi"):
        return Finding(False, "devices", f"{text}, but a driver is installed: torch here has no CUDA")
    return Finding(True, "devices", text)


def _disk(runs_dir: Path) -> Finding:
    # The first run makes the directory; until then, the disk is that of its nearest parent.
    existing = next(parent for parent in [runs_dir.absolute(), *runs_dir.absolute().parents] if parent.exists())
    if not os.access(existing, os.W_OK):
        return Finding(False, "runs", f"{existing} cannot be written; choose another --runs-dir")
    free = shutil.disk_usage(existing).free
    text = f"{runs_dir} has {free / 1e9:.1f} GB free"
    if free < MIN_FREE_BYTES:
        return Finding(False, "runs", f"{text}; checkpoints need more, choose another --runs-dir")
    return Finding(True, "runs", text)


def _shared_memory() -> Finding:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Finding(True, "memory", "no /dev/shm on this system; Ray keeps its objects on disk")
    free = shutil.disk_usage(shm).free
    text = f"/dev/shm has {free / 1e6:.0f} MB free"
    if free < MIN_SHM_BYTES:
        return Finding(False, "memory", f"{text}; Ray falls back to disk: start the container with --shm-size 1g")
    return Finding(True, "memory", text)


def _inception() -> Finding:
    try:
        check_extractor(ProtocolConfig.model_validate("fid10k"))
    except ConfigError:
        return Finding(True, "inception", f"no weights, so no FID; the demo's own score works. For FID, {THREE_WAYS}")
    return Finding(True, "inception", "weights found and verified; FID works")


def _attempt(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(True, subject, check())
    except RememeError as error:
        return Finding(False, subject, str(error))


def _mlflow(runs_dir: Path) -> str:
    uri = tracking_uri(runs_dir)
    if uri.startswith("sqlite") and not runs_dir.exists():
        # Asking makes the database, and looking should leave nothing behind.
        with tempfile.TemporaryDirectory() as scratch:
            count_experiments(tracking_uri(Path(scratch)))
        return f"{uri} will be made by the first run"
    count = count_experiments(uri)
    try_out(uri)
    return f"{uri} answers and can be written; {count} experiments"


def _store(option: str, uri: str) -> str:
    files = RemoteFiles(uri, option)
    files.check()
    text = f"{files.uri} can be written, listed and read"
    if files.creates:
        return f"{text}, and of two that write one name at once one is told"
    return f"{text}; it heeds no condition, so of two drivers that begin at once one may train in vain: start one first"


def _cluster(
    runs_dir: Path, address: str | None, config: RunConfig | None, stores: Mapping[str, str]
) -> Iterator[Finding]:
    started_s = time.perf_counter()
    where = f"the cluster at {address}" if address else "a private cluster on this machine"
    try:
        with connect(address):
            nodes = alive_nodes()
            took_s = time.perf_counter() - started_s
            cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
            text = f"{where} answers after {took_s:.1f} s: {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
            yield Finding(True, "ray", text)
            if config is not None:
                yield judge_demand(config, nodes)
            if address is not None:
                yield from _nodes(runs_dir, stores)
                yield judge_dashboard(dashboard_address(), has_token=has_token())
    except RememeError as error:
        yield Finding(False, "ray", str(error))


def _nodes(runs_dir: Path, stores: Mapping[str, str]) -> Iterator[Finding]:
    runs, is_new = RunsDir(runs_dir), not runs_dir.exists()
    probe = runs.probe(uuid.uuid4().hex)
    try:
        probe.mkdir(parents=True)
        facts, silent = facts_of_nodes(PACKAGES, runs.path, probe, stores)
    except OSError as error:
        yield Finding(False, "runs", f"{runs.path} cannot be written ({error.strerror}); choose another --runs-dir")
        return
    finally:  # looking leaves nothing behind
        shutil.rmtree(runs.path if is_new else probe, ignore_errors=True)
    for node, why in silent.items():
        text = f"node {node} could not be asked ({why}); install rememe there, or take it out of the cluster"
        yield Finding(False, "node", text)
    yield from judge_nodes(
        facts,
        python=python_version(),
        versions=package_versions(PACKAGES),
        runs_dir=None if OPTION in stores else str(runs.path),
        has_stores=bool(stores),
        num_asked=len(facts) + len(silent),
    )
