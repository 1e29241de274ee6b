"""The page in a browser, on a desktop and on a phone: nothing runs over the edge, whatever things are called."""

import html
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from termwise.report import Section, fragment, page

from .examples import EVIL, curve, image, sentence

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-sync --hide-scrollbars"
)
LONG = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch" * 3

# The page forbids scripts, so another one looks at it: through a frame of the width of the screen.
LOOK = """<!doctype html><iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe><pre></pre><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, wide = page.documentElement.scrollWidth;
  const over = [...page.querySelectorAll(".tw *")].filter(e =>
    e.getBoundingClientRect().right > {width} + 1 || e.matches(".tw-row b") && (e.scrollWidth > e.clientWidth || e.offsetHeight > 30));
  document.querySelector("pre").textContent = JSON.stringify([wide, over.map(e => e.className || e.tagName)]);
}}</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser to look with: apt-get install chromium")


def look(content: str, width: int, folder) -> str:
    """Width of the page and what runs over its edge, as the browser lays it out."""
    (folder / "page.html").write_text(content, "utf-8")
    (folder / "look.html").write_text(LOOK.format(width=width), "utf-8")
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files"]
    command += [f"--window-size={max(width, 500) + 50},1000", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([*command, (folder / "look.html").as_uri()], capture_output=True, text=True, timeout=120, check=False)
    return html.unescape(done.stdout.partition("<pre>")[2].partition("</pre>")[0])


def everything() -> str:
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


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_nothing_runs_over_the_edge(width, tmp_path):
    assert look(everything(), width, tmp_path) == f"[{width},[]]"


@pytest.mark.parametrize("width", [900, 390])
def test_neither_does_what_a_notebook_shows(width, tmp_path):
    shown = "<!doctype html><style>body {margin: 0}</style>" + fragment(image(classes=["a", LONG]))
    assert look(shown, width, tmp_path) == f"[{width},[]]"


def test_the_look_sees_what_is_too_wide(tmp_path):
    wide = everything().replace("</main>", '<p class="wide" style="width:2000px">x</p></main>')
    assert '"wide"' in look(wide, 390, tmp_path)
