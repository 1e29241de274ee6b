"""The pages: what a run was and its rows, one row, the rows that failed. Text and numbers for the templates, no markup."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from termwise.report.markup import markup
from termwise.report.page import Section, cards, scripts, templates
from termwise.report.page import page as whole_page
from termwise.report.reading import number
from termwise.report.tokens import printable

from .browsed import Browsed
from .mean import mean
from .query import OPERATORS, PAGE, Query, page

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["complaint", "failed", "mean_of", "row", "row_alone", "rows", "script_name"]

FIRST = 5
"""Failed rows on the first page."""

LETTERS = 200
"""Of a text in the table; its row has the whole."""

MEAN_ROWS = 200
"""A mean is of at most as many rows, which are read one after the other."""


def rows(browsed: Browsed, query: Query, problem: str = "", typed: Mapping[str, str] | None = None) -> str:
    """The first page.

    Args:
        browsed: the results.
        query: which rows.
        problem: what was wrong with the query that was asked instead.
        typed: that query, so that it can be mended in the form.
    """
    places = browsed.order(query)
    at, pages, shown = page(places, query.page)
    failures = len(browsed.errors)
    kinds = browsed.kinds
    told = {name: value for name, value in browsed.results.manifest.items() if name != "columns"}  # they are in the table
    return _rendered(
        "rows.html",
        **_about(browsed),
        query=query,
        problem=problem,
        typed=typed or {},
        operators={name: sign for name, (_, sign) in OPERATORS.items()},
        columns=list(kinds),
        kinds=kinds,
        opens=browsed.results.manifest["decomposes"],
        averages=browsed.averages and bool(len(places)),
        tiles=_tiles(browsed, failures),
        charts=[markup(p) for p in browsed.distributions(query)],
        rows=[_cells(values, kinds) for values in browsed.rows(shown)],
        here=_here(at, len(places)),
        heads=[_head(name, kind, query) for name, kind in kinds.items()],
        pages=_pages(lambda n: query.encoded(page=n), at, pages),
        conditions=[{"text": printable(str(c)), "without": query.without(c)} for c in query.conditions],
        run=[{"name": printable(n), "value": number(v)} for n, v in _leaves(told)],
        failed=_failures(browsed, 0, FIRST),
        failed_count=failures,
    )


def row(browsed: Browsed, query: Query, index: int) -> str | None:
    """The page of one row, with its neighbours in a query's order; None where it has no result."""
    place = browsed.place(index)
    if place is None:
        return None
    places = browsed.order(query)
    found = np.flatnonzero(places == place)
    at = int(found[0]) if found.size else None
    numbers = browsed.table["row"]
    beside = {
        name: numbers[int(places[to])].as_py()
        for name, to in {"previous": -1 if at is None else at - 1, "next": -1 if at is None else at + 1}.items()
        if 0 <= to < len(places)
    }
    sections = [_section(browsed, place)]
    (values,) = browsed.rows([place])
    return _rendered(
        "row.html",
        **_about(browsed),
        index=index,
        query=query,
        beside=beside,
        place="not among the rows that were asked for" if at is None else f"{at + 1:,} of {len(places):,}",
        back=query.encoded(page=(at or 0) // PAGE + 1),
        cards=cards(sections),
        scalars=[{"name": printable(n), "value": number(v)} for n, v in values.items() if v is not None],
    )


def row_alone(browsed: Browsed, index: int) -> str | None:
    """A page of one row that needs no server, to give away."""
    place = browsed.place(index)
    if place is None:
        return None
    section = _section(browsed, place)
    return whole_page([section], title=section.heading, lead=section.source)


def mean_of(browsed: Browsed, query: Query) -> str | None:
    """The page of the mean over the rows that a query lets through, or over some of them; None where there is none."""
    if not browsed.averages:
        return None
    places = browsed.order(query.unsorted())
    numbers = places[browsed.table["whole"].take(places).is_valid().to_numpy()]
    if not len(numbers):
        return None
    chosen = numbers[np.unique(np.linspace(0, len(numbers) - 1, MEAN_ROWS).astype(int))]
    terms, table = mean(browsed.opened(int(place)) for place in chosen)
    of = (
        f"{len(numbers):,} rows" if len(chosen) == len(numbers) else f"{len(chosen):,} rows, evenly spaced among {len(numbers):,}"
    )
    asked = " and ".join([*([f"“{query.text}”"] if query.text else []), *map(str, query.conditions)])
    note = "Each part is the mean of what it adds to a row's whole. The interval (95 %) says how well that mean is known."
    return _rendered(
        "mean.html",
        **_about(browsed),
        back=query.encoded(),
        cards=cards([Section(terms, f"Mean of {of}", printable(asked), note=note)]),
        intervals=markup(table),
    )


def failed(browsed: Browsed, query: Query) -> str:
    """A page of the rows that have no result, with their reasons; of the query, only the page counts."""
    count = len(browsed.errors)
    at, pages, shown = page(np.arange(count, dtype=np.uint32), query.page)
    return _rendered(
        "failed.html",
        **_about(browsed),
        failed=_failures(browsed, int(shown[0]) if len(shown) else 0, PAGE),
        here=_here(at, count),
        pages=_pages(lambda n: f"page={n}", at, pages),
    )


def complaint(title: str, text: str) -> str:
    """A page that says what is wrong."""
    return _rendered("complaint.html", title=title, lead="", footer="", text=text)


def script_name(script: Mapping[str, Any]) -> str:
    """What a script is called in an address: its hash, so that a browser may keep it for ever."""
    name: str = script["hash"].removeprefix("sha256-").translate(str.maketrans("+/", "-_", "="))
    return name


# -- pieces -------------------------------------------------------------------------------------------------------------


def _about(browsed: Browsed) -> dict[str, Any]:
    """Title, lead and foot of every page."""
    manifest = browsed.results.manifest
    dataset = manifest["dataset"]
    have, of = len(browsed.results), dataset["rows"]
    told = f"{have:,} of {of:,} rows have a result, {len(browsed.errors):,} failed"
    if not browsed.results.finished:
        told += (
            f". The run is not finished: this is how far it was at {time.strftime('%H:%M:%S', time.localtime(browsed.looked))}"
        )
    versions = ", ".join(f"{n} {v}" for n, v in manifest["versions"].items())
    named = [manifest["verb"], PurePath(str(manifest["settings"].get("model") or "")).name, PurePath(dataset["path"]).name]
    title = " · ".join(printable(n) for n in named if n)
    return {"title": title, "lead": f"{told}.", "footer": f"Made with {versions}."}


def _section(browsed: Browsed, place: int) -> Section:
    (values,) = browsed.rows([place])
    label = values.get("label")  # a column without a cell is left out
    said = f"the data set says {label}" if label is not None else ""
    source = " · ".join(filter(None, [_about(browsed)["title"], f"row {values['row']}", said]))
    return Section(browsed.opened(place), printable(str(values["key"])), printable(source))


def _tiles(browsed: Browsed, failures: int) -> list[dict[str, str]]:
    """The numbers to be read at a glance."""
    of, have = browsed.results.manifest["dataset"]["rows"], len(browsed.results)
    done = have + failures
    tiles = [
        {"name": "rows", "value": f"{have:,}", "hint": f"of {of:,} in the data set"},
        {"name": "failed", "value": f"{failures:,}", "hint": f"{100 * failures / done if done else 0:.2g} % of those tried"},
        {
            "name": "done",
            "value": f"{100 * done / of if of else 100:.3g} %",
            "hint": "finished" if browsed.results.finished else "not finished",
        },
    ]
    if "error" in browsed.table.column_names and have:
        errors = browsed.table["error"].to_numpy()
        worst = float(np.nanmax(errors)) if np.isfinite(errors).any() else math.nan
        tiles.append({"name": "adds up to", "value": f"{worst:.0e}" if worst else "0", "hint": "worst remainder over the whole"})
    return tiles


def _cells(values: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """A row as the table prints it."""
    texts = {name: "" if v is None else f"{v:,}" if name == "row" else number(v) for name, v in values.items()}
    cells = [
        {"text": text if len(text) <= LETTERS else text[:LETTERS] + "…", "name": name, "words": kinds[name] == "str"}
        for name, text in texts.items()
    ]
    return {"index": values["row"], "cells": cells}


def _head(name: str, kind: str, query: Query) -> dict[str, str]:
    """A head of the table: a link that sorts by it, numbers by the largest first, or turns the order round."""
    by_this = query.sort == name
    descending = not query.descending if by_this else kind != "str"
    sorted_ = "" if not by_this else "descending" if query.descending else "ascending"
    return {
        "name": name,
        "title": printable(name),
        "sorted": sorted_,
        "query": query.encoded(sort=name, descending=descending, page=1),
    }


def _here(at: int, count: int) -> str:
    if not count:
        return "no rows"
    return f"rows {(at - 1) * PAGE + 1:,} to {min(at * PAGE, count):,} of {count:,}"


def _pages(query: Callable[[int], str], at: int, pages: int) -> list[dict[str, Any]]:
    """Links to other pages; None for those that are not there."""
    there = {"first": 1 if at > 1 else None, "previous": at - 1 or None, "next": at + 1, "last": pages}
    return [{"name": n, "query": query(to) if to and to <= pages and to != at else None} for n, to in there.items()]


def _failures(browsed: Browsed, start: int, count: int) -> list[dict[str, str]]:
    shown = browsed.errors.slice(start, count).to_pylist()
    return [{"row": f"{e['row']:,}", "key": printable(str(e["key"])), "reason": printable(str(e["reason"]))} for e in shown]


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every leaf of nested mappings with its dotted path."""
    if not isinstance(value, dict):
        return [(path, "–" if value is None else value)]
    return [leaf for name, inner in value.items() for leaf in _leaves(inner, f"{path}.{name}" if path else name)]


def _rendered(template: str, **context: Any) -> str:
    addresses = [f"/script/{script_name(script)}" for script in scripts()]
    return _templates().get_template(template).render(addresses=addresses, static=False, **context)


@cache
def _templates() -> Environment:
    """Those of the report, and the few of these pages."""
    from jinja2 import ChoiceLoader, PackageLoader

    return templates().overlay(loader=ChoiceLoader([PackageLoader("termwise.view"), PackageLoader("termwise.report")]))
