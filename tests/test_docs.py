"""The documentation, as far as it can be asked without building it: examples, tables, drawings, names, spelling; and its own checks."""

import doctest
import importlib
import importlib.util
import re
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch

import termwise as tw

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def read(name):
    """A module of the documentation, which is no package."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        spec = importlib.util.spec_from_file_location(f"docs_{Path(name).stem}", DOCS / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(DOCS / "_ext"))


@pytest.mark.parametrize("page", [p for p in PAGES if "```{doctest}" in p.read_text("utf-8")], ids=lambda p: p.stem)
def test_the_examples_of_a_page_run(page):
    torch.manual_seed(0)
    names = {"torch": torch, "tw": tw}
    for number, block in enumerate(re.findall(r"^```\{doctest\}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)):
        test = doctest.DocTestParser().get_doctest(block, names, f"{page.name}, block {number}", str(page), 0)
        assert test.examples
        told = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=told.append, clear_globs=False)
        names = test.globs
        assert result.failed == 0, "".join(told)


def test_every_page_is_in_a_table_of_contents():
    listed = re.findall(
        r"^([\w./-]+)$", "\n".join(re.findall(r"```\{toctree\}(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.S)), re.M
    )
    assert {p.stem for p in PAGES} - {"index"} <= set(listed)


def test_every_table_that_is_included_is_written():
    written = set(re.findall(r'^        "(\w+)":|, "(\w+)": ', (DOCS / "_ext" / "tables.py").read_text("utf-8"), re.M))
    known = {name for pair in written for name in pair if name}
    asked = {name for page in PAGES for name in re.findall(r"_generated/(\w+)\.txt", page.read_text("utf-8"))}
    assert asked
    assert asked <= known


@pytest.mark.parametrize("drawing", sorted((DOCS / "_static").glob("*.svg")), ids=lambda p: p.stem)
def test_a_drawing_is_well_formed_and_says_what_it_shows(drawing):
    root = xml.etree.ElementTree.parse(drawing).getroot()
    assert root.find("{http://www.w3.org/2000/svg}title").text
    assert "script" not in drawing.read_text("utf-8")


@pytest.mark.parametrize("room", sorted(tw._ROOMS))
def test_the_reference_has_every_public_name(room):
    """Under its room, or as a verb at the top."""
    text = (DOCS / "reference" / f"{room}.md").read_text("utf-8")
    if re.search(rf"automodule:: termwise\.{room}$(?!\n +:no-members:)", text, re.M):
        return  # sphinx lists all of it
    face = importlib.import_module(f"termwise.{room}")
    missing = [
        name
        for name in face.__all__
        if not re.search(rf"(::|py:data::) termwise\.({room}\.)?{re.escape(name)}$", text, re.M) and name != "higher_order"
    ]
    assert not missing, f"docs/reference/{room}.md has nothing of {', '.join(missing)}"


def test_every_room_has_a_page_of_the_reference():
    """A name that is added belongs into the page of its room; docs/api.md lists the rooms."""
    pages = re.findall(r"^reference/(\w+)$", (DOCS / "api.md").read_text("utf-8"), re.M)
    assert sorted(pages) == sorted(tw._ROOMS) == sorted(page.stem for page in (DOCS / "reference").glob("*.md"))
    assert "eval-rst" not in (DOCS / "api.md").read_text("utf-8")


def test_the_reference_names_nothing_that_is_gone():
    text = "\n".join(page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
    for name in re.findall(r"^\.\. (?:auto\w+|py:data|data):: (termwise\.[\w.]+)$", text, re.M):
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last) or importlib.util.find_spec(name), name


def test_the_standing_beside_peers_is_counted_from_the_files():
    peers = read("_ext/peers.py")
    rows = [line for line in peers.standing(DOCS / "data") if line.startswith("| {doc}")]
    assert len(rows) > 15
    for one in peers._standings(DOCS / "data"):
        assert one.cases
        assert all(ratio >= 0 for ratio in one.cases.values()), one.what
        assert (DOCS / f"{one.page}.md").exists()
    jets = next(one for one in peers._standings(DOCS / "data") if one.peer.startswith("jax"))
    assert len(jets.cases) == 20
    assert "**13**" in next(row for row in rows if "jax" in row)


def test_the_gallery_knows_every_page():
    rooms = read("_ext/order.py").ROOMS
    assert sorted(rooms) == sorted(page.stem.removeprefix("plot_") for page in (DOCS / "examples").glob("plot_*.py"))


def test_links_that_lead_nowhere_are_found(tmp_path):
    check = read("check.py")
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">x</a><a href="b.html#gone">x</a><a href="c.html">x</a><img src="no.png"><a href="#top">x</a>'
        '<a href="https://example.org/a">x</a><a href="https://nowhere">x</a><a href="mailto:a@b.c">x</a><p id="top">x</p>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there">x</h1>')
    assert list(check.links(tmp_path)) == [
        "a.html: b.html#gone has no such place",
        "a.html: c.html does not exist",
        "a.html: no.png does not exist",
        "a.html: https://nowhere is no address",
    ]
    assert "holds no page" in next(check.links(tmp_path / "empty"))


def test_no_word_is_misspelt(monkeypatch, tmp_path):
    pytest.importorskip("codespell_lib")
    check = read("check.py")
    assert list(check.spelling()) == []
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "spelling.txt").write_text("")
    (tmp_path / "README.md").write_text("This is definately wrong.\n")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    assert list(check.spelling()) == ["README.md:1: definately ==> definitely"]
