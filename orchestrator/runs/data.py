"""The data of a configuration: made ready on first use, and what a plan needs to know of it."""

from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import yaml

from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.plan.places import RunsDir
from orchestrator.runs.surroundings import require_writable
from orchestrator.terminal.notes import print_note
from orchestrator.terminal.progress import progress
from orchestrator.terminal.words import si
from workloads.config import DataSpec, RunConfig
from workloads.config.base import StrictConfig
from workloads.config.data import AnyData, LatentFilesData
from workloads.config.load import validate
from workloads.data.found import SourceContents
from workloads.data.labels import NO_LABELS
from workloads.data.prepare import PrepareSummary, check, ensure_prepared, prepare
from workloads.data.prepared import Manifest, PreparedDataset
from workloads.data.sources import SOURCES, detect_source
from workloads.errors import DataError, StorageError
from workloads.memory import total_bytes
from workloads.training.schedule import warmup_remark

if TYPE_CHECKING:
    from workloads.analysis.prepared import View

PREPARING = "preparing data"


def plan_as_far_as_known(config: RunConfig, runs_dir: Path, *, row: str = "") -> Plan:
    """What would run. Works without data and initial weights too; keys are then unknown. row: of a comparison."""
    import torch  # and diffusers, which data does without

    from workloads.diffusion.sampling import make_scheduler
    from workloads.training.state import slow_precision

    check_network(config)
    note_warmup(config, row)
    make_scheduler(config.diffusion, config.evaluation.sampling)  # refuses what `train` would
    spec = spec_of(config, runs_dir)
    if config.initial_weights is not None and not config.initial_weights.exists():
        print_note(f"initial_weights {config.initial_weights} does not exist; content keys need it and are left out")
        config, spec = config.model_copy(update={"initial_weights": None}), spec.model_copy(update={"fingerprint": ""})
    plan = make_plan(config, spec)
    has = total_bytes()
    largest = max(plan.jobs, key=lambda job: job.memory_bytes)
    if largest.resources.num_gpus == 0 and largest.memory_bytes > has:
        print_note(
            f"{largest.name} takes about {si(largest.memory_bytes)}B of memory and this machine has {si(has)}B: "
            "make model or training.batch_size smaller, or train on a cluster (--address)"
        )
    if largest.resources.num_gpus == 0 and (remark := slow_precision(torch.device("cpu"), config.training)):
        print_note(remark)
    return plan


def note_warmup(config: RunConfig, where: str = "") -> None:
    """Say so if the warm-up is longer than the training, which is no error, but hardly meant."""
    if remark := warmup_remark(config.training):
        print_note(f"{where}: {remark}" if where else remark)


def check_network(config: RunConfig) -> None:
    """ConfigError if a network does not fit the data as it is configured: told before hours of preparing it."""
    make_plan(config.model_copy(update={"initial_weights": None}), as_configured(config.data))


def spec_of(config: RunConfig, runs_dir: Path) -> DataSpec:
    """The data a plan needs to know; as configured, without a fingerprint, where require_data raises."""
    return _spec(config.data, runs_dir)[0]


def require_data(config: RunConfig, runs_dir: Path) -> None:
    """DataError if the data that a plan is about cannot be had; for who has shown the plan as configured."""
    if why := why_no_data(config, runs_dir):
        raise DataError(f"{why}. Sizes are shown as configured; content keys need the data and are left out")


def why_no_data(config: RunConfig, runs_dir: Path) -> str:
    """Why the data of a configuration cannot be had; empty if it can."""
    return _spec(config.data, runs_dir)[1]


# A study plans many configurations of one data set: it is looked at once.
@lru_cache(maxsize=64)
def _spec(data: AnyData, runs_dir: Path) -> tuple[DataSpec, str]:
    """And why it cannot be had, if so."""
    try:
        with progress(PREPARING, "images") as advance:
            return ensure_prepared(data, RunsDir(runs_dir).data, on_progress=advance).spec(data), ""
    except (OSError, StorageError):
        require_writable(runs_dir)  # says so if that is why
        raise
    except DataError as error:
        return as_configured(data), str(error)


def as_configured(data: AnyData) -> DataSpec:
    """What a plan needs to know of the data, without a look at it; no fingerprint."""
    conditional = data.num_classes if data.class_conditional else None
    return DataSpec(fingerprint="", channels=data.channels, image_size=data.image_size, num_classes=conditional)


def prepare_data_of(config: RunConfig, runs: RunsDir) -> PreparedDataset:
    """The configuration's data as shards, made on first use with a progress bar. DataError if it cannot be had."""
    from workloads.pipeline import training_data

    with progress(PREPARING, "images") as advance:
        return training_data(config, runs.data, advance)


def prepare_reference_of(config: RunConfig, runs: RunsDir) -> PreparedDataset:
    """The images its score compares with, in the same way."""
    from workloads.pipeline import reference_data

    with progress(PREPARING, "images") as advance:
        return reference_data(config, runs.data, advance)


class _DataSection(StrictConfig):
    data: AnyData


def prepare_source(
    source: str, out: Path, *, vae: Path | None, max_bad: int, posterior: bool = False, **fields: Any
) -> PrepareSummary:
    """Any source of images as shards in `out`, with a progress bar. fields: as source_config takes them."""
    config = source_config(source, vae=vae, **fields)
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise DataError(
            f"{out} lies within {source}, and would be taken for a part of it next time; choose another OUT"
        )
    # Whoever encoded the latents that are there already is a part of their description.
    encoder = None if isinstance(config, LatentFilesData) else vae
    with progress("preparing", "images") as advance:
        return prepare(config, out, vae=encoder, posterior=posterior, max_bad=max_bad, on_progress=advance)


def check_source(source: str, **fields: Any) -> SourceContents:
    """What is in any source of images, with a progress bar; nothing is written."""
    config = source_config(source, **fields)
    with progress("checking", "images") as advance:
        return check(config, on_progress=advance)


def source_config(
    source: str, *, size: int, channels: int, vae: Path | None = None, label_column: str | None = None, **options: Any
) -> AnyData:
    """What a word on the command line and the options beside it mean. DataError for an option that has no meaning.

    options: fields of a data section, each None unless it was given.
    """
    found = detect_source(source)
    fields = {"image_size": size}
    if found["kind"] == "latent_files":
        if vae is None:
            raise DataError(
                f"{source} holds latents; name the VAE that made them with --vae, for samples to be decoded"
            )
        options["vae"] = vae
    else:
        fields["channels"] = channels
    if label_column == NO_LABELS:
        options["one_class"] = True
    elif label_column is not None:
        options["label_column"] = label_column
    given = {name: value for name, value in options.items() if value is not None}
    known = next(fields for fields in map(_fields_of, SOURCES) if fields["kind"].default == found["kind"])
    for name in given:
        if name not in known:
            option = "label-column" if name in {"one_class", "label_column"} else name.replace("_", "-")
            raise DataError(f"--{option} has no meaning for {source} (read as {found['kind']}); leave it away")
    return validate(_DataSection, {"data": found | fields | given}).data


def _fields_of(kind: type[StrictConfig]) -> dict[str, Any]:
    return dict(kind.model_fields)


def show_prepared(path: Path, out: Path, num_images: int) -> "View":
    """A picture of what a trainer sees of prepared data, written to `out`."""
    from workloads.analysis.prepared import look_at

    dataset = PreparedDataset(path)
    dataset.verify()
    view = look_at(dataset, num_images)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        view.grid.save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"{out} cannot be written ({error}); choose a file that ends in .png") from None
    return view


def used_with(prepared: Path, made: Manifest) -> str:
    """What a command that takes a description is told to use prepared data, as a shell reads it."""
    # All that it may not take from other prepared data, into which it is merged.
    fields: dict[str, Any] = {
        "kind": "prepared",
        "path": str(prepared),
        "image_size": made.shape[2],
        "channels": made.shape[0],
        # A description whose guidance needs classes would refuse this data otherwise.
        "class_conditional": len(made.class_names) > 1,
    }
    text = yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
    return f"data={quote(text.strip())}"
