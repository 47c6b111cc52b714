"""Descriptions nobody would write, from the command line: each is read right, or refused in one sentence.

5,000 of them, with the summary that is committed:
python -m pytest tests/unit/test_fuzzed_descriptions.py --num-fuzzed 5000 --fuzz-summary \
tests/unit/fuzzed_descriptions.json
"""

import io
import json
import math
import random
import re
import signal
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from orchestrator.cli.app import main
from orchestrator.plan.description import to_yaml
from orchestrator.search.study.study import Study
from workloads.config import RunConfig, load_config
from workloads.config.comparison import Comparison

SEED = 12
HUNG_S = 60
PRESETS = Path(__file__).parents[2] / "workloads/presets"
OUTCOMES = ("right", "refused", "wrong", "traceback", "hung")

Draw = random.Random
Check = Callable[[Any, Any], bool]
"""Of what was read and what was printed as JSON: whether it is what the text means."""


class Case(NamedTuple):
    """A command, the one file it reads, and what is right."""

    command: list[str]
    """After `rememe`; FILE stands for the file."""
    content: bytes
    check: Check = lambda read, printed: True
    must: str = "either"
    """either, read or refused."""


class HungError(BaseException):
    """Not an Exception, which somebody might catch."""


# What an outcome is compared with is worked out here by other means: the number that was written down, PyYAML's
# untyped reading, and arithmetic.


def base_run() -> dict[str, Any]:
    """A small run; its data need not be there for its plan to be printed."""
    data = {"kind": "prepared", "path": "nowhere", "image_size": 8, "channels": 1, "num_classes": 10}
    return {
        "name": "x",
        "data": data | {"class_conditional": True},
        "model": {"kind": "dit", "hidden_size": 8, "depth": 1, "num_heads": 2, "patch_size": 2},
        "strategy": {"kind": "single"},
        "training": {"images": 640, "batch_size": 32},
        "evaluation": {"name": "demo", "num_samples": 500},
    }


def with_value(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *sections, key = path.split(".")
    raw = deepcopy(raw)
    node = raw
    for section in sections:
        node = node.setdefault(section, {})
    node[key] = value
    return raw


def at(node: Any, path: str) -> Any:
    for key in path.split("."):
        node = node[int(key)] if isinstance(node, list | tuple) else node[key]
    return node


def dumped(read: Any) -> dict[str, Any]:
    found: dict[str, Any] = read.model_dump(mode="python")
    return found


WHOLE = {
    "training.images": (1, 10**12), "training.batch_size": (1, 10**6), "training.warmup_images": (0, 10**12),
    "seed": (0, 2**62), "diffusion.num_timesteps": (20, 10**6), "evaluation.num_samples": (2, 10**8),
    "evaluation.batch_size": (1, 10**6), "execution.max_attempts": (1, 10**9), "training.log_every_images": (1, 10**12),
}  # fmt: skip
REAL = {
    "training.learning_rate": (1e-300, 1e300), "training.weight_decay": (0.0, 1e300), "training.label_dropout": (0, 1),
    "training.ema_rampup": (1e-300, 1e300), "execution.wait_timeout_s": (1e-3, 1e9),
    "diffusion.beta_start": (1e-9, 0.01), "execution.resources.num_cpus": (0, 1e6),
    "evaluation.sampling.guidance_scale": (0, 100),
}  # fmt: skip
"""Fields, and the values they may have."""


def whole_notation(draw: Draw, number: int) -> str:
    notations = [f"{number}", f"{number:_}", f"{number}.0", f"{number}.", f"{number}e0", f"{number}.0E+0"]
    if number >= 0:
        notations += [f"+{number}", f"00{number}", f"0x{number:X}", f"0o{number:o}"]
        notations += [f"{number // 1000}e3"] * (number % 1000 == 0)
    # A float has 53 bits.
    return draw.choice(notations if abs(number) < 2**53 else [f"{number}", f"{number:_}"])


def numbers(draw: Draw) -> Case:
    """A number in some notation, within its field's range or outside of it."""
    if draw.random() < 0.5:
        path, (lo, hi) = draw.choice(list(WHOLE.items()))
        inside = draw.random() < 0.8
        number: float = draw.choice([lo, lo + 1, hi, draw.randint(lo, hi), 1000 * draw.randint(1, 20)])
        number = number if inside else draw.choice([lo - 1, -draw.randint(1, 10**9), lo + 0.5])
        text = whole_notation(draw, number) if isinstance(number, int) else str(number)
    else:
        path, bounds = draw.choice(list(REAL.items()))
        inside = draw.random() < 0.8
        number = draw.choice([bounds[0], bounds[1], draw.uniform(*bounds)]) if inside else -draw.uniform(1e-9, 10)
        text = draw.choice([repr(number), f"{number:.17e}", f"{number:.17E}"])
    must, check = ("read", lambda read, _: at(dumped(read), path) == number) if inside else ("refused", lambda *_: True)
    if draw.random() < 0.5:
        return Case(["plan", "FILE", f"{path}={text}", "--json"], json.dumps(base_run()).encode(), check, must)
    content = yaml.safe_dump(with_value(base_run(), path, "@@")).replace("'@@'", text)
    return Case(["plan", "FILE", "--json"], content.encode(), check, must)


OTHERS = [
    ".inf", "-.inf", ".nan", "''", "~", "true", "no", "[]", "{}", "[1, 2]", "{a: 1}", "[[[]]]", "2024-99-99", "1:30",
    "9" * 30, "9" * 5000, "1e999", "~/x", "~nobody/x", "$NOPE/x", "'a/b'", "'../../x'", "x" * 300, "y/" * 3000,
    "\u00b2", "'\u00b2'", "0x_", "!!python/object:os.system x", "!!binary aa", "&a [*a]", "*b", "'1/0'", "'inf'",
    "'nan'", "'%s %d'", "'[bold]x[/]'", '"a\\nb"', '"\\0"', "'\u202e'", "single", "meme", "dit", "iunet", "remix",
    "prepared", "{kind: dit}", "{kind: single, x: 1}", "fid2k", "S", "1e6", "017", "1", "2", "3", "7", "0", "-1",
    "0.5", "1e-320", "1e308", "9223372036854775807", "1000000000", "'1'", "[true]", "{kind: [a]}", "{a: {b: {c: 1}}}",
]  # fmt: skip

BASES = ["demo-meme", "demo-remix", "imagenet256-remix-s-4-8", "ffhq256-meme", "FILE"]
NOWHERE = "data={kind: prepared, path: nowhere, image_size: 16, channels: 1, num_classes: 10, class_conditional: true}"


def fields_of(annotation: Any, prefix: str = "") -> Iterator[str]:
    """Every field of a section, of every kind it can be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield f"{prefix}{name}"
            yield from fields_of(field.annotation, f"{prefix}{name}.")
    elif get_origin(annotation) in {tuple, list}:
        yield f"{prefix}0"
        yield f"{prefix}\u00b2"
        yield from fields_of(get_args(annotation)[0], f"{prefix}0.")
    elif get_origin(annotation) in {Union, types.UnionType, Annotated}:
        for part in get_args(annotation):
            yield from fields_of(part, prefix)


FIELDS = {model: sorted(set(fields_of(model))) for model in (RunConfig, Comparison, Study)}


COMMON = [
    field
    for field in FIELDS[RunConfig]
    if field.split(".")[0] in {"training", "evaluation", "execution", "diffusion", "seed", "name"}
]
"""Of every run, whatever its strategy, network and data are."""


def overrides(draw: Draw) -> Case:
    """Anything anywhere on the command line."""
    count = draw.choice([1, 1, 2, 3])
    fields = FIELDS[RunConfig] if draw.random() < 0.4 else COMMON
    changes = [f"{draw.choice(fields)}={draw.choice(OTHERS)}" for _ in range(count)]
    base = draw.choice(BASES)
    first = [] if base == "FILE" else [NOWHERE]
    return Case(["plan", base, "--json", "--", *first, *changes], json.dumps(base_run()).encode())


PLAIN = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def reads_as_written(content: bytes) -> Check:
    """Every plain number of the text is the number that was read; PyYAML is asked for text alone."""

    def check(read: Any, _: Any) -> bool:
        def same(text: Any, found: Any) -> bool:
            if isinstance(text, dict) and isinstance(found, dict):
                return all(same(value, found[key]) for key, value in text.items() if key in found)
            if isinstance(text, list) and isinstance(found, list | tuple):
                return len(text) == len(found) and all(map(same, text, found))
            is_number = isinstance(found, int | float) and not isinstance(found, bool)
            if is_number and isinstance(text, str) and PLAIN.fullmatch(text):
                return math.isclose(float(text), found, rel_tol=1e-15)
            return True

        return same(yaml.load(content.decode("utf-8-sig"), yaml.BaseLoader), dumped(read))

    return check


def damaged(draw: Draw) -> Case:
    """A preset's text with letters, lines or its encoding changed."""
    name = draw.choice(["demo-meme", "demo-remix", "cifar10-meme", "imagenet256-remix-l-4-8"])
    lines = (PRESETS / f"{name}.yaml").read_text().splitlines(keepends=True)
    lines = [re.sub(r"^data: .*", f"data: {NOWHERE[5:]}", line) for line in lines]
    for _ in range(draw.choice([0, 1, 1, 2])):
        index = draw.randrange(len(lines))
        line = lines[index]
        lines[index : index + 1] = draw.choice(
            [[], [line, line], ["  " + line], ["\t" + line], [line.lstrip()], [line[: draw.randrange(len(line))]]]
        )
    content = bytearray("".join(lines).encode())
    for _ in range(draw.choice([0, 0, 1, 3, 30])):
        content[draw.randrange(len(content))] = draw.choice([draw.randrange(1, 256), *b":{}[],&*!'\"# \n-0123456789"])
    changed = bytes(content)
    recode = draw.choice([None] * 8 + ["utf-16", "utf-8-sig", "latin-1", "crlf"])
    if recode == "crlf":
        changed = changed.replace(b"\n", b"\r\n")
    elif recode is not None:
        changed = changed.decode("latin-1").encode(recode)
    return Case(["plan", "FILE", "--json"], changed, reads_as_written(changed))


def misplaced(draw: Draw) -> Case:
    """A value of another type at some place of the mapping, a key that stands there twice, or one of nobody's."""
    raw = base_run()
    places = [("model",), ("data",), ("training",), ("strategy",), ("evaluation",), *(
        (section, key) for section, value in raw.items() if isinstance(value, dict) for key in value
    )]  # fmt: skip
    place = draw.choice(places)
    path = ".".join(place)
    text = yaml.safe_dump(with_value(raw, path, "@@"), sort_keys=False)
    kind = draw.choice(["type", "type", "twice", "unknown"])
    if kind == "type":
        content = text.replace("'@@'", draw.choice(["[]", "[{}]", "{}", "{a: [b, {c: d}]}", "~", "[[1]]", "&x [*x]"]))
        return Case(["plan", "FILE", "--json"], content.encode())
    line = next(line for line in text.splitlines() if "@@" in line)
    other = line if kind == "twice" else line.replace(place[-1], place[-1] + draw.choice("xyz"))
    content = text.replace(line, f"{line}\n{other}").replace("'@@'", json.dumps(at(raw, path)))
    return Case(["plan", "FILE", "--json"], content.encode(), must="refused")


def sizes(draw: Draw) -> Case:
    """A transformer; its parameters are counted here by the paper's formulas."""
    raw = base_run()
    d, heads, depth, patch = (
        draw.choice([4, 8, 12, 30, 64]),
        draw.choice([1, 2, 3, 4]),
        draw.choice([1, 2]),
        draw.choice([1, 2, 3]),
    )
    side, c, ratio = draw.choice([4, 6, 8, 9, 12]), draw.choice([1, 3, 4, 16]), draw.choice([1, 2, 2.5, 4])
    classes, variance = draw.choice([None, 1, 10, 1000]), draw.choice(["fixed", "learned"])
    model = {"kind": "dit", "hidden_size": d, "depth": depth, "num_heads": heads, "patch_size": patch}
    raw["model"] = model | {"mlp_ratio": ratio, "variance": variance}
    raw["data"] |= {"image_size": side, "channels": c, "class_conditional": classes is not None, "num_classes": classes}
    raw["evaluation"]["sampling"] = {"guidance_scale": 1}
    m, out = int(d * ratio), c * (1 + (variance == "learned"))
    block = (3 * d * d + 3 * d) + (d * d + d) + (2 * d * m + m + d) + (6 * d * d + 6 * d)
    ends = (c * patch**2 * d + d) + (256 * d + d + d * d + d) + (2 * d * d + 2 * d) + (patch**2 * out * (d + 1))
    count = depth * block + ends + (side // patch) ** 2 * d + (0 if classes is None else (classes + 1) * d)
    fits = d % 4 == d % heads == side % patch == 0
    return Case(
        ["plan", "FILE", "--json"],
        json.dumps(raw).encode(),
        lambda _, printed: printed["jobs"][0]["num_parameters"] == count,
        "read" if fits else "refused",
    )


def intervals(draw: Draw) -> Case:
    """Experts and cuts; who owns which timesteps is worked out here."""
    raw, total = base_run(), draw.choice([20, 100, 997, 1000])
    raw["diffusion"] = {"num_timesteps": total}
    if draw.random() < 0.5:
        count = draw.choice([1, 2, 3, 7, 19, 20, 21, 40])
        raw["strategy"] = {"kind": "independent", "num_experts": count}
        must = "read" if count <= total else "refused"

        def check(_: Any, printed: Any) -> bool:
            owned = [job["interval"] for job in printed["jobs"]]
            lengths = [hi - lo for lo, hi in owned]
            joined = owned[0][0] == 0 and owned[-1][1] == total and all(a[1] == b[0] for a, b in pairwise(owned))
            return len(owned) == count and joined and max(lengths) - min(lengths) <= 1
    else:
        cuts = draw.choice([sorted, list])(draw.choices(range(-1, total + 2), k=draw.choice([1, 2, 5])))  # type: ignore[operator]
        raw["strategy"] = {"kind": "independent", "cuts": cuts}
        edges = [0, *cuts, total]
        must = "read" if all(a < b for a, b in pairwise(edges)) else "refused"

        def check(_: Any, printed: Any) -> bool:
            return [job["interval"] for job in printed["jobs"]] == [list(pair) for pair in pairwise(edges)]

    return Case(["plan", "FILE", "--json"], json.dumps(raw).encode(), check, must)


def studies(draw: Draw) -> Case:
    """A grid whose size is counted here, or anything anywhere in a study."""
    raw = yaml.safe_load((PRESETS / "studies/demo-search.yaml").read_text())
    raw["base"]["data"] = base_run()["data"] | {"held_out": 500, "image_size": 16}
    if draw.random() < 0.4:
        rates, seeds = [0.1 / (n + 1) for n in range(draw.choice([1, 2, 3]))], draw.choice([[1], [1, 2]])
        step = draw.choice([250, 500])
        raw["space"] = {
            "training.learning_rate": {"choice": rates},
            "strategy.cuts": {"boundaries": {"num_experts": 2, "step": step}},
            "data.flip": {"choice": [True, False][: len(seeds)]},
        }
        count = len(rates) * (1000 // step - 1) * len(seeds)
        return Case(
            ["plan", "FILE", "--json"],
            json.dumps(raw).encode(),
            lambda _, printed: printed["num_configurations"] == count,
            "read",
        )
    changes = [f"{draw.choice(FIELDS[Study])}={draw.choice(OTHERS)}" for _ in range(draw.choice([1, 2]))]
    extra = draw.choice(["space.training.learning_rate", "space.seed", "space.strategy.num_experts", "base.model", ""])
    laws = ["{choice: [1, 2]}", "{int: [3, 1]}", "{uniform: [0, .inf]}"]
    changes += [f"{extra}={draw.choice([*OTHERS, *laws])}"] * bool(extra)
    return Case(["plan", "FILE", "--json", "--", *changes], json.dumps(raw).encode())


def comparisons(draw: Draw) -> Case:
    """A comparison up to where it would write; each row's share of the budget is divided here."""
    raw = yaml.safe_load((PRESETS / "comparisons/demo.yaml").read_text())
    budget = draw.choice([draw.randint(100, 10**6), 0, -5])
    raw["budget_images"] = budget
    command = ["compare", "FILE", "--runs-dir", "FILE/x"]
    if draw.random() < 0.4:

        def check(read: Any, _: Any) -> bool:
            shares = {"continued": budget, "independent-8": budget // 8, "remix-4-8": budget}
            return all(read.row_run(row, 0, None).training.images == share for row, share in shares.items())

        return Case(command, json.dumps(raw).encode(), check, "read" if budget > 0 else "refused")
    fields = [*FIELDS[Comparison], "base.training.images", "base.strategy.kind", "rows.continued", "rows.new.strategy"]
    changes = [f"{draw.choice(fields)}={draw.choice(OTHERS)}" for _ in range(draw.choice([1, 2]))]
    return Case([*command, "--", *changes], json.dumps(raw).encode())


FAMILIES: list[Callable[[Draw], Case]] = [
    numbers, overrides, damaged, misplaced, sizes, intervals, studies, comparisons,
]  # fmt: skip


class Spies:
    """Remember what commands have read; they carry on as they would."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.read: Any = None
        for module, name in (
            ("workloads.config.load", "load_config"),
            ("workloads.config.load", "load_comparison"),
            ("orchestrator.search.study.find", "find_study"),
        ):
            __import__(module)
            self._wrap(patch, sys.modules[module], name)

    def _wrap(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        original = getattr(module, name)

        def spy(*arguments: Any) -> Any:
            self.read = original(*arguments)
            return self.read

        patch.setattr(module, name, spy)


def outcome_of(case: Case, spies: Spies, folder: Path) -> tuple[str, str]:
    """One of OUTCOMES, and what was said."""
    file = folder / "description.yaml"
    file.write_bytes(case.content)
    spies.read = None
    arguments = [argument.replace("FILE", file.name) for argument in case.command]
    out, err, code = io.StringIO(), io.StringIO(), 0
    signal.setitimer(signal.ITIMER_REAL, HUNG_S)
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["rememe", *arguments])
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    except HungError:
        return "hung", ""
    except BaseException as error:  # what would be a traceback, whichever it is
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    # Remarks, and how far planning came.
    said = [line for line in err.getvalue().splitlines() if not re.match(r"note: |\S+ planning: ", line)]
    # A comparison has been read when all that is wrong is where it is to write, a run when it has been planned.
    went_on = code == 0 or any("--runs-dir" in line and "cannot be written" in line for line in said)
    went_on |= code == 2 and len(said) == 1 and "Sizes are shown as configured" in said[0]
    if not went_on:
        one_sentence = code == 2 and len(said) == 1 and 10 < len(said[0]) < 1500
        return ("refused" if one_sentence and case.must != "read" else "wrong"), "\n".join(said)
    printed = json.loads(out.getvalue()) if out.getvalue() else None
    if isinstance(spies.read, RunConfig):
        # What a run leaves is the same description.
        again = file.with_name("again.yaml")
        again.write_text(to_yaml(spies.read))
        if load_config(str(again)) != spies.read:
            return "wrong", "its config.yaml is another run's"
    is_right = case.must != "refused" and case.check(spies.read, printed)
    return ("right" if is_right else "wrong"), out.getvalue()[:2000]


def summary(counts: dict[str, Counter[str]], number: int) -> dict[str, Any]:
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return {
        "command": f"python -m pytest tests/unit/{Path(__file__).name} --num-fuzzed {number}",
        "commit": subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip(),
        "seed": SEED,
        "cases": number,
        "all": {name: sum(count[name] for count in counts.values()) for name in OUTCOMES},
        "families": {family: {name: count[name] for name in OUTCOMES} for family, count in counts.items()},
    }


@pytest.fixture
def in_time() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, hang)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("in_time")
def test_descriptions_are_read_right_or_refused_in_a_sentence(
    pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, told = pytestconfig.getoption("--num-fuzzed"), pytestconfig.getoption("--fuzz-summary")
    target = None if told is None else Path(told).absolute()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.execution.environment.prepare_ray_environment", lambda _: None)
    for name in ("REMEME_TRACEBACK", "REMEME_RUNS_DIR", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    spies, draw = Spies(monkeypatch), random.Random(SEED)
    counts: dict[str, Counter[str]] = {family.__name__: Counter() for family in FAMILIES}
    faults = []
    for index in range(number):
        family = FAMILIES[index % len(FAMILIES)]
        case = family(draw)
        outcome, said = outcome_of(case, spies, tmp_path)
        counts[family.__name__][outcome] += 1
        if outcome not in {"right", "refused"}:
            faults.append((index, family.__name__, outcome, case.command, case.content.decode(errors="replace"), said))
    if target is not None:
        target.write_text(json.dumps(summary(counts, number), indent=2) + "\n")
    assert faults == []
    assert len(FIELDS[RunConfig]) > 90
    # Both occur often, or little has been tried.
    assert all(sum(count[name] for count in counts.values()) > number // 5 for name in ("right", "refused"))
