"""What results outside of the predictions show of themselves: quick, of a bearable size, with the remainder, and the right numbers."""

import json
import time
from functools import cache

import pytest
import torch

import termwise
from termwise import weights
from termwise.core import Decomposition
from termwise.core.mosaic import averaged
from termwise.core.pictures import MANY, Bars, Line, Lines, Matrix, Pictured, Points, Steps, Waterfall
from termwise.report import Section, charts, page, reading

from .browser import faults, look, needs_chromium, opened
from .rooms import MAKERS

made = cache(lambda name: MAKERS[name]())

results = pytest.mark.parametrize("name", MAKERS)


def every(pictures):
    """Those of sliders one by one."""
    for picture in pictures:
        yield from every(picture.pictures) if isinstance(picture, Steps) else [picture]


@results
def test_it_is_drawn_quickly_and_of_a_bearable_size(name):
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
    with pytest.raises(ValueError, match="call fit first"):
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


# -- the same numbers, the slow way -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n in MAKERS if "Factorization" in n or n in ("weights.CURDecomposition", "weights.CPDecomposition")]
)
def test_what_each_number_of_terms_leaves_is_what_it_leaves(name):
    f = made(name)
    if f.form == "masked":
        fields = averaged(averaged(f.factors["kept"], 0), 1)
        assert f.pictures()[0].values == fields.tolist()
        assert f.pictures()[1].values == averaged(averaged(f.remainder.square(), 0), 1).sqrt().tolist()
        return
    terms, matrices, rest = f.pictures()[:3]
    left = next(line for line in terms.lines if line.role == "remainder")
    assert left.y[0] == pytest.approx(float(f.whole.norm()))
    assert left.y[-1] == pytest.approx(float(f.remainder.norm()), rel=1e-6)
    if f.form in ("low_rank", "cur", "cp"):
        each = next(iter(f.parts.values())).flatten(1, -2) if f.whole.ndim == 4 else next(iter(f.parts.values()))
        sizes = each.flatten(0, 1).norm(dim=0)
        order = sizes.argsort(descending=True) if f.form == "cp" else torch.arange(len(sizes))
        assert terms.lines[0].y == pytest.approx(sizes[order].tolist())
        k = left.x[len(left.x) // 2]
        slow = (f.whole.flatten(1) - each[..., order[:k]].sum(-1)).norm()
        assert left.y[len(left.x) // 2] == pytest.approx(float(slow))
    made_of = averaged(averaged(f.total().flatten(1), 0, 32), 1, 32)
    torch.testing.assert_close(
        torch.tensor(matrices.pictures[-1].values, dtype=torch.float64), made_of.double(), rtol=1e-5, atol=1e-5
    )
    assert matrices.names[0] == "weight"
    assert all(p.top == matrices.pictures[0].top for p in matrices.pictures)
    assert len(rest.values) <= 64


def test_of_a_large_weight_some_rows_stand_for_all():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(3000, 8, generator=generator), torch.randn(8, 1500, generator=generator)
    f = weights.Factorization(left @ right + torch.randn(3000, 1500, generator=generator), factors={"left": left, "right": right})
    start = time.perf_counter()
    terms = f.pictures()[0]
    assert time.perf_counter() - start < 3
    assert "Of one row in 3." in terms.note
    rest = next(line for line in terms.lines if line.role == "remainder")
    assert rest.y[-1] == pytest.approx(float(f.remainder.norm()), rel=0.01)


def test_modes_are_added_from_the_largest_on():
    s = made("computation.DiagonalSSM")
    steps, missed, poles = s.pictures()
    d = int(s.whole.abs().sum(0).argmax())
    modes = torch.stack([part[:, d] for part in s.parts.values()])
    order = [int(name.split()[1]) - 1 for name in poles.names]
    sums = modes[order].cumsum(0)
    slow = (s.whole[:, d] - sums).abs().sum(1) / s.whole[:, d].abs().sum()
    assert missed.lines[0].y == pytest.approx(slow[[k - 1 for k in missed.lines[0].x]].tolist(), abs=1e-12)
    for k, picture in zip(steps.names, steps.pictures, strict=True):
        taps, some, rest = picture.lines
        assert some.y == pytest.approx(sums[int(k) - 1].tolist(), abs=1e-12)
        assert [a + b for a, b in zip(some.y, rest.y, strict=True)] == pytest.approx(taps.y, abs=1e-12)


def test_the_polynomial_of_every_order_is_evaluated():
    e = made("functions.Expansion")
    terms, steps = e.pictures(2)
    j = int(e.whole[2].abs().argmax())
    for k, picture in enumerate(steps.pictures):
        curve, model = picture.lines
        slow = [sum(float(e.coefficients[n, 2, j]) * t**n for n in range(k + 1)) for t in curve.x]
        assert curve.y == pytest.approx(slow)
        assert model.y == pytest.approx([float(e.coefficients[0, 2, j]), float(e.whole[2, j])])
    assert terms.lines[1].y[-1] == pytest.approx(float(e.remainder[2].norm()))
    assert f"{e[2].radius}" in terms.note
    assert "BEYOND" not in made("functions.Expansion, beyond a kink").pictures()[0].note
    assert "no order makes the sum better" in made("functions.Expansion, beyond a kink").pictures()[0].note


def test_branches_by_their_shapley_value():
    s = made("functions.SubsetExpansion")
    waterfall, by_size, pairs = s.pictures(1)
    named = {bar.label: bar.value for bar in waterfall.bars}
    assert {n: v for n, v in named.items() if n in s.blocks} == pytest.approx({n: float(v[1]) for n, v in s.by_branch().items()})
    assert pairs.values[0][2] == pairs.values[2][0] == float(s.term(0, 2)[1])
    assert pairs.values[1][1] == float(s.term(1)[1])
    assert by_size.lines[0].y[2] == pytest.approx(abs(float(s.parts["size_2"][1].sum())))


def test_a_run_shows_what_is_measured_and_what_is_estimated():
    report = made("computation.Report, tolerated")
    error, work = report.pictures()
    assert [line.y for line in error.lines] == [
        [s.error for s in report.steps if s.computed and s.error],
        [s.estimate for s in report.steps if not s.computed and s.estimate],
        [report.tolerance] * 2,
    ]
    assert sum(work.lines[0].y) == pytest.approx(report.cost)


def test_layers_that_ran_are_the_fields():
    report = made("computation.DepthReport")
    count, which = report.pictures()
    assert [int(sum(column)) for column in zip(*which.values, strict=True)] == count.lines[0].y == [len(r) for r in report.layers]


# -- in a browser -----------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.slow  # axe reads every number of every table
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (390, True)])
def test_nobody_is_kept_out_and_nothing_runs_over(tmp_path, width, dark):
    shown = {name: made(name) for name in MAKERS if name.partition(",")[2] == "" and not name.startswith("core")}
    path = tmp_path / "rooms.html"
    path.write_text(page([Section(result, name) for name, result in shown.items()]), "utf-8")
    with opened() as chromium:
        seen = look(chromium, path, width, dark=dark, bypass_csp=True)
        assert seen.problems == []
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = "[...document.querySelectorAll('.tw-chart')].filter(e => e.offsetParent && !e.querySelector('svg path')).length"
        assert seen.page.evaluate(drawn) == 0
        assert faults(seen.page) == []


@needs_chromium
def test_bars_on_a_logarithmic_axis_stand_on_its_foot(tmp_path):
    """And do not hang from 1."""

    class One(Pictured):
        def pictures(self, sample=0):
            return [Bars("t", ["a", "b"], {"v": [1e-3, 0.1]}, log=True)]

    path = One().to_html(tmp_path / "a.html")
    with opened() as chromium:
        seen = look(chromium, path)
        boxes = (
            "[...document.querySelectorAll('.tw-chart svg path[fill=\"#0072b2\"]')].map(e => e.getBoundingClientRect().toJSON())"
        )
        small, large = sorted(seen.page.evaluate(boxes), key=lambda box: box["height"])[-2:]
        assert small["bottom"] == pytest.approx(large["bottom"], abs=1)
        assert large["height"] == pytest.approx(3 * small["height"], rel=0.1)
