"""Every verb of the Makefile makes .venv when it is missing, and leaves it alone when it is there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERBS = ("demo", "test", "test-all", "fuzz", "docs", "bench", "lint", "licenses", "sbom", "audit")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make: apt-get install make")


def steps(verb: str, venv: Path, *variables: str) -> str:
    """What make would do, without doing it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # these tests run under make
    command = ["make", "--dry-run", verb, f"VENV={venv}", *variables]
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_installs_first_and_once(verb, tmp_path):
    fresh = steps(verb, tmp_path)
    assert fresh.index("-m venv") < fresh.index("tests/test_environment.py") < fresh.index("touch")
    (tmp_path / ".ready").touch()
    again = steps(verb, tmp_path)
    assert "pip install" not in again
    assert fresh.endswith(again)


def test_the_index_of_torch_can_be_chosen(tmp_path):
    assert "--index-url" not in steps("test", tmp_path)
    assert "--index-url https://example.org/cpu" in steps("test", tmp_path, "TORCH_INDEX=https://example.org/cpu")


def test_how_many_programs_and_from_which_seed(tmp_path):
    (tmp_path / ".ready").touch()
    assert "-m tests.fuzz --programs 2000 --seed 0 --workers 2" in steps("fuzz", tmp_path)
    assert "--programs 9 --seed 5" in steps("fuzz", tmp_path, "PROGRAMS=9", "SEED=5")
