"""Which of several trained runs denoises best: their losses on the same images, noise and timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from orchestrator.runs.data import prepare_data_of
from orchestrator.runs.sampling import default_device
from orchestrator.runs.seeds import by_row, seed_of
from orchestrator.runs.surroundings import open_for_results
from orchestrator.terminal.progress import counting
from orchestrator.terminal.tables import wide_console
from workloads.analysis.intervals import mean_interval, shown_difference
from workloads.analysis.loss_by_timestep import ensemble_loss
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError


@dataclass(frozen=True)
class RunLoss:
    """Of one run."""

    path: Path
    name: str
    loss: float

    def to_json(self) -> dict[str, Any]:
        """What `rememe analyze loss --json` prints of each."""
        return {"run": str(self.path), "name": self.name, "loss": self.loss}


def losses_of(paths: Sequence[Path], runs_dir: Path, *, num_images: int, seed: int) -> list[RunLoss]:
    """Of the expert in charge, mean over timesteps. ConfigError for a run of other data, diffusion or classes than the
    first.
    """
    ensembles = [Ensemble.load(path, default_device()) for path in paths]
    for path, ensemble in zip(paths, ensembles, strict=True):
        _require_alike(path, ensemble, ensembles[0])
    dataset = prepare_data_of(ensembles[0].config, open_for_results(runs_dir))
    found = []
    num_networks = sum(len(ensemble.intervals) for ensemble in ensembles)
    with counting("measuring", "networks", num_networks) as on_expert:
        for path, ensemble in zip(paths, ensembles, strict=True):
            loss = ensemble_loss(ensemble, dataset, num_images=num_images, seed=seed, on_expert=on_expert)
            found.append(RunLoss(path, ensemble.config.name, loss))
    return found


def show_losses(found: Sequence[RunLoss], num_images: int) -> None:
    """Print a row per run, or per set of runs that differ in their seed, with the difference to the first."""
    rows = by_row(found)
    first = next(iter(rows))
    table = Table(title="loss of the expert in charge, mean over timesteps")
    table.add_column("", no_wrap=True)
    for heading in ("seeds", "loss", f"less {first}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, members in rows.items():
        mean, _ = mean_interval([one.loss for one in members])
        table.add_row(name, str(len(members)), f"{mean:.5f}", "" if name == first else difference(members, rows[first]))
    console = wide_console()
    console.print(table)
    console.print(
        f"{num_images} training images at 40 timesteps, the same for all; +-: 95 % interval over the seeds that both "
        "have"
    )


def difference(members: Sequence[RunLoss], others: Sequence[RunLoss]) -> str:
    """Seed by seed, over those that both have."""
    by_seed = {seed_of(one.name): one.loss for one in others}
    differences = [one.loss - by_seed[seed] for one in members if (seed := seed_of(one.name)) in by_seed]
    if not differences:
        return "no seed in common"
    return shown_difference(differences, 5)


def _require_alike(path: Path, ensemble: Ensemble, first: Ensemble) -> None:
    for what, own, other in (
        ("data", ensemble.data.fingerprint, first.data.fingerprint),
        ("diffusion", ensemble.diffusion, first.diffusion),
        ("classes", ensemble.num_classes, first.num_classes),
    ):
        if own != other:
            raise ConfigError(
                f"{path} has other {what} than the first run, so their losses are not comparable; leave it out"
            )
