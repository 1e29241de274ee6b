"""`explain`: take one prediction apart into inputs, biases, constants and what rules lost."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from termwise.core.capture import Call, arguments, capture
from termwise.core.program import Program, info
from termwise.core.samples import SampleAxis

from .cuts import channel_axis, only_outlet
from .explanation import Explanation
from .groups import Mask
from .memory import Meter, as_bytes, pieces, shown
from .propagate import Pass, Result, propagate
from .rules import Rules
from .targets import Asked, Seen, Start, Target, asked

__all__ = ["explain"]


def explain(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Target | list[Target] = None,
    rules: Rules = "default",
    biases: str = "parts",
    at: str | None = None,
    through: tuple[str, int | Tensor] | None = None,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
    feature_mask: Mask | None = None,
    max_memory: int | str | None = None,
) -> Explanation:
    """Say what in the input, and what in the model, made an output: whole = inputs + biases + constants + losses.

    One forward and one backward pass with the local derivatives of relevance propagation. Nothing of the model is
    changed, hooked or patched; any module that `termwise.capture` can record will do. An autocast around the call is
    ignored: explanations are computed in the dtype of the weights (an autocast inside the model is part of it).

    Args:
        model: a module in eval mode, or a function of tensors.
        *inputs: its positional arguments, batch first. A single mapping (a tokenizer's output) is passed as keywords.
        kwargs: its keyword arguments.
        target: what is explained, one scalar per sample. None: the largest entry of the output's last axis (of a
            sequence of outputs, at the last position that `attention_mask` allows). An int, or a tensor of shape
            (batch,): that class. A tuple: that entry of each sample's output, as ``(-1, 42)`` for token 42 at the last
            position or ``(17, 3)`` for class 3 of box 17; the name of an output may stand first, as ``("pred_boxes", 17, 0)``.
            `contrast`, `weighting`, `next_token`, `node`. A callable: from the model's output to a tensor of shape (batch,).
            A list of these: all of them, from one forward pass.
        rules: a rule set by name ("default", "zero", "attnlrp", "gamma", "EpsilonPlus", ...: `RULE_SETS` has them all), or a
            mapping from operator, module class, module-path glob or position to a rule; see `termwise.predictions.rules`.
        biases: who gets what biases own. "parts": each is a part. "absorb": nobody, and it is missing from the sum (what
            other implementations of LRP do). "distribute": the inputs of the same operation, in proportion to what each
            contributes in absolute value. "zero": the same inputs in the proportions of the rule, computed as if there was
            no bias; where these inputs contribute next to nothing to an output, shares become huge. For layers,
            convolutions and normalisations; with "distribute" the biases of recurrent layers stay parts.
        at: path of a module, as ``"encoder.layer.3"``: its output is explained instead of what made it. The part
            ``"at:<path>"`` has its shape; biases and constants behind it remain, inputs only where they bypass it. Of a module
            that is called several times ``"head#2"`` is the second call. Between a convolution and its batch norm,
            sign-splitting rules see one operation when nobody asks, two when you do: name the batch norm instead.
        through: (path of a module, unit): only what flows through that unit of the module's output. The unit is an int, its
            channel or feature, or a tensor that weighs the output entry by entry, of its shape or one that broadcasts to it.
            The whole is the unit's relevance, the parts say how inputs and earlier biases make it. With `at`, from there.
        names: the tokens, for pictures: one list per sample, or one list for one sample.
        classes: names of the classes.
        feature_mask: sums the entries of an input by group, see `Explanation.grouped`.
        max_memory: bytes, or ``"2GB"``: the most that the tensors of this call may take, its result included, the model and
            its inputs not. As many samples are done at a time as fit.

    Returns:
        An `Explanation`. `whole` has shape (batch,), or (batch, targets) for a list; token ids get one relevance per token.

    Raises:
        ValueError: for a model in training mode, a bad target, NaN or infinity in input or weights, no input that can
            be explained, samples that influence each other, an operator without a rule, an unknown module, a mask that
            fits no input, a limit on memory that does not hold one sample (the message says what would).
        CaptureError: when the model cannot be recorded.

    Cost: about one input-gradient pass, after the model was recorded once; of further targets a backward pass each.
    `through` takes a second forward pass. Memory: O(graph + result), where the graph of values kept for the backward pass
    grows with the batch and not with the number of targets, and the result is targets * (inputs + biases + constants).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> why = tw.explain(model, torch.randn(2, 4), target=1).check()
        >>> sorted(why.parts)
        ['bias:0', 'bias:2', 'input:input']
        >>> sorted(tw.explain(model, torch.randn(2, 4), target=1, at="0").check().parts)
        ['at:0', 'bias:2']
    """
    model, args, keywords = arguments(model, inputs, kwargs)
    _finite_inputs(args, keywords)
    call = _Call(model, args, keywords, asked(target), rules, at, _through(through), _policy(biases))
    found = _Found(call)
    try:
        if max_memory is None:
            found.take(slice(0, call.batch))
        else:
            _within(as_bytes(max_memory), call, found)
    except (RuntimeError, IndexError, TypeError) as problem:
        if not isinstance(problem, torch.OutOfMemoryError):
            Call(model, args, keywords, call.wanted.select).try_model()  # ids out of range, another dtype: the model says so too
        raise
    for name in found.unreached:
        warnings.warn(f"the output does not depend on {name!r}: its relevance is exactly 0", UserWarning, stacklevel=2)
    why = Explanation(
        whole=found.whole,
        parts=found.parts,
        target=found.target,
        rules=rules if isinstance(rules, str) else "custom",
        names=_names(names, call.batch),
        classes=_classes(classes, found.target),
        asked=call.questions(),
        picture=call.picture() if at is not None else None,
    )
    return why if feature_mask is None else why.grouped(feature_mask)


class _Call:
    """One call of `explain`, which can be done for some of its samples at a time."""

    def __init__(
        self,
        model: Any,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        wanted: Asked,
        rules: Rules,
        at: str | None,
        through: tuple[str, int | Tensor] | None,
        biases: str = "parts",
    ) -> None:
        self.model, self.args, self.keywords, self.wanted = model, args, keywords, wanted
        self.rules, self.biases, self.at, self.through = rules, biases, at, through
        self.tensors = [leaf for leaf in pytree.tree_leaves((args, keywords)) if isinstance(leaf, Tensor)]
        self.alone = wanted.starts[0].alone
        self.batch = 1 if self.alone or not self.tensors or not self.tensors[0].ndim else self.tensors[0].shape[0]

    def results(self, rows: slice) -> Iterator[Result]:
        """The result of every start in turn, for these samples."""
        program, tensors, wholes = self.prepare(rows)
        if self.through is None:
            yield from self.passes(program)[0].each(tensors, wholes, alone=self.alone)
            return
        path, unit = self.through
        name = only_outlet(program, path)
        after, before = self.passes(program)
        # what arrives at the module starts the second pass, held
        arrived = [r.ratios[f"at:{path}"] for r in after.each(tensors, wholes, complete=False, alone=self.alone)]
        batch = rows.stop - rows.start

        def flow(ratio: Tensor) -> Callable[[Tensor], Tensor]:
            def whole(output: Tensor) -> Tensor:
                mask = _unit(unit, output, channel_axis(program, name), path)
                return before.by_sample(output * (ratio * mask), name, batch, alone=self.alone).reshape(batch, -1).sum(1)

            return whole

        yield from before.each(tensors, list(map(flow, arrived)), alone=self.alone)

    def passes(self, program: Program) -> list[Pass]:
        """One pass, or two: down to the module that relevance flows through, and on from there."""
        if self.through is None:
            return [propagate(program, self.rules, biases=self.biases, at=self.at)]
        path = self.through[0]
        ends = ({"at": path}, {"at": self.at, "to": path})
        return [propagate(program, self.rules, biases=self.biases, **end) for end in ends]

    def prepare(self, rows: slice) -> tuple[Program, list[Tensor], list[Callable[[Tensor], Tensor]]]:
        """The recording, its inputs and the starts, for these samples."""
        args, keywords = self._take(rows)
        program = capture(self.model, *args, kwargs=keywords, select=self.wanted.select)
        tensors = program.tensors(*args, kwargs=keywords)
        if not any(info(n).active for n in program.graph.nodes if "info" in n.meta):
            raise ValueError(
                f"{type(self.model).__name__} has no input to explain: none is floating, and no integer input is looked up in "
                "an embedding. Explain a part of the model whose input is continuous"
            )
        batch = rows.stop - rows.start
        if not info(program.output).active:
            raise ValueError(
                f"the output of {type(self.model).__name__} depends on no input that can be explained: it is constant"
            )
        _one_sample_each(program, batch)
        by_name = dict(zip((p.name for p in program.placeholders.values() if p.kind == "input"), tensors, strict=True))
        seen = Seen.of(by_name, batch, rows, self.batch)
        self.index: list[Tensor | None] = [None] * len(self.wanted.starts)

        def scalar(t: int, start: Start) -> Callable[[Tensor], Tensor]:
            def whole(output: Tensor) -> Tensor:
                value, self.index[t] = start.of(output, seen)
                return value

            return whole

        return program, tensors, [scalar(t, start) for t, start in enumerate(self.wanted.starts)]

    def _take(self, rows: slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with these samples only."""
        if self.alone or (rows.start, rows.stop) == (0, self.batch):
            return self.args, self.keywords

        def take(leaf: Any) -> Any:
            return leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == self.batch else leaf

        taken: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(take, (self.args, self.keywords))
        return taken

    def questions(self) -> list[str] | None:
        """What each start asks, in words; None where it is a class and no more."""
        path, unit = self.through or ("", 0)
        what = f" through {'a mask' if isinstance(unit, Tensor) else f'unit {unit}'} of {path}" if path else ""
        texts = [start.template + what for start in self.wanted.starts]
        return texts if any(text != "{}" for text in texts) else None

    def picture(self) -> list[int] | None:
        """Height and width of the image among the inputs."""
        images = [t for t in self.tensors if t.is_floating_point() and t.ndim == 4]
        return list(images[0].shape[2:]) if images else None


class _Found:
    """Results as they come in, of some samples and one target at a time, put in their place."""

    def __init__(self, call: _Call) -> None:
        self.call, self.targets = call, len(call.wanted.starts)
        self._whole: Tensor | None = None
        self._parts: dict[str, Tensor] = {}
        self._index: list[Tensor | None] = [None] * self.targets
        self._reached: dict[str, bool] = {}

    def take(self, rows: slice) -> None:
        """Explain these samples. No result is held while the next is made."""
        results = self.call.results(rows)
        for t in range(self.targets):
            self.add(rows, t, next(results))

    @torch.inference_mode(False)
    def add(self, rows: slice, t: int, result: Result) -> None:
        """Check one result and keep it."""
        batch, n = self.call.batch, rows.stop - rows.start
        _finite_result(result, self.call.model)
        _batched(result.parts, n)
        if self._whole is None:
            self._whole = result.whole.new_zeros(batch, self.targets)
        self._whole[rows, t] = result.whole
        for name, part in result.parts.items():
            self._reached[name] = self._reached.get(name, False) or name not in result.unreached
            if n == batch and self.targets == 1:  # all there is: no copy
                self._parts[name] = part.unsqueeze(1)
                continue
            if name not in self._parts:
                self._parts[name] = part.new_zeros(batch, self.targets, *part.shape[1:])
            self._parts[name][rows, t] = part
        if (index := self.call.index[t]) is not None:
            known = self._index[t]
            if known is None:
                known = self._index[t] = index.new_zeros(batch, *index.shape[1:])
            known[rows] = index

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(p.numel() * p.element_size() for p in self._parts.values())

    @property
    def unreached(self) -> list[str]:
        """Inputs that no target depends on."""
        return [name for name, reached in self._reached.items() if not reached]

    @property
    def whole(self) -> Tensor:
        """(batch,), or (batch, targets) for a list of them."""
        assert self._whole is not None
        return self._whole if self.call.wanted.several else self._whole[:, 0]

    @property
    def parts(self) -> dict[str, Tensor]:
        """Of the same first axes."""
        return self._parts if self.call.wanted.several else {name: part[:, 0] for name, part in self._parts.items()}

    @property
    def target(self) -> Tensor | None:
        """The entries that were explained, where each start picked one."""
        found = [i for i in self._index if i is not None]
        if len(found) < self.targets:
            return None
        if len({i.ndim for i in found}) > 1 or len({i.shape for i in found}) > 1:
            found = [i if i.ndim == 1 else i[:, -1] for i in found]  # entries of any kind: their classes
        return torch.stack(found, 1) if self.call.wanted.several else found[0]


def _within(limit: int, call: _Call, found: _Found) -> None:
    """Explain the first sample, measure what it takes, and do as many of the others at a time as the limit holds."""
    first = slice(0, 1)
    program, tensors, _ = call.prepare(first)
    many = f"{call.batch} samples and {found.targets} targets"

    def refuse(of_pass: int, of_result: int) -> None:
        needed = shown(of_pass + of_result)
        result = f" and {shown(of_result)} for the result of {many}" if of_result else f", without the result of {many}"
        fewer = "fewer targets or samples" if of_result > of_pass else "a shorter input, or from an inner module on (at=)"
        raise ValueError(
            f"max_memory={shown(limit)} is too small: one target of one sample needs {shown(of_pass)} for its pass{result}: "
            f"{needed} at least. Allow that, or explain {fewer}"
        )

    needed = max(p.graph_size(tensors, alone=call.alone) for p in call.passes(program))
    if needed > limit:
        refuse(needed, 0)
    meter, results = Meter(), call.results(first)
    for t in range(found.targets):
        with meter:
            result = next(results)
        found.add(first, t, result)
        del result
    del results
    if found.size + meter.peak > limit:
        refuse(meter.peak, found.size)
    for rows in pieces(1, call.batch, (limit - found.size) // meter.peak):
        found.take(rows)


def _policy(biases: str) -> str:
    known = ("parts", "absorb", "distribute", "zero")
    if biases not in known:
        near = difflib.get_close_matches(str(biases), known, n=1, cutoff=0.4)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"biases is one of {', '.join(map(repr, known))}, got {biases!r}{hint}")
    return biases


def _through(through: Any) -> tuple[str, int | Tensor] | None:
    """The path and the unit."""
    if through is None:
        return None
    if not isinstance(through, (tuple, list)) or len(through) != 2 or not isinstance(through[0], str):
        raise TypeError(f"through is (path of a module, unit), as ('features.10', 17); got {through!r}")
    path, unit = through
    if not isinstance(unit, Tensor) and not hasattr(unit, "__index__"):
        raise TypeError(f"a unit is the number of a channel or feature, or a tensor that weighs the output; got {unit!r}")
    return path, unit


def _unit(unit: int | Tensor, value: Tensor, axis: int, path: str) -> Tensor:
    """Weights of a module's output that leave one unit, broadcasting against it."""
    if isinstance(unit, Tensor):
        shape = (1,) * (value.ndim - unit.ndim) + tuple(unit.shape)
        if len(shape) != value.ndim or any(m not in (1, n) for m, n in zip(shape, value.shape, strict=True)):
            raise ValueError(f"the mask through {path!r} has shape {tuple(unit.shape)}, the module's output {tuple(value.shape)}")
        return unit.detach().to(value).reshape(shape)
    n = value.shape[axis]
    if not -n <= unit < n:
        raise ValueError(f"{path!r} has no unit {unit}: its output {tuple(value.shape)} has {n} along axis {axis}")
    mask = value.new_zeros(n)
    mask[unit] = 1
    return mask.reshape(-1, *[1] * (value.ndim - 1 - axis))


def _one_sample_each(program: Program, batch: int) -> None:
    """Refuse a batch whose samples influence each other (contrastive models, statistics over the batch)."""
    output = program.output.meta.get("val")
    if batch < 2 or not isinstance(output, Tensor) or output.ndim == 0:
        return
    axis = program.axes.get(program.output.name)
    if axis is not None and axis != SampleAxis(0) and axis.dim != 0:
        raise ValueError(f"the output has its samples along axis {axis.dim}: give the model its batch first (batch_first=True)")
    if axis is None:
        raise ValueError(
            f"in {type(program.model).__name__} the samples of a batch influence each other's output (or it was recorded "
            f"for fixed sizes, {program.how}): explain one sample at a time"
        )


def _batched(parts: dict[str, Tensor], batch: int) -> None:
    for name, part in parts.items():
        if batch == 1 and name.startswith("input:") and (part.ndim == 0 or part.shape[0] != 1):  # given without a batch axis
            parts[name] = part = part.unsqueeze(0)
        if part.ndim == 0 or part.shape[0] != batch:
            raise ValueError(
                f"{name} has shape {tuple(part.shape)} for {batch} samples: every explained input needs the batch as its "
                "first axis (expand a shared one)"
            )


def _finite_inputs(args: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse a call without tensors, and tensors without values: on the meta device, sparse, empty, NaN or infinite."""
    leaves = pytree.tree_flatten_with_path((args, dict(keywords)))[0]
    if not any(isinstance(leaf, Tensor) for _, leaf in leaves):
        given = ", ".join(type(leaf).__name__ for _, leaf in leaves) or "nothing"
        raise TypeError(f"no tensor among the inputs, got {given}: pass tensors, as torch.as_tensor(...) or a tokenizer makes")
    for path, leaf in leaves:
        if not isinstance(leaf, Tensor):
            continue
        name = f"input{pytree.keystr(path[1:])}"
        if leaf.is_meta:
            raise ValueError(f"{name} is on the meta device, where tensors have no values: move it to where the model is")
        if leaf.layout != torch.strided:
            raise ValueError(f"{name} is sparse ({leaf.layout}): pass {name}.to_dense()")
        if leaf.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(leaf.shape)}: it is empty, and there is nothing to explain")
        if leaf.is_floating_point() and not leaf.isfinite().all():
            if (leaf.isneginf() | (leaf == 0)).all():  # an additive mask of attention
                continue
            bad = int((~leaf.isfinite()).sum())
            raise ValueError(
                f"input{pytree.keystr(path[1:])} has {bad} values that are NaN or infinite: nothing can be explained by them"
            )


def _finite_result(result: Result, model: Any) -> None:
    if result.whole.isfinite().all() and all(p.isfinite().all() for p in result.parts.values()):
        return
    if isinstance(model, nn.Module):
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise ValueError(f"the weight {name} has NaN or infinite values: nothing can be explained through it")
    if not result.whole.isfinite().all():
        raise ValueError(
            f"the explained output is {result.whole.tolist()}: nothing can be explained by an infinite or undefined one"
        )
    part = next(n for n, p in result.parts.items() if not p.isfinite().all())
    raise ValueError(
        f"the relevance of {part!r} is not finite: some ratio f(x)/x overflows there. Try float64, or rules='epsilon'"
    )


def _classes(classes: Sequence[str] | None, target: Tensor | None) -> list[str] | None:
    if classes is None:
        return None
    if isinstance(classes, str):
        raise TypeError(f"classes is a list of names, got the string {classes!r}")
    last = -1 if target is None else int(target[..., -1].max() if target.ndim > 1 else target.max())
    if last >= len(classes):
        raise ValueError(f"classes has {len(classes)} names, and class {last} is explained: name every class of the output")
    return list(classes)


def _names(names: Sequence[Any] | None, batch: int) -> list[list[str]] | None:
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f"names is a list of tokens for each sample, got the string {names!r}: split it into tokens")
    rows = [list(names)] if names and isinstance(names[0], str) else [list(row) for row in names]
    if len(rows) != batch:
        raise ValueError(f"names has {len(rows)} lists of tokens for {batch} samples")
    return rows
