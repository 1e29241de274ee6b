"""DecompX: every hidden state, and every logit, as an exact sum over source tokens.

    x_i = sum_k x_(i<-k),      and through a layer, never mixed,
    x_(i<-k)  ->  sum_h sum_j A^h_ij x_(j<-k) W_V^h W_O^h + x_(i<-k)       attention weights A are constants
              ->  gamma (x_(i<-k) - mean x_(i<-k)) / sigma(x_i)            sigma is that of the whole state
              ->  theta(u) * (x_(i<-k) W_1),   theta(u) = f(u) / u         each part has the slope of the whole

and every bias is shared among the parts. What comes out of the last layer are the classes' logits, one signed number per
token and class, for all classes at once.

Against relevance propagation: with biases apart it is CP-LRP run forwards, token by token the same numbers. One class needs
one backward pass there; here all classes, and the vectors inside (`TokenDecomposition.at`), come together, at the price
of one forward pass per token.

Cost: (tokens + 2) forwards' worth of linear algebra. Memory: O(tokens * positions * width); with `max_memory` O(chunk *
positions * width), see there.
Source: papers.toml "decompx" (Modarressi et al. 2023), sections 3.1-3.4. Where its code adds 1e-12 to a denominator, nothing
is added here; models other than post-norm encoders follow from the operations they are made of.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, fx, nn

from termwise.core.capture import arguments, capture
from termwise.core.decomposition import Decomposition
from termwise.core.program import Program, info, op_name

from .explain import Target, _finite_inputs, _names, _one_sample_each, _Scored, _Target
from .explanation import Explanation
from .token_parts import BIAS, CONSTANT, FIRST, Parts
from .token_run import Plan, Run, Sources, plan
from .token_sharing import ACTIVATIONS, BIASES

__all__ = ["TokenDecomposition", "decompx"]


def decompx(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Target = None,
    max_memory: int | None = None,
    biases: str = "absdot",
    activation: str = "zero-origin",
    feature_mask: Int[Tensor, " *sample"] | Mapping[str, Tensor] | None = None,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> TokenDecomposition:
    """Decompose a prediction by source token: logit = sum over tokens (+ biases, where these are kept apart).

    Args:
        model: a module in eval mode, or a function of tensors.
        *inputs: its positional arguments, batch first. A single mapping (a tokenizer's output) is passed as keywords.
        kwargs: its keyword arguments.
        target: None: every class (of a sequence of outputs, at the last position that `attention_mask` allows).
            Otherwise one scalar per sample, as for `termwise.explain`: a class index, one per sample, a tuple, or a
            function from the output to shape (batch,).
        max_memory: bytes that may be used beside the model's weights; tokens are then taken in chunks. With biases "parts",
            "cls" or "dot" chunks are independent, and cost no more. Under the other rules a share depends on all
            tokens; the sum of weights is found bias by bias, and the first part of the pass is repeated for each.
        biases: who gets a bias b: "absdot" |<x_k, b>|, "abssim" |cos(x_k, b)|, "norm" |x_k|, "equal" all parts that
            are not 0, "dot" <x_k, b> (signed, unstable), "cls" the first token; "parts": nobody, biases stay apart.
        activation: how an activation function f acts on parts, u being the whole: "zero-origin" slope f(u)/u;
            "tangent" slope f'(u); "relu" 1 where u > 0. What the slope leaves is an offset, and treated as a bias.
        feature_mask: integer labels 0..n-1 of what counts as one source, in the shape of one sample of an input (one mapping
            per input name where there are several). By default a token id; a row of (batch, tokens, features); a
            number of (batch, features); the patch of an image that the model's first convolution reads as one.
        names: the tokens, for pictures: one list per sample, or one list for one sample.
        classes: names of the classes.

    Returns:
        A `TokenDecomposition`; `whole` has shape (batch, classes), or (batch,) with a target.

    Raises:
        ValueError: for an operation that cannot be decomposed by token (named, with its module path), an unknown rule,
            a memory limit too small for one token, an input whose sources are not known, and as `termwise.explain`.
        CaptureError: when the model cannot be recorded.

    Cost: (tokens + 2) forwards' worth of linear algebra; with `max_memory` under "absdot", "abssim", "norm" or "equal" up
    to half the number of biases times that.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3)).eval()
        >>> why = tw.decompx(model, torch.randn(2, 4)).check()
        >>> tuple(why.whole.shape), tuple(why.inputs["input"].shape)     # every class, every feature
        ((2, 3), (2, 3, 4))
    """
    _known("biases", biases, BIASES)
    _known("activation", activation, ACTIVATIONS)
    model, args, keywords = arguments(model, inputs, kwargs)
    _finite_inputs(args, keywords)
    pick = target if callable(target) else None
    program = capture(model, *args, kwargs=keywords, select=_Scored(pick) if pick else None)
    tensors = program.tensors(*args, kwargs=keywords)
    batch = tensors[0].shape[0] if tensors and tensors[0].ndim else 1
    _one_sample_each(program, batch)
    run = Run(
        program, _planned(program, program.output), tensors, _sources(program, tensors, batch, feature_mask), biases, activation
    )
    found = run(max_memory)
    chosen = _Target(None if pick else target, batch, keywords.get("attention_mask"), per_sample=pick is not None)
    scored = found if pick else _every_class(found, chosen) if target is None else _scored(found, chosen)
    if not scored.value.isfinite().all() or not scored.rows.isfinite().all():
        raise ValueError(
            "the parts are not finite: the output or a weight is infinite or NaN, or some slope f(u)/u overflows. Try "
            "float64, or activation='tangent'"
        )
    result = TokenDecomposition(
        whole=scored.value,
        parts=_named(scored, run),
        target=chosen.index,
        rules="decompx",
        names=_names(names, batch),
        classes=None if classes is None else list(classes),
        biases=biases,
        activation=activation,
    )
    # no field: a model can be neither sliced nor saved
    object.__setattr__(result, "_run", replace(run, totals={}))
    return result


@dataclass(frozen=True, eq=False, repr=False)
class TokenDecomposition(Explanation):
    """Logits written as sums over source tokens. `whole` has shape (batch, classes), or (batch,) for one target.

    Parts: ``"input:<argument>"`` with the whole's axes first, then its tokens (for images rows and columns of patches);
    ``"bias:all modules"`` where biases are kept apart; ``"constant:all modules"``: what no token has a claim to (class and
    mask tokens, learned queries, biases at positions that no token has reached). For every module on its own use
    ``termwise.explain(..., rules="cp-lrp")``.

    Attributes:
        biases: the rule by which biases were shared.
        activation: how activation functions acted on parts.
    """

    biases: str = "absdot"
    activation: str = "zero-origin"

    def at(self, path: str) -> Decomposition:
        """The output of a module inside the model as a sum over source tokens.

        Args:
            path: of the module, as ``"bert.encoder.layer.3"``; the last value it computes is taken.

        Returns:
            A Decomposition: `whole` (batch, positions, width), part of an input (batch, positions, width, tokens).

        Raises:
            ValueError: for an unknown path, one that no part reaches, or a decomposition that was sliced or loaded.

        Cost: that of `decompx` up to that module.
        """
        run: Run | None = vars(self).get("_run")
        if run is None:
            raise ValueError("a decomposition that was sliced or loaded holds no model: ask the one that decompx returned")
        run = replace(run, plan=_planned(run.program, _last_of(run.program, path)), totals={}, sizes={})
        found = run(None)
        return Decomposition(found.value, _named(found, run))

    def of_class(self, target: int | Tensor | None = None) -> TokenDecomposition:
        """One class per sample, with `whole` of shape (batch,): for pictures, and to compare with `termwise.explain`.

        Args:
            target: its index, or one per sample; None: the largest.

        Raises:
            ValueError: for a class out of range.
        """
        if self.whole.ndim == 1:
            if target is not None:
                raise ValueError("this decomposition is of one class per sample already: leave target out")
            return self
        chosen = _Target(target, len(self), None, per_sample=False)
        whole = chosen(self.whole)
        rows = torch.arange(len(self), device=whole.device)
        parts = {name: part[rows, chosen.index] for name, part in self.parts.items()}
        result = replace(self, whole=whole, parts=parts, target=chosen.index)
        if run := vars(self).get("_run"):
            object.__setattr__(result, "_run", run)
        return result

    def label(self, sample: int = 0) -> str:
        """What is decomposed: the name or index of the class, or "every class"."""
        return super().label(sample) if self.whole.ndim == 1 else "every class"

    def summary(self) -> str:
        """One honest line for the first sample."""
        return super().summary() if self.whole.ndim == 1 else Decomposition.summary(self)

    def show(self) -> None:
        """Print the tokens in colours, and the parts, for each sample's largest class."""
        super(TokenDecomposition, self.of_class()).show()

    def _repr_html_(self) -> str:
        return super(TokenDecomposition, self.of_class())._repr_html_()


def _known(argument: str, value: str, table: Mapping[str, Any]) -> None:
    if value not in table:
        close = difflib.get_close_matches(str(value), table, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(table)}"
        raise ValueError(f"unknown {argument} {value!r}: {hint}")


def _planned(program: Program, end: fx.Node) -> Plan:
    key = ("token parts", end.name)
    if key not in program.derived:
        program.derived[key] = plan(program, end)
    found: Plan = program.derived[key]
    return found


def _last_of(program: Program, path: str) -> fx.Node:
    """The last floating value that a module computes."""
    paths = {info(n).path for n in program.nodes}
    mine = [n for n in program.nodes if info(n).path == path or info(n).path.startswith(path + ".")]
    inside = [n for n in mine if info(n).active and isinstance(n.meta.get("val"), Tensor)]
    if not path or not inside:
        close = difflib.get_close_matches(
            path, {p[:i] for p in paths for i in range(len(p) + 1) if p[i : i + 1] in ("", ".")}, n=1
        )
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no module {path!r} of {type(program.model).__name__} computes anything of the input{hint}")
    return inside[-1]


def _every_class(found: Parts, chosen: _Target) -> Parts:
    """Every entry of the output's last axis; of a sequence, at its last position."""
    output = found.value
    if output.ndim < 2 or output.ndim > 3 or output.shape[0] != chosen.batch:
        return _scored(found, chosen)
    if output.ndim == 2:
        return found
    rows = torch.arange(chosen.batch, device=output.device)
    last = chosen._last(output)
    return Parts(output[rows, last], found.rows[:, rows, last])


def _scored(found: Parts, chosen: _Target) -> Parts:
    """One scalar per sample; the choice is made by the whole, and is then an index like any other."""
    value = chosen(found.value)
    if found.value.ndim == 1 or isinstance(chosen.target, tuple):
        return Parts(value, torch.stack([chosen(row) for row in found.rows]))
    fixed = _Target(chosen.index, chosen.batch, chosen.mask, per_sample=False)
    return Parts(value, torch.stack([fixed(row) for row in found.rows]))


def _named(found: Parts, run: Run) -> dict[str, Tensor]:
    """Rows as parts by name, sources last."""
    parts, at = {}, FIRST
    for name, shape in zip(run.sources.names, run.sources.shapes, strict=True):
        n = int(torch.Size(shape).numel())
        parts[f"input:{name}"] = found.rows[at : at + n].movedim(0, -1).unflatten(-1, shape).contiguous()
        at += n
    if BIASES[run.biases] is None:
        parts["bias:all modules"] = found.rows[BIAS].contiguous()
    parts["constant:all modules"] = found.rows[CONSTANT].contiguous()
    return parts


# -- what counts as one source ----------------------------------------------------------------------------------------


def _sources(program: Program, tensors: list[Tensor], batch: int, mask: Any) -> Sources:
    """The sources of every input that is explained, numbered through."""
    explained = dict.fromkeys(info(n).origin for n in program.nodes if info(n).role == "cut")
    placeholders = {info(n).origin: n for n in program.graph.find_nodes(op="placeholder") if info(n).active}
    given = dict(zip(program._names, tensors, strict=True))
    names = [name for name in given if name in explained or name in placeholders]
    if not names:
        raise ValueError(
            f"{type(program.model).__name__} has no input to explain: none is floating, and no integer input is looked up in an "
            "embedding"
        )
    if mask is not None and not isinstance(mask, Mapping):
        if len(names) > 1:
            raise ValueError(
                f"there are {len(names)} inputs: give feature_mask as a mapping from their names, {', '.join(names)}"
            )
        mask = {names[0]: mask}
    if unknown := set(mask or {}) - set(names):
        raise ValueError(f"feature_mask names {', '.join(sorted(unknown))}: the explained inputs are {', '.join(names)}")
    shapes, labels, first = [], [], 0
    for name in names:
        value = given[name]
        if value.ndim == 0 or value.shape[0] != batch:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} for {batch} samples: every explained input needs its batch first"
            )
        node = placeholders.get(name)
        shape, label = _labelled(mask[name], value, name) if mask and name in mask else _own(value, node, name)
        shapes.append(shape)
        labels.append(label + first)
        first += int(torch.Size(shape).numel())
    return Sources(names, shapes, labels)


def _labelled(mask: Tensor, value: Tensor, name: str) -> tuple[tuple[int, ...], Tensor]:
    sample = value.shape[1:]
    if (
        mask.is_floating_point()
        or mask.ndim > len(sample)
        or any(m not in (1, n) for m, n in zip(mask.shape[::-1], sample[::-1], strict=False))
    ):
        raise ValueError(
            f"feature_mask has shape {tuple(mask.shape)} and dtype {mask.dtype}: it must hold integers and broadcast to one "
            f"sample of {name}, {tuple(sample)}"
        )
    n = int(mask.max()) + 1
    if mask.min() < 0 or len(mask.unique()) != n:
        raise ValueError(f"feature_mask must label sources 0 to n - 1 without gaps, got {mask.unique().tolist()[:8]} ...")
    return (n,), mask.expand(sample)


def _own(value: Tensor, node: fx.Node | None, name: str) -> tuple[tuple[int, ...], Tensor]:
    """Token ids and plain numbers one by one, sequences by position, images by the model's own patches."""
    sample = value.shape[1:]
    if node is None or len(sample) <= 1:
        return tuple(sample), torch.arange(sample.numel()).reshape(sample)
    if len(sample) == 2:
        return (sample[0],), torch.arange(sample[0])[:, None].expand(sample)
    patch = _patch(node)
    if len(sample) != 3 or patch is None:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, and no convolution reads it in separate patches: say which entries are one "
            "source, feature_mask=<integers 0..n-1 in the shape of one sample>"
        )
    rows, columns = (torch.arange(n) // p for n, p in zip(sample[1:], patch, strict=True))
    grid = (int(rows[-1]) + 1, int(columns[-1]) + 1)
    return grid, (rows[:, None] * grid[1] + columns).expand(sample)


def _patch(node: fx.Node) -> tuple[int, int] | None:
    """Kernel of the first convolution behind an input, when its patches do not overlap."""
    stack = list(node.users)
    while stack:
        user = stack.pop(0)
        if op_name(user) in ("conv2d", "convolution"):
            weight: Any = user.args[1].meta["val"]  # type: ignore[union-attr]
            kernel, stride = [int(k) for k in weight.shape[2:]], user.args[3] if len(user.args) > 3 else [1, 1]
            return (kernel[0], kernel[1]) if kernel == list(stride) else None  # type: ignore[call-overload]
        if op_name(user) in ("_to_copy", "to", "sub", "div", "mul", "add"):
            stack += list(user.users)
    return None
