"""The live page: it says what `rememe status` says, serves what lies in the runs directory and nothing else."""

import dataclasses
import gzip
import http.client
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from PIL import Image
from rich.console import Console

from orchestrator.live.curves import Curves
from orchestrator.live.server import FILES, PAGE, LivePage, start_live_page
from orchestrator.live.studies import best_so_far, front
from orchestrator.live.views import run_view, runs_view
from orchestrator.plan import events
from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.plan.places import RunsDir
from orchestrator.plan.policies import FailureKind
from orchestrator.plan.standing import DriverState, ExpertStanding
from orchestrator.runs.status import StatusFile
from orchestrator.search.running.status import WholeStatus, status_here
from orchestrator.search.running.watching import watch_to_end
from orchestrator.search.study.trial import Rung, Trial
from workloads.config import DataSpec, RunConfig
from workloads.errors import ConfigError
from workloads.files import write_text
from workloads.places import RunDir
from workloads.sealed import write_json
from workloads.training.records import TrainingRecord, append_record

DATA = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)
HOSTILE = "<img src=x onerror=alert(1)>"

Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture(scope="module")
def plan(tiny_run: dict[str, Any]) -> Plan:
    return make_plan(RunConfig.model_validate(tiny_run), DATA)


@pytest.fixture
def runs(plan: Plan, tmp_path: Path) -> RunsDir:
    """A run whose third expert was killed and is done, with a curve and samples."""
    runs, run = RunsDir(tmp_path / "runs"), RunDir(tmp_path / "runs" / "tiny-12345678")
    key = plan.jobs[2].key
    records = [TrainingRecord(images, 1 / images, 64.0, 1e-3, 0.0) for images in range(1, 1025)]
    with StatusFile(run, "meme", plan.jobs) as status:
        status.doing("training")
        for event in (
            events.Starting(key),
            events.Training(key, pid=1, node="10.0.0.8"),
            events.Progressed(key, tuple(records)),
            events.Restarting(key, FailureKind.PROCESS_DIED, 2),
            events.Training(key, pid=2, node="10.0.0.8"),
            events.Done(key),
            events.Failed(plan.jobs[0].key, HOSTILE),
        ):
            status(event)
    runs.job(key).path.mkdir(parents=True)
    for record in records:
        append_record(runs.job(key).records, record)
    Image.new("RGB", (4, 4), "red").save(run.grid)
    return runs


@pytest.fixture
def ask(runs: RunsDir) -> Iterator[Ask]:
    """ask(path, method="GET", **headers): status, headers and body of the answer."""
    with LivePage(runs, 0) as page:
        address = urlsplit(page.url)

        def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

        yield ask


def test_it_says_what_status_says(ask: Ask, runs: RunsDir) -> None:
    told = json.loads(ask("/api/runs/tiny-12345678")[2])
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(status_here("tiny-12345678", runs).show())
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    for expert in told["experts"]:
        assert " ".join(" ".join(cell.split()) for cell in expert["cells"].values() if cell) in lines
    for words in (told["by"], told["states"]):
        assert words in lines
    assert f"{told['name']} ({told['kind']}): {told['says']}" in lines
    (restart,) = told["restarts"]
    assert "expert_02 stopped, its process died; 0:00 lost" in restart
    assert [one["name"] for one in json.loads(ask("/api/runs")[2])["runs"]] == ["tiny-12345678"]


def test_a_curve_is_thinned_out_and_ends_with_the_newest(runs: RunsDir, plan: Plan) -> None:
    curves = Curves()
    curve = run_view(runs, "tiny-12345678", curves)["experts"][2]["curve"]
    assert 60 < len(curve) <= 120
    assert curve[-1] == (1024, 1 / 1024)
    assert all(loss == 1 / images for images, loss in curve)
    append_record(runs.job(plan.jobs[2].key).records, TrainingRecord(1025, float("nan"), 1.0, 1e-3, 0.0))
    append_record(runs.job(plan.jobs[2].key).records, TrainingRecord(1026, 0.5, 1.0, 1e-3, 0.0))
    later = run_view(runs, "tiny-12345678", curves)["experts"][2]["curve"]
    assert later[-1] == (1026, 0.5)
    assert 1025 not in dict(later)


def test_of_many_curves_each_has_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast files grow, an answer reads a bounded part of them, and those first that have waited longest."""
    files = [tmp_path / f"{number}.jsonl" for number in range(6)]

    def grow(images: int) -> None:
        for file in files:
            append_record(file, TrainingRecord(images, 0.5, 1.0, 1e-3, 0.0))

    grow(1)
    monkeypatch.setattr("orchestrator.live.curves.MAX_BYTES_AT_ONCE", 2 * files[0].stat().st_size)
    curves = Curves()
    for answer in range(1, 4):
        assert [len(curve) for curve in curves.of(files)] == [1] * 2 * answer + [0] * (6 - 2 * answer)
    grow(2)
    seen: list[int] = []
    for _ in range(6):
        read = [number for number, curve in enumerate(curves.of(files)) if len(curve) == 2]
        assert len(read) - len(seen) == 1
        seen = read
    assert curves.of([tmp_path / "none"]) == [[]]


def test_pictures_come_as_they_are_and_only_those_of_the_run(ask: Ask, runs: RunsDir, tmp_path: Path) -> None:
    run = runs.run_named("tiny-12345678")
    (picture,) = json.loads(ask("/api/runs/tiny-12345678")[2])["pictures"]
    code, headers, body = ask(f"/{picture['path']}")
    assert (code, headers["Content-Type"], body) == (200, "image/png", run.grid.read_bytes())
    assert ask(f"/{picture['path']}", **{"If-None-Match": headers["ETag"]})[::2] == (304, b"")
    assert ask(f"/{picture['path']}", "HEAD")[2] == b""
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "secret.png")
    (run.path / "grid-other.png").symlink_to(tmp_path / "secret.png")
    (run.path / "grid-torn.png").write_bytes(run.grid.read_bytes()[:-4])
    (run.path / "grid-text.png").write_text("password")
    for name in ("grid-other.png", "grid-torn.png", "grid-text.png", "config.yaml", "status.json", "../../secret.png"):
        code, _, body = ask(f"/api/runs/tiny-12345678/pictures/{quote(name, safe='')}")
        assert code == 404, name
        assert "error" in json.loads(body)


@pytest.mark.parametrize(
    "path",
    [
        "/../runs/tiny-12345678/status.json",
        "/api/runs/..",
        "/api/runs/%2e%2e%2fruns%2ftiny-12345678",
        "/api/runs/.",
        "/api/runs/%00",
        "/api/runs/" + "a" * 5000,
        "/api/runs/studies/status.json",
        "/api/runs/tiny-12345678/pictures/..%2fstatus.json",
        "/api/runs/tiny-12345678/pictures/",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.html/../server.py",
        "/api/runs/nobody-12345678",
    ],
)
def test_nothing_else_is_served(path: str, ask: Ask) -> None:
    code, headers, body = ask(path)
    assert code == 404
    assert headers["Content-Type"] == "application/json"
    assert b"root:" not in body
    assert b"checksum" not in body


def test_only_reading_and_only_as_this_machine(ask: Ask) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert ask("/api/runs", method)[0] == 501
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert ask("/api/runs", Host=host)[0] == 403, host
    for host in ("localhost", "localhost:5001", "127.0.0.1:9", "[::1]:5001"):
        assert ask("/api/runs", Host=host)[0] == 200, host


def test_the_page_is_whole_and_lets_nothing_else_in(ask: Ask) -> None:
    for path, (file, kind) in FILES.items():
        code, headers, body = ask(f"/{path}", **{"Accept-Encoding": "gzip"})
        assert code == 200
        assert headers["Content-Type"] == kind
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        is_packed = headers.get("Content-Encoding") == "gzip"
        assert (gzip.decompress(body) if is_packed else body) == (PAGE / file).read_bytes()
    script = (PAGE / "page.js").read_text()
    for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert markup not in script


def test_a_run_that_cannot_be_read_is_told_in_a_sentence(ask: Ask, runs: RunsDir) -> None:
    write_text(runs.run_named("torn-12345678").status, "{")
    code, _, body = ask("/api/runs/torn-12345678")
    assert code == 404
    assert "status.json cannot be read: it is damaged" in json.loads(body)["error"]
    assert len(runs_view(runs)["runs"]) == 1


def test_a_port_that_is_taken_is_named(runs: RunsDir) -> None:
    with LivePage(runs, 0) as page, pytest.raises(ConfigError, match=r"--live-port \d+ cannot be had"):
        LivePage(runs, urlsplit(page.url).port or 0)


def test_beside_mlflow_it_takes_the_next_port_or_a_free_one(runs: RunsDir, capsys: pytest.CaptureFixture[str]) -> None:
    with LivePage(runs, 0) as other:
        taken = urlsplit(other.url).port or 0
        with start_live_page(runs, None, beside=taken - 1):
            told = re.search(r"http://127\.0\.0\.1:(\d+)/", capsys.readouterr().out)
            assert told
            assert int(told[1]) != taken
        with (
            pytest.raises(ConfigError, match=f"--live-port {taken} cannot be had"),
            start_live_page(runs, taken, beside=1),
        ):
            pass


def trials(number: int, seed: int) -> list[Trial]:
    draw = random.Random(seed)
    return [
        Trial(
            number=index,
            values={"training.learning_rate": draw.random()},
            state="finished",
            macs=float(draw.randrange(1, 6)),
            rungs=(
                Rung(
                    name="loss",
                    value=draw.choice([0.1, 0.2, 0.3, 0.4, 0.5]),
                    doubts=("too few",) if draw.random() < 0.2 else (),
                ),
            )
            if draw.random() < 0.8
            else (),
        )
        for index in range(number)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_best_so_far_and_front_by_brute_force(seed: int) -> None:
    found = trials(12, seed)
    scored = [(one, rung.value) for one in found if (rung := one.rung("loss")) and not rung.doubts]
    best = [min(value for other, value in scored if other.number <= one.number) for one, _ in scored]
    assert [value for _, value in best_so_far(found, "loss")] == best
    points = front([one for one, _ in scored], "loss")
    if len({one.macs for one, _ in scored}) < 2:
        assert points == []
        return
    for point, (one, value) in zip(points, scored, strict=True):
        beaten = any(
            v <= value and other.macs <= one.macs and (v < value or other.macs < one.macs) for other, v in scored
        )
        assert (point["number"], point["is_best"]) == (one.number, not beaten)


def test_a_study_is_told_with_its_table_and_curves(runs: RunsDir) -> None:
    study = runs.study("ratios")
    with StatusFile(RunDir(study.path), "study"):
        for trial in trials(4, 1):
            write_json(study.trial_file(trial.number), trial.model_copy(update={"error": HOSTILE}).model_dump())
    told = run_view(runs, "ratios", Curves())["study"]
    assert told["columns"] == ["#", "state", "learning_rate", "held_out_loss", "remark"]
    assert [row[0] for row in told["rows"]] == ["0", "1", "2", "3"]
    assert all(row[-1] == HOSTILE for row in told["rows"])
    assert told["score"] == "held_out_loss"
    other = Rung(name="quick", value=1.0, protocol_hash="a" * 64)
    for number, hash_ in enumerate("ab"):
        changed = trials(4, 1)[number].with_rung(other.model_copy(update={"protocol_hash": hash_ * 64}))
        write_json(study.trial_file(number), changed.model_dump())
    told = run_view(runs, "ratios", Curves())["study"]
    assert told["best"] == told["front"] == []
    assert "cannot be compared" in told["doubt"]


def test_watching_prints_what_happens_once(runs: RunsDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.search.running.watching.INTERVAL_S", 0.0)
    last = status_here("tiny-12345678", runs)
    killed = last.status.experts[2]
    trained = killed.model_copy(update={"restarts": (), "state": events.ExpertState.TRAINING})

    def looked(expert: ExpertStanding, driver: DriverState) -> WholeStatus:
        return dataclasses.replace(last, status=last.status.model_copy(update={"experts": (expert,)}), driver=driver)

    looks = [(trained, DriverState.RUNS), (trained, DriverState.RUNS), (killed, DriverState.RUNS)]
    steps = iter([looked(*look) for look in (*looks, (killed, DriverState.ENDED))])
    file = io.StringIO()
    assert watch_to_end(lambda: next(steps), Console(file=file)).driver is DriverState.ENDED
    said = [line.partition(" ")[2] for line in file.getvalue().splitlines()]
    assert said[0].startswith("tiny-12345678 (meme): running")
    assert said[1] == "expert_02 [500, 750): training (on 10.0.0.8)"
    assert said[2].endswith("expert_02 stopped, its process died; 0:00 lost")
    assert said[3] == "expert_02 [500, 750): done"
    assert said[4].startswith("tiny-12345678 (meme): finished")
    assert len(said) == 5


def test_watching_in_a_terminal_shows_the_table_of_status(runs: RunsDir) -> None:
    file = io.StringIO()
    watch_to_end(
        lambda: status_here("tiny-12345678", runs),
        Console(file=file, force_terminal=True, width=200, color_system=None),
    )
    assert re.search(r"expert_02 +\[500, 750\) +done +10.0.0.8 +1,024 +100% ", file.getvalue())


def test_a_directory_at_home_is_shown_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for folder, shown in ((tmp_path / "me" / "runs", "~/runs"), (tmp_path / "mean", str(tmp_path / "mean"))):
        folder.mkdir(parents=True)
        assert runs_view(RunsDir(folder))["where"] == shown


def test_a_directory_without_runs_is_served_too(tmp_path: Path) -> None:
    assert runs_view(RunsDir(tmp_path / "none"))["runs"] == []
    assert not list(tmp_path.iterdir())
