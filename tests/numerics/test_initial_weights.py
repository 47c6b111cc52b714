"""Starting from weights: published DiT checkpoints in every form, our own runs, and files that must be refused."""

import argparse
import datetime
import io
import itertools
import json
import pickle
import re
import zipfile
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from workloads.config import DataSpec, RunConfig
from workloads.config.job import InitialConversion
from workloads.config.load import validate
from workloads.config.models import DiTConfig, LDMUNetConfig
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import Ensemble, EnsembleIndex, write_ensemble
from workloads.errors import ConfigError
from workloads.files import sha256_file
from workloads.interop.forms import write_form
from workloads.models.build import WEIGHTS, build_model
from workloads.models.dit import to_diffusers
from workloads.models.initial import check_initial, load_initial, resolve_initial
from workloads.places import EnsembleDir
from workloads.sealed import write_json
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


def prefixed(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def other(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What must not be taken for them."""
    return {name: tensor + 1 for name, tensor in weights.items()}


ARGUMENTS = argparse.Namespace(
    lr=1e-4, out=PosixPath("x"), best=np.float64(1.5), began=datetime.datetime(2024, 1, 1), nested=[{"a": PosixPath()}]
)

WRAPPED = {
    "plain": lambda w: w,
    "published-trainer": lambda w: {"model": prefixed("module.", other(w)), "ema": w, "opt": {}, "args": ARGUMENTS},
    "average-behind-two-keys": lambda w: {"state": {"net": other(w), "ema_0.9999": {"module": w}}},
    "model-ema": lambda w: {"model": other(w), "model_ema": w},
    "state-dict-ema": lambda w: {"state_dict": other(w), "state_dict_ema": w},
    "averaged-model-of-torch": lambda w: {"n_averaged": torch.tensor(3)} | prefixed("module.", w),
    "average-by-prefix": lambda w: {"state_dict": prefixed("model.", other(w)) | prefixed("ema_model.", w)},
    "only-model": lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "ema_decay": 0.9},
    "optimizer-with-averages": lambda w: {"params": w, "opt": {"state": {0: {"step": torch.ones(1)}}}, "ema": None},
    "heads-that-only-training-needs": lambda w: {"ema": w | {"projectors.0.0.weight": torch.zeros(2, 2)}},
    "half-precision": lambda w: {name: tensor.double() for name, tensor in w.items()},
    **{
        f"prefix-{prefix}": lambda w, prefix=prefix: prefixed(prefix, w)
        for prefix in ("module.", "_orig_mod.", "model.", "net.", "model.diffusion_model.", "module._orig_mod.net.")
    },
}  # fmt: skip


def started(path: Path, config: DiTConfig | None = None, **shape: Any) -> dict[str, torch.Tensor]:
    """The weights of a network that starts there."""
    initial = resolve_initial(path)
    check_initial(initial, config or dit(), **(SHAPE | shape))
    model = build_model(config or dit(), **(SHAPE | shape))
    load_initial(model, initial)
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


@pytest.mark.parametrize("form", ["new.pt", "old.pt", "x.ckpt", "named.safetensors", "without_suffix"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_what_trainers_write_is_read(weights: dict[str, torch.Tensor], wrap: str, form: str, tmp_path: Path) -> None:
    torch.save(WRAPPED[wrap](weights), tmp_path / form, _use_new_zipfile_serialization=form != "old.pt")
    assert_equal(started(tmp_path / form), weights)


@pytest.mark.parametrize("prefix", ["", "module.", "model.diffusion_model."])
def test_safetensors_are_read_whole_and_in_parts(weights: dict[str, torch.Tensor], prefix: str, tmp_path: Path) -> None:
    names = prefixed(prefix, weights)
    safetensors.torch.save_file(names, tmp_path / "one.safetensors")
    assert_equal(started(tmp_path / "one.safetensors"), weights)
    index = divided(names, tmp_path)
    assert_equal(started(tmp_path), weights)
    assert_equal(started(index), weights)
    before = resolve_initial(index).sha256
    part = tmp_path / f"{STEM}-00002-of-00002.safetensors"
    assert "is one part of 2" in refused(part, dit())
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in load_file(part).items()}, part)
    assert resolve_initial(index).sha256 != before
    part.unlink()
    assert "which is missing" in refused(index, dit())
    index.write_text(json.dumps({"weight_map": {"pos_embed": "../one.safetensors"}}))
    assert "no file beside it" in refused(index, dit())


STEM = "diffusion_pytorch_model"


def divided(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    """In two parts with an index."""
    where = {name: f"{STEM}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for part in set(where.values()):
        safetensors.torch.save_file({name: weights[name] for name in where if where[name] == part}, folder / part)
    index = folder / f"{STEM}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_what_is_preferred_is_said(
    weights: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": other(weights), "ema": prefixed("module.", weights)}, tmp_path / "x.pt")
    started(tmp_path / "x.pt")
    assert "starts from the averaged weights, under ema behind the prefix 'module.'" in caplog.text


def test_an_average_that_is_not_understood_is_a_question(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"model": weights, "ema": {"shadow_params": list(weights.values())}}, tmp_path / "x.pt")
    assert "holds averaged weights (ema.shadow_params)" in refused(tmp_path / "x.pt", dit())
    flat = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in weights.items()}
    torch.save({"state_dict": prefixed("model.", weights) | flat}, tmp_path / "x.pt")
    assert "holds averaged weights (model_ema." in refused(tmp_path / "x.pt", dit())
    torch.save({"ema_0.99": weights, "ema_0.9999": other(weights)}, tmp_path / "x.pt")
    assert "holds the network 2 times (under ema_0.99, under ema_0.9999)" in refused(tmp_path / "x.pt", dit())
    torch.save({"student": weights, "teacher": other(weights)}, tmp_path / "x.pt")
    assert "(under student, under teacher)" in refused(tmp_path / "x.pt", dit())


def diffusers_shift() -> DiTConfig:
    return dit(frequency_shift=1)


@pytest.mark.parametrize("layout", ["", "transformer"])
def test_what_export_writes_is_read(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(1)
    model: Any = build_model(diffusers_shift(), **SHAPE)
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(parameter)
    to_diffusers(model).save_pretrained(tmp_path / layout)
    assert_equal(started(tmp_path, diffusers_shift()), model.state_dict())
    assert "set model.frequency_shift to 1 (it is 0)" in refused(tmp_path, dit())
    assert "num_attention_heads 2, and this model has 4; set model.num_heads" in refused(
        tmp_path, dit(frequency_shift=1, num_heads=4)
    )
    file = tmp_path / layout / f"{STEM}.safetensors"
    theirs = load_file(file)
    theirs["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    safetensors.torch.save_file(theirs, file)
    assert "differs between blocks" in refused(tmp_path, diffusers_shift())


@pytest.mark.parametrize("form", ["diffusers", "wan", "safetensors"])
@pytest.mark.parametrize("num_experts", [1, 2])
def test_an_exported_run_is_a_start(num_experts: int, form: Any, tmp_path: Path) -> None:
    if form == "wan" and num_experts == 1:
        pytest.skip("wan is for two")
    two = {"kind": "independent", "num_experts": 2}
    config = run_config("single", **({} if num_experts == 1 else {"strategy": two}))
    data = DataSpec(fingerprint="f" * 64, channels=1, image_size=8, num_classes=10)
    place = EnsembleDir(tmp_path / "run")
    for index in range(num_experts):
        torch.manual_seed(index)
        network: Any = build_model(config.model, **data.input_shape)
        torch.nn.init.normal_(network.final_layer.linear.weight)
        network.save_pretrained(place.expert(index))
    sums = tuple(sha256_file(place.expert(index) / WEIGHTS) for index in range(num_experts))
    index_file = EnsembleIndex(config=config, data=data, class_names=tuple("0123456789"), weights_sha256=sums)
    write_json(place.index, index_file.model_dump(mode="json"))
    out = tmp_path / "out"
    out.mkdir()
    write_form(Ensemble.load(place.path), form, out, expert=None, on_progress=lambda *_: None)
    number = f"expert_0{num_experts - 1}"
    last = {"diffusers": f"experts/{number}", "wan": "transformer", "safetensors": f"{number}.safetensors"}[form]
    if form == "diffusers" and num_experts == 1:
        last = "."
    elif form != "safetensors":
        with pytest.raises(ConfigError, match="holds several experts; name one of its directories"):
            resolve_initial(out)
    found = started(out / last, config.model, **data.input_shape)  # type: ignore[arg-type]
    assert_equal(found, network.state_dict())


def test_a_unet_of_diffusers_is_read(tmp_path: Path) -> None:
    settings = {"channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_levels": [1], "head_dim": 4}
    config: Any = LDMUNetConfig.model_validate(settings | {"norm_groups": 4})
    shape: dict[str, Any] = {"channels": 3, "image_size": 8, "num_classes": 2}
    model: Any = build_model(config, **shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / f"{STEM}.safetensors.index.json").is_file()
    assert_equal(started(tmp_path, config, **shape), model.state_dict())
    changed: Any = LDMUNetConfig.model_validate(settings | {"norm_groups": 2})
    with pytest.raises(ConfigError, match=r"norm_num_groups 4, and this model has 2; set model.norm_groups"):
        started(tmp_path, changed, **shape)
    with pytest.raises(ConfigError, match="says UNet2DModel, this model is a DiT"):
        started(tmp_path, dit(), **shape)


NOT_WEIGHTS = {
    "is empty": b"",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "is a web page": b"\n<!DOCTYPE html><html></html>",
    "is a text file": b"Error 404: not found",
    "is compressed": b"\x1f\x8b\x08" + bytes(30),
    "neither safetensors nor": bytes(range(200, 256)) * 20,
    "cut short": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("told", NOT_WEIGHTS)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x"])
def test_files_without_weights_are_named_as_what_they_are(told: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(NOT_WEIGHTS[told])
    assert told in refused(tmp_path / name, dit())


def test_damaged_files_are_named(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    for content in (
        saved(weights),
        saved(weights, _use_new_zipfile_serialization=False),
        safetensors.torch.save(weights),
    ):
        for share in (0.1, 0.5, 0.99):
            file.write_bytes(content[: int(share * len(content))])
            assert re.search("cut short|damaged", refused(file, dit()))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("DiT/readme.txt", "hello")
    assert "is a zip archive that torch.save did not write (it holds DiT/readme.txt)" in refused(file, dit())


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def test_values_one_cannot_start_from_are_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    for value in (float("nan"), float("inf")):
        damaged = {name: tensor.clone() for name, tensor in weights.items()}
        damaged["blocks.1.mlp.fc2.bias"][3] = value
        torch.save({"ema": damaged, "model": weights}, file)
        assert "its blocks.1.mlp.fc2.bias is not finite" in refused(file, dit())
    for kind in (torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64):
        torch.save({name: tensor.to(kind) for name, tensor in weights.items()}, file)
        assert str(kind).removeprefix("torch.") in refused(file, dit())
    torch.save(weights | {"pos_embed": torch.zeros(1).expand(1, 16, 16)}, file)
    assert "fewer numbers than its pos_embed" in refused(file, dit())


def converted(file: Path, config: DiTConfig, conversion: dict[str, Any], **shape: Any) -> dict[str, torch.Tensor]:
    initial = resolve_initial(file, InitialConversion.model_validate(conversion))
    check_initial(initial, config, **(SHAPE | shape))
    model = build_model(config, **(SHAPE | shape))
    load_initial(model, initial)
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


TABLE = "y_embedder.embedding_table.weight"


def test_other_classes_are_converted_when_asked_for(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"knows 5 classes and the data has 2: .*\[6, 16\], this model's \[3, 16\]"):
        started(tmp_path / "x.pt", num_classes=2)
    found = converted(tmp_path / "x.pt", dit(), {"classes": [3, 1]}, num_classes=2)
    assert_equal(found, weights | {TABLE: torch.stack([weights[TABLE][row] for row in (3, 1, 5)])})
    for classes in ([3], [0, 5]):  # one too few; the last row is no class
        with pytest.raises(ConfigError, match=r"initial_conversion.classes"):
            converted(tmp_path / "x.pt", dit(), {"classes": classes}, num_classes=2)
    with pytest.raises(ConfigError, match=r"trained with classes .*set data.class_conditional to true"):
        started(tmp_path / "x.pt", num_classes=None)
    torch.save({name: tensor for name, tensor in weights.items() if name != TABLE}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"trained without classes .*set data.class_conditional to false"):
        started(tmp_path / "x.pt")


def test_classes_are_named_by_synset(tmp_path: Path) -> None:
    """A pug, a goldfish and a toilet tissue, which are the classes 254, 1 and 999 of the 1,000 of ImageNet."""
    large: Any = build_model(dit(), channels=4, image_size=8, num_classes=1000)
    torch.save({"ema": large.state_dict()}, tmp_path / "DiT.pt")
    synsets = {"classes": ["n02110958", "n01443537", 999]}
    found = converted(tmp_path / "DiT.pt", dit(), synsets, num_classes=3)
    assert torch.equal(found[TABLE], large.state_dict()[TABLE][[254, 1, 999, 1000]])
    with pytest.raises(ConfigError, match="names n00000001, which is none of the 1000 classes"):
        converted(tmp_path / "DiT.pt", dit(), {"classes": ["n00000001"]}, num_classes=1)
    small: Any = build_model(dit(), channels=4, image_size=8, num_classes=5)
    torch.save({"ema": small.state_dict()}, tmp_path / "DiT.pt")
    with pytest.raises(ConfigError, match=r"and .*DiT.pt knows 5, which may be others; give their numbers"):
        converted(tmp_path / "DiT.pt", dit(), {"classes": ["n01440764"]}, num_classes=1)
    with pytest.raises(ConfigError, match=r"classes.*must be the number of a class, or its synset, such as n01440764"):
        validate(InitialConversion, {"classes": ["goldfish"]})


def test_a_learned_variance_comes_and_goes_when_asked_for(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "x.pt")
    fixed = dit(variance="fixed")
    assert "set model.variance to learned, or initial_conversion.variance" in refused(tmp_path / "x.pt", fixed)
    learned: Any = build_model(dit(), **SHAPE)
    learned.load_state_dict(weights)
    x_BCHW, t_B, labels_B = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 5])
    with torch.no_grad():
        both_BCHW = learned(x_BCHW, t_B, class_labels=labels_B).sample
        plain: Any = build_model(fixed, **SHAPE)
        plain.load_state_dict(converted(tmp_path / "x.pt", fixed, {"variance": True}))
        torch.testing.assert_close(plain(x_BCHW, t_B, class_labels=labels_B).sample, both_BCHW[:, :4])
        torch.save(plain.state_dict(), tmp_path / "x.pt")
        learned.load_state_dict(converted(tmp_path / "x.pt", dit(), {"variance": True}))
        found_BCHW = learned(x_BCHW, t_B, class_labels=labels_B).sample
    torch.testing.assert_close(found_BCHW[:, :4], both_BCHW[:, :4])
    assert not found_BCHW[:, 4:].any()


def cubic(distance: float, a: float = -0.75) -> float:
    """Keys 1981, Eq. 4: the weight of a neighbour in cubic convolution."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_positions_are_interpolated_when_asked_for(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"grid of 4 x 4 .*\[1, 16, 16\].*\[1, 64, 16\] .*image_size to 8"):
        started(tmp_path / "x.pt", image_size=16)
    found = converted(tmp_path / "x.pt", dit(), {"positions": True}, image_size=16)["pos_embed"].reshape(8, 8, 16)
    grid = weights["pos_embed"].reshape(4, 4, 16)
    for row, column in ((0, 0), (3, 4), (7, 2)):
        expected = torch.zeros(16)
        y, x = (row + 0.5) / 2 - 0.5, (column + 0.5) / 2 - 0.5
        for i, j in itertools.product(range(-3, 7), repeat=2):  # beyond the edge lies what is at the edge
            expected += cubic(y - i) * cubic(x - j) * grid[min(max(i, 0), 3), min(max(j, 0), 3)]
        torch.testing.assert_close(found[row, column], expected)


def test_a_conversion_is_part_of_the_key(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    spec = DataSpec(fingerprint="f" * 64, channels=1, image_size=8, num_classes=10)
    torch.save(weights, tmp_path / "a.pt")
    conversions = [None, InitialConversion(), InitialConversion(variance=True), InitialConversion(classes=(1,))]
    keys = [
        run_config("single").jobs(spec, resolve_initial(tmp_path / "a.pt", conversion))[0].key
        for conversion in conversions
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


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
