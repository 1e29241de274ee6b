"""From a model and one input to everything a page shows of it: explanation, probabilities, and the test by deletion."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from termwise.predictions.compare import Comparison, compare
from termwise.predictions.explain import explain
from termwise.predictions.faithfulness import DeletionCurve, blurred, deletion
from termwise.report import Section

if TYPE_CHECKING:
    from termwise.predictions.explanation import Explanation
    from termwise.zoo import Subject

__all__ = ["deleted", "examine", "side_by_side"]

log = logging.getLogger(__name__)

QUICK = {"image": ("default", "gradient_x_input", "smoothgrad", "gradcam", "occlusion"),
         "text": ("default", "gradient_x_input", "smoothgrad", "occlusion")}  # fmt: skip
"""What is compared when nothing is said: methods of a few seconds."""

PATCH = 16
"""Side of the squares that are removed from a picture, in pixels: smaller ones break a network wherever they lie."""

Progress = Callable[[str, float], None]
"""Told what is being done and how much of all is done, 0 to 1."""


def examine(
    subject: Subject,
    source: Any,
    *,
    target: int | str | None = None,
    rules: Any = "default",
    heading: str = "",
    about: str = "",
    random_orders: int = 8,
    progress: Progress | None = None,
) -> Section:
    """Explain one answer of a model, and test the explanation by removing what it calls important.

    Args:
        subject: the model with what it takes; its precision is the precision of the explanation.
        source: a picture or a text, as `subject.prepare` takes it.
        target: class index or name; the model's own answer when not given.
        rules: of the relevance, see `termwise.explain`.
        heading: of the section; the class and the input when not given.
        about: the input in a few words, for the line below the heading.
        random_orders: to compare the order of relevance with; 0 skips the test.
        progress: told what is being done.

    Raises:
        ValueError: a bad picture, text, target or rule.
    """

    def tell(what: str, done: float) -> None:
        log.info("%s: %s (%.0f %%)", subject.name, what, 100 * done)
        if progress is not None:
            progress(what, done)

    model = subject.model
    index = subject.index(target) if isinstance(target, str) else target
    tell("preparing the input", 0.0)
    x = subject.prepare(source)
    with torch.no_grad():
        output = model(**x) if isinstance(x, Mapping) else model(x)
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{subject.name} gives {shape} and no scores (1, classes): wrap it so that it does")
    tell("explaining", 0.05)
    why = explain(model, x, target=index, rules=rules, layers="auto", names=subject.names(x), classes=subject.classes)
    tell("removing, step by step", 0.25)
    curve = None
    if random_orders:
        curve = deleted(
            subject, x, why, random_orders=random_orders,
            progress=lambda done, of: tell("removing, step by step", 0.25 + 0.75 * done / of),
        )  # fmt: skip
    tell("done", 1.0)
    image = subject.kind == "image"
    return Section(
        why,
        heading=heading or f"Why {_short(why.label())}?",
        source=" · ".join(filter(None, [about, f"{subject.name} ({subject.licence})", f"rules {why.rules}", _precision(why)])),
        picture=subject.picture(x) if image else None,
        scores=_best(output[0], subject.classes),
        curve=curve,
    )


def side_by_side(
    subject: Subject,
    source: Any,
    methods: Sequence[str] | None = None,
    *,
    target: int | str | None = None,
    patch: int = PATCH,
    progress: Progress | None = None,
) -> Comparison:
    """Explain one answer of a model by several methods.

    Args:
        subject: the model with what it takes.
        source: a picture or a text.
        methods: as of `termwise.compare`; a few quick ones when not given.
        target: class index or name; the model's own answer when not given.
        patch: side of the squares that are taken from a picture.
        progress: told what is being done.

    Raises:
        ValueError: a bad picture, text, target or method.
    """
    x = subject.prepare(source)
    image = subject.kind == "image"
    keep = None
    if not image:
        keep = torch.zeros(next(iter(x.values())).shape[1], dtype=torch.bool)
        keep[subject.special(x) or [0]] = True  # something must be left to answer about
    return compare(
        subject.model, x, QUICK[subject.kind] if methods is None else methods,
        target=subject.index(target) if isinstance(target, str) else target,
        patch=patch, keep=keep, baseline=None if image else subject.baseline,
        picture=subject.picture(x) if image else None,
        names=subject.names(x), classes=subject.classes, progress=progress,
    )  # fmt: skip


def deleted(
    subject: Subject,
    x: Any,
    why: Explanation,
    *,
    model: nn.Module | None = None,
    random_orders: int = 8,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DeletionCurve:
    """What the model says while the input is removed, the most relevant first, and in random orders.

    Args:
        subject: the model with what it takes.
        x: what was explained, as `subject.prepare` gives it.
        why: the explanation of it.
        model: the subject's model in float32, since the test asks for percent; a copy when not given.
        random_orders: to compare with.
        generator: they are drawn from it; one with seed 0 when not given.
        progress: called with (done, all) passes.
    """
    name, relevance = next(iter(why.inputs.items()))
    baseline: Any = subject.baseline
    keep = None
    if isinstance(x, Mapping):
        keep = torch.zeros(relevance.shape[1], dtype=torch.bool)
        keep[subject.special(x) or [0]] = True  # something must be left to answer about
        baseline = "remove" if baseline is None else baseline
    else:
        x = x.float()
        baseline = blurred(x)
    return deletion(
        copy.deepcopy(subject.model).float() if model is None else model, x, relevance, why.target,
        baseline=baseline, patch=PATCH, keep=keep, name=name, random_orders=random_orders, generator=generator,
        progress=progress,
    )  # fmt: skip


def _best(logits: Tensor, classes: Any, k: int = 5) -> list[tuple[str, float]]:
    """The most probable classes; equal names are told apart by their index."""
    values, indices = logits.double().softmax(0).topk(min(k, len(logits)))
    return [(classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]


def _short(name: str) -> str:
    """The first of the names of a class."""
    return name.partition(",")[0]


def _precision(why: Explanation) -> str:
    return str(why.whole.dtype).removeprefix("torch.")
