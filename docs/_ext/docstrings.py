"""Docstrings are written to be read in the source: `|x|` is an absolute value there and `*shape` an unpacking.

This makes reStructuredText of them. `x` in backticks is code (`default_role` in conf.py); bars and stars outside
backticks and examples are themselves. At the end stand the papers of what is described, as `termwise.cite` knows them.
"""

from __future__ import annotations

import re
from typing import Any

import termwise

MANY = 4
"""Papers that are listed where they are described."""

_CODE = re.compile(r"(``.*?``|`.*?`)")


def setup(app: Any) -> dict[str, bool]:
    """Before napoleon, which makes markup of its own."""
    app.connect("autodoc-process-docstring", escape, priority=100)
    app.connect("autodoc-process-docstring", cited, priority=900)
    return {"parallel_read_safe": True}


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape in place."""
    example = False
    for i, line in enumerate(lines):
        if i and lines[i - 1].strip() == "Returns:":
            # napoleon takes what stands before a colon for a type: here nothing does, the annotation has it
            lines[i] = line = re.sub(r"^(\s*)", r"\1: ", line)
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[i] = "".join(p if p.startswith("`") else re.sub(r"([|*])", r"\\\1", p) for p in _CODE.split(line))


def cited(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The papers, each with what was measured of it; where they are many, how to ask for them."""
    if what not in ("function", "class"):
        return
    papers = termwise.cite(obj).papers
    if len(papers) > MANY:
        lines += ["", f"*Papers*: of {len(papers)} methods; ``tw.cite({name.replace('termwise.', 'tw.')})`` names them."]
    elif papers:
        lines += ["", f"*Papers*: {'; '.join(map(_linked, papers))}."]


def _linked(paper: Any) -> str:
    title = paper.row["title"].replace("*", r"\*")
    text = f"`{title} <{paper.url}>`__ ({paper.row['year']})"
    return f"{text}, :ref:`measured <paper-{paper.key}>`" if "room" in paper.row else text
