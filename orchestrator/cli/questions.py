"""Commands that answer questions and change nothing: explain, diff."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import RUNS, AsJson, RunsDirOption
from orchestrator.cli.complete import complete_key, complete_run
from orchestrator.cli.results import print_json
from orchestrator.terminal.notes import print_beginning

if TYPE_CHECKING:
    from orchestrator.runs.analysis.difference import Difference
    from orchestrator.search.study.keys import Explained

MAX_READERS = 8
"""A name that more modules read is too common to tell anything."""

Run = Annotated[
    Path,
    typer.Argument(
        help="A run's directory, or its name in --runs-dir, with or without its hash.",
        show_default=False,
        autocompletion=complete_run,
    ),
]


def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            help="Key of a run, a study or a comparison, or a section; without it, all sections.",
            show_default=False,
            autocompletion=complete_key,
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Say what a key of a description means: type, unit, default, source, and who reads it."""
    from orchestrator.search.study.keys import explain_key, keys_below

    found = [] if key is None else explain_key(key)
    below = keys_below(key or "")
    if json:
        print_json([one.to_json() for one in found or below])
        return
    for one in found:
        _print_key(one)
    for one in below:
        print(f"  {one.key.path:42} {one.key.meaning.partition('. ')[0]}")


def _print_key(one: "Explained") -> None:
    from orchestrator.search.study.keys import readers_of

    where = f", where the kind is {', or '.join(one.kinds)}" if one.kinds else ""
    print(f"{one.key.path} (of {one.root}{where})")
    print(f"  {one.key.meaning}")
    readers = readers_of(one.key)
    told = {
        "type": one.key.type,
        "unit": one.key.unit,
        "default": one.key.default,
        "source": one.key.source,
        # Attributes of that name, whosever they are.
        "read by": ", ".join(readers) if len(readers) <= MAX_READERS else "",
    }
    for name, value in told.items():
        if value:
            print(f"  {name:8} {value}")


def diff(left: Run, right: Run, runs_dir: RunsDirOption = RUNS, json: AsJson = False) -> None:
    """Say how two runs differ: configuration, scores under the same protocol, weights to the last bit."""
    from orchestrator.runs.stored import find_trained_run

    folders = [find_trained_run(run, runs_dir) for run in (left, right)]
    print_beginning(f"diff {left} {right}")
    from orchestrator.runs.analysis.difference import difference_of

    found = difference_of(*folders)
    if json:
        print_json(found.to_json())
    else:
        _print_difference(found)


def _print_difference(found: "Difference") -> None:
    from orchestrator.runs.analysis.difference import shown

    print(f"{found.left}  |  {found.right}")
    print("configuration" if found.configuration else "configuration: the same")
    for key, (left, right) in found.configuration.items():
        print(f"  {key:44} {shown(left)}  |  {shown(right)}")
    print("scores" if found.scores else "scores: none under the same protocol")
    for score in found.scores:
        no_verdict = "cannot be compared" if any(score.doubts) else "no interval known"
        words = {True: "a tie: inside the 95 % interval", False: "", None: no_verdict}[score.is_tie]
        under = f"{score.name} ({score.protocol}, {score.protocol_hash[:8]})"
        print(f"  {under:44} {'  |  '.join(score.told)}  {words}")
    print("weights")
    for pair in found.weights:
        words = "the same" if pair.is_same else f"{(pair.left or 'none')[:12]}  |  {(pair.right or 'none')[:12]}"
        print(f"  expert {pair.expert:<3} {words}")
