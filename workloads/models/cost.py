"""What a network costs: parameters, multiply-adds, memory. Worked out on the meta device; nothing is allocated."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from workloads.config.models import AnyModel
from workloads.config.training import TrainingConfig
from workloads.models.build import build_model
from workloads.models.remix import mixed_names


@dataclass(frozen=True)
class ModelCost:
    """One network, one forward pass, one image."""

    num_parameters: int
    macs: int
    """Multiply-adds of convolutions, linear layers and attention products (query-key, weights-value)."""
    attention_macs: int
    """The attention products' share of macs. Papers that count layers only leave it out: for LDM-L they print
    96.0 G, which is macs - attention_macs. Norms, activations and pooling are counted nowhere."""
    activation_bytes: int
    """What the forward pass keeps for the backward pass in fp32, besides the parameters."""


def model_cost(config: AnyModel, *, channels: int, image_size: int, num_classes: int | None) -> ModelCost:
    """Cost of the network build_model makes of the same arguments; each combination is worked out once."""
    return _model_cost(config, channels, image_size, num_classes)


def training_memory_bytes(
    config: AnyModel, training: TrainingConfig, *, channels: int, image_size: int, num_classes: int | None
) -> int:
    """Estimated peak memory of training: weights, gradients, Adam's two moments, weight average, activations.

    Activations are the tensors saved for the backward pass, times the batch. Under bf16 autocast they take about three
    quarters (norms, and what follows them, stay in fp32) and the weights are there in bf16 as well. Not included: the
    process itself (about 0.5 GB), convolution workspace, fragmentation, what torch.compile saves, and the copy that a
    checkpoint is written from, which is made where there is room for two.
    """
    cost = model_cost(config, channels=channels, image_size=image_size, num_classes=num_classes)
    num_copies = 4 if training.ema_halflife_images is None else 5
    per_parameter, activations = 4 * num_copies, cost.activation_bytes
    if training.precision == "bf16":
        per_parameter, activations = per_parameter + 2, activations * 3 // 4
    return per_parameter * cost.num_parameters + training.batch_size * activations


class MixedSize(NamedTuple):
    """What bases of a network have for themselves."""

    num_parameters: int
    num_layers: int


@lru_cache(maxsize=256)
def mixed_size(
    config: AnyModel, patterns: tuple[str, ...], *, channels: int, image_size: int, num_classes: int | None
) -> MixedSize:
    """Mixed parameters, and the layers they belong to. ConfigError if a pattern matches nothing."""
    with torch.device("meta"):
        model = build_model(config, channels=channels, image_size=image_size, num_classes=num_classes)
    names = mixed_names(model, patterns)
    parameters = dict(model.named_parameters())
    layers = {name.rpartition(".")[0] for name in names}
    return MixedSize(sum(parameters[name].numel() for name in names), len(layers))


@lru_cache(maxsize=1024)
def _model_cost(config: AnyModel, channels: int, image_size: int, num_classes: int | None) -> ModelCost:
    with torch.device("meta"):
        model = build_model(config, channels=channels, image_size=image_size, num_classes=num_classes)
        x_BCHW = torch.empty(1, channels, image_size, image_size)
        t_B = torch.zeros(1, dtype=torch.long)
        labels_B = None if num_classes is None else torch.zeros(1, dtype=torch.long)
    with _FlopCounter() as counter, _FlashAttention():
        activation_bytes = _saved_bytes(model, lambda: model(x_BCHW, t_B, class_labels=labels_B).sample)
    flops = {str(operator): count for operator, count in counter.flops.items()}
    return ModelCost(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        # The counter counts multiplying and adding as two.
        macs=sum(flops.values()) // 2,
        attention_macs=sum(count for operator, count in flops.items() if "attention" in operator) // 2,
        activation_bytes=activation_bytes,
    )


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts by torch's formulas, as FlopCounterMode does, in a third of its time: below autograd nothing is left to be
    taken apart, and a group norm on the meta device would be worked out in some fifty steps.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[Any] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.native_group_norm.default:
            x, _, _, num_images, _, _, num_groups, _ = args
            return torch.empty_like(x), *(x.new_empty(num_images, num_groups) for _ in ("mean", "rstd"))
        result = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops[func.overloadpacket] += formula(*args, **(kwargs or {}), out_val=result)
        return result


class _FlashAttention(TorchFunctionMode):
    """Run attention as the fused kernel of a GPU would; by itself the meta device takes it apart.

    Only the fused kernel does without storing the N x N weights, and only it can be told from other products.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def _saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that forward() leaves behind for the backward pass, shared storage counted once, parameters not."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Held, so that its storage's address is not given to a later one.
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    assert output.requires_grad
    for parameter in model.parameters():
        saved.pop(parameter.untyped_storage()._cdata, None)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
