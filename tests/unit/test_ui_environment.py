"""What the server behind `rememe ui` is given."""

import subprocess
import sys

import pytest

from orchestrator.tracking.ui import _environment

PROGRAM = """
import warnings
import starlette.middleware.wsgi
from starlette.exceptions import StarletteDeprecationWarning
warnings.warn("something else is deprecated", StarletteDeprecationWarning, stacklevel=1)
"""


@pytest.mark.parametrize("before", ["", "error:nobody says this"])
def test_a_warning_about_what_mlflow_imports_is_not_shown_and_others_are(
    before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is about a part of Starlette that MLflow imports, and tells a user of rememe nothing."""
    monkeypatch.setenv("PYTHONWARNINGS", before)
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=_environment("sqlite://"), capture_output=True, text=True, check=True
    )
    assert "wsgi" not in said.stderr
    assert "something else is deprecated" in said.stderr
