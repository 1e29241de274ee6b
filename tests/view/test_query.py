"""What a query string asks for, against pandas and plain definitions."""

import math
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.view.query import OPERATORS, PAGE, BadQuery, Condition, Query, kept, page, ranked

LETTERS = "abAB ä%é🙂"
CELLS = {
    "text": (st.text(LETTERS, max_size=3) | st.none(), pa.string()),
    "real": (
        st.sampled_from([0.0, -0.0, 1.5, -2.0, 1e300, 1e-300, math.inf, -math.inf, math.nan]) | st.floats(-3, 3),
        pa.float64(),
    ),
    "whole": (st.integers(-3, 3) | st.sampled_from([2**53, 2**53 + 1]) | st.none(), pa.int64()),
    "true": (st.booleans() | st.none(), pa.bool_()),
}
ROWS = st.lists(st.tuples(*(cells for cells, _ in CELLS.values())), max_size=30)


def table(rows):
    columns = list(zip(*rows, strict=True)) or [[]] * len(CELLS)
    return pa.table({name: pa.array(list(c), kind) for (name, (_, kind)), c in zip(CELLS.items(), columns, strict=True)})


def frame(rows):
    kinds = {"text": "object", "real": "float64", "whole": "Int64", "true": "boolean"}
    columns = list(zip(*rows, strict=True)) or [[]] * len(CELLS)
    return pd.DataFrame({name: pd.Series(list(c), dtype=kind) for (name, kind), c in zip(kinds.items(), columns, strict=True)})


def asked(rows, **query):
    query = Query(**query)
    return ranked(table(rows), query, kept(table(rows), query)).tolist()


@given(ROWS, st.sampled_from(list(CELLS)), st.booleans())
def test_rows_are_sorted_as_pandas_sorts_them(rows, sort, descending):
    expected = frame(rows).sort_values(sort, ascending=not descending, kind="stable", na_position="last").index
    assert asked(rows, sort=sort, descending=descending) == list(expected)


COMPARED = {"above": "gt", "below": "lt", "least": "ge", "most": "le", "equal": "eq", "other": "ne"}


@given(
    ROWS,
    st.sampled_from(["real", "whole"]),
    st.sampled_from(list(COMPARED)),
    st.sampled_from(["0", "1.5", "-2", "\N{MINUS SIGN}2", "1e300", "inf", str(2**53 + 1)]),
)
def test_numbers_are_compared_as_pandas_compares_them(rows, column, operator, value):
    number = float(value.replace("\N{MINUS SIGN}", "-"))
    if column == "whole":
        number = int(number) if number.is_integer() and math.isfinite(number) else number
        number = 2**53 + 1 if value == str(2**53 + 1) else number  # exact
        definition = {
            "gt": lambda v: v > number,
            "lt": lambda v: v < number,
            "ge": lambda v: v >= number,
            "le": lambda v: v <= number,
            "eq": lambda v: v == number,
            "ne": lambda v: v != number,
        }[COMPARED[operator]]
        expected = [i for i, r in enumerate(rows) if (operator == "other" if r[2] is None else definition(r[2]))]
    else:
        mask = getattr(frame(rows)[column], COMPARED[operator])(number)
        expected = list(np.flatnonzero(mask.to_numpy(dtype=bool)))
    assert asked(rows, conditions=(Condition(column, operator, value),)) == expected


@given(ROWS, st.text(LETTERS, min_size=1, max_size=2).map(str.strip).filter(bool))
def test_texts_are_found_as_pandas_finds_them(rows, text):
    column = frame(rows)["text"].astype("string")
    has = column.str.contains(text, case=False, regex=False).fillna(False)
    assert asked(rows, text=text) == list(np.flatnonzero(has))
    assert asked(rows, conditions=(Condition("text", "has", text),)) == list(np.flatnonzero(has))
    equal = [i for i, r in enumerate(rows) if r[0] == text]
    assert asked(rows, conditions=(Condition("text", "equal", text),)) == equal
    assert asked(rows, conditions=(Condition("text", "other", text),)) == [i for i in range(len(rows)) if i not in equal]


@given(ROWS)
def test_what_is_empty_or_no_number_is_found_too(rows):
    empty = lambda column, operator, value="": asked(rows, conditions=(Condition(column, operator, value),))
    nothing = {"text": lambda v: not v, "whole": lambda v: v is None, "true": lambda v: v is None, "real": lambda v: v is None}
    for place, column in enumerate(CELLS):
        expected = [i for i, r in enumerate(rows) if nothing[column](r[place])]
        assert empty(column, "equal") == expected
        assert empty(column, "other") == [i for i in range(len(rows)) if i not in expected]
    nan = [i for i, r in enumerate(rows) if math.isnan(r[1])]
    assert empty("real", "equal", "nan") == nan
    assert empty("real", "other", "nan") == [i for i in range(len(rows)) if i not in nan]
    assert empty("true", "equal", "yes") == [i for i, r in enumerate(rows) if r[3]]
    assert empty("true", "other", "true") == [i for i, r in enumerate(rows) if not r[3]]


@given(ROWS, st.sampled_from(list(CELLS)))
def test_conditions_are_joined_and_the_order_is_of_what_is_left(rows, sort):
    one, two = Condition("real", "least", "0"), Condition("whole", "other", "1")
    both = asked(rows, conditions=(one, two), sort=sort)
    alone = [asked(rows, conditions=(c,)) for c in (one, two)]
    assert both == [i for i in asked(rows, sort=sort) if i in alone[0] and i in alone[1]]


CONDITIONS = st.builds(
    Condition,
    st.sampled_from(["error", "a b", "ä&=#"]),
    st.sampled_from(list(OPERATORS)),
    st.text("a1& =+#?é", max_size=4).map(str.strip),
)
QUERIES = st.builds(
    Query,
    st.text("a& =+#?é", max_size=4).map(str.strip),
    st.lists(CONDITIONS, max_size=3, unique=True).map(tuple),
    st.sampled_from(["error", "a&b"]),
    st.booleans(),
    st.integers(1, 10**6),
)


@given(QUERIES)
def test_a_query_string_can_be_kept(query):
    assert Query.parse(parse_qsl(query.encoded(), keep_blank_values=True)) == query


def test_a_condition_is_taken_away():
    one, two = Condition("a", "above", "1"), Condition("a", "above", "2")
    query = Query("t", (one, two), "b", True, 7)
    assert Query.parse(parse_qsl(query.without(one))) == Query("t", (two,), "b", True, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("page=0", "a page is a number from 1, got '0'"), ("page=-1", "a page is a number"), ("page=%D9%A2", "a page is a number"),
        ("page=9999999999", "a page is a number"), ("page=", "a page is a number"),
        ("column=a&is=above", "needs a column, a comparison and a value"),
        ("column=&is=above&value=3", "which column should be compared with 3?"),
        ("column=a&is=near&value=3", "no comparison 'near': choose from above, below"),
        ("&".join(f"column=a&is=above&value={i}" for i in range(9)), "9 conditions are too many: at most 8"),
        (f"text={'x' * 501}", "at most 500 letters"),
    ],
)  # fmt: skip
def test_query_strings_that_nothing_here_wrote(text, message):
    with pytest.raises(BadQuery, match=message.replace("?", r"\?")):
        Query.parse(parse_qsl(text, keep_blank_values=True))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query(sort="nothing"), "no column 'nothing': choose from text, real, whole, true"),
        (Query(conditions=(Condition("nothing", "equal", "1"),)), "no column 'nothing'"),
        (Query(conditions=(Condition("real", "above", "much"),)), "real is a number, and 'much' is none"),
        (Query(conditions=(Condition("real", "has", "1"),)), "real is a number and contains nothing"),
        (Query(conditions=(Condition("real", "above", "nan"),)), "nan is neither above nor below"),
        (Query(conditions=(Condition("real", "above", ""),)), "real > what\\? Give a value"),
        (Query(conditions=(Condition("text", "above", "a"),)), "text is no number and cannot be > a: it takes =, ≠, contains"),
        (Query(conditions=(Condition("true", "has", "a"),)), "true is no number and cannot be contains a: it takes =, ≠"),
        (Query(conditions=(Condition("true", "equal", "maybe"),)), "true is true or false, not 'maybe'"),
    ],
)  # fmt: skip
def test_what_a_table_cannot_be_asked(query, message):
    rows = table([("a", 1.0, 2, True)])
    with pytest.raises(BadQuery, match=message):
        ranked(rows, query, kept(rows, query))


@given(st.integers(0, 1000), st.integers(1, 30))
def test_pages_are_all_rows_once(count, number):
    places = np.arange(count, dtype=np.uint32)
    at, pages, shown = page(places, number)
    assert 1 <= at <= pages
    assert at == min(number, pages)
    assert len(shown) <= PAGE
    assert np.concatenate([page(places, i + 1)[2] for i in range(pages)]).tolist() == places.tolist()
