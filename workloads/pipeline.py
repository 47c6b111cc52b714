"""From a run description to a score: jobs, ensemble, samples, score. Once, for torchrun and for Ray.

What Ray adds is where a step runs: who calls `score_ensemble` may say how samples are drawn and how they are measured.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workloads.config import ProtocolConfig, RunConfig
from workloads.config.data import AnyData
from workloads.config.load import OF_LATENTS, check_reference
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.diffusion.sampling import make_scheduler
from workloads.ensemble import Ensemble, write_ensemble
from workloads.errors import DamagedFileError, DataError
from workloads.evaluation.generate import batch_indices, generate_batch
from workloads.evaluation.protocol import Score, samples_key
from workloads.evaluation.samples import SampleStore
from workloads.evaluation.score import check_protocol, evaluate_samples
from workloads.files import new_file, write_text
from workloads.grid import sample_grid
from workloads.places import RunDir
from workloads.progress import Progress
from workloads.sealed import read_json, sealed, unsealed
from workloads.threads import one_thread
from workloads.training.result import completed

logger = logging.getLogger(__name__)

GRID_COLUMNS = 10
GRID_ROWS = 10


def ignore_progress(done: int, total: int) -> None:
    """For who does not want to hear."""


@dataclass(frozen=True)
class Scored:
    """A score and the picture that goes with it."""

    score: Score
    protocol: ProtocolConfig
    grid: Path
    is_own: bool
    """Whether the protocol is the run description's own."""


Draw = Callable[[Ensemble, ProtocolConfig, SampleStore], None]
"""Draws the batches of a protocol that a store lacks, wherever that is done."""

Measure = Callable[..., Score]
"""measure(samples, reference, protocol, cache_dir=...), as evaluate_samples does, wherever that is done."""


def check_score(config: RunConfig) -> None:
    """Raise ConfigError for what would be missed only when the networks are trained: a feature network, a sampler."""
    check_reference(config)
    data, reference = (None if one is None else _pixels_of(one) for one in (config.data, config.reference))
    check_protocol(config.evaluation, reference or data)
    make_scheduler(config.diffusion, config.evaluation.sampling)


def _pixels_of(data: AnyData) -> int | None:
    """Width of its images; None where they may be latents."""
    return None if data.kind in OF_LATENTS else data.image_size


def training_data(config: RunConfig, folder: Path, on_progress: Progress | None = None) -> PreparedDataset:
    """What the run trains on, made ready in `folder` on first use. DataError if it cannot be had."""
    return _whole(ensure_prepared(config.data, folder, on_progress=on_progress))


def reference_data(config: RunConfig, folder: Path, on_progress: Progress | None = None) -> PreparedDataset:
    """What its score compares with: `reference`, or the training data. DataError if it cannot be had, or if no score
    can be measured with it."""
    found = _whole(ensure_prepared(config.reference or config.data, folder, on_progress=on_progress))
    # Statistics from a file take the place of those of the images.
    if found.num_images < 2 and config.evaluation.reference_statistics is None:
        name = "data" if config.reference is None else "reference"
        raise DataError(
            f"{name} has {found.num_images} image, but a score compares with how several differ; give 2 or more, or "
            "train with --no-evaluate"
        )
    return found


def check_comparable(dataset: PreparedDataset, reference: PreparedDataset) -> None:
    """DataError if the reference's images are of another size than the data's, which a description of prepared data
    does not tell; of latents that is known when they are decoded.
    """
    if "latents" in {dataset.manifest.kind, reference.manifest.kind}:
        return
    (_, *ours), (_, *theirs) = dataset.manifest.shape, reference.manifest.shape
    if ours != theirs:
        raise DataError(
            f"the reference's images are {' x '.join(map(str, theirs))} pixels and the data's "
            f"{' x '.join(map(str, ours))}; a score compares images of one size"
        )


def _whole(dataset: PreparedDataset) -> PreparedDataset:
    dataset.verify_once()
    return dataset


def gather(run: RunDir, config: RunConfig, dataset: PreparedDataset, job_dirs: Sequence[Path]) -> Ensemble:
    """The finished jobs as one ensemble; what is there already is kept if it is of this run and these weights."""
    if run.ensemble.index.is_file():
        digests = tuple(result.weights_sha256 for one in job_dirs if (result := completed(one)))
        try:
            ensemble = Ensemble.load(run.path)
            if ensemble.config == config and ensemble.index.weights_sha256 == digests:
                ensemble.verify()
                return ensemble
        except DamagedFileError as error:
            logger.warning("%s. That is done now", error)
    return write_ensemble(run.ensemble.path, config, dataset, job_dirs)


def draw_here(
    ensemble: Ensemble, protocol: ProtocolConfig, samples: SampleStore, on_progress: Progress = ignore_progress
) -> None:
    """In this process, batch by batch."""
    batches = batch_indices(protocol)
    missing = samples.missing(protocol)
    with one_thread():
        for num_left, index in zip(range(len(missing) - 1, -1, -1), missing, strict=True):
            samples.write(index, generate_batch(ensemble, protocol, batches[index])[0])
            on_progress(
                min((len(batches) - num_left) * protocol.batch_size, protocol.num_samples), protocol.num_samples
            )


def score_ensemble(
    ensemble: Ensemble,
    protocol: ProtocolConfig,
    reference: PreparedDataset,
    run: RunDir,
    *,
    cache_dir: Path,
    draw: Draw = draw_here,
    measure: Measure = evaluate_samples,
) -> Scored:
    """Draw what is missing of the samples, measure them, and keep the score with its protocol and a grid of samples."""
    samples = SampleStore(run.samples(samples_key(protocol, ensemble.fingerprint)))
    draw(ensemble, protocol, samples)
    score = measure(samples, reference, protocol, cache_dir=cache_dir)
    _keep(score, run.scores)
    ensemble.keep_score(score.protocol_hash, asdict(score))
    is_own = protocol == ensemble.config.evaluation
    grid = run.grid if is_own else run.other_grid(protocol.name, score.protocol_hash)
    _save_grid(samples, protocol, grid)
    return Scored(score, protocol, grid, is_own)


def read_scores(file: Path) -> dict[str, dict[str, Any]]:
    """Scores of a run by the hash of their protocol. DamagedFileError if one is not as it was written."""
    return read_json(file, _scores_of, "remove it and run rememe evaluate again") if file.exists() else {}


def _scores_of(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    # Each is sealed by itself: a file of scores is read by others too, who expect nothing else in it.
    scores = {key: unsealed(value) for key, value in raw.items()}
    for key, score in scores.items():
        if Score(**score).protocol_hash != key:
            raise ValueError(f"the score {key} is of another protocol")
    return scores


def _keep(score: Score, file: Path) -> None:
    try:
        kept = read_scores(file)
    except DamagedFileError as error:
        aside = file.with_suffix(".damaged")
        file.replace(aside)
        logger.warning("%s. It was moved to %s, and the score that was just measured is kept", error, aside.name)
        kept = {}
    scores = kept | {score.protocol_hash: asdict(score)}
    write_text(file, json.dumps({key: sealed(one) for key, one in scores.items()}, indent=2))


def _save_grid(samples: SampleStore, protocol: ProtocolConfig, file: Path) -> None:
    images = samples.images(protocol)
    shown = images.__getitems__(list(range(min(len(images), GRID_COLUMNS * GRID_ROWS))))
    with new_file(file) as scratch:
        sample_grid(np.stack(shown), num_columns=GRID_COLUMNS).save(scratch, format="png")
