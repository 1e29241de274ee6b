"""A small model of clicks, trained here in seconds: tables of ids, products of pairs of them, and layers on top (DeepFM).

    logit = bias + sum_f w_f[id_f] + sum_{f < g} <e_f[id_f], e_g[id_g]> + MLP(e_1[id_1], ..., e_F[id_F])

Source: Guo et al. 2017, DeepFM, section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DeepFM", "auc", "train_ctr"]


class DeepFM(nn.Module):
    """Logits (batch,) of ids (batch, fields)."""

    def __init__(self, sizes: Sequence[int], width: int = 16, hidden: Sequence[int] = (64, 32), *, products: bool = True) -> None:
        """Two tables per field; without `products` the wide ones are read by the layers alone."""
        super().__init__()
        self.products = products
        self.weights = nn.ModuleList(nn.Embedding(size, 1) for size in sizes)
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.bias = nn.Parameter(torch.zeros(()))
        layers: list[nn.Module] = []
        for i, o in zip([len(sizes) * width, *hidden[:-1]], hidden, strict=True):
            layers += [nn.Linear(i, o), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))
        for table in (*self.weights, *self.tables):
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        columns = ids.unbind(1)
        out: Tensor = self.bias + torch.cat([table(column) for table, column in zip(self.weights, columns, strict=True)], 1).sum(
            1
        )
        rows = [table(column) for table, column in zip(self.tables, columns, strict=True)]
        if self.products:
            stacked = torch.stack(rows, 1)
            out = out + 0.5 * (stacked.sum(1).square() - stacked.square().sum(1)).sum(1)
        return out + self.mlp(torch.cat(rows, 1)).squeeze(1)


def train_ctr(ids: Tensor, clicks: Tensor, seed: int, *, width: int = 16, products: bool = True, epochs: int = 3) -> DeepFM:
    """A model trained on clicks, leaving the global random state as it was.

    Args:
        ids: shape (n, fields), from 0.
        clicks: 0 or 1, shape (n,).
        seed: of first weights and order.
        width: of a row of a table.
        products: whether pairs of rows are multiplied.
        epochs: passes over the data; with more, tables of this size learn it by heart.

    Returns:
        The model in eval mode, float32, with frozen weights.
    """
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = DeepFM((ids.amax(0) + 1).tolist(), width, products=products)
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.03)
        for _ in range(epochs):
            for batch in torch.randperm(len(ids), generator=order).split(512):
                optimizer.zero_grad(set_to_none=True)
                F.binary_cross_entropy_with_logits(model(ids[batch]), clicks[batch]).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)


def auc(scores: Tensor, clicks: Tensor) -> float:
    """Area under the ROC curve: the share of pairs of a click and none that are in the right order, ties half."""
    _, where, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[where].double()
    positive = clicks > 0.5
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(clicks) - n)))
