"""Weight averaging for sampling."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Exponential moving average whose memory is a half-life in images, not steps.

    Early in training the half-life is capped at a share of the images seen (the idea is EDM2's predecessor EDM,
    arXiv:2206.00364), so the random start is forgotten quickly.
    """

    def __init__(self, parameters: Sequence[Tensor], *, halflife_images: float, rampup: float | None) -> None:
        self._source = list(parameters)
        self.tensors = [parameter.detach().clone() for parameter in parameters]
        self._halflife_images = halflife_images
        self._rampup = rampup

    @torch.no_grad()
    def update(self, batch_images: int, images_seen: int) -> None:
        """average <- decay * average + (1 - decay) * weights, decay = 2^(-batch / half-life)."""
        halflife = self._halflife_images
        if self._rampup is not None:
            halflife = min(halflife, images_seen * self._rampup)
        decay = 0.5 ** (batch_images / max(halflife, 1e-8))
        # One operation for all tensors, where one each would be a launch each.
        torch._foreach_lerp_(self.tensors, self._source, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights stand in for the trained ones during the block, which come back bit for bit."""
        trained = [parameter.detach().clone() for parameter in self._source]
        self._put(self.tensors)
        try:
            yield
        finally:
            self._put(trained)

    @torch.no_grad()
    def _put(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self._source, tensors, strict=True):
            parameter.copy_(tensor)
