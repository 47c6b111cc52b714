"""Starting from weights: published DiT checkpoints in every form, our own runs, and files that must be refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from workloads.config import DataSpec, RunConfig
from workloads.config.models import DiTConfig
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import write_ensemble
from workloads.errors import ConfigError
from workloads.models.build import build_model
from workloads.models.initial import check_initial, load_initial, resolve_initial
from workloads.training.job import train_job
from workloads.training.remix.state import RemixState

SHAPE: dict[str, Any] = {"channels": 4, "image_size": 8, "num_classes": 5}


def dit(**changes: Any) -> DiTConfig:
    sizes = {"hidden_size": 16, "depth": 2, "num_heads": 2, "variance": "learned", "frequency_shift": 0}
    return DiTConfig.model_validate(sizes | changes)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model: Any = build_model(dit(), **SHAPE)
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


PUBLISHED = {
    "pos_embed", "x_embedder.proj.weight", "x_embedder.proj.bias", "t_embedder.mlp.0.weight", "t_embedder.mlp.0.bias",
    "t_embedder.mlp.2.weight", "t_embedder.mlp.2.bias", "y_embedder.embedding_table.weight",
    "final_layer.linear.weight", "final_layer.linear.bias", "final_layer.adaLN_modulation.1.weight",
    "final_layer.adaLN_modulation.1.bias",
} | {
    f"blocks.{index}.{layer}.{kind}"
    for index in range(2)
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    for kind in ("weight", "bias")
}  # fmt: skip


def test_parameters_are_called_as_in_the_published_checkpoints(weights: dict[str, torch.Tensor]) -> None:
    assert set(weights) == PUBLISHED


@pytest.mark.parametrize("wrap", [None, "ema", "model", "module."])
def test_published_forms_load(weights: dict[str, torch.Tensor], wrap: str | None, tmp_path: Path) -> None:
    content: Any = weights
    if wrap == "module.":
        content = {f"module.{name}": tensor for name, tensor in weights.items()}
    elif wrap is not None:  # trainers keep more than one thing in the file; the average is preferred
        content = {wrap: weights, "opt": {"lr": 1e-4}} | ({"model": {"other": torch.zeros(1)}} if wrap == "ema" else {})
    torch.save(content, tmp_path / "DiT.pt")
    initial = resolve_initial(tmp_path / "DiT.pt")
    check_initial(initial, dit(), **SHAPE)
    model = build_model(dit(), **SHAPE)
    load_initial(model, initial.path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def refused(file: Path, config: DiTConfig) -> str:
    with pytest.raises(ConfigError) as raised:
        check_initial(resolve_initial(file), config, **SHAPE)
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_wrong_files_are_refused_in_one_sentence(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "DiT.pt"
    torch.save(weights, file)
    assert "its pos_embed is [1, 16, 16], this model's [1, 16, 32]" in refused(file, dit(hidden_size=32))
    assert "this model has no blocks.1." in refused(file, dit(depth=1))
    assert "it has no blocks.2." in refused(file, dit(depth=3))
    assert "set model.frequency_shift to 0 (it is 1)" in refused(file, dit(frequency_shift=1))
    torch.save({"a": 1, "b": [1, 2]}, file)
    assert "holds no state dict" in refused(file, dit())
    file.write_bytes(b"not a checkpoint")
    assert "initial_weights" in refused(file, dit())
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_initial(tmp_path / "nothing.pt")
    with pytest.raises(ConfigError, match="holds no network"):
        resolve_initial(tmp_path)


class Harmful:
    """What a malicious pickle does when it is opened."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(__file__).with_name("harm"),))


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    file = tmp_path / "DiT.pt"
    torch.save({"model": Harmful()}, file)
    assert "could run code" in refused(file, dit())
    file.write_bytes(pickle.dumps(Harmful()))
    refused(file, dit())
    assert not Path(__file__).with_name("harm").exists()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(run_config("single").data, tmp_path_factory.mktemp("data"))


def run_config(kind: str, **changes: Any) -> RunConfig:
    strategy = {"kind": kind} | ({} if kind == "single" else {"num_experts": 4})
    raw = {
        "name": "tiny",
        "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "strategy": strategy,
        "training": {"images": 32, "batch_size": 16},
        "evaluation": "demo",
    }
    return RunConfig.model_validate(raw | changes)


def test_a_finished_run_is_a_start_for_every_strategy(dataset: PreparedDataset, tmp_path: Path) -> None:
    config = run_config("single")
    spec = dataset.spec(config.data)
    (job,) = config.jobs(spec)
    train_job(job, dataset.path, tmp_path / "store")
    write_ensemble(tmp_path / "run" / "ensemble", config, dataset, [tmp_path / "store"])
    initial = resolve_initial(tmp_path / "run")
    trained = safetensors.torch.load_file(initial.path)
    (remix_job,) = run_config("remix").jobs(spec, initial)
    state = RemixState(remix_job, torch.device("cpu"))  # type: ignore[arg-type]
    for alpha in state.mixer.table():  # all bases are the network, so every mixture is
        state.bases.mix(alpha)
        for name, tensor in state.model.state_dict().items():
            torch.testing.assert_close(tensor, trained[name])
    independent = run_config("independent")
    jobs = independent.jobs(spec, initial)
    assert len({job.key for job in (*jobs, *independent.jobs(spec))}) == 8
    folders = [tmp_path / f"independent{index}" for index in range(4)]
    for expert, folder in zip(jobs, folders, strict=True):
        train_job(expert, dataset.path, folder)
    write_ensemble(tmp_path / "many" / "ensemble", independent, dataset, folders)
    with pytest.raises(ConfigError, match="holds several experts"):
        resolve_initial(tmp_path / "many")


def test_the_key_follows_the_content_not_the_place(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    spec = DataSpec(fingerprint="f" * 64, channels=1, image_size=8, num_classes=10)
    torch.save(weights, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "c.pt")
    keys = [run_config("single").jobs(spec, resolve_initial(tmp_path / f"{name}.pt"))[0].key for name in "abc"]
    assert keys[0] == keys[1] != keys[2]
