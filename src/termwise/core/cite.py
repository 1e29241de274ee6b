"""Whose work was used: the papers behind a result, a class, a function or a name.

    cite(thing) = the rows of papers.toml and sources.toml that name it

A row names a thing by its key, by what to call (`api`), by the classes of what comes out (`results`), and by what such a
result has in its field `rules` or `method` (`names`). Nothing else is guessed: what no row names is said to be on no record.
"""

from __future__ import annotations

import difflib
import html
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from .claims import papers

__all__ = ["Citation", "Cited", "cite"]

TITLE = "Termwise: take any neural network apart, term by term, and check that the terms add up"
AUTHORS = "The Termwise authors"


@dataclass(frozen=True)
class Cited:
    """One paper, and what was used of it.

    Attributes:
        key: of its row.
        row: title, authors, year, arxiv or doi.
        why: what of the thing names it.
    """

    key: str
    row: Mapping[str, Any]
    why: str

    @property
    def url(self) -> str:
        """Where to read it."""
        return f"https://arxiv.org/abs/{self.row['arxiv']}" if "arxiv" in self.row else f"https://doi.org/{self.row['doi']}"

    def __str__(self) -> str:
        authors = self.row["authors"]
        return f"{_listed(authors)} ({self.row['year']}). {self.row['title']}. {self.url}"

    def bibtex(self) -> str:
        """An entry of the row's kind with where it was published; @misc where it is cited as on arXiv."""
        row = self.row
        facts = {"title": f"{{{_tex(row['title'])}}}", "author": " and ".join(map(_tex, row["authors"])), "year": row["year"]}
        facts |= {field: _tex(row[field]) for field in ("journal", "booktitle", "publisher") if field in row}
        if "arxiv" in row:
            facts |= {"eprint": row["arxiv"], "archiveprefix": "arXiv", "url": self.url}
        if "doi" in row:
            facts |= {"doi": row["doi"]}
        return _entry(row.get("kind", "misc"), self.key, facts)


@dataclass(frozen=True)
class Citation:
    """What to cite: Termwise, and the papers of what was used.

    Attributes:
        papers: in order of their year.
        unknown: what was used and is on no record, in words.
    """

    papers: tuple[Cited, ...]
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [_ourselves()]
        for paper in self.papers:
            lines += [str(paper), f"    for {paper.why}"]
        return "\n".join([*lines, *self._notes()])

    __repr__ = __str__

    def _notes(self) -> list[str]:
        return [f"No paper is on record for {what}; its documentation may name sources." for what in self.unknown]

    def bibtex(self) -> str:
        """The same as BibTeX, ready for a file."""
        ours = _entry(
            "software", "termwise", {"title": f"{{{TITLE}}}", "author": f"{{{AUTHORS}}}", "version": _house().__version__}
        )
        return "\n".join([ours, *(paper.bibtex() for paper in self.papers)])

    def _repr_html_(self) -> str:
        items = [f"<li>{html.escape(_ourselves())}</li>"]
        for paper in self.papers:
            row = paper.row
            link = f'<a href="{html.escape(paper.url)}">{html.escape(row["title"])}</a>'
            text = f"{html.escape(_listed(row['authors']))} ({row['year']}). {link}"
            items.append(f"<li>{text}<br><small>for {html.escape(paper.why)}</small></li>")
        return f"<ul>{''.join(items)}</ul>" + "".join(f"<p><small>{html.escape(note)}</small></p>" for note in self._notes())


def cite(*things: Any) -> Citation:
    """Name the papers of what was used, and Termwise itself.

    Args:
        *things: results (an `Explanation` by its rules, a `Compressed` or `Accelerated` by its method, any other by its class),
            classes and functions of this library (all papers that they offer methods of), or names: the key of a paper, a
            function, a rule set, a method. Without any, Termwise alone.

    Returns:
        A `Citation`: prints as a list that says what each paper is cited for, and has `bibtex()`.

    Raises:
        ValueError: for a name that is in no row (the nearest is suggested).
        TypeError: for what is not of this library.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> why = tw.explain(model, torch.randn(2, 4), rules="deep-taylor")
        >>> [paper.key for paper in tw.cite(why).papers]
        ['deep-taylor']
        >>> print(tw.cite("curing").papers[0])
        Sanghyeon Park and Soo-Mook Moon (2025). CURing Large Models: Compression via CUR Decomposition. https://arxiv.org/abs/2501.04211
    """
    found: dict[str, Cited] = {}
    unknown: list[str] = []
    for thing in things:
        for names, used in _used(thing):
            hits = [hit for name in names for hit in _index().get(name, ())]
            for key, why in hits:
                found.setdefault(key, Cited(key, _rows()[key], f"{used}{f': {why}' if why else ''}"))
            if not hits and used not in unknown:
                unknown.append(used)
    ordered = sorted(found.values(), key=lambda paper: (paper.row["year"], paper.key))
    return Citation(tuple(ordered), tuple(unknown))


# -- what a thing goes by ---------------------------------------------------------------------------------------------


def _used(thing: Any) -> Iterator[tuple[list[str], str]]:
    """What was used, each as the names it may have in a row, and in words."""
    if isinstance(thing, str):
        name = thing.removeprefix("tw.").removeprefix("termwise.")
        if name not in _index():
            close = difflib.get_close_matches(name, _index(), n=1)
            raise ValueError(
                f"no paper is known by {thing!r}" + (f": did you mean {close[0]!r}?" if close else ": see `termwise papers`")
            )
        yield [name], f'"{name}"'
        return
    if inspect.isroutine(thing) or inspect.isclass(thing) or inspect.ismodule(thing):
        yield _public(thing), getattr(thing, "__qualname__", thing.__name__)
        return
    ours = [cls for cls in type(thing).__mro__ if cls.__module__.split(".")[0] == "termwise"]
    if not ours:
        raise TypeError(
            f"a {type(thing).__name__} does not say what made it: give a result of this library, one of its functions, or a name"
        )
    fields = [(field, getattr(thing, field, None)) for field in ("rules", "method")]
    by_class = next((names for names in map(_public, ours) if any(name in _index() for name in names)), [])
    if by_class or not any(value for _, value in fields):
        yield by_class, type(thing).__name__
    for field, value in fields:
        if isinstance(value, str) and value:
            yield [_plain(value)], f'{field}="{value}"'
        elif value is not None and type(value).__module__.startswith("termwise."):
            yield _public(type(value)), f"{field}={type(value).__name__}"


def _public(thing: Any) -> list[str]:
    """`weights.cur` of the function in weights/cur.py; with the package where there is one, `functions.higher_order`."""
    if inspect.ismodule(thing):
        module, name = thing.__name__, ""
    else:
        module, name = getattr(thing, "__module__", None) or "", thing.__qualname__.partition(".")[0]
    if module.split(".")[0] != "termwise":
        raise TypeError(f"{name or module} is not of this library")
    parts = module.split(".")[1:]
    room, package = ".".join(parts[:1]), ".".join(parts[:2])
    if not name:
        return [package]
    inside = [package, f"{package}.{name}"] if len(parts) > 2 else []
    return [name, *inside] if not room else [f"{room}.{name}", *inside]


def _plain(name: str) -> str:
    """`smoothgrad (absolute)` and `integrated gradients` as the functions are called."""
    return name.partition(" (")[0].replace(" ", "_")


# -- the tables -------------------------------------------------------------------------------------------------------


@cache
def _rows() -> dict[str, dict[str, Any]]:
    """Both tables by key."""
    text = resources.files("termwise.core").joinpath("sources.toml").read_text("utf-8")
    return papers() | {row["key"]: row for row in tomllib.loads(text)["paper"]}


@cache
def _index() -> dict[str, list[tuple[str, str]]]:
    """Name -> the rows that have it, each with a reason where the name alone is none."""
    verbs: dict[str, str] = _house()._VERBS
    index: dict[str, list[tuple[str, str]]] = {}

    def enter(name: str, key: str, why: str = "") -> None:
        rows = index.setdefault(name, [])
        if key not in [row for row, _ in rows]:
            rows.append((key, why))

    for key, row in _rows().items():
        for name, why in row.get("names", {}).items():
            enter(name, key, why)
        enter(key, key)
        for name in [n.removeprefix("termwise.") for n in (*row["api"], *row.get("results", ()))]:
            last = name.rpartition(".")[2]
            enter(name, key)
            enter(f"{verbs[name]}.{name}" if name in verbs else last, key)
    return index


def _house() -> Any:
    """The package around, for its version and the rooms of its verbs: `core` imports no room, and this loads none."""
    return importlib.import_module("termwise")


# -- in words ---------------------------------------------------------------------------------------------------------


def _ourselves() -> str:
    return f"{AUTHORS}. {TITLE}. Version {_house().__version__}."


def _listed(authors: list[str]) -> str:
    return authors[0] if len(authors) == 1 else f"{', '.join(authors[:-1])} and {authors[-1]}"


def _tex(text: str) -> str:
    """Characters that mean something to TeX as themselves."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _entry(kind: str, key: str, facts: Mapping[str, Any]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in facts.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"]) + "\n"
