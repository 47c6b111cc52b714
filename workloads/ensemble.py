"""An ensemble: interval table, experts, diffusion (and VAE) in one directory. What training yields, sampling takes."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from workloads.config.base import StrictConfig
from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import SamplingConfig
from workloads.config.intervals import IntervalTable
from workloads.config.job import DataSpec
from workloads.config.run import RunConfig
from workloads.data.latents import first_stage_weights, load_first_stage
from workloads.data.prepared import LatentInfo, PreparedDataset
from workloads.device import require_device
from workloads.diffusion.sampling import make_scheduler
from workloads.errors import CheckpointError, ConfigError
from workloads.files import new_directory, sha256_file
from workloads.models.build import NETWORK, WEIGHTS, load_model, new_model
from workloads.models.remix import REMIX_WEIGHTS, RemixNetwork
from workloads.places import EnsembleDir, JobDir, require_ensemble
from workloads.progress import Progress
from workloads.sealed import content_hash, read_json, require_intact, write_json
from workloads.training.result import completed

if TYPE_CHECKING:
    from workloads.evaluation.draw import Samples

MADE_ANEW = "run rememe train again, which gathers the ensemble anew"

MAX_MIXED = 2
"""Mixed experts kept at once. Sampling goes through them in order and comes back only with the next batch."""


class EnsembleIndex(StrictConfig):
    """What ensemble.json holds."""

    format_version: int = 1
    config: RunConfig
    data: DataSpec
    class_names: tuple[str, ...]
    weights_sha256: tuple[str, ...]
    networks_sha256: tuple[str, ...] = ()
    """Of what says how each network is built; empty in files of earlier versions."""

    vae_sha256: dict[str, str] = Field(default_factory=dict)
    """Of the files of the VAE by name; empty in files of earlier versions."""

    latent: LatentInfo | None = None

    scores: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What was measured of it, by the hash of the protocol; see Score."""


def write_ensemble(target: Path, config: RunConfig, dataset: PreparedDataset, work_dirs: Sequence[Path]) -> "Ensemble":
    """Gather finished experts (work directories of train_job, clean end first; one for a remix) into one directory."""
    digests, networks = [], []
    with new_directory(target) as scratch:
        place = EnsembleDir(scratch)
        for index, work_dir in enumerate(work_dirs):
            result = completed(work_dir)
            if result is None:
                raise CheckpointError(f"expert {index} is not finished in {work_dir}; train it first")
            source = (work_dir / result.weights_file).parent
            copy = place.remix if source == JobDir(work_dir).remix else place.expert(index)
            shutil.copytree(source, copy)
            digests.append(result.weights_sha256)
            networks.append(sha256_file(copy / NETWORK))
        latent = dataset.manifest.latent
        if latent is not None:
            # Another decoder would make other images of the same latents.
            again = "put back what the latents were made with, or prepare the data again"
            require_intact(first_stage_weights(latent.vae), latent.vae_sha256, again)
            shutil.copytree(latent.vae, place.vae)
        index_file = EnsembleIndex(
            config=config,
            data=dataset.spec(config.data),
            class_names=dataset.class_names,
            weights_sha256=tuple(digests),
            networks_sha256=tuple(networks),
            vae_sha256=_vae_sha256(place),
            latent=latent,
        )
        write_json(place.index, index_file.model_dump(mode="json"))
    return Ensemble.load(target)


def bake(ensemble: "Ensemble", target: Path, on_progress: Progress) -> "Ensemble":
    """Write the experts of a remix out as plain networks; sampling then mixes nothing and costs what one does."""
    digests, networks, num_experts = [], [], len(ensemble.intervals)
    with new_directory(target) as scratch:
        place = EnsembleDir(scratch)
        for index in range(num_experts):
            model: Any = ensemble.expert(index)
            model.save_pretrained(place.expert(index))
            digests.append(sha256_file(place.expert(index) / WEIGHTS))
            networks.append(sha256_file(place.expert(index) / NETWORK))
            on_progress(index + 1, num_experts)
        if ensemble.index.latent is not None:
            shutil.copytree(EnsembleDir(ensemble.path).vae, place.vae)
        sums = {
            "weights_sha256": tuple(digests),
            "networks_sha256": tuple(networks),
            "vae_sha256": _vae_sha256(place),
            "scores": {},  # of the remix; mixed beforehand, the last bits of a sample may be others
        }
        write_json(place.index, ensemble.index.model_copy(update=sums).model_dump(mode="json"))
    return Ensemble.load(target)


def swap_expert(ensemble: "Ensemble", index: int, work_dir: Path, target: Path) -> "Ensemble":
    """Write the ensemble out anew with expert `index` (0 is nearest the clean image) from another finished job.

    work_dir: where that job lies, runs/store/KEY. Its network must take and give what the others do. ConfigError for a
    remix, whose experts are mixtures (bake it first), or if there is no such expert; CheckpointError if the job is not
    finished.
    """
    if ensemble.is_mixed:
        raise ConfigError(f"{ensemble.path} is a remix, whose experts are mixtures; bake it first: rememe bake")
    if not 0 <= index < len(ensemble.intervals):
        raise ConfigError(f"there is no expert {index}; {ensemble.path} has experts 0 to {len(ensemble.intervals) - 1}")
    result = completed(work_dir)
    if result is None:
        raise CheckpointError(f"{work_dir} holds no finished expert; rememe store ls shows which there are")
    with new_directory(target) as scratch:
        # No more than the networks: what was measured of the ensemble, which may lie beside them, is not of this one.
        place, others = EnsembleDir(scratch), EnsembleDir(ensemble.path)
        for number in range(len(ensemble.intervals)):
            source = (work_dir / result.weights_file).parent if number == index else others.expert(number)
            shutil.copytree(source, place.expert(number))
        if others.vae.is_dir():
            shutil.copytree(others.vae, place.vae)
        experts = [place.expert(number) for number in range(len(ensemble.intervals))]
        sums = {
            "weights_sha256": tuple(sha256_file(folder / WEIGHTS) for folder in experts),
            "networks_sha256": tuple(sha256_file(folder / NETWORK) for folder in experts),
            "scores": {},
        }
        write_json(place.index, ensemble.index.model_copy(update=sums).model_dump(mode="json"))
    return Ensemble.load(target, str(ensemble.device))


def _vae_sha256(place: EnsembleDir) -> dict[str, str]:
    files = sorted(file for file in place.vae.rglob("*") if file.is_file())
    return {str(file.relative_to(place.vae)): sha256_file(file) for file in files}


class Ensemble:
    """Experts loaded on first use, and the table that says who denoises which timestep."""

    def __init__(self, path: Path, index: EnsembleIndex, device: str = "cpu") -> None:
        self.path = path
        self._place = EnsembleDir(path)
        self.index = index
        self.device = require_device(device)
        self.config = index.config
        self.intervals: IntervalTable = index.config.intervals
        self._experts: dict[int, nn.Module] = {}

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu") -> "Ensemble":
        """From a run directory or its ensemble/ folder. Raises ConfigError if there is none, or no such device.

        DamagedFileError if it says not what it said when it was written.
        """
        place = require_ensemble(Path(path))
        return cls(place.path, read_json(place.index, EnsembleIndex.model_validate, MADE_ANEW), device)

    def keep_score(self, protocol_hash: str, score: Mapping[str, Any]) -> None:
        """Write a score down where the ensemble says what it is. StorageError when the disk is full."""
        self.index = self.index.model_copy(update={"scores": self.index.scores | {protocol_hash: dict(score)}})
        write_json(self._place.index, self.index.model_dump(mode="json"))

    def verify(self) -> None:
        """Compare all networks with their checksums. DamagedFileError about the first that is not what was gathered."""
        for check in self.checks():
            check()

    def checks(self) -> Iterator[Callable[[], None]]:
        """One per network, and one of the VAE; each raises DamagedFileError if that is not what was gathered."""
        if self.is_mixed:
            yield partial(self._check, self._place.remix / REMIX_WEIGHTS, 0)
        else:
            for index in range(len(self.intervals)):
                yield partial(self._check, self._place.expert(index) / WEIGHTS, index)
        yield self._check_vae

    @property
    def diffusion(self) -> DiffusionConfig:
        return self.config.diffusion

    @property
    def data(self) -> DataSpec:
        return self.index.data

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.index.class_names

    @property
    def num_classes(self) -> int | None:
        """Number of classes the experts are told, None if they are not."""
        return self.data.num_classes

    @property
    def shape_CHW(self) -> tuple[int, int, int]:
        """Shape of what is denoised: an image, or a latent."""
        return (self.data.channels, self.data.image_size, self.data.image_size)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that turns noise into images: weights, intervals, diffusion, latent decoding."""
        return content_hash(
            {
                "weights": self.index.weights_sha256,
                "cuts": self.intervals.cuts,
                "diffusion": self.diffusion.model_dump(mode="json"),
                "latent": None
                if self.index.latent is None
                else self.index.latent.model_dump(mode="json", exclude={"vae"}),
            }
        )

    def expert(self, index: int) -> nn.Module:
        """The expert's network in evaluation mode. DamagedFileError if it is not as it was gathered.

        Experts of a remix are mixed when asked for; the last MAX_MIXED are kept.
        """
        if self.is_mixed:
            return self._remix.expert(index)
        if index not in self._experts:
            folder = self._place.expert(index)
            self._check(folder / WEIGHTS, index)
            self._experts[index] = load_model(folder).to(self.device).eval()
        return self._experts[index]

    @property
    def is_mixed(self) -> bool:
        """Whether its experts are mixtures, with coefficients."""
        return self._place.remix.is_dir()

    @property
    def coefficients_NK(self) -> np.ndarray:
        """Of a remix: what each expert is mixed of, averaged over layers. ConfigError if it is none."""
        table_NK: np.ndarray = self._remix.table_NLK.mean(1).cpu().numpy()
        return table_NK

    @property
    def num_coefficient_rows(self) -> int:
        """Of a remix: 1, or the number of mixed layers where each has coefficients of its own."""
        return int(self._remix.table_NLK.shape[1])

    @cached_property
    def _remix(self) -> RemixNetwork:
        if not self.is_mixed:
            raise ConfigError(
                f"{self.path} is no remix: its {len(self.intervals)} experts are plain networks, without coefficients"
            )
        folder = self._place.remix
        self._check(folder / REMIX_WEIGHTS, 0)
        tensors = load_file(folder / REMIX_WEIGHTS)
        return RemixNetwork(lambda: new_model(folder), tensors, self.device, min(MAX_MIXED, len(self.intervals)))

    def _check(self, weights: Path, index: int) -> None:
        require_intact(weights, self.index.weights_sha256[index], MADE_ANEW)
        if self.index.networks_sha256:
            require_intact(weights.with_name(NETWORK), self.index.networks_sha256[index], MADE_ANEW)

    def _check_vae(self) -> None:
        for name, sha256 in self.index.vae_sha256.items():
            require_intact(self._place.vae / name, sha256, MADE_ANEW)

    def sample(
        self,
        num: int = 64,
        *,
        seed: int = 0,
        sampler: str | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        on_progress: Progress = lambda _done, _total: None,
    ) -> "Samples":
        """Draw images; the same arguments give the same images.

        sampler (ddim, dpm++, ddpm or a scheduler of diffusers), num_steps, guidance_scale (arXiv:2207.12598): None is
        what the run's own protocol says. ConfigError if they do not go with the run.
        """
        # It draws from ensembles, so it knows them.
        from workloads.evaluation.draw import draw, sampling_protocol

        changes = {"sampler": sampler, "num_steps": num_steps, "guidance_scale": guidance_scale}
        given = {key: value for key, value in changes.items() if value is not None}
        return draw(self, sampling_protocol(self.config, num, seed, given), on_progress)

    def steps(self, sampling: SamplingConfig | None = None) -> list[tuple[float, int]]:
        """(timestep, expert that acts there) of each denoising step, from noise to image; None: the run's protocol."""
        scheduler: Any = make_scheduler(self.diffusion, sampling or self.config.evaluation.sampling)
        return [(timestep, self.intervals.expert_of(timestep)) for timestep in scheduler.timesteps.tolist()]

    def denoise(self, x_BCHW: Tensor, timestep: float, labels_B: Tensor | None = None) -> Tensor:
        """Output of the expert that owns the timestep: (B, C, H, W), or 2 C channels if it learned variances."""
        model: Any = self.expert(self.intervals.expert_of(timestep))
        t_B = torch.full((len(x_BCHW),), timestep, device=x_BCHW.device)
        output_BCHW: Tensor = model(x_BCHW, t_B, class_labels=labels_B).sample
        return output_BCHW

    def decode(self, x_BCHW: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) from what sampling yields; values beyond [-1, 1] are clipped."""
        if self.index.latent is not None:
            x_BCHW = self.vae.decode(self.index.latent.unscale(x_BCHW)).sample
        return ((x_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    @cached_property
    def vae(self) -> Any:
        """What makes images of latents; only where there are latents. DamagedFileError if it is another."""
        self._check_vae()
        return load_first_stage(self._place.vae).to(self.device)
