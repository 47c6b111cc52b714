"""Spaces: every draw is a valid run description, laws are what they say, and mistakes are one sentence."""

import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.search.describe import find_study
from orchestrator.search.space import Boundaries, Condition, Each, LogUniform
from orchestrator.search.study import Study
from workloads.config import RunConfig
from workloads.config.load import validate
from workloads.errors import ConfigError

REMIX = {
    "name": "r",
    "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
    "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
    "strategy": {"kind": "remix", "num_experts": 8},
    "training": {"images": 64, "batch_size": 32},
    "evaluation": "demo",
}


def study(**changes: Any) -> Study:
    raw = {"name": "s", "base": REMIX, "num_configurations": 20} | changes
    return validate(Study, raw)


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_every_draw_is_a_valid_run_description(seed: int) -> None:
    space = {
        "strategy.num_bases": {"int": [1, 8]},
        "strategy.num_experts": {"choice": [2, 4, 6, 7, 16]},
        "strategy.mixer": {"choice": ["softmax", "raw", "one_hot", "per_layer", "continuous"]},
        "training.learning_rate": {"log_uniform": [1e-5, 1e-2]},
        "training.label_dropout": {"uniform": [0.0, 0.5]},
    }
    made = study(space=space, conditions=["strategy.num_bases < strategy.num_experts"], seed=seed)
    found = list(made.configurations())
    assert len(found) == 20
    for values, config in found:
        assert isinstance(config, RunConfig)
        assert values["strategy.num_bases"] < values["strategy.num_experts"]
        assert 1e-5 <= config.training.learning_rate <= 1e-2
    assert [values for values, _ in made.configurations()] == [values for values, _ in found]


@given(st.integers(1, 7), st.sampled_from([50, 100, 125]), st.integers(0, 1000))
@settings(deadline=None)
def test_boundaries_are_ordered_cuts_on_the_step(num_experts: int, step: int, seed: int) -> None:
    cuts = Boundaries.model_validate({"boundaries": {"num_experts": num_experts, "step": step}}).draw(
        random.Random(seed)
    )
    assert len(cuts) == num_experts - 1
    assert cuts == sorted(set(cuts))
    assert all(0 < cut < 1000 and cut % step == 0 for cut in cuts)


def test_all_cuts_are_equally_likely() -> None:
    law = Boundaries.model_validate({"boundaries": {"num_experts": 3, "step": 200}})
    rng, options = random.Random(0), law.grid()
    assert len(options) == math.comb(4, 2)
    counts = Counter(tuple(law.draw(rng)) for _ in range(6000))
    chi2 = sum((counts[tuple(cuts)] - 1000) ** 2 / 1000 for cuts in options)
    assert chi2 < 5 + 4 * math.sqrt(10)  # 5 degrees of freedom; 4 sigma


def test_all_monotone_sequences_are_equally_likely() -> None:
    law = Each.model_validate({"each": ["a", "b", "c"], "monotone": True})
    expected = [seq for seq in itertools.product("abc", repeat=3) if list(seq) == sorted(seq)]
    assert sorted(law.grid(3)) == sorted(expected)
    rng = random.Random(1)
    counts = Counter(law.draw(rng, 3) for _ in range(10_000))
    assert set(counts) == set(expected)
    chi2 = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi2 < 9 + 4 * math.sqrt(18)


def test_the_logarithm_is_uniform() -> None:
    rng, law = random.Random(0), LogUniform.model_validate({"log_uniform": [1e-4, 1e-2]})
    below = sum(law.draw(rng) < 1e-3 for _ in range(10_000))
    assert abs(below - 5000) < 4.5 * 50


def test_conditions_compare_fields_and_numbers() -> None:
    raw = {"a": {"b": 3}, "c": [1, 5]}
    for text, holds in {"a.b < c.1": True, "a.b>=c.1": False, "a.b == 3": True, "c.0 <= 0.5": False}.items():
        assert validate(Condition, text).holds(raw) is holds


def test_the_grid_of_the_example_is_every_combination() -> None:
    made = find_study("search-ratios", [])
    assert made is not None
    points = [tuple(map(str, values.values())) for values, _ in made.configurations()]
    assert len(points) == len(set(points)) == 3**4
    assert find_study("demo-meme", []) is None


BAD = {
    "no distribution": ({"space": {"training.batch_size": {"choices": [1]}}}, "did you mean 'choice'?"),
    "empty choice": ({"space": {"training.batch_size": {"choice": []}}}, "training.batch_size"),
    "empty range": ({"space": {"training.learning_rate": {"uniform": [1.0, 0.5]}}}, "the first must be below"),
    "star without each": ({"space": {"strategy.experts.*.x": {"choice": [1]}}}, "a path with * takes each"),
    "no list": ({"space": {"strategy.experts.*.x": {"each": [1]}}}, "the base has no list at strategy.experts"),
    "unknown field": ({"space": {"training.batchsize": {"choice": [1]}}}, "did you mean 'batch_size'?"),
    "invalid value": ({"space": {"training.batch_size": {"choice": [-1]}}}, "training.batch_size is -1"),
    "contradiction": (
        {"space": {"strategy.num_bases": {"choice": [4, 5]}}, "conditions": ["strategy.num_bases > 5"]},
        "no configuration of study s satisfies its conditions: strategy.num_bases > 5",
    ),
    "condition": ({"space": {"seed": {"int": [0, 9]}}, "conditions": ["a of b"]}, "is not of the form"),
    "cuts": ({"space": {"strategy.cuts": {"boundaries": {"num_experts": 9, "step": 200}}}}, "do not fit on the 4"),
    "continuous grid": (
        {"space": {"training.learning_rate": {"uniform": [0.1, 0.2]}}, "sampler": "grid"},
        "space.training.learning_rate is continuous",
    ),
    "endless": ({"space": {"seed": {"int": [0, 9]}}, "num_configurations": None}, "num_configurations: missing"),
}


@pytest.mark.parametrize(("changes", "expected"), BAD.values(), ids=BAD.keys())
def test_mistakes_are_one_sentence(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        list(study(**changes).configurations())
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
