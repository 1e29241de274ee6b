"""What a hostile or hurried user gives, verb by verb: each is refused by us, in words that say what, where and what to do."""

from __future__ import annotations

import copy
import re

import jaxtyping
import pytest
from typer.testing import CliRunner

import termwise as tw
from bad_inputs import calculus, doors, explaining, judging, numbers, smaller
from bad_inputs.awkward import ids, text_net
from bad_inputs.case import LONGEST, Case
from bad_inputs.command_line import COMMANDS, Command
from termwise import cli
from termwise.core import CaptureError

CASES = [case for table in (explaining, judging, numbers, calculus, smaller, doors) for case in table.CASES]


@pytest.fixture(autouse=True)
def _as_users_run_it():
    """Without the checks of types that the tests put into some modules: it is our own messages that are read."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def named(case: Case | Command) -> str:
    return f"{'termwise ' * isinstance(case, Command)}{case.verb}: {case.cause}"


@pytest.mark.parametrize("case", CASES, ids=named)
def test_it_is_refused(case, tmp_path):
    case.check(tmp_path)


@pytest.mark.parametrize("command", COMMANDS, ids=named)
def test_a_command_says_it_in_a_line(command, tmp_path, monkeypatch):
    monkeypatch.setenv("TERMWISE_OFFLINE", "1")
    result = CliRunner().invoke(cli.app, [command.verb, *command.arguments(tmp_path)])
    assert result.exit_code == 2, result.output
    said = " ".join(re.sub("[╭─╮│╰╯]", " ", result.stderr).replace(str(tmp_path), "FOLDER").split())
    assert re.fullmatch(".*".join(map(re.escape, command.says.split("..."))), said), f"\nsaid:     {said}"
    assert "Traceback" not in said
    assert len(said) < LONGEST


def test_the_table_is_large_and_says_nothing_twice():
    pairs = [named(case) for case in (*CASES, *COMMANDS)]
    assert len(pairs) >= 200
    assert len({*pairs}) == len(pairs)


def test_a_bad_call_leaves_nothing_behind():
    """What was recorded of ids out of range once stood for good ids of the same shape too."""
    model = copy.deepcopy(text_net())
    with pytest.raises(CaptureError, match="index out of range"):
        tw.decompx(model, ids() + 5)
    with pytest.raises(CaptureError, match="index out of range"):
        tw.capture(model, ids() + 5)
    tw.decompx(model, ids()).check()
    with pytest.raises(ValueError, match=r"aten\.embedding at table .*do ids lie within the table"):
        tw.capture(model, ids())(ids() + 5)
