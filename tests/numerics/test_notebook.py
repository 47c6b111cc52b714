"""The cells of docs/notebook.ipynb, executed in order on two tiny runs, and what they find."""

import ast
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.runs.analysis.difference import difference_of
from workloads.__main__ import main
from workloads.analysis.loss_by_timestep import ensemble_loss
from workloads.data.prepare import ensure_prepared
from workloads.diffusion.sampling import sampling_timesteps
from workloads.ensemble import Ensemble, swap_expert
from workloads.errors import CheckpointError, ConfigError
from workloads.models.build import WEIGHTS
from workloads.places import EnsembleDir
from workloads.training.remix.state import initial_coefficients

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
NUM_SCORED = 40


@pytest.fixture(scope="module")
def folder(tiny_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs/ lies with a MEME and a remix, as rememe train leaves them."""
    root = tmp_path_factory.mktemp("notebook")
    runs = root / "runs"
    common = tiny_run | {"training": {"images": 64, "batch_size": 16}}
    remix = {
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "strategy": {"kind": "remix", "num_experts": 6, "num_bases": 3, "experts_per_step": 2},
    }
    for name, changes in (("demo-meme", {}), ("demo-remix", remix)):
        (root / "run.yaml").write_text(yaml.safe_dump(common | changes | {"name": name}))
        assert main(["train", str(root / "run.yaml"), "--out", str(runs)]) == 0
        (runs / f"{name}-01234567").mkdir()
        (runs / "ensemble").rename(runs / f"{name}-01234567" / "ensemble")
    return root


@pytest.fixture(scope="module")
def executed(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """Names after the last cell, and what each cell shows."""
    notebook = json.loads(NOTEBOOK.read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")
    names, shown = vars(ModuleType("notebook")), []
    mpl.use("agg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for cell in cells:
            tree = ast.parse(cell.replace("NUM_SCORED = 1000", f"NUM_SCORED = {NUM_SCORED}"))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "cell", "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    shown = [value for value in shown if value is not None]
    mpl.pyplot.close("all")
    return names, shown


def test_every_cell_runs_and_shows_what_it_says(executed: tuple[dict[str, Any], list[Any]]) -> None:
    names, shown = executed
    first, second, stronger, acting, coefficients, losses, swapped, same = shown
    images = [one.images_NCHW.astype(int) for one in (first, second, stronger, swapped)]
    assert all(one.shape == (20, 1, 8, 8) for one in images)
    assert len({one.tobytes() for one in images}) == 4
    assert first._repr_png_().startswith(b"\x89PNG")
    assert all(hasattr(figure, "savefig") for figure in (acting, coefficients, losses))
    assert same == [False, True, True, True]
    assert names["before"].protocol_hash == names["after"].protocol_hash
    assert names["before"].value != names["after"].value


def test_samples_depend_on_their_arguments_alone(folder: Path) -> None:
    meme = Ensemble.load(folder / "runs" / "demo-meme-01234567")
    drawn = meme.sample(12, seed=1)
    assert np.array_equal(drawn.images_NCHW, meme.sample(12, seed=1).images_NCHW)
    # Batches of eight: the noise of an image is its own, whatever is drawn beside it.
    alone = meme.sample(1, seed=1).images_NCHW.astype(int)
    assert np.abs(alone[0] - drawn.images_NCHW[0]).max() <= 1
    grid = np.asarray(drawn.grid())
    assert grid.shape[2] == 3
    drawn.write(folder / "pngs")
    third = np.asarray(Image.open(folder / "pngs" / "000002.png"))
    assert np.array_equal(third[..., 0], drawn.images_NCHW[2, 0])
    with pytest.raises(ConfigError, match=r"num_steps 2000 exceeds"):
        meme.sample(2, num_steps=2000)


def test_steps_name_the_expert_of_each_timestep(folder: Path) -> None:
    for name in ("demo-meme", "demo-remix"):
        ensemble = Ensemble.load(folder / "runs" / f"{name}-01234567")
        edges = [0, *ensemble.intervals.cuts, 1000]
        for timestep, expert in (steps := ensemble.steps()):
            assert edges[expert] <= timestep < edges[expert + 1]
        expected = sampling_timesteps(ensemble.diffusion, ensemble.config.evaluation.sampling.num_steps)
        assert [timestep for timestep, _ in steps] == expected


def test_a_swapped_expert_has_the_weights_from_the_store(
    executed: tuple[dict[str, Any], list[Any]], folder: Path
) -> None:
    runs = folder / "runs"
    meme, swapped = (Ensemble.load(runs / name) for name in ("demo-meme-01234567", "swapped"))
    swapped.verify()
    weights = [
        (EnsembleDir(one.path).expert(index) / WEIGHTS).read_bytes() for one in (meme, swapped) for index in (0, 3)
    ]
    assert weights[2] == weights[1] == weights[3] != weights[0]
    found = difference_of(runs / "demo-meme-01234567", runs / "swapped")
    assert found.configuration == {}
    assert [pair.is_same for pair in found.weights] == [False, True, True, True]


def test_runs_differ_in_what_was_said_otherwise(folder: Path) -> None:
    runs = folder / "runs"
    found = difference_of(runs / "demo-meme-01234567", runs / "demo-remix-01234567")
    assert found.left == "demo-meme-01234567"
    assert found.configuration["name"] == ("demo-meme", "demo-remix")
    assert found.configuration["strategy.num_bases"] == (None, 3)
    assert not [key for key in found.configuration if key.startswith(("data", "training", "evaluation", "reference"))]
    assert [(pair.left is None, pair.right is None) for pair in found.weights] == [(False, False), *[(False, True)] * 3]
    said = found.to_json()
    assert said.keys() == {"left", "right", "configuration", "scores", "weights"}
    assert json.loads(json.dumps(said)) == said


def test_runs_are_analyzed_by_name_on_the_command_line(folder: Path) -> None:
    runs, names = folder / "runs", ("demo-meme-01234567", "demo-remix-01234567")

    def told(*words: object) -> Any:
        result = CliRunner().invoke(app, ["analyze", *map(str, words), "--runs-dir", str(runs), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    losses = told("loss", *names, "--num-images", 3, "--seed", 5)
    ensembles = [Ensemble.load(runs / name) for name in names]
    dataset = ensure_prepared(ensembles[0].config.data, runs / "data")
    assert [one["loss"] for one in losses] == [
        ensemble_loss(ensemble, dataset, num_images=3, seed=5) for ensemble in ensembles
    ]
    (remix,) = told("coefficients", names[1])
    begun_NK = initial_coefficients(ensembles[1].config, ensembles[1].data, 6).numpy()
    distances = [
        0.5 * np.abs(now - then).sum() for now, then in zip(ensembles[1].coefficients_NK, begun_NK, strict=True)
    ]
    assert remix["moved"] == pytest.approx(np.mean(distances), rel=1e-4)
    assert remix["run"] == str(runs / names[1])


def test_what_cannot_be_swapped_is_refused(folder: Path, tmp_path: Path) -> None:
    runs = folder / "runs"
    meme, remix = (Ensemble.load(runs / f"{name}-01234567") for name in ("demo-meme", "demo-remix"))
    with pytest.raises(ConfigError, match="bake it first"):
        swap_expert(remix, 0, runs / "store", tmp_path / "x")
    with pytest.raises(ConfigError, match="there is no expert 4"):
        swap_expert(meme, 4, runs / "store", tmp_path / "x")
    with pytest.raises(CheckpointError, match="holds no finished expert"):
        swap_expert(meme, 0, runs / "store", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
