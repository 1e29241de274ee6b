r"""A model of long convolutions as a recurrence: its causal mixers become state space models, and tokens come one at a time.

    model(x)[i] = recurrent.step(x_i),      memory per token that of the states

Everything else in the model must look at one token at a time, which is measured on an example before anything is returned.

Source: Qin & Zhong 2023, Accelerating Toeplitz Neural Network with Constant-time Inference Complexity.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .diagonal_ssm import DiagonalSSM, State
from .tnn import ToeplitzMixer
from .toeplitz_ssm import toeplitz_to_ssm

__all__ = ["Recurrent", "convolution_taps", "to_recurrent"]

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""What the exact form may differ by, relative to the largest output."""


class _Mixer(nn.Module):
    """A state space model in the place of a mixer; its state stays between calls."""

    def __init__(self, ssm: DiagonalSSM, bias: Tensor | None, channels_first: bool) -> None:
        super().__init__()
        self.ssm, self.bias, self.channels_first, self.state = ssm, bias, channels_first, None
        self.state: State | None

    def forward(self, x: Tensor) -> Tensor:
        x = x.mT if self.channels_first else x
        if x.shape[-2] == 1:
            y, self.state = self.ssm.step(x[..., 0, :], self.state)
            y = y.unsqueeze(-2)
        else:
            y, self.state = self.ssm.scan(x, self.state)
        y = y if self.bias is None else y + self.bias
        return y.mT if self.channels_first else y


class Recurrent(nn.Module):
    """A model whose mixers are recurrences; see `to_recurrent`.

    Attributes:
        model: the converted copy.
        mixers: module path -> its `DiagonalSSM`.
        error: largest difference from the model given, over the largest of its outputs, measured on the example.
    """

    def __init__(self, model: nn.Module, time: int) -> None:
        super().__init__()
        self.model, self.time, self.error = model, time, 0.0

    @property
    def mixers(self) -> dict[str, DiagonalSSM]:
        """Module path -> its state space model."""
        return {name: module.ssm for name, module in self.model.named_modules() if isinstance(module, _Mixer)}

    def forward(self, x: Tensor) -> Tensor:
        """Tokens that follow those before, along the axis of time; outputs at each of them."""
        out: Tensor = self.model(x)
        return out

    def step(self, x: Tensor) -> Tensor:
        """One token that follows those before: x and the output are without the axis of time."""
        return self.forward(x.unsqueeze(self.time)).select(self.time, 0)

    def reset(self) -> None:
        """Forget all tokens."""
        for module in self.model.modules():
            if isinstance(module, _Mixer):
                module.state = None

    def state_bytes(self) -> int:
        """Memory of the states now."""
        states = [m.state for m in self.model.modules() if isinstance(m, _Mixer) and m.state is not None]
        held = [t for s in states for t in (s.modes, s.past) if t is not None]
        return sum(t.numel() * t.element_size() for t in held)


def convolution_taps(conv: nn.Conv1d) -> Tensor:
    """Taps of a causal depth-wise convolution, the present first, (n, d).

    Args:
        conv: groups as many as channels, stride and dilation 1, padding n - 1, whose last n - 1 outputs the model drops.

    Raises:
        ValueError: for one that mixes channels, or looks ahead.
    """
    n, d = conv.kernel_size[0], conv.in_channels
    if not conv.groups == d == conv.out_channels:
        raise ValueError(f"{conv} mixes channels: only depth-wise convolutions are Toeplitz per channel")
    if conv.stride[0] != 1 or conv.dilation[0] != 1 or conv.padding_mode != "zeros" or conv.padding not in ((n - 1,), n - 1):
        raise ValueError(
            f"{conv} is not known to be causal, and what looks ahead has no recurrence: of {n} taps it needs padding={n - 1} "
            "(the model drops the last outputs), stride 1 and dilation 1"
        )
    return conv.weight.detach()[:, 0].T.flip(0)


@torch.no_grad()
def to_recurrent(
    model: nn.Module,
    example: Tensor,
    order: int | None = None,
    *,
    error: float | None = None,
    beyond: float | Literal["exact"] = 0.0,
    time: int = 1,
) -> Recurrent:
    """Convert the Toeplitz mixers and causal depth-wise convolutions of a model, in a copy that takes token after token.

    Args:
        model: in eval mode, with layers of `ToeplitzMixer` or depth-wise `nn.Conv1d` (padding n - 1) over all of time.
        example: one input of it with 2 tokens or more: on it the exact recurrence is compared with the model.
        order: of every mixer, as `toeplitz_to_ssm` takes it (at most half of its taps); exact when not given.
        error: instead of `order`, the l1 norm that every mixer may miss.
        beyond: what may happen after n tokens, as `toeplitz_to_ssm` takes it.
        time: axis of tokens in the input and the output.

    Returns:
        A `Recurrent`, at its beginning. Memory per token is that of the states.

    Raises:
        ValueError: for a model in training mode or without such mixers, a mixer that is not causal (named), or a model that looks
            at other tokens elsewhere too: the exact recurrence is not what it computes.

    Example:
        >>> model = tw.computation.TNN(20, width=8, length=16).double().eval()
        >>> tokens = torch.arange(12)[None]
        >>> recurrent = tw.computation.to_recurrent(model, tokens)
        >>> logits = torch.stack([recurrent.step(token) for token in tokens.unbind(1)], 1)
        >>> bool((logits - model(tokens)).abs().max() < 1e-10)
        True
    """
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode: call .eval() first")
    if not -example.ndim <= time < example.ndim or example.shape[time] < 2:
        raise ValueError(f"the example needs 2 tokens or more along axis {time}, got shape {tuple(example.shape)}")
    expected = model(example)
    exact = _converted(model, time, beyond="exact")
    off = _difference(exact, example, expected)
    allowed = ROUNDING.get(expected.dtype, 1e-4)
    if not off <= allowed:
        raise ValueError(
            f"token by token {type(model).__name__} differs by {off:.2g} from itself on the example, allowed is {allowed:g}: "
            f"something besides {', '.join(exact.mixers)} looks at other tokens "
            "(attention, a norm over time, positions, another convolution)"
        )
    found = _converted(model, time, order=order, error=error, beyond=beyond)
    found.error = _difference(found, example, expected)
    return found


def _converted(model: nn.Module, time: int, **options: Any) -> Recurrent:
    """A copy with the mixers replaced."""
    found = Recurrent(copy.deepcopy(model), time)
    for name, module in list(found.named_modules()):
        long = isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1
        if not isinstance(module, ToeplitzMixer) and not long:
            continue
        try:
            if isinstance(module, ToeplitzMixer):
                mixer = _Mixer(toeplitz_to_ssm(module.taps(), decay=module.decay, **options), None, channels_first=False)
            else:
                mixer = _Mixer(toeplitz_to_ssm(convolution_taps(module), **options), module.bias, channels_first=True)
        except ValueError as problem:
            raise ValueError(f"{name.removeprefix('model.')}: {problem}") from None
        if name == "model":
            found.model = mixer
        else:
            parent, _, own = name.rpartition(".")
            setattr(found.get_submodule(parent), own, mixer)
    if not found.mixers:
        raise ValueError(
            f"{type(model).__name__} has no ToeplitzMixer and no depth-wise Conv1d: convert its kernels with toeplitz_to_ssm"
        )
    return found.eval()


def _difference(recurrent: Recurrent, example: Tensor, expected: Tensor) -> float:
    """Half of the tokens at once and the others one by one, against the model; over the largest output."""
    half, axis = example.shape[recurrent.time] // 2, recurrent.time
    length = min(example.shape[axis], expected.shape[axis])
    try:
        first = recurrent(example.narrow(axis, 0, half))
        rest = [recurrent.step(x) for x in example.narrow(axis, half, length - half).unbind(axis)]
        found = torch.cat([first, torch.stack(rest, axis)], axis)
    finally:
        recurrent.reset()
    expected = expected.narrow(axis, 0, length)
    return ((found - expected).abs().max() / expected.abs().max()).item() if found.shape == expected.shape else float("inf")
