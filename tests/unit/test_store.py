"""The expert store: claims that end with their process, and a remote that is right without locks."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.registry import _registry
from waiting import wait_until

from orchestrator.store import remote as remote_store
from orchestrator.store.experts import ExpertStore
from orchestrator.store.remote import RemoteStore
from workloads.errors import ConfigError, StorageError

HOLD = """
    import sys, time
    from pathlib import Path
    from orchestrator.store.experts import ExpertStore
    claim = ExpertStore(Path(sys.argv[1])).claim("k")
    print(claim is not None, flush=True)
    time.sleep(60)
"""


def test_a_claim_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    one, other = ExpertStore(tmp_path), ExpertStore(tmp_path)
    claim = one.claim("k")
    assert claim is not None
    assert other.claim("k") is None
    assert other.is_claimed("k")
    assert other.claim("another") is not None
    claim.release()
    assert not other.is_claimed("k")
    assert other.claim("k") is not None


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        store = ExpertStore(tmp_path)
        assert store.claim("k") is None
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert store.claim("k") is not None


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What a finished job's directory looks like from outside."""
    folder = tmp_path / "work" / "k"
    (folder / "expert").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "expert" / "weights").write_bytes(bytes(range(256)) * 100)
    (folder / "checkpoints" / "large").write_bytes(b"not needed any more")
    (folder / "result.json").write_text("{}")
    return folder


def test_what_one_machine_publishes_another_fetches(tmp_path: Path, finished: Path) -> None:
    uri = (tmp_path / "remote").as_uri()
    assert not RemoteStore(uri).fetch("k", tmp_path / "here")
    RemoteStore(uri).publish("k", finished)
    RemoteStore(uri).publish("k", finished)
    target = tmp_path / "other" / "k"
    assert RemoteStore(uri).fetch("k", target)
    found = {file.relative_to(target).as_posix(): file.read_bytes() for file in target.rglob("*") if file.is_file()}
    assert found == {
        "expert/weights": (finished / "expert" / "weights").read_bytes(),
        "result.json": b"{}",
    }
    attempts = list((tmp_path / "remote" / "k").glob("attempt-*"))
    assert len(attempts) == 1
    assert not list((tmp_path / "remote").rglob("*.partial"))


def test_two_trainings_of_one_key_never_mix(tmp_path: Path, finished: Path) -> None:
    """Both find nothing, both train, both publish: a reader gets all of one."""
    uri = (tmp_path / "remote").as_uri()
    one = RemoteStore(uri)
    one.publish("k", finished)
    index = tmp_path / "remote" / "k" / "index.json"
    first = index.read_text()
    index.unlink()  # as the other saw it when it began
    (finished / "expert" / "weights").write_bytes(b"other bits of another machine")
    RemoteStore(uri).publish("k", finished)
    for text, expected in ((first, bytes(range(256)) * 100), (index.read_text(), b"other bits of another machine")):
        index.write_text(text)
        target = tmp_path / "target" / json.loads(text)["attempt"]
        assert RemoteStore(uri).fetch("k", target)
        assert (target / "expert" / "weights").read_bytes() == expected


def test_damage_at_the_remote_is_named(tmp_path: Path, finished: Path) -> None:
    uri = (tmp_path / "remote").as_uri()
    RemoteStore(uri).publish("k", finished)
    (weights,) = (tmp_path / "remote").rglob("weights")
    weights.write_bytes(b"rubbish")
    with pytest.raises(StorageError, match="expert/weights is damaged"):
        RemoteStore(uri).fetch("k", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_lease_excludes_others_until_nobody_renews_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_store, "SETTLE_S", 0.01)
    monkeypatch.setattr(remote_store, "LEASE_S", 1.0)
    monkeypatch.setattr(remote_store, "RENEW_INTERVAL_S", 0.05)
    uri = (tmp_path / "remote").as_uri()
    lease, other = RemoteStore(uri).claim("k"), RemoteStore(uri)
    assert lease is not None
    deadline = remote_store.time.monotonic() + 1.2
    while remote_store.time.monotonic() < deadline:  # longer than an unrenewed lease lasts
        assert other.claim("k") is None
        remote_store.time.sleep(0.02)
    lease._ended.set()  # its machine is gone
    taken = wait_until(lambda: other.claim("k"))
    lease.release()  # a machine that comes back does not take away what another holds
    assert taken.is_held()
    taken.release()
    assert RemoteStore(uri).claim("k") is not None


def test_a_uri_nobody_knows_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="--store nosuch://x cannot be used"):
        RemoteStore("nosuch://x")


def test_a_missing_driver_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # where an earlier test has used it
    with pytest.raises(ConfigError, match=r"pip install 'rememe\[s3\]'"):
        RemoteStore("s3://bucket/path")


def test_secrets_of_a_uri_are_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        RemoteStore("nosuch://me:word@host/path?token=secret")
    assert "word" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "index", ["[]", "{}", "no json", '{"attempt": "..", "files": {}}', '{"attempt": "a", "files": []}']
)
def test_an_index_none_of_ours_would_write_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "remote" / "k").mkdir(parents=True)
    (tmp_path / "remote" / "k" / "index.json").write_text(index)
    with pytest.raises(StorageError, match=r"k/index\.json is damaged"):
        RemoteStore((tmp_path / "remote").as_uri()).fetch("k", tmp_path / "here")


def test_an_index_cannot_name_a_file_elsewhere(tmp_path: Path, finished: Path) -> None:
    uri = (tmp_path / "remote").as_uri()
    RemoteStore(uri).publish("k", finished)
    index = tmp_path / "remote" / "k" / "index.json"
    index.write_text(index.read_text().replace("result.json", "../../outside"))
    with pytest.raises(StorageError, match="is damaged"):
        RemoteStore(uri).fetch("k", tmp_path / "here" / "k")
    assert not list(tmp_path.rglob("outside"))


def test_where_nothing_is_made_exclusively_the_last_to_write_has_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "SETTLE_S", 0.3)
    stores = [RemoteStore((tmp_path / "remote").as_uri()) for _ in range(4)]
    for store in stores:
        store.files.creates = False
    with ThreadPoolExecutor(len(stores)) as pool:
        claims = list(pool.map(lambda store: store.claim("k"), stores))
    (held,) = [claim for claim in claims if claim is not None]
    held.release()


def test_of_two_that_publish_at_once_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has looked before the first was done."""
    uri, folders = (tmp_path / "remote").as_uri(), [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "result.json").write_text(folder.name)
    first, second = RemoteStore(uri), RemoteStore(uri)
    first.publish("k", folders[0])
    monkeypatch.setattr(second, "index", lambda _: None)
    second.publish("k", folders[1])
    assert first.fetch("k", tmp_path / "c")
    assert (tmp_path / "c" / "result.json").read_text() == "a"
    assert len([name for name in first.files.names("k") if name.startswith("attempt-")]) == 1


def test_what_changes_is_mirrored_under_its_own_names(tmp_path: Path) -> None:
    """Only what changed is sent again, and only what is missing or other is brought."""
    here, there, uri = tmp_path / "here", tmp_path / "remote" / "run", (tmp_path / "remote").as_uri()
    (here / "figures").mkdir(parents=True)
    (here / "config.yaml").write_text("a")
    (here / "figures" / "loss.png").write_bytes(b"b")
    RemoteStore(uri).mirror("run", here)
    sent_ns = (there / "config.yaml").stat().st_mtime_ns
    (here / "figures" / "loss.png").write_bytes(b"c")
    RemoteStore(uri).mirror("run", here)
    assert (there / "config.yaml").stat().st_mtime_ns == sent_ns
    assert (there / "figures" / "loss.png").read_bytes() == b"c"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("a")
    (other / "figures").mkdir()
    (other / "figures" / "loss.png").write_bytes(b"b")
    (other / "mine").write_text("not sent yet")
    assert RemoteStore(uri).refresh("run", other)
    assert [(other / name).read_bytes() for name in ("config.yaml", "figures/loss.png", "mine")] == [
        b"a",
        b"c",
        b"not sent yet",
    ]
    assert not RemoteStore(uri).refresh("nothing", other)


def test_what_was_damaged_or_lost_there_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The index still says it is there; a byte flips, a file is removed, a third is as it was."""
    here, there, uri = tmp_path / "here", tmp_path / "remote" / "run", (tmp_path / "remote").as_uri()
    for name, content in {"a": b"weights", "b": b"lost", "c": b"whole"}.items():
        here.mkdir(exist_ok=True)
        (here / name).write_bytes(content)
    RemoteStore(uri).mirror("run", here)
    (there / "a").write_bytes(b"wEights")
    (there / "b").unlink()
    assert [text.split(" is damaged")[0] for text in RemoteStore(uri).damage("run")] == [f"{uri}/run/a", f"{uri}/run/b"]
    with pytest.raises(StorageError, match="run/a is damaged; run rememe train"):
        RemoteStore(uri).refresh("run", tmp_path / "other")
    assert RemoteStore(uri).refresh("run", tmp_path / "other", salvages=True)
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["c"]
    monkeypatch.setattr(remote_store, "_looked_at", set())  # as in the next process
    caplog.clear()
    RemoteStore(uri).mirror("run", here)
    assert [record.getMessage() for record in caplog.records] == [
        f"{uri}/run/{name} was damaged; it is sent again" for name in "ab"
    ]
    assert not list(RemoteStore(uri).damage("run"))
    assert RemoteStore(uri).refresh("run", tmp_path / "third")
    assert {file.name: file.read_bytes() for file in (tmp_path / "third").iterdir()} == {
        "a": b"weights",
        "b": b"lost",
        "c": b"whole",
    }


def test_an_index_that_was_changed_is_noticed_and_made_anew_by_who_has_the_files(
    tmp_path: Path, finished: Path
) -> None:
    """Every change: to what it says of a file, to the list of files, to where they lie, to their size."""
    uri, index = (tmp_path / "remote").as_uri(), tmp_path / "remote" / "run" / "index.json"
    RemoteStore(uri).mirror("run", finished)
    written = index.read_text()
    raw = json.loads(written)
    changes = (
        {"files": {**raw["files"], "result.json": "0" * 64}},
        {"files": {"result.json": raw["files"]["result.json"]}},
        {"attempt": "elsewhere"},
        {"num_bytes": 1},
    )
    for change in changes:
        index.write_text(json.dumps(raw | change))
        with pytest.raises(StorageError, match=r"run/index\.json is damaged; run rememe train"):
            RemoteStore(uri).refresh("run", tmp_path / "other")
        assert not (tmp_path / "other").exists()
        assert len(list(RemoteStore(uri).damage("run"))) == 1
        RemoteStore(uri).mirror("run", finished)
        assert index.read_text() == written
    del raw["checksum"]  # as earlier versions wrote it
    index.write_text(json.dumps(raw))
    assert RemoteStore(uri).refresh("run", tmp_path / "other")


def test_a_damaged_expert_at_the_remote_is_set_aside_there_and_published_anew(tmp_path: Path, finished: Path) -> None:
    """Until now whoever trained it again could not send it, for the index said that it was there."""
    uri = (tmp_path / "remote").as_uri()
    RemoteStore(uri).publish("k", finished)
    (weights,) = (tmp_path / "remote").rglob("weights")
    weights.write_bytes(b"rubbish")
    assert ExpertStore(tmp_path / "here", uri).completed("k") is None
    assert RemoteStore(uri).index("k") is None
    RemoteStore(uri).publish("k", finished)  # trained again
    assert RemoteStore(uri).fetch("k", tmp_path / "third")
    assert (tmp_path / "third" / "expert" / "weights").read_bytes() == (finished / "expert" / "weights").read_bytes()
