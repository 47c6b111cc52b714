"""Run descriptions nobody would write: each is read right, or refused in one sentence; none ends in a traceback."""

import random
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from orchestrator.plan.description import to_yaml
from orchestrator.search.study.find import find_study
from orchestrator.search.study.study import Study
from workloads.config import RunConfig, load_config
from workloads.config.comparison import Comparison
from workloads.config.load import CONFIG_SHA256, find_comparison, load_comparison, read_raw
from workloads.errors import ConfigError
from workloads.files import sha256_file
from workloads.models.build import build_model
from workloads.models.cost import model_cost
from workloads.places import RunDir
from workloads.sealed import write_json

SEED = 12

BASES = {
    "meme": "demo-meme",
    "remix": "demo-remix",
    "dit": "imagenet256-remix-s-4-8",
    "unet": "ffhq256-meme",
}


def test_random_bytes_are_no_description(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    file = tmp_path / "x.yaml"
    good = (Path(__file__).parents[2] / "workloads/presets/demo-meme.yaml").read_bytes()
    for number in range(100):
        damaged = bytearray(draw.randbytes(200) if number % 4 == 0 else good)
        for _ in range(draw.choice([1, 3, 30])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        file.write_bytes(bytes(damaged))
        for load in (load_config, load_comparison):
            with suppress(ConfigError):
                load(str(file))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.learning_rate=.inf", "training.learning_rate is inf"),
        ("model.mlp_ratio=.inf", "model.mlp_ratio is inf"),
        ("training.weight_decay=.nan", "training.weight_decay is nan"),
        ("name=a/b", "name is 'a/b'"),
        ("evaluation={name: a/b, extractor: inception, num_samples: 9}", "evaluation.name is 'a/b'"),
        ("strategy.experts.²=1", "'²' is not an index"),
        ("evaluation.sampling=ddim", "evaluation.sampling is 'ddim'; it must be a section"),
        ("evaluation.name=[a]", "evaluation.name is ['a']"),
        ("reference={kind: prepared, path: $NOT_SET_ANYWHERE/x}", "names $NOT_SET_ANYWHERE, which is not set"),
        ("reference={kind: prepared, path: " + "x" * 300 + "}", "is too long for a path"),
        ("training.betas=[0.9, 1.5]", "training.betas.1 is 1.5"),
        (".".join("x" * 50) + "=1", "is not of the form"),
    ],
)
def test_faults_are_told_by_field_and_value(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("demo-meme", [override])
    assert told in str(raised.value)


def test_a_list_is_no_size() -> None:
    with pytest.raises(ConfigError, match=r"model.size is \['S'\]"):
        load_config("imagenet256-remix-s-4-8", ["model.size=[S]"])


def test_a_protocol_can_be_named_and_changed_in_one_command() -> None:
    config = load_config("demo-meme", ["evaluation=fid2k", "evaluation.num_samples=4"])
    assert (config.evaluation.extractor, config.evaluation.num_samples) == ("inception", 4)
    assert config.evaluation.sampling.num_steps == 20


def test_paths_are_as_a_shell_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/disk")
    for text, path in (("~/x", "/home/me/x"), ("$DATA/x", "/disk/x"), ("${DATA}/x", "/disk/x"), ("x/~", "x/~")):
        config = load_config("demo-meme", [f"reference={{kind: prepared, path: '{text}'}}"])
        assert config.reference is not None
        assert str(config.reference.path) == path  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("base", "changes", "told"),
    [
        ("dit", ["model.hidden_size=65536", "model.num_heads=8", "model.depth=256"], "model would have about 2e"),
        ("dit", ["data.image_size=16384", "model.patch_size=1"], "268,435,456 tokens"),
        ("dit", ["data.image_size=33"], "image_size 33 is not a multiple of model.patch_size 2"),
        ("meme", ["model.num_res_blocks=100"], "blocks; at most 400"),
        ("meme", ["data.image_size=21"], "image_size 21 cannot be halved 2 times"),
        ("meme", ["strategy.experts.2.model.channel_mult=[1, 2, 4, 8]"], "image_size 20 cannot be halved 3 times"),
        ("remix", ["data.image_size=21"], "image_size 21 is not a multiple"),
    ],
)
def test_networks_that_do_not_fit_are_refused_by_arithmetic(base: str, changes: list[str], told: str) -> None:
    began_s = time.perf_counter()
    with pytest.raises(ConfigError, match=told):
        load_config(BASES[base], changes)
    assert time.perf_counter() - began_s < 2


def test_what_arithmetic_lets_through_is_built() -> None:
    for preset, size in (("demo-meme", 4), ("demo-meme", 12), ("demo-remix", 4)):
        config = load_config(preset, [f"data.image_size={size}"])
        assert model_cost(config.model, channels=1, image_size=size, num_classes=10).macs > 0
    with pytest.raises(ConfigError, match="image_size 6 cannot be halved"):
        build_model(load_config("demo-meme").model, channels=1, image_size=6, num_classes=10)


def parts_of(annotation: Any) -> set[Any]:
    """The classes that an annotation is made of."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        parts = parts[:1]
    return (
        {type(part) for part in parts}
        if get_origin(annotation) is Literal
        else (set().union(*map(parts_of, parts)) if parts else {annotation})
    )


def sections_of(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A description and all that can be in it."""
    found = {model}
    for field in model.model_fields.values():
        for part in parts_of(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= sections_of(part)
    return found


SECTIONS = sorted(sections_of(RunConfig) | sections_of(Comparison) | sections_of(Study), key=lambda one: one.__name__)


@pytest.mark.parametrize("section", SECTIONS)
def test_no_flag_is_a_number_and_no_number_a_flag(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        parts = parts_of(field.annotation)
        wrong: list[Any] = [1, 0, 1.0, "true", "yes", "on"] if bool in parts else []
        if parts & {int, float, Fraction} and bool not in parts:
            wrong += [True, False] if str in parts or Fraction in parts else [True, False, "1", "0.5", " 1 ", "1e3"]
        for value in wrong:
            for shape in (value, [value], [value, value], [[value]], {"a": value}):
                with pytest.raises(ValidationError) as told:
                    section.model_validate({name: shape})
                assert name in {error["loc"][0] for error in told.value.errors() if error["loc"]}, (name, shape)


def test_numbers_and_flags_are_read() -> None:
    changes = ["training.images=1e6", "training.compile=true", "training.learning_rate=1", "model.mlp_ratio=2"]
    config = load_config("demo-meme", [*changes, "execution.resources.custom={a: 2}"])
    assert (config.training.images, config.training.compile) == (1_000_000, True)
    assert (config.training.learning_rate, config.execution.resources.custom) == (1.0, {"a": 2.0})
    with pytest.raises(ConfigError, match=r"training.images is '5'; it must be a number, without quotes or units"):
        load_config("demo-meme", ['training.images="5"'])
    with pytest.raises(ConfigError, match=r"training.compile is 1; it must be true or false"):
        load_config("demo-meme", ["training.compile=1"])


def test_a_preset_with_two_changes_is_a_file_of_three_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("preset: demo-meme\nname: mine\ntraining: {images: 5000}\nevaluation: fid2k\n")
    assert find_study(str(file), []) is None
    found, preset = load_config(str(file)), load_config("demo-meme")
    assert (found.name, found.training.images, found.evaluation.num_samples) == ("mine", 5000, 2000)
    assert found.training == preset.training.model_copy(update={"images": 5000})
    assert (found.model, found.strategy, found.data) == (preset.model, preset.strategy, preset.data)
    assert "preset" not in to_yaml(found)
    file.write_text(to_yaml(found))
    assert load_config(str(file)) == found


def test_what_other_data_drops_of_a_preset_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Networks that are told no class any more train without an error, to something else."""
    file, told = tmp_path / "mine.yaml", "data replaces that of demo-meme, and with it class_conditional: true; say so"
    other = "{kind: folder, path: mine, image_size: 20}"
    file.write_text(f"preset: demo-meme\ndata: {other}\nevaluation: {{sampling: {{guidance_scale: 1}}}}\n")
    assert not load_config(str(file)).data.class_conditional
    assert [told in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    changes = [f"data={other}", "evaluation.sampling.guidance_scale=1"]
    assert not load_config("demo-meme", changes).data.class_conditional
    assert [told in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    file.write_text(f"preset: demo-meme\ndata: {other[:-1]}, class_conditional: true}}\n")
    assert load_config(str(file)).data.class_conditional
    load_config("demo-meme", ["data.image_size=8"])
    assert caplog.records == []


@pytest.mark.parametrize(
    "section",
    [
        "training: {images: 640}",
        "diffusion: {num_timesteps: 500}",
        "evaluation: {sampling: {num_steps: 5}}",
        "evaluation: {num_samples: 5}",
        "data: {image_size: 16}",
        "model: {channels: 32}",
        "data: {kind: prepared, path: mine, image_size: 20, class_conditional: true}",
        "strategy: {kind: independent, num_experts: 2}",
        "training: {betas: [0.9, 0.99]}",
        "training: {clip_grad_norm: null}",
        "execution: {resources: {num_cpus: 2}}",
    ],
)
def test_a_section_on_the_command_line_is_one_in_a_file(section: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"preset: demo-meme\n{section}\n")
    assert load_config("demo-meme", [section.replace(": ", "=", 1)]) == load_config(str(file))


def test_a_section_on_the_command_line_keeps_what_it_does_not_name() -> None:
    expert = load_config("demo-meme", ["strategy.experts.0={specialisation: 0.3}"])
    assert expert == load_config("demo-meme", ["strategy.experts.0.specialisation=0.3"])
    for base in ("base.training={images: 640}", "base={training: {images: 640}}"):
        (one, other) = ([base], ["base.training.images=640"])
        assert load_comparison("demo", one) == load_comparison("demo", other)
        assert find_study("demo-search", one) == find_study("demo-search", other)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: demo-meme\nspcae: {training.batch_size: {choice: [8]}}", "spcae: unknown key; did you mean 'space'?"),
        ("base: demo-meme\nspaces: {}\nsampler: grid", "spaces: unknown key; did you mean 'space'?"),
        ("base: demo-meme\nsampler: grid", "space: missing"),
        ("base: demo-meme\nbudget_images: 64\nrow: {a: {}}", "row: unknown key; did you mean 'rows'?"),
        ("base: demo-meme\nbudget_images: 64\nrwos: {a: {}}", "rwos: unknown key; did you mean 'rows'?"),
        ("base: demo-meme\nbudget_images: 64", "rows: missing"),
        ("base: demo-meme\ntraining: {images: 5}", "base: unknown key; to start from a preset"),
    ],
)
def test_a_misspelt_study_or_comparison_is_told_what_is_misspelt(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\n{text}\n")
    with pytest.raises(ConfigError) as raised:
        find_study(str(file), []) or find_comparison(str(file)) or load_config(str(file))
    assert str(raised.value).startswith(told)
    if "did you mean" in told:  # by `rememe train` too
        with pytest.raises(ConfigError) as raised:
            load_config(str(file))
        assert str(raised.value).startswith(told)


def test_a_study_and_a_comparison_are_no_runs(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, told in (("space: {x: {}}", "space: .*rememe search"), ("rows: {x: {}}", "rows: .*rememe compare")):
        file.write_text(f"name: mine\nbase: demo-meme\n{text}\n")
        with pytest.raises(ConfigError, match=told):
            load_config(str(file))


def test_a_named_base_keeps_what_a_section_on_the_command_line_does_not_name(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("name: s\nbase: demo-meme\nspace: {training.batch_size: {choice: [16, 32]}}\nsampler: grid\n")
    found = find_study(str(file), ["base={training: {images: 640}}"])
    assert found is not None
    assert found.base_raw["training"] == read_raw("demo-meme")["training"] | {"images": 640}


def test_the_description_that_lies_with_a_run_is_the_one_it_was_made_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Someone's edit, or a disk's: what it says now is another run, and is not trained under this one's name."""
    config, run = load_config("demo-meme"), RunDir(tmp_path / "demo-meme-01234567")
    run.path.mkdir()
    run.config.write_text(to_yaml(config))
    write_json(run.plan, {"jobs": [], CONFIG_SHA256: sha256_file(run.config)})
    assert load_config(str(run.config)) == config
    run.config.write_text(run.config.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(ConfigError, match=r"config.yaml was changed since the run was made of it; to train what it"):
        load_config(str(run.config))
    with pytest.raises(ConfigError, match=r"config.yaml was changed"):
        find_study(str(run.config), [])
    copied = tmp_path / "config.yaml"
    copied.write_text(run.config.read_text())
    assert load_config(str(copied)) != config
    plan = run.plan.read_text()
    for damaged in ("{torn", plan.replace(f'"{CONFIG_SHA256}": "', f'"{CONFIG_SHA256}": "0')):
        caplog.clear()
        run.plan.write_text(damaged)
        assert load_config(str(run.config)) != config
        assert "plan.json is damaged, so whether" in caplog.text


def test_a_comparison_and_a_study_start_from_theirs(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("preset: demo\nbudget_images: 640\nbase: {training: {batch_size: 64}}\n")
    found, preset = load_comparison(str(file)), load_comparison("demo")
    assert (found.budget_images, found.rows) == (640, preset.rows)
    assert found.base == preset.base | {"training": preset.base["training"] | {"batch_size": 64}}
    file.write_text("preset: search-ratios\nseeds: [3]\n")
    study, original = find_study(str(file), []), find_study("search-ratios", [])
    assert study is not None
    assert original is not None
    assert study == original.model_copy(update={"seeds": (3,)})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("preset: demo-mem", "preset is 'demo-mem', which is none; did you mean 'demo-meme'"),
        ("preset: [demo-meme]", "preset is ['demo-meme'], which is none"),
        ("preset: demo-search", "space: unknown key; a study has a space"),
        ("presets: demo-meme", "say preset: NAME"),
        ("base: demo-meme", "say preset: NAME"),
        ("extends: demo-meme", "say preset: NAME"),
        ("traning: {}", "traning: unknown key; did you mean 'training'?"),
        ("space: {}", "is carried out by rememe search"),
        ("rows: {}", "is carried out by rememe compare"),
    ],
)
def test_other_keys_at_the_top_are_told_what_is_meant(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(str(file))
    assert told in str(raised.value)
