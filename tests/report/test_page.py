"""Pages and fragments: self-contained, complete, and nothing that was typed is markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from termwise.report import Section, fragment, page

from .examples import EVIL, curve, image, matrix, sentence

VOID = {"meta", "img", "br", "input"}


class Reader(HTMLParser):
    """Tags, attributes and text; complains about what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.open, self.attributes, self.text, self.found = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found.append((tag, attrs))
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert [tag] == self.open[-1:], f"</{tag}> closes something else"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def parsed(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def assert_only_our_scripts(html: str, reader: Reader) -> None:
    """What runs is what the page's policy names by hash; the other scripts are data."""
    kinds = [dict(attrs).get("type") for tag, attrs in reader.found if tag == "script"]
    assert all(kind in (None, "application/json") for kind in kinds)
    run = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(run) == kinds.count(None)
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in run]
    assert re.findall(r"'sha256-([^']+)'", html) == hashes


def full() -> str:
    photo = np.zeros((12, 12, 3), dtype=np.uint8)
    sections = [
        Section(
            image(classes=["a", "espresso"]),
            "Why espresso?",
            "cup.png",
            photo,
            [("espresso", 0.9), ("cup", 0.1)],
            curve(),
            "A note.",
        ),
        Section(sentence(["<s>", " hel", "lo", " you"]), "A sentence", scores=[("class 1", 1.0)]),
    ]
    return page(sections, title="Why?", lead="Lead.", footer="Foot.")


def test_a_page_has_all_its_parts_and_fetches_nothing():
    html = full()
    reader = parsed(html)
    assert reader.tags.count("article") == 2
    assert reader.tags.count("img") == 3
    assert [dict(a).get("role") for t, a in reader.found if dict(a).get("class") == "tw-chart"] == ["img"] * 3
    text = " ".join("".join(reader.text).split())
    for expected in (
        "Why espresso?",
        "90.0 %",
        "adds up to",
        "cancellation",
        "whole",
        "hello",
        "features.",
        "Removing the most relevant",
        "A note.",
        "Foot.",
    ):
        assert expected in text, expected
    assert_only_our_scripts(html, reader)
    assert "link" not in reader.tags
    assert "iframe" not in reader.tags
    sources = [v for k, v in reader.attributes if k in ("src", "href", "srcset")]
    assert sources
    assert all(v.startswith("data:image/png;base64,") for v in sources)
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|https?://", re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL))


def test_the_honest_line_is_computed_from_what_is_shown():
    why = image()
    assert why.summary() in "".join(parsed(page([Section(why)])).text)


@pytest.mark.parametrize(
    "where", ["tokens", "classes", "heading", "source", "note", "title", "lead", "footer", "scores", "parts", "what"]
)
def test_nothing_that_was_typed_becomes_markup(where):
    attack = EVIL + "\"onload='x'"
    why = sentence([attack, " b"], classes=["safe", attack]) if where in ("tokens", "classes") else image()
    if where == "parts":
        why.parts[f"bias:{attack}"] = torch.full((1, 1), 50.0, dtype=torch.float64)
    section = Section(
        why,
        heading=attack if where == "heading" else "h",
        source=attack if where == "source" else "",
        note=attack if where == "note" else "",
        scores=[(attack if where == "scores" else "c", 0.5)],
        curve=curve(attack if where == "what" else "tokens"),
    )
    others = {k: attack if where == k else "x" for k in ("title", "lead", "footer")}
    for html in (page([section], **others), *([fragment(why)] if where in ("tokens", "classes", "parts") else [])):
        assert EVIL not in html
        assert "&lt;script&gt;" in html or "\\u003cscript" in html
        reader = parsed(html)
        assert_only_our_scripts(html, reader)
        assert not any(k.startswith("on") for k, _ in reader.attributes)
        assert EVIL in "".join(reader.text)  # and it is still there to be read


def test_fragment_of_any_decomposition():
    assert "sample 1 of 3" in fragment(image(batch=3))
    assert "sample 3 of 3" in fragment(image(batch=3), sample=2)
    text = "".join(parsed(fragment(matrix())).text)
    assert "shape (2, 3)" in text
    assert "adds up to" in text
    assert image()._repr_html_() == fragment(image())


def test_a_batch_shows_the_sample_that_was_asked_for():
    why = image(batch=2)
    assert fragment(why, sample=1) != fragment(why, sample=0)
    assert why[1].summary() in fragment(why, sample=1)


def test_a_whole_of_zero_and_parts_of_zero_can_be_shown():
    zero = sentence(["a", "b"], [1.0, 1.0])
    assert float(zero.whole[0]) == 0.0
    assert "no shares" in fragment(zero)
    assert fragment(sentence(["a", "b"], [0.0, 0.0]))


def test_a_page_needs_a_section():
    with pytest.raises(ValueError, match="at least one"):
        page([])


def test_pages_are_the_same_every_time():
    assert full() == full()
