"""What a comparison refuses before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.comparison import run_comparison
from workloads.config.load import load_comparison
from workloads.errors import ConfigError


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"evaluation": {"name": "demo", "seed": 7}}, "another evaluation than the base"),
        ({"diffusion": {"num_timesteps": 10}}, "num_steps 20 exceeds"),
        ({"data": {"class_conditional": False}}, "needs data.class_conditional"),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_compared_is_named(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    comparison = load_comparison("demo")
    (last, description) = list(comparison.rows.items())[-1]
    rows = comparison.rows | {last: description | change}
    with pytest.raises(ConfigError, match=rf"rows\.{last}.*{expected}"):
        run_comparison(comparison.model_copy(update={"rows": rows}), tmp_path / "runs", address=None)
    assert not (tmp_path / "runs").exists()
