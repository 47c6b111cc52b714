"""The files of clusters/, read by the programs and the schemas they are for."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

import rememe
from orchestrator.execution.jobs import MAX_PACKAGE_BYTES
from orchestrator.runs.submission import describe_submission
from orchestrator.search.study.find import find_study
from workloads.config.load import load_config

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
SCHEMAS = Path(__file__).parent / "kuberay"
KUBERNETES = "1.33"


def objects_in(*files: Path) -> list[Any]:
    """What these files let Kubernetes make."""
    return [
        pytest.param(entry, id=f"{file.stem}-{entry['kind']}-{entry['metadata']['name']}")
        for file in sorted(files)
        for entry in yaml.safe_load_all(file.read_text())
    ]


def is_ray_object(entry: dict[str, Any]) -> bool:
    return bool(entry["apiVersion"] == "ray.io/v1")


OBJECTS = objects_in(*(CLUSTERS / "kuberay").glob("*.yaml"))
RAY_OBJECTS = [param for param in OBJECTS if is_ray_object(param.values[0])]
LAUNCHED = sorted(file for file in CLUSTERS.glob("*.yaml") if "provider:" in file.read_text())


def parsed(command: list[str]) -> dict[str, Any]:
    """The options of a command line, as the program itself reads it; it exits if it does not understand one."""
    import mlflow.cli
    import ray.scripts.scripts
    import typer

    from orchestrator.cli.app import app

    programs: dict[str, Any] = {
        "ray": ray.scripts.scripts.cli,
        "mlflow": mlflow.cli.cli,
        "rememe": typer.main.get_command(app),
    }
    name, *rest = command
    program, context = programs[name], None
    while hasattr(program, "commands"):
        context = program.make_context(name, rest, parent=context)
        name, program, rest = program.resolve_command(context, [*context._protected_args, *context.args])
    return dict(program.make_context(name, rest, parent=context).params)


def values(entry: Any, key: str) -> Iterator[Any]:
    """Everything under this key, however deep."""
    if isinstance(entry, dict):
        for name, value in entry.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(entry, list):
        for value in entry:
            yield from values(value, key)


def commands_told_in(*files: Path) -> list[Any]:
    """The commands of rememe and Ray that comments and the README tell a user to give."""
    found = []
    for file in sorted(files):
        for line in re.findall(
            r"(?:^#   |^    |`)((?:rememe|ray) [\w-]+ [^`\n;&|>#]+)", file.read_text(), flags=re.MULTILINE
        ):
            found.append(pytest.param(line.strip(), id=f"{file.name}: {line.strip()[:60]}"))
    return found


@pytest.mark.parametrize("line", commands_told_in(*(file for file in CLUSTERS.rglob("*") if file.is_file())))
def test_commands_that_users_are_told_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")  # said once before
    options = parsed(shlex.split(line))
    if options.get("config"):
        describe_submission(options["config"], options["overrides"] or [])


@pytest.mark.parametrize("entry", RAY_OBJECTS)
def test_kuberay_takes_its_objects(entry: dict[str, Any]) -> None:
    schema = json.loads((SCHEMAS / f"{entry['kind'].lower()}-v1.schema.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(entry)] == []


@pytest.mark.parametrize("entry", [param for param in OBJECTS if param not in RAY_OBJECTS])
def test_kubernetes_takes_the_others(entry: dict[str, Any]) -> None:
    kubernetes_validate.validate(entry, KUBERNETES, strict=True)


def test_objects_name_only_what_there_is() -> None:
    every = [param.values[0] for param in OBJECTS]
    by_kind = {(entry["kind"], entry["metadata"]["name"]) for entry in every}
    told = (CLUSTERS / "kuberay" / "storage.yaml").read_text()
    secrets = dict(re.findall(r"create secret generic (\S+) --from-literal=(\w+)=", told))
    for claim in values(every, "claimName"):
        assert ("PersistentVolumeClaim", claim) in by_kind
    for reference in values(every, "secretKeyRef"):
        assert secrets[reference["name"]] == reference["key"]
    for reference in values(every, "secretRef"):
        assert reference["name"] in secrets
    for name in values(every, "secretName"):
        assert secrets[name] == "auth_token"  # the key that KubeRay looks for
    for selector in values(every, "clusterSelector"):
        assert ("RayCluster", selector["ray.io/cluster"]) in by_kind
    hosts = set(re.findall(r"(?://|@)(rememe-[\w-]+):\d+", json.dumps(every)))
    assert hosts == {name for kind, name in by_kind if kind == "Service"}


@pytest.mark.parametrize("entry", RAY_OBJECTS)
def test_what_runs_on_kuberay_is_understood(entry: dict[str, Any]) -> None:
    for line in values(entry, "entrypoint"):
        command = shlex.split(line)
        command = command[2:] if command[0] == "timeout" else command
        options = parsed(command)
        assert options["storage"] == "s3://BUCKET/rememe"  # a new cluster has nothing else
        if command[1] == "search":
            assert find_study(options["study"], options["overrides"] or []) is not None
        else:
            load_config(options["config"], options["overrides"] or [])
    for number, start in enumerate(values(entry, "rayStartParams")):
        place = ["--head"] if number == 0 else ["--address=head:6379"]
        parsed(["ray", "start", *place, *(f"--{name}={value}" for name, value in start.items())])
    for variables in values(entry, "runtimeEnvYAML"):
        assert yaml.safe_load(variables).keys() == {"env_vars"}
    for wanted in values(entry, "rayVersion"):
        assert wanted == version("ray")


def test_mlflow_on_kubernetes_is_understood() -> None:
    (command,) = [line for param in OBJECTS for line in values(param.values[0], "args") if line[0] == "mlflow"]
    options = parsed(command)
    assert options["backend_store_uri"].startswith("postgresql+psycopg2://")  # the driver of rememe[postgres]
    assert options["port"] == 5000


def test_all_files_run_the_same_image() -> None:
    text = "".join(file.read_text() for file in CLUSTERS.rglob("*.yaml")) + (CLUSTERS / "Dockerfile").read_text()
    assert set(re.findall(r"rememe:([\d.]+)", text)) == {rememe.__version__}


@pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.name)
def test_the_launcher_of_ray_takes_its_files(file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    raw = yaml.safe_load(file.read_text())
    validate_config(prepare_config(raw))
    assert raw["head_node_type"] in raw["available_node_types"]
    for kind in ("head", "worker"):
        stop, start = raw[f"{kind}_start_ray_commands"]
        parsed(shlex.split(stop))
        options = parsed(shlex.split(start.replace("$RAY_HEAD_IP", "10.0.0.1")))
        assert options["dashboard_host"] in {None, "localhost", "127.0.0.1"}
    for command in raw["initialization_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    assert list(raw["file_mounts"]) == ["/home/rememe/.ray/auth_token"]


def test_the_image_is_clean_pinned_and_of_files_that_exist() -> None:
    file = CLUSTERS / "Dockerfile"
    hadolint = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([str(hadolint), str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    text = file.read_text().replace("\\\n", "")
    _, build, final = text.split("\nFROM ")
    sources = [
        word for line in re.findall(r"^COPY (?!--)(.+)$", build, flags=re.MULTILINE) for word in line.split()[:-1]
    ]
    let_in = (CLUSTERS / "Dockerfile.dockerignore").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"constraints.txt", "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert set(sources) == needed == {line[1:] for line in let_in if line.startswith("!")}
    assert all((ROOT / name).exists() for name in sources)
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", build)
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
    assert "constraint constraints.txt" in build
    assert "pip uninstall --yes" in final
    assert re.findall(r"^USER (\d+)$", final, flags=re.MULTILINE) == ["1000"]
    assert {"uv", "gcc", "build-essential"}.isdisjoint(re.findall(r"[\w-]+", final))


def test_a_job_from_this_directory_takes_descriptions_along_and_little_else(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    project, package = tmp_path / "project", tmp_path / "package.zip"
    tracked = subprocess.check_output(["git", "-C", str(ROOT), "ls-files"], text=True).splitlines()
    heavy = ["runs/store/weights", "data/images", ".git/pack", ".venv/lib"]
    for name in [*tracked, *heavy, "mine.yaml", "studies/mine.yaml"]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, project / name)
        else:
            (project / name).write_bytes(os.urandom(2**20 if name in heavy else 10))
    create_package(str(project), package, include_gitignore=True)
    assert package.stat().st_size < MAX_PACKAGE_BYTES
    with zipfile.ZipFile(package) as file:
        names = set(file.namelist())
    assert {"mine.yaml", "studies/mine.yaml"} <= names
    left_out = {"runs", "data", ".git", ".venv", "workloads", "rememe", "tests"}
    assert not {name.split("/")[0] for name in names} & left_out


def look_at(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is said above about one file of a copy of clusters/."""
    for param in commands_told_in(file):
        test_commands_that_users_are_told_exist(param.values[0], monkeypatch)
    for param in objects_in(file) if file.parent.name == "kuberay" else []:
        (entry,) = param.values
        if is_ray_object(entry):
            test_kuberay_takes_its_objects(entry)
            test_what_runs_on_kuberay_is_understood(entry)
        else:
            test_kubernetes_takes_the_others(entry)
    test_objects_name_only_what_there_is()
    test_mlflow_on_kubernetes_is_understood()
    test_all_files_run_the_same_image()
    if file.name in {launched.name for launched in LAUNCHED}:
        test_the_launcher_of_ray_takes_its_files(file)
    if file.name == "Dockerfile":
        test_the_image_is_clean_pinned_and_of_files_that_exist()


@pytest.mark.parametrize(
    ("name", "sound", "broken", "said"),
    [
        (
            "README.md",
            "`rememe submit demo-meme --address",
            "`rememe sumbit demo-meme --address",
            "No such command 'sumbit'",
        ),
        (
            "one-machine-8-gpus.md",
            "submit cifar10-meme",
            "submit cifar10-mem",
            "no preset or file is called 'cifar10-mem'",
        ),
        ("one-machine-8-gpus.md", "ray start --head", "ray start --heads", "No such option '--heads'"),
        ("kuberay/raycluster.yaml", "rayStartParams", "rayStartParameters", "'rayStartParameters' was unexpected"),
        ("kuberay/raycluster.yaml", 'num-cpus: "0"', 'num-cpu: "0"', "No such option '--num-cpu'"),
        (
            "kuberay/raycluster.yaml",
            "claimName: rememe-runs",
            "claimName: rememe-run",
            "'PersistentVolumeClaim', 'rememe-run'",
        ),
        ("kuberay/raycluster.yaml", "secretName: rememe-token", "secretName: rememe-tokens", "rememe-tokens"),
        ("kuberay/raycluster.yaml", "http://rememe-mlflow:", "http://rememe-mlfow:", "rememe-mlfow"),
        ("kuberay/rayjob.yaml", "rayVersion: ", "rayVersion: 9", r"'9[\d.]+' == "),
        (
            "kuberay/rayjob.yaml",
            "entrypoint: rememe train demo-meme",
            "entrypoint: rememe train demo-mem",
            "called 'demo-mem'",
        ),
        ("kuberay/rayjob.yaml", "backoffLimit: 5", "backoffLimit: five", "'five' is not of type"),
        (
            "kuberay/raycronjob.yaml",
            "rememe search demo-search",
            "rememe search demo-serach",
            "find_study..demo-serach'",
        ),
        ("kuberay/raycronjob.yaml", "ray.io/cluster: rememe", "ray.io/cluster: rememes", "'RayCluster', 'rememes'"),
        ("kuberay/mlflow.yaml", "--backend-store-uri", "--backend-uri", "No such option '--backend-uri'"),
        ("kuberay/storage.yaml", "accessModes", "accessMode", "'accessMode' was unexpected"),
        ("aws.yaml", "head_node_type: head", "head_node_type: heads", "must be one of"),
        ("aws.yaml", "idle_timeout_minutes", "idle_timeout_minute", "'idle_timeout_minute' was unexpected"),
        ("aws.yaml", "rememe:", "rememe:9.", r"'9\.[\d.]+'"),
        ("gcp.yaml", "ray start --head --port", "ray start --head --ports", "No such option '--ports'"),
        (
            "gcp.yaml",
            "file_mounts: {/home/rememe/.ray/auth_token",
            "file_mounts: {/home/rememe/.ray/token",
            "'/home/rememe/.ray/token'",
        ),
        ("Dockerfile", "USER 1000", "USER root", "USER should not be root"),
        ("Dockerfile", "COPY pyproject.toml", "COPY setup.py", "'setup.py'"),
    ],
    ids=lambda value: value[:40],
)
def test_a_broken_file_is_noticed(
    name: str, sound: str, broken: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """compose.yaml, slurm.sbatch and grafana.json are executed by tests of their own."""
    folder = Path(shutil.copytree(CLUSTERS, tmp_path / "clusters"))
    file = folder / name
    text = file.read_text()
    assert sound in text
    file.write_text(text.replace(sound, broken))
    monkeypatch.setitem(globals(), "CLUSTERS", folder)
    monkeypatch.setitem(globals(), "OBJECTS", objects_in(*(folder / "kuberay").glob("*.yaml")))
    with pytest.raises(Exception, match=said):
        look_at(file, monkeypatch)
