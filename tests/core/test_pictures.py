"""Pictures are data: every kind says the same as a chart, as a figure, as a sentence and as a table."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import termwise as tw
from termwise.core.pictures import Bars, Line, Lines, Matrix, Points, Steps, Table, Waterfall
from termwise.core.waterfall import sizes, waterfall
from termwise.report import charts, figures, reading

numbers = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, 0.0])


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), st.booleans())
def test_curves_are_the_same_numbers_everywhere(pairs, log):
    x, y = list(range(len(pairs))), [a for a, _ in pairs]
    picture = Lines("t", [Line("a", x, y), Line("b", x, [b for _, b in pairs], role="remainder")], log_y=log)
    option = charts.options(picture)
    json.dumps(option, allow_nan=False)  # a page must be able to read it
    drawn = [v for _, v in option["series"][0]["data"]]
    assert drawn == [v if math.isfinite(v) and (v > 0 or not log) else None for v in y]
    rows = reading.table(picture).rows
    assert len(rows) == len(pairs)
    assert all(row[0] == place for row, place in zip(rows, x, strict=True))
    assert str([row[1] for row in rows]) == str(y)


@given(st.lists(numbers, min_size=1, max_size=20), st.booleans())
def test_bars_are_the_same_numbers_everywhere(values, signed):
    picture = Bars("t", [str(i) for i in range(len(values))], {"v": values}, signed=signed)
    option = charts.options(picture)
    json.dumps(option, allow_nan=False)
    drawn = [v["value"] if isinstance(v, dict) else v for v in option["series"][0]["data"]]
    assert drawn == [v if math.isfinite(v) else None for v in values]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_beats(points):
    picture = Points("t", [str(i) for i in range(len(points))], *map(list, zip(*points, strict=True)))
    slow = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert {points[i] for i in picture.pareto()} == slow
    assert len(picture.pareto()) == len(slow)


def test_a_waterfall_ends_at_the_whole():
    d = tw.Decomposition(torch.tensor([3.0, 5.0]), {"a": torch.tensor([1.0, 9.0]), "b": torch.tensor([2.0, -4.0])})
    (picture,) = d.pictures(1)
    assert isinstance(picture, Waterfall)
    assert [row[2] for row in reading.table(picture).rows] == [9.0, -4.0, 5.0]
    option = charts.options(picture)["series"][0]["data"]
    assert [o["value"][:2] for o in option] == [[0.0, 9.0], [9.0, 5.0], [0.0, 5.0]]
    assert "the largest is a, 9" in reading.sentence(picture)


def test_sizes_are_norms_of_one_sample():
    whole = torch.randn(3, 4, dtype=torch.complex128)
    parts = {f"p{i}": torch.randn(3, 4, 2, dtype=torch.complex128) for i in range(30)}
    d = tw.Decomposition(whole, parts)
    picture = sizes(d, 2, k=5)
    found = dict(zip(picture.names, picture.values["size"], strict=True))
    assert found["whole"] == pytest.approx(float(whole[2].abs().square().sum().sqrt()))
    assert found["remainder"] == pytest.approx(float((whole[2] - sum(p.sum(-1)[2] for p in parts.values())).norm()))
    assert len(found) == 7
    assert picture.note == "25 smaller parts are not shown"
    assert d.pictures(2)[0].names == sizes(d, 2).names


@pytest.mark.parametrize("sample", [2, -3])
def test_a_sample_that_is_not_there_is_refused(sample):
    for d in (tw.Decomposition(torch.ones(2), {}), tw.Decomposition(torch.ones(2, 2), {})):
        with pytest.raises(ValueError, match=f"sample {sample} is out of range: there are 2"):
            d.plot(sample)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="line 'a' has 2 places, 1 values"):
        Line("a", [1, 2], [1])
    with pytest.raises(ValueError, match="a role is one of term, remainder, chance, whole"):
        Line("a", [1], [1], role="terms")
    with pytest.raises(ValueError, match="series 's' has 1 values for 2 bars"):
        Bars("t", ["a", "b"], {"s": [1]})
    with pytest.raises(ValueError, match="a matrix of 1 rows and 2 columns was given 1 rows"):
        Matrix("t", [[1]], ["r"], ["a", "b"])
    with pytest.raises(ValueError, match="one picture for each position, got 0 for 1"):
        Steps("t", "order", ["0"], [])
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.figure([])
    with pytest.raises(TypeError, match="a str is no kind of picture"):
        figures.figure(["x"])


def test_a_plot_is_a_figure_and_a_page_is_written_whole(tmp_path):
    d = tw.Decomposition(torch.tensor([3.0]), {"a": torch.tensor([1.0])})
    d.plot().savefig(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count("remainder") == 1
    path = d.to_html(tmp_path / "new" / "a.html", title="A <title>")
    assert "<title>A &lt;title&gt;</title>" in path.read_text("utf-8")
    assert "tw-fragment" in d._repr_html_()
    assert waterfall(d).bars[-1].value == 3.0


def test_numbers_are_read_alike():
    assert [reading.number(v) for v in (1.23456, -0.5, math.nan, "a\x1b", 3, True)] == ["1.235", "−0.5", "–", "a·", "3", "True"]
    assert reading.table(Table("t", ["a"], [[1]])).rows == [[1]]
