"""LSTM, GRU and plain recurrent layers: gates are held constant, the signal takes all (Arras et al. 2017).

    c_t = f_t c_(t-1) + i_t g_t,   h_t = P o_t tanh(c_t)        i, f, o held;  g = tanh(W x + U h + b) by the identity rule

P is the projection of an LSTM that has one (`proj_size`). The layer is one operator in a Program; here it is unrolled in
time, and only the signal path is under autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from termwise.core.samples import SampleAxis

from .elementwise import _Ratio
from .linear import as_leaf
from .table import active, rule


def unless_held(unrolled: Callable[..., Any]) -> Callable[..., Any]:
    """The operation itself where neither what it reads nor its states are activations."""

    @functools.wraps(unrolled)
    def either(at: Any, x: Tensor, states: Any, *rest: Any) -> Any:
        return unrolled(at, x, states, *rest) if active(x, states) else at.op(x, states, *rest)

    return either


@rule("lstm")
@unless_held
def lstm(
    at: Any, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], has_bias: bool, layers: int, dropout: float,
    training: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gates i, f, o held; relevance goes through the candidate g and the cell."""
    states = [as_leaf(at, s, i + 1, SampleAxis(1)) for i, s in enumerate(states)]
    out, last = _layers(
        at, x, list(zip(*states, strict=True)), weights, has_bias, layers, bidirectional, batch_first, _lstm, 4, 2
    )
    return out, torch.stack([h for h, _ in last]), torch.stack([c for _, c in last])


def _lstm(
    own: Tensor, gates: Tensor, state: tuple[Tensor, Tensor], recurrent: Tensor, projection: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    h, c = state
    n = c.shape[-1]
    i, f, _, o = (gates + linear(h.detach(), recurrent)).chunk(4, -1)
    g = _tanh(own + linear(h, recurrent[2 * n : 3 * n]))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * g
    h = torch.sigmoid(o) * _tanh(c)
    h = h if projection is None else linear(h, projection)
    return h, (h, c)


@rule("gru")
@unless_held
def gru(
    at: Any, x: Tensor, states: Tensor, weights: Sequence[Tensor], has_bias: bool, layers: int, dropout: float, training: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gates r, z held; h = (1 - z) n + z h."""
    out, last = _layers(
        at, x, list(as_leaf(at, states, 1, SampleAxis(1))), weights, has_bias, layers, bidirectional, batch_first, _GRU(), 3, 2
    )
    return out, torch.stack(last)


class _GRU:
    """The recurrent bias of the candidate stands inside the reset gate, so the cell needs it apart."""

    separate_bias = True

    def __call__(
        self, own: Tensor, gates: Tensor, h: Tensor, recurrent: Tensor, inner: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        n = h.shape[-1]
        through = linear(h.detach(), recurrent[: 2 * n])
        r, z = torch.sigmoid(gates[..., : 2 * n] + through).chunk(2, -1)
        candidate = linear(h, recurrent[2 * n :])
        candidate = candidate if inner is None else candidate + inner
        h = (1 - z) * _tanh(own + r * candidate) + z * h
        return h, h


@rule("rnn_tanh", "rnn_relu")
@unless_held
def rnn(
    at: Any, x: Tensor, states: Tensor, weights: Sequence[Tensor], has_bias: bool, layers: int, dropout: float, training: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """H = tanh(W x + U h + b) by the identity rule, or relu."""
    out, last = _layers(
        at,
        x,
        list(as_leaf(at, states, 1, SampleAxis(1))),
        weights,
        has_bias,
        layers,
        bidirectional,
        batch_first,
        _plain(at),
        1,
        0,
    )
    return out, torch.stack(last)


def _plain(at: Any) -> Any:
    squash = _tanh if at.op.__name__.startswith("rnn_tanh") else torch.relu

    def cell(own: Tensor, gates: Tensor, h: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor]:
        h = squash(own + linear(h, recurrent))
        return h, h

    return cell


@rule("lstm_cell")
@unless_held
def lstm_cell(at: Any, x: Tensor, states: Sequence[Tensor], *parameters: Tensor | None) -> tuple[Tensor, Tensor]:
    """One step of `lstm`."""
    states = tuple(as_leaf(at, s, i + 1, SampleAxis(0)) for i, s in enumerate(states))
    return _step(at, x, states, parameters, _lstm, 4, 2)[1]  # type: ignore[no-any-return]


@rule("gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
@unless_held
def cell(at: Any, x: Tensor, state: Tensor, *parameters: Tensor | None) -> Tensor:
    """One step of `gru` or of `rnn`."""
    how = (_GRU(), 3, 2) if at.op.__name__.startswith("gru") else (_plain(at), 1, 0)
    return _step(at, x, as_leaf(at, state, 1, SampleAxis(0)), parameters, *how)[1]  # type: ignore[no-any-return]


def _step(at: Any, x: Tensor, state: Any, parameters: Sequence[Tensor | None], cell: Any, gates: int, signal: int) -> Any:
    w, u, *biases = parameters
    x = as_leaf(at, x, 0, SampleAxis(0))
    present = [b for b in biases if b is not None]
    return _run(at, x.unsqueeze(1), state, (w, u, present, []), cell, gates, signal, at.site.path)  # type: ignore[arg-type]


def _layers(
    at: Any, x: Tensor, states: list[Any], weights: Sequence[Tensor], has_bias: bool, layers: int, bidirectional: bool,
    batch_first: bool, cell: Any, gates: int, signal: int,
) -> tuple[Tensor, list[Any]]:  # fmt: skip
    """Every layer and direction in turn; `signal` is the place of the candidate among the stacked gates."""
    x = as_leaf(at, x, 0, SampleAxis(0 if batch_first else 1))
    x = x if batch_first else x.transpose(0, 1)
    each = _parameters(weights, has_bias, layers * (2 if bidirectional else 1))
    states_left, last = iter(states), []
    for layer in range(layers):
        outputs = []
        for direction in range(2 if bidirectional else 1):
            name = f"{at.site.path}.l{layer}" + ("_reverse" if direction else "")
            sequence = x.flip(1) if direction else x
            out, state = _run(at, sequence, next(states_left), next(each), cell, gates, signal, name)
            outputs.append(out.flip(1) if direction else out)
            last.append(state)
        x = torch.cat(outputs, -1)
    return (x if batch_first else x.transpose(0, 1)), last


def _run(
    at: Any, x: Tensor, state: Any, parameters: Parameters, cell: Any, gates: int, signal: int, name: str
) -> tuple[Tensor, Any]:
    w, u, biases, projection = parameters
    n = len(w) // gates
    mine = slice(signal * n, (signal + 1) * n)
    separate = getattr(cell, "separate_bias", False)
    with torch.no_grad():
        held = linear(x, w, sum(biases) if biases else None)  # every gate, of which the candidate's rows are not used
    own = linear(x, w[mine])
    inner = None
    axis = SampleAxis(0)
    if biases:
        outside = biases[0][mine] if separate else (biases[0] + biases[1])[mine]
        own = own + outside
        # the two biases of a layer act as one sum
        at.adds(own, outside, f"bias:{name}", axis=axis)
        if separate:
            inner = biases[1][mine].expand(x.shape[0], x.shape[1], n)
            inner = inner.detach().requires_grad_()
            at.adds(inner, biases[1][mine], f"bias:{name}_hidden", axis=axis)
    outputs = []
    for t in range(x.shape[1]):
        extra = projection if inner is None else (inner[:, t],)
        h, state = cell(own[:, t], held[:, t], state, u, *extra)
        outputs.append(h)
    return torch.stack(outputs, 1), state


Parameters = tuple[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]
"""Of a layer in one direction: W, U, its biases (none or two), its projection (none or one)."""


def _parameters(weights: Sequence[Tensor], has_bias: bool, runs: int) -> Iterator[Parameters]:
    size, biases = len(weights) // runs, 2 if has_bias else 0
    for i in range(0, len(weights), size):
        w, u, *rest = weights[i : i + size]
        yield w, u, rest[:biases], rest[biases:]


def _tanh(x: Tensor) -> Tensor:
    """Tanh by the identity rule, c_x = c tanh(x) / x."""
    with torch.no_grad():
        y = torch.tanh(x)
        ratio = (y / x).nan_to_num_(nan=1.0)
    out: Tensor = _Ratio.apply(x, y, ratio)
    return out
