r"""Private training of a tangent model: gradients of single samples, cut off and blurred (DP-SGD).

    g = (1/B) (sum_i g_i min(1, C / |g_i|) + sigma C z),      z ~ N(0, 1)

of the samples i of a batch that takes every one of the n samples with probability q, B = q n. Opacus's accountant says what was
spent. What the noise is for is v alone: w_0 must have been trained on other data.

Cost: one batched forward and backward pass with a gradient for every sample, memory O(samples x parameters).
Source: Abadi et al. 2016 (DP-SGD); papers.toml "taft", which trains tangent models so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .pairs import Pair, run_pairs
from .tangent import TangentModel

__all__ = ["privacy_spent", "private_gradient"]


def private_gradient(
    model: TangentModel,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Sequence[Tensor],
    targets: Tensor,
    *,
    clip: float,
    noise: float,
    expected: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Set `.grad` of every parameter to the private gradient of one batch; any optimizer takes it from there.

    Args:
        model: whose v is trained.
        loss: of outputs (1, ...) and targets (1, ...) of one sample, a number.
        inputs: positional tensors of the model, each (samples, ...). The batch is drawn by taking every sample of the data with
            the same probability: an ordinary shuffled batch is not what the accountant counts.
        targets: (samples, ...).
        clip: C, the largest norm of a sample's gradient over all parameters.
        noise: sigma, the noise multiplier.
        expected: B, the mean number of samples in a batch.
        generator: of the noise.

    Returns:
        The norms of the samples' gradients before they were cut off, (samples,). They are not private.

    Raises:
        ValueError: for clip or expected <= 0, noise < 0, an empty batch.

    Example:
        >>> model = tw.tangent(torch.nn.Linear(3, 2).eval())
        >>> x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
        >>> loss = torch.nn.functional.cross_entropy
        >>> norms = tw.functions.private_gradient(model, loss, [x], y, clip=1e9, noise=0.0, expected=5)
        >>> plain = torch.autograd.grad(loss(model(x), y), list(model.parameters()))       # nothing cut off, no noise
        >>> all(torch.allclose(v.grad, g, atol=1e-6) for v, g in zip(model.parameters(), plain))
        True

    Source: Abadi et al. 2016, algorithm 1.
    """
    if not (clip > 0 and expected > 0 and noise >= 0):
        raise ValueError(f"clip and expected are above 0 and noise is not below, got {clip}, {expected} and {noise}")
    if not len(targets):
        raise ValueError("this batch is empty: draw it anew, or take a step of noise alone")
    program, names, tensors = model._recorded(inputs, {})

    def of_one(v: dict[str, Tensor], target: Tensor, *sample: Tensor) -> Tensor:
        values: dict[str, Any] = dict(program.bind([t.unsqueeze(0) for t in sample]))
        found = run_pairs(program, values | {p: Pair(values[p], v[n]) for p, n in names.items()})
        return loss(found.value + found.slope, target.unsqueeze(0))

    held = {n: v.detach() for n, v in model.tangent.items()}
    axes = (None, 0, *[0] * len(tensors))
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no rule for vmap
        single = torch.func.vmap(torch.func.grad(of_one), in_dims=axes)(held, targets, *tensors)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in single.values()]).norm(dim=0)
    scale = (clip / norms).clamp(max=1)  # at a norm of 0 the gradient is 0 whatever it is scaled by
    for name, v in model.tangent.items():
        total = torch.einsum("i,i...->...", scale.to(v.dtype), single[name])
        blur = torch.randn(v.shape, dtype=v.dtype, device=v.device, generator=generator)
        v.grad = (total + noise * clip * blur) / expected
    return norms


def privacy_spent(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon of (epsilon, delta) differential privacy after so many steps, by Opacus's accountant of Renyi divergences.

    Args:
        noise: sigma of `private_gradient`.
        rate: q, the probability with which a sample enters a batch.
        steps: how many batches.
        delta: below 1 / (number of samples).

    Raises:
        ImportError: without Opacus.
        ValueError: for numbers out of their range.

    Source: Mironov 2017; Mironov, Talwar & Zhang 2019 (sampled Gaussian).
    """
    if not (noise > 0 and 0 < rate <= 1 and steps > 0 and 0 < delta < 1):
        raise ValueError(f"noise > 0, 0 < rate <= 1, steps > 0, 0 < delta < 1: got {noise}, {rate}, {steps}, {delta}")
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as missing:
        raise ImportError('the accountant is that of Opacus: pip install "termwise[private]"') from missing
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    return float(accountant.get_epsilon(delta))
