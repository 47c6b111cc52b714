"""Run descriptions nobody would write: each is read right, or refused in one sentence; none ends in a traceback."""

import random
import time
import types
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from workloads.config import RunConfig, load_config
from workloads.config.load import load_comparison
from workloads.errors import ConfigError, RememeError
from workloads.models.build import build_model
from workloads.models.cost import model_cost

SEED = 12

BASES = {
    "meme": "demo-meme",
    "remix": "demo-remix",
    "dit": "imagenet256-remix-s-4-8",
    "unet": "ffhq256-meme",
}

VALUES = {
    "1e6": 1_000_000, "017": 17, "0x10": 16, "1_000": 1000, "1": 1, "2": 2, "3": 3, "7": 7, "0": 0, "-1": -1,
    "0.5": 0.5, "1e-320": 1e-320, "1e308": 1e308, "9223372036854775807": 2**63 - 1, "1000000000": 10**9,
}  # fmt: skip
"""Numbers, and what they are."""

OTHERS = [
    ".inf", "-.inf", ".nan", "''", "~", "true", "no", "[]", "{}", "[1, 2]", "{a: 1}", "[[[]]]", "2024-99-99", "1:30",
    "9" * 30, "9" * 5000, "1e999", "~/x", "~nobody/x", "$NOPE/x", "'a/b'", "'../../x'", "x" * 300, "y/" * 3000,
    "\u00b2", "'\u00b2'", "0x_", "!!python/object:os.system x", "!!binary aa", "&a [*a]", "*b", "'1/0'", "'inf'",
    "'nan'", "'%s %d'", "'[bold]x[/]'", '"a\\nb"', '"\\0"', "'\u202e'", "single", "meme", "dit", "iunet", "remix",
    "prepared", "embedded", "{kind: dit}", "{kind: single, x: 1}", "fid2k", "S",
]  # fmt: skip


def fields_of(annotation: Any, prefix: str = "") -> Iterator[str]:
    """Every field of a section, of every kind it can be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield f"{prefix}{name}"
            yield from fields_of(field.annotation, f"{prefix}{name}.")
    elif get_origin(annotation) in {tuple, list}:
        yield f"{prefix}0"
        yield f"{prefix}\u00b2"
        yield from fields_of(get_args(annotation)[0], f"{prefix}0.")
    elif get_origin(annotation) in {Union, types.UnionType, Annotated}:
        for part in get_args(annotation):
            yield from fields_of(part, prefix)


FIELDS = sorted(set(fields_of(RunConfig)))


def value_at(config: RunConfig, path: str) -> Any:
    node: Any = config.model_dump(mode="python")
    for key in path.split("."):
        node = node[int(key)] if isinstance(node, list | tuple) else node[key]
    return node


def try_one(draw: random.Random) -> str:
    """One hostile description; why it is refused, or that it is read. Raises what rememe raises otherwise."""
    overrides = {draw.choice(FIELDS): draw.choice([*VALUES, *OTHERS]) for _ in range(draw.choice([1, 1, 2, 3]))}
    began_s = time.perf_counter()
    try:
        config = load_config(draw.choice(list(BASES.values())), [f"{path}={text}" for path, text in overrides.items()])
        if len(overrides) == 1:
            ((path, text),) = overrides.items()
            # What is accepted is what it looks like; a name may be anything, and a path is one.
            if text in VALUES and isinstance(found := value_at(config, path), int | float):
                assert found == type(found)(VALUES[text]), (path, text)
        classes = config.data.num_classes if config.data.class_conditional else None
        shape = {"channels": config.data.channels, "image_size": config.data.image_size, "num_classes": classes}
        model_cost(config.model, **shape)
        outcome = "read"
    except RememeError as error:
        outcome = str(error)
    assert time.perf_counter() - began_s < 60, overrides
    return outcome


def test_hostile_descriptions_are_read_or_refused(pytestconfig: pytest.Config) -> None:
    draw = random.Random(SEED)
    outcomes = [try_one(draw) for _ in range(pytestconfig.getoption("--num-fuzzed"))]
    assert len(FIELDS) > 90
    sentences = [outcome for outcome in outcomes if outcome != "read"]
    assert len(outcomes) // 2 < len(sentences) < len(outcomes)
    assert [sentence for sentence in sentences if "\n" in sentence or not 10 < len(sentence) < 1500] == []


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


def test_networks_larger_than_any_machine_are_refused_by_arithmetic() -> None:
    began_s = time.perf_counter()
    for changes, told in (
        (["model.hidden_size=65536", "model.num_heads=8", "model.depth=256"], "model would have about 2e"),
        (["data.image_size=16384", "model.patch_size=1"], "268,435,456 tokens"),
    ):
        config = load_config("imagenet256-remix-s-4-8", changes)
        with pytest.raises(ConfigError, match=told):
            build_model(config.model, channels=4, image_size=config.data.image_size, num_classes=10)
    config = load_config("demo-meme", ["model.num_res_blocks=100"])
    with pytest.raises(ConfigError, match="blocks; at most 400"):
        build_model(config.model, channels=1, image_size=28, num_classes=10)
    assert time.perf_counter() - began_s < 5
