"""Pages in a real browser: nothing runs over the edge, nothing leaves the machine, everything answers, everybody can read it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import termwise as tw
from termwise.core.pictures import Bars, Line, Lines, Matrix, Pictured, Pixels, Points, Steps, Table, Words
from termwise.report import Section, fragment, page

from .browser import faults, look, needs_chromium, opened
from .examples import EVIL, curve, image, sentence

LONG = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch" * 3

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium():
    with opened() as browser:
        yield browser


class Everything(Pictured):
    """One picture of every kind."""

    def summary(self):
        return "one of every kind"

    def pictures(self, sample=0):
        g = np.random.default_rng(0)
        square = [
            Lines("", [Line("f", [0, 1, 2], [0, 1, 4], role="whole"), Line("sum", [0, 1, 2], [0, k, 2 * k])]) for k in range(3)
        ]
        return [
            Words("Words", ["[CLS]", "Hel", "##lo", EVIL, "!"], [0, 1, 0.5, -2, 0.1], ["embedding", "layer 0"], [[0, 1, 0.5, -2, 0.1], [3, 1, 1, 0, 0]]),
            Pixels("", g.standard_normal((12, 12)), None, ["early", "late"], g.standard_normal((2, 3, 3))),
            Lines("Curves", [Line("a", [1, 2, 3], [1, 2, 1.5], [0.5, 1, 1], [2, 3, 2]), Line(EVIL, [1, 2, 3], [1e-3, 0, math.nan])], log_y=True, x="x", y="y"),
            Bars("Bars", ["one", LONG, EVIL], {"kept": [3, 1, 2], "lost": [0.1, 0.2, math.inf]}, y="share"),
            Matrix("Matrix", [[1.0, -1.0], [0.5, math.nan]], ["a", EVIL], ["c", LONG], value=EVIL),
            Points("Points", ["a", EVIL], [1, 2], [2, 1], "size", "error"),
            Table("Table", ["name", EVIL], [["b", 1.5], [EVIL, -2e-9], ["a", 30]]),
            Steps("Steps", "order", ["0", "1", "2"], square),
        ]  # fmt: skip


def explained() -> str:
    photo = np.zeros((12, 12, 3), dtype=np.uint8)
    why = image(classes=["a", LONG])
    why = replace(why, parts={f"{n}.{LONG}" if n.startswith("bias") else n: p for n, p in why.parts.items()})
    small = replace(why, whole=why.whole * -1.2345e-5, parts={n: p * -1.2345e-5 for n, p in why.parts.items()})
    words = sentence(["[CLS]", f" {LONG}", " hello", f" {EVIL}"], classes=["a", EVIL])
    sections = [
        Section(why, f"Why {LONG}?", f"{LONG}.png", photo, [(LONG, 0.9), ("cup", 0.1)], curve(), LONG),
        Section(small),
        Section(words, EVIL, "a text", curve=curve("tokens", classes=False)),
    ]
    return page(sections, LONG, LONG, LONG)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    contents = {
        "explained": explained(),
        "everything": page([Section(Everything(), "Everything")], "Pictures"),
        "notebook": "<!doctype html><html lang=en><title>n</title><main>"
        + fragment(image(classes=["a", LONG]))
        + fragment(Everything()),
    }
    for name, content in contents.items():
        (folder / f"{name}.html").write_text(content, "utf-8")
    return folder


@pytest.fixture
def everything(chromium, pages):
    seen = look(chromium, pages / "everything.html")
    yield seen
    assert seen.problems == []
    assert [r for r in seen.requests if not r.startswith("data:")] == [(pages / "everything.html").as_uri()]
    seen.page.context.close()


def overflowing(seen, width):
    """What runs over the edge, of what does not scroll by itself."""
    return seen.page.evaluate(
        """(width) => [...document.querySelectorAll("body *")].filter(e => !e.closest(".tw-wide") && !e.closest("svg")
             && !e.closest(".tw-chart") && e.getBoundingClientRect().right > width + 1).map(e => e.className || e.tagName)""",
        width,
    )


@pytest.mark.parametrize("name", ["explained", "everything", "notebook"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_nothing_runs_over_the_edge_or_complains_or_leaves_the_machine(chromium, pages, name, width):
    seen = look(chromium, pages / f"{name}.html", width)
    assert overflowing(seen, width) == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.problems == []
    assert [r for r in seen.requests if not r.startswith("data:")] == [(pages / f"{name}.html").as_uri()]
    seen.page.context.close()


def test_the_look_sees_what_is_too_wide(chromium, pages, tmp_path):
    wide = (pages / "explained.html").read_text("utf-8").replace("</main>", '<p class="wide" style="width:2000px">x</p></main>')
    (tmp_path / "wide.html").write_text(wide, "utf-8")
    seen = look(chromium, tmp_path / "wide.html", 390)
    assert "wide" in overflowing(seen, 390)


@pytest.mark.parametrize("name", ["explained", "everything", "notebook"])
@pytest.mark.parametrize("dark", [False, True])
def test_nobody_is_kept_out(chromium, pages, name, dark):
    seen = look(chromium, pages / f"{name}.html", dark=dark, bypass_csp=True)  # for axe, which the policy would refuse
    assert faults(seen.page) == []
    seen.page.context.close()


def test_axe_finds_what_is_wrong(chromium, pages, tmp_path):
    bad = (
        (pages / "explained.html")
        .read_text("utf-8")
        .replace("</main>", '<img src="data:,"><p style="color:#ccc">pale</p></main>')
    )
    (tmp_path / "bad.html").write_text(bad, "utf-8")
    assert len(faults(look(chromium, tmp_path / "bad.html", bypass_csp=True).page)) >= 2


def test_every_chart_is_drawn(everything):
    drawn = everything.page.evaluate("[...document.querySelectorAll('.tw-chart')].map(e => !!e.querySelector('svg path'))")
    visible = everything.page.evaluate("[...document.querySelectorAll('.tw-chart')].map(e => e.offsetParent !== null)")
    assert drawn == visible
    assert sum(drawn) == 5  # curves, bars, matrix, points, and one of the slider's three


def test_a_word_says_what_it_carries_at_each_layer(everything):
    box = everything.page.locator(".tw-bylayer").nth(0)
    box.get_by_role("button", name="Hello").hover()
    assert "Hello: 1.5 at the input" in box.locator("figcaption").inner_text()
    before = box.locator(".tw-layers svg").inner_html()
    box.get_by_role("button", name="[CLS]").hover()
    assert box.locator(".tw-layers svg").inner_html() != before
    everything.page.keyboard.press("Tab")


def test_patches_are_found_by_pointer_and_by_arrow_keys(everything):
    box = everything.page.locator(".tw-bylayer").nth(1)
    told = box.locator(".tw-layers figcaption")
    box.locator("[data-mark='4']").hover()
    assert "patch 2, 2" in told.inner_text()
    box.locator("[data-mark='4']").focus()
    for key, place in (("ArrowRight", "2, 3"), ("ArrowUp", "1, 3"), ("ArrowLeft", "1, 2"), ("ArrowDown", "2, 2")):
        everything.page.keyboard.press(key)
        assert f"patch {place}" in told.inner_text()


def test_the_slider_shows_one_picture(everything):
    box = everything.page.locator(".tw-steps")
    shown = lambda: [i for i, panel in enumerate(box.locator(".tw-step").all()) if panel.is_visible()]
    assert shown() == [2]
    box.locator("input").focus()
    everything.page.keyboard.press("ArrowLeft")
    assert shown() == [1]
    assert box.locator("output").inner_text() == "1"
    assert box.locator(".tw-step").nth(1).locator("svg path").count() > 0


def test_a_table_is_sorted_by_its_heads(everything):
    table = everything.page.locator("section > .tw-wide > .tw-table")
    first = lambda: table.locator("tbody tr td:last-child").all_inner_texts()
    table.locator("th button").nth(1).click()
    assert first() == ["30", "1.5", "−2e-09"]
    assert table.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    table.locator("th button").nth(1).click()
    assert first() == ["−2e-09", "1.5", "30"]


def test_a_row_and_its_bar_light_up_together(everything):
    figure = everything.page.locator(".tw-figure").nth(1)
    figure.locator("summary").click()
    plain = figure.locator("svg").inner_html()
    figure.locator("tbody tr").nth(0).hover()
    everything.page.wait_for_function(
        "(old) => document.querySelectorAll('.tw-figure')[1].querySelector('svg').innerHTML !== old", arg=plain
    )
    figure.locator("svg path[fill='#0072b2'], svg path[fill='rgb(0,114,178)']").first.hover(force=True)
    everything.page.wait_for_function("document.querySelectorAll('.tw-figure')[1].querySelector('tr.tw-lit') !== null")


LINKED = {
    "Points": (Points("p", ["a", "b", "c"], [4, 1, 2], [1, 3, 2], "size", "error"), 0, ["a", "4", "1"]),
    "Matrix": (Matrix("m", [[1.0, 2.0], [4.0, 5.0]], ["r1", "r2"], ["c1", "c2"]), 1, None),
    "Lines": (Lines("l", [Line("f", [0, 1, 2], [7, 8, 9]), Line("g", [1, 2], [5, 6], [4, 5], [6, 7])], log_x=True), 2, None),
    "Waterfall": (image().pictures()[-1], 1, None),
}


@pytest.mark.parametrize("kind", LINKED)
def test_a_row_lights_its_own_marks(chromium, tmp_path, kind):
    """The numbers of the marks that a row lights are the numbers of the row."""
    picture, row, told = LINKED[kind]

    class One(Pictured):
        def pictures(self, sample=0):
            return [picture]

    seen = look(chromium, One().to_html(tmp_path / "one.html"))
    page = seen.page
    page.locator("summary").first.click()
    marks = (
        page.locator("tbody tr")
        .nth(row)
        .evaluate(
            """row => { const chart = echarts.getInstanceByDom(document.querySelector(".tw-chart")), series = chart.getOption().series;
                    return JSON.parse(row.dataset.marks).map(([s, i]) => series[s].data[i].value ?? series[s].data[i]); }"""
        )
    )
    cells = page.locator("tbody tr").nth(row).locator("td").evaluate_all("cells => cells.map(c => c.dataset.value)")
    numbers = {round(float(c), 6) for c in cells if c is not None}
    assert marks
    for mark in marks:
        assert round(float(mark[-1]), 6) in numbers
    if told:
        page.locator("tbody tr").nth(row).hover()
        page.wait_for_function("[...document.querySelectorAll('.tw-tip')].length > 0")
        tip = page.evaluate("document.querySelector('.tw-tip').parentElement.textContent")
        assert all(text in tip for text in told)
    assert seen.problems == []


def test_what_is_no_number_spoils_nothing(chromium, tmp_path):
    class Broken(Pictured):
        def pictures(self, sample=0):
            nan, inf = math.nan, math.inf
            d = tw.Decomposition(torch.tensor([nan]), {"a": torch.tensor([1.0]), "b": torch.tensor([nan])})
            return [
                Points("p", ["a", "b"], [1, nan], [1, inf]), *d.pictures(), Lines("l", [Line("f", [1, nan], [nan, inf], [0, nan], [inf, 1])]),
                Bars("b", ["a"], {"v": [nan]}), Matrix("m", [[nan, inf]], ["r"], ["a", "b"]), Matrix("e", [], [], []),
                Table("t", ["a", "n"], [["x", nan], ["y", 2.0], ["z", inf], ["w", 1.0]]), Words("w", ["a", "b"], [nan, 1.0]),
            ]  # fmt: skip

    seen = look(chromium, Broken().to_html(tmp_path / "broken.html"))
    assert seen.problems == []
    drawn = seen.page.evaluate("[...document.querySelectorAll('.tw-chart')].map(e => !!e.querySelector('svg'))")
    assert drawn == [True] * 6
    table = seen.page.locator("section > .tw-wide > .tw-table")
    for order in (["z", "y", "w", "x"], ["w", "y", "z", "x"]):  # what has no number is last both ways
        table.locator("th button").nth(1).click()
        assert table.locator("tbody tr td:first-child").all_inner_texts() == order
    Broken().plot().savefig(tmp_path / "broken.svg")


def test_paper_is_white_whatever_the_screen_is(chromium, pages):
    def colours(page):
        return page.evaluate("""[getComputedStyle(document.querySelector('.tw')).getPropertyValue('--ink'),
                                 document.querySelector('.tw-chart svg').innerHTML]""")

    light, dark = (look(chromium, pages / "everything.html", dark=d) for d in (False, True))
    assert colours(light.page) != colours(dark.page)
    dark.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert colours(light.page)[0] == colours(dark.page)[0]
    dark.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert colours(light.page) != colours(dark.page)


def test_tips_are_text(everything):
    points = everything.page.locator(".tw-figure").nth(3)
    points.scroll_into_view_if_needed()
    for path in points.locator("svg path").all():
        path.hover(force=True)
    assert everything.page.locator(".tw-figure script:not([type])").count() == 0


def test_dark_is_drawn_in_other_colours(chromium, pages):
    colours = []
    for dark in (False, True):
        seen = look(chromium, pages / "everything.html", dark=dark)
        colours.append(seen.page.evaluate("document.querySelector('.tw-chart svg').innerHTML"))
        seen.page.context.close()
    assert colours[0] != colours[1]


def test_it_prints(chromium, pages):
    seen = look(chromium, pages / "everything.html")
    assert seen.page.pdf()[:5] == b"%PDF-"
    assert seen.problems == []
