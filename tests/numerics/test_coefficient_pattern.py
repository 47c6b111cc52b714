"""How much of a remix's coefficients is learned, against loops over pairs; and its controls."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from workloads.analysis.coefficients import pattern
from workloads.config import DataSpec, RemixJob, RunConfig
from workloads.config.strategy import Remix
from workloads.models.remix import build_mixer, prior
from workloads.training.remix.state import RemixState, new_mixer


def table(seed: int, num_experts: int = 6, num_bases: int = 4) -> np.ndarray:
    rows = np.random.default_rng(seed).random((num_experts, num_bases))
    return rows / rows.sum(1, keepdims=True)


def correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def test_the_pattern_is_that_of_loops_over_pairs() -> None:
    start, end = table(0), table(1)

    def distances(rows: np.ndarray) -> list[float]:
        return [sum(abs(rows[i][k] - rows[j][k]) for k in range(4)) / 2 for i in range(6) for j in range(6) if i < j]

    found = pattern(start, end)
    apart = [float(j - i) for i in range(6) for j in range(6) if i < j]
    assert found.moved == pytest.approx(
        sum(abs(end[i][k] - start[i][k]) for i in range(6) for k in range(4)) / 2 / 6, rel=1e-12
    )
    assert found.kept == pytest.approx(correlation(distances(start), distances(end)) ** 2, rel=1e-9)
    assert found.learned == 1 - found.kept
    assert found.order_start == pytest.approx(correlation(distances(start), apart), rel=1e-9)
    assert found.order_end == pytest.approx(correlation(distances(end), apart), rel=1e-9)


def test_what_did_not_move_is_not_learned_and_the_order_of_bases_is_nothing() -> None:
    start = table(0)
    assert pattern(start, start).moved == 0
    assert pattern(start, start).learned == pytest.approx(0, abs=1e-12)
    permuted = pattern(start, start[:, [2, 0, 3, 1]])
    assert permuted.learned == pytest.approx(0, abs=1e-12)
    assert permuted.moved > 0
    # Two bases, from one to the other in equal steps: distance in coefficients is distance in timesteps.
    line = np.stack([np.linspace(0, 1, 6), 1 - np.linspace(0, 1, 6)], 1)
    assert pattern(table(0, 6, 2), line).order_end == pytest.approx(1)
    assert pattern(line, np.full((6, 2), 0.5)).order_end == 0
    with pytest.raises(ValueError, match="three or more"):
        pattern(line[:2], line[:2])


def remix_job(**strategy: Any) -> RemixJob:
    config = RunConfig.model_validate(
        {
            "name": "x",
            "seed": 3,
            "data": {"kind": "embedded", "image_size": 8},
            "model": {"kind": "dit", "hidden_size": 8, "depth": 1, "num_heads": 2, "patch_size": 4},
            "strategy": {"kind": "remix", "num_experts": 8, "num_bases": 4} | strategy,
            "training": {"images": 64, "batch_size": 8},
            "evaluation": {"name": "demo", "sampling": {"guidance_scale": 1}},
        }
    )
    (job,) = config.jobs(DataSpec(fingerprint="0" * 64, channels=1, image_size=8))
    assert isinstance(job, RemixJob)
    return job


@pytest.mark.parametrize("strategy", [{}, {"mixer": "per_layer"}, {"prior_order": "shuffled"}], ids=str)
def test_the_start_can_be_had_again_without_the_network(strategy: dict[str, Any]) -> None:
    job = remix_job(**strategy)
    state = RemixState(job, torch.device("cpu"))
    torch.rand(5)
    again = new_mixer(job, len(state.bases.layers))
    assert torch.equal(again.table(), state.mixer.table())
    assert torch.equal(again.prior_N, state.mixer.prior_N)


def test_a_shuffled_prior_has_the_same_bases_as_often_and_no_order() -> None:
    job = remix_job(prior_order="shuffled", num_experts=100)
    shuffled_N = new_mixer(job, 1).prior_N
    assert torch.equal(shuffled_N.sort().values, prior(100, 4))
    assert torch.equal(shuffled_N, new_mixer(job, 1).prior_N)
    alike = sum(int(shuffled_N[i] == shuffled_N[i + 1]) for i in range(99))
    # Neighbours share a basis 24 times of 99 by chance (standard deviation 4), 96 times in runs.
    assert 10 < alike < 40
    start = new_mixer(job, 1).table().mean(1).double().numpy()
    assert abs(pattern(start, start).order_start) < 0.1
    runs = new_mixer(remix_job(num_experts=100), 1).table().mean(1).double().numpy()
    assert pattern(runs, runs).order_start > 0.4
    with pytest.raises(ValidationError, match="prior_order shuffled does not go with mixer continuous"):
        Remix(num_experts=8, prior_order="shuffled", mixer="continuous")


def test_new_controls_leave_keys_and_first_values_as_they_were() -> None:
    job = remix_job()
    assert not {"prior_schedule", "prior_order"} & job.model_dump(mode="json")["remix"].keys()
    assert remix_job(prior_schedule="constant").key != job.key
    torch.manual_seed(0)
    mixer: Any = build_mixer(job.remix, list(job.intervals), 1)
    torch.manual_seed(0)
    one_hot = torch.nn.functional.one_hot(torch.arange(8) * 4 // 8, 4)
    assert torch.equal(mixer.table_NLK[:, 0], torch.randn(8, 4) + 3 * one_hot)
