"""Models and inputs that are small, and the ways in which they are bad. Models are shared: nothing changes them in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Custom",
    "X",
    "attention_net",
    "ids",
    "images",
    "mlp",
    "net",
    "on_meta",
    "picture_net",
    "poisoned",
    "text_net",
    "training",
    "with_nan",
]

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Custom(nn.Module):
    """A model from a function of its inputs."""

    def __init__(self, function: Callable[..., Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.inner = function, inner or nn.Linear(4, 3)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.inner, *args, **kwargs)


@cache
def net() -> nn.Module:
    """(batch, 4) to (batch, 3)."""
    return nn.Sequential(nn.Linear(4, 3)).eval()


@cache
def mlp() -> nn.Module:
    """(batch, 4) to (batch, 3), with a hidden layer of 8."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


@cache
def picture_net() -> nn.Module:
    """(batch, 3, 8, 8) to (batch, 5)."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


def images(batch: int = 2) -> Tensor:
    return torch.linspace(0, 1, batch * 192).reshape(batch, 3, 8, 8)


class Reader(nn.Module):
    """Ids (batch, tokens) to (batch, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 6), nn.Linear(6, 2)
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(torch.tanh(self.table(input_ids)).mean(1))


@cache
def text_net() -> nn.Module:
    return Reader()


def ids() -> Tensor:
    return torch.tensor([[1, 2, 3], [4, 5, 6]])


@cache
def attention_net() -> nn.Module:
    """(batch, tokens, 8) to (batch, tokens, 8)."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()


def with_nan(x: Tensor, value: float = torch.nan) -> Tensor:
    """The same with one bad entry."""
    x = x.clone()
    x.view(-1)[1] = value
    return x


def training(model: nn.Module) -> nn.Module:
    """A copy in training mode."""
    return copy.deepcopy(model).train()


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without values."""
    return copy.deepcopy(model).to("meta")


def poisoned() -> nn.Module:
    """`mlp` with a weight that is NaN."""
    model = copy.deepcopy(mlp())
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    return model
