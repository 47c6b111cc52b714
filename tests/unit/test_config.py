"""Run descriptions: presets, overrides, intervals, and errors in one sentence with the near miss."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.config import RunConfig, load_config
from workloads.config.intervals import IntervalTable, uniform_cuts
from workloads.config.load import apply_override
from workloads.errors import ConfigError
from workloads.presets import list_presets


@pytest.mark.parametrize("name", list_presets())
def test_presets_load_and_survive_a_round_trip(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config


@given(st.integers(1, 64), st.integers(64, 2000))
def test_uniform_intervals_partition_the_timesteps(num_experts: int, num_timesteps: int) -> None:
    table = IntervalTable(uniform_cuts(num_experts, num_timesteps), num_timesteps)
    assert len(table) == num_experts
    owners = [index for index, interval in enumerate(table) for _ in range(interval.lo, interval.hi)]
    assert owners == [table.expert_of(t) for t in range(num_timesteps)]  # every timestep once, in order
    sizes = [interval.num_timesteps for interval in table]
    assert max(sizes) - min(sizes) <= 1


@given(st.sets(st.integers(1, 999), max_size=12))
def test_any_cuts_make_a_table(cuts: set[int]) -> None:
    table = IntervalTable(sorted(cuts), 1000)
    for timestep in (0, 999, *cuts):
        interval = table[table.expert_of(timestep)]
        assert interval.lo <= timestep < interval.hi


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_timestep_outside_has_no_expert(timestep: int) -> None:
    with pytest.raises(ValueError, match=f"timestep {timestep} is outside"):
        IntervalTable([500], 1000).expert_of(timestep)


def test_overrides_reach_into_lists_and_leave_the_original_alone(tiny_run: dict[str, Any]) -> None:
    changed = apply_override(tiny_run, "strategy.experts.1.specialisation=0.9")
    assert changed["strategy"]["experts"][1]["specialisation"] == 0.9
    assert tiny_run["strategy"]["experts"][1]["specialisation"] == 0.4


def test_experts_take_what_they_do_not_name_from_the_run(tiny_run: dict[str, Any]) -> None:
    config = RunConfig.model_validate(tiny_run)
    models = [expert.model for expert in config.strategy.experts]  # type: ignore[union-attr]
    assert [str(model.attention_share[0]) for model in models] == ["1/4", "1/2", "1/2", "3/4"]  # type: ignore[union-attr]
    assert {model.channels for model in models} == {8}  # type: ignore[union-attr]


def test_a_single_network_is_one_job_whatever_its_specialisation(tiny_run: dict[str, Any]) -> None:
    from workloads.config import DataSpec

    data = DataSpec(fingerprint="f", channels=3, image_size=8, num_classes=10)
    single = RunConfig.model_validate(tiny_run | {"strategy": {"kind": "single"}}).jobs(data)
    soft = RunConfig.model_validate(
        tiny_run | {"strategy": {"kind": "independent", "num_experts": 1, "specialisation": 0.3}}
    ).jobs(data)
    assert [job.key for job in single] == [job.key for job in soft]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainin.x=1", "trainin: unknown key; did you mean 'training'?"),
        ("name=a/b", "it must be letters, digits, '.', '_' and '-', and begin with a letter or a digit"),
        ("strategy.experts=[]", "strategy.experts is []; it must have at least 1 item(s)"),
        ("evaluation.inception_sha256=abc", "it must be 64 hexadecimal digits, in small letters"),
        ("training.learning_rte=1", "training.learning_rte: unknown key; did you mean 'learning_rate'?"),
        ("training.batch_size=0", "training.batch_size is 0; it must be greater than or equal to 1"),
        ("training.batch_size=many", "training.batch_size is 'many'"),
        ("strategy.kind=mem", "meme"),
        ("strategy.cuts=[250,500]", "2 cuts make 3 intervals, but there are 4 experts"),
        ("strategy.cuts=[0,500,750]", "found 0"),
        ("strategy.cuts=[700,500,750]", "found 700 followed by 500"),
        ("strategy.experts.0.specialisation=2", "strategy.experts.0.specialisation is 2"),
        ("strategy.experts.9.specialisation=1", "is not an index below 4"),
        ("evaluation.sampling.num_steps=5000", "num_steps 5000 exceeds diffusion.num_timesteps 1000"),
        ("model.attention_share=[1/3]", "attention_share 1/3"),
    ],
)
def test_errors_name_the_field_the_value_and_the_way_out(
    tmp_path: Path, tiny_run: dict[str, Any], override: str, expected: str
) -> None:
    import yaml

    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_run))
    with pytest.raises(ConfigError) as raised:
        load_config(str(file), [override])
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sampler=EulerDiscreteScheduler"], "EulerDiscreteScheduler cannot take the learned variance"),
        (["sampler=euler"], "it must be ddim, dpm++, ddpm or a scheduler of diffusers"),
        (["sampler=EulerDiscreteScheduler", "variance=fixed"], None),
        (["sampler=DDPMScheduler"], None),
        (["sampler=dpm++"], None),
    ],
    ids=str,
)
def test_a_scheduler_must_take_a_learned_variance_or_be_told_to_leave_it_out(
    overrides: list[str], expected: str | None
) -> None:
    changes = [f"evaluation.sampling.{override}" for override in overrides]
    if expected is None:
        load_config("imagenet256-remix-b-4-20", changes)
        return
    with pytest.raises(ConfigError) as raised:
        load_config("imagenet256-remix-b-4-20", changes)
    assert expected in str(raised.value)
    with pytest.raises(ConfigError, match=r"no network learns one; set model\.variance"):
        load_config("demo-remix", ["evaluation.sampling.sampler=ddpm", "evaluation.sampling.variance=learned"])


def test_fields_that_came_later_leave_what_is_written_as_it_was() -> None:
    sampling = load_config("demo-meme").evaluation.sampling
    assert sampling.model_dump().keys() == {"sampler", "num_steps", "eta", "guidance_scale"}
    changed = sampling.model_copy(update={"guidance_channels": 3})
    assert changed.model_dump().keys() == sampling.model_dump().keys() | {"guidance_channels"}


@pytest.mark.parametrize(
    ("text", "expected"), [("a: [", "YAML"), ("- 1\n- 2", "mapping"), ("", "mapping"), ("a: 1\na: 2", "")]
)
def test_files_that_are_no_description_are_named(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(str(file), [])
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_reference_of_another_size_is_refused_when_it_is_read() -> None:
    with pytest.raises(ConfigError, match=r"reference\.image_size is 32 and data\.image_size 20; a score compares"):
        load_config("demo-meme", ["reference={kind: embedded, image_size: 32}"])
    same = load_config("demo-meme", ["reference={kind: embedded, image_size: 20}"])
    assert same.reference is not None
