"""WeLore: one threshold, ranks, the split, and what fine-tuning leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import termwise as tw
from termwise.weights import (
    METHODS,
    find_layers,
    fine_tune,
    gradient_rank,
    low_rank_split,
    lrc_parameters,
    normalised_spectrum,
    welore,
)
from termwise.weights.evidence import Evidence
from termwise.weights.welore import fit_welore, one_threshold, spectral


def model(seed: int = 0, decay: float = 0.7) -> nn.Sequential:
    """Three layers: a tail that falls, one that falls slowly, one that is round."""
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 9)).double()
    for layer, rate in zip((net[0], net[2], net[4]), (decay, 0.95, 1.0), strict=True):
        m, n = layer.weight.shape
        u = torch.linalg.qr(torch.randn(m, min(m, n), generator=g, dtype=torch.float64)).Q
        v = torch.linalg.qr(torch.randn(n, min(m, n), generator=g, dtype=torch.float64)).Q
        s = rate ** torch.arange(min(m, n)) * (1 + 0.01 * torch.rand(min(m, n), generator=g, dtype=torch.float64))
        layer.weight.data = u * s @ v.T
    return net


def data(n: int = 240, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(net: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (net(batch) - 1).square().mean()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.99))
def test_the_threshold_is_the_definition(seed, share):
    """Slow twin: every value of the union tried as theta."""
    net = model(seed)
    split = low_rank_split(net, share)
    spectra = {}
    for name, layer in find_layers(net)[0].items():
        s = torch.linalg.svdvals(layer.matrix)
        spectra[name] = [float((v - s.min()) / (s.max() - s.min())) for v in s]
        assert normalised_spectrum(layer.matrix).tolist() == pytest.approx(spectra[name], abs=1e-12)
    union = [v for values in spectra.values() for v in values]
    removed = {theta: sum(v < theta for v in union) for theta in union}
    best = min(abs(count - share * len(union)) for count in removed.values())
    assert abs(split.rank_reduction * len(union) - share * len(union)) <= best + 1e-9
    assert split.ranks == {name: sum(v >= split.threshold - 1e-12 for v in values) for name, values in spectra.items()}
    assert split.low_rank == tuple(n for n, v in spectra.items() if split.ranks[n] < len(v) / 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 1))
def test_within_a_budget_the_threshold_is_the_least(seed, budget):
    """Slow twin: thresholds from the smallest, until what they cost is within the budget."""
    net = model(seed)
    layers = find_layers(net)[0]
    ladders = {name: spectral(layer, fit_welore(Evidence(layer))) for name, layer in layers.items()}
    limit = budget * sum(layer.size for layer in layers.values())
    found = one_threshold(ladders, {name: ladder.curve() for name, ladder in ladders.items()}, limit)

    def cost(theta):
        total = 0
        for layer in layers.values():
            rank = int((normalised_spectrum(layer.matrix) > theta).sum())
            total += rank * sum(layer.shape) if rank < min(layer.shape) / 2 else layer.size
        return total

    levels = sorted({0.0, *(v for layer in layers.values() for v in normalised_spectrum(layer.matrix).tolist())})
    theta = next(v for v in levels if cost(v) <= limit)
    assert found.cost == cost(theta)


def test_factors_are_the_square_roots_and_nothing_is_centred():
    net = model()
    small = welore(net, 0.5, data=data() + 5)
    assert "0" in small.parts
    for name, part in small.parts.items():
        w, (first, second) = net.get_submodule(name).weight, small.model.get_submodule(name)
        u, s, v = torch.linalg.svd(w)
        r = part.rank
        assert torch.allclose(second.weight @ first.weight, (u[:, :r] * s[:r]) @ v[:r], atol=1e-12)
        assert torch.allclose(first.weight @ first.weight.T, torch.diag(s[:r]), atol=1e-12)  # balanced
        assert torch.allclose(second.weight.T @ second.weight, torch.diag(s[:r]), atol=1e-12)
        assert torch.equal(second.bias, net.get_submodule(name).bias)


def test_named_ranks_are_those_of_the_split():
    net = model()
    for share in (0.0, 0.3, 0.6, 0.9):
        split, small = low_rank_split(net, share), welore(net, share, data=data())
        assert {row.layer: row.choice for row in small.layers if row.choice != "dense"} == {
            name: f"rank {split.ranks[name]}" for name in split.low_rank
        }
        again = tw.compress(net, small.kept, data=data(), method="welore", progress=False)  # the budget gives them too
        assert [row.choice for row in again.layers] == [row.choice for row in small.layers]
    assert low_rank_split(net, 0.5, keep=["0"]).ranks.keys() == {"2", "4"}
    assert set(low_rank_split(net, 0.6, min_ratio=1.0).low_rank) >= set(low_rank_split(net, 0.6).low_rank)


def test_better_terms_at_the_same_ranks():
    net, x = model(), data() * torch.logspace(0, -2, 12, dtype=torch.float64)
    plain, aware = (welore(net, 0.6, data=x, outputs=outputs) for outputs in (False, True))
    assert [row.choice for row in plain.layers] == [row.choice for row in aware.layers]
    assert aware.measured < plain.measured
    assert plain.layers[0].weight_error < aware.layers[0].weight_error


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_matrices_without_a_tail_stay_dense(scale):
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    nn.init.orthogonal_(net[0].weight)
    net[0].weight.data *= scale
    nn.init.zeros_(net[1].weight)
    assert normalised_spectrum(net[0].weight).tolist() == [1.0] * 6
    assert normalised_spectrum(net[1].weight).tolist() == [1.0] * 6
    split = low_rank_split(net, 0.25)
    assert split.ranks["0"] == split.ranks["1"] == 6
    rank_one = torch.outer(torch.arange(1.0, 5.0), torch.ones(3))
    assert normalised_spectrum(rank_one)[0] == 1
    assert normalised_spectrum(rank_one)[1] < 1e-6
    assert normalised_spectrum(torch.ones(1, 4)).tolist() == [1.0]


def test_fine_tuning_moves_the_low_rank_components_alone():
    net, x = model(), data()
    small = welore(net, 0.6, data=x)
    assert 0 < len(small.parts) < 3
    own, theirs = copy.deepcopy(net.state_dict()), copy.deepcopy(small.model.state_dict())
    flags = [p.requires_grad for p in net.parameters()]
    tuned = fine_tune(small, loss, [x] * 60, rate=1e-2)
    assert loss(tuned, x) < loss(small.model, x)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in own.items())
    assert all(torch.equal(v, small.model.state_dict()[k]) for k, v in theirs.items())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in [*net.parameters(), *tuned.parameters()])
    moved = {k for k, v in tuned.state_dict().items() if not torch.equal(v, theirs[k])}
    assert {k.split(".")[0] for k in moved} == set(small.parts)
    for name in small.parts:
        assert (
            torch.linalg.matrix_rank(tuned.get_submodule(name)[1].weight @ tuned.get_submodule(name)[0].weight)
            <= small.parts[name].rank
        )
    assert sum(p.numel() for p in lrc_parameters(small)) == sum(
        p.numel() for name in small.parts for p in tuned.get_submodule(name).parameters()
    )


def test_ranks_of_gradients():
    net, x = model(), data()
    found = gradient_rank(net, loss, [x[:1], x])
    assert set(found) == {"0", "2", "4"}
    assert found["0"].stable[0] == pytest.approx(1)  # one sample gives one term
    assert found["0"].stable[1] > 1.01
    assert found["2"].spectrum.shape == (2, 10)
    net.zero_grad()
    loss(net, x).backward()
    s = torch.linalg.svdvals(net[2].weight.grad)
    assert found["2"].stable[1] == pytest.approx(float(s.square().sum() / s[0] ** 2))
    assert torch.allclose(found["2"].spectrum[1], (s - s[-1]) / (s[0] - s[-1]))


@pytest.mark.parametrize("share", [-0.1, 1.0, 50, float("nan")])
def test_shares_that_make_no_sense(share):
    with pytest.raises(ValueError, match="from 0 up to 1"):
        low_rank_split(model(), share)


def test_bad_input():
    with pytest.raises(ValueError, match="min_ratio"):
        low_rank_split(model(), 0.5, min_ratio=0)
    for weight in (torch.zeros(3), torch.zeros(0, 3), torch.full((2, 2), torch.nan)):
        with pytest.raises(ValueError, match="matrix of finite numbers"):
            normalised_spectrum(weight)
    nothing = welore(model(), 0.0, data=data())
    for call in (lambda: lrc_parameters(nothing), lambda: fine_tune(nothing, loss, [data()])):
        with pytest.raises(ValueError, match="no low-rank components"):
            call()
    small = welore(model(), 0.6, data=data())
    with pytest.raises(ValueError, match="no batches"):
        fine_tune(small, loss, [])
    with pytest.raises(ValueError, match="loss is nan at step 0"):
        fine_tune(small, loss, [data() * torch.nan])
    with pytest.raises(ValueError, match="no batches"):
        gradient_rank(model(), loss, [])
    with pytest.raises(ValueError, match="requires_grad_"):
        gradient_rank(model().requires_grad_(False), loss, [data()])
    with pytest.raises(ValueError, match="by name"):
        tw.compress(model(), 0.5, data=data(), method=METHODS["welore"], work="nowhere", progress=False)
