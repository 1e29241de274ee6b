r"""A PLDR-LLM with G of one prompt for good, and without the network that made it.

    (x W_q^T + b_q) G = x (G^T W_q)^T + b_q G

so that G goes into the projection of queries, and plain attention is left. With rotary positions it does not: G stands between
two rotations, (R_i q) G (R_j k), and stays one d_k x d_k product per head and token.

Source: papers.toml "pldr"; the folding is ours.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from .pldr import PLDRForCausalLM
from .power_law_attention import PowerLawAttention

__all__ = ["freeze_g"]


@torch.no_grad()
def freeze_g(model: PLDRForCausalLM, prompt: Tensor, attention_mask: Tensor | None = None) -> PLDRForCausalLM:
    """The model that the G-cache of a prompt makes of a PLDR-LLM: causal, smaller, and plain.

    Args:
        model: with learned curvature; it is not changed.
        prompt: ids (batch, n); of several prompts the mean of their G is taken.
        attention_mask: (batch, n), False or 0 where a token is padding.

    Returns:
        A `PLDRForCausalLM` of curvature "fixed" with rotary positions, and "identity" without.

    Raises:
        ValueError: for a model whose G does not depend on a prompt, or shapes that do not fit.

    Example:
        >>> model = tw.layers.PLDRForCausalLM(tw.layers.PLDRConfig(vocab_size=20, rotary=False)).double()
        >>> prompt, cache = torch.tensor([[3, 1, 4, 1, 5]]), tw.layers.PLDRCache()
        >>> whole = model(prompt, cache=cache)
        >>> frozen = tw.layers.freeze_g(model, prompt)
        >>> frozen.config.curvature, torch.allclose(frozen(prompt), whole, rtol=1e-10, atol=1e-12)
        ('identity', True)
    """
    if not isinstance(model, PLDRForCausalLM):
        raise TypeError(f"model must be a PLDRForCausalLM, got {type(model).__name__}")
    g = model.curvatures(prompt, attention_mask).mean(1)
    frozen = copy.deepcopy(model)
    frozen.config = replace(model.config, curvature="fixed" if model.config.rotary else "identity")
    for layer, own in zip(frozen.layers, g, strict=True):
        attention = cast("PowerLawAttention", layer.attention)
        attention.metric = None
        if attention.rotary:
            attention.g = own
        else:
            heads, project = attention.n_heads, attention.q_proj
            project.weight.copy_((own.mT @ project.weight.unflatten(0, (heads, -1))).flatten(0, 1))
            project.bias.copy_((project.bias.unflatten(0, (heads, 1, -1)) @ own).flatten())
    return frozen
