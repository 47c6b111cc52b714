#!/usr/bin/env python3
"""Data that people bring, thousands of random cases: each is read right, or refused in one sentence.

    python benchmarks/hostile_data.py --cases 5000 --out benchmarks/results/2026-11-hostile-data.json

Each case (data_families) is opened and decoded as `rememe data prepare` does it, and every tenth is written, too. What
comes out is compared with what the case was made of: pixels, class names and what was said. Outcomes:

    read right                pixels, classes and remarks as they should be
    refused in one sentence   with the words that the family expects
    wrong                     anything else that was read, or a refusal of what should have been read
    traceback                 another error than a sentence for people
    hung                      no answer in 60 seconds
"""

import argparse
import json
import re
import signal
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from data_families import FAMILIES
from data_families.cases import SIDE, Case, Draw, Truth

from orchestrator.runs.data import prepare_source, source_config
from workloads.data.decode import decode_block
from workloads.data.prepared import PreparedDataset
from workloads.data.source import ImageSource
from workloads.data.sources import open_source
from workloads.errors import RememeError

LIMIT_S = 60
WRITE_EVERY = 10
RIGHT = ("read right", "refused in one sentence")
OUTCOMES = (*RIGHT, "wrong", "traceback", "hung")


class Judged(NamedTuple):
    """What became of a case, and why if it is not right."""

    outcome: str
    detail: str = ""


class Hung(BaseException):
    """Past everything that catches errors."""


def judge(case: Case, scratch: Path | None) -> Judged:
    """scratch: where to write it as well, if it is to be."""
    outcome, detail = "wrong", ""
    try:
        with limited():
            detail = _fault_of_what_is_read(case, scratch)
        outcome = "wrong" if detail else "read right"
    except RememeError as error:
        detail = _fault_of_refusal(case, str(error))
        outcome = "wrong" if detail else "refused in one sentence"
    except Hung:
        outcome = "hung"
    except Exception as error:
        outcome, detail = "traceback", f"{type(error).__name__}: {error}"
    return Judged(outcome, detail)


def _fault_of_refusal(case: Case, sentence: str) -> str:
    """What is wrong with it; empty if nothing is."""
    if "\n" in sentence or not 10 < len(sentence) < 1500 or "Error(" in sentence:
        return f"not one sentence: {sentence!r}"
    if case.truth is not None and not case.may_be_refused:
        return f"refused: {sentence}"
    return (
        "" if case.truth is not None or _tells(sentence, case) else f"refused, but not with {case.told!r}: {sentence}"
    )


def _fault_of_what_is_read(case: Case, scratch: Path | None) -> str:
    """What is wrong with it; empty if nothing is."""
    config = source_config(str(case.path), size=SIDE, channels=3, **case.options)
    source = open_source(config)
    images = np.empty((source.num_images, 3, SIDE, SIDE), np.uint8)
    block = decode_block(source.items(0), images, len(source.class_names), None, lambda _: None)
    if case.truth is None:
        return f"read {len(block.labels)} pictures, should be refused with {case.told!r}"
    found = _truth(source.class_names, block.labels, block.images)
    # What a damaged file lacks must have been named.
    named = len(block.bad) + sum(one.count for one in source.left_out) if case.may_be_refused else 0
    if not found <= case.truth or (case.truth - found).total() > named:
        return f"{_difference(found, case.truth)} ({source.remarks})"
    if len(block.bad) != case.num_bad and not case.may_be_refused:
        return f"{len(block.bad)} bad, not {case.num_bad}: {[one.detail for one in block.bad]}"
    said = " ".join([*source.remarks, *(one.reason for one in source.left_out), *(one.detail for one in block.bad)])
    if not _tells(said, case):
        return f"nothing said of {case.told!r}: {said}"
    if not _goes_on(source):
        return "going on in the middle gives something else"
    same = scratch is None or not len(block.labels) or _written(case, scratch, len(block.bad)) == found
    return "" if same else "written otherwise than read"


def _written(case: Case, out: Path, max_bad: int) -> Truth:
    prepare_source(str(case.path), out, vae=None, max_bad=max_bad, size=SIDE, channels=3, **case.options)
    made = PreparedDataset(out)
    every = np.arange(made.num_images)
    return _truth(made.class_names, made.labels(every), made.images(every))


def _tells(text: str, case: Case) -> bool:
    patterns = (case.told,) if isinstance(case.told, str) else case.told
    return all(re.search(pattern, text) for pattern in patterns)


def _truth(names: tuple[str, ...], labels: np.ndarray, images_NCHW: np.ndarray) -> Truth:
    pixels = (np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes() for image in images_NCHW)
    return Counter((names[label], one) for label, one in zip(labels, pixels, strict=True))


def _difference(found: Truth, truth: Truth) -> str:
    if Counter(pixels for _, pixels in found) == Counter(pixels for _, pixels in truth):
        return f"classes {sorted({name for name, _ in found})}, not {sorted({name for name, _ in truth})}"
    return f"{(found - truth).total()} pictures too many or with other pixels, {(truth - found).total()} missing"


def _goes_on(source: ImageSource) -> bool:
    """Whether beginning in the middle, as after an interruption, gives the same as going through."""
    middle = source.num_images // 2
    whole = [(item.name, item.label) for item in source.items(0)]
    return [(item.name, item.label) for item in source.items(middle)] == whole[middle:]


@contextmanager
def limited() -> Iterator[None]:
    """Hung after LIMIT_S, also where a system call waits."""

    def give_up(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judged_cases(family: str, seed: int, folder: Path) -> Iterator[Judged]:
    """All cases of one drawing of a family, judged."""
    draw = Draw((seed, sorted(FAMILIES).index(family)))
    root = folder / "data"
    root.mkdir()
    for number, case in enumerate(FAMILIES[family](draw, root)):
        write = (seed + number) % WRITE_EVERY == 0
        yield judge(case, folder / f"out{number}" if write else None)


def run(num_cases: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts by family and outcome, and a line on each that is neither right nor refused."""
    counts = {family: Counter[str]() for family in FAMILIES}
    faults: list[str] = []
    drawing = seed
    while sum(one.total() for one in counts.values()) < num_cases:
        for family in FAMILIES:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile warns of the names that are there twice
                for number, judged in enumerate(judged_cases(family, drawing, Path(folder))):
                    counts[family][judged.outcome] += 1
                    if judged.outcome not in RIGHT:
                        faults.append(f"{family}, seed {drawing}, case {number}: {judged.outcome}: {judged.detail}")
        drawing += 1
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    started_s = time.monotonic()
    counts, faults = run(options.cases, options.seed)
    total = sum(counts.values(), Counter[str]())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    report = {
        "command": f"python benchmarks/hostile_data.py --cases {options.cases} --seed {options.seed}",
        "commit": commit.stdout.strip(),
        "seconds": round(time.monotonic() - started_s),
        "cases": total.total(),
        **{outcome: total[outcome] for outcome in OUTCOMES},
        "families": {family: {name: one[name] for name in OUTCOMES} for family, one in counts.items()},
    }
    print(json.dumps(report, indent=2))
    print("\n".join(faults[:50]))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
