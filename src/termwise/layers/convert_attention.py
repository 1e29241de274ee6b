"""TaylorShift in place of the attention of a model: what can be swapped is found by type and by a run, what cannot is named."""

from __future__ import annotations

import copy
import warnings
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .shifted_calls import ShiftedCalls
from .shifted_multihead import ShiftedMultihead

__all__ = ["convert"]

Model = TypeVar("Model", bound=nn.Module)
SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


def convert(model: Model, *args: Any, **kwargs: Any) -> Model:
    """A copy of a model with TaylorShift for its attention: another function, to be trained or fine-tuned.

        softmax(q . k / sqrt(d))   becomes   T(tau q . k / (|q| |k|)) / sum,     T(s) = 1 + s + s^2 / 2,     tau = 1, learned

    Two things are swapped. Every `nn.MultiheadAttention`, for one that keeps its parameters under their names and has a
    temperature for each head. And every module that, in one run of the model, calls torch's `scaled_dot_product_attention`
    (attention of transformers with `attn_implementation="sdpa"`, of diffusers, and of most code of one's own), for itself with
    these calls redirected and one temperature. Causal masks and masks of keys are recognised, also where they are written out for
    every query. Outputs are not scaled by sqrt(n / d): that belongs to `TaylorShiftAttention`.

    Args:
        model: it stays as it is.
        *args: an example of its inputs, for the run. May be left out where all attention is `nn.MultiheadAttention`.
        **kwargs: keyword arguments for the run.

    Returns:
        A copy, in the mode of the model.

    Raises:
        ValueError: where there is nothing to swap (modules that compute a softmax themselves are named); for a subclass of
            `nn.MultiheadAttention`; for a bias added to scores; in the copy's `forward` for dropout of weights.

    Warns:
        UserWarning: names modules beside swapped ones that compute a softmax over scores themselves, and are left as they are.

    Cost: a copy of the model, and two forward passes.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        >>> shifted = tw.layers.convert(layer)
        >>> shifted.self_attn.temperature.tolist(), shifted(torch.randn(2, 50, 32)).shape
        ([1.0, 1.0, 1.0, 1.0], torch.Size([2, 50, 32]))

    Source: Nauen et al. 2024 (the attention); where it is put is ours.
    """
    found = copy.deepcopy(model)
    swapped: dict[int, nn.Module] = {}
    for name, module in found.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            if type(module).forward is not nn.MultiheadAttention.forward:
                raise ValueError(
                    f"{name or 'the model'}: {type(module).__name__} is a MultiheadAttention with a forward of its own"
                )
            swapped[id(module)] = ShiftedMultihead(module, name or "the model")
    softmaxes: list[str] = []
    if args or kwargs:
        calls, softmaxes = _callers(found, args, kwargs)
        for name, module in calls.items():
            swapped[id(module)] = ShiftedCalls(module, name or "the model")
    if not swapped:
        raise ValueError(_nothing(softmaxes, bool(args or kwargs)))
    if softmaxes:
        warnings.warn(f"left as they are, with a softmax of their own: {', '.join(softmaxes)}", stacklevel=2)
    for name, module in [*found.named_modules(remove_duplicate=False)][::-1]:  # children first: parents wrap them
        if id(module) in swapped and name:
            found.set_submodule(name, swapped[id(module)])
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # its nested tensors are read by torch's fused layer alone
    found = swapped.get(id(found), found)  # type: ignore[assignment]
    if args or kwargs:
        was = found.training
        with torch.no_grad():  # what cannot be done is said here, and not in the first step of training
            found.eval()(*args, **kwargs)
        found.train(was)
    return found


class _Watch(TorchFunctionMode):
    """Notes which module is running when attention, or a softmax over scores, is called."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()
        self.running, self.attends, self.softmaxes = running, dict[str, None](), dict[str, None]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every torch function while the mode is on."""
        if func is F.scaled_dot_product_attention:
            self.attends[self.running[-1]] = None
        elif func in SOFTMAX and args and isinstance(args[0], Tensor) and args[0].ndim > 2:
            self.softmaxes[self.running[-1]] = None
        return func(*args, **(kwargs or {}))


def _callers(model: nn.Module, args: Any, kwargs: Any) -> tuple[dict[str, nn.Module], list[str]]:
    """Modules that call `scaled_dot_product_attention` themselves, by name; names of those that compute a softmax themselves."""
    running, handles, was = [""], [], model.training
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        handles.append(module.register_forward_hook(lambda *_: running.pop() and None, always_call=True))
    watch = _Watch(running)
    try:
        with watch, torch.no_grad():
            model.eval()(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was)
    return {name: model.get_submodule(name) for name in watch.attends}, [name or "the model" for name in watch.softmaxes]


def _nothing(softmaxes: list[str], ran: bool) -> str:
    """Why a model cannot be converted."""
    if not ran:
        return (
            "there is no nn.MultiheadAttention in this model: give an example of its inputs, so that other attention can be found"
        )
    if softmaxes:
        return (
            f"attention is computed by a softmax in {', '.join(softmaxes)}, and not by scaled_dot_product_attention: "
            'choose that (attn_implementation="sdpa" in transformers), or write taylor_shift_attention there'
        )
    return "this model calls no scaled_dot_product_attention for these inputs: there is nothing to convert"
