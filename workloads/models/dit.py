"""Diffusion transformer with adaLN-Zero blocks (Peebles & Xie 2023, arXiv:2212.09748), of timm's and diffusers' parts.

Parameters carry the names of the published checkpoints, so that those load as they are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import Timesteps, get_2d_sincos_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from timm.layers import Attention, Mlp, PatchEmbed
from torch import Tensor, nn

# Axes: B batch, C channels, H height, W width, L tokens, D channels of a token.

NUM_FREQUENCIES = 256
"""Sines and cosines of the timestep."""

NORM_TYPE = "rememe.DiT"
"""In config.json for one reason: diffusers' DiTTransformer2DModel passes over settings that it does not know, and would
be a network of its own size with random weights; a norm_type that it does not know it refuses."""


class TimestepEmbedder(nn.Module):
    """Sines and cosines of the timestep, then two layers."""

    def __init__(self, hidden_size: int, frequency_shift: int) -> None:
        super().__init__()
        # Cosines come first, as in the published checkpoints.
        self.frequencies = Timesteps(NUM_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=frequency_shift)
        self.mlp = nn.Sequential(
            nn.Linear(NUM_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t_B: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        # Timesteps yields float32, whatever the network's type.
        embedded_BD: Tensor = self.mlp(self.frequencies(t_B).to(self.mlp[0].weight.dtype))
        return embedded_BD


class LabelEmbedder(nn.Module):
    """A vector per class, and a last one for "no class"."""

    def __init__(self, num_embeddings: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_embeddings, hidden_size)

    def forward(self, labels_B: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        embedded_BD: Tensor = self.embedding_table(labels_B)
        return embedded_BD


def modulate(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Adaptive layer norm's second half."""
    return x_BLD * (1 + scale_BD[:, None]) + shift_BD[:, None]


class DiTBlock(nn.Module):
    """Attention and MLP, each normed, shifted, scaled and gated by the condition."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), act_layer=lambda: nn.GELU(approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        """(B, L, D), (B, D) -> (B, L, D)."""
        modulation_BD: Tensor = self.adaLN_modulation(condition_BD)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation_BD.chunk(6, dim=1)
        attended_BLD: Tensor = self.attn(modulate(self.norm1(x_BLD), shift_1, scale_1))
        x_BLD = x_BLD + gate_1[:, None] * attended_BLD
        mapped_BLD: Tensor = self.mlp(modulate(self.norm2(x_BLD), shift_2, scale_2))
        return x_BLD + gate_2[:, None] * mapped_BLD


class FinalLayer(nn.Module):
    """Norm, shift and scale, and a linear map from tokens to pixels."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        """(B, L, D), (B, D) -> (B, L, out_features)."""
        shift_BD, scale_BD = self.adaLN_modulation(condition_BD).chunk(2, dim=1)
        pixels: Tensor = self.linear(modulate(self.norm_final(x_BLD), shift_BD, scale_BD))
        return pixels


class DiT(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Call as model(x_BCHW, t_B, class_labels=labels_B).sample; with learned variance that has 2 C channels."""

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 4,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        num_class_embeds: int | None = None,
        learned_variance: bool = False,
        frequency_shift: int = 1,
        norm_type: str = NORM_TYPE,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        out_channels = in_channels * (2 if learned_variance else 1)
        self.x_embedder = PatchEmbed(sample_size, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size, frequency_shift)
        self.y_embedder = None if num_class_embeds is None else LabelEmbedder(num_class_embeds, hidden_size)
        # Fixed; a parameter because published checkpoints and parameter counts include it.
        self.pos_embed = nn.Parameter(
            torch.empty(1, (sample_size // patch_size) ** 2, hidden_size), requires_grad=False
        )
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * out_channels)
        self._initialise()

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Transformer2DModelOutput:
        """(B, C, H, W), (B,), (B,) -> an output whose `sample` is (B, C or 2 C, H, W)."""
        x_BLD = self.x_embedder(sample) + self.pos_embed
        condition_BD: Tensor = self.t_embedder(timestep)
        if self.y_embedder is not None:
            condition_BD = condition_BD + self.y_embedder(class_labels)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BLD = self._gradient_checkpointing_func(block, x_BLD, condition_BD)
            else:
                x_BLD = block(x_BLD, condition_BD)
        return Transformer2DModelOutput(self._unpatchify(self.final_layer(x_BLD, condition_BD)))

    def _unpatchify(self, x_BLD: Tensor) -> Tensor:
        """(B, L, patch * patch * C) -> (B, C, H, W)."""
        config: Any = self.config
        side, patch = config.sample_size // config.patch_size, config.patch_size
        grid = x_BLD.reshape(len(x_BLD), side, side, patch, patch, -1)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(x_BLD), -1, config.sample_size, config.sample_size)

    def _initialise(self) -> None:
        """The paper's: Xavier for linear layers, small normal for embeddings, zero where a block or the net ends."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # As the linear layer it is; a convolution's outgoing fan would count each pixel of a patch.
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.x_embedder.proj.out_channels, -1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for name in ("t_embedder.mlp.0", "t_embedder.mlp.2"):
            nn.init.normal_(self.get_parameter(f"{name}.weight"), std=0.02)
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith("adaLN_modulation.1.weight"):
                nn.init.zeros_(parameter)
        nn.init.zeros_(self.final_layer.linear.weight)
        config: Any = self.config
        side = config.sample_size // config.patch_size
        # base_size: positions count tokens; by default diffusers stretches them to a grid of 16.
        positions = get_2d_sincos_pos_embed(config.hidden_size, side, base_size=side, output_type="pt")
        with torch.no_grad():
            self.pos_embed.copy_(positions[None])


PIPELINE_NULL_CLASS = 1000
"""What DiTPipeline calls "no class", however many there are."""

CLASS_TABLE = "y_embedder.embedding_table.weight"


def is_of_diffusers(config: Any) -> bool:
    """Whether diffusers' DiTTransformer2DModel can be the DiT with this config."""
    return config.num_class_embeds is not None and config.frequency_shift == 1 and config.mlp_ratio == 4


def to_diffusers(model: DiT) -> Any:
    """The same function as a diffusers DiTTransformer2DModel, for its DiTPipeline.

    That pipeline takes class 1000 for "no class", so up to there a table of fewer classes is filled with it.

    Raises ValueError for what that class cannot express: no classes, other timestep frequencies, another MLP ratio.
    """
    from diffusers import DiTTransformer2DModel

    config: Any = model.config
    if not is_of_diffusers(config):
        raise ValueError(
            "diffusers' DiTTransformer2DModel has classes, frequency_shift 1 and mlp_ratio 4; this model has "
            f"{config.num_class_embeds and config.num_class_embeds - 1} classes, frequency_shift "
            f"{config.frequency_shift} and mlp_ratio {config.mlp_ratio}"
        )
    other = DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=config.in_channels,
        out_channels=config.in_channels * (2 if config.learned_variance else 1),
        num_layers=config.depth,
        sample_size=config.sample_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=max(config.num_class_embeds - 1, PIPELINE_NULL_CLASS),
        norm_eps=1e-6,
    )
    ours = model.state_dict()
    ours[CLASS_TABLE] = _with_null_class(ours[CLASS_TABLE])
    theirs = {name: ours[source] for name, source in diffusers_names(config.depth).items()}
    for name, (source, part) in diffusers_projections(config.depth).items():
        theirs[name] = ours[source].chunk(3)[part]
    other.load_state_dict(theirs)
    return other.eval()


def _with_null_class(table_ND: Tensor) -> Tensor:
    num_missing = max(0, PIPELINE_NULL_CLASS + 1 - len(table_ND))
    return torch.cat([table_ND, table_ND[-1:].expand(num_missing, -1)])


def _without_null_classes(table_ND: Tensor) -> Tensor:
    """Without the rows that repeat the last, of classes that there are none of."""
    is_class_N = (table_ND != table_ND[-1]).any(1)
    return table_ND[: int(is_class_N.nonzero().max()) + 2] if is_class_N.any() else table_ND


def from_diffusers(theirs: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """A DiTTransformer2DModel's weights under our names, without the positions, which are no weights there.

    Raises ValueError if its blocks have different embeddings of time or class, where a DiT has one; KeyError where a
    name is missing.
    """
    ours: dict[str, Tensor] = {}
    for name, source in diffusers_names(depth).items():
        tensor = theirs[name]
        if source in ours and not torch.equal(ours[source], tensor):
            raise ValueError(f"its {name} differs between blocks, which share it in a DiT")
        ours[source] = tensor
    ours[CLASS_TABLE] = _without_null_classes(ours[CLASS_TABLE])
    parts: dict[str, list[Tensor]] = {}
    for name, (source, _) in diffusers_projections(depth).items():
        parts.setdefault(source, []).append(theirs[name])
    return ours | {source: torch.cat(tensors) for source, tensors in parts.items()}


def diffusers_names(depth: int) -> dict[str, str]:
    """diffusers' names and ours; it keeps a copy of both embedders in every block."""
    pairs = {
        "pos_embed.proj": "x_embedder.proj",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
    }
    tables = {}
    for index in range(depth):
        block, source = f"transformer_blocks.{index}", f"blocks.{index}"
        pairs |= {
            f"{block}.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
            f"{block}.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
            f"{block}.norm1.linear": f"{source}.adaLN_modulation.1",
            f"{block}.attn1.to_out.0": f"{source}.attn.proj",
            f"{block}.ff.net.0.proj": f"{source}.mlp.fc1",
            f"{block}.ff.net.2": f"{source}.mlp.fc2",
        }
        table = "embedding_table.weight"
        tables[f"{block}.norm1.emb.class_embedder.{table}"] = f"y_embedder.{table}"
    return tables | {f"{a}.{kind}": f"{b}.{kind}" for a, b in pairs.items() for kind in ("weight", "bias")}


def diffusers_projections(depth: int) -> dict[str, tuple[str, int]]:
    """Queries, keys and values, which diffusers keeps apart: its name, and which third of which tensor of ours."""
    return {
        f"transformer_blocks.{index}.attn1.{name}.{kind}": (f"blocks.{index}.attn.qkv.{kind}", part)
        for index in range(depth)
        for kind in ("weight", "bias")
        for part, name in enumerate(("to_q", "to_k", "to_v"))
    }
