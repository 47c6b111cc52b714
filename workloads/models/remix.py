"""K basis networks mixed into N experts in weight space (Remix-DiT, arXiv:2412.05628).

theta_i = sum_k alpha_ik beta_k (Eq. 2). Any network can be remixed: its mixed parameters become views of one long
vector, and mixing an expert writes that vector, so that the network itself stays the plain one.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import groupby, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workloads.errors import ConfigError

# Axes: N experts, G experts of a step, K bases, L layers (1 where all layers share coefficients), P mixed parameters.


REMIX_WEIGHTS = "remix.safetensors"
"""The file that holds bases, shared parameters and coefficients."""


class MixingConfig(Protocol):
    """What a run description says of bases and coefficients."""

    @property
    def num_bases(self) -> int:
        """K."""

    @property
    def mixer(self) -> str:
        """Where coefficients come from."""

    @property
    def mixed(self) -> tuple[str, ...]:
        """Patterns of the names of parameters that bases differ in."""

    @property
    def prior_logit(self) -> float:
        """What the prior adds to the logits at the start."""

    @property
    def prior_order(self) -> str:
        """Whether neighbours share a basis of the prior, or who does is drawn."""


def mixed_names(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the trainable parameters that a pattern matches, in the model's order; ConfigError if one has none."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            kinds = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in names if "." in name})
            kinds = [kind for kind in kinds if not kind.isdigit()]
            raise ConfigError(
                f"strategy.mixed: {pattern!r} matches no parameter of this model; its layers are called "
                f"{', '.join(kinds)}, and '*' matches all (for instance {names[len(names) // 2]})"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


class Bases(nn.Module):
    """K versions of a model's mixed parameters, and the model that takes on their mixtures.

    The plain model's mixed parameters are views of `mixture_P`; `vectors` are the rows of `storage_KP`. Long vectors
    make mixing, its gradient, the exchange between workers and the optimiser one operation each.
    """

    def __init__(self, model: nn.Module, num_bases: int, names: Sequence[str]) -> None:
        super().__init__()
        parameters = dict(model.named_parameters())
        self.names = list(names)
        self.shapes = [parameters[name].shape for name in names]
        self._mixed = [parameters[name] for name in names]
        sizes = [parameter.numel() for parameter in self._mixed]
        self._bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        self.layers = self._find_layers()
        """(lo, hi) of each layer in the long vector: a layer's weight and bias share coefficients."""
        self.mixture_P = torch.cat([parameter.detach().reshape(-1) for parameter in self._mixed])
        for parameter, view in zip(self._mixed, self.views(self.mixture_P), strict=True):
            # Its data alone, so that the module keeps the parameter it has.
            parameter.data = view
        # Copies of one start, as in the paper: bases part because experts weigh them differently.
        self.storage_KP = self.mixture_P.repeat(num_bases, 1)
        self.vectors = nn.ParameterList(nn.Parameter(row) for row in self.storage_KP)

    @property
    def size(self) -> int:
        """P."""
        return self.mixture_P.numel()

    def views(self, vector_P: Tensor) -> list[Tensor]:
        """The long vector in the shapes of the mixed parameters."""
        return [
            vector_P[lo:hi].view(shape) for (lo, hi), shape in zip(pairwise(self._bounds), self.shapes, strict=True)
        ]

    @torch.no_grad()
    def mix(self, alpha_LK: Tensor, out_P: Tensor | None = None) -> None:
        """Put sum_k alpha_lk beta_k into the model, or into another vector."""
        out_P = self.mixture_P if out_P is None else out_P
        for lo, hi, row in self._parts(len(alpha_LK)):
            torch.mv(self.storage_KP[:, lo:hi].t(), alpha_LK[row].to(out_P.dtype), out=out_P[lo:hi])

    @torch.no_grad()
    def coefficient_gradient(self, gradient_P: Tensor, num_rows: int) -> Tensor:
        """(L, K) of d loss / d alpha_lk = <d loss / d theta_l, beta_kl>."""
        parts = self._parts(num_rows)
        return torch.stack([torch.mv(self.storage_KP[:, lo:hi], gradient_P[lo:hi]) for lo, hi, _ in parts])

    @torch.no_grad()
    def basis_gradient(self, sets_GP: Tensor, alpha_GL: Tensor, out_P: Tensor) -> None:
        """One basis's gradient from those of G mixtures: d beta_k = sum_g alpha_glk d theta_g."""
        for lo, hi, row in self._parts(alpha_GL.shape[1]):
            if len(sets_GP) == 1:
                torch.mul(sets_GP[0, lo:hi], alpha_GL[0, row], out=out_P[lo:hi])
            else:
                torch.mv(sets_GP[:, lo:hi].t(), alpha_GL[:, row], out=out_P[lo:hi])

    @torch.no_grad()
    def add_to_bases(self, sets_KP: Tensor, gradient_P: Tensor, alpha_LK: Tensor) -> None:
        """The same for one mixture and all bases: sets_k += alpha_lk d theta."""
        for lo, hi, row in self._parts(len(alpha_LK)):
            sets_KP[:, lo:hi].addr_(alpha_LK[row], gradient_P[lo:hi])

    @torch.no_grad()
    def squared_norm(self, sets_GP: Tensor, alpha_GLK: Tensor) -> Tensor:
        """sum_k |d beta_k|^2 from the G x G products of the mixtures' gradients; no basis's gradient is formed."""
        total = sets_GP.new_zeros(())
        for lo, hi, row in self._parts(alpha_GLK.shape[1]):
            part, alpha_GK = sets_GP[:, lo:hi], alpha_GLK[:, row]
            total += torch.einsum("gk,gh,hk->", alpha_GK, part @ part.t(), alpha_GK)
        return total

    def _parts(self, num_rows: int) -> list[tuple[int, int, int]]:
        """(lo, hi, row of the coefficients): one part, or one per layer."""
        if num_rows == 1:
            return [(0, self.size, 0)]
        return [(lo, hi, row) for row, (lo, hi) in enumerate(self.layers)]

    def _find_layers(self) -> list[tuple[int, int]]:
        spans = zip(self.names, pairwise(self._bounds), strict=True)
        layers = []
        for _, group in groupby(spans, key=lambda item: item[0].rpartition(".")[0]):
            bounds = [bound for _, bound in group]
            layers.append((bounds[0][0], bounds[-1][1]))
        return layers


def prior(num_experts: int, num_bases: int, order: str = "contiguous") -> Tensor:
    """(N,) basis of each expert: contiguous runs in order, as equal as integers allow (Sec. 4).

    shuffled: the same bases in an order drawn from torch's generator.
    """
    prior_N = torch.arange(num_experts) * num_bases // num_experts
    return prior_N[torch.randperm(num_experts)] if order == "shuffled" else prior_N


class Mixer(nn.Module):
    """Coefficients of experts. `rows` is L: 1, or the number of mixed layers."""

    def __init__(self, prior_N: Tensor, num_bases: int, rows: int) -> None:
        super().__init__()
        self.num_experts, self.num_bases, self.rows = len(prior_N), num_bases, rows
        # Not kept in files: it follows from the run description.
        self.register_buffer("prior_N", prior_N, persistent=False)

    prior_N: Tensor

    def forward(self, experts_G: Tensor) -> Tensor:
        """(G, L, K) coefficients."""
        raise NotImplementedError

    def logits(self, experts_G: Tensor) -> Tensor | None:  # noqa: ARG002
        """(G, L, K) whose softmax the coefficients are, if they are one."""
        return None

    def prior_loss(self) -> Tensor | None:
        """Cross-entropy of the coefficients to the one-hot prior, averaged over experts (Eq. 6)."""
        everyone_N = torch.arange(self.num_experts, device=self.prior_N.device)
        logits_NLK = self.logits(everyone_N)
        if logits_NLK is None:
            return None
        targets_NL = self.prior_N[:, None].expand(-1, logits_NLK.shape[1])
        return nn.functional.cross_entropy(logits_NLK.flatten(0, 1), targets_NL.flatten())

    def table(self) -> Tensor:
        """(N, L, K): the coefficients of all experts."""
        with torch.no_grad():
            return self.forward(torch.arange(self.num_experts, device=self.prior_N.device))


class SoftmaxMixer(Mixer):
    """alpha_i = softmax(pi_i), a table of logits: noise, plus prior_logit for the prior's basis."""

    def __init__(self, prior_N: Tensor, num_bases: int, rows: int, prior_logit: float) -> None:
        super().__init__(prior_N, num_bases, rows)
        self.table_NLK = nn.Parameter(_initial_logits(prior_N, num_bases, rows, prior_logit))

    def logits(self, experts_G: Tensor) -> Tensor:
        return self.table_NLK[experts_G]

    def forward(self, experts_G: Tensor) -> Tensor:
        return self.logits(experts_G).softmax(-1)


class RawMixer(Mixer):
    """alpha is the table itself, without constraint; starts where SoftmaxMixer does."""

    def __init__(self, prior_N: Tensor, num_bases: int, rows: int, prior_logit: float) -> None:
        super().__init__(prior_N, num_bases, rows)
        self.table_NLK = nn.Parameter(_initial_logits(prior_N, num_bases, rows, prior_logit).softmax(-1))

    def forward(self, experts_G: Tensor) -> Tensor:
        return self.table_NLK[experts_G]


class OneHotMixer(Mixer):
    """Every expert is the prior's basis; nothing is learned."""

    def forward(self, experts_G: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(self.prior_N[experts_G], self.num_bases)
        return one_hot[:, None].to(torch.get_default_dtype())


class ContinuousMixer(Mixer):
    """Logits are a smooth function of an interval's middle, so that N is free and neighbours learn together.

    Beyond the paper, whose limits name sparse gradients of the table and N = 1000. A fixed bump per basis stands in
    for the prior's share of the initial logits: highest at the middle of the basis's run of experts, and lower by
    prior_logit at that of the next.
    """

    NUM_FREQUENCIES = 8
    HIDDEN = 64

    def __init__(self, middles_N: Tensor, num_bases: int, prior_logit: float) -> None:
        super().__init__(prior(len(middles_N), num_bases), num_bases, 1)
        angles_NF = middles_N[:, None] * torch.pi * torch.arange(1, self.NUM_FREQUENCIES + 1)
        self.register_buffer("features_NF", torch.cat([angles_NF.sin(), angles_NF.cos()], 1), persistent=False)
        centres_K = (torch.arange(num_bases) + 0.5) / num_bases
        distance_NK = (middles_N[:, None] - centres_K) * num_bases
        bump_NK = -prior_logit * distance_NK.abs().clamp(max=2)
        self.register_buffer("bump_NK", bump_NK, persistent=False)
        self.net = nn.Sequential(
            nn.Linear(2 * self.NUM_FREQUENCIES, self.HIDDEN), nn.SiLU(), nn.Linear(self.HIDDEN, num_bases)
        )

    features_NF: Tensor
    bump_NK: Tensor

    def logits(self, experts_G: Tensor) -> Tensor:
        logits_GK: Tensor = self.net(self.features_NF[experts_G]) + self.bump_NK[experts_G]
        return logits_GK[:, None]

    def forward(self, experts_G: Tensor) -> Tensor:
        return self.logits(experts_G).softmax(-1)


def build_mixer(config: MixingConfig, intervals: Sequence[tuple[int, int]], num_layers: int) -> Mixer:
    """The mixer of a run description; draws its initial values from torch's generator."""
    num_experts, num_bases = len(intervals), config.num_bases
    if config.mixer == "continuous":
        end = intervals[-1][1]
        middles_N = torch.tensor([(lo + hi) / (2 * end) for lo, hi in intervals])
        return ContinuousMixer(middles_N, num_bases, config.prior_logit)
    prior_N = prior(num_experts, num_bases, config.prior_order)
    if config.mixer == "one_hot":
        return OneHotMixer(prior_N, num_bases, 1)
    kind = RawMixer if config.mixer == "raw" else SoftmaxMixer
    rows = num_layers if config.mixer == "per_layer" else 1
    return kind(prior_N, num_bases, rows, config.prior_logit)


def _initial_logits(prior_N: Tensor, num_bases: int, rows: int, prior_logit: float) -> Tensor:
    one_hot_NK = nn.functional.one_hot(prior_N, num_bases).float()
    return torch.randn(len(prior_N), rows, num_bases) + prior_logit * one_hot_NK[:, None]


def remix_weights(model: nn.Module, bases: Bases, table_NLK: Tensor) -> dict[str, Tensor]:
    """Named tensors to keep: what is shared, each mixed parameter K times, and the coefficients."""
    mixed = set(bases.names)
    tensors = {f"shared.{name}": value for name, value in model.state_dict().items() if name not in mixed}
    rows = [bases.views(row) for row in bases.storage_KP]
    for index, name in enumerate(bases.names):
        tensors[f"bases.{name}"] = torch.stack([views[index] for views in rows])
    tensors["coefficients"] = table_NLK
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


class RemixNetwork:
    """A trained remix: hands out its experts as plain networks, keeping the last few that were mixed."""

    def __init__(self, make_model: Any, tensors: dict[str, Tensor], device: torch.device, capacity: int = 1) -> None:
        """make_model() gives a plain network of the right architecture; capacity bounds how many exist at once."""
        self._make_model, self._device, self._capacity = make_model, device, capacity
        self._shared = {
            name.removeprefix("shared."): value for name, value in tensors.items() if name.startswith("shared.")
        }
        mixed = {name.removeprefix("bases.") for name in tensors if name.startswith("bases.")}
        self.table_NLK = tensors["coefficients"].to(device)
        model = self._new_model()
        # In the model's order, which is that of layers in the coefficients; a file has its own.
        self._names = [name for name, _ in model.named_parameters() if name in mixed]
        self._bases = Bases(model, self.table_NLK.shape[2], self._names).requires_grad_(False)
        rows = [self._bases.views(row) for row in self._bases.storage_KP]
        for index, name in enumerate(self._names):
            for basis, views in enumerate(rows):
                views[index].copy_(tensors[f"bases.{name}"][basis])
        self._slots: dict[int, tuple[nn.Module, Tensor]] = {}
        self._spare: tuple[nn.Module, Tensor] | None = (model, self._bases.mixture_P)

    def __len__(self) -> int:
        return len(self.table_NLK)

    def expert(self, index: int) -> nn.Module:
        """The plain network of an expert; mixed if it is not among the last `capacity` asked for."""
        if index in self._slots:
            self._slots[index] = self._slots.pop(index)  # now the most recent
        else:
            model, mixture_P = self._free_slot()
            self._bases.mix(self.table_NLK[index], mixture_P)
            self._slots[index] = (model, mixture_P)
        return self._slots[index][0]

    def _free_slot(self) -> tuple[nn.Module, Tensor]:
        if self._spare is not None:
            slot, self._spare = self._spare, None
            return slot
        if len(self._slots) >= self._capacity:
            # The one asked for longest ago, for a dict keeps its order.
            return self._slots.pop(next(iter(self._slots)))
        model = self._new_model()
        # No bases of its own: just its mixed parameters as views of one vector.
        return model, Bases(model, 0, self._names).mixture_P

    def _new_model(self) -> nn.Module:
        model: nn.Module = self._make_model().to(self._device).eval().requires_grad_(False)
        model.load_state_dict(self._shared, strict=False)
        return model

    def experts(self) -> Iterator[nn.Module]:
        """All, in order, each valid until `capacity` more were asked for."""
        return (self.expert(index) for index in range(len(self)))
