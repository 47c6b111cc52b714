"""A node's cache: fetched once, verified, no larger than allowed, and nothing taken away from who uses it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.store import cache as node_cache
from orchestrator.store.cache import NodeCache, node_root
from orchestrator.store.remote import RemoteStore
from workloads.errors import StorageError

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.store.cache import NodeCache
from orchestrator.store.remote import RemoteStore
print(NodeCache(Path(sys.argv[1]), 2500).fetch(RemoteStore(sys.argv[2]), "a"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def remote(tmp_path: Path) -> RemoteStore:
    """Three folders of 1,000 bytes each."""
    remote = RemoteStore((tmp_path / "remote").as_uri())
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "shard").write_bytes(name.encode() * 1000)
        remote.publish(name, tmp_path / name)
    return remote


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a node keeps folders, used by nobody yet."""
    node_cache._held.clear()
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


def test_a_folder_is_fetched_once_and_again_if_it_was_cut_short(remote: RemoteStore, root: Path) -> None:
    cache = NodeCache(root, 2500)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: cache.fetch(remote, "a"), range(8)))
    (folder,) = found
    assert (folder / "shard").read_bytes() == b"a" * 1000
    made_ns = (folder / "shard").stat().st_mtime_ns
    assert cache.fetch(remote, "a") == folder
    assert (folder / "shard").stat().st_mtime_ns == made_ns
    (folder / "shard").write_bytes(b"a" * 999)
    assert (cache.fetch(remote, "a") / "shard").read_bytes() == b"a" * 1000


def test_the_least_used_goes_when_there_is_no_room(remote: RemoteStore, root: Path) -> None:
    cache = NodeCache(root, 2500)
    a, b = cache.fetch(remote, "a"), cache.fetch(remote, "b")
    os.utime(a.with_suffix(".lock"), (1e9, 1e9))
    os.utime(b.with_suffix(".lock"), (2e9, 2e9))
    node_cache._held.clear()
    c = cache.fetch(remote, "c")
    assert (a.exists(), b.exists(), c.exists()) == (False, True, True)


def test_what_another_process_uses_stays(remote: RemoteStore, root: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(root), remote.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        a = Path(holder.stdout.readline().strip())
        cache = NodeCache(root, 2500)
        b = cache.fetch(remote, "b")
        os.utime(a.with_suffix(".lock"), (1e9, 1e9))
        node_cache._held.clear()
        c = cache.fetch(remote, "c")
        assert (a.exists(), b.exists(), c.exists()) == (True, False, True)
        with pytest.raises(StorageError, match="does not fit beside what is in use"):
            cache.fetch(remote, "b")
        holder.kill()
    assert cache.fetch(remote, "b").exists()
    assert not a.exists()


def test_what_is_larger_than_the_cache_is_refused(remote: RemoteStore, root: Path) -> None:
    with pytest.raises(StorageError, match=r"more than execution\.cache_size_gb"):
        NodeCache(root, 999).fetch(remote, "a")
    with pytest.raises(StorageError, match="nothing is not there"):
        NodeCache(root, 999).fetch(remote, "nothing")


def test_a_directory_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMEME_CACHE_DIR", str(tmp_path / "new" / "mine"))
    assert node_root().is_dir()
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(StorageError, match="belongs to another user"):
        node_root()
