"""One self-contained HTML page of explanations, and the fragment that a notebook shows.

Nothing is fetched: pictures are data URIs, curves are inline SVG, there is no script, and a content policy in the page
forbids all of it. Everything a user or a model named is escaped by the template engine.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from termwise.core.decomposition import Decomposition

from .colour import css, robust_scale
from .curve import Curve, lines, verdict
from .heatmap import overlay, png, relevance_map
from .tokens import printable, words
from .waterfall import bars

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Section", "fragment", "page"]


@dataclass(frozen=True)
class Section:
    """What a page says about one decomposition; everything but the decomposition may be left out.

    Attributes:
        decomposition: what is shown.
        heading: the question or the input, in a few words.
        source: which model and which input, with licences.
        picture: (height, width, 3), 0 to 255, where the input is an image.
        scores: the most probable classes as (name, probability), largest first.
        curve: the deletion curve.
        note: a sentence of the author's below the heading.
        sample: which sample of the decomposition.
    """

    decomposition: Decomposition
    heading: str = ""
    source: str = ""
    picture: Any = None
    scores: Sequence[tuple[str, float]] = ()
    curve: Curve | None = None
    note: str = ""
    sample: int = 0


def page(sections: Sequence[Section], title: str = "Why?", lead: str = "", footer: str = "") -> str:
    """A whole HTML document.

    Args:
        sections: one card each.
        title: of the page, plain text.
        lead: a sentence below the title.
        footer: versions and the like.

    Raises:
        ValueError: when there are no sections.
    """
    if not sections:
        raise ValueError("a page needs at least one section")
    cards = [_context(one) for section in sections for one in _one_question_each(section)]
    return _templates().get_template("page.html").render(title=title, lead=lead, cards=cards, footer=footer)


def fragment(decomposition: Decomposition, sample: int = 0) -> str:
    """A piece of HTML with its own style, for notebooks."""
    template = _templates().get_template("fragment.html")
    sections = _one_question_each(Section(decomposition, sample=sample))
    return "\n".join(template.render(card=_context(section)) for section in sections)


def _one_question_each(section: Section) -> list[Section]:
    """Where several targets were explained at once, a section for each."""
    only, whole = getattr(section.decomposition, "only", None), section.decomposition.whole
    if only is None or whole.ndim != 2:
        return [section]
    return [replace(section, decomposition=only(t)) for t in range(whole.shape[1])]


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("termwise.report"),
        autoescape=True,  # for every template, whatever its suffix
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(section: Section) -> dict[str, Any]:
    """Everything the template prints, as text and numbers."""
    whole, sample = section.decomposition.whole, section.sample
    one = section.decomposition[sample] if whole.ndim else section.decomposition  # its samples: this one
    scalar = whole.ndim <= 1 and not whole.is_complex()
    label = getattr(one, "label", None)
    return {
        "heading": section.heading,
        "source": section.source,
        "note": section.note,
        "label": printable(label(0)) if callable(label) and whole.ndim else "",
        "whole": _minus(f"{float(one.whole.reshape(-1)[0]):.4g}") if scalar else f"shape {tuple(whole.shape)}",
        "of": f"sample {sample % len(whole) + 1} of {len(whole)}" if whole.ndim and len(whole) > 1 else "",
        "summary": one.summary(),
        "tiles": _tiles(one),
        "pictures": _pictures(one, section.picture),
        "words": _words(one),
        "scores": [{"name": n, "percent": f"{100 * p:.1f} %", "width": f"{100 * p:.2f}"} for n, p in section.scores],
        "waterfall": _waterfall(one) if scalar else None,
        "curve": None if section.curve is None else _curve(section.curve, sample),
    }


def _tiles(one: Decomposition) -> list[dict[str, str]]:
    """The numbers of the honest line, to be read at a glance."""
    tiles = [{"name": "adds up to", "value": f"{one.error():.0e}" if one.error() else "0", "hint": "remainder over the whole"}]
    shares = getattr(one, "shares", None)
    if callable(shares) and one.whole[0] != 0:
        for group, value in shares().items():
            percent = 100 * float(value[0])
            name = "lost by rules" if group == "rules" else group
            text = f"{percent:z.1f} %" if abs(percent) < 10 else f"{percent:z.0f} %"  # z: no "-0.0"
            tiles.append({"name": name, "value": _minus(text), "hint": "of the whole"})
    tiles.append({"name": "cancellation", "value": f"{one.cancellation():.3g}×", "hint": "sum of |parts| over the whole"})
    return tiles


def _pictures(one: Decomposition, picture: Any) -> list[dict[str, str]]:
    """Photo, map and overlay; the map alone where there is no photo; nothing where the input is no image."""
    heatmap = getattr(one, "heatmap", None)
    images = [p for n, p in one.parts.items() if n.startswith(("input:", "at:")) and p.ndim == 4]
    if heatmap is None or not images:
        return []
    relevance = heatmap()
    found = [{"src": _data(relevance_map(relevance)), "caption": "relevance of every pixel", "kind": "map"}]
    if picture is not None:
        found.insert(0, {"src": _data(picture), "caption": "what the model saw", "kind": "photo"})
        found.append(
            {"src": _data(overlay(picture, relevance)), "caption": "relevance, summed over small patches", "kind": "overlay"}
        )
    return found


def _data(pixels: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def _words(one: Decomposition) -> list[dict[str, Any]]:
    sentence = words(one)
    scale = robust_scale([w.value for w in sentence], 100)
    return [
        {
            "text": printable(w.text),
            "colour": css(w.value, scale),
            "value": _minus(f"{w.value:+.2f}"),
            "title": f"{w.value:+.5g}" + (f" from {' + '.join(map(printable, w.pieces))}" if len(w.pieces) > 1 else ""),
            "space": w.space,
            "special": w.special,
            "strong": abs(w.value) >= 0.25 * scale,
        }
        for w in sentence
    ]


def _waterfall(one: Decomposition) -> dict[str, Any]:
    """Bars in percent of the track's width."""
    steps = bars(one)
    low, high = min(0.0, *(min(b.start, b.end) for b in steps)), max(0.0, *(max(b.start, b.end) for b in steps))
    width = high - low or 1.0

    def place(x: float) -> float:
        return round(100 * (x - low) / width, 3)

    rows = [
        {
            "label": printable(b.label),
            "kind": b.kind,
            "value": _minus(f"{b.value:+.4g}"),
            "left": place(min(b.start, b.end)),
            "width": round(100 * abs(b.value) / width, 3),
            "end": place(b.end),
            "sign": "whole" if b.kind == "whole" else "up" if b.value > 0 else "down",
        }
        for b in steps
    ]
    return {"rows": rows, "zero": place(0.0)}


def _minus(number: str) -> str:
    """A number with a minus sign as wide as its plus, where it is no exponent's."""
    return "\N{MINUS SIGN}" + number[1:] if number.startswith("-") else number


def _curve(curve: Curve, sample: int) -> dict[str, Any]:
    """Coordinates of the SVG: 0..600 across, 0..240 down."""
    drawn = lines(curve, sample)
    across, height = 600 / drawn.x[-1], 240 / (drawn.top - drawn.bottom)

    def points(values: Sequence[float]) -> list[str]:
        return [f"{x * across:.1f},{240 - (y - drawn.bottom) * height:.1f}" for x, y in zip(drawn.x, values, strict=True)]

    ticks = [drawn.bottom + (drawn.top - drawn.bottom) * i / 4 for i in range(5)]
    return {
        "line": " ".join(points(drawn.y)),
        "mean": " ".join(points(drawn.mean)),
        "band": " ".join([*points(drawn.high), *reversed(points(drawn.low))]),
        "across": [
            {"at": 150 * i, "text": f"{25 * i * drawn.x[-1]:.0f} %", "anchor": "end" if i == 4 else "middle"} for i in range(5)
        ],
        "up": [{"at": 240 - 60 * i, "text": f"{100 * t:.0f} %" if drawn.percent else f"{t:.3g}"} for i, t in enumerate(ticks)],
        "what": curve.what,
        "score": "probability" if drawn.percent else "score",
        "verdict": verdict(curve, sample),
    }
