"""The training loop. There is one; strategies differ in state and step, never here."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from workloads.data.stream import Batch
from workloads.training.state import State

StepFn = Callable[[Any, Batch], Tensor]
"""One optimiser step: updates the state, images_seen included, and returns the loss, not yet synchronised."""

Hook = Callable[[State, Tensor], None]
"""Called after every step with the state and the step's loss."""


def train(
    state: State, batches: Iterator[Batch], *, step: StepFn, total_images: int, hooks: Sequence[Hook] = ()
) -> None:
    """Run whole optimiser steps until at least total_images have been seen."""
    while state.images_seen < total_images:
        loss = step(state, next(batches))
        for hook in hooks:
            hook(state, loss)
