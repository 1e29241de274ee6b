"""A real browser, without a screen and without a network."""

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no browser to look with: apt-get install chromium")


class Seen:
    """A page that was opened: what it asked for, and what it complained about."""

    def __init__(self, page):
        self.page, self.requests, self.problems = page, [], []
        page.on("request", lambda r: self.requests.append(r.url))
        page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self.problems.append(str(e)))


@contextmanager
def opened():
    """Chromium; one for all tests of a process."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield chromium
        chromium.close()


def look(chromium, path, width=1100, *, dark=False, **context):
    """Open a file or an address."""
    page = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", **context
    ).new_page()
    seen = Seen(page)
    page.goto(path if str(path).startswith("http") else path.as_uri())
    return seen


def faults(page):
    """Serious and critical faults of accessibility, by axe-core."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{v['impact']} {v['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]
