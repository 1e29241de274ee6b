"""Bars count every value once, under the name of where it lies."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from termwise.view.distribution import STEPS, distribution

SIZES = st.floats(0, 1e300) | st.sampled_from([0.0, 1e-16, 1e-3, 1.0, math.nan, math.inf, 5e-324])
NUMBERS = st.floats(-1e308, 1e308) | st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf])


def counted(values, **how):
    bars = distribution("x", np.array(values, dtype=np.float64), **how)
    return dict(zip(bars.names, bars.values["rows"], strict=True))


@given(st.lists(SIZES, max_size=30))
def test_powers_of_ten(values):
    found = counted(values, by_tens=True)
    assert sum(found.values()) == len(values)
    assert len(found) <= STEPS + 2
    finite = [v for v in values if math.isfinite(v)]
    assert found.get("none", 0) == len(values) - len(finite)
    assert found.get("0", 0) == finite.count(0)
    starts = [float(n) for n in found if n not in ("none", "0")]
    for start, end in zip(starts, [*starts[1:], math.inf], strict=False):
        if start > 1e-300:  # below, a power of ten is no number of its own
            assert found[f"1e{round(math.log10(start))}"] == sum(start <= v < end for v in finite if v)


@given(st.lists(NUMBERS, max_size=60))
def test_steps(values):
    found = counted(values)
    bars = distribution("x", np.array(values, dtype=np.float64))
    assert sum(bars.values["rows"]) == len(values)
    assert len(bars.names) <= STEPS + 3
    assert found.get("none", 0) == sum(not math.isfinite(v) for v in values)


def test_steps_are_where_their_names_say():
    expected = [2, 0, 0, 2, 0, 0, 0, 0, 0, 1]
    assert counted([0.0, 0.05, 0.31, 0.32, 1.0]) == {f"{i / 10:.2f}": n for i, n in enumerate(expected)}
    assert counted([3.0] * 4) == {"3": 4}
    assert counted([]) == {}


def test_what_lies_far_out_has_a_bar_at_each_end():
    found = counted([*np.linspace(0, 1, 1000), -1e6, 1e6])
    assert next(iter(found)) == "below"
    assert list(found)[-1] == "above"
    assert sum(found.values()) == 1002
    assert 1 <= found["below"] < 8
    assert 1 <= found["above"] < 8
    assert min(n for name, n in found.items() if name not in ("below", "above")) > 90
