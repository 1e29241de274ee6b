"""Formulas as MathML, which browsers draw themselves: no script, no font and no network, in print and for screen readers."""

from __future__ import annotations

from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml


def setup(app: Any) -> dict[str, bool]:
    """A renderer for `html_math_renderer`."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True}


def inline(writer: Any, node: Any) -> None:
    """Within a line."""
    writer.body.append(tex2mathml(node.astext()))
    raise SkipNode


def block(writer: Any, node: Any) -> None:
    """On a line of its own, which moves where it is wider than a phone."""
    writer.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise SkipNode
