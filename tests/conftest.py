"""What several layers of tests share. Ray and OpenMP read their environment when imported, so this comes first."""

import logging
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from networks import TINY_IUNET

from orchestrator.execution.environment import prepare_ray_environment

prepare_ray_environment(address=None)
# Threads that wait for one another sleep: spinning, they take the cores from the processes they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "a-key",
    "AWS_SECRET_ACCESS_KEY": "a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--num-fuzzed 5000` looks longer than CI can."""
    parser.addoption("--num-fuzzed", type=int, default=300, help="cases of each fuzzer: descriptions, data sources")
    parser.addoption("--fuzz-summary", help="file for what became of them, as JSON")


@contextmanager
def private_cluster(num_slots: int) -> Iterator[None]:
    from orchestrator.execution.cluster import connect

    # Processes that have imported torch for a task stay for the next; Ray keeps no more than it has CPUs otherwise.
    with connect(None, num_cpus=num_slots, _system_config={"num_workers_soft_limit": 8}):
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One private cluster of two slots for all tests of a module, and for every command they run in this process."""
    with private_cluster(2):
        yield


@pytest.fixture(scope="module")
def one_slot() -> Iterator[None]:
    """The same of one slot, for tests that are not about experts side by side: each process imports for seconds."""
    with private_cluster(1):
        yield


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A data section of 300 real images: preparing them, and a score against them, take a moment."""
    from workloads.config.data import EmbeddedData
    from workloads.data.sources import open_source

    folder = tmp_path_factory.mktemp("few")
    for number, item in enumerate(islice(open_source(EmbeddedData()).items(0), 300)):
        (folder / str(item.label)).mkdir(exist_ok=True)
        content = item.read()
        assert isinstance(content, bytes)  # a PNG file's
        (folder / str(item.label) / f"{number}.png").write_bytes(content)
    return {"kind": "folder", "path": str(folder), "image_size": 8, "channels": 1}


@pytest.fixture(scope="session")
def tiny_run(few_images: dict[str, Any]) -> dict[str, Any]:
    """A run description that trains in a second: four MEME experts of two architectures on 8 x 8 pixels."""
    return {
        "name": "tiny",
        "data": few_images | {"class_conditional": True},
        "model": TINY_IUNET,
        "strategy": {
            "kind": "meme",
            "experts": [
                {"specialisation": 0.8, "model": {"attention_share": ["1/4"]}},
                {"specialisation": 0.4},
                {"specialisation": 0.2},
                {"specialisation": 0.1, "model": {"attention_share": ["3/4"]}},
            ],
        },
        "training": {
            "images": 1024,
            "batch_size": 16,
            "checkpoint_every_images": 128,
            "log_every_images": 64,
        },
        "evaluation": {
            "name": "tiny",
            "extractor": "fashion-cnn",
            "num_samples": 40,
            "batch_size": 8,
            "sampling": {"num_steps": 4},
        },
    }


@pytest.fixture(scope="module")
def s3(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of an S3 server on loopback with a bucket named `bucket`; this process's environment leads to it."""
    moto = pytest.importorskip("moto.server", reason="needs moto[s3]")
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch_module.setenv(name, value)
    monkeypatch_module.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    S3FileSystem.clear_instance_cache()
    # What it holds outlives the server of an earlier module.
    reset = urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=60).close()
    S3FileSystem().mkdir("bucket")
    yield port
    server.stop()
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """mounted(size): an empty file system of so many bytes, as mount takes them; skips where none can be mounted."""
    place = tmp_path / "disk"

    def mount(size: str) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
        if subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("cannot mount a small file system here, so no disk can be filled or made read-only")
        return place

    yield mount
    if place.is_mount():
        # MLflow keeps its database open.
        subprocess.run(["umount", "--lazy", str(place)], check=True)
