"""The screenshots of `pictures.md`: one small picture of every kind, in a real browser. Run by hand: they are kept.

python docs/_static/make_pictures.py        # needs Chromium, playwright and pillow
"""

import io
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from playwright.sync_api import sync_playwright
from torch import nn

import termwise as tw
from termwise import weights
from termwise.core.pictures import Picture, Pictured, Points, Words
from termwise.report import Section, page

FOLDER = Path(__file__).parent / "pictures"
FLAGS = ["--no-sandbox", "--disable-gpu"]
WIDTH = 560


class One(Pictured):
    """A picture by itself."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture

    def pictures(self, sample: int = 0) -> list[Picture]:
        """It."""
        return [self.picture]


def shown() -> Iterator[tuple[str, Pictured]]:
    """By name of the file."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 3)).double().eval()
    x, h = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    why = tw.explain(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval(), torch.randn(1, 6), target=1)
    yield "waterfall", One(why.pictures()[-1])
    terms, polynomials = tw.expand(net, x, h, order=6, at=0.5).pictures()
    yield "lines", One(terms)
    yield "steps", One(polynomials)
    mlp = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
    small = tw.compress(mlp, 0.5, data=torch.randn(400, 20), progress=False)
    bars, table = small.pictures()[:2]
    yield "bars", One(bars)
    yield "table", One(table)
    left, right = torch.randn(80, 12) * 0.8 ** torch.arange(12), torch.randn(12, 96)
    yield "matrix", One(weights.cur(left @ right, 6).pictures()[1].pictures[-1])
    names = [f"rank {r}" for r in (2, 4, 8, 12, 16)]
    kept, off = [0.1, 0.2, 0.4, 0.6, 0.8], [0.31, 0.12, 0.05, 0.055, 0.01]
    yield "points", One(Points("Size against error", names, kept, off, "share of numbers kept", "output off by"))
    tokens = ["the", "film", "is", "not", "bad", "at", "all", ",", "it", "is", "wonder", "##ful"]
    yield "words", One(Words("Why positive?", tokens, [0.05, 0.2, 0.0, -0.9, 1.1, 0.1, 0.2, 0.0, 0.05, 0.1, 1.2, 0.7]))
    picture = torch.stack([torch.sin(torch.arange(48) / 7 + k) for k in range(3)])[:, :, None] * torch.cos(torch.arange(48) / 9)
    conv = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    yield "pixels", One(tw.explain(conv, picture[None], target=0).pictures()[0])
    yield "stems", One(tw.relu_spectrum(torch.cos(2 * math.pi * 40 * torch.arange(1024) / 1024), 1024).pictures()[0])


def main() -> None:
    """Write one PNG for each."""
    FOLDER.mkdir(exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright, TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        view = browser.new_page(viewport={"width": WIDTH, "height": 800})
        for name, result in shown():
            path = Path(folder) / f"{name}.html"
            path.write_text(page([Section(result)]), "utf-8")
            view.goto(path.as_uri())
            box = view.locator(".tw-picture").first.bounding_box()
            around = {"x": box["x"] - 12, "y": box["y"] - 12, "width": box["width"] + 24, "height": box["height"] + 28}
            image = Image.open(io.BytesIO(view.screenshot(clip=around, full_page=True)))
            image.convert("P", palette=Image.Palette.ADAPTIVE, colors=160).save(FOLDER / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
