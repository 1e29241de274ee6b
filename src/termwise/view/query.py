"""Which rows are asked for, in which order, and which page of them: a query string, answered by pure functions over arrow.

    ?text=palace&column=error&is=above&value=1e-3&sort=error&order=descending&page=2

`column`, `is` and `value` come as often as there are conditions; all must hold. Where a cell is empty, no comparison holds but
"is not". A page is looked up in an order of places in the table, which is worked out once for each filter and sort.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

__all__ = ["OPERATORS", "PAGE", "BadQuery", "Condition", "Order", "Query", "kept", "page", "ranked"]

PAGE = 50
"""Rows of a page."""

OPERATORS = {
    "above": ("greater", ">"), "below": ("less", "<"), "least": ("greater_equal", "≥"), "most": ("less_equal", "≤"),
    "equal": ("equal", "="), "other": ("not_equal", "≠"), "has": ("match_substring", "contains"),
}  # fmt: skip
"""As a query string says it -> (the function of arrow, as people read it)."""

CONDITIONS, LETTERS = 8, 500
"""A query has at most as many conditions, and a text at most as many letters."""

Order = NDArray[np.uint32]


class BadQuery(ValueError):
    """A query that cannot be answered; the message says why, to whoever typed it."""


@dataclass(frozen=True)
class Condition:
    """What one column must be.

    Attributes:
        column: its name.
        operator: a key of `OPERATORS`.
        value: as it was typed; empty stands for an empty cell, nan for what is no number.
    """

    column: str
    operator: str
    value: str

    def __str__(self) -> str:
        """As people read it."""
        return f"{self.column} {OPERATORS[self.operator][1]} {self.value or 'empty'}"


@dataclass(frozen=True)
class Query:
    """Everything that a query string says.

    Attributes:
        text: must be in one of the columns of text, in upper or lower case.
        conditions: all of them hold.
        sort: a column; the order of the data set when empty.
        descending: largest first. What is empty or no number comes last either way.
        page: from 1; one that is not there stands for the last.
    """

    text: str = ""
    conditions: tuple[Condition, ...] = ()
    sort: str = ""
    descending: bool = False
    page: int = 1

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]]) -> Query:
        """What the pairs of a query string say; names that mean nothing here are passed over.

        Raises:
            BadQuery: for what nothing here could have written.

        Example:
            >>> Query.parse([("column", "error"), ("is", "above"), ("value", "1e-3"), ("page", "2")]).conditions
            (Condition(column='error', operator='above', value='1e-3'),)
        """
        pairs = list(pairs)
        last = dict(pairs)
        several = {name: [v.strip() for n, v in pairs if n == name] for name in ("column", "is", "value")}
        if len({len(values) for values in several.values()}) > 1:
            raise BadQuery("every condition needs a column, a comparison and a value")
        conditions = []
        for column, operator, value in zip(*several.values(), strict=True):
            if not column and value:
                raise BadQuery(f"which column should be compared with {value}?")
            if column and operator not in OPERATORS:
                raise BadQuery(f"there is no comparison {operator!r}: choose from {', '.join(OPERATORS)}")
            if column:
                conditions.append(Condition(column, operator, value))
        if len(conditions) > CONDITIONS:
            raise BadQuery(f"{len(conditions)} conditions are too many: at most {CONDITIONS}")
        text, number = last.get("text", "").strip(), last.get("page", "1")
        if max(map(len, (text, *several["value"]))) > LETTERS:
            raise BadQuery(f"a text to look for has at most {LETTERS} letters")
        if not (number.isascii() and number.isdecimal() and len(number) < 10 and int(number)):
            raise BadQuery(f"a page is a number from 1, got {number!r}")
        down = last.get("order") == "descending"
        return cls(text, tuple(dict.fromkeys(conditions)), last.get("sort", ""), down, int(number))

    def encoded(self, **changes: Any) -> str:
        """The query string of this query, with some of its attributes changed.

        Example:
            >>> Query(text="a b").encoded(sort="error", descending=True)
            'text=a+b&sort=error&order=descending'
        """
        new = replace(self, **changes)
        pairs = [("text", new.text)] if new.text else []
        for c in new.conditions:
            pairs += [("column", c.column), ("is", c.operator), ("value", c.value)]
        if new.sort:
            pairs += [("sort", new.sort)] + ([("order", "descending")] if new.descending else [])
        return urlencode(pairs + ([("page", str(new.page))] if new.page > 1 else []))

    def without(self, condition: Condition) -> str:
        """The query string without one of the conditions."""
        return self.encoded(conditions=tuple(c for c in self.conditions if c != condition), page=1)

    def unsorted(self) -> Query:
        """Its filter alone."""
        return Query(self.text, self.conditions)

    @property
    def filters(self) -> bool:
        """Whether some rows may be left out."""
        return bool(self.text or self.conditions)


def kept(table: Any, query: Query) -> Order:
    """The places of the rows of a table that a query's filter lets through, from the first to the last.

    Raises:
        BadQuery: no such column, or a value that the column cannot be compared with.

    Cost: O(rows).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    masks = [_holds(table, condition) for condition in query.conditions]
    if query.text:
        texts = [table[field.name] for field in table.schema if pa.types.is_string(field.type)]
        found = [pc.match_substring(column, query.text, ignore_case=True).fill_null(False) for column in texts]
        masks.append(_all(found, pc.or_) if found else pa.array([False] * len(table)))
    if not masks or not len(table):  # a table without rows has columns without a type
        return np.arange(len(table), dtype=np.uint32)
    places: Order = pc.indices_nonzero(_all(masks, pc.and_)).to_numpy()
    return places.astype(np.uint32)


def ranked(table: Any, query: Query, places: Order) -> Order:
    """Some places of a table in the order of a query. Rows that are alike stay as they are.

    Raises:
        BadQuery: no such column.

    Cost: O(n log n) for n places.
    """
    import pyarrow.compute as pc

    if not query.sort:
        return places
    _known(table, query.sort)
    column = table[query.sort] if len(places) == len(table) else table[query.sort].take(places)
    order = pc.sort_indices(column, sort_keys=[("", "descending" if query.descending else "ascending")])
    found: Order = places[order.to_numpy()]
    return found


def page(places: Order, number: int) -> tuple[int, int, Order]:
    """One page of an order.

    Returns:
        (its number, number of pages, its places). There is always a page, which may be empty.

    Example:
        >>> page(np.arange(120, dtype=np.uint32), 9)[:2]
        (3, 3)
    """
    pages = max(1, -(-len(places) // PAGE))
    number = min(number, pages)
    return number, pages, places[(number - 1) * PAGE : number * PAGE]


def _all(masks: Sequence[Any], join: Any) -> Any:
    first, *rest = masks
    for mask in rest:
        first = join(first, mask)
    return first


def _holds(table: Any, condition: Condition) -> Any:
    """A mask of the rows where a condition holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    _known(table, condition.column)
    column, value = table[condition.column], condition.value
    function, sign = OPERATORS[condition.operator]
    kind = column.type
    if not value:
        if condition.operator not in ("equal", "other"):
            raise BadQuery(f"{condition.column} {sign} what? Give a value")
        empty = column.is_null()
        if pa.types.is_string(kind):
            empty = pc.or_(empty, pc.equal(column, "").fill_null(True))
        return empty if condition.operator == "equal" else pc.invert(empty)
    if pa.types.is_null(kind):  # of a run that has no rows yet
        return pa.array([False] * len(table))
    if pa.types.is_string(kind) or pa.types.is_boolean(kind):
        allowed = ("equal", "other", "has") if pa.types.is_string(kind) else ("equal", "other")
        if condition.operator not in allowed:
            signs = ", ".join(OPERATORS[name][1] for name in allowed)
            raise BadQuery(f"{condition.column} is no number and cannot be {sign} {value}: it takes {signs}")
        if condition.operator == "has":
            return pc.match_substring(column, value, ignore_case=True).fill_null(False)
        wanted: Any = value if pa.types.is_string(kind) else _truth(condition)
    elif condition.operator == "has":
        raise BadQuery(f"{condition.column} is a number and contains nothing: compare it by =, ≠, <, >, ≤ or ≥")
    else:
        wanted = _number(condition)
        if wanted != wanted:
            return _no_number(column, condition)
        if pa.types.is_floating(kind):
            wanted = float(wanted)
        elif isinstance(wanted, float):
            column = column.cast(pa.float64(), safe=False)
    return pc.call_function(function, [column, pa.scalar(wanted)]).fill_null(condition.operator == "other")


def _no_number(column: Any, condition: Condition) -> Any:
    """Whether a cell is NaN, which nothing equals."""
    import pyarrow as pa
    import pyarrow.compute as pc

    nan = pc.is_nan(column.cast(pa.float64(), safe=False)).fill_null(False)
    if condition.operator in ("equal", "other"):
        return nan if condition.operator == "equal" else pc.invert(nan)
    raise BadQuery(f"nan is neither above nor below anything: ask for {condition.column} = nan, or ≠ nan")


def _number(condition: Condition) -> int | float:
    """The value as a number; a whole one stays exact."""
    text = condition.value.replace("\N{MINUS SIGN}", "-")  # as the page prints it
    for kind in (int, float):
        try:
            found = kind(text)
        except ValueError:
            continue
        return found if kind is float or abs(found) < 2**63 else float(found)
    raise BadQuery(f"{condition.column} is a number, and {condition.value!r} is none")


def _truth(condition: Condition) -> bool:
    found = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(condition.value.lower())
    if found is None:
        raise BadQuery(f"{condition.column} is true or false, not {condition.value!r}")
    return found


def _known(table: Any, column: str) -> None:
    if column not in table.column_names:
        raise BadQuery(f"there is no column {column!r}: choose from {', '.join(table.column_names)}")
