"""`compare`: several methods on the same inputs, side by side: faithfulness, closing error, cancellation, seconds.

Faithfulness is measured alike for all: the same fill-in, the same features, the same order among ties, the same samples, so
that differences are paired. Ranked is what `ranking` of a result gives: its relevance, or the map that the method has
beside it. "error" is the closing error, the remainder over the whole, and "cancels" the sum of |parts| over the
whole, each of the worst sample; an index of tokens has neither. "passes" is the time in gradient passes: the least of two runs,
after the model was recorded, over gradient x input of the same batch, timed in between.

Which method is best depends on the fill-in and on the score; a table for one input says how these methods do on this
input, and has no interval.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import whole_number
from termwise.core.capture import capture
from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Matrix, Picture, Pictured, Pixels, Steps, Table, Words
from termwise.core.program import info

from .chefer import (
    AttentionReadout,
    attention_gradcam,
    attention_rollout,
    chefer,
    gradient_rollout,
    partial_lrp,
    raw_attention,
)
from .decompx import decompx
from .explain import explain
from .explanation import Explanation
from .gradcam import gradcam
from .gradient_x_input import gradient_x_input
from .groups import Groups
from .integrated_gradients import integrated_gradients
from .labels import class_names, token_names
from .metric import Metric
from .occlusion import occlusion
from .over_depth import over_depth
from .perturbation import Features
from .perturbation_curves import perturbation_curves
from .rules import RULE_SETS
from .rules.selection import nearest
from .rules.sets import IN_ITS_FORM
from .scoring import Inquiry
from .shapley import shapley
from .smoothgrad import smoothgrad
from .starts import Contrast, Entry, NextToken
from .targets import Target, asked

if TYPE_CHECKING:
    import pandas

__all__ = ["METHODS", "Compared", "Comparison", "compare"]

Said = Explanation | AttentionReadout
"""What a method says: anything with a `ranking`; see `Explanation.ranking`."""

Method = Callable[..., Said]

METHODS: dict[str, Method] = {
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": smoothgrad,
    "gradcam": gradcam,
    "occlusion": occlusion,
    "decompx": decompx,
    "over_depth": over_depth,
    "shapley": shapley,
    "chefer": chefer,
    "gradient_rollout": gradient_rollout,
    "attention_rollout": attention_rollout,
    "raw_attention": raw_attention,
    "attention_gradcam": attention_gradcam,
    "partial_lrp": partial_lrp,
}
"""Name -> method, called as ``method(model, *inputs, kwargs=..., target=...)``. Names of rule sets are methods too."""

COSTS = {"error": "error", "cancellation": "cancels", "passes": "passes", "seconds": "seconds"}
"""Columns that every comparison has, after its metrics, as a reader calls them."""

ALIKE = (
    "Faithfulness is measured alike for all: the same features taken in the order of each map, from either end. The error is the "
    "remainder over the whole, and cancellation says how much the parts fight. Methods that are no decompositions (SmoothGrad, "
    "GradCAM) do not close, and do not claim to."
)

METRICS = ("abpc", "aopc", "deletion", "insertion", "comprehensiveness", "sufficiency")
"""What is read from the perturbation curves."""

REPLACING = ("baseline", "patch", "feature_mask", "keep")
"""A method with all these arguments replaces features, and is given what the curves replace."""


@dataclass(frozen=True, eq=False)
class Compared:
    """One method's row: its explanation, its metrics by name, and what it cost.

    Attributes:
        name: of the method.
        explanation: what it said; None where it could not run.
        metrics: name -> `Metric`; none where it could not run.
        seconds: of one run on the batch; NaN where it could not run.
        passes: seconds over those of a gradient pass; NaN where one of the two could not run.
        map: what features were ranked by, one number per entry of the input; None where it could not run.
        problem: why it could not run: the kind of error and its words; "" where it could.
    """

    name: str
    explanation: Said | None
    metrics: Mapping[str, Metric]
    seconds: float = float("nan")
    passes: float = float("nan")
    map: Tensor | None = None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Comparison(Pictured):
    """Methods side by side. `show()` prints the table, `plot()` draws the maps or the sentences, `to_frame()` has the numbers.

    Attributes:
        rows: one for each method, in the order asked.
        metrics: names of what was measured.
        clusters: of the samples, for the intervals; None where each is its own.
        picture: what the model saw, (height, width, 3), 0 to 255, where it is known.
        names: the tokens of each sample; None where there are none.
    """

    rows: Sequence[Compared]
    metrics: Sequence[str]
    clusters: Sequence[int] | Tensor | None = None
    picture: Any = None
    names: list[list[str]] | None = None

    def __getitem__(self, name: str) -> Compared:
        """The row of a method."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} was not compared: {', '.join(row.name for row in self.rows)} were")

    def table(self) -> list[dict[str, Any]]:
        """The numbers: one mapping per method, metrics with the ends of their intervals; NaN where there is none."""
        nan = float("nan")
        found = []
        for row in self.rows:
            line: dict[str, Any] = {"method": row.name}
            for name in self.metrics:
                metric = row.metrics.get(name)
                low, high = (nan, nan) if metric is None else metric.interval(clusters=self.clusters)
                line |= {name: nan if metric is None else metric.mean, f"{name}_low": low, f"{name}_high": high}
            why = row.explanation if isinstance(row.explanation, Decomposition) else None
            line |= {
                "error": nan if why is None else why.error(),
                "cancellation": nan if why is None else why.cancellation(),
                "seconds": row.seconds,
                "passes": row.passes,
                "problem": row.problem,
            }
            found.append(line)
        return found

    def to_frame(self) -> pandas.DataFrame:
        """The table as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self.table())

    def difference(self, better: str, worse: str, metric: str = "abpc") -> tuple[float, float]:
        """The paired interval of a metric's difference between two methods; above 0 throughout, the first is better.

        Raises:
            KeyError: a method that was not compared or could not run, a metric that was not measured.
        """
        for row in (self[better], self[worse]):
            if metric not in row.metrics:
                raise KeyError(f"{metric!r} of {row.name!r} is not there: {row.problem or 'it was not measured'}")
        a, b = self[better].metrics[metric], self[worse].metrics[metric]
        return (a - b).interval(clusters=self.clusters)

    def show(self) -> None:
        """Print the table, and below it what did not run and why."""
        from rich.console import Console

        from termwise.report.terminal import lines

        Console().print(lines(self._numbers([row for row in self.table() if not row["problem"]])))
        for row in self.rows:
            if row.problem:
                Console().print(f"{row.name} does not run: {row.problem}", style="yellow", markup=False, highlight=False)

    def figure(self, sample: int = 0, title: str = "") -> bytes:
        """The maps, or the sentences, as a PNG."""
        from termwise.report.figures import png

        return png(self._maps(sample), title)

    def html(self, title: str = "Methods compared", lead: str = "") -> str:
        """A self-contained page: the pictures and the table."""
        from termwise.report import Section, page

        return page([Section(self)], title=title, lead=lead)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The map of every method, and the table of all numbers."""
        return [*self._maps(sample), self._numbers(self.table())]

    def _numbers(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        """One row per method; why one did not run stands in its row."""
        failed = any(row["problem"] for row in rows)
        spread = any(row[f"{name}_low"] == row[f"{name}_low"] for row in rows for name in self.metrics)
        measured = [h for name in self.metrics for h in ((name, "95 % interval") if spread else (name,))]
        heads = ["method", *measured, *COSTS.values()]
        cells = []
        for row in rows:
            line = [row["method"]]
            for name in self.metrics:
                low, high = row[f"{name}_low"], row[f"{name}_high"]
                line += [row[name], *(["" if low != low else f"{low:.3g} to {high:.3g}"] if spread else [])]
            line += [row[name] for name in COSTS]
            cells.append([*line, row["problem"]] if failed else line)
        return Table("Methods compared", [*heads, "does not run"] if failed else heads, cells, note=ALIKE)

    def _maps(self, sample: int) -> list[Picture]:
        """Of images a slider over the methods, of texts a sentence for each, of numbers one table of colours."""
        maps = {row.name: row.map[sample].detach().double().cpu() for row in self.rows if row.map is not None}
        if not maps:
            return []
        first = next(iter(maps.values()))
        if first.ndim > 1:
            planes = [(m.sum(0) if m.ndim == 3 else m).numpy() for m in maps.values()]
            return [Steps("The maps", "method", list(maps), [Pixels("", plane, self.picture) for plane in planes])]
        names = None if self.names is None else self.names[sample]
        if names is not None and len(names) == len(first):
            return [Words(name, names, m.tolist()) for name, m in maps.items()]
        features = [str(i) for i in range(len(first))]
        scaled = [(m / (m.abs().max() or 1.0)).tolist() for m in maps.values()]
        note = "Each method by its largest entry: their scales differ."
        return [Matrix("The maps", scaled, list(maps), features, value="relevance over its largest", x="feature", note=note)]

    def __repr__(self) -> str:
        """One line."""
        return f"Comparison({', '.join(row.name for row in self.rows)})"


def compare(
    model: nn.Module | Callable[..., Any],
    x: Tensor | Mapping[str, Any],
    methods: str | Method | Sequence[str | Method] = ("default", "gradient_x_input", "integrated_gradients", "smoothgrad"),
    *,
    target: Target = None,
    metrics: str | Sequence[str] = ("abpc",),
    baseline: Any = None,
    score: str = "probability",
    steps: int = 20,
    patch: int = 16,
    feature_mask: Tensor | Groups | None = None,
    keep: Tensor | None = None,
    clusters: Sequence[int] | Tensor | None = None,
    batch_size: int = 32,
    picture: Any = None,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Comparison:
    """Explain the same inputs by several methods and measure each alike.

    Args:
        model: in eval mode.
        x: one tensor, batch first, or a mapping of keyword inputs, of which the first that can be explained is measured.
        methods: names (of rule sets, or of `METHODS`), or functions called as ``method(model, x, target=...)`` that return
            an `Explanation`, or anything with a `ranking`; one of these, or several. Those that replace features
            themselves, with `baseline`, `patch`, `feature_mask` and `keep` among their arguments, are given these.
        target: as of `termwise.explain`, one of each sample; the model's own answer when not given.
        metrics: of the perturbation curves: "abpc", "aopc", "deletion", "insertion", "comprehensiveness", "sufficiency".
        baseline: the fill-in. None: "blur" for images, "remove" for token ids, 0 for numbers.
        score: "probability", "logit" or "accuracy"; a single output, a function or a contrast has a logit only.
        steps: points of the curves.
        patch: side of the square of pixels that counts as one feature of an image.
        feature_mask: instead, the number of the group of each position.
        keep: tokens never taken. None: where tokens are removed, the first one, padding, and in the text that a target has a
            place in, what stands from that place on; so that a sequence is never emptied and its question stays.
        clusters: for each sample the number of its cluster, for the intervals.
        batch_size: inputs per forward pass.
        picture: what the model saw, for the figure.
        names: the tokens, for the figure.
        classes: names of the classes.
        progress: told what is being done, and how much of all is done.

    Returns:
        A `Comparison`. A method that cannot run on this model has its error as its row.

    Raises:
        ValueError: an unknown method or metric (the nearest is named), and as `perturbation_curves`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> found = tw.compare(model, torch.randn(20, 6), ["zero", "gradient_x_input"])
        >>> [row.name for row in found.rows]
        ['zero', 'gradient_x_input']
        >>> found["zero"].explanation.error() < 1e-4 < found["gradient_x_input"].explanation.error()
        True
    """
    chosen = [_method(m) for m in ([methods] if isinstance(methods, str) or callable(methods) else methods)]
    if not chosen:
        raise ValueError("methods is empty: there is nothing to compare")
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}{nearest(metric, list(METRICS))}")
    name = _explained(model, x, target)
    tensor: Tensor = x if isinstance(x, Tensor) else x[name]  # type: ignore[index]
    ids = not tensor.is_floating_point()
    fill: Any = baseline if baseline is not None else "remove" if ids else "blur" if tensor.ndim == 4 else 0.0
    if keep is None and isinstance(fill, str) and fill == "remove":
        keep = _kept(x, name, target)
    replacing = {"baseline": fill, "patch": patch, "feature_mask": feature_mask, "keep": keep, "name": name}
    inquiry = Inquiry(model, Features(x, **replacing), target, batch_size=batch_size)
    inquiry.whole.of(score)  # complains before the work
    explained = inquiry.index if target is None else target  # the model's own answer is one of all methods
    told = {"names": token_names(names, len(tensor)), "classes": class_names(classes, inquiry.index)}
    steps = whole_number("steps", steps)
    if clusters is not None and len(clusters) != len(tensor):
        raise ValueError(f"clusters has {len(clusters)} numbers for {len(tensor)} samples: give one for each")
    rows = []
    for place, (title, method) in enumerate(chosen):
        if progress is not None:
            progress(title, place / len(chosen))
        try:
            why, seconds, passes = _timed(_alike(method, replacing, batch_size), model, x, explained)
            relevance = why.ranking(name).detach()
            curves = perturbation_curves(
                model, x, relevance, explained, score=score, steps=steps, batch_size=batch_size, **replacing
            )
            measured = {m: getattr(curves, m) for m in metrics}
            why = replace(why, **told) if isinstance(why, Explanation) else why
            rows.append(Compared(title, why, measured, seconds, passes, relevance))
        except Exception as problem:  # whatever it is, it is this method's own
            said = (str(problem).strip().splitlines() or ["no message"])[0]
            rows.append(Compared(title, None, {}, problem=f"{type(problem).__name__}: {said}"))
    if progress is not None:
        progress("done", 1.0)
    return Comparison(rows, metrics, clusters, picture, told["names"])


def _timed(method: Method, model: Any, x: Any, target: Any) -> tuple[Said, float, float]:
    """What a method says, the seconds it takes, and these over those of gradient x input."""
    seconds, unit = [], []
    for _ in range(2):  # the first may rewrite and warm up
        why, took = _clocked(method, model, x, target)
        seconds.append(took)
        try:
            unit.append(_clocked(gradient_x_input, model, x, target)[1])
        except Exception:  # a model that has no gradient pass may still be explained
            unit.append(float("nan"))
        if took > 100 * unit[-1]:  # the second time would say the same, slowly
            break
    return why, min(seconds), min(seconds) / min(unit)


def _clocked(method: Method, model: Any, x: Any, target: Any) -> tuple[Said, float]:
    started = time.perf_counter()
    why = method(model, x, target=target)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return why, time.perf_counter() - started


def _alike(method: Method, replacing: Mapping[str, Any], batch_size: int) -> Method:
    """A method that replaces features, with what the curves replace; but for what was bound already."""
    try:
        known = inspect.signature(method).parameters
    except ValueError:  # a builtin
        return method
    if not known.keys() >= set(REPLACING):
        return method
    bound = getattr(method, "keywords", {})
    given = {**replacing, "batch_size": batch_size}
    return partial(method, **{k: v for k, v in given.items() if k in known and k not in bound})


def _explained(model: Any, x: Any, target: Any) -> str | None:
    """The name of the input that is measured: the first of a mapping that can be explained. Records the model."""
    program = capture(model, x, select=asked(target).select)
    if not isinstance(x, Mapping):
        return None
    active = [n for n in program.graph.nodes if "info" in n.meta and info(n).active]
    origins = {info(n).origin for n in active if n.op == "placeholder" or info(n).role == "cut"}
    for name in x:
        if name in origins:
            return str(name)
    raise ValueError(f"none of {', '.join(x)} can be explained: none is floating, and none is looked up in an embedding")


def _kept(x: Any, name: str | None, target: Any) -> Tensor:
    """Tokens that stay where others are removed."""
    ids: Tensor = x if name is None else x[name]
    decoder = name is not None and name.startswith("decoder_")
    mask = None if name is None else x.get("decoder_attention_mask" if decoder else "attention_mask")
    text = mask != 0 if isinstance(mask, Tensor) and mask.shape == ids.shape else torch.ones_like(ids, dtype=torch.bool)
    keep = ~text
    keep.scatter_(1, text.to(torch.int8).argmax(1, keepdim=True), True)
    start = asked(target).starts[0]
    entry = start.entry if isinstance(start, Contrast) else start
    other = name is not None and not decoder and any(k.startswith("decoder_input") for k in x)  # it asks of another text
    if isinstance(entry, NextToken) and not other:
        keep[:, entry.position - 1 :] = True
    elif isinstance(entry, Entry) and isinstance(entry.target, tuple) and len(entry.target) == 2 and not other:
        keep[:, int(entry.target[0]) :] = True
    return keep


def _method(given: str | Method) -> tuple[str, Method]:
    if callable(given):
        named = getattr(given, "func", given)  # of a partial
        return getattr(named, "__name__", type(named).__name__), given
    if not isinstance(given, str):
        raise TypeError(f"a method is a name, or a function called as method(model, x, target=...); got {given!r}")
    name = given.strip()
    if name == "default" or name in RULE_SETS or name in IN_ITS_FORM:
        return name, partial(explain, rules=name)
    known = name.lower().replace("-", "_").replace(" ", "_")
    if known in METHODS:
        return known, METHODS[known]
    raise ValueError(f"unknown method {given!r}{nearest(known, ['default', *RULE_SETS, *METHODS])}")
