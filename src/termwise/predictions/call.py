"""One prediction to be explained: a model, its inputs and what is asked, run for all samples or for some of them.

Every method that explains a call of a model begins here: the recording, its input tensors, and for each thing asked the
function from the output to one scalar per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from termwise.core.capture import capture, recorded
from termwise.core.program import Program, info

from .channels import channel_axes, channel_axis
from .cuts import only_outlet, outlets
from .layers import Layers, layer_nodes
from .picked import picked
from .propagate import Pass, Result, propagate
from .refusals import one_sample_each
from .rules import Rules
from .starts import Seen, Start
from .targets import Asked, Scored

__all__ = ["PredictionCall"]


class PredictionCall:
    """A call of a model, and what is asked of it.

    Attributes:
        wanted: what is asked.
        tensors: every tensor among the arguments.
        alone: whether the call has no axis of samples.
        batch: number of samples.
        used: the parts of inputs that the recorded output is made of, once it was prepared.
        index: for each start the class or entry it chose, once its scalar was computed.
        channels: of the layers that are read, or of the module where the explanation begins, by path: the channel axis where it
            is known, counted from the end, and the number of axes.
    """

    def __init__(
        self,
        model: Any,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        wanted: Asked,
        *,
        rules: Rules = "default",
        at: str | None = None,
        through: tuple[str, int | Tensor] | None = None,
        biases: str = "parts",
        layers: Layers = (),
    ) -> None:
        """Take it; nothing is recorded yet. Arguments as of `explain`, read."""
        self.model, self.args, self.keywords, self.wanted = model, args, keywords, wanted
        self.rules, self.biases, self.at, self.through, self.layers = rules, biases, at, through, layers
        self.channels: dict[str, tuple[int, int]] = {}
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
            layers = layer_nodes(program, self.layers) if self.layers else {}
            self._see_channels(program, layers)
            return [propagate(program, self.rules, biases=self.biases, at=self.at, layers=layers)]
        path = self.through[0]
        ends = ({"at": path}, {"at": self.at, "to": path})
        return [propagate(program, self.rules, biases=self.biases, **end) for end in ends]

    def _see_channels(self, program: Program, layers: Mapping[str, str]) -> None:
        inside = {part.removeprefix("at:"): node for node, part in outlets(program, self.at).items()} if self.at else {}
        if looked_at := {**layers, **inside}:
            known, sizes = channel_axes(program), {n.name: n.meta.get("val") for n in program.nodes}
            self.channels = {path: (known[n], sizes[n].ndim) for path, n in looked_at.items() if n in known}

    def prepare(self, rows: slice) -> tuple[Program, list[Tensor], list[Callable[[Tensor], Tensor]]]:
        """The recording, its inputs and the starts, for these samples."""
        args, keywords = self._take(rows)
        program, starts = self._recorded(args, keywords)
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
        one_sample_each(program, batch)
        self.used = {f"input:{info(n).origin}" for n in program.graph.nodes if "info" in n.meta and info(n).active and n.users}
        by_name = dict(zip((p.name for p in program.placeholders.values() if p.kind == "input"), tensors, strict=True))
        seen = Seen.of(by_name, batch, rows, self.batch)
        self.index: list[Tensor | None] = [None] * len(starts)

        def scalar(t: int, start: Start) -> Callable[[Tensor], Tensor]:
            def whole(output: Tensor) -> Tensor:
                value, self.index[t] = start.of(output, seen)
                return value

            return whole

        return program, tensors, [scalar(t, start) for t, start in enumerate(starts)]

    def _recorded(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Program, Sequence[Start]]:
        """The recording, and the starts on it; functions of the output that only pick an entry are starts themselves."""
        wanted, select = self.wanted, self.wanted.select
        known = recorded(self.model, *args, kwargs=keywords, select=select)
        if known is None and isinstance(select, Scored):
            own = {id(t) for t in self.tensors}
            found = [picked(self.model, args, keywords, pick, own) for pick in select.picks]
            if None not in found:
                return capture(self.model, *args, kwargs=keywords), found  # type: ignore[return-value]
        if known is None:
            known = capture(self.model, *args, kwargs=keywords, select=select)
        return known, wanted.starts

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
