"""One self-contained HTML page of results, and the fragment that a notebook shows.

Nothing is fetched: pictures are data URIs, the charting library lies in the page, and a content policy in it forbids any
request and any script but these two, by their hashes. Everything a user or a model named is escaped by the template engine.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Pictured, Pixels, Words, over

from .curve import Curve, picture
from .markup import markup
from .reading import number
from .tokens import printable

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Section", "fragment", "page"]


MOST = 6
"""A notebook shows so many targets of one explanation."""


@dataclass(frozen=True)
class Section:
    """What a page says about one result; everything but the result may be left out.

    Attributes:
        decomposition: what is shown: a Decomposition, or any other result that has `pictures`.
        heading: the question or the input, in a few words.
        source: which model and which input, with licences.
        picture: (height, width, 3), 0 to 255, where the input is an image.
        scores: the most probable classes as (name, probability), largest first.
        curve: the deletion curve.
        note: a sentence of the author's below the heading.
        sample: which sample of the decomposition.
    """

    decomposition: Pictured
    heading: str = ""
    source: str = ""
    picture: Any = None
    scores: Sequence[tuple[str, float]] = ()
    curve: Curve | None = None
    note: str = ""
    sample: int = 0


def page(sections: Sequence[Section], title: str = "Why?", lead: str = "", footer: str = "") -> str:
    """A whole HTML document, which needs no network and no server.

    Args:
        sections: one card each.
        title: of the page, plain text.
        lead: a sentence below the title.
        footer: versions and the like.

    Raises:
        ValueError: when there are no sections.
    """
    if isinstance(sections, Section):
        raise TypeError("sections is a list of them: page([section])")
    if not sections:
        raise ValueError("a page needs at least one section")
    if [getattr(one, "heading", None) for one in sections] == [title]:
        sections = [replace(sections[0], heading="")]  # it stands above the card
    found = cards(sections)
    coloured = any(p["kind"] in ("words", "pixels") for card in found for p in card["first"])
    return rendered("page.html", title=title, lead=lead, cards=found, footer=footer, coloured=coloured, static=False)


def cards(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """What the template `card.html` prints of each section."""
    return [_context(one, static=False) for section in sections for one in _one_question_each(section)]


def fragment(result: Pictured, sample: int = 0) -> str:
    """A piece of HTML with its own style and without scripts, for notebooks."""
    template = templates().get_template("fragment.html")
    sections = _one_question_each(Section(result, sample=sample))
    shown = [template.render(card=_context(section, static=True), static=True) for section in sections[:MOST]]
    left = [f"<p>{len(sections) - MOST} more targets are not shown here: choose one with .only(i)</p>"] * (len(sections) > MOST)
    return "\n".join([*shown, *left])


def rendered(template: str, **context: Any) -> str:
    """A page of the house, with its scripts."""
    return templates().get_template(template).render(scripts=scripts(), **context)


def _one_question_each(section: Section) -> list[Section]:
    """Where several targets were explained at once, a section for each."""
    if not isinstance(section, Section):
        raise TypeError(f"a page is made of sections, got {type(section).__name__}: page([Section(decomposition)])")
    result = section.decomposition
    if not isinstance(result, Pictured):
        raise TypeError(f"a section shows a decomposition, got {type(result).__name__}")
    only, whole = getattr(result, "only", None), getattr(result, "whole", None)
    asked = any(getattr(result, name, None) is not None for name in ("target", "asked"))  # else: all classes in one picture
    if only is None or whole is None or whole.ndim != 2 or not asked:
        return [section]
    return [replace(section, decomposition=only(t)) for t in range(whole.shape[1])]


@cache
def templates() -> Environment:
    """The template engine: it escapes what is printed, in every template, and knows no name that is not given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("termwise.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def scripts() -> list[dict[str, Any]]:
    """The charting library and what the page does with it, with the hashes by which the page's policy lets them run."""
    from markupsafe import Markup

    folder = resources.files("termwise.report")
    found = []
    for name in ("static/echarts.min.js", "templates/page.js"):
        code = folder.joinpath(name).read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        found.append({"code": Markup(code), "hash": f"sha256-{digest}"})
    return found


def _context(section: Section, *, static: bool) -> dict[str, Any]:
    """Everything the template prints, as text and numbers."""
    result, sample = section.decomposition, section.sample
    pictures = [over(p, section.picture) for p in result.pictures(sample)]
    summary = getattr(result, "summary", str)
    return {
        "heading": section.heading,
        "source": section.source,
        "note": section.note,
        "label": "", "whole": "", "of": "", "tiles": [],
        "summary": _line(summary()),
        # what people look at before they read numbers
        "first": [markup(p, static) for p in pictures if isinstance(p, Pixels | Words)],
        "more": [markup(p, static) for p in pictures if not isinstance(p, Pixels | Words)],
        "scores": [{"name": n, "percent": f"{100 * p:.1f} %", "width": f"{100 * p:.2f}"} for n, p in section.scores],
        "curve": None if section.curve is None else markup(picture(section.curve, sample), static),
    } | (_numbers(result, sample) if isinstance(result, Decomposition) else {})  # fmt: skip


def _numbers(result: Decomposition, sample: int) -> dict[str, Any]:
    """What a decomposition can say of itself."""
    whole = result.whole
    one = result[sample] if result.by_sample else result
    scalar = whole.ndim == result.by_sample and not whole.is_complex()
    label = getattr(one, "label", None)
    return {
        "label": printable(label(0)) if callable(label) and whole.ndim else "",
        "whole": number(float(one.whole.reshape(-1)[0])) if scalar else f"shape {tuple(whole.shape)}",
        "of": f"sample {sample % len(whole) + 1} of {len(whole)}" if result.by_sample and len(whole) > 1 else "",
        "summary": _line(one.summary()),
        "tiles": _tiles(one),
    }


def _line(text: Any) -> str:
    """A summary of several lines as one."""
    return "; ".join(printable(line) for line in str(text).splitlines())


def _tiles(one: Decomposition) -> list[dict[str, str]]:
    """The numbers of the honest line, to be read at a glance."""
    tiles = [{"name": "adds up to", "value": f"{one.error():.0e}" if one.error() else "0", "hint": "remainder over the whole"}]
    shares = getattr(one, "shares", None)
    if callable(shares) and one.whole.ndim == 1 and one.whole[0] != 0:
        for group, value in shares().items():
            percent = 100 * float(value[0])
            name = "lost by rules" if group == "rules" else group
            text = f"{percent:z.1f} %" if abs(percent) < 10 else f"{percent:z.0f} %"  # z: no "-0.0"
            tiles.append({"name": name, "value": text.replace("-", "\N{MINUS SIGN}"), "hint": "of the whole"})
    tiles.append({"name": "cancellation", "value": f"{one.cancellation():.3g}×", "hint": "sum of |parts| over the whole"})
    return tiles
