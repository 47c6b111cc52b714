"""Bad input is one sentence on stderr, exit code 2, and nothing is started; help is quick."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.e2e

Rememe = Callable[..., "subprocess.CompletedProcess[str]"]

SECRET = "s3cr3tpassw0rd"
"""A password that no command may print."""

BAD = {
    "misspelt section": (["trainin.batch_size=3"], "trainin: unknown key; did you mean 'training'?"),
    "misspelt key": (["training.batchsize=3"], "did you mean 'batch_size'?"),
    "cuts out of order": (["strategy.cuts=[500,250,750]"], "found 500 followed by 250"),
    "cut outside": (["strategy.cuts=[250,500,1000]"], "strictly inside (0, 1000); found 1000"),
    "probability": (["strategy.experts.0.specialisation=1.5"], "strategy.experts.0.specialisation is 1.5"),
    "negative probability": (["strategy.experts.1.specialisation=-0.1"], "strategy.experts.1.specialisation is -0.1"),
    "split ratio": (["strategy.experts.0.model.attention_share=[1/3]"], "attention_share 1/3"),
    "missing data": (["data.kind=folder", "data.path=/nowhere/images"], "/nowhere/images"),
    "too many classes": (["data.num_classes=3"], "data.num_classes is 3, but the data has 10 classes"),
    "image size": (["data.image_size=21"], "image_size 21 cannot be halved"),
    "infeasible CPUs": (["execution.resources.num_cpus=4096"], "execution.resources.num_cpus is 4096"),
    "infeasible custom": (["execution.resources.custom.tpu=1"], "execution.resources.custom.tpu is 1"),
    "unknown protocol": (["evaluation=fid3k"], "fid3k"),
    "workers without a remix": (["execution.num_workers=2"], "say execution.workers_per_expert for workers that share"),
    "batch over a group": (
        ["execution.workers_per_expert=3"],
        "16 is not a multiple of execution.workers_per",
    ),
    "too many in a group": (
        ["execution.workers_per_expert=8"],
        "workers_per_expert is 8, but only 2 of them fit",
    ),
    "a shared GPU": (["execution={workers_per_expert: 2, resources: {num_gpus: 0.5}}"], "NCCL does not let them share"),
    "selector": (["execution.resources.label_selector.zone=in(a"], "say it as Ray does: a, !a, in(a, b)"),
    "kind of no GPU": (["execution.resources.accelerator_type=H100"], "accelerator_type is H100, but num_gpus is 0"),
    "no override": (["batch_size"], "override 'batch_size'"),
}


@pytest.fixture(scope="module")
def folder(tiny_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_run))
    return folder


@pytest.mark.parametrize(("overrides", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(folder: Path, rememe_here: Rememe, overrides: list[str], expected: str) -> None:
    result = rememe_here("train", "tiny.yaml", *overrides, cwd=folder)
    assert result.returncode == 2
    assert result.stdout == ""  # no expert was even queued
    said = [line for line in result.stderr.splitlines() if "preparing data" not in line]
    (sentence,) = [line for line in said if not line.startswith("note: ")]
    assert sentence.startswith("error: ")
    assert expected in sentence


def test_a_process_of_its_own_ends_the_same(folder: Path, rememe: Rememe) -> None:
    result = rememe("train", "tiny.yaml", "training.batchsize=3", cwd=folder)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: training.batchsize: unknown key; did you mean 'batch_size'?")
    assert result.stderr.count("\n") == 1


BAD_REMIX = {
    "no bases": (["strategy.num_bases=0"], "strategy.num_bases is 0"),
    "no experts": (["strategy.num_experts=0"], "strategy.num_experts is 0"),
    "more bases than experts": (["strategy.num_bases=9"], "num_bases is 9, but 8 experts"),
    "pattern": (["strategy.mixed=['*.qkw.*']"], "'*.qkw.*' matches no parameter of this model; its layers are called"),
    "batch over workers": (["execution.num_workers=3"], "training.batch_size 32 is not a multiple of execution.num_w"),
    "workers over experts": (["strategy.experts_per_step=8", "execution.num_workers=3", "training.batch_size=48"], "3"),
    "too many workers": (["execution.num_workers=32", "strategy.experts_per_step=32"], "of them fit at once"),
    "at least more": (["execution.min_workers=3"], "execution.min_workers is 3, but only 2 are wanted for each job"),
    "fewer on one node": (
        ["execution.min_workers=1", "execution.placement=STRICT_PACK"],
        "placement STRICT_PACK",
    ),
    "unknown mixer": (["strategy.mixer=soft"], "strategy.mixer is 'soft'"),
    "initial weights": (["initial_weights=nowhere.pt"], "initial_weights nowhere.pt does not exist"),
    "patch size": (["model.patch_size=8"], "image_size 20 is not a multiple of model.patch_size 8"),
    "width": (["model.hidden_size=66"], "hidden_size 66 is not a multiple of 4"),
}


@pytest.mark.parametrize(("overrides", "expected"), BAD_REMIX.values(), ids=BAD_REMIX.keys())
def test_a_bad_remix_is_one_sentence(folder: Path, rememe_here: Rememe, overrides: list[str], expected: str) -> None:
    result = rememe_here("train", "demo-remix", *overrides, cwd=folder)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert expected in sentence
    assert "Traceback" not in result.stderr


def test_a_bad_comparison_is_found_before_anything_is_trained(folder: Path, rememe_here: Rememe) -> None:
    result = rememe_here("compare", "demo", "rows.remix-4-8.strategy.num_bases=0", cwd=folder)
    assert result.returncode == 2
    assert "rows.remix-4-8: strategy.num_bases is 0" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "demo-mem"], "did you mean 'demo-meme'?"),
        (["train", "absent.yaml"], "'absent.yaml' does not exist"),
        (["sample", "nowhere"], "nowhere does not exist; train one: rememe train demo-meme"),
        (["evaluate", "nowhere"], "nowhere does not exist; train one: rememe train demo-meme"),
        (["data", "prepare", "nowhere", "out"], "nowhere does not exist"),
        (["ui", "--runs-dir", "nowhere"], "no results under nowhere yet"),
        (["train", "tiny.yaml", "--address", "http://127.0.0.1:8265"], "is where a cluster takes jobs"),
        (["plan", "binary.yaml"], "binary.yaml is not text in UTF-8"),
        *(
            (["jobs", "--address", address], f"--address is {address!r}, but a cluster takes jobs at")
            for address in ("HEAD:6379", "auto", "ray://HEAD:10001", "http://", "", "http://127.0.0.1:99999", "ftp://x")
        ),
    ],
)
def test_wrong_names_say_what_to_do(folder: Path, rememe_here: Rememe, arguments: list[str], expected: str) -> None:
    (folder / "binary.yaml").write_bytes(b"name: \xbc\xff")
    result = rememe_here(*arguments, cwd=folder)
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_an_empty_folder_is_refused(folder: Path, rememe_here: Rememe) -> None:
    (folder / "empty").mkdir()
    result = rememe_here("data", "prepare", "empty", "out", cwd=folder)
    assert result.returncode == 2
    assert "empty" in result.stderr
    assert not (folder / "out" / "manifest.json").exists()


def test_a_tracking_address_mlflow_does_not_know_is_refused(folder: Path, rememe_here: Rememe) -> None:
    result = rememe_here("train", "tiny.yaml", cwd=folder, env={"MLFLOW_TRACKING_URI": f"ftp://ann:{SECRET}@host"})
    assert result.returncode == 2
    assert "MLFLOW_TRACKING_URI is 'ftp://***@host'" in result.stderr


def test_help_imports_nothing_slow(folder: Path, rememe: Rememe) -> None:
    result = rememe("--help", cwd=folder, env={"PYTHONPROFILEIMPORTTIME": "1"})
    for command in ("plan", "train", "sample", "evaluate", "analyze", "data", "ui", "doctor"):
        assert f"  {command} " in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "ray", "mlflow", "numpy", "pydantic", "diffusers", "rich.console"}


def test_plan_prints_the_same_as_json(folder: Path, rememe_here: Rememe) -> None:
    table = rememe_here("plan", "tiny.yaml", cwd=folder)
    planned = json.loads(rememe_here("plan", "tiny.yaml", "--json", cwd=folder).stdout)
    assert table.returncode == 0
    assert [job["interval"] for job in planned["jobs"]] == [[0, 250], [250, 500], [500, 750], [750, 1000]]
    for job in planned["jobs"]:
        assert {"name", "strategy", "interval", "num_parameters", "num_active_parameters", "macs", "key"} <= job.keys()
        assert job["key"] in table.stdout
    assert len({job["key"] for job in planned["jobs"]}) == 4


def test_plan_shows_what_it_can_before_the_data_is_there(folder: Path, rememe_here: Rememe) -> None:
    result = rememe_here("plan", "ffhq256-meme", "--json", cwd=folder)
    assert result.returncode == 2
    assert [job["key"] for job in json.loads(result.stdout)["jobs"]] == [None] * 4
    assert "data/ffhq256-latents does not exist" in result.stderr.splitlines()[-1]


def test_doctor_finds_this_machine_fit(folder: Path, rememe_here: Rememe) -> None:
    result = rememe_here("doctor", cwd=folder)
    assert result.returncode == 0, result.stdout
    for subject in ("packages", "devices", "mlflow", "ray"):
        assert f"ok      {subject}" in result.stdout


def test_planning_a_study_says_what_its_configurations_share(rememe_here: Rememe, tmp_path: Path) -> None:
    result = rememe_here("plan", "search-ratios", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["num_configurations"] == 81
    assert report["num_jobs"] == 324
    assert report["num_distinct_jobs"] == 12
    assert report["images_without_store"] / report["images_trained"] == 27
    table = rememe_here("plan", "search-ratios", cwd=tmp_path)
    assert "12 distinct jobs instead of 324" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["train", "tiny.yaml", "--address", f"http://ann:{SECRET}@h:1"], {}),
        (["train", "tiny.yaml", "--store", f"nothing://ann:{SECRET}@h/x"], {}),
        (["train", f"http://ann:{SECRET}@h/x.yaml"], {}),
        (["train", "tiny.yaml", "data.kind=folder", f"data.path=s3://ann:{SECRET}@h"], {}),
        (["compare", f"http://ann:{SECRET}@h/x.yaml"], {}),
        (["search", f"http://ann:{SECRET}@h/x.yaml"], {}),
        (["search", "demo-search", "--address", f"http://ann:{SECRET}@h:1"], {}),
        (["submit", "demo-meme", "--runs-dir", "/r", "--address", f"ftp://ann:{SECRET}@h"], {}),
        (["jobs", "--address", f"http://ann:{SECRET}@127.0.0.1:9"], {}),
        (["logs", "x", "--address", f"http://127.0.0.1:9/?token={SECRET}"], {}),
        (["stop", "x", "--address", f"ftp://ann:{SECRET}@h"], {}),
        (["status", "x", "--address", f"ftp://ann:{SECRET}@h"], {}),
        (["status", f"http://ann:{SECRET}@h/x"], {}),
        (["sample", f"s3://ann:{SECRET}@h/x"], {}),
        (["evaluate", f"s3://ann:{SECRET}@h/x"], {}),
        (["bake", f"s3://ann:{SECRET}@h/x", "out"], {}),
        (["export", f"s3://ann:{SECRET}@h/x", "out"], {}),
        (["report", f"s3://ann:{SECRET}@h/x"], {}),
        (["data", "prepare", f"s3://ann:{SECRET}@h/x", "out"], {}),
        (["ui"], {"MLFLOW_TRACKING_URI": f"http://ann:{SECRET}@h/x"}),
        (["ui"], {"MLFLOW_TRACKING_URI": f"ftp://ann:{SECRET}@h/x"}),
    ],
    ids=lambda one: " ".join(one[:2]).replace(SECRET, "") if isinstance(one, list) else "",
)
def test_no_command_prints_a_password(
    arguments: list[str], variables: dict[str, str], folder: Path, rememe_here: Rememe
) -> None:
    result = rememe_here(*arguments, cwd=folder, env=variables)
    assert result.stdout + result.stderr
    assert SECRET not in result.stdout + result.stderr
    assert "***" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
