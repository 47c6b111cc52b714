"""What a network costs: parameters, multiply-adds, memory. Worked out on the meta device; nothing is allocated."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from workloads.config.models import AnyModel
from workloads.config.training import TrainingConfig


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
    """What the forward pass keeps for the backward pass, in fp32, parameters not included."""


def model_cost(config: AnyModel, *, channels: int, image_size: int, num_classes: int | None) -> ModelCost:
    """Cost of the network build_model makes of the same arguments; each combination is worked out once."""
    return _model_cost(config, channels, image_size, num_classes)


def training_memory_bytes(
    config: AnyModel, training: TrainingConfig, *, channels: int, image_size: int, num_classes: int | None
) -> int:
    """Estimated peak memory of training: weights, gradients, Adam's two moments, weight average, activations.

    Activations are the tensors saved for the backward pass, times the batch. bf16 halves them and adds a bf16 copy of
    the weights. Not included: the process itself (about 0.5 GB), convolution workspace and fragmentation; torch.compile
    saves less than this.
    """
    cost = model_cost(config, channels=channels, image_size=image_size, num_classes=num_classes)
    num_copies = 4 if training.ema_halflife_images is None else 5
    per_parameter, activations = 4 * num_copies, cost.activation_bytes
    if training.precision == "bf16":
        per_parameter, activations = per_parameter + 2, activations // 2
    return per_parameter * cost.num_parameters + training.batch_size * activations


@lru_cache(maxsize=1024)
def _model_cost(config: AnyModel, channels: int, image_size: int, num_classes: int | None) -> ModelCost:
    from workloads.models.build import build_model

    with torch.device("meta"):
        model: Any = build_model(config, channels=channels, image_size=image_size, num_classes=num_classes)
        x_BCHW = torch.empty(1, channels, image_size, image_size)
        t_B = torch.zeros(1, dtype=torch.long)
        labels_B = None if num_classes is None else torch.zeros(1, dtype=torch.long)
    parameters = list(model.parameters())
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        output_BCHW = model(x_BCHW, t_B, class_labels=labels_B).sample
    for parameter in parameters:
        saved.pop(parameter.untyped_storage()._cdata, None)
    assert output_BCHW.shape == x_BCHW.shape
    counts = {str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()}
    # Meta tensors take scaled_dot_product_attention apart into bmm; linear layers are mm and addmm.
    attention = sum(flops for name, flops in counts.items() if "bmm" in name or "attention" in name)
    return ModelCost(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        macs=sum(counts.values()) // 2,
        attention_macs=attention // 2,
        activation_bytes=sum(tensor.untyped_storage().nbytes() for tensor in saved.values()),
    )
