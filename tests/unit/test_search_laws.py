"""Laws of what may vary: every outcome as likely as it is said to be, and grids against brute force."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.search.space.context import Context
from orchestrator.search.space.fields import LogUniform
from orchestrator.search.space.laws import Boundaries, Each
from orchestrator.search.space.points import Values
from orchestrator.search.space.sources import RandomSource
from orchestrator.search.space.split_ratios import SplitRatios
from workloads.config import IUNetConfig
from workloads.config.load import apply_value
from workloads.errors import ConfigError

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
BASE: dict[str, Any] = {"model": IUNET, "strategy": {"experts": [{}, {}, {}]}}
SHARES = "strategy.experts.*.model.attention_share"


def chance(seed: int = 0) -> RandomSource:
    return RandomSource(random.Random(seed))


def draws(law: Any, path: str, base: dict[str, Any], number: int) -> list[Values]:
    source, context = chance(), Context(base)
    return [law.draw(source, path, context) for _ in range(number)]


def assert_equally_likely(found: Iterable[Hashable], expected: Sequence[Hashable]) -> None:
    """Pearson's chi-square within four of its standard deviations."""
    counts = Counter(found)
    assert set(counts) <= set(expected)
    mean = counts.total() / len(expected)
    freedom = len(expected) - 1
    assert sum((counts[item] - mean) ** 2 / mean for item in expected) < freedom + 4 * math.sqrt(2 * freedom)


@given(st.integers(1, 7), st.sampled_from([50, 100, 125]), st.integers(0, 1000))
@settings(deadline=None)
def test_free_boundaries_are_rising_cuts_on_the_step(num_experts: int, step: int, seed: int) -> None:
    law = Boundaries.model_validate({"boundaries": {"num_experts": num_experts, "step": step}})
    cuts = law.draw(chance(seed), "cuts", Context({}))["cuts"]
    assert len(cuts) == num_experts - 1
    assert cuts == sorted(set(cuts))
    assert all(0 < cut < 1000 and cut % step == 0 for cut in cuts)


@given(st.integers(1, 12), st.integers(1, 90), st.integers(100, 1500), st.sampled_from(["equal_t", "equal_log_snr"]))
@settings(max_examples=60, deadline=None)
def test_equal_boundaries_keep_rising_however_coarse_the_step(
    num_experts: int, step: int, num_timesteps: int, kind: str
) -> None:
    places = list(range(step, num_timesteps, step))
    law = Boundaries.model_validate({"boundaries": {"num_experts": num_experts, "step": step, "law": kind}})
    context = Context({"diffusion": {"num_timesteps": num_timesteps, "schedule": "squaredcos_cap_v2"}})
    if len(places) < num_experts - 1:
        with pytest.raises(ConfigError, match="do not fit on the"):
            law.draw(chance(), "cuts", context)
        return
    cuts = law.draw(chance(), "cuts", context)["cuts"]
    assert len(cuts) == num_experts - 1
    assert cuts == sorted(set(cuts) & set(places))
    if kind == "equal_t":
        wanted = [num_timesteps * index // num_experts for index in range(1, num_experts)]
        nearest = [min(places, key=lambda place: (abs(place - cut), -place)) for cut in wanted]
        assert cuts == nearest or len(set(nearest)) < len(nearest)


def test_all_cuts_are_equally_likely() -> None:
    law = Boundaries.model_validate({"boundaries": {"num_experts": 3, "step": 200}})
    expected = list(itertools.combinations([200, 400, 600, 800], 2))
    assert [tuple(values["c"]) for values in law.grid("c", Context({}))] == expected
    assert_equally_likely([tuple(values["c"]) for values in draws(law, "c", {}, 6000)], expected)


def test_numbers_of_experts_and_laws_are_equally_likely() -> None:
    # Under step 250, equal_t draws 500 or 250, 500, 750; freely, a pair of experts is cut at 250 or 750 as well.
    law = Boundaries.model_validate({"boundaries": {"num_experts": [2, 4], "law": ["free", "equal_t"], "step": 250}})
    found = Counter(tuple(values["c"]) for values in draws(law, "c", {}, 12_000))
    expected = {(250,): 1000, (500,): 1000 + 3000, (750,): 1000, (250, 500, 750): 6000}
    assert set(found) == set(expected)
    assert sum((found[cuts] - mean) ** 2 / mean for cuts, mean in expected.items()) < 3 + 4 * math.sqrt(6)


def test_all_monotone_sequences_are_equally_likely() -> None:
    law = Each.model_validate({"each": ["a", "b", "c"], "monotone": True})
    expected = [seq for seq in itertools.product("abc", repeat=3) if list(seq) == sorted(seq)]
    base = {"x": [{}, {}, {}]}
    assert sorted(tuple(values.values()) for values in law.grid("x.*.y", Context(base))) == sorted(expected)
    assert_equally_likely([tuple(values.values()) for values in draws(law, "x.*.y", base, 10_000)], expected)


def test_the_logarithm_is_uniform_and_stays_in_its_range() -> None:
    law = LogUniform.model_validate({"log_uniform": [1e-4, 1e-2]})
    found = [values["x"] for values in draws(law, "x", {}, 10_000)]
    assert abs(sum(value < 1e-3 for value in found) - 5000) < 4.5 * 50
    for lo in (0.1, 0.3, 0.7, 1e-5, 3.0):
        narrow = LogUniform.model_validate({"log_uniform": [lo, math.nextafter(lo, 9)]})
        assert {values["x"] for values in draws(narrow, "x", {}, 100)} <= set(narrow.log_uniform)


def realisable(model: dict[str, Any], lo: Fraction, hi: Fraction) -> list[list[str]]:
    """For each level: the shares a network accepts, found by trying every number of channels."""
    found: list[list[str]] = [[] for _ in model["mixer_levels"]]
    for index, level in enumerate(model["mixer_levels"]):
        width = model["channels"] * model["channel_mult"][level]
        for share in (Fraction(used, width) for used in range(width + 1)):
            one_level = {"mixer_levels": [level], "pool_sizes": [1], "attention_share": [str(share)]}
            try:
                IUNetConfig.model_validate(model | one_level)
            except ValidationError:
                continue
            if lo <= share <= hi:
                found[index].append(str(share))
    return found


def rising(sequences: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    return (seq for seq in sequences if list(seq) == sorted(seq, key=Fraction))


@pytest.mark.parametrize("head_dim", [4, 8, 3])
def test_one_networks_split_ratios_are_all_that_it_accepts(head_dim: int) -> None:
    model = IUNET | {"head_dim": head_dim, "channels": 24 if head_dim == 3 else 16, "attention_levels": []}
    lo, hi = Fraction(1, 8), Fraction(7, 8)
    law = SplitRatios.model_validate({"split_ratios": {"at_least": "1/8", "at_most": 0.875}})
    path, expected = "model.attention_share", list(itertools.product(*realisable(model, lo, hi)))
    base = BASE | {"model": model}
    assert [tuple(values[path]) for values in law.grid(path, Context(base))] == expected
    assert_equally_likely([tuple(values[path]) for values in draws(law, path, base, 12 * len(expected))], expected)


def test_without_bounds_split_ratios_go_from_one_head_to_less_than_all() -> None:
    values = list(SplitRatios.model_validate({"split_ratios": {}}).grid("model.attention_share", Context(BASE)))
    first, second = (sorted({value["model.attention_share"][level] for value in values}) for level in (0, 1))
    assert first == ["1/2", "1/4", "3/4"]
    assert second == ["1/2", "1/3", "1/6", "2/3", "5/6"]


@pytest.mark.parametrize("monotone", [True, False])
def test_split_ratios_of_experts_are_equally_likely(monotone: bool) -> None:
    base = apply_value(BASE, "strategy.experts.1.model", {"head_dim": 4})  # finer, so it realises more
    ranges = [[("1/4", "1/2"), ("1/3", "1/2")], [("1/4", "3/8", "1/2"), ("1/4", "1/3", "5/12", "1/2")]]
    assert realisable(IUNET, Fraction(1, 4), Fraction(1, 2)) == [list(level) for level in ranges[0]]
    assert realisable(IUNET | {"head_dim": 4}, Fraction(1, 4), Fraction(1, 2)) == [list(level) for level in ranges[1]]
    law = SplitRatios.model_validate({"split_ratios": {"at_least": "1/4", "at_most": "1/2", "monotone": monotone}})
    if monotone:
        columns = (rising(itertools.product(level, repeat=3)) for level in ranges[0])
        expected = [tuple(zip(*table, strict=True)) for table in itertools.product(*columns)]
    else:
        experts = (itertools.product(*ranges[index % 2]) for index in range(3))
        expected = list(itertools.product(*experts))
    found = [tuple(map(tuple, values.values())) for values in law.grid(SHARES, Context(base))]
    assert sorted(found) == sorted(expected)
    drawn = [tuple(map(tuple, values.values())) for values in draws(law, SHARES, base, 12 * len(expected))]
    assert_equally_likely(drawn, expected)


def test_one_split_ratio_for_all_levels_is_one_that_all_levels_can_realise() -> None:
    law = SplitRatios.model_validate({"split_ratios": {"same_for_all_levels": True, "at_least": 0, "at_most": 1}})
    levels = realisable(IUNET, Fraction(0), Fraction(1))
    both = [share for share in levels[0] if share in levels[1]]
    assert len(both) == 3
    expected = [[[share, share] for share in shares] for shares in itertools.product(both, repeat=3)]
    assert [list(values.values()) for values in law.grid(SHARES, Context(BASE))] == expected
