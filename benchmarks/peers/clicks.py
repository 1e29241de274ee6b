"""Models of clicks and what makes them smaller: tables and layers alike are in the budget."""

import torch
from torch import nn

from termwise.testing.trained_ctr import auc, train_ctr
from termwise.weights import METHODS, allocate, find_layers
from termwise.weights.ctr import compress_ctr, find_tables
from termwise.weights.evidence import Evidence
from termwise.weights.layers import Layer, put, sharing_copy
from termwise.weights.low_rank_linear import LowRankEmbedding
from termwise.weights.products import linear
from termwise.zoo import ratings

CLICKS = ("afm", "svd", "uniform svd", "zeros")
BATCH = 1024


def clicks(seed: int):
    """A DeepFM trained on four fifths of the ratings; the others are the report."""
    ids, clicked = ratings.split("train")
    test, truth = ratings.split("test")

    def judge(model: nn.Module, dense: nn.Module, batches: list) -> dict[str, float]:
        with torch.no_grad():
            return {"auc": auc(torch.cat([model(**batch) for batch in batches]), truth)}

    def batches(of):
        return [{"ids": part} for part in of.split(BATCH)]

    return train_ctr(ids, clicked, seed), batches(ids[: 16 * BATCH]), batches(test), judge


def matrices(model: nn.Module) -> dict[str, Layer]:
    """Tables and layers."""
    return {name: table.layer for name, table in find_tables(model)[0].items()} | find_layers(model)[0]


def smaller_clicks(method: str, model: nn.Module, calibrate: list, budget: float) -> tuple[nn.Module, dict]:
    """By `compress_ctr`, or by singular values of the weights alone: the least sum of relative errors, or all the same share."""
    if method == "afm":
        made = compress_ctr(model, calibrate, 1 / budget)
        return made.model, {"kept": made.kept, "expected": made.predicted, "after": made.after, "before": made.before}
    svd = METHODS["svd"]
    ladders = {name: svd.ladder(layer, svd.fit(Evidence(layer))) for name, layer in matrices(model).items()}
    dense = sum(ladder.layer.size for ladder in ladders.values())
    curves = {name: ladder.curve() for name, ladder in ladders.items()}
    chosen = allocate(curves, budget * dense, method="dp" if method == "svd" else "uniform")
    small = sharing_copy(model)
    for name, i in chosen.choice.items():
        made = ladders[name].build(i)
        if made.weight is None:
            continue
        left, right = (made.weight.factors[side] for side in ("left", "right"))
        table = isinstance(ladders[name].layer.module, nn.Embedding)
        module = LowRankEmbedding(nn.Embedding.from_pretrained(left), linear(right.T, None)) if table else made.module
        put(small, name, module)
    before, after = (sum(p.numel() for p in net.parameters()) for net in (model, small))
    return small, {"kept": chosen.cost / dense, "after": after, "before": before}
