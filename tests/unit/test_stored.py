"""Runs that lie in a storage: found by name, brought here, and what a command adds to them is there afterwards."""

import json
import os
import socket
from pathlib import Path

import pytest

from orchestrator.plan.places import RunsDir
from orchestrator.plan.standing import DriverState
from orchestrator.runs import status as run_status
from orchestrator.runs.damage import examine_directory, examine_in_storage
from orchestrator.runs.status import StatusFile, find_run, view_runs
from orchestrator.runs.stored import find_trained_run, run_at_hand, runs_to_look_at
from orchestrator.store import remote as remote_store
from orchestrator.store.storage import Storage
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError
from workloads.files import write_text
from workloads.places import RunDir
from workloads.sealed import write_json


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A storage with a finished run that was made in another directory."""
    uri, run = (tmp_path / "remote").as_uri(), RunDir(tmp_path / "made" / "demo-0123abcd")
    run.ensemble.path.mkdir(parents=True)
    run.ensemble.index.write_text("{}")
    run.config.write_text("name: demo\n")
    Storage.at(uri).keep_run(run)
    Storage.at(uri).keep_ensemble(run)
    return uri


def test_a_run_is_at_hand_by_its_name_and_what_is_added_goes_back(uri: str, tmp_path: Path) -> None:
    with run_at_hand(Path("demo"), tmp_path / "mine", uri) as folder:
        assert folder == tmp_path / "mine" / "demo-0123abcd"
        assert RunDir(folder).ensemble.index.read_text() == "{}"
        assert not RunDir(folder).config.exists()  # nothing else was asked for
    with run_at_hand(Path("runs/demo-0123abcd"), tmp_path / "mine", uri, is_changed=True) as folder:
        assert RunDir(folder).config.read_text() == "name: demo\n"
        RunDir(folder).scores.write_text(json.dumps({"a": 1}))
    with run_at_hand(Path("demo"), tmp_path / "third", uri, is_changed=True) as folder:
        assert json.loads(RunDir(folder).scores.read_text()) == {"a": 1}
    with run_at_hand(tmp_path / "made" / "demo-0123abcd", tmp_path / "mine", None) as folder:
        assert folder == tmp_path / "made" / "demo-0123abcd"
    with pytest.raises(ConfigError, match=r"made holds no ensemble"), run_at_hand(tmp_path / "made", tmp_path, None):
        pass


def test_of_several_runs_of_a_name_the_last_is_meant_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for age_s, name in enumerate(("demo-00000001", "demo-0123abcd", "demo-large-00000002")):
        run = RunDir(tmp_path / name)
        run.ensemble.path.mkdir(parents=True)
        run.ensemble.index.write_text("{}")
        run.plan.write_text("{}")
        os.utime(run.plan, (1000 + age_s, 1000 + age_s))
    assert find_trained_run(Path("demo"), tmp_path) == tmp_path / "demo-0123abcd"
    assert caplog.messages == ["2 runs are named demo; this is the last, demo-0123abcd"]
    assert find_trained_run(Path("demo-00000001"), tmp_path) == tmp_path / "demo-00000001"
    assert find_trained_run(Path("demo-large"), tmp_path) == tmp_path / "demo-large-00000002"
    assert len(caplog.messages) == 1
    with pytest.raises(ConfigError, match=r"did you mean .*/demo-large-00000002\?"):
        find_trained_run(Path("demo-larg"), tmp_path)


def test_the_doctor_looks_into_a_storage_and_what_it_advises_helps(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name through the URI, and in the directory behind it; then the ensemble is sent anew, as train does."""
    storage, there = Storage.at(uri), tmp_path / "remote" / "demo-0123abcd"
    made = RunDir(tmp_path / "made" / there.name)

    def told() -> list[list[tuple[bool, str]]]:
        looks = [
            examine_in_storage(storage, "demo"),
            examine_directory(there),
            examine_directory(RunDir(there).ensemble.path),
        ]
        return [[(finding.is_ok, finding.text) for finding in look] for look in looks]

    by_name, whole, ensemble = told()
    assert by_name == whole
    assert [is_ok for is_ok, _ in [*whole, *ensemble]] == [True, True, True]
    RunDir(there).ensemble.index.write_text("{ }")
    by_name, damaged, ensemble = told()
    assert by_name == damaged
    assert [is_ok for is_ok, _ in damaged] == [True, False]
    advice = f"{there.as_uri()}/ensemble/ensemble.json is damaged; run rememe train (or search) again with "
    assert damaged[1][1].startswith(f"{advice}--storage {uri}, ")
    assert ensemble == damaged[1:]
    monkeypatch.setattr(remote_store, "_looked_at", set())  # as in the next process
    storage.keep_ensemble(made)
    assert told()[0] == whole
    with pytest.raises(ConfigError, match="no run 'other' in"):
        list(examine_in_storage(storage, "other"))


def test_a_run_that_cannot_be_told_is_refused_with_those_there(uri: str, tmp_path: Path) -> None:
    for other in ("demo-00000000", "begun-00000000"):
        run = RunDir(tmp_path / "made" / other)
        run.path.mkdir()
        run.config.write_text("name: demo\n")
        Storage.at(uri).keep_run(run)
    for named, said in (
        ("demo", "may be demo-00000000 or demo-0123abcd in"),
        ("other", "no run 'other' in .*; there are begun-00000000, demo-00000000, demo-0123abcd"),
        ("begun", "run begun-00000000 in .* has no ensemble yet"),
    ):
        with pytest.raises(ConfigError, match=said), run_at_hand(Path(named), tmp_path / "mine", uri):
            pass
    with pytest.raises(ConfigError, match="is 'bucket/x', which is no URI"):
        Storage.at("bucket/x")


def test_a_damaged_curve_is_not_brought(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else it would come again as often as somebody follows the advice to remove it."""
    here, there = RunsDir(tmp_path / "made").job("k"), RunsDir(tmp_path / "mine").job("k")
    for name in ("a.json", "b.json"):
        write_json(here.curves / name, {"loss": 0.5})
        Storage.at(uri).keep_curve(here, here.curves / name)
    (tmp_path / "remote" / "store" / "k" / "curves" / "a.json").write_text('{"loss": 0.4, "checksum": "0"}')
    Storage.at(uri).restore_curves(there)
    assert [file.name for file in there.curves.iterdir()] == ["b.json"]
    assert "store/k/curves/a.json is damaged; it is left out" in caplog.text


def test_who_names_no_trained_run_is_told_which_there_are(uri: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for named, said in (
        (made / "nope", rf"nope does not exist; trained runs in {made}: demo-0123abcd$"),
        (tmp_path / "x" / "y", r"y does not exist; train one: rememe train demo-meme"),
        (made, r"made holds no ensemble \(ensemble.json is missing\); give the directory of a run"),
    ):
        with pytest.raises(ConfigError, match=said):
            Ensemble.load(named)
    (made / "begun-01234567").mkdir()
    (made / "begun-01234567" / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"no ensemble yet .*; train it to its end: rememe train .*config.yaml"):
        Ensemble.load(made / "begun-01234567")


def test_one_driver_at_a_time_carries_a_study_out(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RENEW_INTERVAL_S", 0.05), ("LEASE_S", 0.5), ("SETTLE_S", 0.02)):
        monkeypatch.setattr(remote_store, name, value)
    study, there = RunsDir(tmp_path / "mine").study("s"), RunsDir(tmp_path / "other").study("s")
    lease = Storage.at(uri).claim_study(study)
    with pytest.raises(ConfigError, match=r"study s in .* is being run by another driver; wait for it"):
        Storage.at(uri).claim_study(there)
    lease._ended.set()  # its process is killed
    heir = Storage.at(uri).claim_study(there)
    assert not lease.is_held()
    write_text(there.description_file, '{"a": 1}')
    write_text(there.trial_file(0), "{}")
    write_text(there.stop_file, "")
    Storage.at(uri).keep_study(there)
    heir.release()
    assert Storage.at(uri).restore_study(study)
    assert (study.trial_file(0).exists(), study.stop_file.exists()) == (True, False)
    write_text(study.description_file, '{"a": 2}')
    with pytest.raises(ConfigError, match=r"is another study than s in .*; give this one a name"):
        Storage.at(uri).restore_study(study)


def test_a_driver_is_seen_through_the_storage_alone(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is on its own disk, so that it lives is told by what it sends, even to who looks on the same host."""
    monkeypatch.setattr(run_status, "WRITE_INTERVAL_S", 0.01)
    monkeypatch.setattr(run_status, "LIFE_INTERVAL_S", 0.05)
    run = RunDir(tmp_path / "made" / "demo-0123abcd")
    with StatusFile(run, "meme", storage=Storage.at(uri)) as status:
        status.doing("sampling", 3, 7)
        while not (seen := look(uri)) or seen[0][1] != "sampling":
            pass
        assert seen == [("demo-0123abcd", "sampling", socket.gethostname(), DriverState.RUNS)]
    assert look(uri)[0][3] is DriverState.ENDED
    runs = runs_to_look_at(tmp_path, uri)
    assert find_run("demo", runs).status.ended == "finished"
    with pytest.raises(ConfigError, match=f"under {uri}; the latest there: demo-0123abcd"):
        find_run("other", runs)


def look(uri: str) -> list[tuple[str, str, str, DriverState]]:
    views = view_runs(runs_to_look_at(Path("nowhere"), uri))
    return [(view.status.name, view.status.doing, view.status.host, view.driver) for view in views]
