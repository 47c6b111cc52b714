"""Trained experts in forms that need less, or nothing, of rememe."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.plan.description import to_yaml
from workloads.ensemble import Ensemble, bake
from workloads.errors import ConfigError
from workloads.evaluation.protocol import Score
from workloads.files import new_directory
from workloads.pipeline import read_scores
from workloads.places import results_of
from workloads.progress import Progress

if TYPE_CHECKING:
    from workloads.interop.forms import Exported, Form

DESCRIPTION = "run.yaml"
"""The run's description, as it lies in an export."""


def bake_run(run: Path, out: Path, on_progress: Progress) -> int:
    """A remix's experts as plain networks, in an ensemble that samples without mixing; how many."""
    ensemble = Ensemble.load(run)
    if not ensemble.is_mixed:
        raise ConfigError(f"{run} is no remix: its {len(ensemble.intervals)} experts are plain networks already")
    _refuse_existing(out)
    bake(ensemble, out, on_progress)
    return len(ensemble.intervals)


def export_run(
    run: Path, out: Path, on_progress: Progress, *, form: "Form", expert: int | None, license_name: str | None
) -> "Exported":
    """All experts, or one, in a form that other tools take, with a model card. ConfigError if they cannot take it."""
    from workloads.interop.card import CARD, CardFacts, license_beside, model_card
    from workloads.interop.forms import check_form, write_form

    ensemble = Ensemble.load(run)
    check_form(ensemble, form, expert)
    _refuse_existing(out)
    # Scores are of all experts together.
    scores = _scores(ensemble) if expert is None or len(ensemble.intervals) == 1 else []
    config = ensemble.config
    one = "" if expert is None else f" --expert {expert}"
    with new_directory(out) as scratch:
        exported = write_form(ensemble, form, scratch, expert=expert, on_progress=on_progress)
        facts = CardFacts(
            scores=scores,
            description=DESCRIPTION,
            commands=[
                f"rememe train {DESCRIPTION}",
                f"rememe export runs/{shlex.quote(config.name)}-... {shlex.quote(out.name)} --to {form}{one}",
            ],
            license=license_name,
            start_license=None if config.initial_weights is None else license_beside(config.initial_weights),
        )
        (scratch / CARD).write_text(model_card(ensemble, form, exported, facts), encoding="utf-8")
        (scratch / DESCRIPTION).write_text(to_yaml(config), encoding="utf-8")
    return exported


def _scores(ensemble: Ensemble) -> list[Score]:
    scores = read_scores(results_of(ensemble.path).scores) or ensemble.index.scores
    return [Score(**score) for score in scores.values()]


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already; name a directory to make")
