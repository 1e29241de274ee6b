"""Files that users have on their disks keep loading, with the numbers they were saved with; those of a newer version are refused.

The files of tests/data/formats are of every format ever released; see formats.py.
"""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import formats
import termwise as tw
from termwise.core.decomposition import Decomposition

EXPECTED = json.loads((formats.FOLDER / "expected.json").read_text("utf-8"))
KEYS = {"decomposition": "termwise", "multistage": "termwise.multistage", "pldr": "termwise.pldr", "statistics": "termwise"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_holds_what_it_held(name):
    found, expected = formats.look(formats.FOLDER / name), EXPECTED[name]
    assert found.get("class") == expected.get("class")
    stored, as_then = found.get("stored", {}), expected.get("stored", {})
    assert list(stored) == list(as_then)
    for part, numbers in {**as_then, "computed": expected["computed"]}.items():  # a product of factors rounds as the machine does
        assert {**stored, "computed": found["computed"]}[part] == pytest.approx(numbers, rel=1e-12, abs=1e-12), part


def test_no_file_is_left_out():
    here = {p.relative_to(formats.FOLDER).as_posix() for p in formats.FOLDER.glob("*-*/*")}
    assert here == set(EXPECTED)
    assert max(p.stat().st_size for p in formats.FOLDER.rglob("*")) < 20_000


def test_there_is_one_of_every_class_and_format():
    for room in tw._ROOMS:
        importlib.import_module(f"termwise.{room}")
    ours = {name.partition(":")[2] for name in Decomposition._classes if name.startswith("termwise.")}
    assert {e["class"] for e in EXPECTED.values() if "class" in e} == ours, "run python tests/formats.py"
    assert {f"{kind}-{n}" for kind, n in formats.FORMATS.items()} <= {name.partition("/")[0] for name in EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_newer_format_is_refused(name, tmp_path):
    kind, number = name.partition("/")[0].split("-")
    path = tmp_path / name
    newer = formats.FORMATS[kind] + 1
    path.parent.mkdir()
    if kind in ("compressed", "results"):
        shutil.copytree(formats.FOLDER / name, path)
        edited = path / ("recipe.json" if kind == "compressed" else "manifest.json")
        recipe = json.loads(edited.read_text("utf-8"))
        assert recipe["format"] == int(number)
        edited.write_text(json.dumps(recipe | {"format": newer}), "utf-8")
    else:
        rewrite(formats.FOLDER / name, path, KEYS[kind], int(number), newer)
    with pytest.raises(ValueError, match=rf"has format {newer}, this version reads up to {newer - 1}: update termwise"):
        formats.look(path)


def rewrite(old: Path, new: Path, key: str, number: int, format: int) -> None:
    with safe_open(old, framework="pt") as file:
        header = json.loads(file.metadata()[key])
    assert header["format"] == number
    save_file(load_file(old), new, {key: json.dumps(header | {"format": format})})
