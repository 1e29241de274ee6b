r"""Highway backpropagation through time: the state's own gate is the residual path.

    h_t = f(x_t, h_(t-1)),      J_f = diag(a_t) + J_g,      d_t = dL/dh_t + a_(t+1) d_(t+1) + J_g^T d_(t+1)

For a GRU a is its update gate, held: h_t = z h_(t-1) + (1 - z) n. Order k is all paths that leave the gated way in
k of the T steps. The gated sums of all steps are one associative scan; one round through the cell is one call with the steps
as rows.

Source: papers.toml "highway" (Fagnou et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import integer

from .highway import HighwayGradients, _number, _row, retained
from .scan import reverse_scan

__all__ = ["HighwayRecurrent", "highway_recurrent"]

Gate = Callable[[Tensor, Tensor], Tensor]


def highway_recurrent(
    cell: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch: tuple[Tensor, Any],
    iterations: int,
    *,
    state: Tensor | None = None,
    gate: Gate | None = None,
) -> HighwayGradients:
    """Take the gradient of a recurrent network apart by how often it left the gated way.

        grad = paths_0 + paths_1 + ... + paths_K + remainder

    Args:
        cell: (x, h) -> h of the next step; x (rows, inputs), h (rows, width); each row by itself.
        loss_fn: of all states h_1 ... h_T, (T, samples, width), and the targets; a number. Losses at any steps are fine.
            Where it is a module (with the layers that read the states), its parameters get their gradient, which is exact.
        batch: (inputs (T, samples, inputs), targets).
        iterations: K; T make the gradient exact.
        state: h_0, (samples, width); zeros when not given, for cells with a `hidden_size`.
        gate: (x, h) -> a, (rows, width), which the state is multiplied by on its way through the cell. Of an `nn.GRUCell` it is
            known. One that returns zeros makes backpropagation truncated to K steps, and its weights.

    Returns:
        `HighwayGradients` with layers = T; names are those of the cell, then `loss.` and those of the loss.

    Raises:
        TypeError: for a cell that is no module.
        ValueError: for another cell without a gate, inputs of another rank or none, iterations < 0, a loss that is no number.

    Cost: T steps forward, one after the other; K + 1 rounds of one call over T rows, O(T log T) for the scans; T steps backward
        for the whole.

    Example:
        >>> cell, x = torch.nn.GRUCell(2, 3).double(), torch.randn(6, 4, 2, dtype=torch.float64)
        >>> found = highway_recurrent(cell, torch.nn.functional.mse_loss, (x, torch.ones(6, 4, 3).double()), iterations=6)
        >>> found.error() < 1e-12
        True

    Source: Fagnou et al. 2025.
    """
    inputs, targets = batch
    first = _checked(cell, iterations, inputs, state, gate).detach()
    modules = {"": cell, **({"loss.": loss_fn} if isinstance(loss_fn, nn.Module) else {})}
    named = {p + n: w for p, m in modules.items() for n, w in m.named_parameters() if w.requires_grad}
    weights = list(named.values())
    with torch.enable_grad():
        states = [first]
        for x in inputs:
            states.append(cell(x, states[-1]))
        whole = _row(torch.autograd.grad(_number(loss_fn(torch.stack(states[1:]), targets)), weights, allow_unused=True), weights)
        before, after, kept = _steps(cell, gate, inputs, first)
        held = after.detach().requires_grad_()
        loss = _number(loss_fn(held, targets))
    sources, *ahead = torch.autograd.grad(loss, [held, *weights], allow_unused=True)
    parts = {}
    for k in range(iterations + 1):
        if k > len(inputs):  # no path is longer
            parts[f"paths_{k}"] = torch.zeros_like(whole)
            continue
        d = reverse_scan(kept[1:], sources)
        *here, back = torch.autograd.grad(after, [*weights, before], d, retain_graph=True, allow_unused=True)
        parts[f"paths_{k}"] = _row(here, weights) + (_row(ahead, weights) if k == 0 else 0)
        sources = _beside(back, kept, d)
    shapes = tuple(tuple(w.shape) for w in weights)
    return HighwayGradients(whole, parts, tuple(named), shapes, len(inputs), min(iterations, len(inputs)) + 1)


class HighwayRecurrent(nn.Module):
    """A recurrent layer whose backward pass through time is Highway backpropagation.

        states = HighwayRecurrent(cell, iterations=3)(x);     loss_fn(states, y).backward();     optimizer.step()

    fills `.grad` of the cell's parameters (and of inputs and a first state that require it) with the sum over all paths that
    leave the gated way at most K times.

    Args:
        cell: as `highway_recurrent` takes it; a submodule, kept by reference.
        iterations: K; T make the gradient exact.
        gate: as there.

    Raises:
        TypeError: for a cell that is no module.
        ValueError: for a cell without a gate, iterations < 0; else as `highway_recurrent`, at the call.

    Cost: T steps forward, one after the other, and one call over T rows; K + 1 backward passes of that call.

    Example:
        >>> cell, x = torch.nn.GRUCell(2, 3).double(), torch.randn(6, 4, 2, dtype=torch.float64)
        >>> states = HighwayRecurrent(cell, iterations=6)(x)
        >>> h, slow = torch.zeros(4, 3, dtype=torch.float64), []
        >>> for row in x:
        ...     h = cell(row, h)
        ...     slow.append(h)
        >>> exact = torch.autograd.grad(torch.stack(slow).square().sum(), list(cell.parameters()))
        >>> states.square().sum().backward()
        >>> all(torch.allclose(p.grad, g) for p, g in zip(cell.parameters(), exact))
        True

    Source: Fagnou et al. 2025.
    """

    def __init__(self, cell: nn.Module, iterations: int, *, gate: Gate | None = None) -> None:
        """Nothing runs before the first call."""
        _checked_cell(cell, iterations, gate)
        super().__init__()
        self.cell, self.iterations, self._gate, self.training = cell, int(iterations), gate, cell.training

    def extra_repr(self) -> str:
        """K."""
        return f"iterations={self.iterations}"

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> Tensor:
        """All states h_1 ... h_T, (T, samples, width), of inputs (T, samples, inputs)."""
        first = _checked(self.cell, self.iterations, inputs, state, self._gate)
        weights = [w for w in self.cell.parameters() if w.requires_grad]
        found: Tensor = _Highway.apply(self.cell, self._gate, min(self.iterations, len(inputs)), inputs, first, *weights)
        return found


class _Highway(torch.autograd.Function):
    """Forward step by step, backward along paths."""

    @staticmethod
    def forward(
        ctx: Any, cell: nn.Module, gate: Gate | None, iterations: int, inputs: Tensor, first: Tensor, *weights: Tensor
    ) -> Tensor:
        """Of inputs, first state and weights."""
        own = inputs.detach().requires_grad_(ctx.needs_input_grad[3])
        ctx.before, ctx.after, ctx.kept = _steps(cell, gate, own, first.detach())
        ctx.iterations, ctx.leaves = iterations, [*([own] if own.requires_grad else []), ctx.before, *weights]
        return ctx.after.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        """K rounds to the states, one to the weights."""
        d = reverse_scan(ctx.kept[1:], seed)
        for _ in range(ctx.iterations):
            (back,) = torch.autograd.grad(ctx.after, ctx.before, d, retain_graph=True)
            d = reverse_scan(ctx.kept[1:], seed + _beside(back, ctx.kept, d))
        found = list(torch.autograd.grad(ctx.after, ctx.leaves, d, allow_unused=True, retain_graph=retained()))
        inputs = found.pop(0) if ctx.needs_input_grad[3] else None
        first = found[0][0] if ctx.needs_input_grad[4] else None
        return (None, None, None, inputs, first, *found[1:])


def _checked(cell: Any, iterations: Any, inputs: Tensor, state: Tensor | None, gate: Gate | None) -> Tensor:
    """The first state."""
    _checked_cell(cell, iterations, gate)
    if inputs.ndim != 3 or not len(inputs):
        raise ValueError(f"inputs are (T, samples, inputs) with T > 0, got {tuple(inputs.shape)}")
    if not bool(inputs.isfinite().all()):
        raise ValueError("an input is not finite")
    size = getattr(cell, "hidden_size", None)
    if state is None and size is None:
        raise ValueError(f"{type(cell).__name__} has no hidden_size to make h_0 of: give state=")
    return inputs.new_zeros(inputs.shape[1], size) if state is None else state


def _checked_cell(cell: Any, iterations: Any, gate: Gate | None) -> None:
    if not isinstance(cell, nn.Module):
        raise TypeError(f"cell must be a torch.nn.Module, whose parameters get gradients; got {type(cell).__name__}")
    if integer(iterations) is None or iterations < 0:
        raise ValueError(f"iterations is a number of 0 or more, got {iterations!r}")
    if isinstance(cell, (nn.RNNBase, nn.LSTMCell)):
        what = "has two states" if isinstance(cell, nn.LSTMCell) else "is a whole layer"
        raise ValueError(f"a {type(cell).__name__} {what}; give a cell, (x, h) -> h of the next step, as an nn.GRUCell is")
    if gate is None and not isinstance(cell, nn.GRUCell):
        raise ValueError(f"the gate of a {type(cell).__name__} is not known: give gate=, (x, h) -> what multiplies the state")


def _steps(cell: nn.Module, gate: Gate | None, inputs: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h_0 ... h_(T-1); the states behind them, from one call over all steps; and the gates. (T, samples, width) each."""
    with torch.no_grad():
        states = [first]
        for x in inputs[:-1]:
            states.append(cell(x, states[-1]))
    before = torch.stack(states).requires_grad_()
    with torch.enable_grad():
        rows, h = inputs.flatten(0, 1), before.flatten(0, 1)
        after = cell(rows, h).unflatten(0, before.shape[:2])
    with torch.no_grad():
        kept = (_gru_gate(cell, rows, h) if gate is None else gate(rows, h)).unflatten(0, before.shape[:2])
    if kept.shape != before.shape:
        raise ValueError(f"gate makes {tuple(kept.shape)} of states {tuple(before.shape)}: it must have an entry for each unit")
    return before, after, kept


def _beside(back: Tensor, kept: Tensor, d: Tensor) -> Tensor:
    """J_g^T d for h_1 ... h_T of J_f^T d for h_0 ... h_(T-1): without the gated way. Entries t belong to f_(t+1)."""
    return torch.cat([back[1:] - kept[1:] * d[1:], torch.zeros_like(d[:1])])


def _gru_gate(cell: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    """The gate z of a GRU, whose weights are stacked as r, z, n."""
    own: Any = cell
    made = nn.functional.linear(x, own.weight_ih, own.bias_ih) + nn.functional.linear(h, own.weight_hh, own.bias_hh)
    _, z, _ = torch.sigmoid(made).chunk(3, -1)
    return z
