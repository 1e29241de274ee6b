"""LoRD: types, sweeps, what is chosen from them, and one rank for all layers of a type."""

from __future__ import annotations

import copy

import pandas
import pytest
import torch
from torch import nn

import termwise as tw
from termwise.weights import choose, domain_report, find_layers, layer_types, lord, project, type_sweep
from termwise.weights.afm import afm_linear
from termwise.weights.batches import read_batches
from termwise.weights.calibration import CalibrationStats, LayerStats
from termwise.weights.evidence import Evidence
from termwise.weights.low_rank import at_rank, fit_aware


class Block(nn.Module):
    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width, bias=bias), nn.Linear(2 * width, width, bias=bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z + self.down(torch.tanh(self.up(z)))


def tower(seed: int = 0, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(12, 16), *(Block(16, bias) for _ in range(3)), nn.Linear(16, 5)).double()


def data(n: int = 320, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 12, generator=g, dtype=torch.float64) * torch.logspace(0, -1.5, 12, dtype=torch.float64) + 0.5


def test_types_are_paths_without_numbers():
    assert layer_types(find_layers(tower())[0]) == {
        "0": "* (16 x 12)", "1.up": "*.up", "1.down": "*.down", "2.up": "*.up", "2.down": "*.down", "3.up": "*.up",
        "3.down": "*.down", "4": "* (5 x 16)",
    }  # fmt: skip
    model = nn.ModuleDict({"fc1": nn.Linear(3, 3), "fc2": nn.Linear(3, 3)})  # a number within a name is part of it
    assert set(layer_types(find_layers(model)[0]).values()) == {"fc1", "fc2"}


@pytest.mark.parametrize("bias", [True, False])
def test_presets_agree_where_their_options_do(bias):
    """The projector, LoRD and AFM on one layer; AFM gives it a bias, which is the same where it has one."""
    model, x = nn.Sequential(nn.Linear(12, 9, bias=bias, dtype=torch.float64)), data()
    small = lord(model, {"*": 0.45}, data=x, shrinkage=0.0)
    rank = small.parts["0"].rank
    assert rank == 4
    fit = torch.cat(read_batches(x).fit)
    stats = LayerStats.of(fit)
    left, right = project(model[0].weight, stats.covariance if bias else stats.gram).factors(rank)
    assert torch.allclose(small.parts["0"].total(), left @ right, atol=1e-9)
    by_budget = tw.compress(model, small.kept, data=x, method="lord", shrinkage=0.0, progress=False)
    aware = tw.compress(model, small.kept, data=x, method="aware", shrinkage=0.0, progress=False)
    for other in (by_budget, aware):
        assert torch.allclose(small.model(x), other.model(x), atol=1e-9)
    if bias:
        assert torch.allclose(small.model(x), afm_linear(model[0], stats, rank)(x), atol=1e-9)
        assert torch.allclose(small.model(fit).mean(0), model(fit).mean(0), atol=1e-9)  # the mean is kept
    else:
        y = fit @ model[0].weight.T
        vectors = torch.linalg.eigh(y.T @ y).eigenvectors[:, -rank:]
        assert torch.allclose(small.model(fit), y @ vectors @ vectors.T, atol=1e-9)  # the definition


def test_a_sweep_is_each_type_alone():
    """Slow twin: the layers of a type replaced by hand, and the model run."""
    model, x = tower(), data()
    sweep = type_sweep(model, x, ratios=[0.3, 0.6], types=["*.up", "* (5 x 16)"])
    assert sweep["type"].tolist() == ["*.up"] * 2 + ["* (5 x 16)"] * 2
    assert sweep["ratio"].tolist() == [0.6, 0.3] * 2
    assert sweep["rank"].tolist() == [10, 5, 3, 2]
    assert sweep["params"].tolist() == pytest.approx([10 * 48 / 512, 5 * 48 / 512, 3 * 21 / 80, 2 * 21 / 80])
    batches = read_batches(x)
    layers = find_layers(model)[0]
    stats = [CalibrationStats.collect(model, b, layers) for b in (batches.fit, batches.select)]
    other = copy.deepcopy(model)
    for i in (1, 2, 3):
        name = f"{i}.up"
        fitted = fit_aware(Evidence(layers[name], stats[0][name], stats[1][name]))
        other[i].up = at_rank(layers[name], fitted, 5).module
    held = torch.cat(batches.select)
    with torch.no_grad():
        by_hand = float((other(held) - model(held)).norm() / model(held).norm())
    assert sweep["increase"][1] == pytest.approx(by_hand, abs=1e-9)


def test_a_score_of_ones_own():
    model, x = tower(), data()
    pairs = [(batch, model(batch).argmax(1).detach()) for batch in x.split(32)]

    def perplexity(net: nn.Module, batches: list) -> float:
        with torch.no_grad():
            return float(sum(nn.functional.cross_entropy(net(a), b) for a, b in batches).exp())

    sweep = type_sweep(model, pairs, ratios=[1.0, 0.2], types=["*.down"], score=perplexity)
    assert sweep["increase"][0] == pytest.approx(0, abs=1e-9)
    assert sweep["increase"][1] > 1e-3


def test_what_is_chosen():
    sweep = pandas.DataFrame(
        [("a", 0.9, 0.0), ("a", 0.6, 0.009), ("a", 0.3, 0.02), ("b", 0.9, 0.5), ("b", 0.6, 0.001), ("c", 0.9, 0.01)],
        columns=["type", "ratio", "increase"],
    )
    assert choose(sweep) == {"a": 0.6, "c": 0.9}  # what is fine by luck below a bad one is not taken
    assert choose(sweep.sample(frac=1, random_state=0), 1.0) == {"a": 0.3, "b": 0.6, "c": 0.9}
    assert choose(sweep, 0.0) == {"a": 0.9}
    with pytest.raises(ValueError, match="0 or more"):
        choose(sweep, -0.1)
    with pytest.raises(ValueError, match="columns type, ratio"):
        choose(sweep[["type"]])


def test_one_rank_for_all_of_a_type():
    model, x = tower(), data()
    small = lord(model, {"*.up": 0.5, "*.down": 0.9}, data=x)
    assert {row.layer: row.choice for row in small.layers} == {
        **dict.fromkeys(("0", "4", "1.down", "2.down", "3.down"), "dense"),  # 14 of 16 ranks would be larger
        **{f"{i}.up": "rank 8" for i in (1, 2, 3)},
    }
    for budget in (0.3, 0.5, 0.8):
        found = tw.compress(model, budget, data=x, method="lord", progress=False)
        for kind in ("up", "down"):
            assert len({row.choice for row in found.layers if row.layer.endswith(kind)}) == 1
        free = tw.compress(model, budget, data=x, method="aware", progress=False)
        assert sum(r.error for r in free.layers) <= sum(r.error for r in found.layers) + 1e-12  # it may do what this does


def test_factors_train():
    model, x = tower(), data()
    small = lord(model, 0.3, data=x)
    net, x = small.model, data(seed=2).flip(1)  # another domain
    target = model(x).detach()
    optimizer = torch.optim.Adam([p for name in small.parts for p in net.get_submodule(name).parameters()], lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (net(x) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert all(p.grad.norm() > 0 for name in small.parts for p in net.get_submodule(name).parameters())
    assert losses[-1] < 0.5 * losses[0]


def test_domains():
    model, x = tower(), data()
    small = lord(model, 0.4, data=x)
    other = data(seed=2).flip(1)
    report = domain_report(model, small.model, {"in": data(seed=3), "out": other})
    assert report["domain"].tolist() == ["in", "out"]
    with torch.no_grad():
        whole = [float((small.model(d) - model(d)).norm() / model(d).norm()) for d in (data(seed=3), other)]
    assert report["increase"].tolist() == pytest.approx(whole, abs=1e-9)  # all of the data, none held back
    assert whole[1] > whole[0]
    assert domain_report(model, model, {"in": x})["increase"][0] == 0
    with pytest.raises(ValueError, match="domains is empty"):
        domain_report(model, small.model, {})


def test_language_models_are_measured_in_nats():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(20, 8), nn.Linear(8, 20)

        def forward(self, input_ids):
            return type("Out", (), {"logits": self.layer(self.embed(input_ids))})()

    model = Language().double()
    ids = [{"input_ids": torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(i))} for i in range(8)]
    sweep = type_sweep(model, ids, ratios=[0.25])
    small = lord(model, 0.25, data=ids)
    held = read_batches(ids).select
    total = sum(
        float((p.exp() * (p - q)).sum(-1).mean().detach()) / len(held)
        for b in held
        for p, q in [(model(**b).logits.log_softmax(-1), small.model(**b).logits.log_softmax(-1))]
    )
    assert sweep["increase"][0] == pytest.approx(float(torch.tensor(total).exp()) - 1)


@pytest.mark.parametrize("ratio", [0, 1.5, -1, float("nan"), {"*.up": 0}])
def test_ratios_that_make_no_sense(ratio):
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        lord(tower(), ratio, data=data())


def test_bad_input():
    with pytest.raises(ValueError, match=r"no layers of type 'q_proj': this model has \* \(16 x 12\)"):
        lord(tower(), {"q_proj": 0.5}, data=data())
    with pytest.raises(ValueError, match="no layers of type 'q_proj'"):
        type_sweep(tower(), data(), types=["q_proj"])
    for ratios in ([], [0.5, 2]):
        with pytest.raises(ValueError, match="shares of the full rank"):
            type_sweep(tower(), data(), ratios=ratios)
    with pytest.raises(ValueError, match="holds NaN"):
        type_sweep(tower(), data() * torch.nan)
