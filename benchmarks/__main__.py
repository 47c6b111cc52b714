"""Every measured ratio in one run: ours, the peer's on the same work, the machine's limit.

    python -m benchmarks                        all, to benchmarks/results/bench.json and benchmarks/README.md
    python -m benchmarks step "Frechet distance"    only these; the others' results stay
    python -m benchmarks --peers DIR            DIR/DiT and DIR/Remix-DiT are checkouts of the public code
    python -m benchmarks --render               the table and the plot again, from what was measured

Each bench is a command of its own, shown in the table, and can be run alone.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.rows import BENCHES, Bench, Row, found

HERE = Path(__file__).resolve().parent
RESULTS, TABLE, PLOT = HERE / "results" / "bench.json", HERE / "README.md", HERE / "results" / "bench.png"

HEAD = """# Benchmarks

`make bench` measures all of these, one after the other, and writes this page; `python -m benchmarks NAME` one of them.
Ratios are measured side by side in one run. The public code is used as it is, from checkouts outside this tree
(`make bench PEERS=DIR`, with `DIR/DiT` and `DIR/Remix-DiT`); without them its rows say so. Other measurements, some of
them longer, are in [results](results).
"""

LEAST_SHOWN = 0.1
"""Over its goal, in the plot: some figures are a millionth of it, and the others would be one line."""


def command_of(bench: Bench, peers: Path | None) -> list[str]:
    """Of the bench; without the interpreter."""
    more = ["--peers", str(peers)] if bench.takes_peers and peers is not None else []
    return [*bench.arguments, *more]


def run(bench: Bench, peers: Path | None) -> dict[str, Any]:
    """Its report, and what belongs to it. CalledProcessError if it prints none."""
    started_s = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, *command_of(bench, peers)]
    process = subprocess.run(command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, check=False)
    printed = process.stdout.decode()
    try:
        report = json.loads(printed[printed.index("{\n") :])
    except ValueError:  # a limit that is missed is exit code 1 and a report
        raise subprocess.CalledProcessError(process.returncode, process.args, printed) from None
    return {
        "peers": peers is not None and bench.takes_peers,
        "elapsed_s": round(time.monotonic() - started_s),
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else ""),
        "machine": machine(),
        "report": report,
    }


def git(*arguments: str) -> str:
    """What git says of this tree."""
    return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    """Processor and cores."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(": ")[2] if names else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def verdict(row: Row, value: float) -> str:
    """Whether the goal is reached."""
    if row.goal is None:
        return ""
    return f"{'>=' if row.is_least else '<='} {row.goal:g}" + ("" if is_reached(row, value) else " (missed)")


def is_reached(row: Row, value: float) -> bool:
    """Whether the figure is as good as its goal; of none, it is."""
    shown = float(f"{value:.3g}")  # goals have as many digits
    return row.goal is None or (shown >= row.goal if row.is_least else shown <= row.goal)


def measured(results: dict[str, Any]) -> Iterator[tuple[Row, float]]:
    """Rows that have a figure, in the order of the table."""
    for bench in BENCHES:
        for row in bench.rows:
            value = found(results[bench.name]["report"], row.figure) if bench.name in results else None
            if value is not None:
                yield row, value


def lines(results: dict[str, Any]) -> list[str]:
    """The table, a line a row."""
    made = ["| what | measured | goal | beside | command |", "|---|---|---|---|---|"]
    for bench in BENCHES:
        result = results.get(bench.name)
        for row in bench.rows:
            value = None if result is None else found(result["report"], row.figure)
            if result is None:
                told, goal = "not measured", ""
            elif value is None:
                is_peers = row.peer.startswith("public") and not result.get("peers")
                told, goal = "peer absent" if is_peers else "not measured", ""
            else:
                spread = " - ".join(f"{found(result['report'], figure):.4g}" for figure in row.spread)
                told = f"{value:.4g}" + (f" ({spread})" if spread else "")
                goal = verdict(row, value)
            command = " ".join(["python", *command_of(bench, None)])  # a directory of this machine is nobody else's
            made.append(f"| {row.what} | {told} | {goal} | {row.peer} | `{command}` |")
    return made


def limits(results: dict[str, Any]) -> list[str]:
    """What stands in the way of goals that are missed, a paragraph each; the rows it is true of are named."""
    missed: dict[str, list[str]] = {}
    for row, value in measured(results):
        if row.limit and not is_reached(row, value):
            missed.setdefault(row.limit, []).append(row.what)
    return [f"- **{'; '.join(rows)}**: {limit}" for limit, rows in missed.items()]


def render(results: dict[str, Any]) -> None:
    """The page and its plot."""
    runs = sorted({f"{one['machine']}; commit {one['commit']}, {one['measured']} UTC" for one in results.values()})
    taken_s = sum(one["elapsed_s"] for one in results.values())
    page = [
        HEAD,
        f"What is measured took {taken_s / 60:.0f} minutes. In parentheses the least and most of the rounds.\n",
    ]
    page += [*lines(results), "", "![Each figure over its goal](results/bench.png)", ""]
    if why := limits(results):
        page += ["What stands in the way of goals that are missed, and what was tried:", "", *why, ""]
    page += ["Measured on:", ""]
    TABLE.write_text("\n".join([*page, *(f"- {run}" for run in runs)]) + "\n")
    draw(results)


def draw(results: dict[str, Any]) -> None:
    """How each figure stands to its goal: left of the line is better."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = []
    for row, value in measured(results):
        if row.goal:
            share = row.goal / value if row.is_least else value / row.goal
            points.append((row.what, max(share, LEAST_SHOWN), is_reached(row, value)))
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(points) + 1), layout="constrained")
    for place, (_, share, is_good) in enumerate(reversed(points)):
        axes.plot(share, place, "o" if is_good else "s", color="#0072b2" if is_good else "#d55e00")
    axes.set_yticks(range(len(points)), [what for what, *_ in reversed(points)], fontsize=8)
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel(f"over the goal, {LEAST_SHOWN:g} or less at the edge; blue circles reach it")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(PLOT, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(bench.name for bench in BENCHES))
    parser.add_argument("--peers", type=Path, help="directory with checkouts of the public code")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if unknown := set(options.names) - {bench.name for bench in BENCHES}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(one.name for one in BENCHES)}")
    if options.peers is not None and not options.peers.is_dir():
        parser.error(f"--peers {options.peers} is no directory; check the public code out there, or leave it out")
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    failed = []
    for bench in BENCHES if not options.render else ():
        if options.names and bench.name not in options.names:
            continue
        print(f"{bench.name}: {' '.join(bench.arguments)} (about {bench.minutes:g} minutes)", file=sys.stderr)
        try:
            results[bench.name] = run(bench, options.peers and options.peers.resolve())
        except subprocess.CalledProcessError as error:
            failed.append(bench.name)
            print(f"{bench.name} ended with {error.returncode} and no report", file=sys.stderr)
            continue
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")  # what is measured is kept, whatever comes after
    render(results)
    print("\n".join(lines(results)))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
