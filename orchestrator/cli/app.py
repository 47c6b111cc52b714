"""The command line. Parsing only: every command imports what it needs after its arguments are known."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.execution.environment import prepare_ray_environment

app = typer.Typer(
    name="rememe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "Train multi-expert diffusion models on a Ray cluster, score them, compare them in MLflow.\n\n"
        "\b\n"
        "  rememe plan demo-meme                     what would run; nothing is started\n"
        "  rememe train demo-meme                    train, sample, score; again = resume\n"
        "  rememe train demo-meme training.images=50000\n"
        "  rememe search demo-search                 which boundaries and architectures are best\n"
        "  rememe ui                                 results in the browser\n\n"
        "CONFIG is the name of a preset or a YAML file; OVERRIDES are section.key=value."
    ),
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare and check data sets.")
analyze_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into trained networks.")
app.add_typer(data_app, name="data")
app.add_typer(analyze_app, name="analyze")
store_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after the store of trained experts.")
app.add_typer(store_app, name="store")

Config = Annotated[str, typer.Argument(help="Preset (see: rememe presets) or YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, for instance training.batch_size=64.", show_default=False)
]
RunsDir = Annotated[
    Path, typer.Option(envvar="REMEME_RUNS_DIR", help="Where data, experts, results and the MLflow store are kept.")
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="Ray cluster to use; without it, a private one on this machine."),
]
Store = Annotated[
    str | None,
    typer.Option(
        envvar="REMEME_STORE",
        help="URI through which machines share finished experts, for instance s3://bucket/experts.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RunPath = Annotated[Path, typer.Argument(help="A run directory (runs/NAME-HASH), or its ensemble.", show_default=False)]
RUNS = Path("runs")


@app.command()
def presets() -> None:
    """List the presets with their first line, by the command that takes them."""
    from importlib import resources

    from workloads.config.load import list_presets

    for command, folder in (("train", ""), ("compare", "comparisons"), ("search", "studies")):
        print(f"rememe {command}")
        for name in list_presets(folder):
            text = resources.files("workloads.presets").joinpath(folder, f"{name}.yaml").read_text()
            print(f"  {name:24} {text.splitlines()[0].lstrip('# ')}")


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    json: AsJson = False,
) -> None:
    """Show what would run: jobs, parameters, multiply-adds, memory, keys. Starts nothing.

    CONFIG may be a study (search-ratios): how many configurations, and how many experts they share.
    """
    from orchestrator.search.study.find import find_study

    study = find_study(config, overrides or [])
    if study is not None:
        from orchestrator.search.running.display import plan_study

        plan_study(study, runs_dir, as_json=json)
        return
    loaded = _load(config, overrides)
    from orchestrator.runs.description import plan_configuration

    plan_configuration(loaded, runs_dir, as_json=json)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
    evaluate: Annotated[bool, typer.Option(help="Sample and score when training is done.")] = True,
    store: Store = None,
) -> None:
    """Train every expert in parallel, gather the ensemble, score it. The same command again resumes."""
    loaded = _load(config, overrides)
    prepare_ray_environment(address)
    from orchestrator.runs.configuration import train_configuration

    train_configuration(loaded, runs_dir, address=address, evaluate=evaluate, store=store)


@app.command()
def search(
    study: Annotated[str, typer.Argument(help="A study's name (demo-search) or YAML file.", show_default=False)],
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
    max_failures: Annotated[int, typer.Option(min=0, help="Configurations that may fail.")] = 0,
    plan_from: Annotated[
        str | None,
        typer.Option(
            help="An earlier study: look first at what the losses of its experts predict to be best.",
            show_default=False,
        ),
    ] = None,
    num_planned: Annotated[int, typer.Option(min=1, help="How many configurations --plan-from proposes.")] = 3,
    store: Store = None,
) -> None:
    """Search boundaries, architectures and numbers of experts, each expert trained once; again = go on.

    See first what it would take: rememe plan STUDY. Read afterwards what came out: rememe report STUDY.
    """
    from orchestrator.search.study.find import find_study, unknown_study

    found = find_study(study, overrides or [])
    if found is None:
        raise unknown_study(study)
    prepare_ray_environment(address)
    from orchestrator.search.running.search import SearchOptions, run_study

    options = SearchOptions(address, store, max_failures, plan_from, num_planned)
    run_study(found, runs_dir, options)


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="Name of a study that has been searched.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="HTML file; default: report.html of the study.", show_default=False)
    ] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Write one HTML page about a search: what was tried, what won and why."""
    from orchestrator.search.report.page import write_report

    print(write_report(runs_dir, study, out))


@app.command()
def compare(
    comparison: Annotated[str, typer.Argument(help="A comparison's name (demo) or YAML file.", show_default=False)],
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
) -> None:
    """Train and score several strategies from one base network, same budget and protocol, and print the table."""
    from workloads.config.load import load_comparison

    loaded = load_comparison(comparison, overrides or ())
    prepare_ray_environment(address)
    from orchestrator.runs.comparison import run_comparison

    run_comparison(loaded, runs_dir, address=address)


@app.command()
def sample(
    run: RunPath,
    num: Annotated[int, typer.Option(min=1, help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same images.")] = 0,
    grid: Annotated[Path, typer.Option(help="PNG with all images side by side.")] = Path("samples.png"),
    out: Annotated[Path | None, typer.Option(help="Folder for one PNG per image.", show_default=False)] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim or dpm++; default: the run's protocol.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default: the run's protocol.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Classifier-free guidance scale; 1 is none.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")] = None,
) -> None:
    """Draw images from a trained ensemble."""
    from orchestrator.runs.sampling import sample_images

    changes = {"sampler": sampler, "num_steps": steps, "guidance_scale": guidance}
    given = {key: value for key, value in changes.items() if value is not None}
    sample_images(run, num=num, seed=seed, grid=grid, out=out, sampling=given, device=device)


@app.command()
def evaluate(
    run: RunPath,
    protocol: Annotated[
        str | None, typer.Option(help="fid50k, fid10k, fid2k, demo; default: the run's own.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change one field, for instance num_samples=2000.")
    ] = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
) -> None:
    """Score a trained ensemble under a named protocol and log it to MLflow."""
    prepare_ray_environment(address)
    from orchestrator.runs.configuration import evaluate_run

    evaluate_run(run, runs_dir, protocol=protocol, overrides=overrides or (), address=address)


@app.command()
def bake(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
) -> None:
    """Write a remix's experts out as plain networks, an ensemble that samples at no extra cost."""
    from orchestrator.runs.export import bake_run

    bake_run(run, out)


@app.command()
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
) -> None:
    """Write each expert as a diffusers model (a DiT as diffusers' DiTTransformer2DModel)."""
    from orchestrator.runs.export import export_run

    export_run(run, out)


@analyze_app.command("spectra")
def analyze_spectra(
    run: RunPath,
    num_images: Annotated[int, typer.Option(min=1, help="Images averaged over.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of images and noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="PNG; default: figures/spectra.png in the run.")] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Plot the frequency content of each block's feature maps per timestep, experts side by side (MEME, Fig. 3, 6)."""
    from orchestrator.runs.spectra import plot_spectra

    plot_spectra(run, runs_dir, num_images=num_images, seed=seed, out=out)


@store_app.command("ls")
def store_ls(runs_dir: RunsDir = RUNS, json: AsJson = False) -> None:
    """List trained experts: what they are, how large, and how many configurations use them."""
    from orchestrator.store.inventory import list_store

    list_store(runs_dir, as_json=json)


@store_app.command("verify")
def store_verify(runs_dir: RunsDir = RUNS) -> None:
    """Compare the weights of every finished expert with their checksum. Changes nothing; exit code 1 if any differ."""
    from orchestrator.store.inventory import verify_store

    raise typer.Exit(verify_store(runs_dir))


@store_app.command("gc")
def store_gc(
    runs_dir: RunsDir = RUNS,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only say what.")] = False,
) -> None:
    """Remove experts that no configuration contains any more, and those set aside as damaged."""
    from orchestrator.store.inventory import collect_garbage

    collect_garbage(runs_dir, yes=yes)


@data_app.command("prepare")
def data_prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="embedded; a folder with one subfolder per class; Parquet (image, label); "
            "CIFAR-10 (.npz or torchvision's directory); torchvision:NAME:ROOT.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Directory to write.", show_default=False)],
    size: Annotated[int, typer.Option(min=4, help="Height and width in pixels.")] = 32,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 grey, 3 colour.")] = 3,
    vae: Annotated[
        Path | None, typer.Option(help="Write latents of this diffusers AutoencoderKL instead of pixels.")
    ] = None,
    split: Annotated[str, typer.Option(help="train or test, where the source has both.")] = "train",
    max_bad: Annotated[int, typer.Option(min=0, help="Images that may fail to decode.")] = 0,
) -> None:
    """Write memory-mapped shards with checksums. The same command continues an interrupted run."""
    from orchestrator.runs.preparing import prepare_data

    prepare_data(source, out, size=size, channels=channels, vae=vae, split=split, max_bad=max_bad)


@app.command()
def ui(
    runs_dir: RunsDir = RUNS,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Open the MLflow browser on the results, bound to this machine only."""
    from orchestrator.tracking.ui import open_ui

    raise typer.Exit(open_ui(runs_dir, port=port))


@app.command()
def doctor(runs_dir: RunsDir = RUNS, address: Address = None) -> None:
    """Say what is wrong with this machine or cluster, and how to fix it."""
    prepare_ray_environment(address)
    from orchestrator.runs.doctor import run_doctor

    raise typer.Exit(run_doctor(runs_dir, address))


def _load(config: str, overrides: list[str] | None) -> Any:
    from workloads.config.load import load_config

    return load_config(config, overrides or ())


def main() -> None:
    """Run the command line; errors a user can act on become one sentence and an exit code."""
    from workloads.errors import RememeError

    try:
        app(standalone_mode=True)
    except RememeError as error:
        print(f"error: {error}", file=sys.stderr)
        if os.environ.get("REMEME_TRACEBACK"):
            raise
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
