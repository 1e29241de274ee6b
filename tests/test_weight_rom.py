"""ROM: layers one after the other, the walk along blocks, what is fitted, and which blocks are made smaller."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

import termwise as tw
from termwise.weights import find_layers, lord, rom
from termwise.weights.batches import read_batches
from termwise.weights.calibration import CalibrationStats, LayerStats
from termwise.weights.evidence import Evidence
from termwise.weights.layers import put
from termwise.weights.low_rank import at_rank, fit_aware, fit_svd, pairs
from termwise.weights.methods import Method
from termwise.weights.rom import last_blocks
from termwise.weights.sequential import Stream, route


class Block(nn.Module):
    """Two branches that read one tensor, and a stream that a constant is added to."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, width, bias=bias), nn.Linear(width, width, bias=bias)
        self.down = nn.Linear(width, width, bias=bias)
        self.runs = 0

    def forward(self, z: torch.Tensor, place: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        self.runs += 1
        h = torch.tanh(z + place)
        return (z + scale * self.down(self.q(h) * torch.sigmoid(self.k(h)))).relu_()


class Tower(nn.Module):
    def __init__(self, bias: bool = True, depth: int = 4) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(10, 14, bias=bias), nn.Linear(14, 6, bias=bias)
        self.blocks = nn.ModuleList(Block(14, bias) for _ in range(depth))

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        z, place = self.stem(x), x.mean(-1, keepdim=True)
        for block in self.blocks:
            z = block(z, place, scale=0.9)
        return self.head(z)


def tower(seed: int = 0, bias: bool = True) -> Tower:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tower(bias).double()


def data(n: int = 240, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 10, generator=g, dtype=torch.float64) * torch.logspace(0.3, -1, 10, dtype=torch.float64) + 0.4


def everywhere(model: nn.Module, x, budget: float = 0.5, **options):
    return rom(model, budget, data=x, blocks=["*"], **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("target", ["compressed", "original"])
def test_the_walk_is_the_whole_model_run_again_for_each_layer(bias, target):
    """Slow twin: every layer's statistics from the model with its predecessors replaced, run from the start."""
    model, x = tower(bias=bias), data()
    small = everywhere(model, x, target=target)
    assert set(small.parts) == set(find_layers(model)[0])
    batches, other = read_batches(x), copy.deepcopy(model)
    fit = batches.fit
    original = {}
    for name in ("stem", *(f"blocks.{i}.{part}" for i in range(4) for part in ("q", "k", "down")), "head"):
        layer, rank = find_layers(model)[0][name], small.parts[name].rank
        now, original = ([], [])
        for net, rows in ((other, now), (model, original)):
            handle = net.get_submodule(name).register_forward_pre_hook(lambda _, args, r=rows: r.append(args[0]))
            with torch.no_grad():
                for batch in fit:
                    net(batch)
            handle.remove()
        a, b, w = torch.cat(now), torch.cat(original), layer.matrix
        if target == "compressed":
            made = at_rank(layer, fit_aware(Evidence(layer, LayerStats.of(a), shrinkage=0.1)), rank)
            product = made.weight.total()
        else:
            mean_a, mean_b = (a.mean(0), b.mean(0)) if bias else (0, 0)
            gram, cross = (a - mean_a).T @ (a - mean_a) / len(a), (b - mean_b).T @ (a - mean_a) / len(a)
            prior = 0.1 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
            best = w @ (0.9 * cross + prior) @ torch.linalg.inv(0.9 * gram + prior)
            vectors = torch.linalg.eigh(best @ (0.9 * gram + prior) @ best.T).eigenvectors[:, -rank:]
            product = vectors @ vectors.T @ best
        assert torch.allclose(small.parts[name].total(), product, atol=1e-9)
        if bias:  # the mean of what it puts out is the wanted one
            wanted = layer.module(b if target == "original" else a)
            assert torch.allclose(small.model.get_submodule(name)(a).mean(0), wanted.mean(0), atol=1e-9)
        put(other, name, small.model.get_submodule(name))
    with torch.no_grad():
        assert torch.allclose(small.model(x), other(x), atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("target", ["compressed", "original"])
def test_presets_agree_on_one_layer(bias, target):
    model, x = nn.Sequential(nn.Linear(10, 8, bias=bias, dtype=torch.float64)), data()
    small = everywhere(model, x, 0.7, target=target, shrinkage=0.0)
    rank = small.parts["0"].rank
    for other in (
        lord(model, rank / 8, data=x, shrinkage=0.0),
        tw.compress(model, 0.7, data=x, method="aware", shrinkage=0.0, progress=False),
    ):
        assert other.parts["0"].rank == rank
        assert torch.allclose(small.model(x), other.model(x), atol=1e-9 if target == "compressed" else 1e-5)  # a ridge of 1e-6


def test_stale_statistics_would_show():
    model, x = tower(), data()
    stale = Method(fit_aware, pairs, partial(last_blocks, blocks=["*"]))
    once = tw.compress(model, 0.5, data=x, method=stale, progress=False)
    found = everywhere(model, x)
    assert [row.choice for row in once.layers] == [row.choice for row in found.layers]
    assert torch.allclose(once.parts["stem"].total(), found.parts["stem"].total(), atol=1e-12)  # nothing before it
    for name in list(found.parts)[1:]:
        if name != "head":
            assert not torch.allclose(once.parts[name].total(), found.parts[name].total(), atol=1e-6) or name.startswith(
                "blocks.0"
            )
    assert everywhere(model, x, target="original").measured < found.measured


def test_blocks_are_run_once_per_group_and_once_to_move_on():
    model, x = tower(), data()
    layers = find_layers(model)[0]
    along = route(model, layers, x[:4])
    assert along.blocks == [f"blocks.{i}" for i in range(4)]
    assert along.groups == [
        ["stem"], *([f"blocks.{i}.{n}" for n in part] for i in range(4) for part in (("q", "k"), ("down",))), ["head"],
    ]  # fmt: skip
    fit = len(read_batches(x).fit)
    counted = copy.deepcopy(model)
    stream = Stream(counted, read_batches(x).fit, along)
    for block in counted.blocks:
        block.runs = 0
    for group in along.groups[1:-1]:
        list(stream.inputs(group[0]))
    assert [block.runs for block in counted.blocks] == [4 * fit, 4 * fit, 4 * fit, 3 * fit]  # one to enter, two groups, one on


def test_models_without_a_chain_are_run_from_their_start():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(10, 10) for _ in range(3))

        def forward(self, x):
            a = self.blocks[0](x)
            b = self.blocks[1](a.tanh())
            return self.blocks[2](torch.sin(a) + b)

    model = Skipping().double()
    assert route(model, find_layers(model)[0], data(4)).blocks == []
    small = everywhere(model, data(), 0.6)
    assert set(small.parts) == {"blocks.0", "blocks.1", "blocks.2"}
    plain = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 10), nn.ReLU(inplace=True), nn.Linear(10, 10)).double()
    assert route(plain, find_layers(plain)[0], data(4)).blocks == ["0", "1", "2", "3", "4"]


def test_padding_does_not_count():
    model = tower()
    ids = torch.randn(6, 3, 5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(3, 5, dtype=torch.int64)
    mask[:, 3:] = 0
    spoiled = ids.clone()
    spoiled[:, :, 3:] = 100.0
    a, b = (
        everywhere(model, [{"x": x, "attention_mask": mask} for x in batches], target="original") for batches in (ids, spoiled)
    )
    for name in a.parts:
        assert torch.allclose(a.parts[name].total(), b.parts[name].total(), atol=1e-9)


def test_the_last_blocks_are_made_smaller():
    model, x = tower(), data()

    def touched(**options):
        return sorted({name.split(".")[1] if "." in name else name for name in rom(model, data=x, **options).parts})

    assert touched(budget=1.0) == []
    assert touched(budget=0.9) == ["3"]  # a quarter of the blocks
    assert touched(budget=0.8) == ["2", "3"]  # 12 of 32 is one and a half of four
    assert touched(budget=0.5) == ["1", "2", "3"]  # 24 of 32
    assert touched(budget=0.9, module_budget=0.5) == ["3"]
    assert touched(budget=0.7, module_budget=0.5) == ["1", "2", "3"]
    assert touched(budget=0.8, blocks=["blocks.0", "head"]) == ["0", "head"]
    small = rom(model, 0.5, data=x)
    assert len({row.choice for row in small.layers if row.layer in small.parts}) == 1  # one share for all
    assert small.kept <= 0.5


def test_convolutions():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3)
        ).double()
        x = torch.randn(48, 2, 20, 20).double()
    errors = {target: everywhere(model, x, 0.5, target=target).measured for target in ("compressed", "original")}
    assert errors["original"] < 1.05 * errors["compressed"] < 0.9


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"target": "both"}, "'compressed' or 'original'"),
        ({"module_budget": 0}, "between 0 and 1"),
        ({"module_budget": 1.5}, "between 0 and 1"),
        ({"blocks": ["layers.*"]}, r"fit none of blocks\.0"),
        ({"blocks": "first"}, "'last' or patterns"),
        ({"budget": 0.01}, "below the (least|cheapest)"),
        ({"budget": 0.2, "blocks": ["blocks.0"]}, "below the (least|cheapest)"),
        ({"data": data() * torch.nan}, "holds NaN"),
    ],
)
def test_bad_input(options, text):
    with pytest.raises(ValueError, match=text):
        rom(tower(), **{"budget": 0.5, "data": data(), **options})


def test_statistics_agree_with_those_of_one_pass():
    """At the first group the walk reads what a plain pass reads."""
    model, x = tower(), data()
    layers = find_layers(model)[0]
    small = everywhere(model, x, 0.5)
    stats = CalibrationStats.collect(model, read_batches(x).fit, layers)["stem"]
    made = at_rank(layers["stem"], fit_aware(Evidence(layers["stem"], stats)), small.parts["stem"].rank)
    assert torch.allclose(made.weight.total(), small.parts["stem"].total(), atol=1e-12)
    assert fit_svd(Evidence(layers["stem"]))["errors"][small.parts["stem"].rank] == pytest.approx(
        next(row.error for row in small.layers if row.layer == "stem")
    )
