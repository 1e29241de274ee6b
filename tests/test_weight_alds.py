"""ALDS: groups of channels, bounds of what they leave, and the search for the worst layer's best."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import termwise as tw
from termwise.testing.contract import check_decomposition
from termwise.weights import METHODS, GroupedLinear, alds, allocate, group_errors, grouped
from termwise.weights.alternation import alternate
from termwise.weights.evidence import Evidence
from termwise.weights.factorization import Factorization
from termwise.weights.grouped import divisors, fit_grouped, fold, grouped_choices, grouped_size
from termwise.weights.ladder import Ladder
from termwise.weights.latency import _ladder
from termwise.weights.layers import Layer
from termwise.weights.low_rank_linear import LowRankLinear
from termwise.weights.recipe import construct, describe

GEOMETRIES = [
    {},
    {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)},
    {"padding": "same", "dilation": (1, 2), "padding_mode": "reflect"},
    {"stride": 3, "padding": (2, 1), "padding_mode": "circular", "bias": False},
]


def seeded(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv_layer(**geometry) -> Layer:
    return Layer("c", seeded(lambda: nn.Conv2d(6, 5, (3, 2), **geometry)).double())


def unfolded(folded: torch.Tensor, kernel: torch.Tensor, scheme: int) -> torch.Tensor:
    """The kernel of a folded matrix, entry by entry, with the formulas written out."""
    w = torch.zeros_like(kernel)
    f, c, kh, kw = kernel.shape
    for o, i, y, x in itertools.product(range(f), range(c), range(kh), range(kw)):
        row = {0: o, 1: o * kh + y, 2: o * kw + x, 3: (o * kh + y) * kw + x}[scheme]
        column = {0: (i * kh + y) * kw + x, 1: i * kw + x, 2: i * kh + y, 3: i}[scheme]
        w[o, i, y, x] = folded[row, column]
    return w


# -- the local step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("scheme", range(4))
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_two_convolutions_are_the_one_of_the_product(geometry, scheme, groups):
    layer, x = conv_layer(**geometry), draw(2, 6, 11, 13)
    m, n = fold(layer.kernel, scheme).shape
    full = min(m, n // groups)
    for rank in (1, max(1, full // 2), full):
        found = grouped(layer, rank, groups, scheme)
        bias = layer.module.bias
        twin = nn.Conv2d(6, 5, (3, 2), **{**geometry, "bias": bias is not None}).double()
        twin.weight.data = unfolded(found.weight.total(), layer.kernel, scheme)
        if bias is not None:
            twin.bias = bias
        assert torch.allclose(found.module(x), twin(x), atol=1e-12)
        numbers = sum(p.numel() for p in found.module.parameters()) - (0 if bias is None else 5)
        assert numbers == grouped_size(layer, rank, groups, scheme) == rank * (groups * m + n)
    assert torch.allclose(found.module(x), layer.module(x), atol=1e-12)  # the full rank


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_linear_layers_have_groups_too(groups):
    layer, x = Layer("l", seeded(lambda: nn.Linear(8, 5)).double()), draw(2, 3, 8)
    found = grouped(layer, 2, groups)
    assert torch.allclose(found.module(x), x @ found.weight.total().T + layer.bias, atol=1e-12)
    first = found.module[0]
    assert (type(first) is nn.Linear) == (groups == 1)
    assert torch.allclose(first.weight @ x[0].T, first(x[0]).T)
    assert first.bias is None
    answers = LowRankLinear(*found.module)
    assert torch.allclose(answers.weight, found.weight.total())
    assert (answers.in_features, first.out_features) == (8, 2 * groups)


def test_each_group_is_its_own_truncation():
    w = draw(5, 12)
    found = grouped(Layer("l", nn.Linear(12, 5).double()), 2, 3).weight
    w = found.whole
    for i in range(3):
        u, s, v = np.linalg.svd(w[:, 4 * i : 4 * i + 4].numpy())
        twin = np.zeros((5, 12))
        twin[:, 4 * i : 4 * i + 4] = (u[:, :2] * s[:2]) @ v[:2]
        assert np.allclose(found.parts[f"group{i}"].numpy(), twin)
    assert list(found.parts) == ["group0", "group1", "group2"]
    assert torch.allclose(sum(found.parts.values()) + found.remainder, w, atol=1e-12)


def test_the_contract_is_kept():
    def make(weight: torch.Tensor) -> Factorization:
        layer = nn.utils.skip_init(nn.Linear, 12, 5, bias=False, dtype=weight.dtype)
        layer.weight.data = weight.detach().clone()
        return grouped(Layer("l", layer), 2, 3).weight

    made = dict.fromkeys(
        ("check_passes_where_exact_and_can_fail", "a_missing_number_fails", "slices_are_decompositions"),
        "parts are made from the factors, and of the whole weight",
    )
    found = check_decomposition(make, exact=False, inputs=(draw(5, 12),), batched=False, exceptions=made)
    for wrong in (found.factors["left"] + 1, found.factors["left"] * torch.nan):
        with pytest.raises(tw.DoesNotAddUp):
            Factorization(found.whole, form="grouped", factors={**found.factors, "left": wrong}).check(0.6)
    assert found.check(0.6) is found


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.sampled_from([1, 2, 3, 4]), st.integers(1, 4), st.integers(0, 999))
def test_bounds_are_in_their_order(m, groups, width, seed):
    w = draw(m, groups * width, seed=seed)
    exact, sharp, paper = (group_errors(w, groups, bound).numpy() for bound in ("exact", "sharp", "paper"))
    norm = np.linalg.norm(w.numpy(), 2)
    for j in range(min(m, width) + 1):
        blocks = []
        for block in np.split(w.numpy(), groups, axis=1):
            u, s, v = np.linalg.svd(block, full_matrices=False)
            blocks.append(block - (u[:, :j] * s[:j]) @ v[:j])
        assert np.linalg.norm(np.hstack(blocks), 2) / norm == pytest.approx(exact[j], abs=1e-7)
    assert len(exact) == len(sharp) == len(paper) == min(m, width) + 1
    assert (exact <= sharp + 1e-7).all()
    assert (sharp <= paper + 1e-12).all()
    assert paper[-1] == sharp[-1] == 0
    if groups == 1:
        assert np.allclose(sharp, paper)
        assert np.allclose(exact, sharp, atol=1e-7)


def test_the_largest_singular_value_alone_is_no_bound():
    """What the published code takes: equal blocks add up."""
    block = draw(6, 6)
    w = torch.cat([block, block], 1)
    s = torch.linalg.svdvals(block)
    size = torch.linalg.matrix_norm(w, 2)
    assert group_errors(w, 2, "exact")[3] * size == pytest.approx(float(2**0.5 * s[3]))
    assert group_errors(w, 2, "exact")[3] > s[3] / size * 1.4
    assert group_errors(w, 2, "sharp")[3] == pytest.approx(float(group_errors(w, 2, "exact")[3]))


# -- choices ----------------------------------------------------------------------------------------------------------


def ladders(layers, **options) -> dict[str, Ladder]:
    schemes = options.pop("schemes", (0,))
    return {
        layer.name: grouped_choices(layer, fit_grouped(Evidence(layer), schemes=schemes, **options), schemes=schemes)
        for layer in layers
    }


def test_a_ladder_has_every_kind_below_dense():
    layer = conv_layer()
    ladder = ladders([layer], schemes=(0, 1, 2, 3))["c"]
    assert {family for family in ladder.families if family} == {(s, k) for s in range(4) for k in divisors(layer, s)}
    assert (ladder.params[:-1] < layer.size).all()
    assert (ladder.labels[-1], ladder.families[-1], ladder.errors[-1]) == ("dense", None, 0)
    for i in range(0, len(ladder) - 1, 5):
        built = ladder.build(i)
        assert sum(p.numel() for name, p in built.module.named_parameters() if "bias" not in name) == ladder.params[i]
        scheme, k = ladder.families[i]
        rank = built.weight.factors["left"].shape[-1]
        assert ladder.errors[i] == pytest.approx(float(group_errors(fold(layer.kernel, scheme), k, "paper")[rank]) ** 2)
        assert ("groups" in ladder.labels[i]) == (k > 1)
    one = Layer("p", nn.Conv2d(8, 9, 1))
    assert {family[0] for family in ladders([one], schemes=(0, 1, 2, 3))["p"].families[:-1]} == {0}
    some = ladder.only([3, len(ladder) - 1])
    assert some.families == [ladder.families[3], None]


def test_latency_is_measured_for_each_kind():
    layer = Layer("l", nn.Linear(64, 64))
    ladder = ladders([layer])["l"]
    times = _ladder(ladder, torch.randn(32, 64))
    assert times.shape == (len(ladder),)
    assert (times > 0).all()
    for family in set(ladder.families) - {None}:
        own = times[[i for i, other in enumerate(ladder.families) if other == family]]
        assert (np.diff(own) >= 0).all()
    assert len(_ladder(ladder.only([len(ladder) - 1]), torch.randn(32, 64))) == 1


# -- the global step --------------------------------------------------------------------------------------------------


def planted(groups: int, seed: int) -> Layer:
    """A weight whose columns are groups of rank 2, with noise."""
    module = nn.Linear(24, 20).double()
    blocks = [draw(20, 2, seed=seed + i) @ draw(2, 24 // groups, seed=seed + 50 + i) for i in range(groups)]
    module.weight.data = torch.cat(blocks, 1) + 0.05 * draw(20, 24, seed=seed + 99)
    return Layer(f"{groups}", module)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_the_search_at_once_is_the_best_of_all_choices(share):
    """Against every combination, counted out."""
    own = ladders([planted(2, 0), planted(4, 7), planted(1, 3)])
    own = {name: ladder.only([*range(0, len(ladder) - 1, 5), len(ladder) - 1]) for name, ladder in own.items()}
    curves = {name: ladder.curve() for name, ladder in own.items()}
    budget = share * sum(c.costs[-1] for c in curves.values())
    costs, errors = [c.costs for c in curves.values()], [c.errors for c in curves.values()]
    spent = costs[0][:, None, None] + costs[1][:, None] + costs[2]
    worst = np.maximum(np.maximum(errors[0][:, None, None], errors[1][:, None]), errors[2])
    found = alternate(own, curves, budget, seeds=0)
    assert found.error == found.bound == worst[spent <= budget].min()
    assert found.cost <= budget
    assert found.error == allocate(curves, budget, objective="max").error


@pytest.mark.parametrize("bound", ["paper", "sharp", "exact"])
def test_the_alternation_only_goes_down(bound):
    layers = [planted(2, 0), planted(4, 7), planted(1, 3)]
    own = ladders(layers, bound=bound)
    curves = {name: ladder.curve() for name, ladder in own.items()}
    dense, moved = sum(c.costs[-1] for c in curves.values()), []
    for share in (0.2, 0.35, 0.5):
        steps = [alternate(own, curves, share * dense, seeds=1, iterations=i).error for i in range(5)]
        assert steps == sorted(steps, reverse=True)
        most = alternate(own, curves, share * dense)
        assert most.bound <= most.error <= steps[-1]
        assert most.cost <= share * dense
        again = alternate(own, curves, share * dense, generator=torch.Generator().manual_seed(0))
        assert again.choice == most.choice
        moved.append(steps[-1] < steps[0])
    assert any(moved)
    assert alternate(own, curves, dense, seeds=1, iterations=0).error == 0  # all dense


def test_groups_that_are_there_are_found():
    for groups in (1, 2, 4):
        layer = planted(groups, 11)
        own = ladders([layer])
        curves = {name: ladder.curve() for name, ladder in own.items()}
        budget = grouped_size(layer, 2, groups)
        for seeds in (0, 15):
            i = alternate(own, curves, budget, seeds=seeds).choice[layer.name]
            assert own[layer.name].families[i] == (0, groups)


def test_ladders_of_one_kind_will_do():
    """Of another method: then it is the search for the worst layer's best alone."""
    layer = planted(1, 0)
    own = {"1": METHODS["svd"].ladder(layer, METHODS["svd"].fit(Evidence(layer)))}
    curves = {"1": own["1"].curve()}
    found = alternate(own, curves, 0.5 * layer.size)
    assert found.error == found.bound


# -- whole models -----------------------------------------------------------------------------------------------------


def cnn() -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, dilation=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 30), nn.ReLU(), nn.Linear(30, 5),
        )
    ).double()  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"schemes": (0, 1, 2, 3), "bound": "sharp"}, {"search": "exact", "bound": "exact"}], ids=str
)
def test_a_model_gets_smaller_and_is_read_back(options, tmp_path):
    model, x = cnn(), draw(64, 3, 12, 12)
    before = [p.clone() for p in model.parameters()]
    small = alds(model, 0.4, data=x, progress=False, **options)
    assert small.kept <= 0.4
    assert small.method == "alds"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert {type(m) for m in small.model.modules()} <= {type(m) for m in model.modules()} | {GroupedLinear}
    assert torch.equal(tw.load_compressed(small.save(tmp_path / "small"), cnn())(x), small.model.eval()(x))
    first, second = (
        alds(model, 0.4, data=x, progress=False, generator=torch.Generator().manual_seed(3), **options) for _ in range(2)
    )
    assert first.layers == second.layers


def test_a_grouped_linear_layer_is_described():
    layer = GroupedLinear(draw(3, 2, 4))
    again = construct(describe(layer))
    assert (again.blocks.shape, again.blocks.dtype, again.in_features) == (layer.blocks.shape, torch.float64, 12)


def test_zeros_half_precision_and_exports():
    model = cnn().float()
    model[2].weight.data.zero_()
    small = alds(model, 0.5, data=torch.randn(64, 3, 12, 12), progress=False).model
    assert torch.export.export(small, (torch.randn(2, 3, 12, 12),)).module()(torch.zeros(2, 3, 12, 12)).isfinite().all()
    half = nn.Linear(24, 20).to(torch.bfloat16)
    found = grouped(Layer("h", half), 12, 2)
    assert found.module[0].weight.dtype == torch.bfloat16
    assert found.weight.error() < 0.02


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: grouped(conv_layer(), 9), r"1 groups of c, \(5, 36\), lies in 1\.\.5, got 9"),
        (lambda: grouped(conv_layer(), 0), r"lies in 1\.\.5, got 0"),
        (lambda: grouped(conv_layer(), 1, 5), r"36 columns of a weight of shape \(5, 36\) cannot be cut in 5 equal groups"),
        (lambda: grouped(conv_layer(), 1, 0), "cannot be cut in 0"),
        (lambda: grouped(conv_layer(), 1, 1, 4), "scheme is 0, 1, 2 or 3, got 4"),
        (lambda: group_errors(draw(3, 4), 2, "best"), "'paper', 'sharp' or 'exact', got 'best'"),
        (lambda: alds(cnn(), data=draw(8, 3, 12, 12), bound="best"), "'paper', 'sharp' or 'exact', got 'best'"),
        (lambda: alds(cnn(), data=draw(8, 3, 12, 12), search="greedy"), "'alternate' or 'exact', got 'greedy'"),
        (lambda: alds(cnn(), data=draw(8, 3, 12, 12), schemes=(0, 7)), r"got \(0, 7\)"),
        (lambda: alds(cnn(), data=draw(8, 3, 12, 12), schemes=()), r"got \(\)"),
        (lambda: alds(cnn(), data=draw(8, 3, 12, 12), seeds=0), "at least one start"),
        (lambda: alds(cnn(), 1e-4, data=draw(8, 3, 12, 12), progress=False), "below the least that"),
        (lambda: alds(cnn(), 0.5, data=[], progress=False), "data is empty"),
    ],
)
def test_what_makes_no_sense_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
