"""Whether machines are fit for a run, judged from plain facts. Pure; each problem says where it is and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from packaging.version import Version

from orchestrator.plan.policies import why_infeasible
from workloads.config import RunConfig

MIN_FREE_BYTES = 2 * 2**30
"""What two checkpoints (weights, average, two moments) of a network of 67 M parameters take."""

SAFE_SINCE = {
    # CVE-2026-24747: memory corrupted by a file read with weights_only; CVE-2025-32434 before it: code run.
    "torch": "2.10",
    # CVE-2026-57516; tokens (CVE-2023-48022: anyone who reaches the dashboard runs code) are there since 2.52.
    "ray": "2.56",
    # GHSA-7qhf-v65m-g5f3 (jobs without a password) and GHSA-fh64-r2vc-xvhr (scripts in the browser) up to 3.10.1; the
    # floors of mlflow, pyarrow and pillow are those that NVIDIA's NeMo Automodel pins after audits.
    "mlflow": "3.15.1",
    "pyarrow": "23.0.1",
    "pillow": "12.3",
}
"""Versions with known vulnerabilities come before these."""

MAX_SKEW_S = 5.0
"""Between clocks: leases of shared stores and the times of curves are wrong by as much."""

MAX_SOCKET_BYTES = 107
"""Length of a Unix socket's path on Linux."""

SOCKET_TAIL = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""What Ray puts behind its temporary directory for the longest of its sockets."""


class Finding(NamedTuple):
    """One line of the report."""

    is_ok: bool
    subject: str
    text: str


@dataclass(frozen=True)
class NodeFacts:
    """What a node of a cluster says of itself. Times are seconds since 1970."""

    node: str
    """Its address."""

    python: str
    versions: Mapping[str, str]
    """Of packages, empty for one that is missing."""

    gpus_offered: float
    """That the cluster believes it has."""

    gpus_seen: int | None
    """That torch sees there; None: not asked."""

    asked_s: float
    answered_s: float
    """By the clock of who asked."""

    clock_s: float
    """By its own, in between."""

    free_bytes: Mapping[str, int]
    """By directory."""

    sees_probe: bool = True
    """Whether it sees what the driver has written into the runs directory."""

    answers_probe: bool = True
    """Whether the driver sees what it has written there."""

    has_token: bool = True
    """Whether it asks for one."""

    store_problems: Sequence[str] = ()
    """Why it cannot use a --store or a --storage."""


def judge_versions(versions: Mapping[str, str]) -> Finding:
    """Whether none of these packages is of a version that is known to be vulnerable; empty: not installed."""
    unsafe = [
        f"{name} {versions[name]} is known to be vulnerable: pip install '{name}>={since}'"
        for name, since in SAFE_SINCE.items()
        if versions.get(name) and Version(versions[name]) < Version(since)
    ]
    return Finding(not unsafe, "security", "; ".join(unsafe) or "no package is of a version known to be vulnerable")


def judge_nodes(
    nodes: Sequence[NodeFacts],
    *,
    python: str,
    versions: Mapping[str, str],
    runs_dir: str | None,
    num_asked: int,
    has_stores: bool = False,
) -> list[Finding]:
    """What is wrong with the nodes of a cluster, for a driver with these versions; a line each for what is right.

    runs_dir: None if nodes need not share it. has_stores: whether each has tried a --store or --storage.
    """
    checks = {
        "packages": [_packages(node, python, versions) for node in nodes],
        "clocks": [_clock(node) for node in nodes],
        "gpus": [_gpus(node) for node in nodes],
        "disks": [_disks(node) for node in nodes],
        "shared runs": [_shared(node, runs_dir) for node in nodes] if runs_dir and num_asked > 1 else [],
        "stores": [_stores(node) for node in nodes] if has_stores else [],
        "token": [_token(node) for node in nodes],
    }
    findings = []
    for subject, problems in checks.items():
        told = [Finding(False, subject, f"node {problem}") for problem in problems if problem]
        fine = len(problems) - len(told)
        findings += told
        if fine:
            findings.append(Finding(True, subject, f"as they should be on {fine} of {num_asked} nodes"))
    return findings


def _packages(node: NodeFacts, python: str, versions: Mapping[str, str]) -> str:
    there = {**node.versions, "Python": node.python}
    differing = [
        f"{name} {there.get(name) or 'missing'} for {own}"
        for name, own in {"Python": python, **versions}.items()
        if there.get(name) != own
    ]
    if not differing:
        return ""
    return f"{node.node} has {', '.join(differing)} here; install there what the driver has (constraints.txt)"


def _clock(node: NodeFacts) -> str:
    """Its clock was read between question and answer, so only what lies outside counts."""
    skew_s = max(node.asked_s - node.clock_s, node.clock_s - node.answered_s, 0.0)
    if skew_s <= MAX_SKEW_S:
        return ""
    direction = "behind" if node.clock_s < node.asked_s else "ahead"
    return f"{node.node} is at least {skew_s:.0f} s {direction} of this machine's clock; let NTP or chrony set both"


def _gpus(node: NodeFacts) -> str:
    if node.gpus_seen is None or node.gpus_seen >= node.gpus_offered:
        return ""
    return (
        f"{node.node} offers {node.gpus_offered:g} GPUs, of which torch sees {node.gpus_seen}; check its driver and "
        "that torch there has CUDA, or start Ray with fewer --num-gpus"
    )


def _disks(node: NodeFacts) -> str:
    full = [f"{name} ({free / 1e9:.1f} GB)" for name, free in node.free_bytes.items() if free < MIN_FREE_BYTES]
    return (
        f"{node.node} has little space left in {', '.join(full)}; free some or choose another directory" if full else ""
    )


def _shared(node: NodeFacts, runs_dir: str) -> str:
    if not node.sees_probe:
        return f"{node.node} does not see what is written to {runs_dir} here; set --runs-dir to a path all nodes share"
    if not node.answers_probe:
        return (
            f"{node.node} cannot write to {runs_dir}, or it is not seen here; check its permissions and mount options"
        )
    return ""


def _stores(node: NodeFacts) -> str:
    return f"{node.node} says that {'; '.join(node.store_problems)}" if node.store_problems else ""


def _token(node: NodeFacts) -> str:
    if node.has_token:
        return ""
    return f"{node.node} asks for no token, so whoever reaches it runs code there; start Ray with RAY_AUTH_MODE=token"


def judge_dashboard(url: str, *, has_token: bool) -> Finding:
    """HOST:PORT of the cluster's dashboard, empty if there is none: whoever reaches it submits jobs."""
    host = url.rpartition(":")[0].strip("[]")
    if not host or host in {"127.0.0.1", "::1", "localhost"}:
        return Finding(True, "dashboard", f"{url or 'none'}: nothing listens beyond this machine")
    if has_token:
        return Finding(True, "dashboard", f"{url} listens beyond its machine, and asks for the token")
    return Finding(
        False,
        "dashboard",
        f"{url} listens beyond its machine and asks for no token; start the head with RAY_AUTH_MODE=token, or with "
        "--dashboard-host=127.0.0.1",
    )


def judge_demand(config: RunConfig, nodes: Sequence[Mapping[str, float]]) -> Finding:
    """Whether some node could hold each expert of a run."""
    for index in range(len(config.intervals)):
        reason = why_infeasible(config.expert_resources(index), nodes)
        if reason is not None:
            text = f"{config.name}: execution.{reason}; ask for less or join a larger node"
            return Finding(False, "config", text)
    return Finding(True, "config", f"each expert of {config.name} fits on some node")


def socket_excess(temp_dir: str, pid: int) -> int:
    """By how many bytes Ray's temporary directory is too long for its sockets; 0 if it is not."""
    return max(0, len((temp_dir.rstrip("/") + SOCKET_TAIL.format(pid=pid)).encode()) - MAX_SOCKET_BYTES)
