"""The mean of rows: their digits are kept, rows without numbers are counted and left out, and what is mixed is said."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from termwise.core.decomposition import Decomposition
from termwise.predictions import Explanation
from termwise.view.mean import mean


def row(whole, **parts):
    return Decomposition(
        torch.tensor([whole], dtype=torch.float64), {n: torch.tensor([v], dtype=torch.float64) for n, v in parts.items()}
    )


def cells(table):
    return {name: numbers for name, *numbers in table.rows}


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e9])
def test_numbers_that_are_alike_keep_their_digits(offset):
    values = offset + torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms, table = mean(row(float(v), a=float(v)) for v in values)
    half = 1.96 * np.std(values.numpy(), ddof=1) / math.sqrt(50)
    m, low, high = cells(table)["a"]
    assert m == pytest.approx(float(values.mean()), rel=1e-12)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-6)
    terms.check()
    assert table.note == ""


@given(st.lists(st.tuples(st.floats(-9, 9), st.none() | st.floats(-9, 9)), min_size=2, max_size=9))
def test_a_part_that_a_row_does_not_have_is_zero_there(found):
    rows = [row(a, a=a) if b is None else row(a + b, a=a, b=b) for a, b in found]
    terms, table = mean(rows)
    if all(b is None for _, b in found):
        assert set(terms.parts) == {"a"}
        return
    values = np.array([b or 0.0 for _, b in found])
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    m = values.mean()
    assert cells(table)["b"] == pytest.approx([m, m - half, m + half], abs=1e-9)
    assert terms.contribution("b").item() == pytest.approx(m, abs=1e-12)


def test_rows_that_hold_no_number_are_left_out_and_counted():
    rows = [row(math.nan, a=1.0), row(2.0, a=2.0), row(4.0, a=math.inf), row(6.0, a=6.0)]
    terms, table = mean(rows)
    assert terms.check().whole.item() == 4.0
    assert table.note == "2 rows hold a number that is not finite, and are left out."
    assert mean(rows[:2])[1].note == "One row holds a number that is not finite, and is left out."
    nothing, table = mean(rows[:1])
    assert nothing.whole.isnan().all()
    assert all(math.isnan(v) for v in cells(table)["whole"])


def test_different_classes_are_said_to_be_averaged_together():
    def why(target, classes=None):
        one = torch.ones(1)
        return Explanation(one, {"input:x": one}, target=torch.tensor([target]), classes=classes)

    assert mean([why(1), why(1)])[1].note == ""
    assert mean([why(i, ["cat", "dog"]) for i in (0, 1, 1)])[1].note == (
        "Rows explain different things, and their parts are averaged together: dog (2), cat (1)."
    )
    assert mean(map(why, range(9)))[1].note.endswith("class 3 (1), 5 more.")
