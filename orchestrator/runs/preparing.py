"""`rememe data prepare`: any source to memory-mapped shards."""

from pathlib import Path
from typing import Any

from orchestrator.terminal.view import print_note, progress
from workloads.config.base import StrictConfig
from workloads.config.data import AnyData
from workloads.config.load import validate
from workloads.data.prepare import prepare
from workloads.data.sources import detect_source


class _Section(StrictConfig):
    data: AnyData


def prepare_data(
    source: str, out: Path, *, size: int, channels: int, vae: Path | None, split: str, max_bad: int
) -> None:
    """Prepare and say what came of it."""
    fields: dict[str, Any] = detect_source(source) | {"image_size": size, "channels": channels}
    if fields["kind"] in {"torchvision", "cifar10"}:
        fields["split"] = split
    config = validate(_Section, {"data": fields}).data
    with progress("preparing", "images") as advance:
        summary = prepare(config, out, vae=vae, max_bad=max_bad, on_progress=advance)
    manifest = summary.manifest
    print(
        f"{out}: {manifest.num_images} {manifest.kind} of shape {manifest.shape}, {len(manifest.class_names)} classes"
    )
    if manifest.latent is not None:
        latent = manifest.latent
        print(f"latents: mean {latent.mean:.3f}, std {latent.std:.3f} after scaling by {latent.scaling_factor:g}")
    if summary.bad:
        print_note(f"{len(summary.bad)} images did not decode and were left out: {', '.join(summary.bad)}")
    print(f"use it with: data='{{kind: prepared, path: {out}, image_size: {manifest.shape[2]}}}'")
