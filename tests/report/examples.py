"""Explanations to draw: random parts that add up, as a method would give them."""

from dataclasses import dataclass

import torch

from termwise.core.decomposition import Decomposition
from termwise.predictions.explanation import Explanation
from termwise.predictions.metric import Metric

EVIL = "<script>alert('x')</script>"
"""What a user, a file name or a vocabulary may contain."""


def image(batch: int = 1, size: int = 12, classes: list[str] | None = None, modules: int = 20) -> Explanation:
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=g, dtype=torch.float64)

    parts = {"input:x": random(3, size, size), "constant:offset": random(2), "rule:softmax@head": random()}
    parts |= {f"bias:features.{i}": random(4) for i in range(modules)}
    whole = torch.stack([p.reshape(batch, -1).sum(1) for p in parts.values()]).sum(0)
    return Explanation(whole, parts, torch.full((batch,), 1), classes=classes)


def sentence(tokens: list[str], values: list[float] | None = None, classes: list[str] | None = None) -> Explanation:
    part = torch.tensor([values or list(range(1, len(tokens) + 1))], dtype=torch.float64)
    bias = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    parts = {"input:input_ids": part, "bias:head": bias}
    return Explanation(part.sum(1) + bias.sum(1), parts, torch.tensor([1]), names=[tokens], classes=classes)


def matrix() -> Decomposition:
    whole = torch.arange(6.0).view(2, 3)
    return Decomposition(whole, {"rank 1": whole * 0.75, "rank 2": whole * 0.2})


@dataclass(frozen=True)
class Curve:
    """A curve as any method may give it."""

    fractions: torch.Tensor
    scores: torch.Tensor
    random_scores: torch.Tensor
    score: str
    what: str = "8x8 patches"
    order: str = "descending"

    @property
    def area(self) -> Metric:
        return Metric("deletion", torch.trapezoid(self.scores, self.fractions))

    @property
    def random_area(self) -> tuple[torch.Tensor, torch.Tensor]:
        areas = torch.trapezoid(self.random_scores, self.fractions)
        return areas.mean(-1), areas.std(-1)

    def drop(self, fraction: float = 0.1) -> torch.Tensor:
        return self.scores[:, 0] - self.scores[:, 1]

    def random_drop(self, fraction: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
        drops = self.random_scores[:, :, 0] - self.random_scores[:, :, 1]
        return drops.mean(-1), drops.std(-1)


def curve(what: str = "8x8 patches", *, classes: bool = True) -> Curve:
    x = torch.tensor([0, 0.1, 0.5, 1.0])
    y = torch.tensor([[0.9, 0.4, 0.2, 0.1]])
    random = torch.tensor([[[0.9, 0.85, 0.5, 0.1], [0.9, 0.75, 0.4, 0.1]]])
    return Curve(x, y, random, "probability" if classes else "logit", what)
