r"""Highway backpropagation: the gradient of a residual network as a sum over paths through k of its blocks, k = 0, 1, 2, ...

    d_l = (J_(r_l) + J_(g_l))^T d_(l+1)   =>   d_0 = sum_(k=0..L) d^(k),   d^(k): all products with J_g in k places, J_r elsewhere

for layers f_l = r_l + g_l with a residual path r (the identity, a gate) and a block g. One iteration sends the gradient back
through every block at once and adds up along the residual path; after K of them what is there is the sum of all paths through at
most K blocks, after L the gradient. Backpropagation takes L steps one after the other.

Cost: K + 1 backward passes in place of one, each of depth one layer and a sum: it gains where layers run side by side, and where
many small layers make one batched call. Memory: that of a backward pass and a copy of the layers' weights.

Source: papers.toml "highway" (Fagnou et al. 2025). Deviations: blocks are found in the recorded operations; a skip that is
projected or normalised is one more sequential step; the exact gradient is measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import integer
from termwise.core.capture import arguments, capture
from termwise.core.decomposition import Decomposition
from termwise.core.interpret import interpret
from termwise.core.pictures import Line, Lines, Picture
from termwise.core.program import Program
from termwise.core.series import series

from .path_gradients import PathGradients
from .residual_stack import Stack, call, stack_of

__all__ = ["HighwayBackward", "HighwayGradients", "highway_gradients"]


@dataclass(frozen=True, repr=False, eq=False)
class HighwayGradients(Decomposition):
    """A gradient by the number of blocks that it came through: parts `paths_0` ... `paths_K`, (1, P), of all parameters in a row.

    Attributes:
        names: of the parameters.
        shapes: of the parameters.
        layers: L, the depth of the stack: sequential steps of backpropagation.
        rounds: sequential backward passes over a layer that were run: K iterations and one for the weights, and in each of them
            one more for every layer whose way around the branch is no diagonal.
    """

    names: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    layers: int = 0
    rounds: int = 0

    def __post_init__(self) -> None:
        """A file has lists where these are tuples."""
        super().__post_init__()
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "shapes", tuple(tuple(s) for s in self.shapes))

    def gradient(self, order: int | None = None) -> dict[str, Tensor]:
        """The sum over paths through at most `order` blocks (all parts when not given), by name of the parameter."""
        return _split(self._sum(order)[0], self.names, self.shapes)

    def exact(self) -> dict[str, Tensor]:
        """The gradient itself, by name of the parameter."""
        return _split(self.whole[0], self.names, self.shapes)

    def cosines(self) -> list[float]:
        """Of the angle between the gradient and its sum up to each order: 1 where the direction is right."""
        return [torch.cosine_similarity(self.whole, self._sum(k)).item() for k in range(len(self.parts))]

    def norms(self) -> list[float]:
        """|sum up to each order| / |gradient|."""
        return [(self._sum(k).norm() / self.whole.norm()).item() for k in range(len(self.parts))]

    def errors(self) -> list[float]:
        """|gradient - sum up to each order| / |gradient|."""
        return [((self.whole - self._sum(k)).norm() / self.whole.norm()).item() for k in range(len(self.parts))]

    def summary(self) -> str:
        """One line: how near the sum is, and how many steps that took."""
        k = len(self.parts) - 1
        return (
            f"paths through up to {k} of {self.layers} layers: cosine {self.cosines()[-1]:.4f}, norm {self.norms()[-1]:.3g}, "
            f"adds up to {self.error():.1e}; {self.rounds} sequential rounds"
        )

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What paths through so many blocks carry and leave over; and direction and length of their sum beside the gradient."""
        note = f"{self.layers} layers; as many iterations make the gradient. What is left are paths through more blocks."
        terms = series(self, sample, title="Paths by number of blocks", x="blocks on the path", note=note)
        at = list(range(len(self.parts)))
        lines = [Line("cosine to the gradient", at, self.cosines()), Line("length over the gradient's", at, self.norms())]
        return [terms, Lines("The sum of paths up to so many blocks", lines, x="blocks", y="1 is the gradient itself")]

    def _sum(self, order: int | None) -> Tensor:
        last = len(self.parts) - 1 if order is None else order
        if not 0 <= last < len(self.parts):
            raise ValueError(f"order lies in 0..{len(self.parts) - 1}, got {order}")
        return torch.stack([self.parts[f"paths_{k}"] for k in range(last + 1)]).sum(0)


def highway_gradients(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch: tuple[Any, Any],
    iterations: int,
    *,
    select: Callable[[Any], Tensor] | None = None,
) -> HighwayGradients:
    """Take the gradient of a loss apart by how many residual blocks it came through.

        grad = paths_0 + paths_1 + ... + paths_K + remainder

    Args:
        model: a residual network in eval mode; it is left as it is.
        loss_fn: of the model's output and the targets; a number.
        batch: (inputs, targets). The inputs are a tensor, a tuple of positional arguments or a mapping of keyword arguments.
        iterations: K.
        select: picks the tensor that the loss is of out of what the model returns, where it has no logits.

    Returns:
        `HighwayGradients`: whole = the gradient by autograd. That of weights behind the stack is exact and belongs to paths_0; a
        block's weights see the paths behind the block; weights before the stack see all of them. The remainder are paths through
        more than K.

    Raises:
        TypeError: for what is no module.
        ValueError: for a network without residual branches or with more than one stack, a post-norm one, a module in training
            mode (dropout), iterations < 0, a loss that is no number, inputs that are not finite.

    Cost: one backward pass for the whole, K + 1 of the layers for the parts.

    Example:
        >>> class Tower(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.blocks = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(4))
        ...
        ...     def forward(self, x):
        ...         for block in self.blocks:
        ...             x = x + torch.tanh(block(x))
        ...         return x
        >>> x, y = torch.randn(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
        >>> found = highway_gradients(Tower().double().eval(), torch.nn.functional.mse_loss, (x, y), iterations=4)
        >>> found.error() < 1e-12, found.layers, found.rounds  # as many iterations as blocks: the gradient
        (True, 4, 5)

    Source: Fagnou et al. 2025.
    """
    iterations = _checked(model, iterations)
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function (outputs, targets) -> loss, got {loss_fn!r}")
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError("batch is a pair (inputs, targets), as a DataLoader gives it")
    inputs, targets = batch
    program, stack, tensors = _recorded(model, inputs if isinstance(inputs, (tuple, list)) else (inputs,), {}, select)
    names, leaves, values = _leaves(program, tensors)
    exact_loss = _number(loss_fn(interpret(program.graph, values, call), targets))
    whole = _row(torch.autograd.grad(exact_loss, leaves, allow_unused=True), leaves)
    run = PathGradients(stack, values)
    sources, ahead = run.head(torch.ones_like(exact_loss), leaves, _number(loss_fn(run.output, targets)))
    parts, depth = {}, len(stack.layers)
    for k in range(iterations + 1):
        if k > depth:  # no path is longer
            parts[f"paths_{k}"] = torch.zeros_like(whole)
            continue
        here, sources = run.last(run.carry(sources), leaves, more=True)
        parts[f"paths_{k}"] = _row(here, leaves) + (_row(ahead, leaves) if k == 0 else 0)
    rounds = (min(iterations, depth) + 1) * (1 + run.carried)
    return HighwayGradients(whole, parts, tuple(names), tuple(tuple(v.shape) for v in leaves), depth, rounds)


class HighwayBackward(nn.Module):
    """A model whose backward pass is Highway backpropagation: call it in the model's place, and go on as ever.

        loss = loss_fn(HighwayBackward(model, iterations=3)(x), y);     loss.backward();     optimizer.step()

    fills `.grad` of the model's own parameters (and of inputs that require it) with the sum over paths through at most K blocks.

    Args:
        model: a residual network in eval mode (no dropout, running statistics); a submodule, kept by reference.
        iterations: K; from the number of layers on the gradient is exact, at 0 nothing is sent back through a block but
            to its own weights.
        select: picks the tensor out of what the model returns, where it has no logits.

    Raises:
        TypeError: for what is no module.
        ValueError: as `highway_gradients`, at the call.

    Cost: a forward pass twice, K backward passes to the stream of all layers at once and one to their weights; memory that of a
        backward pass and a copy of the layers' weights.

    Example:
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        ...
        ...     def forward(self, x):
        ...         return x + self.down(torch.relu(self.up(x)))
        >>> model, x = torch.nn.Sequential(Block(), Block(), Block()).double().eval(), torch.randn(5, 4, dtype=torch.float64)
        >>> exact = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        >>> HighwayBackward(model, iterations=3)(x).square().sum().backward()
        >>> all(torch.allclose(p.grad, g) for p, g in zip(model.parameters(), exact))
        True

    Source: Fagnou et al. 2025, algorithm 1.
    """

    def __init__(self, model: nn.Module, iterations: int, *, select: Callable[[Any], Tensor] | None = None) -> None:
        """Nothing is recorded before the first call."""
        iterations = _checked(model, iterations)
        super().__init__()
        self.iterations, self.model, self._select, self.training = iterations, model, select, model.training

    def extra_repr(self) -> str:
        """K."""
        return f"iterations={self.iterations}"

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """The model's output (its logits, where there are some)."""
        program, stack, tensors = _recorded(self.model, inputs, kwargs, self._select)
        named, places = _trained(program)
        given = [[name] for name, p in program.placeholders.items() if p.kind == "input"]
        found: Tensor = _Highway.apply(program, stack, self.iterations, given + places, *tensors, *named.values())
        return found

    def depth(self, *inputs: Any, **kwargs: Any) -> tuple[int, int]:
        """Sequential backward passes over a layer: (with these iterations, by backpropagation)."""
        _, stack, _ = _recorded(self.model, inputs, kwargs, self._select)
        n, carried = len(stack.layers), sum(layer.carry == "general" for layer in stack.layers)
        k = min(self.iterations, n)
        return k + 1 + (k + 1) * carried, n


class _Highway(torch.autograd.Function):
    """Forward as recorded, backward along paths."""

    @staticmethod
    def forward(ctx: Any, program: Program, stack: Stack, iterations: int, places: list[list[str]], *given: Tensor) -> Tensor:
        """`given` are values of placeholders, `places` the names of the placeholders that hold each."""
        values = program.bind(
            [t for t, (name, *_) in zip(given, places, strict=True) if program.placeholders[name].kind == "input"]
        )
        if not any(ctx.needs_input_grad):
            found: Tensor = interpret(program.graph, values, call)
            return found
        ctx.leaves, ctx.wanted = [], ctx.needs_input_grad[4:]
        for tensor, names, wanted in zip(given, places, ctx.wanted, strict=True):
            if wanted:
                ctx.leaves.append(tensor.detach().requires_grad_())
                values |= dict.fromkeys(names, ctx.leaves[-1])
        ctx.run, ctx.iterations = PathGradients(stack, values), min(iterations, len(stack.layers))
        return ctx.run.output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        """K rounds to the stream, one to the leaves."""
        sources, ahead = ctx.run.head(seed, ctx.leaves)
        d = ctx.run.carry(sources)
        for _ in range(ctx.iterations):
            blocks = ctx.run.through(d)
            d = ctx.run.carry([e + b for e, b in zip(sources, blocks, strict=True)])
        behind, _ = ctx.run.last(d, ctx.leaves, keep=retained())
        found = iter([a if b is None else b if a is None else a + b for a, b in zip(ahead, behind, strict=True)])
        return (None, None, None, None, *(next(found) if wanted else None for wanted in ctx.wanted))


def retained() -> bool:
    """Whether the caller of the backward pass that is running asked for `retain_graph`."""
    asked: bool = torch._C._autograd._get_current_graph_task_keep_graph()
    return asked


# -- helpers ----------------------------------------------------------------------------------------------------------


def _checked(model: Any, iterations: Any) -> int:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose parameters get gradients; got {type(model).__name__}")
    found = integer(iterations)
    if found is None or found < 0:
        raise ValueError(f"iterations is a number of 0 or more, got {iterations!r}")
    return found


def _recorded(
    model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], select: Callable[[Any], Tensor] | None
) -> tuple[Program, Stack, list[Tensor]]:
    model, positional, keywords = arguments(model, inputs, kwargs)  # type: ignore[assignment]
    program = capture(model, *positional, kwargs=keywords, select=select)
    tensors = program.tensors(*positional, kwargs=keywords)
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError("an input is not finite")
    return program, stack_of(program), tensors


def _trained(program: Program) -> tuple[dict[str, Tensor], list[list[str]]]:
    """The parameters that the output depends on and that are trained, tied ones once; and the placeholders that hold each."""
    if "held" not in program.derived:
        used = {n.name for n in program.graph.find_nodes(op="placeholder") if n.users}
        program.derived["held"] = {name: places for name, places in program.parameters.items() if used & {*places}}
    held = program.derived["held"]
    named = {n: p for n, p in program.model.named_parameters() if p.requires_grad and n in held}
    if not named:
        raise ValueError(
            f"{type(program.model).__name__} has no parameter that requires a gradient and that its output depends on"
        )
    return named, [held[name] for name in named]


def _leaves(program: Program, tensors: list[Tensor]) -> tuple[list[str], list[Tensor], dict[str, Tensor]]:
    """Names of the trained parameters, a leaf for each, and the values of all placeholders with them."""
    named, places = _trained(program)
    leaves, values = [p.detach().requires_grad_() for p in named.values()], program.bind([t.detach() for t in tensors])
    for leaf, names in zip(leaves, places, strict=True):
        values |= dict.fromkeys(names, leaf)
    return list(named), leaves, values


def _number(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must make one number of the model's output and the targets, got {what}: take its mean or sum")
    return loss


def _row(found: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> Tensor:
    """(1, P): gradients one behind the other, zeros where there is none."""
    return torch.cat([torch.zeros_like(v).flatten() if g is None else g.flatten() for g, v in zip(found, leaves, strict=True)])[
        None
    ]


def _split(row: Tensor, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    sizes = [torch.Size(s).numel() for s in shapes]
    return {n: v.reshape(tuple(s)) for n, v, s in zip(names, row.split(sizes), shapes, strict=True)}
