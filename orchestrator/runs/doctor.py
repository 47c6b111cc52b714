"""Whether this machine or cluster is fit for a run: what is wrong, and how to fix it."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from orchestrator.execution.cluster import alive_nodes, connect, local_node
from orchestrator.tracking.address import count_experiments, tracking_uri
from workloads.config.evaluation import ProtocolConfig
from workloads.errors import ConfigError, RememeError
from workloads.evaluation.extractors import check_extractor
from workloads.evaluation.inception import THREE_WAYS

PACKAGES = ("ray", "torch", "diffusers", "mlflow", "torch-fidelity", "timm")
MIN_FREE_BYTES = 2 * 2**30
"""What two checkpoints (weights, average, two moments) of a network of 67 M parameters take."""
MIN_SHM_BYTES = 256 * 2**20
"""The object store of a private cluster takes 200 MiB of it."""


class Finding(NamedTuple):
    """One line of the report."""

    is_ok: bool
    subject: str
    text: str


def examine(runs_dir: Path, address: str | None) -> Iterator[Finding]:
    """Findings as they are made; the slow ones (Ray, MLflow) last."""
    yield _versions()
    yield _devices()
    yield _disk(runs_dir)
    yield _shared_memory()
    yield _inception()
    yield _attempt("mlflow", lambda: _mlflow(runs_dir))
    yield _attempt("ray", lambda: _ray(address))


def _versions() -> Finding:
    # Looked for, not imported: that would take seconds.
    missing = [name for name in PACKAGES if find_spec(name.replace("-", "_")) is None]
    if missing:
        return Finding(False, "packages", f"{', '.join(missing)} not installed; run: make setup")
    return Finding(
        True,
        "packages",
        f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


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
    return f"{uri} answers; {count_experiments(uri)} experiments"


def _ray(address: str | None) -> str:
    started_s = time.perf_counter()
    with connect(address):
        nodes = alive_nodes()
        took_s = time.perf_counter() - started_s
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    where = f"the cluster at {address}" if address else "a private cluster on this machine"
    return f"{where} answers after {took_s:.1f} s: {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
