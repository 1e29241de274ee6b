"""The contract of what can be looked at: every public class of a room with a table of makers, drawn and read in every way."""

import importlib
import json
from functools import cache
from html.parser import HTMLParser

import pytest

import termwise
from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Picture, Pictured, Pixels, Steps, Words
from termwise.report import reading
from termwise.report.markup import markup

from . import prediction_results, rooms

MAKERS = prediction_results.MAKERS
MADE = {name.partition(",")[0] for table in (MAKERS, rooms.MAKERS) for name in table}
"""Every class that a table makes; those of the other rooms are drawn in `test_rooms`."""

made = cache(lambda name: MAKERS[name]())

results = pytest.mark.parametrize("name", MAKERS)


class Tags(HTMLParser):
    """What is open where the page ends, and whether something was closed that was not open."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        if tag not in ("meta", "img", "br", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open[-1:] == [tag]:
            self.open.pop()
        else:
            self.wrong.append(tag)


def parsed(text):
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.wrong == []
    return tags


def public(room):
    face = importlib.import_module(f"termwise.{room}")
    shown = (getattr(face, name) for name in getattr(face, "__all__", ()))
    return {f"{room}.{c.__name__}" for c in shown if isinstance(c, type) and issubclass(c, Pictured) and c is not Pictured}


def test_every_class_has_a_maker():
    found = {name for room in termwise._ROOMS for name in public(room)}
    assert len(found) > 40
    assert not found - MADE, f"no maker for {', '.join(sorted(found - MADE))}: add one to a table"


@results
def test_a_maker_makes_what_it_says(name):
    assert type(made(name)).__name__ == name.partition(",")[0].rpartition(".")[2]


@results
def test_it_is_drawn_and_read_in_every_way(name, tmp_path):
    result = made(name)
    pictures = result.pictures()
    assert pictures
    for picture in pictures:
        assert isinstance(picture, Picture)
        assert picture.title or isinstance(picture, Words | Pixels)  # which stand below the heading of their card
        assert len(reading.sentence(picture)) > 10
        assert isinstance(picture, Pixels | Steps) or reading.table(picture).rows
        json.dumps(markup(picture), allow_nan=False)
    assert result.plot().get_size_inches()[1] > 0.5
    assert parsed(result.to_html(tmp_path / "a.html").read_text("utf-8")).scripts >= 2
    assert parsed(result._repr_html_()).scripts == 0


@results
def test_every_sample_has_its_own_pictures_and_no_others(name):
    result = made(name)
    if isinstance(result, Decomposition) and result.by_sample:
        for sample in range(len(result)):
            assert result.pictures(sample)
            alone = result[sample].pictures()
            assert [reading.sentence(p) for p in alone] == [reading.sentence(p) for p in result.pictures(sample)]
        with pytest.raises((ValueError, IndexError), match=r"out of (range|bounds)"):
            result.pictures(len(result))


def test_a_class_without_a_maker_is_named():
    missing = public("predictions") - {name.partition(",")[0] for name in MAKERS if "Coverage" not in name}
    assert missing == {"predictions.Coverage"}
