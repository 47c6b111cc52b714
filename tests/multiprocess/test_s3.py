"""A real S3 server, and what lies between it and us: every fault is one sentence, and training goes on without it."""

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from s3fs import S3FileSystem
from waiting import wait_until

from orchestrator.store import remote as remote_store
from orchestrator.store.experts import ExpertStore
from orchestrator.store.remote import RemoteStore
from orchestrator.store.remote_files import RemoteFiles
from workloads.errors import ConfigError, StorageError

pytestmark = pytest.mark.multiprocess

LARGE = 2**20
"""Bytes of a file that takes many packets."""


class FaultyProxy:
    """Passes bytes between clients and the server, or misbehaves as `fault` says."""

    def __init__(self, port: int) -> None:
        self._upstream, self.fault = port, ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):  # closed by the test already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            request = client.recv(2**16)
            if self.fault == "reset":
                return reset(client)
            if self.fault in {"403", "500"}:
                code = {"403": "AccessDenied", "500": "InternalError"}[self.fault]
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told so</Message></Error>"
                head = f"HTTP/1.1 {self.fault} {code}\r\nContent-Type: application/xml\r\nConnection: close"
                shown = "" if request.startswith(b"HEAD") else body
                client.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{shown}".encode())
                return reset(client, gently=True)
            if self.fault == "slow":
                time.sleep(0.4)
            with socket.create_connection(("127.0.0.1", self._upstream)) as server:
                server.sendall(request)
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                if self.fault == "cut":
                    pump(client, server, limit=LARGE // 2)
                    reset(client)
                    return None
                pump(client, server)
                back.join()
        except OSError:
            return None


def pump(source: socket.socket, target: socket.socket, limit: int | None = None) -> None:
    num_bytes = 0
    try:
        while (limit is None or num_bytes < limit) and (part := source.recv(2**14)):
            target.sendall(part)
            num_bytes += len(part)
        if limit is None:
            target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def reset(client: socket.socket, *, gently: bool = False) -> None:
    if not gently:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST instead of FIN
    client.close()


@pytest.fixture
def proxy(s3: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between this process and the server, for one test."""
    proxy = FaultyProxy(s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    S3FileSystem.clear_instance_cache()
    yield proxy
    proxy.close()
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished job's directory, as far as a store looks at it."""
    folder = tmp_path / "work" / "k"
    (folder / "expert").mkdir(parents=True)
    (folder / "expert" / "weights").write_bytes(os.urandom(LARGE))
    (folder / "result.json").write_text("{}")
    return folder


def test_what_one_machine_publishes_another_fetches(s3: int, finished: Path, tmp_path: Path) -> None:
    RemoteStore("s3://bucket/whole").publish("k", finished)
    assert RemoteStore("s3://bucket/whole").fetch("k", tmp_path / "k")
    assert (tmp_path / "k" / "expert" / "weights").read_bytes() == (finished / "expert" / "weights").read_bytes()
    assert not RemoteStore("s3://bucket/whole").fetch("other", tmp_path / "other")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("403", "check the credentials"),
        ("500", "run the same command again"),
        ("reset", "reachable from every node"),
        ("cut", "run the same command again"),
    ],
)
def test_a_fault_is_one_sentence_and_nothing_half_is_there(
    proxy: FaultyProxy, finished: Path, tmp_path: Path, fault: str, said: str
) -> None:
    uri = f"s3://bucket/fault-{fault}"
    store = RemoteStore(uri)
    assert not store.fetch("k", tmp_path / "none")
    proxy.fault = fault
    started_s = time.monotonic()
    with pytest.raises(StorageError, match=said) as caught:
        store.publish("k", finished)
    assert time.monotonic() - started_s < 20
    assert str(caught.value).startswith(f"{uri}/k/")
    assert "\n" not in str(caught.value)
    proxy.fault = ""
    assert not store.fetch("k", tmp_path / "half")
    store.publish("k", finished)
    assert store.fetch("k", tmp_path / "whole")
    proxy.fault = "403" if fault == "403" else "reset"
    with pytest.raises(StorageError, match="cannot be read"):
        store.fetch("k", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_slow_store_is_waited_for(proxy: FaultyProxy, finished: Path) -> None:
    proxy.fault = "slow"
    RemoteStore("s3://bucket/slow").files.write("name", b"content")
    assert RemoteStore("s3://bucket/slow").files.read("name") == b"content"


def test_a_port_where_nobody_listens_is_named_soon_and_training_goes_on(
    proxy: FaultyProxy, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.close()
    store = ExpertStore(tmp_path / "store", "s3://bucket/closed")
    started_s = time.monotonic()
    with pytest.raises(ConfigError, match=r"--store cannot be used: s3://bucket/closed/.* is right and reachable"):
        store.check_remote()
    with caplog.at_level(logging.WARNING):
        assert store.completed("k") is None
        claim = store.claim("k")
        assert claim is not None  # the disk's
        claim.release()
    assert time.monotonic() - started_s < 20
    assert len(caplog.messages) == 1  # and it is not asked again at once


def test_a_mistyped_bucket_is_refused_and_not_made(s3: int, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check the name of the bucket"):
        RemoteFiles("s3://buckett/path").check()
    with pytest.raises(StorageError, match="none is created"):
        RemoteStore("s3://buckett/path").publish("k", finished)
    with pytest.raises(StorageError, match="none is created"):
        RemoteStore("s3://buckett/path").fetch("k", tmp_path / "k")
    assert S3FileSystem().ls("") == ["bucket"]


def test_of_many_that_claim_at_once_one_has_it(s3: int) -> None:
    """Each with a connection of its own; nobody waits to see whether another has written."""
    stores = [RemoteStore("s3://bucket/claims") for _ in range(8)]
    assert stores[0].files.creates
    for key in ("a", "b", "c"):
        with ThreadPoolExecutor(len(stores)) as pool:
            claims = list(pool.map(lambda store, key=key: store.claim(key), stores))
        (held,) = [claim for claim in claims if claim is not None]
        assert held.is_held()
        held.release()
        assert stores[0].files.names(key) == []


def test_of_many_that_take_over_a_dead_lease_one_has_it(s3: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_store, "LEASE_S", 0.2)
    monkeypatch.setattr(remote_store, "RENEW_INTERVAL_S", 0.05)
    stores = [RemoteStore("s3://bucket/dead") for _ in range(8)]
    dead = stores[0].claim("k")
    assert dead is not None
    dead._ended.set()
    for store in stores:
        assert store.claim("k") is None  # what it says is new to each
    time.sleep(0.4)
    with ThreadPoolExecutor(len(stores)) as pool:
        claims = [claim for claim in pool.map(lambda store: store.claim("k"), stores) if claim is not None]
    (held,) = claims
    assert not dead.is_held()
    dead.release()
    assert held.is_held()
    held.release()


def test_a_lease_outlives_an_outage_shorter_than_itself(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_store, "RENEW_INTERVAL_S", 0.05)
    lease = RemoteStore("s3://bucket/outage").claim("k")
    assert lease is not None
    for fault in ("403", "500", "reset"):
        proxy.fault = fault
        time.sleep(0.5)
    proxy.fault = ""
    count = lease._count
    wait_until(lambda: lease._count >= count + 2)
    assert lease.is_held()
    lease.release()
