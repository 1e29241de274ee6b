"""Large matrices in few fields, and terms in their order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import termwise as tw
from termwise.core.mosaic import averaged, blocks, mosaic
from termwise.core.series import series


@given(st.integers(1, 300), st.integers(1, 64))
def test_blocks_are_all_of_it_in_order_and_of_nearly_one_size(size, most):
    found = blocks(size, most)
    assert [i for a, b in found for i in range(a, b)] == list(range(size))
    assert len(found) == min(size, most)
    sizes = {b - a for a, b in found}
    assert max(sizes) - min(sizes) <= 1


def test_fields_are_means_and_products_are_products_of_means():
    w = torch.randn(70, 33, dtype=torch.float64)
    picture = mosaic("", w, most=10, value="weight")
    slow = [[float(w[a:b, c:d].mean()) for c, d in blocks(33, 10)] for a, b in blocks(70, 10)]
    torch.testing.assert_close(torch.tensor(picture.values, dtype=torch.float64), torch.tensor(slow, dtype=torch.float64))
    assert (picture.rows[0], picture.columns[0]) == ("0–6", "0–2")
    assert "mean of 7 by 4 numbers" in picture.note
    left, right = torch.randn(70, 5, dtype=torch.float64), torch.randn(5, 33, dtype=torch.float64)
    fast = averaged(left, 0, 10) @ averaged(right, 1, 10)
    torch.testing.assert_close(fast, torch.tensor(mosaic("", left @ right, most=10).values, dtype=torch.float64))


def test_squares_do_not_cancel_and_have_one_colour():
    w = torch.tensor([[3.0, -3.0], [4.0, -4.0]])
    assert mosaic("", w, most=1).values == [[0.0]]
    picture = mosaic("", w, most=1, squares=True)
    assert picture.values == [[pytest.approx(12.5**0.5)]]
    assert mosaic("", w).signed
    assert not picture.signed


def test_a_small_matrix_is_itself():
    w = torch.randn(4, 5)
    assert torch.equal(torch.tensor(mosaic("", w).values), w)
    assert mosaic("", w, note="n").note == "n"


def test_what_is_left_ends_at_the_remainder():
    whole = torch.randn(3, 4, dtype=torch.float64)
    d = tw.Decomposition(whole, {f"p{i}": torch.randn(3, 4, 2, dtype=torch.float64) for i in range(5)})
    terms, left = series(d, 2, title="t", x="k").lines
    assert left.role == "remainder"
    assert left.y[-1] == pytest.approx(float(d.remainder[2].norm()))
    assert left.y[1] == pytest.approx(float((whole - d.contribution("p0") - d.contribution("p1"))[2].norm()))
    assert terms.y[3] == pytest.approx(float(d.contribution("p3")[2].norm()))
    with pytest.raises(ValueError, match="sample 3 is out of range"):
        series(d, 3, title="t", x="k")
