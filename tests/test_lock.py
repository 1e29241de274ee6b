"""What is installed is what is locked: constraints.txt is the source, requirements.lock its hashes, and pip refuses another file.

With `--no-deps` nothing comes that is not in the lock, so the lock must hold everything that an extra of ours asks for.
"""

import hashlib
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pins(text: str) -> dict[str, str]:
    """Names as PyPI compares them, and versions."""
    found = re.findall(r"^([\w.-]+)==([^\s\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text("utf-8"))


def needed() -> Iterator[Requirement]:
    """What any extra asks for, and what that asks for in turn, on this machine."""
    start = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    waiting, seen = [Requirement(text) for text in start], set()
    while waiting:
        wanted = waiting.pop()
        if wanted.name == PROJECT["name"]:
            continue  # an extra of ours that names others
        yield wanted
        for extra in {"", *wanted.extras}:
            if (wanted.name, extra) not in seen:
                seen.add((wanted.name, extra))
                further = map(Requirement, metadata.requires(wanted.name) or [])
                waiting += [r for r in further if r.marker is None or r.marker.evaluate({"extra": extra})]


def test_the_lock_says_what_the_constraints_say():
    differ = {p for p in pins(LOCK).items() ^ CONSTRAINTS.items() if p[0] != "torch"}
    assert not differ, (
        f"{', '.join(sorted({name for name, _ in differ}))}: requirements.lock is of other constraints: run `make lock`"
    )
    assert "torch" not in pins(LOCK), "each index has its own build of torch: see the Makefile"


def test_all_that_is_needed_is_pinned():
    wanting = {str(r) for r in needed() if not r.specifier.contains(CONSTRAINTS.get(canonicalize_name(r.name), "0.0a0"), True)}
    assert not wanting, f"add pins to constraints.txt and run `make lock`: {', '.join(sorted(wanting))}"


def test_nothing_is_pinned_that_nothing_needs():
    assert not CONSTRAINTS.keys() - {canonicalize_name(r.name) for r in needed()} - {"setuptools"}


def test_the_lock_is_pins_and_hashes_and_names_no_index():
    """An address would send others to an index of the machine where the lock was written."""
    assert re.fullmatch(r"(#[^\n:/]*:?\n)*([\w.-]+==[\w.!+]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n)+", LOCK)


def test_hashes_are_those_of_every_platform():
    """numpy has a wheel for each; more than this machine's one and the source."""
    (block,) = re.findall(r"^numpy==.*\n((?:    --hash=.*\n)+)", LOCK, re.MULTILINE)
    assert block.count("sha256:") > 10


@pytest.mark.parametrize("tampered", [False, True])
def test_a_file_with_another_hash_is_refused(tmp_path, tampered):
    """By the very command of the Makefile, pointed at a lock and a folder of this test."""
    wheel = tmp_path / "termite-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("termite.py", "")
        archive.writestr("termite-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: termite\nVersion: 1.0\n")
        archive.writestr("termite-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("termite-1.0.dist-info/RECORD", "")
    locked = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if tampered:
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("more.py", "")
    (tmp_path / "requirements.lock").write_text(f"termite==1.0 --hash=sha256:{locked}\n")
    (line,) = re.findall(r"^\t\$\(PIP\) (.* requirements\.lock)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    place = ["--no-index", "--find-links", ".", "--target", "site", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *shlex.split(line), *place],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode != 0) is tampered, done.stderr
    assert (tmp_path / "site" / "termite.py").exists() is not tampered
    assert ("DO NOT MATCH THE HASHES" in done.stderr) is tampered
