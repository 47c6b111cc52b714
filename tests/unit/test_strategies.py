"""A strategy or a kind of job is added in three places: its class, its trainer, and the trainer's registry."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from workloads.config import AnyStrategy, DataSpec, Job, RunConfig
from workloads.training.trainers import TRAINERS, trainer_of

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "workloads").rglob("*.py")) + sorted((ROOT / "orchestrator").rglob("*.py"))

STRATEGIES: tuple[type, ...] = get_args(get_args(AnyStrategy)[0])
KINDS = {strategy.model_fields["kind"].default for strategy in STRATEGIES}  # type: ignore[attr-defined]
CONCRETE = {cls.__name__ for cls in (*STRATEGIES, *TRAINERS)}

REGISTRY = "workloads/training/trainers.py"
REEXPORT = "workloads/config/__init__.py"

SMALLEST: dict[str, dict[str, Any]] = {
    "single": {},
    "independent": {"num_experts": 2},
    "meme": {"experts": [{"specialisation": 0.5}, {"specialisation": 0.2}]},
    "remix": {"num_experts": 4, "num_bases": 2},
}
"""What a strategy needs besides its kind."""


def home_of(cls: type) -> str:
    """The module a class is defined in, as a path from the root."""
    return f"{cls.__module__.replace('.', '/')}.py"


def may_name_them(path: str) -> bool:
    """Whether a module is a definition, the registry, a trainer or of a trainer's own package."""
    homes = {REGISTRY, REEXPORT, *map(home_of, (*STRATEGIES, *TRAINERS))}
    packages = {trainer.__module__.split(".")[2] for trainer in TRAINERS.values()}
    return path in homes or any(
        path == f"workloads/training/{package}.py" or path.startswith(f"workloads/training/{package}/")
        for package in packages
    )


def names_in(node: ast.AST) -> Iterator[str]:
    """Identifiers that code mentions, in annotations given as strings too."""
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            yield one.id
        elif isinstance(one, ast.Attribute):
            yield one.attr
        elif isinstance(one, ast.alias):
            yield one.name.split(".")[-1]
        elif isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value


def mentions(source: str) -> set[str]:
    """Concrete strategies and jobs that a module names."""
    return CONCRETE & set(names_in(ast.parse(source)))


def tells_apart(source: str) -> list[int]:
    """Lines that ask which strategy or job something is: isinstance, a match, or a comparison of its kind or type."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"isinstance", "issubclass"}:
            asked = CONCRETE & {name for argument in node.args[1:] for name in names_in(argument)}
        elif isinstance(node, ast.match_case):
            asked = (CONCRETE | KINDS) & set(names_in(node.pattern))
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            words = {name for side in sides for name in names_in(side)}
            of_strategy = any(ast.unparse(side).endswith("strategy.kind") for side in sides)
            asked = (CONCRETE | KINDS) & words if "kind" in words or "type" in words else set()
            asked |= {"kind"} if of_strategy else set()
        else:
            continue
        if asked:
            found.append(node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_strategies_and_jobs_answer_for_themselves(file: Path) -> None:
    path, source = str(file.relative_to(ROOT)), file.read_text()
    assert tells_apart(source) == []
    assert may_name_them(path) or not mentions(source), f"{path} names {mentions(source)}"


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(job, RemixJob)",
        "isinstance(config.strategy, Independent | config.Meme)",
        "match strategy:\n    case Remix():\n        pass",
        "config.strategy.kind == 'meme'",
        "strategy.kind in {'single', 'independent'}",
        "strategy.kind == given",
        "type(job) is ExpertJob",
    ],
)
def test_the_rule_sees_who_breaks_it(source: str) -> None:
    assert tells_apart(source)


def test_annotations_and_imports_count_as_mentions() -> None:
    assert mentions("def f(job: 'RemixJob') -> None: ...") == {"RemixJob"}
    assert mentions("from workloads.config import Meme as M") == {"Meme"}
    assert mentions("kind = 'remix'  # of a Remix") == set()
    assert may_name_them("workloads/training/remix/step.py")
    assert not may_name_them("workloads/training/job.py")
    assert not may_name_them("orchestrator/plan/jobs.py")


def descendants(cls: type) -> set[type]:
    """All classes below one that can have instances."""
    below = {one for child in cls.__subclasses__() for one in {child, *descendants(child)}}
    return {one for one in below if not getattr(one, "__abstractmethods__", None)}


def test_every_kind_of_job_has_a_trainer() -> None:
    assert descendants(Job) == set(TRAINERS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_strategy_makes_jobs_with_a_trainer(kind: str, tiny_run: dict[str, Any]) -> None:
    config = RunConfig.model_validate(tiny_run | {"strategy": {"kind": kind} | SMALLEST[kind]})
    jobs = config.jobs(DataSpec(fingerprint="f" * 64, channels=1, image_size=8, num_classes=10))
    assert len(jobs) == config.strategy.num_jobs
    assert config.strategy.count == len(config.intervals)
    for job in jobs:
        assert trainer_of(job).job == job
