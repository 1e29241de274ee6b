"""Channels taken out of a convolutional network by torch-pruning: those whose groups of weights are the smallest, in one shot."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from termwise.weights import find_layers

PINS = ["torch-pruning==1.6.1"]
ROUNDS = 12


def without_channels(model: nn.Module, calibrate: list[Tensor], budget: float, *, statistics: bool) -> tuple[nn.Module, float]:
    """The network of most channels whose convolutions and linear layers keep `budget` of their numbers, and what they do keep.

    Args:
        model: classes are what its last layer puts out, and are all kept.
        calibrate: pictures; the first one is what the network is traced with.
        budget: share of the numbers of what `tw.compress` would take apart; depth-wise kernels shrink too, and count in no budget.
        statistics: whether means and variances of batch norms are taken anew from the pictures.
    """
    layers = find_layers(model)[0]
    dense = sum(layer.size for layer in layers.values())
    low, high, best = 0.0, 1.0, None
    for _ in range(ROUNDS):
        share = (low + high) / 2
        small = _pruned(model, calibrate[0][:1], share)
        kept = sum(small.get_submodule(name).weight.numel() for name in layers) / dense
        if kept > budget:
            low = share
        else:
            high, best = share, (small, kept)
    if best is None:
        raise ValueError(f"no share of channels leaves {budget} of the numbers")
    if statistics:
        _normalise(best[0], calibrate)
    return best


def _pruned(model: nn.Module, x: Tensor, share: float) -> nn.Module:
    import torch_pruning

    small = copy.deepcopy(model).requires_grad_()  # the tracer follows gradients
    *_, classes = (small.get_submodule(name) for name in find_layers(small)[0])
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    torch_pruning.pruner.MagnitudePruner(small, x, importance, pruning_ratio=share, ignored_layers=[classes]).step()
    return small.requires_grad_(False).eval()


def _normalise(model: nn.Module, batches: list[Tensor]) -> None:
    """Statistics of every batch norm as of these data, each batch alike."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    model.eval()
