"""Rules of the house that no linter checks."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import termwise

SOURCE = Path(termwise.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
NOWHERE = {"utils", "util", "common", "misc", "helpers", "helper"}


def names(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_a_thing_lives_where_its_meaning_is():
    assert len(MODULES) > 30
    assert not [names(m) for m in MODULES if NOWHERE & {*m.relative_to(SOURCE).parts[:-1], m.stem}]


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_a_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("room", sorted(termwise._ROOMS))
def test_what_a_room_shows_has_a_docstring(room):
    """Functions and classes of the face, and the public methods and properties that a class defines itself."""
    face = importlib.import_module(f"termwise.{room}")
    bare = []
    for name in face.__all__:
        value = getattr(face, name)
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        # a dataclass without a docstring is given its signature
        if not inspect.getdoc(value) or value.__doc__.startswith(f"{name}("):
            bare.append(name)
        if inspect.isclass(value):
            bare += [f"{name}.{m}" for m, v in vars(value).items() if not m.startswith("_") and not _documented(v)]
    assert not bare, f"termwise.{room}: no docstring on {', '.join(bare)}"


def _documented(member: object) -> bool:
    """Of a method or property; what is neither needs none. A test method says it by its name."""
    if isinstance(member, (classmethod, staticmethod)):
        member = member.__func__
    if not isinstance(member, property) and not inspect.isfunction(member):
        return True
    name = getattr(member, "__name__", "")
    return bool(member.__doc__) or name.startswith("test_")


def test_the_version_is_one():
    """The package, the citation and the changelog speak of the same one."""
    root = Path(__file__).parents[1]
    assert f"\nversion: {termwise.__version__}\n" in (root / "CITATION.cff").read_text("utf-8")
    assert f"## [{termwise.__version__}]" in (root / "CHANGELOG.md").read_text("utf-8")
