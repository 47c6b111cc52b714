"""A job in a node's own directory: where it goes on, what of it reaches the storage, and that training never waits."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from orchestrator.store import sites, tenancy
from orchestrator.store.remote_files import RemoteFiles
from orchestrator.store.sites import OnCheckpoint, SharedSite, StorageSite, Workplace
from orchestrator.store.storage import Storage
from workloads.config import DataSpec, RunConfig
from workloads.errors import StorageError, TakenOverError
from workloads.models.initial import resolve_initial
from workloads.places import JobDir
from workloads.training.result import TrainingStopped


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageSite]:
    monkeypatch.setenv("REMEME_CACHE_DIR", str(tmp_path / "node"))
    monkeypatch.setattr(sites, "PAUSES_S", (0.01, 0.05))
    yield StorageSite(Storage((tmp_path / "remote").as_uri(), 10**9))
    assert list((tmp_path / "node" / "jobs").glob("*")) == []


@contextmanager
def stopped_job(site: StorageSite, on_checkpoint: OnCheckpoint) -> Iterator[Workplace]:
    """The job k, which is asked to stop when the block ends."""
    with suppress(TrainingStopped), site.job("k", on_checkpoint, "here") as place:
        yield place
        raise TrainingStopped("asked for")


def ignore(images_seen: int) -> None:
    pass


def checkpoint(folder: Path, images_seen: int) -> None:
    """What training leaves when it has written a checkpoint."""
    place = JobDir(folder)
    target = place.checkpoints / f"{images_seen:012d}"
    target.mkdir(parents=True)
    (target / "state.safetensors").write_bytes(bytes([images_seen % 256]) * 1000)
    with place.records.open("a") as records:
        records.write(f"{images_seen}\n")


def known(site: StorageSite) -> list[int]:
    """Images seen at the checkpoints in the storage."""
    return [int(name) for name in sites._known_checkpoints(site.storage.store, "k")]


def test_a_stopped_job_goes_on_elsewhere_from_its_last_checkpoint(site: StorageSite) -> None:
    sent: list[int] = []
    with stopped_job(site, sent.append) as place:
        for images_seen in (16, 32, 48):
            checkpoint(place.path, images_seen)
            place.on_checkpoint(images_seen)
            wait_until(lambda images_seen=images_seen: sent[-1:] == [images_seen])
        checkpoint(place.path, 64)
        place.on_checkpoint(64)
    assert sent == [16, 32, 48, 64]
    assert known(site) == [64, 48]
    with site.job("k", sent.append, "there") as place:
        job = JobDir(place.path)
        assert [folder.name for folder in job.checkpoints.iterdir()] == [f"{64:012d}"]
        assert job.records.read_text() == "16\n32\n48\n64\n"
        job.result.write_text("{}")
    assert known(site) == []
    assert list(site.storage.store.index("k").files) == ["records.jsonl", "result.json"]


def test_a_damaged_checkpoint_is_skipped(site: StorageSite, tmp_path: Path) -> None:
    with stopped_job(site, ignore) as place:
        for images_seen in (16, 32):
            checkpoint(place.path, images_seen)
            place.on_checkpoint(images_seen)
            wait_until(lambda images_seen=images_seen: images_seen in known(site) and known(site)[0] == images_seen)
    (damaged,) = (tmp_path / "remote").rglob(f"{32:012d}/attempt-*/checkpoints/*/state.safetensors")
    damaged.write_bytes(b"rubbish")
    with stopped_job(site, ignore) as place:
        assert JobDir(place.path).checkpointed_images() == 16


def test_training_does_not_wait_for_a_slow_storage_and_only_the_newest_is_sent(
    site: StorageSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, upload, sent = threading.Event(), RemoteFiles.upload, []

    def slowly(files: RemoteFiles, source: Path, name: str) -> None:
        go_on.wait(10)
        upload(files, source, name)

    monkeypatch.setattr(RemoteFiles, "upload", slowly)
    with stopped_job(site, sent.append) as place:
        started_s = time.monotonic()
        for images_seen in range(16, 176, 16):
            checkpoint(place.path, images_seen)
            place.on_checkpoint(images_seen)
            if images_seen == 16:
                wait_until(lambda: (place.path.with_suffix(".outgoing")).is_dir())
        assert time.monotonic() - started_s < 5
        go_on.set()
    assert sent[-1] == 160
    assert len(sent) <= 3


def test_an_outage_costs_nothing_but_the_checkpoints_of_its_time(
    site: StorageSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upload, is_out, sent = RemoteFiles.upload, threading.Event(), []

    def refused(files: RemoteFiles, source: Path, name: str) -> None:
        if is_out.is_set():
            raise StorageError("no answer")
        upload(files, source, name)

    monkeypatch.setattr(RemoteFiles, "upload", refused)
    with site.job("k", sent.append, "here") as place:
        is_out.set()
        checkpoint(place.path, 16)
        place.on_checkpoint(16)
        wait_until(lambda: "no answer" in caplog.text)
        is_out.clear()
        wait_until(lambda: sent == [16])  # without a new one
        JobDir(place.path).result.write_text("{}")
    assert site.storage.store.index("k") is not None
    is_out.set()
    with pytest.raises(StorageError, match="no answer"), site.job("other", sent.append, "here") as place:
        JobDir(place.path).result.write_text("{}")
    assert site.storage.store.index("other") is None


def test_a_node_that_was_cut_off_sends_nothing_after_its_heir(site: StorageSite) -> None:
    numbers = count(32, 16)

    def go_on(place: Workplace) -> bool:
        checkpoint(place.path, images_seen := next(numbers))
        place.on_checkpoint(images_seen)
        return False

    with ExitStack() as first:
        place = first.enter_context(site.job("k", ignore, "first"))
        checkpoint(place.path, 16)
        place.on_checkpoint(16)
        wait_until(lambda: known(site) == [16])
        with site.job("k", ignore, "heir") as heir:
            assert JobDir(heir.path).checkpointed_images() == 16
            with pytest.raises(TakenOverError, match="another node has taken over the training of k; this one ends"):
                wait_until(lambda: go_on(place))
            assert known(site) == [16]
            JobDir(heir.path).result.write_text("heir")
        published = site.storage.store.index("k")
        JobDir(place.path).result.write_text("first")
        with pytest.raises(TakenOverError):
            first.close()
    assert known(site) == []
    assert site.storage.store.index("k") == published
    assert not site.storage.store.files.names(f"k/{sites.TENURES}")


def test_weights_to_start_from_come_from_the_storage(
    site: StorageSite, tiny_run: dict[str, Any], tmp_path: Path
) -> None:
    """With all parts of them, and nothing else that lies beside them."""
    (tmp_path / "given").mkdir()
    index = tmp_path / "given" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}))
    for name in ("part-1.safetensors", "part-2.safetensors", "other"):
        (tmp_path / "given" / name).write_bytes(name.encode())
    config = RunConfig.model_validate(tiny_run)
    data = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)
    job = config.jobs(data, resolve_initial(index))[0]
    assert job.initial is not None
    site.storage.keep_initial(job.initial)
    index.unlink()  # another machine's
    found = site.job_here(job)
    assert found.key == job.key
    assert found.initial is not None
    assert sorted(path.name for path in found.initial.path.parent.iterdir()) == sorted(
        [index.name, "part-1.safetensors", "part-2.safetensors"]
    )
    assert resolve_initial(found.initial.path).sha256 == job.initial.sha256
    without = config.jobs(data)[0]
    assert site.job_here(without) is without


def test_what_a_killed_attempt_has_left_is_removed_and_a_living_one_is_not(site: StorageSite) -> None:
    with stopped_job(site, ignore) as living:
        left_over = living.path.with_name("k-000000000000")
        left_over.mkdir()
        left_over.with_suffix(".lock").touch()
        with stopped_job(site, ignore) as place:
            assert place.path != living.path
            assert living.path.exists()
            assert not left_over.exists()


@pytest.fixture
def shared(tmp_path: Path) -> SharedSite:
    (tmp_path / sites.ID_FILE).write_text("mine")
    return SharedSite(tmp_path, "mine")


def test_who_begins_a_shared_job_makes_the_one_before_leave(
    shared: SharedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenancy, "LOOK_INTERVAL_S", 0.01)
    first, second = threading.Event(), threading.Event()
    with shared.job("k", ignore, "lost", first.set):
        with shared.job("other", ignore, "here", second.set), shared.job("k", ignore, "a worker of the group's"):
            assert not first.wait(0.1)
        with shared.job("k", ignore, "here", second.set):
            assert first.wait(5)
    assert not second.is_set()


HANG = """
import sys, time
from pathlib import Path
from orchestrator.store import tenancy
from orchestrator.store.sites import SharedSite
tenancy.LOOK_INTERVAL_S = tenancy.LEAVE_TIMEOUT_S = 0.05
with SharedSite(Path(sys.argv[1]), "mine").job("k", print, "lost", lambda: print("asked", flush=True)):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_process_that_cannot_leave_ends(shared: SharedSite) -> None:
    """It waits for a worker that it cannot reach, and holds the job's lock."""
    command = [sys.executable, "-c", HANG, str(shared.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hanging:
        assert hanging.stdout is not None
        assert hanging.stdout.readline() == "begun\n"
        with shared.job("k", ignore, "here", lambda: None):
            assert hanging.stdout.read() == "asked\n"
            assert hanging.wait(10) == 1
