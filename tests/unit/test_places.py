"""Each name on disk is written in one module: paths are joined with literals only where the names live."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.plan.places import RunsDir, StudyDir
from workloads.places import EnsembleDir, JobDir, LoneEnsembleDir, RunDir, results_of

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "workloads").rglob("*.py")) + sorted((ROOT / "orchestrator").rglob("*.py"))

OWNERS = {
    "workloads/places.py": "a job, an ensemble, a run",
    "orchestrator/plan/places.py": "the runs directory, a study",
    "workloads/checkpoint.py": "a checkpoint",
    "workloads/data/latents.py": "a published VAE",
    "workloads/data/shard_files.py": "shards of prepared data",
    "workloads/data/sources.py": "what others call their files",
    "workloads/evaluation/extractors.py": "files of the package",
    "workloads/evaluation/blocks.py": "the cache of features",
    "workloads/evaluation/features.py": "the cache",
    "workloads/evaluation/samples.py": "batches of samples",
    "workloads/analysis/held_out.py": "measured curves",
    "orchestrator/execution/cluster.py": "the turn to start a private cluster",
    "orchestrator/store/cache.py": "a node's own directory",
    "orchestrator/store/experts.py": "claims, and what is damaged",
    "orchestrator/store/sites.py": "a job in a node's own directory",
    "orchestrator/store/storage.py": "what a node keeps of a storage",
    "orchestrator/tracking/models.py": "what MLflow calls a model's files",
    "orchestrator/tracking/spool.py": "the spool",
}


def names_of(place: object) -> set[str]:
    """File names among what a place's properties lead to."""
    kind = type(place)
    values = [getattr(place, name) for name in dir(kind) if isinstance(getattr(kind, name), property)]
    return {value.name for value in values if isinstance(value, Path) and "." in value.name}


NAMES = set().union(
    *(names_of(place) for place in (JobDir(Path("x")), EnsembleDir(Path("x")), RunDir(Path("x")))),
    *(names_of(place) for place in (RunsDir(Path("x")), StudyDir(RunsDir(Path("x")), "s"))),
)


def code_strings(file: Path) -> Counter[str]:
    """String constants of a module, documentation left out."""
    tree = ast.parse(file.read_text())
    documented = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in documented]
    return Counter(node.value for node in constants if isinstance(node.value, str))


def joins_a_literal(file: Path) -> bool:
    """Whether a path is continued with a literal name, as in folder / "result.json"."""
    return any(
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and (isinstance(node.right, ast.JoinedStr) or isinstance(getattr(node.right, "value", None), str))
        for node in ast.walk(ast.parse(file.read_text()))
    )


def test_there_are_names() -> None:
    assert {"result.json", "records.jsonl", "ensemble.json", "plan.json", "study.json", "mlflow.db"} <= NAMES


@pytest.mark.parametrize("name", sorted(NAMES - {".lock"}))
def test_a_name_is_written_in_one_module(name: str) -> None:
    writers = [str(file.relative_to(ROOT)) for file in MODULES if name in code_strings(file)]
    assert len(writers) == 1, writers


def test_paths_are_joined_with_literals_only_where_names_live() -> None:
    assert {str(file.relative_to(ROOT)) for file in MODULES if joins_a_literal(file)} == set(OWNERS)


def test_results_of_an_ensemble_stay_in_its_run_or_in_itself(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.ensemble.path.mkdir(parents=True)
    for file in (run.plan, run.config):
        assert results_of(run.ensemble.path) == LoneEnsembleDir(run.ensemble.path)
        file.touch()
    assert results_of(run.ensemble.path) == run
    lone = results_of(run.path / "baked")
    assert lone.scores.parent == lone.grid.parent == lone.status.parent == lone.ensemble.path == run.path / "baked"
    assert lone.samples("key").is_relative_to(lone.path)
