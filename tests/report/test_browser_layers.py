"""What a page says a word or a patch carries at each layer is what the explanation found there, to the digits that are shown."""

import re

import pytest
import torch
from torch import nn

from termwise.predictions import explain
from termwise.report import Section, page

from .browser import faults, look, needs_chromium, opened

pytestmark = needs_chromium

TOKENS = ["[CLS]", "to", "##kens", "carry", "it", "."]


class Reader(nn.Module):
    """A small transformer that reads token ids."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids):
        x = self.table(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def seer():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )


@pytest.fixture(scope="module")
def results():
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    text = explain(Reader().double().eval(), ids, target=1, layers="auto", names=[TOKENS])
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return text, explain(seer().double().eval(), image, target=1, layers=["0", "2"])


@pytest.fixture
def seen(results, tmp_path):
    (tmp_path / "why.html").write_text(page([Section(why) for why in results]), "utf-8")
    with opened() as chromium:
        yield look(chromium, tmp_path / "why.html", bypass_csp=True)  # for axe, which the policy would refuse


def read(box):
    """What is said aloud: the value at the input, and those at the layers by name."""
    title, chart = box.locator("figcaption").last.inner_text(), box.locator(".tw-layers > div").get_attribute("aria-label")
    number = lambda text: float(text.replace("\N{MINUS SIGN}", "-"))
    found = {name: number(value) for name, value in re.findall(r"([\w.]+) (−?[\d.e-]+)(?:,|$)", chart.partition(": ")[2])}
    return number(re.search(r": (\S+) at the input", title)[1]), found


def test_pointer_and_keys_show_what_the_tensors_hold(results, seen):
    text, image = results
    words = [[0], [1, 2], [3], [4], [5]]
    box = seen.page.locator(".tw-bylayer").nth(0)
    marks = box.locator("[data-mark]")
    assert marks.all_inner_texts()[1].startswith("tokens")
    for i, places in enumerate(words):
        marks.nth(i).hover() if i % 2 else marks.nth(i).focus()
        at_input, carried = read(box)
        assert at_input == pytest.approx(float(text.inputs["input_ids"][0, places].sum()), rel=1e-3)
        assert list(carried) == ["layers.0", "layers.1", "layers.2"]
        expected = [float(v[0, places].sum()) for v in text.layers.values()]
        assert list(carried.values()) == pytest.approx(expected, rel=1e-3)
    box = seen.page.locator(".tw-bylayer").nth(1)
    box.locator("[data-mark]").nth(14 + 3).focus()
    seen.page.keyboard.press("ArrowRight")  # row 2, column 5 of 14
    assert "patch 2, 5" in box.locator("figcaption").last.inner_text()
    at_input, carried = read(box)
    for value, map_ in ((at_input, image.inputs["input"]), (carried["0"], image.layers["0"]), (carried["2"], image.layers["2"])):
        size = map_.shape[-1]  # what of each entry lies in the patch
        rows, columns = (
            torch.tensor([max(0.0, min((k + 1) * size / 14, j + 1) - max(k * size / 14, j)) for j in range(size)]).double()
            for k in (1, 4)
        )
        assert value == pytest.approx(float(rows @ map_[0].sum(0) @ columns), rel=1e-3)
    assert seen.problems == []
    assert faults(seen.page) == []


def test_bars_are_drawn_for_what_is_chosen(seen):
    box = seen.page.locator(".tw-bylayer").nth(0)
    marks, svg = box.locator("[data-mark]"), box.locator(".tw-layers svg")
    drawn = set()
    for i in range(5):
        marks.nth(i).focus()
        drawn.add(svg.inner_html())
    assert len(drawn) == 5
    assert box.locator(".tw-layers").get_by_text("layers.1").count() == 1  # the axis names the layers
