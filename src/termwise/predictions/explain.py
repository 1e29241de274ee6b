"""`explain`: take one prediction apart into inputs, biases, constants and what rules lost."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import strings
from termwise.core.capture import Call, arguments

from .call import PredictionCall
from .explanation import Explanation
from .groups import Mask
from .labels import class_names, token_names
from .layers import Layers
from .memory import Meter, as_bytes, pieces, shown
from .propagate import Result
from .refusals import batched, finite_inputs, finite_result
from .rules import Rules
from .rules.sets import IN_ITS_FORM, name_of
from .targets import Target, asked

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
    layers: Layers = (),
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
        layers: paths of modules, or globs as ``"encoder.layer.*"``, at whose outputs relevance is read as it passes, in the
            same pass: `Explanation.layers`. "auto": the blocks that the model repeats, at most 24; none where there are none, and
            under rules that carry relevance itself ("dynamiclrp"), which know no layers. Not together with `at` or `through`.
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
    finite_inputs(args, keywords)
    call = PredictionCall(
        model, args, keywords, asked(target), rules=rules, at=at, through=_through(through), biases=_policy(biases),
        layers=_layers(layers, rules, inside=at is not None or through is not None),
    )  # fmt: skip
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
        held = " by these rules, which give nothing to what it goes into" if name in call.used else ""
        warnings.warn(f"the output does not depend on {name!r}{held}: its relevance is exactly 0", UserWarning, stacklevel=2)
    why = Explanation(
        whole=found.whole,
        parts=found.parts,
        target=found.target,
        rules=name_of(rules),
        names=token_names(names, call.batch),
        classes=class_names(classes, found.target),
        asked=call.questions(),
        picture=call.picture() if at is not None else None,
        layers=found.layers,
        channels=found.channels,
    )
    return why if feature_mask is None else why.grouped(feature_mask)


class _Found:
    """Results as they come in, of some samples and one target at a time, put in their place."""

    def __init__(self, call: PredictionCall) -> None:
        self.call, self.targets = call, len(call.wanted.starts)
        self._whole: Tensor | None = None
        self._parts: dict[str, Tensor] = {}
        self._layers: dict[str, Tensor] = {}
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
        finite_result(result, self.call.model)
        batched(result.parts, n)
        if self._whole is None:
            self._whole = result.whole.new_zeros(batch, self.targets)
        self._whole[rows, t] = result.whole
        for name, part in result.parts.items():
            self._reached[name] = self._reached.get(name, False) or name not in result.unreached
            self._put(self._parts, name, part, rows, t)
        for name, value in result.layers.items():
            self._put(self._layers, name, value, rows, t)
        if (index := self.call.index[t]) is not None:
            known = self._index[t]
            if known is None:
                known = self._index[t] = index.new_zeros(batch, *index.shape[1:])
            known[rows] = index

    def _put(self, into: dict[str, Tensor], name: str, value: Tensor, rows: slice, t: int) -> None:
        """Keep a value of these samples and one target."""
        if len(value) == self.call.batch and self.targets == 1:  # all there is: no copy
            into[name] = value.unsqueeze(1)
            return
        if name not in into:
            into[name] = value.new_zeros(self.call.batch, self.targets, *value.shape[1:])
        into[name][rows, t] = value

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(p.numel() * p.element_size() for p in (*self._parts.values(), *self._layers.values()))

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
        return self._by_target(self._parts)

    @property
    def layers(self) -> dict[str, Tensor]:
        """Of the same first axes, by module path."""
        return self._by_target(self._layers)

    @property
    def channels(self) -> dict[str, int]:
        """The channel axes of layers and of the module where it begins, of those that lie there as they left their module."""
        inside = {name.removeprefix("at:"): part for name, part in self._parts.items() if name.startswith("at:")}
        axes = {path: value.ndim - 1 - self.call.alone for path, value in {**inside, **self._layers}.items()}  # but for targets
        return {path: axis for path, (axis, ndim) in self.call.channels.items() if axes.get(path) == ndim}

    def _by_target(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return values if self.call.wanted.several else {name: value[:, 0] for name, value in values.items()}

    @property
    def target(self) -> Tensor | None:
        """The entries that were explained, where each start picked one."""
        found = [i for i in self._index if i is not None]
        if len(found) < self.targets:
            return None
        if len({i.ndim for i in found}) > 1 or len({i.shape for i in found}) > 1:
            found = [i if i.ndim == 1 else i[:, -1] for i in found]  # entries of any kind: their classes
        return torch.stack(found, 1) if self.call.wanted.several else found[0]


def _within(limit: int, call: PredictionCall, found: _Found) -> None:
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


def _layers(layers: Layers, rules: Rules, *, inside: bool) -> Layers:
    """As given, in a form that can be kept with the recording."""
    paths = layers if isinstance(layers, str) else strings(layers)
    if paths and inside:
        raise ValueError("layers= is read in the pass that explains everything: leave it out, or at= and through=")
    if paths is None:
        raise TypeError(f"layers is 'auto', a path of a module or a list of them, got {layers!r}")
    if paths == "auto" and isinstance(rules, str) and rules in IN_ITS_FORM:
        return ()
    return paths if isinstance(paths, str) else tuple(paths)


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
