"""Claims over the engine: the same outcomes as without it, kept, and a claim that takes its process along has failed."""

import json
import os
import signal

import pytest
from typer.testing import CliRunner

from termwise import cli
from termwise.core import claims
from termwise.core.claims import Claim, load_claims, papers
from termwise.engine import Results, run
from termwise.verifying import ClaimRows, VerifyJob, measured


def invoke(*arguments):
    done = CliRunner().invoke(cli.app, ["--no-progress", *map(str, arguments)])
    return done.exit_code, done.output


def _first():
    return "7", True


def _raises():
    raise ZeroDivisionError("nothing to divide by")


@pytest.fixture
def toys(monkeypatch):
    paper = next(iter(papers()))
    found = [Claim(paper, f"{f.__name__} is so", "7", f) for f in (_first, _raises)]
    monkeypatch.setattr(claims, "CLAIMS", {c.name: c for c in found})
    monkeypatch.setattr(claims, "load_claims", lambda room=None: found)
    return found


def test_the_command_keeps_what_it_measured(toys, tmp_path):
    def asked(*more):
        code, said = invoke("verify", toys[0].paper, "--json", *more)
        assert code == 1  # one of them failed
        return json.loads(said[said.index("[\n") :])

    rows = asked("--out", tmp_path / "out", "--workers", 1)
    assert [{**r, "seconds": 0} for r in rows] == [{**r, "seconds": 0} for r in asked()]
    results = Results(tmp_path / "out")
    assert results.finished
    assert results.scalars("label", "outcome").to_pylist() == [{"label": toys[0].paper, "outcome": r["outcome"]} for r in rows]
    assert asked("--out", tmp_path / "out", "--workers", 1) == rows  # the seconds too: nothing was measured again
    toys.pop()
    code, said = invoke("verify", toys[0].paper, "--out", tmp_path / "out")
    assert code == 2
    assert "dataset.rows: 2 there, 1 now" in said


def test_a_claim_that_raises_failed_and_so_did_one_that_is_an_error(toys, tmp_path):
    results = run(VerifyJob(), ClaimRows(toys), tmp_path / "out", workers=1, batch_size=1)
    first, second = measured(results)
    assert (first.name, first.outcome, first.measured) == (toys[0].name, "holds", "7")
    assert second.outcome == "failed"
    assert "nothing to divide by" in second.details
    assert not len(results.errors)


class Deadly(VerifyJob):
    """The first claim of all ends its process."""

    def run(self, rows):
        if rows[0].index == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(rows)


@pytest.mark.slow
def test_a_claim_that_kills_its_process_failed(tmp_path):
    chosen = [c for c in load_claims("weights") if c.paper == "curing" and not c.slow]
    found = measured(run(Deadly(), ClaimRows(chosen), tmp_path / "out", workers=2, batch_size=1))
    assert {r.name: r.outcome for r in found} == {c.name: "failed" if c is chosen[0] else "holds" for c in chosen}
    assert "its worker died" in found[-1].measured
