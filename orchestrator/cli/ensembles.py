"""Commands about trained ensembles: sample, bake, export, analyze."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.arguments import RUNS, AsJson, RunPath, RunsDirOption, RunStorage
from orchestrator.cli.complete import complete_run
from orchestrator.cli.results import print_json
from orchestrator.terminal.notes import print_beginning

analyze = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into trained networks.")


def sample(
    run: RunPath,
    num: Annotated[int, typer.Option(min=1, help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same images.")] = 0,
    grid: Annotated[Path, typer.Option(help="PNG with all images side by side.")] = Path("samples.png"),
    out: Annotated[Path | None, typer.Option(help="Folder for one PNG per image.", show_default=False)] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpm++, ddpm or a diffusers scheduler; default: the run's protocol.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default: the run's protocol.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Classifier-free guidance scale; 1 is none.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")] = None,
    runs_dir: RunsDirOption = RUNS,
    storage: RunStorage = None,
) -> None:
    """Draw images from a trained ensemble."""
    print_beginning(f"sample {run}")
    from orchestrator.runs.surroundings import require_places

    require_places(grid, out, num)
    import rememe

    samples = rememe.sample(
        run,
        num,
        seed=seed,
        sampler=sampler,
        num_steps=steps,
        guidance_scale=guidance,
        device=device,
        runs_dir=runs_dir,
        storage=storage,
    )
    samples.write_grid(grid)
    drawn = samples.protocol.sampling
    print(f"{grid}: {num} images, seed {seed}, {drawn.sampler} with {drawn.num_steps} steps")
    if out is not None:
        samples.write(out)
        print(f"{out}: one PNG each")


def bake(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    runs_dir: RunsDirOption = RUNS,
    storage: RunStorage = None,
) -> None:
    """Write a remix's experts out as plain networks, an ensemble that samples at no extra cost."""
    print_beginning(f"bake {run}")
    from orchestrator.runs.surroundings import require_makeable

    require_makeable(out)
    from orchestrator.runs.stored import run_at_hand
    from orchestrator.terminal.progress import progress

    with run_at_hand(run, runs_dir, storage) as folder, progress("baking", "experts") as advance:
        from orchestrator.runs.export import bake_run

        num_experts = bake_run(folder, out, advance)
    print(f"{out}: {num_experts} plain networks; use it as a run: rememe sample {out}")


def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    to: Annotated[
        Literal["diffusers", "wan", "safetensors"],
        typer.Option(
            help="diffusers: a pipeline; wan: two experts as transformer, transformer_2 and boundary_ratio; "
            "safetensors: one plain file per expert."
        ),
    ] = "diffusers",
    expert: Annotated[
        int | None,
        typer.Option(min=0, help="Only this one, for all timesteps; 0 is nearest the clean image.", show_default=False),
    ] = None,
    license_name: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the weights, for the model card.", show_default=False),
    ] = None,
    runs_dir: RunsDirOption = RUNS,
    storage: RunStorage = None,
) -> None:
    """Write the experts for other tools, with a model card; a remix's are mixed first.

    In Python, rememe.MultiExpertPipeline.from_pretrained("OUT") opens it (docs/pipeline.md). One DiT of latents becomes
    diffusers' own DiTPipeline, which needs nothing of rememe.
    """
    print_beginning(f"export {run}")
    from orchestrator.runs.surroundings import require_makeable

    require_makeable(out)
    from orchestrator.runs.stored import run_at_hand
    from orchestrator.terminal.progress import progress

    with run_at_hand(run, runs_dir, storage, with_scores=True) as folder, progress("exporting", "experts") as advance:
        from orchestrator.runs.export import export_run

        exported = export_run(folder, out, advance, form=to, expert=expert, license_name=license_name)
    if exported.pipeline is None:
        print(f"{out}: {len(exported.experts)} files of safetensors, and a model card")
    else:
        print(f"{out}: a {exported.pipeline.__name__} of {len(exported.experts)} expert(s), and a model card")


@analyze.command("spectra")
def analyze_spectra(
    run: RunPath,
    num_images: Annotated[int, typer.Option(min=1, help="Images averaged over.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of images and noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="PNG; default: figures/spectra.png in the run.")] = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Every expert at all timesteps, not just at its own.")
    ] = False,
    control: Annotated[
        list[Path] | None,
        typer.Option(help="A run of equal experts, or of one network, at the same timesteps; may be given again."),
    ] = None,
    runs_dir: RunsDirOption = RUNS,
    storage: RunStorage = None,
) -> None:
    """Plot the frequency content of x_t and of each block's feature maps per timestep, experts side by side, and keep
    the curves as CSV (MEME, Fig. 2, 3, 6). U-Nets and DiTs.

    A picture of MEME's experts alone shows what timesteps do, not what architectures do; --control puts equal experts,
    or one network, beside them at the same timesteps.
    """
    print_beginning(f"analyze {run}")
    from orchestrator.runs.surroundings import require_makeable

    require_makeable(out)
    from orchestrator.runs.stored import find_trained_run, run_at_hand

    controls = [find_trained_run(one, runs_dir) for one in control or ()]
    with run_at_hand(run, runs_dir, storage, is_changed=True) as folder:
        from orchestrator.runs.analysis.spectra import plot_spectra

        lines = plot_spectra(
            folder,
            runs_dir,
            num_images=num_images,
            seed=seed,
            out=out,
            everywhere=everywhere,
            controls=controls,
        )
    print("\n".join(lines))


@analyze.command("coefficients")
def analyze_coefficients(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories of remixes.", show_default=False, autocompletion=complete_run),
    ],
    runs_dir: RunsDirOption = RUNS,
    json: AsJson = False,
) -> None:
    """How much of remixes' coefficients is learned, and how much was in the prior (Remix-DiT, Fig. 4).

    The remixes it is for are trained by: rememe compare coefficients
    """
    print_beginning(f"analyze {', '.join(map(str, runs))}")
    from orchestrator.runs.stored import find_trained_run

    folders = [find_trained_run(run, runs_dir) for run in runs]
    from orchestrator.runs.analysis.coefficients import coefficients_of, show_coefficients

    if json:
        print_json([one.to_json() for one in coefficients_of(folders)])
    else:
        show_coefficients(folders)


@analyze.command("loss")
def analyze_loss(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories; the first is compared with.", show_default=False)
    ],
    num_images: Annotated[int, typer.Option(min=1, help="Images at each of 40 timesteps.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of images and noise.")] = 0,
    runs_dir: RunsDirOption = RUNS,
    json: AsJson = False,
) -> None:
    """Compare runs by the loss of their experts, each in charge of its timesteps: a difference that scores of few
    samples do not show, this does.
    """
    print_beginning(f"analyze {', '.join(map(str, runs))}")
    from orchestrator.runs.stored import find_trained_run

    folders = [find_trained_run(run, runs_dir) for run in runs]
    from orchestrator.runs.analysis.losses import losses_of, show_losses

    found = losses_of(folders, runs_dir, num_images=num_images, seed=seed)
    if json:
        print_json([one.to_json() for one in found])
    else:
        show_losses(found, num_images)
