"""Mixing and its gradients against brute-force sums in float64, for every mixer and any N and K."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workloads.config.intervals import IntervalTable, uniform_cuts
from workloads.config.strategy import Remix
from workloads.errors import ConfigError
from workloads.models.remix import Bases, RemixNetwork, build_mixer, mixed_names, prior, remix_weights

MIXERS = ["softmax", "per_layer", "raw", "one_hot", "continuous"]
COUNTS = [(6, 4), (7, 3), (16, 4), (24, 5), (1000, 4), (4, 4)]


class Net(nn.Module):
    """Two mixed layers, and one that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)
        self.norm = nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(self.fc2(self.act(self.fc1(x))))
        return output


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def remix(num_experts: int, num_bases: int, mixer: str) -> Remix:
    return Remix.model_validate({"num_experts": num_experts, "num_bases": num_bases, "mixer": mixer})


def bases_of(num_bases: int) -> tuple[Net, Bases]:
    net = Net()
    bases = Bases(net, num_bases, mixed_names(net, ["fc*"]))
    with torch.no_grad():
        bases.storage_KP.normal_()
    return net, bases


def mixer_for(num_experts: int, num_bases: int, kind: str, num_layers: int = 2) -> Any:
    table = IntervalTable(uniform_cuts(num_experts, 1000), 1000)
    return build_mixer(remix(num_experts, num_bases, kind), list(table), num_layers)


def brute_force(bases: Bases, vectors: list[Tensor], alpha_LK: Tensor) -> dict[str, Tensor]:
    """theta = sum_k alpha_k beta_k, one parameter and one basis at a time."""
    layers = {"fc1": 0, "fc2": 1} if len(alpha_LK) > 1 else {"fc1": 0, "fc2": 0}
    mixed = {}
    for index, name in enumerate(bases.names):
        total: Any = 0
        for k, vector in enumerate(vectors):
            total = total + alpha_LK[layers[name.split(".")[0]], k] * bases.views(vector)[index]
        mixed[name] = total
    return mixed


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize(("num_experts", "num_bases"), COUNTS)
def test_mixture_and_gradients_are_those_of_a_plain_sum(kind: str, num_experts: int, num_bases: int) -> None:
    net, bases = bases_of(num_bases)
    mixer = mixer_for(num_experts, num_bases, kind)
    expert = num_experts - 1
    alpha_LK = mixer(torch.tensor([expert]))[0]
    x, target = torch.randn(7, 3), torch.randn(7, 2)

    vectors = [vector.detach().clone().requires_grad_() for vector in bases.vectors]
    alpha = alpha_LK.detach().clone().requires_grad_()
    loss = (torch.func.functional_call(net, brute_force(bases, vectors, alpha), (x,)) - target).square().sum()
    loss.backward()

    bases.mix(alpha_LK)
    mine = (net(x) - target).square().sum()
    mine.backward()
    torch.testing.assert_close(mine, loss)
    mixed = dict(net.named_parameters())
    gradient_P = torch.cat([mixed[name].grad.flatten() for name in bases.names])
    torch.testing.assert_close(bases.coefficient_gradient(gradient_P, len(alpha)), alpha.grad)
    for k, vector in enumerate(vectors):
        out_P = torch.empty(bases.size)
        bases.basis_gradient(gradient_P[None], alpha_LK.detach()[None, :, k], out_P)
        torch.testing.assert_close(out_P, vector.grad)
    if list(mixer.parameters()):  # the coefficients' own parameters, through the mixer
        alpha_LK.backward(bases.coefficient_gradient(gradient_P, len(alpha)))
        assert all(parameter.grad is not None for parameter in mixer.parameters())


@pytest.mark.parametrize("rows", [1, 2])
def test_several_experts_at_once(rows: int) -> None:
    _, bases = bases_of(3)
    sets_GP, alpha_GLK = torch.randn(5, bases.size), torch.randn(5, rows, 3)
    edges = [(0, bases.size)] if rows == 1 else bases.layers
    expected_KP = torch.zeros(3, bases.size)
    for g in range(5):
        for row, (lo, hi) in enumerate(edges):
            for k in range(3):
                expected_KP[k, lo:hi] += alpha_GLK[g, row, k] * sets_GP[g, lo:hi]
    added_KP = torch.zeros(3, bases.size)
    for g in range(5):
        bases.add_to_bases(added_KP, sets_GP[g], alpha_GLK[g])
    torch.testing.assert_close(added_KP, expected_KP)
    for k in range(3):
        out_P = torch.empty(bases.size)
        bases.basis_gradient(sets_GP, alpha_GLK[:, :, k], out_P)
        torch.testing.assert_close(out_P, expected_KP[k])
    torch.testing.assert_close(bases.squared_norm(sets_GP, alpha_GLK), expected_KP.square().sum())


@pytest.mark.parametrize("kind", ["softmax", "per_layer", "continuous"])
def test_logit_gradients_are_autograds(kind: str) -> None:
    mixer = mixer_for(6, 4, kind)
    experts = torch.tensor([5, 0, 5])
    weights = torch.randn(3, mixer.rows, 4)

    def of_parameters(*parameters: Tensor) -> Tensor:
        names = [name for name, _ in mixer.named_parameters()]
        named = dict(zip(names, parameters, strict=True))
        return (torch.func.functional_call(mixer, named, (experts,)) * weights).sum()

    inputs = tuple(parameter.detach().clone().requires_grad_() for parameter in mixer.parameters())
    assert torch.autograd.gradcheck(of_parameters, inputs)


@pytest.mark.parametrize(("num_experts", "num_bases"), COUNTS)
def test_the_prior_gives_every_expert_a_basis_in_contiguous_runs(num_experts: int, num_bases: int) -> None:
    """The public code repeats each basis N // K times: too few rows for N = 6, K = 4."""
    owners = prior(num_experts, num_bases)
    assert len(owners) == num_experts
    assert torch.equal(owners, owners.sort().values)
    sizes = torch.bincount(owners, minlength=num_bases)
    assert sizes.max() - sizes.min() <= 1


def test_logits_start_as_noise_and_prior_and_the_argmax_mostly_agrees() -> None:
    mixer = mixer_for(1000, 4, "softmax")
    table_NK = mixer.table()[:, 0]
    own = table_NK[torch.arange(1000), mixer.prior_N]
    # E[softmax] at logits N(0, 1) + 3 one-hot, by quadrature over a million independent draws.
    draws = torch.randn(1_000_000, 4)
    draws[:, 0] += 3
    assert own.mean().item() == pytest.approx(draws.softmax(1)[:, 0].mean().item(), abs=0.03)
    assert (table_NK.argmax(1) == mixer.prior_N).double().mean() > 0.9


@pytest.mark.parametrize("kind", ["softmax", "per_layer", "continuous"])
def test_prior_loss_is_the_mean_cross_entropy(kind: str) -> None:
    mixer = mixer_for(7, 3, kind)
    table_NLK = mixer.table()
    expected = 0.0
    for expert in range(7):
        for row in range(mixer.rows):
            expected -= table_NLK[expert, row, expert * 3 // 7].log().item() / (7 * mixer.rows)
    assert mixer.prior_loss().item() == pytest.approx(expected)
    assert mixer_for(7, 3, "raw").prior_loss() is None


def test_coefficients_differ_between_the_experts_of_one_batch() -> None:
    """The public code averages them over the batch and runs a blend nobody trained."""
    mixer = mixer_for(6, 4, "softmax")
    both = mixer(torch.tensor([0, 5]))
    assert not torch.allclose(both[0], both[1])
    assert torch.equal(both[0], mixer(torch.tensor([0]))[0])


def test_a_continuous_mixer_varies_smoothly_and_knows_any_number_of_experts() -> None:
    table_NK = mixer_for(1000, 4, "continuous").table()[:, 0]
    assert (table_NK[1:] - table_NK[:-1]).abs().max() < 0.02
    assert (table_NK.argmax(1) == prior(1000, 4)).double().mean() > 0.8


@pytest.mark.parametrize("kind", MIXERS)
def test_kept_experts_are_the_mixtures_whatever_the_capacity(kind: str) -> None:
    net, bases = bases_of(3)
    mixer = mixer_for(7, 3, kind)
    tensors = remix_weights(net, bases, mixer.table())
    x = torch.randn(4, 3)
    expected = []
    for expert in range(7):
        mixed = brute_force(bases, list(bases.vectors), mixer.table()[expert])
        expected.append(torch.func.functional_call(net, mixed, (x,)).detach())
    for capacity in (1, 2, 7):
        kept = RemixNetwork(Net, tensors, torch.device("cpu"), capacity)
        models = set()
        for expert in (6, 5, 6, 0, 3, 3, 2, 1, 4, 6):
            model = kept.expert(expert)
            models.add(id(model))
            torch.testing.assert_close(model(x), expected[expert])
        assert len(models) <= capacity


def test_the_prior_moves_with_the_mixer_and_layers_keep_their_shapes() -> None:
    """In the public code the prior stays behind on the CPU, and layers claim K times their outputs."""
    mixer = mixer_for(7, 3, "softmax")
    assert "prior_N" in dict(mixer.named_buffers())
    assert mixer.to("meta").prior_N.device.type == "meta"
    net, _ = bases_of(3)
    assert [tuple(layer.weight.shape) for layer in (net.fc1, net.fc2)] == [(5, 3), (2, 5)]
    assert (net.fc1.out_features, net.fc2.out_features) == (5, 2)


def test_a_pattern_that_matches_nothing_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'\*\.qkv\.\*' matches no parameter .* called fc1, fc2, norm"):
        mixed_names(Net(), ["fc*", "*.qkv.*"])
