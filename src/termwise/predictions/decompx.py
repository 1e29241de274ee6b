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
from jaxtyping import Float
from torch import Tensor, fx, nn

from termwise.core.capture import arguments, capture
from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Matrix, Picture
from termwise.core.program import Program, info, op_name

from .enlarge import enlarged
from .explanation import Explanation
from .groups import Groups, Mask, fitted
from .labels import class_names, token_names
from .memory import as_bytes
from .refusals import finite_inputs, one_sample_each
from .starts import Entry, Seen, Start, last_position
from .targets import Asked, Target, asked
from .token_parts import BIAS, CONSTANT, FIRST, Parts
from .token_run import Plan, Run, Sources, plan
from .token_sharing import ACTIVATIONS, BIASES

__all__ = ["TokenDecomposition", "decompx"]

CLASSES, TOKENS = 24, 48
"""Columns and rows of the picture of all classes, at most."""


def decompx(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Target | list[Target] = None,
    max_memory: int | str | None = None,
    biases: str = "absdot",
    activation: str = "zero-origin",
    feature_mask: Mask | None = None,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> TokenDecomposition:
    """Decompose a prediction by source token: logit = sum over tokens (+ biases, where these are kept apart).

    Args:
        model: a module in eval mode, or a function of tensors.
        *inputs: its positional arguments, batch first. A single mapping (a tokenizer's output) is passed as keywords.
        kwargs: its keyword arguments.
        target: None: every class (of a sequence of outputs, at the last position that `attention_mask` allows). Otherwise
            as for `termwise.explain`: a class index, one per sample, a tuple, `contrast(...)` and its kin, a function of
            the output, or a list of these.
        max_memory: bytes, or ``"2GB"``, that the tensors of this call may take beside the model and its inputs; tokens are
            then taken in chunks. With biases "parts", "cls" or "dot" chunks are independent, and cost no more. Under
            the other rules a share depends on all tokens: the sum of weights is found bias by bias, and what comes
            before it is run again for each.
        biases: who gets a bias b: "absdot" |<x_k, b>|, "abssim" |cos(x_k, b)|, "norm" |x_k|, "equal" all parts that
            are not 0, "dot" <x_k, b> (signed, unstable), "cls" the first token; "parts": nobody, biases stay apart.
        activation: how an activation function f acts on parts, u being the whole: "zero-origin" slope f(u)/u;
            "tangent" slope f'(u); "relu" 1 where u > 0. What the slope leaves is an offset, and treated as a bias.
        feature_mask: what counts as one source, an integer 0..n-1 for every entry, as `termwise.explain` takes it (by
            name where there are several inputs); fewer sources cost less. By default a token id; a row of (batch,
            tokens, features); a number of (batch, features); the patch of an image that the first convolution reads as one.
        names: the tokens, for pictures: one list per sample, or one list for one sample.
        classes: names of the classes.

    Returns:
        A `TokenDecomposition`; `whole` has shape (batch, classes); with a target (batch,), with a list (batch, targets).

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
    finite_inputs(args, keywords)
    wanted = asked(target)
    if wanted.starts[0].alone:
        raise ValueError(
            "node(...) takes the call as one sample, and a sample's sources lie behind its batch: give each node a call"
        )
    program = capture(model, *args, kwargs=keywords, select=wanted.select)
    tensors = [t.detach() for t in program.tensors(*args, kwargs=keywords)]  # rows are written in place
    batch = tensors[0].shape[0] if tensors and tensors[0].ndim else 1
    one_sample_each(program, batch)
    by_name = dict(zip((p.name for p in program.placeholders.values() if p.kind == "input"), tensors, strict=True))
    sources, names = _sources(program, by_name, batch, feature_mask, names)
    run = Run(program, _planned(program, program.output), tensors, sources, biases, activation)
    found = run(None if max_memory is None else as_bytes(max_memory))
    scored, index = _scored(found, wanted, Seen.of(by_name, batch, slice(0, batch), batch), every=target is None)
    if not scored.value.isfinite().all() or not scored.rows.isfinite().all():
        raise ValueError(
            "the parts are not finite: the output or a weight is infinite or NaN, or some slope f(u)/u overflows. Try "
            "float64, or activation='tangent'"
        )
    texts = [start.template for start in wanted.starts]
    result = TokenDecomposition(
        whole=scored.value,
        parts=_named(scored, run),
        target=index,
        rules="decompx",
        names=token_names(names, batch),
        classes=class_names(classes, index, scored.value.shape[1] if target is None else 0),
        asked=texts if any(text != "{}" for text in texts) else None,
        picture=next((list(t.shape[2:]) for t in tensors if t.ndim == 4 and t.is_floating_point()), None),
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
        whole, index = Entry(target).of(self.whole, Seen(len(self)))
        assert index is not None
        rows = torch.arange(len(self), device=whole.device)
        parts = {name: part[rows, index] for name, part in self.parts.items()}
        result = replace(self, whole=whole, parts=parts, target=index, asked=None)
        if run := vars(self).get("_run"):
            object.__setattr__(result, "_run", run)
        return result

    def ranking(self, name: str | None = None) -> Tensor:
        """Relevance of every token, of patches of an image spread over its pixels; see `Explanation.ranking`."""
        relevance = super().ranking(name)
        patches = relevance.ndim == 3 and self.picture is not None
        return enlarged(relevance, self.picture) if patches else relevance

    def heatmap(self, name: str | None = None, sample: int = 0) -> Float[Tensor, "height width"]:
        """Relevance of the patches of one image, spread over its pixels as `Explanation.heatmap` spreads it.

        Args:
            name: the image input; the first when not given.
            sample: which sample; of every class the largest is shown.

        Raises:
            ValueError: when no input was read in patches, or several targets are explained.
        """
        if self.target is not None or self.asked is not None:
            self._one_target("heatmap")
        grids = {n: p for n, p in self.of_class().inputs.items() if p.ndim == 3}
        if self.picture is None or not grids or (name is not None and name not in grids):
            shapes = {n: tuple(p.shape) for n, p in self.inputs.items()}
            raise ValueError(f"no input {name or ''} was read in patches of an image: parts are {shapes}")
        return enlarged(grids[name or next(iter(grids))][sample], self.picture)

    def show(self) -> None:
        """Print the tokens in colours, and the parts, for each sample's largest class."""
        super(TokenDecomposition, self.of_class()).show()

    def pictures(self, sample: int = 0) -> list[Picture]:
        """As `Explanation.pictures`; of all classes of each sample's largest, and all of them in a table of colours."""
        if self.whole.ndim == 1 or self.target is not None or self.asked is not None:
            return super().pictures(sample)
        found = super(TokenDecomposition, self.of_class()).pictures(sample)
        return found + [self._every(name, part, sample) for name, part in self.inputs.items() if part.ndim == 3]

    def _every(self, name: str, part: Tensor, sample: int) -> Matrix:
        """What every token gives to every class, of the largest of many."""
        n = self.whole.shape[1]
        classes = self.whole[sample].topk(min(n, CLASSES)).indices.sort().values
        given = part[sample, classes].double()
        tokens = given.abs().sum(0).topk(min(given.shape[1], TOKENS)).indices.sort().values
        known = self.names[sample] if self.names and len(self.names[sample]) == given.shape[1] else [""] * given.shape[1]
        left = [f"the {CLASSES} largest of {n} classes"] * (n > CLASSES)
        left += [f"the {TOKENS} strongest of {given.shape[1]} tokens"] * (given.shape[1] > TOKENS)
        return Matrix(
            "What each token gives to each class",
            given[:, tokens].T.tolist(),
            [f"{i} {known[i]}".strip() for i in tokens.tolist()],
            [f"class {c}" for c in classes.tolist()],
            value="contribution",
            y=f"tokens of {name}",
            note=f"Shown are {' and '.join(left)}." if left else "",
        )


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


def _scored(found: Parts, wanted: Asked, seen: Seen, *, every: bool) -> tuple[Parts, Tensor | None]:
    """What was asked of the output, and of its rows: a start is linear, and its weights are made by the whole."""
    output = found.value
    if every and output.ndim in (2, 3) and output.shape[0] == seen.batch:
        if output.ndim == 2:
            return found, None
        rows = torch.arange(seen.batch, device=output.device)
        last = last_position(output, seen)
        return Parts(output[rows, last], found.rows[:, rows, last]), None
    values, lines, index = zip(*(_weighed(found, start, seen) for start in wanted.starts), strict=True)
    if not wanted.several:
        return Parts(values[0], lines[0]), index[0]
    indices = None if any(i is None for i in index) else torch.stack(index, 1)
    return Parts(torch.stack(values, 1), torch.stack(lines, 2)), indices


def _weighed(found: Parts, start: Start, seen: Seen) -> tuple[Tensor, Tensor, Tensor | None]:
    """One scalar per sample, the rows of it, and the index of its class."""
    with torch.inference_mode(False), torch.enable_grad():
        output = found.value.clone().detach().requires_grad_()  # made in that mode, it would be none that autograd takes
        value, index = start.of(output, seen)
        (weights,) = torch.autograd.grad(value.sum(), output)
    return value.detach(), (found.rows * weights).flatten(2).sum(-1) if output.ndim > 1 else found.rows * weights, index


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


def _sources(program: Program, given: Mapping[str, Tensor], batch: int, mask: Mask | None, names: Any) -> tuple[Sources, Any]:
    """The sources of every input that is explained, numbered through; and the names of tokens, if words were put together."""
    looked_up = {info(n).origin for n in program.nodes if info(n).role == "cut"}
    floating = {info(n).origin: n for n in program.graph.find_nodes(op="placeholder") if info(n).active}
    inputs = [name for name in given if name in looked_up or name in floating]
    if not inputs:
        raise ValueError(
            f"{type(program.model).__name__} has no input to explain: none is floating, and no integer input is looked up in an "
            "embedding"
        )
    if mask is not None and not isinstance(mask, Mapping):
        if len(inputs) > 1:
            raise ValueError(
                f"there are {len(inputs)} inputs: give feature_mask as a mapping from their names, {', '.join(inputs)}"
            )
        mask = {inputs[0]: mask}
    masks = {} if mask is None else dict(mask)
    if unknown := set(masks) - set(inputs):
        raise ValueError(f"feature_mask names {', '.join(sorted(unknown))}: the explained inputs are {', '.join(inputs)}")
    shapes, labels, first = [], [], 0
    for name in inputs:
        value = given[name]
        if value.ndim == 0 or value.shape[0] != batch:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} for {batch} samples: every explained input needs its batch first"
            )
        if name in masks:
            chosen = masks[name]
            label = fitted(chosen.mask if isinstance(chosen, Groups) else chosen, value, 1, name).reshape(value.shape)
            shape: tuple[int, ...] = (int(label.max()) + 1,)
            names = chosen.names * (batch // len(chosen.names)) if isinstance(chosen, Groups) else None
        else:
            shape, label = _own(value, floating.get(name), name)
        shapes.append(shape)
        labels.append(label + first)
        first += int(torch.Size(shape).numel())
    return Sources(inputs, shapes, labels), names


def _own(value: Tensor, node: fx.Node | None, name: str) -> tuple[tuple[int, ...], Tensor]:
    """Token ids and plain numbers one by one, sequences by position, images by the model's own patches."""
    sample = value.shape[1:]
    if node is None or len(sample) <= 1:
        return tuple(sample), torch.arange(sample.numel()).reshape(1, *sample)
    if len(sample) == 2:
        return (sample[0],), torch.arange(sample[0])[None, :, None].expand(1, *sample)
    patch = _patch(node)
    if len(sample) != 3 or patch is None:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, and no convolution reads it in separate patches: say which entries are one "
            "source, feature_mask=termwise.predictions.patches(height, width, size) or any integers 0..n-1"
        )
    rows, columns = (torch.arange(n) // p for n, p in zip(sample[1:], patch, strict=True))
    grid = (int(rows[-1]) + 1, int(columns[-1]) + 1)
    return grid, (rows[:, None] * grid[1] + columns).expand(1, *sample)


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
