"""`rememe plan` of a study refuses what `rememe search` would, in the same words."""

from pathlib import Path

import pytest

from orchestrator.search.running.display import plan_study
from orchestrator.search.running.search import SearchOptions, run_study
from orchestrator.search.study.find import require_study
from workloads.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["base.data.held_out=0"], "ladder.held_out measures on images kept out of training; set base.data.held_out"),
        (["base.data.held_out=0", "ladder={quick: null, finalists: 1}"], "ladder.held_out measures on images kept out"),
        (["budget.images_trained=10"], "budget.images_trained is 10, but the cheapest configuration trains on 4096"),
        (["ladder.quick.num_sample=5"], "num_sample: unknown key; did you mean 'num_samples'?"),
        (["ladder.quick.sampling.num_steps=5000"], "num_steps 5000 exceeds diffusion.num_timesteps 1000"),
    ],
    ids=str,
)
def test_a_study_that_would_not_start_is_not_planned(
    overrides: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = require_study("demo-search", overrides)
    with pytest.raises(ConfigError) as planned:
        plan_study(study, tmp_path / "runs", as_json=True)
    assert told in str(planned.value)
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError) as searched:
        run_study(study, tmp_path / "runs", SearchOptions())
    assert str(searched.value) == str(planned.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["base.training.warmup_images=3000"], "note: training.warmup_images 3,000 is more than training.images 2,048"),
        (
            ["ladder.brief=[0.25]"],
            "note: ladder.brief 0.25: training.warmup_images 640 is more than",
        ),
        ([], ""),
    ],
    ids=str,
)
def test_a_warm_up_longer_than_training_is_noted(
    overrides: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_study(require_study("demo-search", overrides), tmp_path / "runs", as_json=True)
    noted = capsys.readouterr().err
    assert told in noted
    assert ("never reaches" in noted) == bool(told)
