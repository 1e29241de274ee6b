"""What a room shows: every public name is there, and is the thing and not a module of the same name."""

import json

import pytest
from tests.test_import_time import fresh

import termwise

ROOMS = sorted(termwise._ROOMS)

LOOK = """
import importlib, json, pkgutil, sys, types
room = importlib.import_module("termwise.{room}")
for found in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
    importlib.import_module(found.name)   # the trap: an import of explain.py after the face was read
missing = [name for name in room.__all__ if not hasattr(room, name)]
files = [name for name in room.__all__ if getattr(getattr(room, name, None), "__file__", "").rpartition("/")[2] == name + ".py"]
print(json.dumps([len(room.__all__), missing, files, sorted(room.__all__) == sorted(set(room.__all__))]))
"""


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_shows_what_it_names(room):
    names, missing, files, once = fresh(LOOK.replace("{room}", room))
    assert names > 0
    assert not missing
    assert not files, f"{files} of termwise.{room} are modules: import the name from them in its __init__.py"
    assert once


def test_the_look_sees_a_module_in_place_of_a_name():
    code = LOOK.replace("{room}", "predictions").replace(
        "missing =", "room.explain = importlib.import_module('termwise.predictions.explain'); missing ="
    )
    assert fresh(code)[2] == ["explain"]


def test_the_package_lists_its_rooms_and_verbs():
    code = """
import json, termwise, types
print(json.dumps([sorted(n for n in termwise.__all__ if isinstance(getattr(termwise, n), types.ModuleType)),
                  sorted(n for n in termwise.__all__ if not hasattr(termwise, n)), sorted(set(termwise.__all__) - set(dir(termwise)))]))
"""
    rooms, missing, hidden = fresh(code)
    assert rooms == ROOMS
    assert not missing
    assert not hidden
    with pytest.raises(AttributeError, match="no attribute 'explane'"):
        _ = termwise.explane


def test_verbs_are_those_of_their_rooms():
    for verb, room in termwise._VERBS.items():
        assert getattr(termwise, verb) is getattr(getattr(termwise, room), verb), json.dumps([verb, room])
