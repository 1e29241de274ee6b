"""A slice of `make fuzz`; and that the suite itself finds what is broken, and makes it small."""

import re

import pytest
import torch
from tests.fuzz import suite
from tests.fuzz.checks import CHECKS, Subject
from tests.fuzz.grammar import ROWS
from tests.fuzz.programs import DEPTH, Program, random_program, shrunk
from tests.fuzz.suite import Outcome, Summary, failed, judge, smallest

from termwise.functions import JET_RULES, Jet
from termwise.predictions import RULES


@pytest.mark.parametrize("seed", [3, 5, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1, 2, 4, 6, 7))])
def test_a_program(seed):
    outcome = judge(seed)
    assert not outcome.failures, "\n\n".join(outcome.failures.values())


def test_programs_are_deep_and_of_every_row():
    """Every row of the grammar is drawn; branches split and rejoin, values and layers are used again."""
    programs = [random_program(seed) for seed in range(250)]
    text = "\n".join(line for p in programs for line in p.lines.values())
    assert all(p.depths()[p.output] >= DEPTH for p in programs)
    missing = [row.text for row in ROWS if not re.search(_pattern(row.text), text)]
    assert len(missing) <= 0.02 * len(ROWS), missing
    assert {p.dtype for p in programs} == {"float32", "float64"}
    assert (
        sum(
            any(t.count(f"self.{n}(") for n in p.layers for t in [" ".join(p.lines.values())] if t.count(f"self.{n}(") > 1)
            for p in programs
        )
        > 30
    )


def _pattern(template: str) -> str:
    """What a line of a row looks like."""
    literal = re.split(r"<.*?>(?=[(, )]|$)|\{\w+\}", template)
    return ".*".join(map(re.escape, literal))


def test_a_seed_is_a_program():
    a, b = random_program(7), random_program(7)
    assert str(a) == str(b)
    assert "class Seed7(nn.Module)" in str(a)
    assert all(torch.equal(x, y) for x, y in zip(a.draw(), b.draw(), strict=True))
    assert torch.equal(a.model()(*a.draw()), b.model()(*b.draw()))


LINES = {
    "v0": "torch.tanh(x0)",
    "v1": "v0 @ x0.transpose(1, 2)",
    "v2": "torch.sin(v1)",
    "v3": "v2 - v2.mean(1, keepdim=True)",
    "v4": "(v3 * v3).sum(2)",
}


def high(rule):
    """The rule, with coefficients of order 4 and more that are wrong."""
    return lambda at, *args, **kwargs: (
        Jet(torch.cat([jet.rows[:4], -3 * jet.rows[4:]])) if isinstance(jet := rule(at, *args, **kwargs), Jet) else jet
    )


BROKEN = {
    "a rule that takes the own derivative": (RULES, "sin", lambda at, x: at.op(x), "relevance_closes", "torch.sin"),
    "half a product": (RULES, "matmul", lambda at, a, b: at.op(a, b.detach()), "relevance_is_its_twin", "@"),
    "a coefficient of a jet": (JET_RULES, "tanh", lambda at, x: Jet(torch.cat([x.value.tanh()[None], x.rows[1:]])), "jets_are_nested_derivatives", "tanh"),
    "high coefficients of a jet": (JET_RULES, "tanh", high(JET_RULES["tanh"]), "jets_are_fitted", "tanh"),
    "high coefficients of a product": (JET_RULES, "mul", high(JET_RULES["mul"]), "jets_are_fitted", "*"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found_and_made_small(name, monkeypatch):
    table, op, rule, check, line = BROKEN[name]
    program = Program(0, "float64", "any", {"x0": (3, 4)}, {}, LINES)
    assert failed(Subject(program), check) is None
    monkeypatch.setitem(table, op, rule)
    problem = failed(Subject(program), check)
    assert isinstance(problem, AssertionError)
    small, _ = smallest(program, check, problem)
    (only,) = small.lines.values()
    assert line in only


def test_an_error_outside_the_checks_is_a_failure(monkeypatch):
    monkeypatch.setattr(suite, "depth", lambda subject: 1 / 0)
    monkeypatch.setattr(suite, "CHECKS", {"recording": CHECKS["recording"]})
    (text,) = judge(3).failures.values()
    assert "seed 3: outside the checks" in text
    assert "ZeroDivisionError" in text


def test_what_is_never_judged_is_below_its_floor():
    summary = Summary()
    for seed in range(10):
        skipped = [("jets_are_fitted", "order 6", "no reason"), ("narrow_is_wide", "", "float64")]
        others = [(name, "", "") for name in CHECKS if name not in ("jets_are_fitted", "narrow_is_wide", "recording")]
        summary.add(Outcome(seed, verdicts=[*skipped, *others, *[("recording", "", "")] * (seed > 0)]))
    low = {what: (n, why) for what, n, why, floor in summary.judged() if n < floor}
    assert low == {
        "jets_are_fitted: order 6": (0, {"no reason": 10}),
        "narrow_is_wide": (0, {"float64": 10}),
        "recording": (9, {}),
    }
    assert "0 narrow_is_wide; 10 x float64" in str(summary)


def test_what_float32_loses_is_measured_in_float64(monkeypatch):
    """A sum of large parts that cancel is no failure in float32; a rule that is wrong is one, in float32 as well."""
    lines = {
        "v1": "torch.sin(x90)",
        "v2": "v1 - v1.mean(2, keepdim=True)",
        "v3": "F.glu(torch.cat([v2, v2], 1), 1)",
        "v4": "v3.cumprod(2)",
        "v5": "self.l0(v4)",
    }
    layers = {"l0": "nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=4)"}
    program = Program(1055, "float32", "any", {"x90": (4, 5)}, layers, lines)
    assert failed(Subject(program), "relevance_closes") is None
    monkeypatch.setitem(RULES, "sin", lambda at, x: at.op(x))
    assert isinstance(failed(Subject(program), "relevance_closes"), AssertionError)


def test_smaller_programs_are_programs():
    program = random_program(1)
    for smaller in shrunk(program):
        assert len(smaller.lines) < len(program.lines)
        smaller.model()(*smaller.draw())
    assert set(CHECKS) >= {"recording", "relevance_closes", "relevance_is_its_twin", "compression_keeps_all_at_full_budget"}
