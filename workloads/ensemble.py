"""An ensemble: interval table, experts, diffusion (and VAE) in one directory. What training yields, sampling takes."""

import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from workloads.config.base import StrictConfig, content_hash
from workloads.config.diffusion import DiffusionConfig
from workloads.config.intervals import IntervalTable
from workloads.config.job import DataSpec
from workloads.config.run import RunConfig
from workloads.data.latents import load_first_stage
from workloads.data.prepared import LatentInfo, PreparedDataset
from workloads.errors import CheckpointError, ConfigError
from workloads.files import new_directory, sha256_file, write_text
from workloads.models.build import WEIGHTS, load_model, new_model
from workloads.models.remix import REMIX_WEIGHTS, RemixNetwork
from workloads.places import EnsembleDir, JobDir, RunDir
from workloads.progress import Progress
from workloads.training.result import completed

NETWORK = "config.json"
"""The file save_pretrained writes the architecture to."""

CHECKSUM = "checksum"
"""Of all else in ensemble.json."""

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

    latent: LatentInfo | None = None


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
            shutil.copytree(latent.vae, place.vae)
        index_file = EnsembleIndex(
            config=config,
            data=dataset.spec(config.data),
            class_names=dataset.class_names,
            weights_sha256=tuple(digests),
            networks_sha256=tuple(networks),
            latent=latent,
        )
        _write_index(place.index, index_file)
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
        sums = {"weights_sha256": tuple(digests), "networks_sha256": tuple(networks)}
        _write_index(place.index, ensemble.index.model_copy(update=sums))
    return Ensemble.load(target)


def _write_index(file: Path, index: EnsembleIndex) -> None:
    raw = index.model_dump(mode="json")
    write_text(file, json.dumps(raw | {CHECKSUM: content_hash(raw)}, indent=2))


def _read_index(file: Path) -> EnsembleIndex:
    """CheckpointError if it is not as it was written."""
    try:
        raw = json.loads(file.read_text())
        # Of what stands there, not of what this version makes of it; files of earlier versions have none.
        checksum = raw.pop(CHECKSUM, None)
        index = EnsembleIndex.model_validate(raw)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{file} is damaged: {reason}; run rememe train again") from None
    if checksum is not None and checksum != content_hash(raw):
        raise CheckpointError(f"{file} was changed since it was written; run rememe train again")
    return index


class Ensemble:
    """Experts loaded on first use, and the table that says who denoises which timestep."""

    def __init__(self, path: Path, index: EnsembleIndex, device: str = "cpu") -> None:
        self.path = path
        self._place = EnsembleDir(path)
        self.index = index
        self.device = torch.device(device)
        self.config = index.config
        self.intervals: IntervalTable = index.config.intervals
        self._experts: dict[int, nn.Module] = {}

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> "Ensemble":
        """From a run directory or its ensemble/ folder. Raises ConfigError if there is none."""
        place = EnsembleDir(path) if EnsembleDir(path).index.is_file() else RunDir(path).ensemble
        if not place.index.is_file():
            missing = place.index.name
            raise ConfigError(
                f"{path} holds no ensemble ({missing} is missing); train one with: rememe train demo-meme"
            )
        return cls(place.path, _read_index(place.index), device)

    def verify(self) -> None:
        """Compare all networks with their checksums. CheckpointError about the first that is not what was gathered."""
        if self.is_mixed:
            self._check(self._place.remix / REMIX_WEIGHTS, 0)
        else:
            for index in range(len(self.intervals)):
                self._check(self._place.expert(index) / WEIGHTS, index)

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
        """The expert's network in evaluation mode. CheckpointError if its weights are not those it was made with.

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
        """Of a remix: what each expert is mixed of, averaged over layers."""
        table_NK: np.ndarray = self._remix.table_NLK.mean(1).cpu().numpy()
        return table_NK

    @cached_property
    def _remix(self) -> RemixNetwork:
        folder = self._place.remix
        self._check(folder / REMIX_WEIGHTS, 0)
        tensors = load_file(folder / REMIX_WEIGHTS)
        return RemixNetwork(lambda: new_model(folder), tensors, self.device, min(MAX_MIXED, len(self.intervals)))

    def _check(self, file: Path, index: int) -> None:
        if not file.is_file() or sha256_file(file) != self.index.weights_sha256[index]:
            raise CheckpointError(f"the weights of {file.parent} are missing or damaged; run rememe train again")
        network, sums = file.with_name(NETWORK), self.index.networks_sha256
        if sums and (not network.is_file() or sha256_file(network) != sums[index]):
            raise CheckpointError(f"{network} is missing or was changed; run rememe train again")

    def denoise(self, x_BCHW: Tensor, timestep: float, labels_B: Tensor | None = None) -> Tensor:
        """Output of the expert that owns the timestep: (B, C, H, W), or 2 C channels if it learned variances."""
        model: Any = self.expert(self.intervals.expert_of(timestep))
        t_B = torch.full((len(x_BCHW),), timestep, device=x_BCHW.device)
        output_BCHW: Tensor = model(x_BCHW, t_B, class_labels=labels_B).sample
        return output_BCHW

    def decode(self, x_BCHW: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) from what sampling yields; values beyond [-1, 1] are clipped."""
        if self.index.latent is not None:
            x_BCHW = self._vae.decode(self.index.latent.unscale(x_BCHW)).sample
        return ((x_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    @cached_property
    def _vae(self) -> Any:
        return load_first_stage(self._place.vae).to(self.device)
