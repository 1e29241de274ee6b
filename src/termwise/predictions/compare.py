"""`compare`: several methods on the same inputs, side by side: faithfulness, closing error, cancellation, seconds.

Faithfulness is measured alike for all: the same fill-in, the same features, the same order among ties, the same samples, so
that differences are paired. "error" is the closing error, the remainder over the whole, and "cancels" the sum of |parts| over the
whole, each of the worst sample. "passes" is the time in gradient passes: the least of two runs, after the model was
recorded, over gradient x input of the same batch, timed in between.

Which method is best depends on the fill-in and on the score; a table for one input says how these methods do on this
input, and has no interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
from .perturbation_curves import perturbation_curves
from .rules import RULE_SETS
from .rules.selection import nearest
from .rules.sets import IN_ITS_FORM
from .shapley import shapley
from .smoothgrad import smoothgrad

if TYPE_CHECKING:
    import pandas

__all__ = ["METHODS", "Compared", "Comparison", "compare"]

METHODS: dict[str, Callable[..., Explanation]] = {
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": smoothgrad,
    "gradcam": gradcam,
    "occlusion": occlusion,
    "decompx": decompx,
    "over_depth": over_depth,
    "shapley": shapley,
}
"""Name -> method, called as ``method(model, *inputs, kwargs=..., target=...)``. Names of rule sets are methods too."""

METRICS = ("abpc", "aopc", "deletion", "insertion", "comprehensiveness", "sufficiency")
"""What is read from the perturbation curves."""


@dataclass(frozen=True, eq=False)
class Compared:
    """One method's row: its explanation, its metrics by name, and what it cost.

    Attributes:
        name: of the method.
        explanation: what it said; None where it could not run.
        metrics: name -> `Metric`.
        seconds: of one run on the batch.
        passes: seconds over those of a gradient pass.
        problem: why it could not run, in its own words; "" where it could.
    """

    name: str
    explanation: Explanation | None
    metrics: Mapping[str, Metric]
    seconds: float
    passes: float
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side. `show()` prints the table, `figure()` draws the maps or the sentences, `to_frame()` has the numbers.

    Attributes:
        rows: one for each method, in the order asked.
        clusters: of the samples, for the intervals; None where each is its own.
        picture: what the model saw, (height, width, 3), 0 to 255, where it is known.
    """

    rows: Sequence[Compared]
    clusters: Sequence[int] | Tensor | None = None
    picture: Any = None

    def __getitem__(self, name: str) -> Compared:
        """The row of a method."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} was not compared: {', '.join(row.name for row in self.rows)} were")

    def table(self) -> list[dict[str, Any]]:
        """The numbers: one mapping per method, metrics with the ends of their intervals."""
        found = []
        for row in self.rows:
            why = row.explanation
            line: dict[str, Any] = {"method": row.name}
            for name, metric in row.metrics.items():
                low, high = metric.interval(clusters=self.clusters)
                line |= {name: metric.mean, f"{name}_low": low, f"{name}_high": high}
            line |= {
                "error": float("nan") if why is None else why.error(),
                "cancellation": float("nan") if why is None else why.cancellation(),
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
        """The paired interval of a metric's difference between two methods; above 0 throughout, the first is better."""
        a, b = self[better].metrics[metric], self[worse].metrics[metric]
        return (a - b).interval(clusters=self.clusters)

    def show(self) -> None:
        """Print the table."""
        from rich.console import Console

        from termwise.report.comparison import table

        Console().print(table(self.table()))

    def figure(self, sample: int = 0, title: str = "") -> bytes:
        """The maps, or the sentences, side by side, as a PNG."""
        from termwise.report.comparison import figure

        return figure(self._explained(), sample=sample, picture=self.picture, title=title)

    def html(self, title: str = "Methods compared", lead: str = "") -> str:
        """A self-contained page: the picture and the table."""
        from termwise.report.comparison import page

        return page(self.table(), self._explained(), picture=self.picture, title=title, lead=lead)

    def _explained(self) -> list[tuple[str, Explanation]]:
        return [(row.name, row.explanation) for row in self.rows if row.explanation is not None]

    def __repr__(self) -> str:
        """One line."""
        return f"Comparison({', '.join(row.name for row in self.rows)})"


def compare(
    model: nn.Module | Callable[..., Any],
    x: Tensor | Mapping[str, Any],
    methods: Sequence[str | Callable[..., Explanation]] = ("default", "gradient_x_input", "integrated_gradients", "smoothgrad"),
    *,
    target: Any = None,
    metrics: Sequence[str] = ("abpc",),
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
        x: one tensor, batch first, or a mapping of keyword inputs.
        methods: names (of rule sets, or of `METHODS`), or functions called as ``method(model, x, target=...)`` that return
            an `Explanation`.
        target: class, or one per sample; the model's own answer when not given.
        metrics: of the perturbation curves: "abpc", "aopc", "deletion", "insertion", "comprehensiveness", "sufficiency".
        baseline: the fill-in. None: "blur" for images, "remove" for token ids (say what stays, `keep`), 0 for numbers.
        score: "probability", "logit" or "accuracy"; a model with a single output has a logit only.
        steps: points of the curves.
        patch: side of the square of pixels that counts as one feature of an image.
        feature_mask: instead, the number of the group of each position.
        keep: tokens never taken.
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
    chosen = [_method(m) for m in methods]
    if not chosen:
        raise ValueError("methods is empty: there is nothing to compare")
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}{nearest(name, list(METRICS))}")
    gradient = gradient_x_input(model, x, target=target)  # records the model, finds the class
    explained = gradient.target if isinstance(gradient.target, Tensor) and gradient.target.ndim == 1 else target
    relevance = next(iter(gradient.inputs.values()))
    tensor = x if isinstance(x, Tensor) else next(v for v in x.values() if v.shape == relevance.shape)
    ids = not tensor.is_floating_point()
    fill: Any = baseline if baseline is not None else "remove" if ids else "blur" if tensor.ndim == 4 else 0.0
    options = {
        "baseline": fill, "score": score, "steps": steps, "patch": patch, "feature_mask": feature_mask, "keep": keep,
        "batch_size": batch_size,
    }  # fmt: skip
    told = {"names": token_names(names, len(tensor)), "classes": class_names(classes, gradient.target)}
    rows = []
    for place, (name, method) in enumerate(chosen):
        if progress is not None:
            progress(name, place / len(chosen))
        if method is METHODS["occlusion"]:  # what it replaces is what the curves replace
            method = partial(occlusion, baseline=fill, patch=patch, feature_mask=feature_mask, keep=keep)
        rows.append(_row(name, method, model, x, explained, target, metrics, options, told, tensor.shape))
    if progress is not None:
        progress("done", 1.0)
    return Comparison(rows, clusters, picture)


def _row(
    name: str, method: Callable[..., Explanation], model: Any, x: Any, explained: Any, target: Any,
    metrics: Sequence[str], options: dict[str, Any], told: dict[str, Any], shape: torch.Size,
) -> Compared:  # fmt: skip
    seconds, passes = [], []
    try:
        for _ in range(2):  # the first may rewrite and warm up
            why, took = _timed(method, model, x, explained)
            _, unit = _timed(gradient_x_input, model, x, explained)
            seconds.append(took)
            passes.append(unit)
            if took > 100 * unit:  # the second time would say the same, slowly
                break
    except (ValueError, TypeError, NotImplementedError) as problem:
        return Compared(name, None, {}, float("nan"), float("nan"), str(problem).partition("\n")[0])
    why = replace(why, **told)
    relevance = next(iter(why.inputs.values()))
    if relevance.shape != shape and relevance.shape != (shape[0], *shape[2:]):
        problem = f"its map has shape {tuple(relevance.shape)}, and the input {tuple(shape)}"
        return Compared(name, None, {}, float("nan"), float("nan"), problem)
    curves = perturbation_curves(model, x, relevance, _asked(explained, target), **options)
    return Compared(name, why, {m: getattr(curves, m) for m in metrics}, min(seconds), min(seconds) / min(passes))


def _timed(method: Callable[..., Explanation], model: Any, x: Any, target: Any) -> tuple[Explanation, float]:
    started = time.perf_counter()
    why = method(model, x, target=target)
    if why.whole.is_cuda:
        torch.cuda.synchronize(why.whole.device)
    return why, time.perf_counter() - started


def _asked(explained: Any, target: Any) -> Any:
    """The target for a perturbed output: a class, or the user's function."""
    if explained is None or isinstance(explained, (int, Tensor)) or (callable(explained) and not isinstance(explained, type)):
        return explained
    raise ValueError(f"compare scores one class or a function of the output, got target={target!r}")


def _method(given: str | Callable[..., Explanation]) -> tuple[str, Callable[..., Explanation]]:
    if callable(given):
        return getattr(given, "__name__", type(given).__name__), given
    name = given.strip()
    if name == "default" or name in RULE_SETS or name in IN_ITS_FORM:
        return name, partial(explain, rules=name)
    known = name.lower().replace("-", "_").replace(" ", "_")
    if known in METHODS:
        return known, METHODS[known]
    raise ValueError(f"unknown method {given!r}{nearest(known, ['default', *RULE_SETS, *METHODS])}")
