"""Whether machines are fit, judged from made-up facts; what connecting says of Ray's own errors."""

import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from orchestrator.execution.cluster import connect, unreachable
from orchestrator.plan.errors import ClusterError
from orchestrator.plan.fitness import (
    SAFE_SINCE,
    Finding,
    NodeFacts,
    judge_dashboard,
    judge_demand,
    judge_nodes,
    judge_versions,
    socket_excess,
)
from workloads.config import RunConfig
from workloads.errors import ConfigError

GOOD = NodeFacts(
    node="10.0.0.1",
    python="3.11.7",
    versions={"ray": "2.60.0", "torch": "2.15.0"},
    gpus_offered=2.0,
    gpus_seen=2,
    asked_s=100.0,
    answered_s=103.0,
    clock_s=101.0,
    free_bytes={"/runs": 10 * 2**30},
)


def judged(*nodes: NodeFacts, num_asked: int = 0) -> list[Finding]:
    own = {"ray": "2.60.0", "torch": "2.15.0"}
    options = {"runs_dir": "/runs", "num_asked": num_asked or len(nodes), "has_stores": True}
    return judge_nodes(nodes, python="3.11.7", versions=own, **options)


def test_good_nodes_are_one_line_for_each_check() -> None:
    findings = judged(GOOD, GOOD, num_asked=3)
    assert all(one.is_ok for one in findings)
    assert [one.subject for one in findings] == [
        "packages",
        "clocks",
        "gpus",
        "disks",
        "shared runs",
        "stores",
        "token",
    ]
    assert all(one.text == "as they should be on 2 of 3 nodes" for one in findings)
    assert "shared runs" not in [one.subject for one in judged(GOOD)]  # a single node shares with nobody
    found = judge_nodes([GOOD, GOOD], python="3.11.7", versions={}, runs_dir=None, num_asked=2)
    assert {"shared runs", "stores"}.isdisjoint(one.subject for one in found)  # nothing was asked


@pytest.mark.parametrize(
    ("change", "subject", "said"),
    [
        ({"python": "3.12.1"}, "packages", "Python 3.12.1 for 3.11.7 here; install"),
        ({"versions": {"ray": "2.60.0", "torch": "2.9.0"}}, "packages", "torch 2.9.0 for 2.15.0 here; install"),
        ({"versions": {"ray": "2.60.0", "torch": ""}}, "packages", "torch missing for 2.15.0 here; install"),
        ({"clock_s": 94.0}, "clocks", "at least 6 s behind of this machine's clock; let NTP"),
        ({"clock_s": 111.0}, "clocks", "at least 8 s ahead of this machine's clock; let NTP"),
        ({"gpus_seen": 1}, "gpus", "offers 2 GPUs, of which torch sees 1; check its driver"),
        ({"free_bytes": {"/runs": 10 * 2**30, "/tmp/ray": 10**9}}, "disks", "little space left in /tmp/ray (1.0 GB)"),
        ({"sees_probe": False}, "shared runs", "does not see what is written to /runs here; set --runs-dir"),
        ({"answers_probe": False}, "shared runs", "cannot write to /runs, or it is not seen here; check"),
        ({"store_problems": ["--store cannot be used: check"]}, "stores", "says that --store cannot be used: check"),
        ({"has_token": False}, "token", "asks for no token"),
    ],
)  # fmt: skip
def test_a_problem_names_its_node_and_what_to_do(change: dict[str, Any], subject: str, said: str) -> None:
    problems = [one for one in judged(GOOD, replace(GOOD, node="10.0.0.2", **change)) if not one.is_ok]
    ((_, told, text),) = problems
    assert told == subject
    assert text.startswith("node 10.0.0.2 ")
    assert said in text


@pytest.mark.parametrize("change", [{"clock_s": 98.0}, {"clock_s": 107.0}, {"gpus_seen": None}])
def test_small_differences_and_what_was_not_asked_are_no_problems(change: dict[str, Any]) -> None:
    assert all(one.is_ok for one in judged(replace(GOOD, **change)))


@pytest.mark.parametrize(
    ("url", "has_token", "is_ok"),
    [
        ("127.0.0.1:8265", False, True),
        ("[::1]:8265", False, True),
        ("", False, True),
        ("10.0.0.1:8265", False, False),
        ("10.0.0.1:8265", True, True),
    ],
)
def test_a_dashboard_beyond_loopback_needs_a_token(url: str, has_token: bool, is_ok: bool) -> None:
    assert judge_dashboard(url, has_token=has_token).is_ok is is_ok


def test_a_run_is_held_against_the_nodes(tiny_run: dict[str, Any]) -> None:
    config = RunConfig.model_validate(tiny_run | {"execution": {"resources": {"num_cpus": 1, "num_gpus": 1}}})
    assert judge_demand(config, [{"CPU": 4.0, "GPU": 1.0}]).is_ok
    found = judge_demand(config, [{"CPU": 4.0}])
    assert not found.is_ok
    assert "tiny: execution.resources.num_gpus is 1, but no node has more than 0" in found.text


def test_the_length_of_sockets_is_counted_to_the_byte() -> None:
    """By the name that Ray gave one: /tmp/ray/session_2026-11-26_18-30-00_123456_12345/sockets/plasma_store."""
    tail = "/ray/session_2026-11-26_18-30-00_123456_12345/sockets/plasma_store"
    for length in (4, 107 - len(tail)):
        assert socket_excess("/" + "x" * (length - 1), 12345) == 0
    assert socket_excess("/" + "x" * (107 - len(tail)), 12345) == 1
    assert socket_excess("/" + "é" * 30, 12345) == 61 + len(tail) - 107


def test_a_long_temporary_directory_is_one_sentence_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 55)
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR is /tmp/x+, \d+ bytes too long .* shorter"), connect(None):
        raise AssertionError("connected")


def test_a_start_that_takes_too_long_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")  # as Ray does

    monkeypatch.setattr(ray, "init", late)
    with (
        pytest.raises(ClusterError, match=r"Ray did not start in its time .*; run the same command again"),
        connect(None),
    ):
        raise AssertionError("connected")


def test_another_version_on_the_head_is_one_sentence() -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as raised:
        check_version_info({"ray_version": "2.1.0", "python_version": "3.9.2"}, "10.0.0.9")
    said = str(unreachable("head:6379", raised.value))
    assert said.startswith("the cluster at head:6379 has Ray: 2.1.0, Python: 3.9.2, this machine Ray: 2.")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("address", "kind", "said"),
    [
        ("nonsense", ConfigError, "--address is 'nonsense', but the nodes of a cluster meet at .* HEAD:6379"),
        ("head:port", ConfigError, "--address is 'head:port'"),
        ("127.0.0.1:9", ClusterError, "no Ray cluster answers at 127.0.0.1:9 .*refused.*; check the address"),
        ("nohost.invalid:6379", ClusterError, "no Ray cluster answers at nohost.invalid:6379 "),
    ],
)  # fmt: skip
def test_a_wrong_address_is_said_at_once(address: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said), connect(address):
        raise AssertionError("connected")


def test_versions_known_to_be_vulnerable_are_named_with_the_next_ones() -> None:
    safe = {"torch": "2.10.0+cpu", "ray": "2.60.0", "mlflow": "3.15.1", "pyarrow": "", "pillow": "12.3.0"}
    assert judge_versions(safe).is_ok
    found = judge_versions(safe | {"torch": "2.9.1", "mlflow": "3.9.0"})
    assert not found.is_ok
    assert found.text == (
        "torch 2.9.1 is known to be vulnerable: pip install 'torch>=2.10'; "
        "mlflow 3.9.0 is known to be vulnerable: pip install 'mlflow>=3.15.1'"
    )


def test_what_is_installed_is_at_least_what_is_safe() -> None:
    """And so is the oldest that the package allows."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    asked = [line.partition(">=") for line in project["dependencies"]]
    oldest = {name.partition("[")[0]: Version(since) for name, _, since in asked}
    assert [name for name, since in SAFE_SINCE.items() if oldest[name] < Version(since)] == []
    assert judge_versions({name: version(name) for name in SAFE_SINCE}).is_ok
