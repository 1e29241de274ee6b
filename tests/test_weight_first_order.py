"""Errors of ranks at the output of the model: exact to first order, with the rows of a sample together, in as many runs as stated."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import termwise as tw
from termwise.weights.calibration import CalibrationStats
from termwise.weights.first_order import first_order
from termwise.weights.layers import find_layers, put, sharing_copy
from termwise.weights.low_rank import at_rank
from termwise.weights.projection import project
from termwise.weights.sensitivity import distance, sensitivity


class Pooled(nn.Module):
    """The mean over positions of what is computed at each."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, outputs, bias=False)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)).mean(1))


class Repeated(nn.Module):
    """A layer that is called twice, and what comes next works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.last = nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.last(torch.relu_(self.step(torch.tanh(self.step(x)))))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3, stride=2, bias=False), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 1),
    )  # fmt: skip


def terms(model: nn.Module, x: torch.Tensor) -> tuple[dict, dict]:
    layers, _ = find_layers(model)
    stats = CalibrationStats.collect(model, [x], layers)
    fitted = {}
    for name, layer in layers.items():
        found = project(layer.matrix, stats[name].gram)
        fitted[name] = {"left": found.left, "right": found.right, "mean": stats[name].mean}
    return layers, fitted


def change(model: nn.Module, name: str, layer, fitted, rank: int, x: torch.Tensor) -> torch.Tensor:
    """The derivative of the output on the way to a rank, and its square, as a mean over samples."""
    small = (fitted["left"][:, :rank] @ fitted["right"][:rank]).reshape(layer.module.weight.shape)
    tangent = {f"{name}.weight": small - layer.module.weight}
    if layer.bias is not None:
        tangent[f"{name}.bias"] = -(tangent[f"{name}.weight"].flatten(1) @ fitted["mean"])
    primal = {key: dict(model.named_parameters())[key].detach() for key in tangent}
    f = lambda parameters: torch.func.functional_call(model, parameters, x)
    return torch.func.jvp(f, (primal,), (tangent,))[1].detach().square().flatten(1).sum(1).mean()


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Pooled, (12, 5, 6)), (convolutions, (12, 2, 7, 7)), (Repeated, (12, 6))],
    ids=["rows", "pictures", "twice"],
)
def test_of_one_number_it_is_the_square_of_the_derivative(make, shape):
    """Whatever sign is drawn."""
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(shape, dtype=torch.float64) + 0.5
    layers, fitted = terms(model, x)
    found = first_order(model, list(x.split(5)), layers, fitted, draws=2)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    for name, layer in layers.items():
        slow = torch.stack([change(model, name, layer, fitted[name], r, x) for r in range(len(found[name]))])
        assert torch.allclose(found[name], slow.flip(0).cummax(0).values.flip(0), rtol=1e-9, atol=1e-15)
        assert found[name][-1] < 1e-25
        assert (found[name].diff() <= 0).all()


@pytest.mark.parametrize("metric", ["l2", "kl"])
def test_of_several_numbers_it_is_that_on_average(metric):
    torch.manual_seed(0)
    model = Pooled(4).double()
    x = torch.randn(40, 5, 6, dtype=torch.float64)
    layers, fitted = terms(model, x)
    found = first_order(model, [x], layers, fitted, metric=metric, draws=400)["first"]
    for rank in (3, 5):
        small = sharing_copy(model)  # a hundredth of the way, where the second order is small
        put(small, "first", nn.Linear(6, 8).double())
        full = at_rank(layers["first"], fitted["first"], rank)
        with torch.no_grad():
            small.first.weight.data = torch.lerp(model.first.weight, full.weight.total(), 1e-2)
            small.first.bias.data = torch.lerp(model.first.bias, full.module(torch.zeros(6, dtype=x.dtype)), 1e-2)
        with torch.no_grad():
            moved = distance(model(x), small(x), metric).mean() * 1e4
        assert found[rank] == pytest.approx(float(moved), rel=0.1)


def test_rows_of_a_sample_that_cancel_are_seen():
    """Errors in a direction whose sum over positions is zero do nothing, which one number for all directions does not know."""
    torch.manual_seed(0)
    model = Pooled(3).double()
    x = torch.randn(300, 8, 6, dtype=torch.float64)
    x[:, :, :3] -= x[:, :, :3].mean(1, keepdim=True)  # what the first entries say at one place they take back at another
    model.first.weight.data *= 0.05  # the tangent is nearly linear
    layers, fitted = terms(model, x)
    basis = {"left": model.first.weight.detach(), "right": torch.eye(6, dtype=x.dtype), "mean": fitted["first"]["mean"]}
    basis = {**basis, "left": basis["left"].flip(1), "right": basis["right"].flip(0)}  # those that cancel are left out first
    found = first_order(model, [x], {"first": layers["first"]}, {"first": basis}, draws=4)["first"]
    h = sensitivity(model, [x], {"first": layers["first"]})["first"]
    out = model.first.weight.detach().clone()
    out[:, 3:] = 0
    apart = float((out.T @ h @ out).diagonal().sum())  # by H and G = I, the coherence included
    small = sharing_copy(model)
    put(small, "first", nn.Linear(6, 8).double())
    small.first.weight.data, small.first.bias.data = model.first.weight.detach() - out, model.first.bias.detach()
    with torch.no_grad():
        moved = float(distance(model(x), small(x), "l2").mean())
    assert max(float(found[3]), moved) < apart / 100


def test_samples_on_another_axis_are_taken_together():
    """Of shape (positions, samples, width): on average the same, and no error."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Pooled()

        def forward(self, x):  # (samples, positions, width)
            return self.inner.last(torch.tanh(self.inner.first(x.transpose(0, 1))).mean(0))

    torch.manual_seed(0)
    turned = Turned().double()
    x = torch.randn(6, 7, 6, dtype=torch.float64)
    layers, fitted = terms(turned.inner, x)
    straight = first_order(turned.inner, [x], layers, fitted)["first"]
    outer, _ = find_layers(turned)
    found = first_order(turned, [x], outer, {f"inner.{k}": v for k, v in fitted.items()}, draws=2000)["inner.first"]
    assert found[3] == pytest.approx(float(straight[3]), rel=0.15)


@pytest.mark.parametrize("at_once", [None, 1])
def test_the_model_is_run_as_often_as_stated(at_once, capsys, monkeypatch):
    if at_once:
        monkeypatch.setattr("termwise.weights.task.AT_ONCE", at_once)
    model, x = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)), torch.randn(160, 12)
    runs, sent = [], []
    model.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda *args, **kwargs: (sent.append(1), backward(*args, **kwargs))[1])
    tw.compress(model, 0.6, data=list(x.split(10)))
    stated = re.search(r"(\d+) forward and (\d+) backward passes", capsys.readouterr().out)
    groups = 2 if at_once else 1
    assert sum(runs) == groups * 8 + 4
    assert int(stated[1]) == len(runs) - 2  # `Judged` looks at the first batch, and at half of it, before anything is said
    assert int(stated[2]) == len(sent) == groups * 8 + 4 * 4  # 40 samples
