"""What MLflow's pages show besides curves: series of pictures, each once, and the ensemble as a model to load."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from orchestrator.plan.places import RunsDir
from orchestrator.tracking.configuration import LoadLog
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.writer import IMAGES_FOLDER
from workloads.config import RunConfig
from workloads.data.prepare import ensure_prepared
from workloads.ensemble import Ensemble, write_ensemble
from workloads.errors import ConfigError
from workloads.training.job import train_job

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow makes a store where it stands when a model is loaded by its address."""
    monkeypatch.chdir(tmp_path)


def picture(file: Path, shade: int) -> Path:
    Image.new("L", (8, 8), shade).save(file)
    return file


def shades(client: MlflowClient, run_id: str, folder: Path) -> dict[str, list[int]]:
    """Shades of the PNG files by series and step, as MLflow has them."""
    found: dict[str, list[int]] = {}
    for item in client.list_artifacts(run_id, IMAGES_FOLDER):
        if item.path.endswith(".png"):
            series = item.path.removeprefix(f"{IMAGES_FOLDER}/").partition("+timestamp")[0]
            shown = Image.open(client.download_artifacts(run_id, item.path, str(folder)))
            found.setdefault(series, []).append(shown.getpixel((0, 0)))
    return found


def test_a_picture_stands_once_at_its_step_whoever_sends_it_how_often(tmp_path: Path) -> None:
    """Again within a process, by the next one, and after the run was finished; pages show them under their series."""
    for number in range(2):
        with Tracker(tmp_path / "runs") as tracker:
            run = tracker.configuration("tiny", "f" * 16, {}, "")
            for step, shade in ((10, 10), (20, 20), (10, 99)):
                run.log_image(picture(tmp_path / "a.png", shade), "samples/expert_00", step)
            tracker.flush()
            run.finish("FINISHED")
            run = tracker.configuration("tiny", "f" * 16, {}, "")
            run.log_image(picture(tmp_path / "a.png", 98), "samples/expert_00", 20)
            run.log_image(picture(tmp_path / "a.png", 30 + number), "denoised", 20 + number)
            run.finish("FINISHED")
    client = MlflowClient(tracking_uri=tracker.uri)
    assert run.run_id is not None
    assert shades(client, run.run_id, tmp_path) == {
        "samples~expert_00+step+10": [10],
        "samples~expert_00+step+20": [20],
        "denoised+step+20": [30],
        "denoised+step+21": [31],
    }
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
    assert not list((tmp_path / "runs" / "spool").rglob("*.png"))


def test_what_is_no_picture_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torn.png").write_bytes(picture(tmp_path / "whole.png", 5).read_bytes()[:-8])
    with Tracker(tmp_path / "runs") as tracker:
        run = tracker.configuration("tiny", "f" * 16, {}, "")
        run.log_image(tmp_path / "torn.png", "samples", 1)
        run.log_image(tmp_path / "whole.png", "samples", 2)
        run.finish("FINISHED")
    assert "torn.png is no whole PNG" in capsys.readouterr().err
    assert run.run_id is not None
    assert shades(MlflowClient(tracking_uri=tracker.uri), run.run_id, tmp_path) == {"samples+step+2": [5]}


def test_a_finished_run_that_is_opened_again_gets_no_point_twice(tmp_path: Path) -> None:
    """As a finalist of a study is, when its full score is there."""
    with Tracker(tmp_path / "runs") as tracker:
        for values in ({"macs": 5.0, "quick": 1.5}, {"macs": 5.0, "quick": 1.5, "full": 2.5}):
            run = tracker.configuration("tiny", "f" * 16, {}, "")
            run.log_metrics(values)
            run.finish("FINISHED")
            tracker.flush()
    client = MlflowClient(tracking_uri=tracker.uri)
    assert run.run_id is not None
    history = {name: client.get_metric_history(run.run_id, name) for name in ("macs", "quick", "full")}
    assert {name: [point.value for point in points] for name, points in history.items()} == {
        "macs": [5.0],
        "quick": [1.5],
        "full": [2.5],
    }


@pytest.fixture(scope="module")
def logged(tiny_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Ensemble, str, str]:
    """A trained ensemble, MLflow's address and its model's; the model was logged three times by two processes."""
    folder = tmp_path_factory.mktemp("logged")
    config = RunConfig.model_validate(tiny_run | {"training": {"images": 256, "batch_size": 16, "learning_rate": 1e-2}})
    dataset = ensure_prepared(config.data, folder / "data")
    jobs = config.jobs(dataset.spec(config.data))
    for job in jobs:
        train_job(job, dataset.path, folder / job.key)
    run = RunsDir(folder / "runs").run("tiny", "f" * 16)
    ensemble = write_ensemble(run.ensemble.path, config, dataset, [folder / job.key for job in jobs])
    for times in (1, 2):
        with Tracker(folder / "runs") as tracker:
            tracked = tracker.configuration(run.path.name, "f" * 16, {}, "")
            for _ in range(times):
                tracked.log_model(run.path.name, ensemble.fingerprint)
                tracker.flush()
            tracked.finish("FINISHED")
    client = MlflowClient(tracking_uri=tracker.uri)
    (model,) = client.search_logged_models([str(tracker.experiment_id)])
    assert (model.name, str(model.status)) == (run.path.name, "READY")
    assert tracked.run_id is not None
    outputs = client.get_run(tracked.run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model.model_id]
    return ensemble, tracker.uri, f"models:/{model.model_id}"


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


@pytest.fixture
def _tracking_uri_of_before() -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("_tracking_uri_of_before")
def test_the_model_draws_what_rememe_sample_draws(logged: tuple[Ensemble, str, str]) -> None:
    ensemble, uri, address = logged
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model(address)
    drawn = model.predict(pd.DataFrame({"seed": [7] * 20}))
    expected = ensemble.sample(20, seed=7).images_NCHW[:, 0]
    np.testing.assert_array_equal([pixels(png) for png in drawn["png"]], expected)
    other = model.predict(pd.DataFrame({"seed": [7] * 20}), params={"num_steps": 2, "sampler": "dpm++"})
    expected = ensemble.sample(20, seed=7, num_steps=2, sampler="dpm++").images_NCHW[:, 0]
    np.testing.assert_array_equal([pixels(png) for png in other["png"]], expected)

    # The same noise for other classes: images of the class that is asked for, and of no other.
    asked = model.predict(pd.DataFrame({"seed": [7] * 3, "index": [3, 3, 3], "label": [3, 5, 3]}))["png"]
    assert asked[0] == asked[2] != asked[1]
    with pytest.raises(ConfigError, match="label is 10; classes are 0 to 9"):
        model.predict(pd.DataFrame({"seed": [7], "label": [10]}))


@pytest.mark.usefixtures("_tracking_uri_of_before")
def test_it_holds_safetensors_and_no_pickle(logged: tuple[Ensemble, str, str], tmp_path: Path) -> None:
    _, uri, address = logged
    mlflow.set_tracking_uri(uri)
    folder = Path(mlflow.artifacts.download_artifacts(address, dst_path=str(tmp_path)))
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {"", ".json", ".safetensors"}
    # The other one is written by whoever downloads it.
    assert {file.name for file in files if not file.suffix} - {"registered_model_meta"} == {"MLmodel"}
    (weights, *_) = [file for file in files if file.suffix == ".safetensors"]
    assert weights.read_bytes()[:2] != b"\x80\x05"


def test_mlflow_models_predict_draws_in_a_process_of_its_own(
    logged: tuple[Ensemble, str, str], tmp_path: Path, user_environment: Callable[..., dict[str, str]]
) -> None:
    ensemble, uri, address = logged
    pd.DataFrame({"seed": [3, 3]}).to_csv(tmp_path / "wanted.csv", index=False)
    program = str(Path(sys.executable).with_name("mlflow"))
    options = ["--env-manager", "local", "-i", "wanted.csv", "-t", "csv", "-o", "drawn.json"]
    command = [program, "models", "predict", "-m", address, *options]
    environment = user_environment({"MLFLOW_TRACKING_URI": uri})
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "drawn.json").read_text())["predictions"]
    expected = ensemble.sample(2, seed=3).images_NCHW[:, 0]
    np.testing.assert_array_equal([pixels(row["png"]) for row in rows], expected)


def test_the_load_of_nodes_has_a_run_from_the_first_that_is_measured(tmp_path: Path) -> None:
    with Tracker(tmp_path / "runs") as tracker:
        for name, heard in (("quick", [{}]), ("long", [{}, {"10.0.0.3": {"cpu_utilization_percentage": 93.5}}])):
            run = tracker.configuration(name, name, {}, "")
            log = LoadLog(tracker, run)
            for loads in heard:
                log(loads)
            log.end()
            run.finish("FINISHED")
    client = MlflowClient(tracking_uri=tracker.uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (nodes,) = client.search_runs(experiments, "attributes.run_name = 'nodes'")
    assert client.get_run(nodes.data.tags["mlflow.parentRunId"]).info.run_name == "long"
    assert nodes.data.metrics == {"system/10.0.0.3/cpu_utilization_percentage": 93.5}
    assert nodes.info.status == "FINISHED"
