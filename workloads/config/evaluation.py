"""Protocols: everything a score depends on. Two scores are comparable only under the same protocol."""

from typing import Any, Literal

from pydantic import Field, model_validator

from workloads.config.base import Name, Real, StrictConfig, UserPath, Whole
from workloads.config.explain import short


class SamplingConfig(StrictConfig):
    """How images are drawn from an ensemble."""

    sampler: Literal["ddim", "dpm++"] = "ddim"
    """DDIM (arXiv:2010.02502) or second-order multistep DPM-Solver++ (arXiv:2211.01095)."""

    num_steps: Whole = Field(50, ge=1, le=1_000_000)
    """Denoising steps."""

    eta: Real = Field(0.0, ge=0, le=1)
    """DDIM's noise: 0 deterministic, 1 as much as DDPM. DPM-Solver++ takes 0 only."""

    guidance_scale: Real = Field(1.0, ge=0)
    """Classifier-free guidance (arXiv:2207.12598); 1 is none. Needs data.class_conditional."""

    @model_validator(mode="after")
    def _check_eta(self) -> "SamplingConfig":
        if self.sampler == "dpm++" and self.eta != 0:
            raise ValueError(f"eta is {self.eta}, but dpm++ is deterministic; set eta to 0 or the sampler to ddim")
        return self


class ProtocolConfig(StrictConfig):
    """Named in a config by `evaluation: fid50k`, or `evaluation: {name: fid50k, num_samples: 2000}`."""

    name: Name
    """The protocol's name; with changed fields it still counts as another protocol, by its hash."""

    extractor: Literal["inception", "fashion-cnn"]
    """Feature network: the 2015-12-05 Inception-v3 (the score is then FID), or the small Fashion-MNIST
    classifier in this package (the score is then FD-fashion-cnn)."""

    num_samples: Whole = Field(ge=2, le=100_000_000)
    """Generated images."""

    batch_size: Whole = Field(100, ge=1, le=1_000_000)
    """Images generated at once. Part of the protocol because it changes the last bits of the result."""

    seed: Whole = 0
    """Seed of the generated images."""

    sampling: SamplingConfig = SamplingConfig()
    """Sampler, steps and guidance."""

    inception_weights: UserPath | None = None
    """File with the Inception weights in torch-fidelity's format. None: $REMEME_INCEPTION, then the package
    of the extra rememe[inception]."""

    inception_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """What the SHA-256 of inception_weights must be; required with it unless it is torch-fidelity's own file."""

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
    "demo": {
        "extractor": "fashion-cnn",
        "num_samples": 1_000,
        "sampling": {"sampler": "dpm++", "num_steps": 20, "guidance_scale": 2.5},
    },
}
"""Settings behind each name; a run may change any of them."""
