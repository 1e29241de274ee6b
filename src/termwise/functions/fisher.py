r"""The diagonal of the Fisher information of a classifier: how much its answers change with each of its weights.

    F_i = (1/N) sum_x sum_c p_c(x) (d log p_c(x) / d w_i)^2

over all classes c, each as likely as the model finds it: the true Fisher, which for cross-entropy is the diagonal of the
Gauss-Newton matrix. What is squared is the derivative for one sample and one class, never a mean over a batch. With the labels of
the data in place of the model's own classes it would be the empirical Fisher, which vanishes as the data are fitted.

Source: papers.toml "second-order-composition"; Kunstner, Balles & Hennig 2019 on what the empirical one is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from termwise.core.capture import explained
from termwise.core.trace import slow_transformer_path

from .tangent import parameter_groups

__all__ = ["diagonal_fisher"]


def diagonal_fisher(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    estimator: str = "exact",
    params: str | list[str] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The diagonal of a classifier's Fisher information, by the names of its parameters.

        F_i = (1/N) sum_x sum_c p_c(x) (d_i log p_c(x))^2

    Args:
        model: in eval mode; returns logits (batch, classes), or an output that has them.
        loader: batches: a tensor (batch, ...), or a tuple that begins with one (labels are not looked at).
        estimator: "exact", the sum over all classes; "mc", one class per sample, drawn from the model: the same on average.
        params: names or patterns with * and ? of the parameters wanted; None: all.
        generator: of the draws.

    Returns:
        A tensor of each parameter's shape, not negative.

    Raises:
        TypeError: for what is no module, or a batch that begins with no tensor.
        ValueError: for another estimator, a module in training mode, an unknown parameter, no batches, logits of another shape
            or fewer than two of them.

    Cost: per batch two forward passes and a backward pass for every class ("mc": one), with gradients for every sample (recurrent
        layers: one sample after another); memory O(batch x parameters): give small batches for large models.

    Example:
        >>> model = torch.nn.Linear(3, 4).double().eval()
        >>> x = torch.randn(5, 3, dtype=torch.float64)
        >>> p = model(x).softmax(1)                                     # of a linear layer: the mean of p (1 - p) x^2
        >>> by_hand = (p * (1 - p)).T @ x.square() / 5
        >>> torch.allclose(tw.functions.diagonal_fisher(model, [x])["weight"], by_hand)
        True

    Source: Porrello et al. 2025; Amari 1998.
    """
    if estimator not in ("exact", "mc"):
        raise ValueError(f"estimator is 'exact' (all classes) or 'mc' (one drawn per sample), got {estimator!r}")
    names = [name for group in parameter_groups(model, params).values() for name in group]
    weights = {name: model.get_parameter(name).detach() for name in names}

    def squares(x: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """Of one sample: (d log p_c)^2, each class as often as it is likely."""
        log_p, pull = torch.func.vjp(lambda w: _log_p(model, w, x.unsqueeze(0)).squeeze(0), weights)
        every = torch.eye(len(log_p), dtype=log_p.dtype, device=log_p.device)
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        pairs = zip(every, log_p.exp(), strict=True) if estimator == "exact" else [(every[drawn], 1.0)]
        for row, p in pairs:
            (slope,) = pull(row)
            total = {name: t + p * slope[name].square() for name, t in total.items()}
        return total

    found, count = {name: torch.zeros_like(w) for name, w in weights.items()}, 0
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), slow_transformer_path():  # fused attention has no rule for vmap
        for batch in loader:
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor):
                raise TypeError(f"a batch is a tensor, or a tuple that begins with one; the loader gave a {type(x).__name__}")
            if not len(x):
                continue
            log_p = _log_p(model, weights, x)
            if log_p.shape[:1] != x.shape[:1] or log_p.ndim != 2 or not bool(log_p.isfinite().all()):
                raise ValueError(f"the logits of a batch {tuple(x.shape)} are finite and (batch, classes), got {_seen(log_p)}")
            if log_p.shape[1] < 2:
                raise ValueError(
                    "the model has one logit, and a softmax over one is always 1: its Fisher information would be 0. Give it "
                    "two, as [0, z], whose probabilities are those of a sigmoid of z"
                )
            drawn = torch.zeros(len(x), dtype=torch.long, device=x.device)
            if estimator == "mc":
                drawn = torch.multinomial(log_p.exp(), 1, generator=generator).squeeze(1)
            single = _each(squares, x, drawn)
            found = {name: f + single[name].sum(0) for name, f in found.items()}
            count += len(x)
    if not count:
        raise ValueError("the loader gave no samples, and a mean over none is nothing")
    return {name: f / count for name, f in found.items()}


def _each(squares: Callable[[Tensor, Tensor], dict[str, Tensor]], x: Tensor, drawn: Tensor) -> dict[str, Tensor]:
    """Of all samples at once; one after another where an operation has no batched form, as recurrent layers have none."""
    try:
        found: dict[str, Tensor] = torch.func.vmap(squares)(x, drawn)
    except RuntimeError:
        rows = [squares(*pair) for pair in zip(x, drawn, strict=True)]  # what is wrong with the model itself is raised here too
        found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return found


def _log_p(model: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.log_softmax(explained(torch.func.functional_call(model, weights, (x,))), -1)


def _seen(log_p: Tensor) -> str:
    return f"{tuple(log_p.shape)}" + ("" if bool(log_p.isfinite().all()) else " with numbers that are not finite")
