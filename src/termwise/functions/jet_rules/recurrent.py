"""Recurrent layers, step by step: their gates are sigmoids and hyperbolic tangents of sums, and products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .products import linear
from .smooth import sigmoid_rows, tanh_rows
from .table import Jet, jet_rule, leveled, rows_of

State = tuple[Tensor, ...]
Step = Callable[[Any, Tensor, Tensor, State], State]


def _lstm(at: Any, x: Tensor, h: Tensor, state: State) -> State:
    """C' = f c + i g, h' = o tanh(c')."""
    i, f, g, o = at.series.added(x, h).chunk(4, -1)
    kept = at.series.product(sigmoid_rows(at, f), state[1])
    c = at.series.added(kept, at.series.product(sigmoid_rows(at, i), tanh_rows(at, g)))
    return at.series.product(sigmoid_rows(at, o), tanh_rows(at, c)), c


def _gru(at: Any, x: Tensor, h: Tensor, state: State) -> State:
    """H' = n + z (h - n), n = tanh(x_n + r h_n)."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
    r, z = sigmoid_rows(at, at.series.added(x_r, h_r)), sigmoid_rows(at, at.series.added(x_z, h_z))
    n = tanh_rows(at, at.series.added(x_n, at.series.product(r, h_n)))
    return (at.series.added(n, at.series.product(z, at.series.added(state[0], n, -1))),)


def _tanh(at: Any, x: Tensor, h: Tensor, state: State) -> State:
    """H' = tanh(x + h)."""
    return (tanh_rows(at, at.series.added(x, h)),)


STEPS: dict[str, Step] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _tanh}


@jet_rule("lstm", "gru", "rnn_tanh")
def recurrent(
    at: Any, x: Any, start: Any, weights: list[Any], biased: bool, layers: int, dropout: float, training: bool, both: bool,
    batch_first: bool,
) -> tuple[Jet, ...]:  # fmt: skip
    """Every layer and direction, over its steps; a projection after each step where there are weights for one."""
    name = at.op.__name__.partition(".")[0]
    starts = [rows_of(at, s) for s in (start if isinstance(start, (list, tuple)) else [start])]
    directions = 1 + both
    each = len(weights) // (layers * directions)
    value, last = rows_of(at, x).transpose(1, 2) if batch_first else rows_of(at, x), []
    for layer in range(layers):
        outs = []
        for direction in range(directions):
            k = layer * directions + direction
            w = weights[k * each : (k + 1) * each]
            b_in, b_hidden = (w[2], w[3]) if biased else (None, None)
            projection = w[-1] if each % 2 else None
            state = tuple(s[:, k] for s in starts)
            read = linear(at, Jet(value), w[0], b_in).rows
            steps, found = range(read.shape[1]), {}
            for t in reversed(steps) if direction else steps:
                state = STEPS[name](at, read[:, t], linear(at, Jet(state[0]), w[1], b_hidden).rows, state)
                if projection is not None:
                    state = (linear(at, Jet(state[0]), projection).rows, *state[1:])
                found[t] = state[0]
            outs.append(torch.stack(leveled(found[t] for t in steps), 1))
            last.append(state)
        value = torch.cat(leveled(outs), -1)
    out = value.transpose(1, 2) if batch_first else value
    return Jet(out), *(Jet(torch.stack(leveled(rows), 1)) for rows in zip(*last, strict=True))


@jet_rule("lstm_cell", "gru_cell", "rnn_tanh_cell")
def cell(at: Any, x: Any, start: Any, w_in: Any, w_hidden: Any, b_in: Any = None, b_hidden: Any = None) -> Any:
    """One step of a layer."""
    name = at.op.__name__.partition(".")[0].removesuffix("_cell")
    state = tuple(rows_of(at, s) for s in (start if isinstance(start, (list, tuple)) else [start]))
    read, kept = linear(at, x, w_in, b_in).rows, linear(at, Jet(state[0]), w_hidden, b_hidden).rows
    state = STEPS[name](at, read, kept, state)
    return tuple(map(Jet, state)) if name == "lstm" else Jet(state[0])
