"""Pipelines of diffusers: the expert in use owns the timestep, images are those of `rememe sample`, bit for bit."""

import copy
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import TINY_IUNET
from safetensors import safe_open
from torch import Tensor, nn

from workloads.config import RunConfig
from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import SamplingConfig
from workloads.config.intervals import IntervalTable
from workloads.config.job import DataSpec
from workloads.data.prepared import LatentInfo
from workloads.diffusion.sampling import make_scheduler
from workloads.ensemble import Ensemble, EnsembleIndex
from workloads.errors import ConfigError
from workloads.evaluation.generate import generate_batch
from workloads.files import sha256_file
from workloads.interop import MultiExpertPipeline, TimestepExperts
from workloads.interop.forms import stock_sampling, write_form
from workloads.interop.pipeline import boundary_ratio_of, sample_generators
from workloads.models.build import WEIGHTS, build_model
from workloads.models.dit import DiT
from workloads.places import RunDir
from workloads.sealed import write_json

NewEnsemble = Callable[..., Ensemble]


class Recording(nn.Module):
    """An expert that predicts no noise and remembers when it was asked."""

    def __init__(self, calls: list[tuple[int, float]], index: int) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(in_channels=1, sample_size=2)
        self._calls, self._index = calls, index

    def forward(self, x_BCHW: Tensor, t_B: Tensor, class_labels: Tensor | None = None) -> Any:
        assert len(t_B.unique()) == 1
        self._calls.append((self._index, t_B[0].item()))
        return SimpleNamespace(sample=torch.zeros_like(x_BCHW))


def recording_pipeline(scheduler: Any, cuts: list[int]) -> tuple[MultiExpertPipeline, list[tuple[int, float]]]:
    calls: list[tuple[int, float]] = []
    experts = [Recording(calls, index) for index in range(len(cuts) + 1)]
    num_timesteps = scheduler.config.num_train_timesteps
    pipe = MultiExpertPipeline(TimestepExperts(experts=experts, cuts=cuts, num_timesteps=num_timesteps), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe, calls


OPTIONS: dict[str, list[Any]] = {
    "timestep_spacing": ["leading", "trailing", "linspace"],
    "steps_offset": [0, 1],
    "use_karras_sigmas": [False, True],
    "use_exponential_sigmas": [False, True],
    "final_sigmas_type": ["zero", "sigma_min"],
    "use_flow_sigmas": [False, True],
    "flow_shift": [1.0, 3.0, 12.0],
    "solver_order": [1, 2, 3],
}
"""Of schedulers that have them: whatever moves timesteps."""

NAMES = ["ddim", "dpm++", "ddpm", *(name for name in dir(diffusers) if name.endswith("Scheduler"))]


def scheduler_of(draw: Any, name: str, diffusion: DiffusionConfig) -> Any:
    """One that make_scheduler accepts, or None."""
    known = inspect.signature(getattr(diffusers, name)).parameters if hasattr(diffusers, name) else {}
    options = {key: draw(st.sampled_from(values)) for key, values in OPTIONS.items() if key in known}
    try:
        sampling = SamplingConfig(sampler=name, options=options, num_steps=draw(st.integers(2, 60)))
        return make_scheduler(diffusion, sampling)
    except (ConfigError, ValueError):
        return None


def own_timesteps(scheduler: Any, num_steps: int) -> list[float] | None:
    """Those of a plain loop with no experts; None if the scheduler itself cannot take so many steps."""
    x_BCHW = torch.zeros(1, 1, 2, 2)
    try:
        scheduler.set_timesteps(num_steps)
        timesteps = scheduler.timesteps.tolist()
        for t in scheduler.timesteps:
            output_BCHW = torch.zeros(1, 2 if scheduler.config.get("variance_type") == "learned_range" else 1, 2, 2)
            x_BCHW = scheduler.step(output_BCHW, t, scheduler.scale_model_input(x_BCHW, t)).prev_sample
    except (ValueError, IndexError, AssertionError, RuntimeError, NotImplementedError):
        return None
    return timesteps


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # DEIS takes the logarithm of its last sigma, 0
@pytest.mark.parametrize("name", NAMES)
# What fails is small already, and to make it smaller takes minutes.
@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(data=st.data())
def test_the_expert_in_use_owns_the_timestep(name: str, data: st.DataObject) -> None:
    num_timesteps = data.draw(st.sampled_from([100, 1000]))
    diffusion = DiffusionConfig(num_timesteps=num_timesteps)
    scheduler = scheduler_of(data.draw, name, diffusion)
    if scheduler is None:
        return
    cuts = sorted(data.draw(st.sets(st.integers(1, num_timesteps - 1), min_size=1, max_size=6)))
    pipe, calls = recording_pipeline(scheduler, cuts)
    num_steps = data.draw(st.integers(2, 60))
    expected = own_timesteps(copy.deepcopy(scheduler), num_steps)
    if expected is None:
        return
    if not all(0 <= t < num_timesteps for t in expected):  # 58 trailing steps of 100 end at -1
        with pytest.raises(ConfigError, match="choose another number of steps"):
            pipe(num_inference_steps=num_steps)
        return
    pipe(num_inference_steps=num_steps, generator=torch.manual_seed(0), output_type="pt")
    edges = [0, *cuts, num_timesteps]
    assert [t for _, t in calls] == torch.tensor(expected).tolist()  # as networks see it, in float32
    assert all(edges[index] <= t < edges[index + 1] for (index, _), t in zip(calls, expected, strict=True))


def test_most_schedulers_are_among_them() -> None:
    """Of those above that are not refused; so that the property is not of nothing."""
    accepted = set()
    for name in NAMES:
        try:
            make_scheduler(DiffusionConfig(), SamplingConfig(sampler=name, num_steps=10))
        except (ConfigError, ValueError):
            continue
        accepted.add(name)
    assert {
        "ddim",
        "dpm++",
        "ddpm",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "UniPCMultistepScheduler",
    } < accepted
    assert len(accepted) >= 14


@given(st.integers(2, 2000), st.data())
@settings(deadline=None)
def test_the_boundary_ratio_means_the_cut_as_wan_reads_it(num_timesteps: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, num_timesteps - 1))
    boundary = boundary_ratio_of(cut, num_timesteps) * num_timesteps
    for t in (cut - 1, cut - 2**-10, cut, cut + 2**-10, cut + 1):
        assert (t >= boundary) == (t >= cut)


def randomised(model: Any, seed: int) -> Any:
    """With no weight at its initial zero, so that everything has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 4 channels and half the size; its scale is a power of two, by which to divide is exact."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    small = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "scaling_factor": 0.5}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    randomised(AutoencoderKL(**small, **blocks), 7).save_pretrained(folder)
    return folder


DIT = {"kind": "dit", "hidden_size": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def new_ensemble(tmp_path: Path, vae: Path) -> NewEnsemble:
    """new_ensemble(model, num_experts=3, num_classes=5, latent=True): a run's ensemble, its weights random."""

    def make(
        model: dict[str, Any], *, num_experts: int = 3, num_classes: int | None = 5, latent: bool = True, **changes: Any
    ) -> Ensemble:
        strategy = {"kind": "single"} if num_experts == 1 else {"kind": "independent", "num_experts": num_experts}
        raw = {
            "name": "tiny",
            "data": {"kind": "embedded", "image_size": 8, "class_conditional": num_classes is not None},
            "model": model,
            "strategy": strategy,
            "training": {"images": 32, "batch_size": 16},
            "evaluation": "demo",
        }
        config = RunConfig.model_validate(raw | changes)
        data = DataSpec(fingerprint="f" * 64, channels=4 if latent else 1, image_size=8, num_classes=num_classes)
        place = RunDir(tmp_path / "run").ensemble
        for index in range(num_experts):
            network = build_model(config.model, **data.input_shape)
            randomised(network, index).save_pretrained(place.expert(index))
        info = None
        if latent:
            shutil.copytree(vae, place.vae)
            weights = sha256_file(place.vae / WEIGHTS)
            info = LatentInfo(vae=vae, vae_sha256=weights, scaling_factor=0.5, downsampling=2, mean=0, std=1)
        index = EnsembleIndex(
            config=config,
            data=data,
            class_names=tuple("abcde"),
            weights_sha256=tuple(sha256_file(place.expert(one) / WEIGHTS) for one in range(num_experts)),
            latent=info,
        )
        write_json(place.index, index.model_dump(mode="json"))
        return Ensemble.load(tmp_path / "run")

    return make


def exported(ensemble: Ensemble, target: Path, form: Any = "diffusers", expert: int | None = None) -> Any:
    target.mkdir()
    return write_form(ensemble, form, target, expert=expert, on_progress=lambda *_: None)


def opened(kind: Any, folder: Path) -> Any:
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(images: list[Any]) -> np.ndarray:
    """uint8 (B, C, H, W)."""
    arrays = [np.asarray(image) for image in images]
    return np.stack([array[None] if array.ndim == 2 else array.transpose(2, 0, 1) for array in arrays])


SAMPLINGS: dict[str, dict[str, Any]] = {
    "ddim": {"sampler": "ddim", "num_steps": 7, "guidance_scale": 2.0},
    "ddim of noise": {"sampler": "ddim", "num_steps": 7, "eta": 1.0},
    "dpm++": {"sampler": "dpm++", "num_steps": 7, "guidance_scale": 1.5, "guidance_channels": 1},
    "learned": {"sampler": "ddpm", "num_steps": 9, "guidance_scale": 1.5},
    "left out": {"sampler": "ddpm", "num_steps": 9, "variance": "fixed"},
    "Heun": {"sampler": "HeunDiscreteScheduler", "options": {"use_karras_sigmas": True}, "num_steps": 5},
    "ancestral": {"sampler": "EulerAncestralDiscreteScheduler", "num_steps": 6},
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize(("model", "latent"), [(DIT, True), (DIT | {"frequency_shift": 0}, False), (TINY_IUNET, False)])
def test_the_pipeline_draws_what_rememe_sample_draws(
    name: str, model: dict[str, Any], latent: bool, new_ensemble: NewEnsemble, tmp_path: Path
) -> None:
    learned = {"variance": "learned"} if name in {"learned", "left out", "ddim"} and model["kind"] == "dit" else {}
    protocol = {"name": "demo", "num_samples": 4, "batch_size": 4, "seed": 3, "sampling": SAMPLINGS[name]}
    ensemble = new_ensemble(model | learned, latent=latent, evaluation=protocol)
    kind = exported(ensemble, tmp_path / "out").pipeline
    assert kind is MultiExpertPipeline
    expected, labels_B = generate_batch(ensemble, ensemble.config.evaluation, range(4))
    drawn = opened(kind, tmp_path / "out")(class_labels=labels_B, generator=sample_generators(3, 4)).images
    assert expected.float().std() > 5
    assert np.array_equal(pixels(drawn), expected.numpy())


def files_of(folder: Path) -> dict[str, Any]:
    """What lies in a directory, by name; of settings, without where they were last read from."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content: Any = file.read_bytes()
        if file.suffix == ".json":
            content = {key: value for key, value in json.loads(content).items() if key != "_name_or_path"}
        found[str(file.relative_to(folder))] = content
    return found


@pytest.mark.parametrize("form", ["diffusers", "wan"])
@pytest.mark.parametrize(("model", "latent"), [(DIT, True), (DIT | {"frequency_shift": 0}, True), (TINY_IUNET, False)])
def test_saved_and_loaded_it_is_the_same_bit_for_bit(
    form: str, model: dict[str, Any], latent: bool, new_ensemble: NewEnsemble, tmp_path: Path
) -> None:
    ensemble = new_ensemble(model, num_experts=2, latent=latent)
    kind = exported(ensemble, tmp_path / "out", form).pipeline
    first = opened(kind, tmp_path / "out")
    first.save_pretrained(tmp_path / "again")
    second = opened(kind, tmp_path / "again")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "again")
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "out").rglob("*.json"))
    drawn = [
        pipe(class_labels=[0, "e"], generator=torch.manual_seed(0), output_type="pt").images for pipe in (first, second)
    ]
    assert torch.equal(*drawn)
    assert drawn[0].std() > 0.01


@pytest.mark.parametrize(("model", "latent"), [(DIT, True), (TINY_IUNET, False)])
def test_two_experts_in_the_form_of_wan(
    model: dict[str, Any], latent: bool, new_ensemble: NewEnsemble, tmp_path: Path
) -> None:
    protocol = {"name": "demo", "num_samples": 4, "batch_size": 4, "seed": 3, "sampling": SAMPLINGS["dpm++"]}
    two = {"strategy": {"kind": "independent", "cuts": [70]}, "diffusion": {"num_timesteps": 1000}}
    ensemble = new_ensemble(model, num_experts=2, latent=latent, evaluation=protocol, **two)
    kind = exported(ensemble, tmp_path / "out", "wan").pipeline
    assert {"transformer", "transformer_2", "scheduler"} <= {path.name for path in (tmp_path / "out").iterdir()}
    said = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert said["_class_name"] == "TwoExpertPipeline"
    expected, labels_B = generate_batch(ensemble, ensemble.config.evaluation, range(4))
    pipe = opened(kind, tmp_path / "out")
    drawn = pipe(class_labels=labels_B, generator=sample_generators(3, 4)).images
    assert np.array_equal(pixels(drawn), expected.numpy())
    asked: dict[str, set[float]] = {"transformer": set(), "transformer_2": set()}
    for name, times in asked.items():
        getattr(pipe, name).register_forward_pre_hook(lambda _, inputs, times=times: times.update(inputs[1].tolist()))
    pipe(class_labels=[0], num_inference_steps=100)
    boundary = said["boundary_ratio"] * pipe.scheduler.config.num_train_timesteps  # as diffusers' Wan pipelines do
    assert asked["transformer"] == {t for t in pipe.scheduler.timesteps.tolist() if t >= boundary}
    assert asked["transformer_2"] == {t for t in pipe.scheduler.timesteps.tolist() if t < boundary}
    pipe.transformer = pipe.transformer_2  # another network in its place is the one that is used
    pipe(class_labels=[0], num_inference_steps=100)
    assert asked["transformer_2"] == set(pipe.scheduler.timesteps.tolist())


@pytest.mark.parametrize(("num_experts", "expert"), [(1, None), (3, 2)])
@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_one_dit_is_diffusers_own_pipeline_and_draws_the_same(
    num_experts: int, expert: int | None, variance: str, new_ensemble: NewEnsemble, tmp_path: Path
) -> None:
    sampling = {"num_steps": 10, "guidance_scale": 1.5, "variance": "fixed"}
    protocol = {"name": "demo", "num_samples": 3, "batch_size": 3, "seed": 1, "sampling": sampling}
    ensemble = new_ensemble(DIT | {"variance": variance}, num_experts=num_experts, evaluation=protocol)
    written = exported(ensemble, tmp_path / "out", expert=expert)
    assert written.pipeline is DiTPipeline
    pipe = opened(DiTPipeline, tmp_path / "out")
    assert pipe.get_label_ids(["c"]) == [2]
    alone = Ensemble.load(str(ensemble.path))
    alone.intervals = IntervalTable((), 1000)
    alone._experts[0] = ensemble.expert(expert or 0)
    same = ensemble.config.evaluation.model_copy(
        update={"sampling": stock_sampling(ensemble.config.evaluation.sampling)}
    )
    expected, labels_B = generate_batch(alone, same, range(3))
    drawn = pipe(labels_B.tolist(), 1.5, sample_generators(1, 3), num_inference_steps=10).images
    assert expected.float().std() > 5
    assert np.array_equal(pixels(drawn), expected.numpy())


def test_a_latent_scale_that_is_no_power_of_two_costs_a_last_bit(new_ensemble: NewEnsemble, tmp_path: Path) -> None:
    """DiTPipeline multiplies by 1 / scale where the ensemble divides."""
    ensemble = new_ensemble(DIT, num_experts=1)
    settings_file = ensemble.path / "vae" / "config.json"
    settings_file.write_text(settings_file.read_text().replace('"scaling_factor": 0.5', '"scaling_factor": 0.18215'))
    latent = ensemble.index.latent.model_copy(update={"scaling_factor": 0.18215})  # type: ignore[union-attr]
    write_json(
        ensemble.path / "ensemble.json", ensemble.index.model_copy(update={"latent": latent}).model_dump(mode="json")
    )
    ensemble = Ensemble.load(ensemble.path)
    exported(ensemble, tmp_path / "out")
    sampling = stock_sampling(ensemble.config.evaluation.sampling)
    protocol = ensemble.config.evaluation.model_copy(update={"num_samples": 2, "batch_size": 2, "sampling": sampling})
    expected, labels_B = generate_batch(ensemble, protocol, range(2))
    drawn = opened(DiTPipeline, tmp_path / "out")(
        labels_B.tolist(), sampling.guidance_scale, sample_generators(0, 2), num_inference_steps=sampling.num_steps
    ).images
    assert np.abs(pixels(drawn).astype(int) - expected.numpy().astype(int)).max() <= 1


def test_networks_that_stock_diffusers_lacks_it_refuses(new_ensemble: NewEnsemble, tmp_path: Path) -> None:
    """It passes over settings that it does not know, so that a network of random weights would come of them."""
    exported(new_ensemble(TINY_IUNET, latent=False), tmp_path / "out")
    for folder in (tmp_path / "out" / "experts" / "expert_00", tmp_path / "run" / "ensemble" / "expert_00"):
        with pytest.raises(ValueError, match="InceptionDownBlock2D does not exist"):
            diffusers.UNet2DModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="no class `IUNet2DModel`"):
        diffusers.AutoModel.from_pretrained(tmp_path / "out" / "experts" / "expert_00")
    shutil.rmtree(tmp_path / "run")
    exported(new_ensemble(DIT | {"frequency_shift": 0}), tmp_path / "dit")
    with pytest.raises(NotImplementedError, match="rememe"):
        diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "dit" / "experts" / "expert_00")
    with pytest.raises((AttributeError, ValueError), match="MultiExpertPipeline"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "dit")


def test_an_iunet_saved_before_is_exported_so_too(new_ensemble: NewEnsemble, tmp_path: Path) -> None:
    ensemble = new_ensemble(TINY_IUNET, num_experts=1, latent=False)
    file = ensemble.path / "expert_00" / "config.json"
    file.write_text(file.read_text().replace("InceptionDownBlock2D", "AttnDownBlock2D"))
    expected = ensemble.denoise(torch.ones(1, 1, 8, 8), 500, torch.tensor([1])).detach()
    exported(Ensemble.load(ensemble.path), tmp_path / "out")
    assert "InceptionDownBlock2D" in (tmp_path / "out" / "experts" / "expert_00" / "config.json").read_text()
    experts = opened(MultiExpertPipeline, tmp_path / "out").experts
    assert torch.equal(experts(torch.ones(1, 1, 8, 8), 500, class_labels=torch.tensor([1])).sample, expected)


def test_what_a_form_cannot_hold_is_refused_before_anything_is_written(
    new_ensemble: NewEnsemble, tmp_path: Path
) -> None:
    ensemble = new_ensemble(DIT)
    (tmp_path / "out").mkdir()
    for form, expert, said in (
        ("wan", None, "is for two experts, transformer and transformer_2, and 3 of"),
        ("wan", 1, "and one of"),
        ("diffusers", 3, "has experts 0 to 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            write_form(ensemble, form, tmp_path / "out", expert=expert, on_progress=lambda *_: None)  # type: ignore[arg-type]
    assert not list((tmp_path / "out").iterdir())


def test_what_does_not_go_with_the_experts_is_one_sentence(new_ensemble: NewEnsemble, tmp_path: Path) -> None:
    exported(new_ensemble(DIT), tmp_path / "out")
    pipe = opened(MultiExpertPipeline, tmp_path / "out")
    for arguments, said in (
        ({"class_labels": [6]}, "class 6 is none of 0 to 4"),
        ({"class_labels": ["boot"]}, "no class is called 'boot'"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"latents have shape \(1, 3, 8, 8\)"),
        ({"num_inference_steps": 2000}, "num_steps is 2000"),
    ):
        with pytest.raises(ValueError, match=said):
            pipe(**arguments)
    with pytest.raises(ValueError, match="differ"):
        pipe.experts(torch.zeros(2, 4, 8, 8), torch.tensor([1, 999]), class_labels=torch.tensor([0, 0]))
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="not for a diffusion of given betas"):
        pipe(class_labels=[0])
    pipe.scheduler = diffusers.DDIMScheduler(num_train_timesteps=100)
    with pytest.raises(ValueError, match="counts 100 timesteps and the experts 1000"):
        pipe(class_labels=[0])


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be a whole number of at least 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"class_labels": [1.7]}, "class_labels has 1.7, which is no class"),
        ({"class_labels": torch.tensor([0.5])}, "class_labels has 0.5"),
        ({"class_labels": [None]}, "class_labels has None"),
        ({"class_labels": [[0, 1]]}, r"class_labels has \[0, 1\]"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"class_labels": "boot"}, "no class is called 'boot'"),
        ({"class_labels": [0], "batch_size": 3}, "batch_size is 3, but class_labels is for 1"),
        ({"latents": torch.zeros(2, 4, 4, 4), "batch_size": 3}, "batch_size is 3, but latents is for 2"),
        ({"latents": torch.zeros(0, 4, 4, 4)}, "latents is empty"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"class_labels": [0, 1], "generator": [GENERATOR]}, "generator is a list of 1 for 2 images"),
        ({"generator": [GENERATOR] * 2}, "generator is a list of 2 for 1 images"),
        ({"generator": 3}, "generator is 3; give a torch.Generator"),
        ({"guidance_scale": -1}, "guidance_scale is -1; it must be a number 0 or more"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": "3"}, "guidance_scale is '3'"),
        ({"eta": 1.5}, "eta is 1.5; it must be a number from 0 to 1"),
        ({"output_type": "xyz"}, "output_type is 'xyz'; it must be one of pil, np, pt, latent"),
    ],
)
def test_a_setting_that_cannot_be_drawn_with_is_one_sentence(
    arguments: dict[str, Any], said: str, new_ensemble: NewEnsemble, tmp_path: Path
) -> None:
    exported(new_ensemble(DIT), tmp_path / "out")
    pipe = opened(MultiExpertPipeline, tmp_path / "out")
    with pytest.raises(ValueError, match=said):
        pipe(**{"num_inference_steps": 2} | arguments)


def test_one_number_or_name_is_one_label(new_ensemble: NewEnsemble, tmp_path: Path) -> None:
    exported(new_ensemble(DIT), tmp_path / "out")
    pipe = opened(MultiExpertPipeline, tmp_path / "out")

    def drawn(class_labels: Any, **told: Any) -> Tensor:
        (images,) = pipe(
            class_labels, 2, generator=sample_generators(0, 1), output_type="pt", return_dict=False, **told
        )
        return torch.as_tensor(images)

    expected = drawn([1])
    for one in (1, "b", np.int64(1), torch.tensor(1), torch.tensor([1.0]), np.array([1]), ["b"]):
        assert torch.equal(drawn(one), expected)
    assert torch.equal(drawn(1, batch_size=1), expected)
    assert not torch.equal(drawn(0), expected)


class Moved(Recording):
    """Remembers where it was sent, too."""

    def to(self, device: Any) -> "Moved":
        self._calls.append((self._index, str(device)))  # type: ignore[arg-type]
        return super().to(device)


def test_only_the_expert_in_use_is_on_the_device() -> None:
    calls: list[Any] = []
    experts = TimestepExperts(experts=[Moved(calls, index) for index in range(3)], cuts=[250, 500])
    experts.offload("cpu")
    for t in (999, 600, 400, 300, 5):
        experts(torch.zeros(1, 1, 2, 2), t)
    sent = [(index, what) for index, what in calls if isinstance(what, str)]
    assert sent == [(2, "cpu"), (1, "cpu"), (0, "cpu")]
    assert [index for index, what in calls if not isinstance(what, str)] == [2, 2, 1, 1, 0]


@pytest.mark.gpu
def test_of_three_experts_one_is_on_the_gpu(new_ensemble: NewEnsemble, tmp_path: Path) -> None:
    exported(new_ensemble(DIT), tmp_path / "out")
    pipe = opened(MultiExpertPipeline, tmp_path / "out")
    pipe.offload_experts("cuda")
    places: list[list[str]] = []
    for expert in pipe.experts.experts:
        expert.register_forward_hook(lambda *_: places.append([one.device.type for one in pipe.experts.experts]))
    images = pipe(class_labels=[0, 1], generator=sample_generators(0, 2), output_type="pt").images
    assert {tuple(one) for one in places} == {("cuda", "cpu", "cpu"), ("cpu", "cuda", "cpu"), ("cpu", "cpu", "cuda")}
    there = opened(MultiExpertPipeline, tmp_path / "out").to("cuda")
    torch.testing.assert_close(
        there(class_labels=[0, 1], generator=sample_generators(0, 2), output_type="pt").images, images
    )


def test_plain_files_hold_the_weights_and_say_what_they_are(new_ensemble: NewEnsemble, tmp_path: Path) -> None:
    ensemble = new_ensemble(DIT | {"frequency_shift": 0})
    assert exported(ensemble, tmp_path / "out", "safetensors").pipeline is None
    for index, (lo, hi) in enumerate(ensemble.intervals):
        with safe_open(tmp_path / "out" / f"expert_{index:02d}.safetensors", "pt") as file:
            said = file.metadata()
            network = DiT(**json.loads(said["config"]))
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        assert (said["class"], json.loads(said["timesteps"])) == ("DiT", [lo, hi])
        x_BCHW, labels_B = torch.ones(1, 4, 8, 8), torch.tensor([2])
        drawn = network(x_BCHW, torch.tensor([lo]), class_labels=labels_B).sample
        assert torch.equal(drawn, ensemble.denoise(x_BCHW, lo, labels_B))
