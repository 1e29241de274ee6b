"""A module whose calls of torch's `scaled_dot_product_attention` are TaylorShift, whatever else it does in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .taylor_shift import taylor_shift_attention

__all__ = ["ShiftedCalls", "boolean", "structure"]


class ShiftedCalls(nn.Module):
    """Runs a module with `taylor_shift_attention` in place of its calls of `scaled_dot_product_attention`.

    A torch function mode sees the calls while `forward` runs, and no longer; nothing is patched. Attributes that are not found
    here are those of the module.

    Args:
        module: as it is; its parameters are shared.
        name: for messages.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        like = next((p for p in module.parameters() if p.is_floating_point()), torch.ones(()))
        self.module, self.name = module, name
        self.temperature = nn.Parameter(torch.ones((), dtype=like.dtype, device=like.device))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module is called with, and returns."""
        with _Instead(self._attend):
            return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Of this module, else of the one within."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """The arguments of torch's function; a scale has no meaning for queries and keys of length 1."""
        if dropout_p:
            raise ValueError(
                f"{self.name}: dropout of attention weights ({dropout_p:g}) has no form without the weights: "
                "set it to 0 in the model, or call the model in eval mode"
            )
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        if attn_mask is not None:
            attn_mask, behind = structure(boolean(attn_mask, self.name), query.shape[-2])
            is_causal = is_causal or behind
        return taylor_shift_attention(query, key, value, self.temperature, is_causal=is_causal, attn_mask=attn_mask)


class _Instead(TorchFunctionMode):
    """Sends calls of `scaled_dot_product_attention` elsewhere."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every torch function while the mode is on."""
        instead = self.attend if func is F.scaled_dot_product_attention else func
        return instead(*args, **(kwargs or {}))


def boolean(mask: Tensor, name: str) -> Tensor:
    """True where a key counts, of a mask that is boolean or is added to scores: 0, or -inf and the like.

    Raises:
        ValueError: for what is neither: a bias on scores has no counterpart in a polynomial.
    """
    if mask.dtype == torch.bool:
        return mask
    keep = mask == 0
    if not bool((keep | (mask <= -1e4)).all()):
        raise ValueError(
            f"{name}: a bias is added to its scores (values other than 0 and -inf in a mask of shape {tuple(mask.shape)}), "
            "which TaylorShift has no place for: it cannot be converted"
        )
    return keep


def structure(keep: Tensor, length: int) -> tuple[Tensor | None, bool]:
    """A mask written out for every query, as one of keys and whether it is causal, where it is no more than that.

    Returns:
        The mask, of keys alone where possible, None where every key counts; and whether it is causal besides.

    Cost: a few passes over booleans, beside which the direct form has L S scores.
    """
    if keep.ndim == 1 or keep.shape[-2] == 1:
        return (None if bool(keep.all()) else keep), False
    of_keys = keep[..., -1:, :]  # the last query sees all keys that count, causal or not
    none = bool(of_keys.all())
    if bool((keep == of_keys).all()):
        return (None if none else of_keys), False
    if length == keep.shape[-1] and bool((keep == of_keys.expand_as(keep).tril()).all()):
        return (None if none else of_keys), True
    return keep, False
