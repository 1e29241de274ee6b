"""What every result outside of the predictions shows of itself: drawn, read, quick, of a bearable size, and with its remainder."""

import json
import time
from functools import cache

import pytest

import termwise
from termwise.core import Decomposition
from termwise.core.pictures import MANY, Bars, Line, Lines, Matrix, Pictured, Points, Steps, Waterfall
from termwise.report import Section, charts, page, reading

from .rooms import MAKERS

ROOMS = ["functions", "weights", "computation", "layers", "optimizers"]
made = cache(lambda name: MAKERS[name]())

results = pytest.mark.parametrize("name", MAKERS)


def every(pictures):
    """Those of sliders one by one."""
    for picture in pictures:
        yield from every(picture.pictures) if isinstance(picture, Steps) else [picture]


def test_every_class_that_can_be_looked_at_has_a_row():
    shown = {name.partition(",")[0] for name in MAKERS} | {"functions.MultiStagePINN"}  # a Staged, as MultiStage is
    found = set()
    for room in ROOMS:
        face = __import__(f"termwise.{room}", fromlist=["x"])
        found |= {f"{room}.{n}" for n in face.__all__ if isinstance(v := getattr(face, n), type) and issubclass(v, Pictured)}
    assert len(found) > 25
    assert found <= shown


@results
def test_it_is_drawn_everywhere(name):
    result = made(name)
    start = time.perf_counter()
    pictures = result.pictures()
    assert time.perf_counter() - start < 1
    for picture in every(pictures):
        json.dumps(charts.options(picture), allow_nan=False)
        assert reading.sentence(picture)
        assert "nan" not in picture.note
        if isinstance(picture, Matrix):
            assert max(len(picture.rows), len(picture.columns)) <= 64
        if isinstance(picture, Bars):
            assert len(picture.names) * len(picture.values) >= 2
            assert len(picture.names) <= MANY
        if isinstance(picture, Points):
            assert len(picture.names) <= 500
        if isinstance(picture, Lines):
            assert all(len(line.x) <= 520 for line in picture.lines)
            assert picture.x
            assert picture.y
    assert all(picture.title for picture in pictures)
    assert result.plot().axes
    assert "tw-chart" in page([Section(result)])


@results
def test_a_remainder_is_never_hidden(name):
    result = made(name)
    if not isinstance(result, Decomposition):
        return
    roles = [line.role for p in every(result.pictures()) if isinstance(p, Lines) for line in p.lines]
    bars = [n for p in every(result.pictures()) if isinstance(p, Bars) for n in p.names]
    steps = [b.kind for p in every(result.pictures()) if isinstance(p, Waterfall) for b in p.bars]
    fields = [p.title + p.value for p in every(result.pictures()) if isinstance(p, Matrix)]
    notes = [p.note for p in every(result.pictures())]
    small = result.error() < 1e-3
    assert (
        "remainder" in [*roles, *bars, *steps]
        or any("remainder" in f for f in fields)
        or any("leave over" in n for n in notes)
        or (steps and small)
    )


@results
def test_a_sample_that_is_not_there_is_refused(name):
    result = made(name)
    if isinstance(result, Decomposition) and result.by_sample:
        with pytest.raises((ValueError, IndexError), match=r"out of (range|bounds)"):
            result.pictures(10**6)


def test_what_is_not_shown_is_said():
    """Of more layers than a chart holds."""
    from dataclasses import replace

    small = made("weights.Compressed")
    row = small.layers[0]
    many = replace(small, layers=[replace(row, layer=f"layer {i}", error=float(i)) for i in range(100)])
    bars, table = many.pictures()[:2]
    assert list(bars.names) == [f"layer {i}" for i in range(60, 100)]
    assert "The 40 of 100 that spoil most are shown." in bars.note
    assert len(table.rows) == 100
    assert table.rows[0][0] == "layer 99"


def test_a_notebook_shows_nothing_of_what_was_not_fitted():
    assert termwise.MultiStage(2)._repr_html_() is None
    with pytest.raises(RuntimeError, match="call fit first"):
        termwise.MultiStage(2).plot()


def test_stems_rise_from_the_axis_in_both_ways_of_drawing():
    picture = Lines("t", [Line("a", [1, 4], [2.0, 3.0], stems=True), Line("b", [2], [1.0], stems=True)], log_y=True)
    kinds = [(s["type"], s["barGap"]) for s in charts.options(picture)["series"]]
    assert kinds == [("bar", "-100%")] * 2
    from termwise.report import figures

    (axis,) = figures.figure([picture]).axes
    first, second = (c.get_segments() for c in axis.collections)
    assert [s[1].tolist() for s in first] == [[1.0, 2.0], [4.0, 3.0]]
    assert all(0 < s[0][1] < s[1][1] for s in [*first, *second])


def test_matrices_are_compared_in_the_same_colours():
    picture = Matrix("t", [[1.0, -0.5]], ["r"], ["a", "b"], top=4.0)
    scale = charts.options(picture)["visualMap"]
    assert (scale["min"], scale["max"]) == (-4.0, 4.0)
