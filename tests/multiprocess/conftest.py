"""Process groups under torchrun, and what runs in them."""

import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from workloads.config import Job
from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset

WORKER = Path(__file__).with_name("worker.py")

Torchrun = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(EmbeddedData(image_size=8), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """worker.py, for what one worker does alone in this process."""
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def torchrun() -> Torchrun:
    """torchrun(*arguments, num_workers=2)."""

    def run(*arguments: str, num_workers: int = 2) -> "subprocess.CompletedProcess[str]":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = [f"--nproc-per-node={num_workers}", f"--master-port={port}"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def run_tasks(dataset: PreparedDataset, torchrun: Torchrun) -> Callable[..., None]:
    """run_tasks(tasks, num_workers=2): tasks of worker.py (kind, job, directory), one after the other, in one group."""

    def run(tasks: Sequence[tuple[str, Job, Path]], *, num_workers: int = 2) -> None:
        described = [
            {"kind": kind, "job": job.model_dump(mode="json"), "data": str(dataset.path), "out": str(out)}
            for kind, job, out in tasks
        ]
        file = tasks[0][2].parent / "tasks.json"
        file.write_text(json.dumps(described))
        torchrun(str(WORKER), str(file), num_workers=num_workers)

    return run
