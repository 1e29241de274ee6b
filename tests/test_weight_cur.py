"""CUR: identities, the bound, slow twins of each choice, and CURing's way through the blocks of a model."""

from __future__ import annotations

import copy
import math
from collections import UserDict
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import termwise as tw
from termwise.core import Decomposition, DoesNotAddUp
from termwise.testing import check_decomposition
from termwise.weights import CURDecomposition, angular_distance, break_even, cur, curing, deim, heal, qdeim
from termwise.weights.calibration import CalibrationStats, LayerStats
from termwise.weights.cur import cur_choices, fit_cur
from termwise.weights.evidence import Evidence
from termwise.weights.layers import Layer, find_layers

SHAPES = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(0, 999))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm2(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


# -- the factorization ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "exact"), [(3, False), (6, True)])
@pytest.mark.parametrize("link", ["optimal", "cross"])
def test_the_contract(rank, exact, link):
    made = dict.fromkeys(
        ("check_passes_where_exact_and_can_fail", "a_missing_number_fails", "slices_are_decompositions"),
        "parts are made from the factors, and of the whole matrix: see below",
    )
    found = check_decomposition(
        lambda w: cur(w, rank, link=link), exact=exact, inputs=(normal(6, 8),), batched=False, exceptions=made
    )
    assert isinstance(found, CURDecomposition)
    for name, factor in found.factors.items():
        for wrong in (factor + 1, factor * math.nan):
            with pytest.raises(DoesNotAddUp):
                replace(found, factors={**found.factors, name: wrong}).check()


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.data())
def test_exact_when_the_rank_suffices(size, data):
    m, n, seed = size
    r = data.draw(st.integers(1, min(m, n)))
    w = normal(m, r, seed=seed) @ normal(r, n, seed=seed + 1)
    assert cur(w, r, selection=data.draw(st.sampled_from(["deim", "qdeim", "leverage"]))).error() < 1e-8


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.data())
def test_between_the_optimum_and_the_bound(size, data):
    """Eckart and Young below, the theorem above: for every choice, and every importance."""
    m, n, seed = size
    r = data.draw(st.integers(1, min(m, n)))
    selection = data.draw(st.sampled_from(["deim", "qdeim", "norm", "leverage", "random"]))
    w = normal(m, n, seed=seed) * torch.logspace(0, -4, n, dtype=torch.float64)
    importance = data.draw(st.sampled_from([None, w.abs() * normal(n, seed=seed + 2).abs()]))
    found = cur(w, r, importance=importance, selection=selection)
    tail = torch.cat([torch.linalg.svdvals(w), torch.zeros(1, dtype=w.dtype)])[r]
    assert float(tail) * (1 - 1e-9) - 1e-12 <= norm2(found.remainder) <= found.bound() * (1 + 1e-9) + 1e-12


def test_the_published_bound_is_ours_for_the_weight_itself():
    w, r = normal(9, 12), 4
    found = cur(w, r)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    etas = [norm2(torch.linalg.inv(u[found.rows][:, :r])), norm2(torch.linalg.inv(vh[:r][:, found.columns]))]
    assert found.bound() == pytest.approx(sum(etas) * float(s[r]), rel=1e-10)
    assert cur(w, r, link="cross").bound() == math.inf
    assert "bases" not in repr(found)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.data())
def test_no_link_is_better(size, data):
    """The gradient of |W - C U R|^2 in U vanishes: C^T (W - C U R) R^T = 0."""
    m, n, seed = size
    f = cur(normal(m, n, seed=seed), data.draw(st.integers(1, min(m, n))))
    slope = f.factors["C"].T @ f.remainder @ f.factors["R"].T
    assert float(slope.norm()) < 1e-8 * float(f.whole.norm()) ** 3


def test_the_link_of_columns_that_are_nearly_alike_keeps_its_digits():
    """Worked out in float64, whatever the weight is: float32 columns that differ in the fifth digit."""
    w = normal(30, 20).float()
    w[:, 1:6] = w[:, :1] + 1e-5 * w[:, 1:6]
    found = cur(w, 20)
    assert found.factors["U"].dtype == torch.float32
    wide = cur(w.double(), 20)
    assert wide.error() < 1e-8
    duplicated = torch.cat([normal(8, 3), normal(8, 3)], 1)
    assert cur(duplicated, 5).error() < 1e-10  # more columns than there are different ones


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.data())
def test_the_cross_reproduces_what_was_chosen(size, data):
    m, n, seed = size
    w = normal(m, n, seed=seed)
    found = cur(w, data.draw(st.integers(1, min(m, n))), importance=w.abs(), link="cross")
    inverse = torch.linalg.inv(w[found.rows][:, found.columns])
    scale = 1e-12 * float(inverse.norm() * w.norm() ** 2)
    assert float(found.remainder[found.rows].norm()) < scale
    assert float(found.remainder[:, found.columns].norm()) < scale


def test_parts_are_columns():
    found = cur(normal(6, 8), 3)
    part = found.parts["columns"]
    assert part.shape == (6, 8, 3)
    for k, column in enumerate(found.columns):
        row = found.factors["U"][k] @ found.factors["R"]
        assert torch.allclose(part[..., k], torch.outer(found.whole[:, column], row))
    assert torch.allclose(part.sum(-1), found.total())
    assert found.rank == 3


def test_pictures_join_no_columns():
    found = cur(normal(9, 7), 3)
    columns, rows = found.pictures()[-2:]
    for picture, places, norms in (
        (columns, found.columns, found.whole.norm(dim=0)),
        (rows, found.rows, found.whole.norm(dim=1)),
    ):
        every, picked = picture.lines
        assert every.stems  # an index has no neighbours: nothing is between two
        assert picked.markers
        assert {every.role, picked.role} == {"term"}
        assert every.y == pytest.approx(norms.tolist())
        assert picked.x == sorted(places.tolist())


def test_saved_and_loaded(tmp_path):
    found = cur(normal(6, 8), 3)
    again = Decomposition.load(found.save(tmp_path / "cur"))
    assert isinstance(again, CURDecomposition)
    assert torch.equal(again.rows, found.rows)
    assert torch.equal(again.total(), found.total())
    assert again.bound() == found.bound()


# -- which rows and columns -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.data())
def test_deim_is_its_definition(size, data):
    """Each next row where the vector is furthest from its interpolation by a solve, one vector after the other."""
    n, seed = size[0] + size[1], size[2]
    r = data.draw(st.integers(1, n))
    v = torch.linalg.qr(normal(n, r, seed=seed)).Q
    chosen = [int(v[:, 0].abs().argmax())]
    for j in range(1, r):
        c = torch.linalg.solve(v[chosen, :j], v[chosen, j])
        chosen.append(int((v[:, j] - v[:, :j] @ c).abs().argmax()))
    assert deim(v).tolist() == chosen
    assert deim(v[:, : max(r - 1, 1)]).tolist() == chosen[: max(r - 1, 1)]  # of fewer vectors: the first of them


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.data())
def test_qdeim_is_its_definition(size, data):
    """Each next row the one furthest from the span of those chosen, by least squares."""
    n, seed = size[0] + size[1], size[2]
    r = data.draw(st.integers(1, n - 1))
    v = torch.linalg.qr(normal(n, r, seed=seed)).Q
    chosen: list[int] = []
    for _ in range(r):
        span = v[chosen].T
        left = v.T - span @ torch.linalg.pinv(span) @ v.T
        chosen.append(int(left.norm(dim=0).argmax()))
    assert qdeim(v).tolist() == chosen


def test_columns_move_with_the_weight():
    w, order = normal(7, 9), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    one, other = cur(w, 4), cur(w[:, order], 4)
    assert order[other.columns].tolist() == one.columns.tolist()
    assert torch.equal(other.rows, one.rows)


def test_importance_steers_the_choice():
    w = normal(8, 10)
    importance = torch.zeros_like(w)
    importance[:, [1, 4, 7]] = w[:, [1, 4, 7]].abs()
    assert sorted(cur(w, 3, importance=importance).columns.tolist()) == [1, 4, 7]
    assert sorted(cur(w, 3, importance=importance.roll(1, 1), selection="norm").columns.tolist()) == [2, 5, 8]
    found = cur(w, 3, importance=importance)
    assert torch.equal(found.factors["C"], w[:, found.columns])  # of the weight, and not of its importance
    assert torch.equal(found.factors["R"], w[found.rows])


def test_norms_and_leverage_scores():
    w = normal(8, 10) * torch.arange(1.0, 11.0)
    assert cur(w, 3, selection="norm").columns.tolist() == w.norm(dim=0).argsort(descending=True)[:3].tolist()
    u, _, vh = torch.linalg.svd(w)
    found = cur(w, 3, selection="leverage")
    assert found.columns.tolist() == vh[:3].norm(dim=0).argsort(descending=True)[:3].tolist()
    assert found.rows.tolist() == u[:, :3].norm(dim=1).argsort(descending=True)[:3].tolist()


def test_random_ones_are_drawn_from_the_generator():
    w = normal(30, 40)
    before = torch.random.get_rng_state()
    draws = [
        cur(w, 5, selection="random", generator=g and torch.Generator().manual_seed(g)).rows.tolist() for g in (None, 3, 3, 4)
    ]
    assert draws[1] == draws[2] != draws[3]
    assert torch.equal(before, torch.random.get_rng_state())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400))
def test_break_even(m, n):
    r = break_even((m, n))
    assert r * (m + n + r) <= m * n < (r + 1) * (m + n + r + 1)


# -- a method of compress ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("data", [True, False])
def test_every_rank_of_the_ladder_costs_what_it_says(shape, data):
    """All ranks from one pair of QR decompositions against each rank's CUR by itself."""
    layer = Layer("l", nn.Linear(shape[1], shape[0]).double())
    layer.module.weight.data = normal(*shape)
    x, held = (normal(60, shape[1], seed=s) @ normal(shape[1], shape[1], seed=9) + 1 for s in (1, 2))
    w = layer.matrix
    fitted = fit_cur(Evidence(layer, LayerStats.of(x), LayerStats.of(held)) if data else Evidence(layer))
    ladder = cur_choices(layer, fitted)
    assert ladder.labels[-1] == "dense"
    importance = w.abs() * (x.square().mean(0).sqrt() if data else 1)
    for i in range(len(ladder) - 1):
        made = ladder.build(i)
        alone = cur(w, i + 1, importance=importance)
        assert torch.allclose(made.weight.total(), alone.total(), atol=1e-9)
        lost = made.weight.remainder @ (held.T if data else torch.eye(shape[1], dtype=torch.float64))
        whole = w @ (held.T if data else torch.eye(shape[1], dtype=torch.float64))
        assert ladder.errors[i] == pytest.approx(float(lost.square().sum() / whole.square().sum()), rel=1e-7, abs=1e-10)
        assert ladder.params[i] == sum(m.weight.numel() for m in made.module) < w.numel()
        assert torch.allclose(made.module(x), x @ made.weight.total().T + layer.bias)


def test_columns_that_are_alike_do_not_count_twice():
    """Signs alone: all entries are as important, and DEIM takes equal columns. The second one adds nothing to a basis."""
    layer = Layer("l", nn.Linear(24, 12).double())
    signs = normal(12, 4).sign()
    layer.module.weight.data = signs.repeat_interleave(6, 1)
    fitted = fit_cur(Evidence(layer))
    chosen = layer.matrix[:, fitted["columns"]]
    assert torch.linalg.matrix_rank(chosen) < min(chosen.shape)
    ladder = cur_choices(layer, fitted)
    for i in range(len(ladder) - 1):
        assert ladder.errors[i] == pytest.approx(ladder.build(i).weight.error() ** 2, rel=1e-7, abs=1e-10)


def test_convolutions_keep_their_geometry():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 24, 3, stride=2, padding=1, dilation=2), nn.ReLU(), nn.Conv2d(24, 24, 3)).double()
    x = normal(40, 3, 16, 16)
    small = tw.compress(model, 0.8, data=x, method="cur", progress=False)
    assert small.parts
    assert {part.form for part in small.parts.values()} == {"cur"}
    for name, part in small.parts.items():
        dense = copy.deepcopy(model.get_submodule(name))
        dense.weight.data.copy_(part.total().reshape(dense.weight.shape))
        h = x if name == "0" else normal(2, 24, 9, 9)
        assert torch.allclose(small.model.get_submodule(name)(h), dense(h), atol=1e-10)


# -- CURing -----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.up, self.down, self.strength = nn.Linear(16, 32), nn.Linear(32, 16), strength

    def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, None]:
        return h + self.strength * self.down(torch.tanh(self.up(h))), None


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.blocks = nn.ModuleList(Block(s) for s in (1.0, 0.8, 0.1, 0.5, 0.05, 1.0))
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.table(input_ids)
        for block in self.blocks:
            h, _ = block(h)
        return self.head(h)


def tower() -> tuple[Tower, list[dict[str, torch.Tensor]]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tower().double()
    g = torch.Generator().manual_seed(1)
    return model, [{"input_ids": torch.randint(20, (8, 6), generator=g)} for _ in range(12)]


def test_angles_are_those_between_what_goes_in_and_out():
    model, batches = tower()
    far = angular_distance(model, batches)
    assert list(far) == [f"blocks.{i}" for i in range(6)]
    sums = torch.zeros(6, dtype=torch.float64)
    for batch in batches:
        h = model.table(batch["input_ids"])
        for i, block in enumerate(model.blocks):
            out = block(h)[0]
            for a, b in zip(h[:, -1], out[:, -1], strict=True):
                sums[i] += torch.arccos(a @ b / (a.norm() * b.norm())) / math.pi
            h = out
    assert torch.allclose(torch.tensor(list(far.values()), dtype=torch.float64), (sums / 96).detach(), atol=1e-9)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_last_token_is_the_last_that_counts():
    model, batches = tower()
    short = {"input_ids": batches[0]["input_ids"][:, :4]}
    padded = {"input_ids": batches[0]["input_ids"], "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]] * 8)}
    assert angular_distance(model, [padded]) == pytest.approx(angular_distance(model, [short]))
    assert angular_distance(model, [UserDict(padded)]) == angular_distance(model, [padded])  # as tokenizers give them
    assert angular_distance(model, [padded]) != pytest.approx(angular_distance(model, batches[:1]))


def test_angles_have_a_scale():
    class Turn(nn.Module):
        def __init__(self, to):
            super().__init__()
            self.to = to

        def forward(self, x):
            return x @ self.to

    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    model = nn.Sequential(Turn(3 * torch.eye(2)), Turn(quarter), Turn(-torch.eye(2)))
    assert list(angular_distance(model, [torch.randn(5, 2)]).values()) == pytest.approx([0, 0.5, 1], abs=1e-3)


def test_curing_takes_inner_blocks_that_turn_least():
    model, batches = tower()
    before = copy.deepcopy(model.state_dict())
    small = curing(model, 2, data=batches, rank=5, layers=["*.up", "*.down"])
    assert set(small.parts) == {"blocks.2.up", "blocks.2.down", "blocks.4.up", "blocks.4.down"}
    assert all(isinstance(part, CURDecomposition) and part.rank == 5 for part in small.parts.values())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert sum(row.params for row in small.layers) == small.after - sum(
        p.numel() for n, p in model.named_parameters() if "bias" in n or "table" in n
    )
    assert 0 < small.measured < 0.2
    for name, part in small.parts.items():
        layers = find_layers(model)[0]
        seen = CalibrationStats.collect(model, batches[:6], {name: layers[name]})[name]  # half of them
        w = layers[name].matrix
        assert torch.equal(part.rows, cur(w, 5, importance=w.abs() * seen.norms).rows)
        assert not torch.equal(torch.cat([part.rows, part.columns]), torch.cat([cur(w, 5).rows, cur(w, 5).columns]))
    full = curing(model, 1, data=batches, layers=["*.up"])  # rank 256 is more than this matrix has
    assert full.parts["blocks.4.up"].rank == break_even((32, 16))
    assert "curing" in small.summary()


def test_healing_moves_the_links_alone(tmp_path):
    model, batches = tower()
    small = curing(model, 3, data=batches, rank=4, layers=["*.up"])
    before = copy.deepcopy(small.model.state_dict())
    healed = heal(small, model, data=batches, at=["blocks.2", "blocks.4"], steps=60)
    assert healed.measured < 0.8 * small.measured
    assert all(torch.equal(v, before[k]) for k, v in small.model.state_dict().items())  # the one given is as it was
    moved = {k for k, v in healed.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {f"{name}.1.weight" for name in small.parts}
    for name, part in healed.parts.items():
        assert torch.equal(part.factors["U"], healed.model.get_submodule(name)[1].weight)
        eye = torch.eye(16, dtype=torch.float64)
        product = healed.model.get_submodule(name)
        assert torch.allclose((product(eye) - product(0 * eye)).T, part.total(), atol=1e-12)
    alone = heal(small, model, data=batches, steps=60)  # at the output, and nowhere else
    h, wanted = (network.blocks[2](model.table(batches[0]["input_ids"]))[0] for network in (healed.model, model))
    assert (h - wanted).norm() < (alone.model.blocks[2](model.table(batches[0]["input_ids"]))[0] - wanted).norm()
    again = tw.load_compressed(healed.save(tmp_path / "healed"), Tower().double())
    assert torch.equal(again(batches[0]["input_ids"]), healed.model(batches[0]["input_ids"]))
    one, other = (heal(small, model, data=batches, steps=3).model.state_dict() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_a_healed_layer_ends_where_the_normal_equations_do():
    """Of one linear layer the best link is C^+ W G R^T (R G R^T)^-1."""
    model = nn.Sequential(nn.Linear(12, 10, bias=False)).double()
    model[0].weight.data = normal(10, 12)
    x = normal(400, 12) @ normal(12, 12, seed=3)
    small = tw.compress(model, 0.8, data=x, method="cur", progress=False)
    c, r = (small.parts["0"].factors[k] for k in "CR")
    fit = torch.cat(tw.weights.batches.read_batches(x).fit)
    g = fit.T @ fit / len(fit)
    best = torch.linalg.pinv(c) @ model[0].weight @ g @ r.T @ torch.linalg.inv(r @ g @ r.T)

    def error(u: torch.Tensor) -> float:
        return float((fit @ (model[0].weight - c @ u @ r).T).square().sum().detach())

    healed = small
    for lr in (0.1, 0.02, 0.004):
        healed = heal(healed, model, data=x, steps=600, lr=lr)
    start, end, least = (error(u) for u in (small.parts["0"].factors["U"], healed.parts["0"].factors["U"], best))
    assert least * (1 - 1e-9) <= end < least + 0.02 * (start - least)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda w: cur(w, 0), r"1\.\.4 for a weight of shape \(4, 6\), got 0"),
        (lambda w: cur(w, 5), r"got 5"),
        (lambda w: cur(w, 2.0), r"got 2\.0"),
        (lambda w: cur(w[0], 1), "is a matrix"),
        (lambda w: cur(w * math.nan, 1), "finite"),
        (lambda w: cur(w.long(), 1), "int64"),
        (lambda w: cur(w, 1, importance=w.T), r"weight's shape \(4, 6\)"),
        (lambda w: cur(w, 1, importance=w * math.inf), "finite entries"),
        (lambda w: cur(w, 1, selection="best"), "'qdeim'.*got 'best'"),
        (lambda w: cur(w, 1, link="loose"), "got 'deim' and 'loose'"),
        (lambda w: cur(torch.zeros_like(w), 2, link="cross"), "have no inverse"),
        (lambda w: angular_distance(nn.Linear(3, 3), [w]), "no list of three"),
        (lambda w: angular_distance(nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity()), []), "no batches"),
        (lambda w: angular_distance(nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, 6)).double(), [w]), "keep it"),
        (lambda w: curing(tower()[0], 5, data=tower()[1]), r"1\.\.4, those between"),
        (lambda w: curing(tower()[0], 0, data=tower()[1]), "got 0"),
        (lambda w: curing(tower()[0], 1, data=tower()[1]), r"fit nothing in blocks\.4, which has blocks\.4\.up"),
        (lambda w: heal(tw.compress(tower()[0], 0.8, data=tower()[1], method="svd", progress=False), tower()[0], data=tower()[1]), "made with method='svd'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make(normal(4, 6))
