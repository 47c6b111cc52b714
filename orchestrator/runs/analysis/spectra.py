"""What frequencies trained networks carry: a figure asked for afterwards, on disk and in the MLflow run."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.plan.jobs import make_plan
from orchestrator.runs.data import prepare_data_of
from orchestrator.runs.surroundings import open_for_results
from orchestrator.terminal.progress import counting
from orchestrator.tracking.configuration import open_configuration
from orchestrator.tracking.tracker import Tracker
from workloads.analysis.figures import expert_name, spectra_figure
from workloads.analysis.spectra import (
    NOISY_IMAGE,
    Spectra,
    ensemble_spectra,
    spread_between,
    spread_timesteps,
    write_curves,
)
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError
from workloads.files import new_file
from workloads.places import results_of

FIGURE_DPI = 150
NamedSpectra = tuple[str, Spectra]


def plot_spectra(
    run: Path,
    runs_dir: Path,
    *,
    num_images: int,
    seed: int,
    out: Path | None,
    everywhere: bool = False,
    controls: Sequence[Path] = (),
) -> list[str]:
    """Relative log amplitude of x_t and of each block's feature maps, a row per expert, and the curves as CSV.

    everywhere: every expert at all timesteps looked at rather than at its own. controls: runs whose networks follow as
    rows, at all these timesteps. Gives what to tell the user. ConfigError for a control that cannot stand beside the
    run.
    """
    runs = open_for_results(runs_dir)
    ensemble = Ensemble.load(run)
    others = [Ensemble.load(control) for control in controls]
    for other in others:
        _require_alike(other, ensemble)
    dataset = prepare_data_of(ensemble.config, runs)
    timesteps = spread_timesteps(ensemble.intervals)
    groups: list[list[NamedSpectra]] = []
    num_networks = sum(len(one.intervals) for one in (ensemble, *others))
    with counting("looking at features", "networks", num_networks) as on_expert:
        for number, one in enumerate((ensemble, *others)):
            found = ensemble_spectra(
                one,
                dataset,
                timesteps=timesteps,
                num_images=num_images,
                seed=seed,
                everywhere=everywhere or bool(controls),
                on_expert=on_expert,
            )
            groups.append(_named(one, found, f"control {number}: " if number else "run: " if controls else ""))
    networks = [named for group in groups for named in group]
    _require_same_blocks(networks)
    file = out or results_of(ensemble.path).figure("spectra")
    figure = spectra_figure(
        [found for _, found in networks], [name for name, _ in networks], ensemble.diffusion.num_timesteps
    )
    with new_file(file) as scratch:
        figure.savefig(scratch, dpi=FIGURE_DPI, format=file.suffix[1:] or "png")
    curves = file.with_suffix(".csv")
    write_curves(curves, networks)
    _log(ensemble, runs.path, [file, curves])
    lines = [str(file), f"{curves}: the curves"]
    lines += [f"control {number}: {control}" for number, control in enumerate(controls, 1)]
    return lines + (_spreads(groups) if everywhere or controls else [])


def _log(ensemble: Ensemble, runs_dir: Path, files: Sequence[Path]) -> None:
    plan = make_plan(ensemble.config, ensemble.data)
    with Tracker(runs_dir) as tracker:
        tracked = open_configuration(tracker, plan, results_of(ensemble.path).path.name)
        for file in files:
            tracked.log_artifact(file, "figures")
        tracked.finish("FINISHED")


def _named(ensemble: Ensemble, found: Sequence[Spectra], before: str) -> list[NamedSpectra]:
    named = zip(ensemble.intervals, found, strict=True)
    return [(before + expert_name(index, interval), spectra) for index, (interval, spectra) in enumerate(named)]


def _require_alike(control: Ensemble, ensemble: Ensemble) -> None:
    """The same x_t, or differences could be the data's."""
    name = results_of(control.path).path
    for what, own, other in (
        ("data", control.data.fingerprint, ensemble.data.fingerprint),
        ("diffusion", control.diffusion, ensemble.diffusion),
        ("classes", control.num_classes, ensemble.num_classes),
    ):
        if own != other:
            raise ConfigError(
                f"--control {name} has other {what} than the run, so its networks see other x_t; leave it out"
            )


def _require_same_blocks(networks: Sequence[NamedSpectra]) -> None:
    seen = [(name, list(found.amplitudes)) for name, found in networks if found.timesteps]
    first, blocks = seen[0]
    for name, others in seen[1:]:
        if others != blocks:
            raise ConfigError(f"{name} has other blocks than {first}, so their maps are not comparable; leave it out")


def _spreads(groups: Sequence[Sequence[NamedSpectra]]) -> list[str]:
    """Per run of several networks: how much they differ at the same timesteps, block by block."""
    lines = []
    for group in groups:
        if len(group) > 1:
            networks = [found for _, found in group]
            blocks = [block for block in networks[0].amplitudes if block != NOISY_IMAGE]
            spreads = ", ".join(f"{block} {spread_between(networks, block):.3f}" for block in blocks)
            run, colon, _ = group[0][0].rpartition(": ")
            run = run if colon else "experts"
            lines.append(f"{run}: standard deviation between networks of the upper half's mean, {spreads}")
    return lines
