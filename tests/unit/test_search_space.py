"""Spaces and studies: every draw is a valid run description, grids are whole, and mistakes are one sentence."""

import itertools
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.search.space.condition import Condition
from orchestrator.search.space.distributions import KINDS
from orchestrator.search.space.points import flat_numbers, shown
from orchestrator.search.space.sources import RandomSource
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.find import find_study
from orchestrator.search.study.study import Study
from workloads.config.load import apply_value, validate
from workloads.errors import ConfigError

COMMON = {
    "name": "r",
    "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
    "training": {"images": 64, "batch_size": 32},
    "evaluation": "demo",
}
REMIX = COMMON | {
    "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
    "strategy": {"kind": "remix", "num_experts": 8},
}
IUNET = {
    "kind": "iunet",
    "channels": 16,
    "channel_mult": [1, 2, 3],
    "attention_levels": [2],
    "head_dim": 8,
    "norm_groups": 8,
    "mixer_levels": [1, 2],
    "attention_share": ["1/2", "1/2"],
    "pool_sizes": [2, 1],
}
MEME = COMMON | {
    "model": IUNET,
    "strategy": {
        "kind": "meme",
        "experts": [{"specialisation": 0.5}, {"specialisation": 0.3}, {"specialisation": 0.1}],
    },
}
INDEPENDENT = COMMON | {"model": IUNET, "strategy": {"kind": "independent", "num_experts": 4}}

SHARES = "strategy.experts.*.model.attention_share"
ALL_LAWS = ["free", "equal_t", "equal_log_snr"]

SPACES: dict[str, dict[str, Any]] = {
    "meme": {
        "base": MEME,
        "space": {
            "strategy.cuts": {"boundaries": {"num_experts": 3, "law": ALL_LAWS, "step": 25}},
            SHARES: {"split_ratios": {"monotone": True}},
            "strategy.experts.*.specialisation": {"each": [0.1, 0.5, 1]},
            "diffusion.num_timesteps": {"choice": [100, 500, 1000]},
            "diffusion.schedule": {"choice": ["linear", "squaredcos_cap_v2"]},
            "training.learning_rate": {"log_uniform": [1e-5, 1e-2]},
        },
    },
    "independent": {
        "base": INDEPENDENT,
        "space": {
            "model.attention_share": {"split_ratios": {"at_least": 0, "at_most": 1, "same_for_all_levels": True}},
            "model.head_dim": {"choice": [2, 4, 8, 16]},
            "strategy.cuts": {"boundaries": {"num_experts": [1, 2, 5], "law": ALL_LAWS, "step": 100}},
            "strategy.specialisation": {"uniform": [0.0, 1.0]},
            "training.warmup_images": {"int": [0, 99]},
        },
    },
    "remix": {
        "base": REMIX,
        "space": {
            "strategy.num_bases": {"int": [1, 8]},
            "strategy.cuts": {"boundaries": {"cuts": [[500], [100, 200, 300], list(range(100, 1000, 100))]}},
            "strategy.mixer": {"choice": ["softmax", "raw", "one_hot", "per_layer", "continuous"]},
            "training.learning_rate": {"log_uniform": [1e-5, 1e-2]},
            "training.label_dropout": {"uniform": [0.0, 0.5]},
        },
        "conditions": ["strategy.num_bases < strategy.num_experts"],
    },
}


def study(**changes: Any) -> Study:
    return validate(Study, {"name": "s", "base": REMIX, "budget": {"num_configurations": 20}} | changes)


def configurations(**changes: Any) -> Configurations:
    return Configurations(study(**changes))


def chance(seed: int = 0) -> RandomSource:
    return RandomSource(random.Random(seed))


@pytest.mark.parametrize("name", SPACES)
@given(seed=st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_every_admitted_draw_is_a_valid_run_description(name: str, seed: int) -> None:
    made, source = configurations(**SPACES[name]), chance(seed)
    for _ in range(25):
        values = made.point(source)
        num_cuts = len(values["strategy.cuts"])
        assert json.loads(json.dumps(values)) == values
        assert made.admits(values) == (values.get("strategy.num_bases", 0) <= num_cuts)
        if made.admits(values):
            assert len(made.config(values, "x").intervals) == num_cuts + 1


@pytest.mark.parametrize("name", SPACES)
def test_the_same_seed_finds_the_same_configurations(name: str) -> None:
    made = configurations(**SPACES[name], seed=7)
    found = list(made)
    assert len(found) == 20
    assert [config.name for _, config in found] == [f"s-{index:04d}" for index in range(20)]
    assert found == list(configurations(**SPACES[name], seed=7))
    assert found != list(configurations(**SPACES[name], seed=8))
    made.check()


class Recorder(RandomSource):
    """Notes what was drawn under each name."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.drawn: dict[str, Any] = {}

    def note(self, name: str, value: Any) -> Any:
        assert name not in self.drawn
        assert "*" not in name or name[-1].isdigit()
        self.drawn[name] = value
        return value

    def category(self, name: str, options: Sequence[Any]) -> Any:
        return self.note(name, super().category(name, options))

    def real(self, name: str, lo: float, hi: float, *, log: bool) -> float:
        return self.note(name, super().real(name, lo, hi, log=log))

    def whole(self, name: str, lo: int, hi: int) -> int:
        return self.note(name, super().whole(name, lo, hi))

    def combination(self, name: str, num_places: int, num_chosen: int) -> list[int]:
        chosen = super().combination(name, num_places, num_chosen)
        return [self.note(f"{name}.{index}", place) for index, place in enumerate(chosen)]


class Replay:
    """Gives every number by its name."""

    def __init__(self, drawn: dict[str, Any]) -> None:
        self._drawn = drawn

    def category(self, name: str, options: Sequence[Any]) -> Any:
        return self._drawn[name]

    def real(self, name: str, lo: float, hi: float, *, log: bool) -> float:
        return self._drawn[name]

    def whole(self, name: str, lo: int, hi: int) -> int:
        return self._drawn[name]

    def combination(self, name: str, num_places: int, num_chosen: int) -> list[int]:
        return [self._drawn[f"{name}.{index}"] for index in range(num_chosen)]


@pytest.mark.parametrize("name", SPACES)
def test_a_point_is_a_function_of_named_numbers(name: str) -> None:
    made, rng = configurations(**SPACES[name]), random.Random(3)
    for _ in range(30):
        recorder = Recorder(rng)
        values = made.point(recorder)
        assert made.point(Replay(recorder.drawn)) == values


def test_a_grid_is_every_combination_that_satisfies_the_conditions() -> None:
    space = {
        "strategy.num_bases": {"int": [1, 4]},
        "strategy.cuts": {"boundaries": {"num_experts": [1, 2, 3], "step": 400}},
        "training.batch_size": {"choice": [16, 32]},
    }
    made = configurations(space=space, conditions=["strategy.num_bases <= strategy.num_experts"], sampler="grid")
    sets = [list(cuts) for number in range(3) for cuts in itertools.combinations([400, 800], number)]
    every = [
        {"strategy.num_bases": bases, "training.batch_size": size, "strategy.cuts": cuts}
        for bases, size, cuts in itertools.product(range(1, 5), [16, 32], sets)
    ]
    assert list(made.grid_points()) == every
    wanted = [values for values in every if values["strategy.num_bases"] <= len(values["strategy.cuts"]) + 1]
    assert len(wanted) < 20
    assert [values for values, _ in made] == wanted
    made.check()


def test_a_grid_follows_what_its_other_fields_change() -> None:
    space = {
        "strategy.cuts": {"boundaries": {"num_experts": 2, "step": 100}},
        "diffusion.num_timesteps": {"choice": [200, 300]},
    }
    found = [tuple(values.values()) for values in configurations(space=space, sampler="grid").grid_points()]
    assert found == [(200, [100]), (300, [100]), (300, [200])]


def test_a_grid_is_not_kept_in_memory() -> None:
    space = {
        "strategy.cuts": {"boundaries": {"num_experts": 9, "step": 1}},
        "training.warmup_images": {"int": [0, 10**9]},
    }
    first = list(itertools.islice(configurations(space=space, sampler="grid").grid_points(), 2))
    assert [values["strategy.cuts"][-1] for values in first] == [8, 9]


def test_the_grid_of_the_example_is_every_combination() -> None:
    made = find_study("search-ratios", [])
    assert made is not None
    points = [tuple(map(str, values.values())) for values, _ in Configurations(made)]
    assert len(points) == len(set(points)) == 3**4
    assert find_study("demo-meme", []) is None


def test_conditions_compare_fields_and_numbers() -> None:
    described = {"a": {"b": 3}, "c": [1, 5], "share": ["3/8", "1/2"]}
    cases = {
        "a.b < c.1": True,
        "a.b>=c.1": False,
        "a.b == 3": True,
        "c.0 <= 5e-1": False,
        "c.0 > -1": True,
        "share.0 < share.1": True,
        "share.0 == 3/8": True,
        "share.1 <= 0.4": False,
    }
    for text, holds in cases.items():
        assert validate(Condition, text).holds(described) is holds


def test_conditions_count_defaults_and_rule_out_what_is_invalid_too() -> None:
    # num_bases is 4 by default, which is more than two experts can use.
    space = {"strategy.num_experts": {"choice": [2, 4, 8]}}
    made = configurations(space=space, conditions=["strategy.num_bases <= strategy.num_experts"], sampler="grid")
    assert [values["strategy.num_experts"] for values, _ in made] == [4, 8]
    assert not made.admits({"strategy.num_experts": 2})
    with pytest.raises(ConfigError, match="num_bases is 4, but 2 experts"):
        made.config({"strategy.num_experts": 2}, "x")


def test_the_space_may_give_what_the_base_lacks_or_says_otherwise() -> None:
    model = {key: value for key, value in IUNET.items() if key != "attention_share"}
    strategy = {"kind": "independent", "cuts": [100, 900]}
    space = {"model.attention_share": {"split_ratios": {}}, "strategy.num_experts": {"choice": [2]}}
    made = configurations(base=INDEPENDENT | {"model": model, "strategy": strategy}, space=space, sampler="grid")
    assert {tuple(config.intervals.cuts) for _, config in made} == {(500,)}


def test_a_named_protocol_is_spelt_out() -> None:
    assert study(**SPACES["remix"]).base_raw["evaluation"] == {"name": "demo"}


def test_values_are_shown_briefly_or_exactly() -> None:
    values = {"rate": 0.1 + 0.2, "e.0.share": ["1/4"], "e.1.share": [0.5, 3], "name": "a'b"}
    assert shown(values, "rate") == "0.3"
    assert float(shown(values, "rate", digits=17)) == 0.1 + 0.2
    assert shown(values, "e.*.share") == "[1/4]  [0.5, 3]"


def test_flat_numbers_are_one_per_element() -> None:
    values = {"a.share": ["3/8", "1"], "cuts": [], "n": 3, "law": "linear", "on": True, "m": {"kind": "dit", "d": [2]}}
    assert flat_numbers(values) == {
        "a.share.0": 0.375,
        "a.share.1": 1.0,
        "n": 3.0,
        "law": "linear",
        "on": "True",
        "m.kind": "dit",
        "m.d.0": 2.0,
    }


CUTS, RATE, SHARE = "strategy.cuts", "training.learning_rate", "model.attention_share"


def one(path: str, distribution: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"space": {path: distribution}} | changes


def condition(text: str) -> dict[str, Any]:
    return one("training.warmup_images", {"int": [0, 9]}, conditions=[text])


def test_a_section_in_a_space_keeps_what_it_does_not_name() -> None:
    space = {"training": {"choice": [{"batch_size": 8}, {"batch_size": 16, "images": 5000}]}}
    dotted = {"training.batch_size": {"choice": [8]}}
    sections = [config for _, config in configurations(space=space, sampler="grid")]
    assert sections[0].training == configurations(space=dotted, sampler="grid").first()[1].training
    assert sections[1].training == sections[0].training.model_copy(update={"batch_size": 16, "images": 5000})


def test_a_section_in_a_space_replaces_what_stands_for_the_same() -> None:
    base = REMIX | {"strategy": {key: value for key, value in REMIX["strategy"].items() if key != "num_experts"}}
    base["strategy"]["cuts"] = [500]
    space = {"strategy": {"choice": [{"num_experts": 4}]}}
    assert configurations(space=space, sampler="grid", base=base).first()[1].strategy.num_jobs == 1


BAD = {
    "no distribution": (one(RATE, {"choices": [1]}), "did you mean 'choice'?"),
    "empty choice": (one(RATE, {"choice": []}), "training.learning_rate: choice is []"),
    "no JSON": (one(RATE, {"choice": [{1, 2}]}), "is neither number, text, list nor mapping"),
    "empty range": (one(RATE, {"uniform": [1.0, 0.5]}), "the first must be below"),
    "endless range": (one(RATE, {"log_uniform": [1.0, math.inf]}), "log_uniform.1 is inf; it must be a finite number"),
    "unknown key": (one(CUTS, {"boundaries": {"num_expert": 4}}), "did you mean 'num_experts'?"),
    "path": (one("training..x", {"int": [1, 2]}), "'training..x' is no path"),
    "star without each": (one("strategy.experts.*.x", {"choice": [1]}), "a path with * takes each"),
    "each without star": (one("strategy.x", {"each": [1]}), "each takes a path with *"),
    "twice": (
        {"space": {SHARES: {"split_ratios": {}}, "strategy.experts.0.model.attention_share": {"choice": [[1]]}}},
        "give the same field a value",
    ),
    "twice by a star": (
        {"space": {"strategy.experts.0.model.attention_share": {"choice": [[1]]}, SHARES: {"split_ratios": {}}}},
        "give the same field a value",
    ),
    "a section and its field": (
        {"space": {"training": {"choice": [{"batch_size": 8}]}, "training.batch_size": {"choice": [16]}}},
        "training and training.batch_size give the same field a value; leave one of them out",
    ),
    "a list and its elements": (
        {"space": {SHARES: {"split_ratios": {}}, "strategy.experts": {"choice": [[{"specialisation": 0.1}]]}}},
        "give the same field a value",
    ),
    "no list": (one("strategy.experts.*.x", {"each": [1]}), "the base has no list at strategy.experts"),
    "unknown field": (one("training.batchsize", {"choice": [1]}), "did you mean 'batch_size'?"),
    "invalid value": (one("training.batch_size", {"choice": [-1]}), "training.batch_size is -1"),
    "contradiction": (
        one("strategy.num_bases", {"choice": [4, 5]}, conditions=["strategy.num_bases > 5"]),
        "no configuration of study s satisfies its conditions: strategy.num_bases > 5",
    ),
    "condition": (condition("a of b"), "is not of the form"),
    "condition on nothing": (
        condition("strategy.num_base < 3"),
        "no field strategy.num_base; did you mean 'num_bases'?",
    ),
    "condition beyond a list": (condition("strategy.mixed.9 < 3"), "no field strategy.mixed.9; Known: 0, 1, 2, 3"),
    "condition below a number": (condition("seed.x < 3"), "a configuration has no field seed.x"),
    "condition on a list": (condition("strategy.mixed < 3"), "name one of its elements, like strategy.mixed.0"),
    "condition on None": (condition("training.micro_batch_size < 3"), "is None, which is no number"),
    "law": (one(CUTS, {"boundaries": {"num_experts": 4, "law": "equal_snr"}}), "did you mean 'equal_log_snr'?"),
    "no law": (one(CUTS, {"boundaries": {"num_experts": 4, "law": []}}), "boundaries.law is []"),
    "no experts": (one(CUTS, {"boundaries": {"num_experts": 0}}), "boundaries.num_experts.0 is 0"),
    "neither": (one(CUTS, {"boundaries": {"step": 5}}), "give either num_experts or cuts"),
    "step for cuts": (one(CUTS, {"boundaries": {"cuts": [[500]], "step": 5}}), "law and step have no effect"),
    "coarse": (one(CUTS, {"boundaries": {"num_experts": 9, "step": 200}}), "8 cuts do not fit on the 4 multiples"),
    "falling cuts": (one(CUTS, {"boundaries": {"cuts": [[500], [500, 400]]}}), "space.strategy.cuts: cuts must rise"),
    "cuts outside": (one(CUTS, {"boundaries": {"cuts": [[500, 1000]]}}), "inside (0, 1000); found 1000"),
    "wrong count": (one(CUTS, {"boundaries": {"num_experts": 4}}, base=MEME), "there are 3 experts"),
    "two counts": (
        {"space": {CUTS: {"boundaries": {"num_experts": 4}}, "strategy.num_experts": {"choice": [4]}}},
        "give either num_experts or cuts",
    ),
    "bad schedule": (
        one(CUTS, {"boundaries": {"num_experts": 4}}, base=REMIX | {"diffusion": {"schedule": "cosine"}}),
        "diffusion: schedule is 'cosine'",
    ),
    "no iunet": (one(SHARE, {"split_ratios": {}}), "model is of kind dit; split_ratios needs kind iunet"),
    "no iunet expert": (
        one(SHARES, {"split_ratios": {}}, base=apply_value(MEME, "strategy.experts.1.model", {"kind": "ldm_unet"})),
        "strategy.experts.1.model is of kind ldm_unet",
    ),
    "bad iunet": (
        one(SHARE, {"split_ratios": {}}, base=apply_value(MEME, "model.head_dims", 8)),
        "model: head_dims: unknown key; did you mean 'head_dim'?",
    ),
    "level": (one(SHARE, {"split_ratios": {}}, base=apply_value(MEME, "model.mixer_levels", [7])), "levels 0 to 2"),
    "split path": (
        one("model.shares", {"split_ratios": {}}, base=MEME),
        "split_ratios goes with model.attention_share",
    ),
    "bounds": (one(SHARE, {"split_ratios": {"at_least": 0.5, "at_most": 0.25}}), "at_least 1/2 exceeds at_most 1/4"),
    "no share": (
        one(SHARE, {"split_ratios": {"at_most": "1/5"}}, base=MEME),
        "no share between 0 and 1/5 will do for each level of model; its shares are multiples of 1/4 at level 1, 1/6",
    ),
    "no common share": (
        one(SHARES, {"split_ratios": {"same_for_all_levels": True, "at_least": "3/5"}}, base=MEME),
        "no share between 3/5 and 1 will do for all levels of strategy.experts.0.model",
    ),
    "nothing rises": (one(SHARE, {"split_ratios": {"monotone": True}}, base=MEME), "monotone compares experts"),
    "levels differ": (
        one(
            SHARES,
            {"split_ratios": {"monotone": True}},
            base=apply_value(MEME, "strategy.experts.1.model", {"mixer_levels": [1], "pool_sizes": [1]}),
        ),
        "experts differ in their number of mixer_levels",
    ),
    "continuous grid": (
        one(RATE, {"uniform": [0.1, 0.2]}, sampler="grid"),
        "space.training.learning_rate is continuous",
    ),
    "endless": (one("strategy.num_bases", {"int": [1, 4]}, budget={}), "budget: missing"),
    "a seed twice": (one(RATE, {"choice": [1]}, seeds=[0, 0]), "seeds: seed 0 is there twice; each counts as one more"),
    "another protocol": (one("evaluation.num_samples", {"choice": [10]}), "compares under one protocol"),
}


@pytest.mark.parametrize(("changes", "expected"), BAD.values(), ids=BAD.keys())
def test_mistakes_are_one_sentence(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        configurations(**changes).check()
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_distribution_is_tried_here() -> None:
    tried = {kind for made in SPACES.values() for distribution in made["space"].values() for kind in distribution}
    assert tried == set(KINDS)
