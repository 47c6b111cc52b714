"""Network architectures. The set is closed and visible: a new one is a class here and a line in models/build.py."""

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from workloads.config.base import Real, StrictConfig, Whole, not_a_flag

Share = Annotated[Fraction, BeforeValidator(not_a_flag), Field(ge=0, le=1), PlainSerializer(str, return_type=str)]
"""A part of a whole, exact: 0.5, 1 or "7/12"."""


MAX_PARAMETERS = 1e12
"""More than any machine holds; told before anything is asked of torch, whose numbers of elements end there."""

MAX_TOKENS = 2**18
"""Their positions are worked out, in memory, even where a network is only planned."""

MAX_BLOCKS = 400
"""Several times the deepest network published; each takes a moment to build, even where it takes no memory."""


class _UNetFields(StrictConfig):
    channels: Whole = Field(128, ge=1, le=65536)
    """Base width C; level i has C * channel_mult[i] channels."""

    channel_mult: tuple[Annotated[Whole, Field(ge=1, le=1024)], ...] = Field((1, 2, 3, 4), min_length=1, max_length=12)
    """Width of each resolution level in units of `channels`; each level halves the resolution."""

    num_res_blocks: Whole = Field(2, ge=1, le=100)
    """Residual blocks per encoder level; the decoder has one more."""

    attention_levels: tuple[Annotated[Whole, Field(ge=0)], ...] = (1, 2, 3)
    """Levels with self-attention, 0 being full resolution. The middle block always has it."""

    head_dim: Whole = Field(32, ge=1)
    """Channels per attention head."""

    norm_groups: Whole = Field(32, ge=1)
    """Groups of each GroupNorm; must divide every level's width."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * mult for mult in self.channel_mult)

    @property
    def num_blocks_about(self) -> int:
        """Residual blocks of encoder and decoder."""
        return len(self.channel_mult) * (2 * self.num_res_blocks + 1)

    def check_size(self, image_size: int) -> None:
        """Raise ValueError if images of this size do not suit the network, or make it too large."""
        num_levels = len(self.channel_mult)
        if image_size % 2 ** (num_levels - 1):
            raise ValueError(
                f"image_size {image_size} cannot be halved {num_levels - 1} times, as the {num_levels} levels of "
                f"model.channel_mult {list(self.channel_mult)} need; use a multiple of {2 ** (num_levels - 1)} "
                "or fewer levels"
            )
        _check_extent(self, image_size)

    def num_parameters_about(self, image_size: int) -> float:  # noqa: ARG002
        """By arithmetic: two 3 x 3 convolutions in each residual block."""
        return float(sum((2 * self.num_res_blocks + 1) * 2 * 9 * width**2 for width in self.widths))

    @model_validator(mode="after")
    def _check_levels(self) -> "_UNetFields":
        for level in self.attention_levels:
            if level >= len(self.channel_mult):
                raise ValueError(
                    f"attention_levels names level {level}; channel_mult has levels 0 to {len(self.channel_mult) - 1}"
                )
        for level, width in enumerate(self.widths):
            if width % self.norm_groups:
                raise ValueError(
                    f"level {level} has {width} channels, which norm_groups {self.norm_groups} does not divide"
                )
            if level in self.attention_levels and width % self.head_dim:
                raise ValueError(f"level {level} has {width} channels, which head_dim {self.head_dim} does not divide")
        if self.widths[-1] % self.head_dim:
            raise ValueError(
                f"the middle block has {self.widths[-1]} channels, which head_dim {self.head_dim} does not divide"
            )
        return self


class LDMUNetConfig(_UNetFields):
    """The U-Net of latent diffusion (arXiv:2112.10752). channels 224 is LDM-L, 128 is LDM-S."""

    kind: Literal["ldm_unet"] = "ldm_unet"


class IUNetConfig(_UNetFields):
    """MEME's iU-Net (arXiv:2306.04990): that U-Net with inception-mixer blocks in the encoder.

    The paper does not say which blocks are replaced; the default here is the layout that lands on its
    published size (82.6 M) and multiply-adds.
    """

    kind: Literal["iunet"] = "iunet"

    mixer_levels: tuple[Annotated[Whole, Field(ge=0)], ...] = (1, 2, 3)
    """Encoder levels made of inception-mixer blocks; the others, and the decoder, stay ordinary."""

    attention_share: tuple[Share, ...]
    """Share of a mixer's channels given to attention, one per mixer level; the rest is halved between the
    max-pool and the depthwise-convolution branch. A multiple of head_dim over the level's width."""

    pool_sizes: tuple[Annotated[Whole, Field(ge=1, le=256)], ...] = (2, 2, 1)
    """Average pooling in front of attention, one per mixer level (iFormer: 2 in early stages, 1 in late ones;
    the paper does not settle it for the iU-Net)."""

    mlp_ratio: Real = Field(4.0, gt=0, le=1024)
    """Hidden width of a mixer block's MLP over its width (iFormer's; the paper does not settle it)."""

    @model_validator(mode="after")
    def _check_mixers(self) -> "IUNetConfig":
        num_levels = len(self.channel_mult)
        for name, values in (("attention_share", self.attention_share), ("pool_sizes", self.pool_sizes)):
            if len(values) != len(self.mixer_levels):
                raise ValueError(
                    f"{name} has {len(values)} values for {len(self.mixer_levels)} mixer_levels: "
                    f"{list(self.mixer_levels)}"
                )
        for level, share in zip(self.mixer_levels, self.attention_share, strict=True):
            if level >= num_levels:
                raise ValueError(f"mixer_levels names level {level}; channel_mult has levels 0 to {num_levels - 1}")
            width = self.widths[level]
            heads = share * width / self.head_dim
            if heads.denominator != 1:
                raise ValueError(
                    f"attention_share {share} of level {level} gives {float(heads):g} heads of {self.head_dim} "
                    f"channels; it must be a multiple of {Fraction(self.head_dim, width)}, "
                    f"for the level is {width} channels wide"
                )
            if (width - int(share * width)) % 2:
                raise ValueError(
                    f"attention_share {share} of level {level} leaves {width - int(share * width)} channels, "
                    "which cannot be halved between pooling and convolution"
                )
        return self


class DiTConfig(StrictConfig):
    """Diffusion transformer (Peebles & Xie 2023, arXiv:2212.09748, Table 1 for the sizes)."""

    kind: Literal["dit"] = "dit"

    size: Literal["S", "B", "L", "XL"] | None = None
    """Stands for hidden_size, depth and num_heads; each may still be given."""

    hidden_size: Whole = Field(ge=4, le=65536)
    """Channels of a token; a multiple of 4 (sine and cosine, two axes) and of num_heads."""

    depth: Whole = Field(ge=1, le=256)
    """Transformer blocks."""

    num_heads: Whole = Field(ge=1)
    """Attention heads per block."""

    patch_size: Whole = Field(2, ge=1)
    """Pixels, or latent pixels, along the side of a token."""

    mlp_ratio: Real = Field(4.0, gt=0, le=1024)
    """Hidden width of a block's MLP over its width."""

    variance: Literal["fixed", "learned"] = "fixed"
    """learned: twice the output channels, the second half interpolating between the bounds of the reverse
    process's variance (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 15)."""

    frequency_shift: Annotated[Literal[0, 1], BeforeValidator(not_a_flag)] = 1
    """Timestep frequencies are 10000^(-i / (128 - shift)), i < 128. DDPM and diffusers' DiTTransformer2DModel have 1;
    the checkpoints published with the DiT paper need 0."""

    @property
    def num_blocks_about(self) -> int:
        """The depth."""
        return self.depth

    def check_size(self, image_size: int) -> None:
        """Raise ValueError if images of this size do not suit the network, or make it too large."""
        if (num_tokens := (image_size // self.patch_size) ** 2) > MAX_TOKENS:
            raise ValueError(
                f"images of {image_size} x {image_size} are {num_tokens:,} tokens at model.patch_size "
                f"{self.patch_size}; at most {MAX_TOKENS:,} are attended to, make patches larger or images smaller"
            )
        if image_size % self.patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of model.patch_size {self.patch_size}; change one of them"
            )
        _check_extent(self, image_size)

    def num_parameters_about(self, image_size: int) -> float:
        """By arithmetic: four projections, the MLP and six modulations in each block; a position for each token."""
        per_block = (4 + 2 * self.mlp_ratio + 6) * self.hidden_size**2
        return self.depth * per_block + self.hidden_size * (image_size / self.patch_size) ** 2

    @model_validator(mode="before")
    @classmethod
    def _expand_size(cls, raw: Any) -> Any:
        size = raw.get("size") if isinstance(raw, dict) else None
        if not isinstance(size, str) or size not in DIT_SIZES:
            return raw
        return dict(zip(("hidden_size", "depth", "num_heads"), DIT_SIZES[size], strict=True)) | raw

    @model_validator(mode="after")
    def _check_width(self) -> "DiTConfig":
        for name, divisor in (("4", 4), (f"num_heads {self.num_heads}", self.num_heads)):
            if self.hidden_size % divisor:
                raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {name}")
        return self


DIT_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""hidden_size, depth, num_heads."""


def _check_extent(model: _UNetFields | DiTConfig, image_size: int) -> None:
    if model.num_blocks_about > MAX_BLOCKS:
        raise ValueError(f"model would have {model.num_blocks_about:,} blocks; at most {MAX_BLOCKS} are built")
    about = model.num_parameters_about(image_size)
    if about > MAX_PARAMETERS:
        raise ValueError(
            f"model would have about {about:.2g} parameters, at images of {image_size} x {image_size}; at most "
            f"{MAX_PARAMETERS:.0e} are built, make it smaller"
        )


AnyModel = Annotated[LDMUNetConfig | IUNetConfig | DiTConfig, Field(discriminator="kind")]
