"""`rememe data`: any source of images to memory-mapped shards, and what is to be seen of both."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.arguments import AsJson
from orchestrator.cli.results import print_json
from orchestrator.terminal.notes import print_beginning

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Check, prepare and look at data sets.")

Source = Annotated[
    str,
    typer.Argument(
        help="embedded; a folder with one subfolder per class; Parquet; what save_to_disk of Hugging Face wrote; a zip "
        "or tars (WebDataset, EDM2); .npy latents of DiT; CIFAR-10 (.npz or torchvision's directory); "
        "torchvision:NAME:ROOT.",
        show_default=False,
    ),
]
Size = Annotated[int, typer.Option(min=4, max=8192, help="Height and width in pixels.")]
Channels = Annotated[Literal["1", "3"], typer.Option(help="1 grey, 3 colour.")]
Part = Annotated[str | None, typer.Option(help="train, val or test, where the source has parts.", show_default="train")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of a table that holds the images.", show_default=False)]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of a table (also of one beside pictures; field of WebDataset's .json) that holds the classes; "
        "none: all images are of one.",
        show_default=False,
    ),
]
Sparse = Annotated[
    Literal["refuse", "remap", "keep"] | None,
    typer.Option(help="Labels that leave most numbers out: number them anew, or keep them.", show_default="refuse"),
]
AbsentParts = Annotated[
    Literal["refuse", "accept"] | None,
    typer.Option(help="Where a file is missing that others count, as 00001-of-00003.", show_default="refuse"),
]
MaxBad = Annotated[int, typer.Option(min=0, help="Images that may fail to decode.")]


@app.command("check")
def data_check(
    source: Source,
    size: Size = 32,
    channels: Channels = "3",
    vae: Annotated[Path | None, typer.Option(help="The diffusers AutoencoderKL that made the latents given.")] = None,
    split: Part = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    sparse_labels: Sparse = None,
    missing_parts: AbsentParts = None,
    max_bad: MaxBad = 0,
    json: AsJson = False,
) -> None:
    """Read every image as prepare does, and say what is there; nothing is written."""
    print_beginning(f"check {source}")
    from orchestrator.runs.data import check_source
    from orchestrator.terminal.found import print_found
    from workloads.data.found import check_bad

    found = check_source(
        source,
        vae=vae,
        size=size,
        channels=int(channels),
        split=split,
        image_column=image_column,
        label_column=label_column,
        sparse_labels=sparse_labels,
        missing_parts=missing_parts,
    )
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        print_found(found)
    check_bad(found.bad, max_bad, are_all=True)


@app.command("prepare")
def data_prepare(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Directory to write.", show_default=False)],
    size: Size = 32,
    channels: Channels = "3",
    vae: Annotated[
        Path | None,
        typer.Option(help="Write latents of this AutoencoderKL or VQModel (diffusers), not pixels; or it made these."),
    ] = None,
    posterior: Annotated[
        bool, typer.Option("--posterior", help="Of latents, keep the distribution; each epoch draws from it anew.")
    ] = False,
    split: Part = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    sparse_labels: Sparse = None,
    missing_parts: AbsentParts = None,
    max_bad: MaxBad = 0,
) -> None:
    """Write memory-mapped shards with checksums. The same command continues an interrupted run."""
    print_beginning(f"prepare {source}")
    from orchestrator.runs.surroundings import require_makeable

    require_makeable(None if out.is_dir() else out)  # what is prepared already may lie on a disk that is read only
    from orchestrator.runs.data import prepare_source, used_with
    from orchestrator.terminal.found import print_found

    summary = prepare_source(
        source,
        out,
        vae=vae,
        posterior=posterior,
        max_bad=max_bad,
        size=size,
        channels=int(channels),
        split=split,
        image_column=image_column,
        label_column=label_column,
        sparse_labels=sparse_labels,
        missing_parts=missing_parts,
    )
    made = summary.manifest
    if summary.found is not None:
        print_found(summary.found)
    told = "" if summary.is_new else ", as they were prepared before"
    print(f"{out}: {made.num_images} {made.kind} of shape {made.shape}, {len(made.class_names)} classes{told}")
    if made.latent is not None:
        latent = made.latent
        print(f"latents: mean {latent.mean:.3f}, std {latent.std:.3f} after scaling by {latent.scaling_factor:g}")
    print(f"use it with: {used_with(out, made)}")


@app.command("show")
def data_show(
    prepared: Annotated[Path, typer.Argument(help="Directory that prepare wrote.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to write.", show_default="PREPARED.png, beside PREPARED")
    ] = None,
    columns: Annotated[int, typer.Option(min=1, max=64, help="Images of each class.")] = 8,
) -> None:
    """Draw what the trainer will see, a row per class, and print the range of its numbers."""
    print_beginning(f"show {prepared}")
    from orchestrator.runs.surroundings import require_makeable

    require_makeable(out)
    from orchestrator.runs.data import show_prepared
    from orchestrator.terminal.found import print_found
    from workloads.data.found import read_found
    from workloads.data.prepare import FOUND

    target = out or prepared.resolve().with_name(f"{prepared.resolve().name}.png")
    view = show_prepared(prepared, target, columns)
    found = read_found(prepared / FOUND)
    if found is not None:
        print_found(found)
    shown = "decoded by their VAE" if view.decoded else "as they are"
    print(f"each {view.shape}, {view.low:.3f} to {view.high:.3f}, mean {view.mean:.3f}, std {view.std:.3f} ({shown})")
    print(f"{target}: a row per class")
