"""The gradients of one step, where the backward pass writes them and workers sum them."""

import torch
from torch import Tensor

from workloads.training.remix.state import RemixState

# Axes: G experts of a step, K bases, L layers (1 where all share coefficients), P mixed and S shared parameters.


class StepGradients:
    """Gradients of a step in one stretch of memory, so that workers sum them in one operation.

    `sets` holds one gradient per expert of the step where those are fewer than bases, else one per basis.
    """

    def __init__(self, state: RemixState, num_groups: int, device: torch.device) -> None:
        self._state, bases = state, state.bases
        num_bases, num_shared = len(bases.vectors), sum(parameter.numel() for parameter in state.shared)
        self.by_expert = num_groups <= num_bases
        num_sets = min(num_groups, num_bases)
        flat = torch.zeros(num_shared + num_sets * bases.size, device=device)
        self.shared_S, self.sets = flat[:num_shared], flat[num_shared:].view(num_sets, bases.size)
        small = torch.zeros(1 + num_groups * state.mixer.rows * num_bases, device=device)
        self.loss, self.alpha_GLK = small[0], small[1:].view(num_groups, state.mixer.rows, num_bases)
        self.exchanged = (flat, small)
        # One basis's gradient may take the mixture's place, which the next step writes anew; one mixture's, where sets
        # are per basis, is there at the same time as the mixture.
        self._spare_P = bases.mixture_P if self.by_expert else torch.zeros(bases.size, device=device)
        self._views = [bases.views(row) for row in self.sets] if self.by_expert else [bases.views(self._spare_P)]
        start = 0
        for parameter in state.shared:
            parameter.grad = self.shared_S[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def clear(self) -> None:
        """Back to zero, before the first backward pass of a step."""
        for tensor in self.exchanged:
            tensor.zero_()

    def receive(self, group: int) -> None:
        """Let the backward pass add the mixed parameters' gradient where this group's belongs."""
        views = self._views[group if self.by_expert else 0]
        for parameter, view in zip(self._state.mixed, views, strict=True):
            parameter.grad = view

    def take(self, group: int, loss: Tensor, alpha_GLK: Tensor) -> None:
        """After a piece's backward pass: what it says about the coefficients and, if kept so, about the bases."""
        bases, rows = self._state.bases, self._state.mixer.rows
        self.loss += loss
        if self.by_expert:  # the sum over the group's pieces so far replaces what was there
            self.alpha_GLK[group] = bases.coefficient_gradient(self.sets[group], rows)
            return
        self.alpha_GLK[group] += bases.coefficient_gradient(self._spare_P, rows)
        bases.add_to_bases(self.sets, self._spare_P, alpha_GLK[group])
        self._spare_P.zero_()

    def bases_squared_norm(self, alpha_GLK: Tensor) -> Tensor:
        """sum_k |d beta_k|^2."""
        if self.by_expert:
            return self._state.bases.squared_norm(self.sets, alpha_GLK)
        return self.sets.square().sum()

    def scale(self, alpha_GLK: Tensor, factor: Tensor) -> Tensor:
        """Make all gradients smaller; the coefficients to build those of the bases with."""
        self.shared_S.mul_(factor)
        if self.by_expert:
            return alpha_GLK * factor  # cheaper than the gradients themselves
        self.sets.mul_(factor)
        return alpha_GLK

    def basis_gradient(self, index: int, alpha_GLK: Tensor) -> Tensor:
        """d beta_k, valid until the next is asked for."""
        if self.by_expert:
            self._state.bases.basis_gradient(self.sets, alpha_GLK[:, :, index], self._spare_P)
            return self._spare_P
        return self.sets[index]
