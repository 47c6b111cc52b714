"""`rememe data`: any source of images to memory-mapped shards."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare and check data sets.")


@app.command("prepare")
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
    from orchestrator.runs.data import prepare_source
    from orchestrator.terminal.notes import print_note

    summary = prepare_source(source, out, size=size, channels=channels, vae=vae, split=split, max_bad=max_bad)
    made = summary.manifest
    print(f"{out}: {made.num_images} {made.kind} of shape {made.shape}, {len(made.class_names)} classes")
    if made.latent is not None:
        latent = made.latent
        print(f"latents: mean {latent.mean:.3f}, std {latent.std:.3f} after scaling by {latent.scaling_factor:g}")
    if summary.bad:
        print_note(f"{len(summary.bad)} images did not decode and were left out: {', '.join(summary.bad)}")
    print(f"use it with: data='{{kind: prepared, path: {out}, image_size: {made.shape[2]}}}'")
