"""Real models and photographs for tests.

A missing file, or a missing extra, is a skip that names the install line in a user's run, and an error under CI=true: a
green CI cannot mean that nothing real was tested. Outside CI nothing is downloaded.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import pytest

from termwise import zoo
from termwise.zoo.assets import ASSETS, locate

if TYPE_CHECKING:
    from PIL.Image import Image

CI = os.environ.get("CI", "").lower() == "true"


def subject(name: str) -> zoo.Subject:
    """A subject of the zoo. It is shared by the tests of a process: copy its model before you change it."""
    entry = zoo.subjects[name]
    if not CI and not entry.present:
        pytest.skip(f"{name} is not here: {entry.install}, or python -c \"from termwise import zoo; zoo.load('{name}')\"")
    try:
        return _load(name)
    except ImportError as missing:
        if CI:
            raise
        pytest.skip(str(missing))


def photo(name: str) -> Image:
    """A photograph of the zoo."""
    asset = ASSETS[f"photo-{name}"]
    if not CI and locate(asset) is None:
        pytest.skip(f"the photo {name!r} is not here: {asset.install}")
    return zoo.photo(name)


@cache
def _load(name: str) -> zoo.Subject:
    return zoo.load(name)
