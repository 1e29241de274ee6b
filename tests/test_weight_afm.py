"""Atomic feature mimicking: layers and tables by their outputs, models of clicks within one budget, merged second factors."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import termwise as tw
from termwise.testing.trained_ctr import DeepFM, auc, train_ctr
from termwise.weights import LowRankEmbedding, LowRankLinear, afm_embedding, afm_linear, compress_ctr, merge_table
from termwise.weights.calibration import LayerStats, shrink
from termwise.weights.ctr import find_tables
from termwise.weights.layers import put, sharing_copy
from termwise.weights.recipe import construct, describe

SIZES = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(0, 999))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(n: int, length: int = 300, seed: int = 0) -> torch.Tensor:
    """Ids of which small ones are frequent, and the last never comes."""
    return (torch.rand(length, generator=torch.Generator().manual_seed(seed)) ** 3 * (n - 1)).long()


def seeded(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


# -- layers ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(SIZES, st.booleans())
def test_a_layer_loses_the_eigenvalues_left_out(size, bias):
    m, n, seed = size
    x = normal(60, n, seed=seed) @ normal(n, n, seed=seed + 1) + 1
    layer = seeded(lambda: nn.Linear(n, m, bias=bias), seed)
    y = layer(x).detach()
    values, vectors = torch.linalg.eigh(torch.cov(y.T, correction=0))
    for rank in range(1, min(m, n) + 1):
        small = afm_linear(layer, LayerStats.of(x), rank)
        assert torch.isclose((small(x) - y).square().sum(1).mean(), values[: m - rank].sum(), rtol=1e-8, atol=1e-9)
        if values.flip(0)[rank - 1] > 1e-6:  # the paper's own order: a bias in each of the two
            u = vectors.flip(1)[:, :rank]
            first = x @ (u.T @ layer.weight).T + (u.T @ layer.bias if bias else 0)
            assert torch.allclose(small(x), first @ u.T + (torch.eye(m) - u @ u.T) @ y.mean(0), atol=1e-7)


def test_no_affine_map_of_that_rank_is_better():
    x = normal(50, 6) @ normal(6, 6, seed=1) + 1
    layer = seeded(lambda: nn.Linear(6, 5, bias=False))
    best = (afm_linear(layer, LayerStats.of(x), 2)(x) - layer(x)).square().sum(1).mean().detach()
    for seed in range(5):
        small = nn.Sequential(*(seeded(make, seed) for make in (lambda: nn.Linear(6, 2, bias=False), lambda: nn.Linear(2, 5))))
        opt = torch.optim.LBFGS(small.parameters(), max_iter=300, line_search_fn="strong_wolfe")

        def closure():
            opt.zero_grad()
            loss = (small(x) - layer(x).detach()).square().sum(1).mean()
            loss.backward()
            return loss

        opt.step(closure)
        assert closure() >= best * (1 - 1e-7)
    assert closure() < best * 3  # it did descend


def test_a_convolution_is_a_layer_too():
    conv = seeded(lambda: nn.Conv2d(3, 8, 3, padding=1, bias=False))
    x = normal(4, 3, 6, 6) + 1
    rows = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 27)
    y = conv(x).detach().transpose(0, 1).flatten(1)
    values = torch.linalg.eigvalsh(torch.cov(y, correction=0))
    small = afm_linear(conv, LayerStats.of(rows), 3)
    assert torch.isclose((small(x) - conv(x)).square().sum(1).mean(), values[:5].sum(), rtol=1e-8)


def test_the_method_gives_layers_a_bias():
    model = nn.Sequential(nn.Linear(24, 40, bias=False), nn.Tanh(), nn.Linear(40, 30, bias=False)).double()
    x = normal(800, 24) @ normal(24, 24, seed=1) * 0.1 + 2
    found = {name: tw.compress(model, 0.4, data=x, method=name, progress=False) for name in ("afm", "aware")}
    second = found["afm"].model[0][1]
    assert second.bias is not None
    assert second.bias.abs().max() > 0.1
    assert found["afm"].measured < 0.9 * found["aware"].measured
    assert all(small.kept <= 0.4 for small in found.values())


def test_with_biases_there_already_it_is_aware():
    model = seeded(lambda: nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 30)))
    a, b = (tw.compress(model, 0.5, data=normal(400, 24) + 1, method=name, progress=False).model for name in ("afm", "aware"))
    assert torch.equal(a(normal(9, 24)), b(normal(9, 24)))


# -- tables ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(3, 30), st.integers(2, 6), st.integers(0, 999)))
def test_a_table_loses_the_eigenvalues_of_its_stream(size):
    n, d, seed = size
    emb, ids = nn.Embedding.from_pretrained(normal(n, d, seed=seed) + 1), stream(n, seed=seed)
    rows = emb(ids)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0))
    counts = torch.bincount(ids, minlength=n)
    for rank in range(1, min(n, d) + 1):
        small = afm_embedding(emb, counts, rank)
        assert torch.isclose((small(ids) - rows).square().sum(1).mean(), values[: d - rank].sum(), rtol=1e-8, atol=1e-9)
        assert torch.allclose(small(ids), small.weight[ids], atol=1e-12)
        shares = afm_embedding(emb, counts / counts.sum(), rank)
        assert torch.allclose(shares(ids), small(ids), atol=1e-7)
        if d > rank and values.flip(0)[rank - 1] > values.flip(0)[rank] + 1e-6:
            u = vectors.flip(1)[:, :rank]
            whole = (emb.weight - rows.mean(0)) @ u @ u.T + rows.mean(0)  # ids that never came too
            assert torch.allclose(small.weight, whole, atol=1e-7)


def test_large_tables_are_read_in_pieces(monkeypatch):
    emb, counts = nn.Embedding.from_pretrained(normal(50, 6) + 1), torch.arange(50.0)
    whole = afm_embedding(emb, counts, 3)
    monkeypatch.setattr("termwise.weights.afm.CHUNK", 7)
    assert torch.allclose(afm_embedding(emb, counts, 3).weight, whole.weight, atol=1e-12)


def test_one_id_alone_is_the_mean():
    emb = nn.Embedding.from_pretrained(normal(5, 3))
    small = afm_embedding(emb, torch.tensor([0, 0, 7, 0, 0]), 1)
    assert torch.allclose(small(torch.tensor([2])), emb.weight[2:3], atol=1e-12)


def test_a_padded_row_stays_zero_and_is_not_learned():
    emb = seeded(lambda: nn.Embedding(20, 6, padding_idx=3))
    small = afm_embedding(emb, torch.ones(20), 2)
    assert small.padding_idx == 3
    ids = torch.tensor([3, 5, 3])
    y = small(ids)
    assert not y[0].any()
    y.sum().backward()
    assert not small.table.weight.grad[3].any()
    assert small.table.weight.grad[5].any()
    dense = torch.linalg.svd(emb.weight.detach()).Vh[:2]
    assert torch.allclose(small.weight, emb.weight @ dense.T @ dense, atol=1e-10)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("padding", [None, 2])
def test_a_bag_adds_up_rows(mode, last, padding):
    bag = nn.EmbeddingBag(15, 6, mode=mode, include_last_offset=last, padding_idx=padding).double()
    small = afm_embedding(bag, torch.ones(15), 3)
    ids = torch.tensor([1, 2, 4, 9, 9, 2])
    offsets = torch.tensor([0, 3, 3, 5, 6])[: None if last else 4]  # the second bag is empty
    weights = normal(6) if mode == "sum" else None
    truth = F.embedding_bag(
        ids, small.weight, offsets, mode=mode, per_sample_weights=weights, include_last_offset=last, padding_idx=padding
    )
    assert torch.allclose(small(ids, offsets, per_sample_weights=weights), truth, atol=1e-12)
    assert not small(ids, offsets)[1].any()
    whole = afm_embedding(bag, torch.ones(15), 6)
    assert torch.allclose(whole(ids, offsets), bag(ids, offsets), atol=1e-10)


def test_what_a_bag_leaves_out_has_no_weight():
    bag = nn.EmbeddingBag(15, 6, padding_idx=2).double()
    bag.weight.data[2] = 9.0
    counts, other = torch.ones(15), torch.ones(15)
    other[2] = 1000
    assert torch.allclose(afm_embedding(bag, counts, 2).weight, afm_embedding(bag, other, 2).weight, atol=1e-12)
    assert other[2] == 1000


def test_gradients_stay_sparse():
    small = afm_embedding(nn.Embedding(50, 8, sparse=True), torch.ones(50), 3)
    small(torch.tensor([4, 7])).square().sum().backward()
    assert small.table.weight.grad.is_sparse
    assert not small.mix.weight.grad.is_sparse
    before = small.table.weight.detach().clone()
    torch.optim.SparseAdam([small.table.weight], 0.1).step()
    changed = (before != small.table.weight).any(1).nonzero()[:, 0]
    assert changed.tolist() == [4, 7]


def test_a_table_of_low_rank_answers_what_a_table_is_asked():
    small = afm_embedding(nn.Embedding(50, 8), torch.ones(50), 3)
    assert (small.num_embeddings, small.embedding_dim, small.weight.shape) == (50, 8, (50, 8))
    program = tw.capture(nn.Sequential(small, nn.Flatten()).eval(), torch.zeros(4, 2, dtype=torch.long))
    assert program(torch.ones(3, 2, dtype=torch.long)).shape == (3, 16)
    assert copy.deepcopy(small).half()(torch.tensor([1])).dtype == torch.float16
    assert sum(p.numel() for p in small.parameters()) == 3 * (50 + 8) + 8


def test_tables_are_written_and_read():
    for module in (
        nn.Embedding(5, 3, padding_idx=1, sparse=True).half(),
        nn.EmbeddingBag(5, 3, mode="mean", include_last_offset=True),
        afm_embedding(nn.Embedding(9, 4), torch.ones(9), 2),
    ):
        again = construct(json.loads(json.dumps(describe(module))))
        assert str(again) == str(module)
        assert [p.dtype for p in again.parameters()] == [p.dtype for p in module.parameters()]
        assert json.dumps(describe(again)) == json.dumps(describe(module))


@pytest.mark.parametrize(
    ("emb", "counts", "rank", "text"),
    [
        (nn.Embedding(9, 4), torch.ones(8), 2, r"shape \(9,\), got \(8,\)"),
        (nn.Embedding(9, 4), torch.zeros(9), 2, "not all zero"),
        (nn.Embedding(9, 4), -torch.ones(9), 2, "none below zero"),
        (nn.Embedding(9, 4), torch.full((9,), torch.nan), 2, "finite"),
        (nn.Embedding(9, 4), torch.ones(9), 5, r"shape \(9, 4\) lies in 1\.\.4, got 5"),
        (nn.Embedding(9, 4), torch.ones(9), 0, r"1\.\.4, got 0"),
        (nn.Embedding(9, 4), torch.ones(9), 2.0, r"1\.\.4, got 2\.0"),
        (nn.Embedding(9, 4, max_norm=1.0), torch.ones(9), 2, "max_norm=None"),
        (nn.EmbeddingBag(9, 4, mode="max"), torch.ones(9), 2, "not linear in the rows"),
        (nn.Embedding.from_pretrained(torch.full((9, 4), torch.inf)), torch.ones(9), 2, r"\(9, 4\).*NaN or infinity"),
    ],
)
def test_tables_that_cannot_be(emb, counts, rank, text):
    with pytest.raises(ValueError, match=text):
        afm_embedding(emb, counts, rank)


def test_what_is_no_table_and_no_rank():
    with pytest.raises(TypeError, match="got Linear"):
        afm_embedding(nn.Linear(3, 3), torch.ones(3), 1)
    stats = LayerStats.of(normal(9, 4))
    with pytest.raises(ValueError, match=r"layer of shape \(3, 4\) lies in 1\.\.3, got 4"):
        afm_linear(nn.Linear(4, 3), stats, 4)
    with pytest.raises(ValueError, match=r"\(5, 5\), got \(4, 4\)"):
        afm_linear(nn.Linear(5, 3), stats, 2)


# -- merging --------------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Two tables and numbers, read by one layer."""

    def __init__(self, bias: bool = True, between=lambda rows: rows) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(30, 6), nn.Embedding(20, 4)
        self.drop, self.layer, self.between = nn.Dropout(0.5), nn.Linear(2 * 6 + 3 + 4, 5, bias=bias), between

    def forward(self, ids, numbers):
        rows = self.between(self.a(ids[:, :2]))
        return torch.tanh(self.layer(self.drop(torch.cat([rows.flatten(1), numbers, self.b(ids[:, 2])], 1))))


def narrow(model: nn.Module, *names: str, rank: int = 2) -> nn.Module:
    small = sharing_copy(model)
    for name in names:
        table = model.get_submodule(name)
        put(small, name, afm_embedding(table, torch.arange(1.0, table.num_embeddings + 1), rank))
    return small.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([stream(20, 40, seed) for seed in range(3)], 1), normal(40, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_second_factors_merge_and_nothing_changes(bias):
    model = narrow(seeded(lambda: Reader(bias)), "a", "b")
    ids, numbers = batch()
    before = model(ids, numbers)
    for order in itertools.permutations(["a", "b"]):
        merged = model
        for name in order:
            merged = merge_table(merged, name, ids, numbers)
        assert torch.allclose(merged(ids, numbers), before, atol=1e-12)
        assert merged.layer.in_features == 2 * 2 + 3 + 2
        assert type(merged.a) is nn.Embedding
        assert merged.a.weight is model.a.table.weight  # shared
        assert merged.layer.bias is not None  # a mean needs one
    assert isinstance(model.a, LowRankEmbedding)
    assert model.layer.in_features == 19
    assert torch.equal(model(ids, numbers), before)


def test_merging_without_a_mean_makes_no_bias():
    model = seeded(lambda: nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Flatten(), nn.Linear(8, 3, bias=False)))
    ids = torch.tensor([[0, 1], [0, 0], [3, 2]])
    small = narrow(model, "0")
    merged = merge_table(small, "0", ids)
    assert merged[2].bias is None
    assert torch.allclose(merged(ids), small(ids), atol=1e-12)


def test_several_readers_and_bags():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.q, self.k = nn.EmbeddingBag(30, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, ids):
            pooled = self.bag(ids)
            return self.q(pooled) * self.k(pooled)

    small = narrow(seeded(Two), "bag")
    merged = merge_table(small, "bag", batch()[0])
    assert (merged.q.in_features, merged.k.in_features) == (2, 2)
    assert torch.allclose(merged(batch()[0]), small(batch()[0]), atol=1e-12)


def test_into_a_layer_that_is_two_already():
    model = seeded(lambda: nn.Sequential(nn.Embedding(30, 6), nn.Flatten(), nn.Linear(12, 9)))
    small = narrow(model, "0")
    put(small, "2", LowRankLinear(*afm_linear(model[2], LayerStats.of(normal(99, 12)), 4)))
    ids = batch()[0][:, :2]
    merged = merge_table(small, "0", ids)
    assert merged[2][0].in_features == 4
    assert torch.allclose(merged(ids), small(ids), atol=1e-12)


@pytest.mark.parametrize(
    ("between", "text"),
    [
        (lambda rows: rows * rows.roll(1, 0), r"aten\.(mul|roll) at"),
        (torch.relu, r"aten\.relu at"),
        (lambda rows: rows + 1, r"aten\.add at .*test_weight_afm\.py"),
        (lambda rows: rows - rows.mean(1, keepdim=True), r"aten\.(sub|mean) at"),
        (lambda rows: rows.flip(2), r"aten\.flip at"),
    ],
)
def test_what_lies_between_is_named(between, text):
    model = narrow(seeded(lambda: Reader(between=between)), "a")
    with pytest.raises(ValueError, match=f"a cannot be merged: between it and a linear layer there is {text}"):
        merge_table(model, "a", *batch())


def test_other_reasons_not_to_merge():
    ids, numbers = batch()
    fm = narrow(seeded(lambda: DeepFM((20, 20, 20), 4)), "tables.0")
    with pytest.raises(ValueError, match=r"tables\.0 cannot be merged: between it"):
        merge_table(fm, "tables.0", ids)
    output = narrow(seeded(lambda: nn.Sequential(nn.Embedding(30, 6))), "0")
    with pytest.raises(ValueError, match="an output of the model"):
        merge_table(output, "0", ids)
    written = narrow(seeded(lambda: nn.Sequential(nn.Embedding(30, 6), nn.Unflatten(1, (3, 1)), nn.Flatten(), Viewed(18))), "0")
    with pytest.raises(ValueError, match="has its width written into it"):
        merge_table(written, "0", ids)
    mixed = narrow(seeded(lambda: nn.Sequential(nn.Embedding(30, 6), Elsewhere())), "0")
    with pytest.raises(ValueError, match=r"cannot be merged into 1\.layer, which reads something else as well"):
        merge_table(mixed, "0", ids)
    twice = narrow(seeded(Swapped), "table")
    with pytest.raises(ValueError, match="the output would change by"):
        merge_table(twice, "table", ids[:, :1], numbers)
    model = narrow(seeded(Reader), "a")
    with pytest.raises(ValueError, match="no LowRankEmbedding at 'b': there are a"):
        merge_table(model, "b", ids, numbers)
    with pytest.raises(ValueError, match="no LowRankEmbedding at 'zzz'"):
        merge_table(model, "zzz", ids, numbers)
    with pytest.raises(ValueError, match="there is none: make one"):
        merge_table(seeded(Reader), "a", ids, numbers)


class Viewed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width, self.layer = width, nn.Linear(width, 2)

    def forward(self, x):
        return self.layer(x.reshape(-1, self.width))


class Swapped(nn.Module):
    """A layer that reads the rows in two places."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(30, 6), nn.Linear(9, 2)

    def forward(self, ids, numbers):
        rows = self.table(ids[:, 0])
        return self.layer(torch.cat([rows, numbers], 1)) - self.layer(torch.cat([numbers, rows], 1))


class Elsewhere(nn.Module):
    """A layer that reads something else as well."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(18, 2)

    def forward(self, x):
        return self.layer(x.flatten(1)) + self.layer(torch.ones(len(x), 18, dtype=x.dtype))


# -- models of clicks -------------------------------------------------------------------------------------------------------


def clicks(n: int = 3000, sizes=(120, 80, 5), seed: int = 0):
    """Ids, and whether hidden vectors of two ids agree."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([(torch.rand(n, generator=g) ** 2 * size).long() for size in sizes], 1)
    u, v = (torch.randn(size, 2, generator=g) for size in sizes[:2])
    logit = (u[ids[:, 0]] * v[ids[:, 1]]).sum(1) + torch.randn(n, generator=g) * 0.3
    return ids, (logit > 0).float()


@pytest.fixture(scope="module")
def trained():
    ids, clicked = clicks(6000)
    return train_ctr(ids[:5000], clicked[:5000], 0, width=8, epochs=12), ids, clicked


@pytest.mark.parametrize("ratio", [1.5, 2, 3])
def test_a_budget_is_kept_and_the_model_is_not_touched(trained, ratio):
    model, ids, _ = trained
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    small = compress_ctr(model, ids, ratio)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert small.kept <= 1 / ratio
    stored = sum(p.numel() for n, p in small.model.named_parameters() if "bias" not in n)
    assert stored == sum(row.params for row in small.layers) <= sum(row.dense for row in small.layers) / ratio
    with torch.no_grad():
        held = ids[-1500:]
        off = float((small.model(held) - model(held)).norm() / model(held).norm())
    assert small.measured == pytest.approx(off, rel=0.15)
    for name, part in small.parts.items():
        module = small.model.get_submodule(name)
        assert torch.allclose(
            part.total(),
            module.weight if isinstance(module, LowRankEmbedding) else module[1].weight @ module[0].weight,
            atol=1e-5,
        )


def test_what_was_learned_is_kept(trained):
    """The hidden vectors have two entries: a third of the numbers is enough, and the change is the expected one."""
    model, ids, clicked = trained
    small = compress_ctr(model, ids[:5000], 2.5)
    with torch.no_grad():
        whole, less = (auc(m(ids[5000:]), clicked[5000:]) for m in (model, small.model))
    assert whole > 0.85
    assert abs(less - whole) < 0.02
    assert 1 / 1.5 < small.measured / small.predicted < 1.5
    rows = {row.layer: row for row in small.layers}
    assert rows["tables.0"].params < 0.6 * rows["tables.0"].dense
    assert {"tables.0", "tables.1"} <= set(small.parts)


def test_no_smaller_is_the_model(trained):
    model, ids, _ = trained
    small = compress_ctr(model, ids, 1)
    assert torch.allclose(small.model(ids), model(ids), atol=1e-4)
    assert small.measured < 1e-5


def test_what_the_output_does_not_read_goes_first():
    class Deaf(DeepFM):
        def forward(self, ids):
            rows = [table(column) for table, column in zip(self.tables, ids.unbind(1), strict=True)]
            return self.mlp(torch.cat([rows[0], 0 * rows[1], rows[2]], 1)).squeeze(1)

    model = seeded(lambda: Deaf((120, 120, 5), 8)).float()
    small = compress_ctr(model, clicks()[0], 2)
    rows = {row.layer: row for row in small.layers}
    assert rows["tables.1"].choice == "rank 1"
    assert rows["tables.0"].params > 3 * rows["tables.1"].params
    assert small.left["weights.0"] == "never reached by the data"
    assert rows["weights.0"].choice == "dense"


class Pairs(nn.Module):
    """One table read twice, a second module over the same weights, and a table that a layer is tied to."""

    def __init__(self):
        super().__init__()
        self.user, self.friend, self.item = nn.Embedding(90, 8), nn.Embedding(90, 8), nn.Embedding(40, 8)
        self.friend.weight = self.user.weight
        self.head = nn.Linear(8, 40, bias=False)
        self.head.weight = self.item.weight
        self.mlp = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, ids):
        rows = [self.user(ids[:, 0]), self.friend(ids[:, 1] % 90), self.item(ids[:, 2] % 40)]
        return self.head(self.mlp(torch.cat(rows, 1)))


def test_tables_that_share_their_weights_go_on_doing_so(tmp_path):
    model = seeded(Pairs).eval()
    ids = clicks(sizes=(90, 90, 40))[0]
    small = compress_ctr(model, ids, 1.6)
    assert isinstance(small.model.user, LowRankEmbedding)
    assert small.model.user is small.model.friend
    assert "tied" in small.left["item"]
    assert small.model.item.weight is small.model.head.weight
    assert sum(row.layer in ("user", "friend") for row in small.layers) == 1
    again = tw.load_compressed(small.save(tmp_path / "small"), Pairs().double())
    assert again.user.table.weight is again.friend.table.weight
    assert torch.equal(again(ids), small.model(ids))
    assert 1 / 1.25 < small.measured / small.predicted < 1.25  # what both of them spoil
    stream = torch.cat([ids[:1400, 0], ids[:1400, 1] % 90])
    found = afm_embedding(model.user, torch.bincount(stream, minlength=90), small.model.user.table.embedding_dim)
    assert (found.weight - small.model.user.weight).norm() < 0.2 * model.user.weight.norm()  # about the same stream


def test_saved_and_loaded_is_the_same_to_the_last_bit(trained, tmp_path):
    model, ids, _ = trained
    small = compress_ctr(model, ids, 3)
    folder = small.save(tmp_path / "small")
    again = tw.load_compressed(folder, DeepFM([t.num_embeddings for t in model.tables], 8))
    assert torch.equal(again(ids), small.model(ids))
    space: dict = {}
    exec((folder / "low_rank_linear.py").read_text(), space)
    assert "LowRankEmbedding" in space


def test_tables_and_layers_are_those_of_their_own_functions():
    """With means that are not zero, and a layer that has no bias yet."""
    model = seeded(lambda: nn.Sequential(nn.Embedding(90, 8), nn.Flatten(), nn.Linear(24, 20, bias=False)))
    model[0].weight.data += 3
    ids = torch.stack([stream(90, 2048, seed) for seed in range(3)], 1)
    small = compress_ctr(model, ids, 2.2)
    fit = ids[: 32 * (64 - 2 * 16)]
    counts = torch.bincount(fit.flatten(), minlength=90)
    found, (first, second) = small.model[0], small.model[2]
    table = afm_embedding(model[0], counts, found.table.embedding_dim)
    assert torch.allclose(found.weight, table.weight, atol=1e-9)
    rows = LayerStats.of(model[0](fit).flatten(1))
    rows = dataclasses.replace(rows, scatter=shrink(rows.scatter, 0.1))
    layer = afm_linear(model[2], rows, first.out_features)
    x = normal(9, 24)
    assert torch.allclose(second(first(x)), layer(x), atol=1e-9)
    assert 1 / 1.2 < small.measured / small.predicted < 1.2


def test_bags_and_positions_are_tables_too():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.words, self.out = (
                nn.EmbeddingBag(80, 8, mode="sum"),
                nn.Embedding(60, 8, padding_idx=0),
                nn.Linear(16, 3),
            )

        def forward(self, ids):
            return self.out(torch.cat([self.bag(ids % 80), torch.tanh(self.words(ids % 60)).mean(1)], 1))

    model = seeded(Bags)
    small = compress_ctr(model, clicks()[0], 2)
    assert {type(m.table) for m in small.model.modules() if isinstance(m, LowRankEmbedding)} == {nn.EmbeddingBag, nn.Embedding}
    assert not small.model.words(torch.tensor([0])).any()
    assert small.measured < 0.9


def test_kept_and_refused_tables():
    model = seeded(lambda: DeepFM((120, 80, 5), 8)).float()
    model.tables[1].max_norm = 1.0
    small = compress_ctr(model, clicks()[0], 1.05, keep=["tables.0", "mlp.*"])
    assert small.left["tables.0"] == "kept on request"
    assert small.left["mlp.0"] == "kept on request"
    assert "max_norm" in small.left["tables.1"]
    assert "kept on request" in small.report()
    differ = seeded(Pairs)
    differ.friend.padding_idx = 0
    assert "read them differently" in find_tables(differ)[1]["user"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratio": 0.25}, "to keep 25% write 4"),
        ({"ratio": 0}, "1 or above, got 0"),
        ({"ratio": True}, "1 or above"),
        ({"ratio": float("nan")}, "1 or above"),
        ({"ratio": 1e4}, "below the cheapest"),
        ({"loader": []}, "data is empty"),
        ({"loader": torch.full((8, 3), 999)}, r"does not take this batch of data, \(1, 3\)"),
        ({"model": nn.Linear(3, 3)}, r"no nn\.Embedding.*tw\.compress"),
        ({"keep": ["nothing*"]}, "fits no module"),
    ],
)
def test_what_makes_no_sense_is_refused(options, text):
    given_ = {"model": DeepFM((120, 80, 5), 8), "loader": clicks(100)[0], "ratio": 2, "keep": (), **options}
    with pytest.raises(ValueError, match=text):
        compress_ctr(given_["model"], given_["loader"], given_["ratio"], keep=given_["keep"])


# -- the subject --------------------------------------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_model_and_chance_is_left_alone():
    ids, clicked = clicks(600)
    state = torch.random.get_rng_state()
    a, b, c = (train_ctr(ids, clicked, seed, epochs=1) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(a(ids), b(ids))
    assert not torch.equal(a(ids), c(ids))
    assert not a.training


def test_products_are_those_of_all_pairs():
    model = DeepFM((12, 8, 5), 4).double().eval()
    ids = clicks(50, (12, 8, 5))[0]
    rows = [table(column) for table, column in zip(model.tables, ids.T, strict=True)]
    pairs = sum((a * b).sum(1) for a, b in itertools.combinations(rows, 2))
    singles = sum(table(column)[:, 0] for table, column in zip(model.weights, ids.T, strict=True))
    assert torch.allclose(model(ids), singles + pairs + model.mlp(torch.cat(rows, 1))[:, 0], atol=1e-12)
    model.products = False
    assert torch.allclose(model(ids), singles + model.mlp(torch.cat(rows, 1))[:, 0], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_ordered_pairs(rows):
    scores, labels = torch.tensor([float(s) for s, _ in rows]), torch.tensor([float(c) for _, c in rows])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    if pairs:
        assert auc(scores, labels) == pytest.approx(float(np.mean([float(p) for p in pairs])), abs=1e-9)
