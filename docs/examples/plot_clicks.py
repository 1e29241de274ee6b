"""
A model of clicks, smaller
==========================

Recommenders are tables of ids: a row for every user and every item. Atomic feature mimicking keeps the directions in which the
rows that are looked up differ, and gives tables and layers their ranks within one budget.
"""

# %%
# 73,421 ratings of lectures stand in for clicks. A small DeepFM learns from four fifths of them: six tables, the products of
# their rows, and three layers.

import copy

import matplotlib.pyplot as plt
import torch

from termwise.testing.trained_ctr import auc, train_ctr
from termwise.weights import LowRankEmbedding, compress_ctr, merge_table
from termwise.zoo import ratings

ids, clicks = ratings.split("train")
held, held_clicks = ratings.split("test")
model = train_ctr(ids, clicks, seed=0)


def score(m: torch.nn.Module) -> float:
    with torch.no_grad():
        return auc(m(held), held_clicks)


print(f"{sum(p.numel() for p in model.parameters()):,} numbers, AUC {score(model):.4f}")

# %%
# Three times smaller. The change that was expected and the one that was measured, on ratings that nothing else was done with,
# agree. The weights of the tables are far from what they were: the directions left out do not reach the output.

small = compress_ctr(model, ids[:16384], ratio=3)
print(small.report())
print(f"AUC {score(small.model):.4f}")

# %%
# Along all sizes, beside tables cut by their own singular values, all at the same share: the small ones, which matter, as much as
# the large ones, which need fewer directions.


def cut(ratio: float) -> torch.nn.Module:
    """Tables alone, each at the same share of its numbers, every id weighed alike and no mean taken out."""
    other = copy.deepcopy(model)
    for i, table in enumerate(model.tables):
        n, d = table.weight.shape
        rank = min(int(n * d / ratio / (n + d)), n, d)
        if rank:
            _, _, v = torch.linalg.svd(table.weight, full_matrices=False)
            other.tables[i] = torch.nn.Embedding.from_pretrained(table.weight @ v[:rank].T @ v[:rank])
    return other


ratios = (1.25, 1.5, 2, 3, 4, 6, 8)
found = [compress_ctr(model, ids[:16384], ratio) for ratio in ratios]
plain = [cut(ratio) for ratio in ratios]


def change(m: torch.nn.Module) -> float:
    with torch.no_grad():
        return float((m(held) - model(held)).norm() / model(held).norm())


figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
share = [1 / ratio for ratio in ratios]
for models, label in (([c.model for c in found], "tables and layers, one budget"), (plain, "tables by singular values")):
    axes[0].semilogy(share, [change(m) for m in models], "o-", label=label)
    axes[1].plot(share, [score(m) - score(model) for m in models], "o-", label=label)
axes[0].set(xlabel="share of the numbers kept", ylabel="change of the output", title="size against output change")
axes[1].axhline(0, color="0.7", linewidth=0.8)
axes[1].set(xlabel="share of the numbers kept", ylabel="change of AUC", title="size against AUC")
axes[0].legend()
plt.show()

# %%
# A model without products reads its tables by layers alone: there the second factors become part of the first layer, and nothing
# else changes. The recorded graph decides whether that is so, and names what lies between where it is not.

reader = train_ctr(ids, clicks, seed=0, products=False, epochs=1)
less = compress_ctr(reader, ids[:4096], ratio=3).model
merged = less
for name, module in less.named_modules():
    if isinstance(module, LowRankEmbedding):
        merged = merge_table(merged, name, held[:8])
with torch.no_grad():
    print(f"{merged.mlp[0][0].in_features} inputs in place of {reader.mlp[0].in_features}, the output within")
    print(f"{(merged(held) - less(held)).abs().max():.0e}")
try:
    merge_table(small.model, "tables.0", held[:8])
except ValueError as refusal:
    print(refusal)
