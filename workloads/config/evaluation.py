"""Protocols: everything a score depends on. Two scores are comparable only under the same protocol."""

import re
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from workloads.config.base import SHA256_PATTERN, GrownConfig, Name, Real, StrictConfig, UserPath, Whole
from workloads.config.explain import short

OWN_SAMPLERS = ("ddim", "dpm++", "ddpm")

VARIANCE_SAMPLERS = frozenset({"ddpm", "DDPMScheduler", "DDPMParallelScheduler"})
"""Samplers that add noise of a variance that the network may have learned; diffusers has no others."""

_SCHEDULER_NAME = re.compile(r"[A-Z]\w*Scheduler")


class SamplingConfig(GrownConfig):
    """How images are drawn from an ensemble."""

    later = frozenset({"options", "variance", "guidance_channels"})

    sampler: str = "ddim"
    """ddim (arXiv:2010.02502), dpm++: second-order multistep DPM-Solver++ (arXiv:2211.01095), ddpm: ancestral, over
    num_steps timesteps from T - 1 to 0 (arXiv:2102.09672, Sec. 4), as DiT is sampled; or any diffusers scheduler by
    its name, such as EulerDiscreteScheduler, with diffusers' defaults."""

    options: dict[str, JsonValue] = Field({})
    """Arguments of the scheduler that `sampler` names, such as {use_karras_sigmas: true}."""

    num_steps: Whole = Field(50, ge=1, le=1_000_000)
    """Denoising steps."""

    eta: Real = Field(0.0, ge=0, le=1)
    """DDIM's noise: 0 deterministic, 1 as much as DDPM. DPM-Solver++ takes 0 only."""

    variance: Literal["learned", "fixed"] | None = None
    """Of the noise that ddpm adds: what the network learned (arXiv:2102.09672, Eq. 15), or the posterior's (Ho et al.
    2020, Sec. 3.2). None: learned where a network learns it. ddim and dpm++ leave out what it learned; another
    scheduler must know what to do with it, or be given fixed."""

    guidance_scale: Real = Field(1.0, ge=0)
    """Classifier-free guidance (arXiv:2207.12598); 1 is none. Needs data.class_conditional."""

    guidance_channels: Whole | None = Field(None, ge=1)
    """Guide the first channels only, the others being predicted for the class; DiT's results guide 3 of 4.
    None: all."""

    @model_validator(mode="after")
    def _check_sampler(self) -> "SamplingConfig":
        is_own = self.sampler in OWN_SAMPLERS
        if not is_own and _SCHEDULER_NAME.fullmatch(self.sampler) is None:
            raise ValueError(
                f"sampler is {short(self.sampler)}; it must be {', '.join(OWN_SAMPLERS)} or a scheduler of diffusers, "
                "such as EulerDiscreteScheduler"
            )
        if is_own and self.options:
            raise ValueError(
                f"options {', '.join(self.options)} are of a scheduler that is named, but sampler is {self.sampler}; "
                "name a scheduler of diffusers, such as DDIMScheduler"
            )
        if self.sampler in {"dpm++", "ddpm"} and self.eta != 0:
            nature = "is deterministic" if self.sampler == "dpm++" else "has noise of its own"
            raise ValueError(f"eta is {self.eta}, but {self.sampler} {nature}; set eta to 0 or the sampler to ddim")
        if self.sampler == "ddpm" and self.num_steps == 1:
            raise ValueError("num_steps is 1, but ddpm goes from the noisiest timestep to the cleanest; set 2 or more")
        return self

    @model_validator(mode="after")
    def _check_variance(self) -> "SamplingConfig":
        if (kind := self.options.get("variance_type")) in {"learned", "learned_range"}:
            raise ValueError(f"options.variance_type is {kind}; leave it out and say variance: learned")
        if self.variance == "learned" and self.sampler not in VARIANCE_SAMPLERS:
            raise ValueError(
                f"variance is learned, but {self.sampler} adds no noise of a learned variance; set the sampler to ddpm "
                "or variance to fixed"
            )
        return self


Metric = Literal["inception_score", "precision_recall", "sfid", "kid"]


class ProtocolConfig(GrownConfig):
    """Named in a config by `evaluation: fid50k`, or `evaluation: {name: fid50k, num_samples: 2000}`."""

    later = frozenset({"metrics", "resize", "reference_statistics", "dinov2_weights", "dinov2_sha256"})

    name: Name
    """The protocol's name; with changed fields it still counts as another protocol, by its hash."""

    extractor: Literal["inception", "dinov2", "fashion-cnn"]
    """Feature network: the 2015-12-05 Inception-v3 (the score is then FID), DINOv2 ViT-L/14 (FD-DINOv2,
    arXiv:2306.04675), or the small Fashion-MNIST classifier in this package (the score is then FD-fashion-cnn)."""

    num_samples: Whole = Field(ge=2, le=100_000_000)
    """Generated images."""

    batch_size: Whole = Field(100, ge=1, le=1_000_000)
    """Images generated at once. Part of the protocol because it changes the last bits of the result."""

    seed: Whole = 0
    """Seed of the generated images."""

    sampling: SamplingConfig = SamplingConfig()
    """Sampler, steps and guidance."""

    metrics: tuple[Metric, ...] = ()
    """Measured beside the distance, of the same samples; no part of its protocol. inception_score (arXiv:1606.03498),
    precision_recall (arXiv:1904.06991), kid (arXiv:1801.01401), sfid: the distance of spatial features
    (arXiv:2103.03841), for inception only. A comparison measures the first two unless some are named."""

    resize: Literal["tensorflow", "clean"] = "tensorflow"
    """How images reach the size of inception: as the original network does, or antialiased and in floating point
    (Clean-FID, arXiv:2104.11222, with which MEME was scored)."""

    reference_statistics: UserPath | None = None
    """Mean and covariance of the reference's features from a file: ADM's or clean-fid's .npz, or torch-fidelity's .pt.
    None: those of the reference images. precision, recall and kid compare with the images in ADM's file (arr_0), and
    where there are none with the reference images."""

    inception_weights: UserPath | None = None
    """File with the Inception weights in torch-fidelity's format. None: $REMEME_INCEPTION, then the package
    of the extra rememe[inception]."""

    inception_sha256: str | None = Field(None, pattern=SHA256_PATTERN)
    """What the SHA-256 of inception_weights must be; required with it unless it is torch-fidelity's own file."""

    dinov2_weights: UserPath | None = None
    """Meta's dinov2_vitl14_pretrain.pth, or the same tensors as .safetensors. None: $REMEME_DINOV2."""

    dinov2_sha256: str | None = Field(None, pattern=SHA256_PATTERN)
    """What the SHA-256 of that file must be."""

    @model_validator(mode="after")
    def _check_network(self) -> "ProtocolConfig":
        if self.extractor != "inception":
            if "sfid" in self.metrics:
                raise ValueError(f"metrics names sfid, which {self.extractor} has no features for; leave it out")
            if self.extractor == "dinov2" and "inception_score" in self.metrics:
                raise ValueError("metrics names inception_score, but dinov2 has no classifier; leave it out")
            if self.resize != "tensorflow":
                raise ValueError(f"resize is {self.resize}, which is for inception; leave it out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or "name" not in value:
            return value
        name, own = value["name"], value.get("sampling") or {}
        if not isinstance(name, str):
            return value
        known = PROTOCOLS.get(name)
        # A name of one's own will do if all that has no default is said.
        if known is None and not {"extractor", "num_samples"} <= value.keys():
            raise ValueError(f"no protocol is called {short(name)}; known: {', '.join(PROTOCOLS)}")
        # What is no section is refused by its name.
        sampling = (known or {}).get("sampling", {}) | own if isinstance(own, dict) else own
        return (known or {}) | value | {"sampling": sampling}


class HeldOutSpec(StrictConfig):
    """How the denoising loss on images kept out of training is measured."""

    num_images: Whole = Field(256, ge=1)
    """Images measured at each part of the timestep axis; all that are held out if those are fewer."""

    num_bins: Whole = Field(20, ge=1)
    """Equal parts of the timestep axis."""

    seed: Whole = 0
    """Seed of the choice of images and of their noise, which are the same for all networks."""


PROTOCOLS: dict[str, dict[str, Any]] = {
    "fid50k": {
        "extractor": "inception",
        "num_samples": 50_000,
        "sampling": {"sampler": "ddim", "num_steps": 200},
    },
    "fid10k": {
        "extractor": "inception",
        "num_samples": 10_000,
        "sampling": {"sampler": "ddim", "num_steps": 100},
    },
    "fid2k": {
        "extractor": "inception",
        "num_samples": 2_000,
        "sampling": {"sampler": "dpm++", "num_steps": 20},
    },
    "fd-dinov2-50k": {
        "extractor": "dinov2",
        "num_samples": 50_000,
        "sampling": {"sampler": "ddim", "num_steps": 200},
    },
    "demo": {
        "extractor": "fashion-cnn",
        "num_samples": 1_000,
        "sampling": {"sampler": "dpm++", "num_steps": 20, "guidance_scale": 2.5},
    },
}
"""Settings behind each name; a run may change any of them."""
