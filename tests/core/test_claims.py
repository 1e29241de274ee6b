"""The machinery of claims, with toy claims: outcomes, refusals, and what the command line says."""

import json

import pytest
from typer.testing import CliRunner

from termwise import cli
from termwise.core import claims
from termwise.core.claims import CLAIMS, claim, papers, run, verify

PAPER = "dynamiclrp"


@pytest.fixture(autouse=True)
def _empty_register(monkeypatch):
    """No claim but the test's own, and the real ones are back afterwards."""
    kept = dict(CLAIMS)
    CLAIMS.clear()
    monkeypatch.setattr(claims, "load_claims", lambda room=None: list(CLAIMS.values()))
    yield
    CLAIMS.clear()
    CLAIMS.update(kept)


def enter(name, measure, paper=PAPER, **options):
    """Register a function under a name; gives the claim."""
    measure.__name__ = name
    claim(paper, statement=f"about {name}", published="1", **options)(measure)
    return CLAIMS[f"{paper}.{name}"]


def broken():
    raise ArithmeticError("seven is no answer")


def toys():
    """One claim of every outcome, in an order that is not that of the outcomes."""
    return [
        enter("good", lambda: ("1.0", True), exact=True, note="small"),
        enter("raises", broken),
        enter("otherwise", lambda: ("2.0", False), contradicted="measured 2.0 on three seeds"),
        enter("bad", lambda: ("3.0", False)),
    ]


def test_it_holds():
    result = run(enter("good", lambda: ("1.0", True), exact=True, note="small"))
    assert (result.outcome, result.measured, result.published, result.exact) == ("holds", "1.0", "1", True)
    assert (result.name, result.paper, result.statement) == (f"{PAPER}.good", PAPER, "about good")
    assert (result.note, result.details) == ("small", "")
    assert result.seconds >= 0


def test_it_fails():
    result = run(enter("bad", lambda: ("3.0", False)))
    assert (result.outcome, result.measured, result.details) == ("failed", "3.0", "")


def test_what_raises_has_failed_and_the_traceback_is_kept():
    result = run(enter("raises", broken))
    assert result.outcome == "failed"
    assert result.measured == "ArithmeticError: seven is no answer"
    assert "Traceback" in result.details
    assert "in broken" in result.details


def test_a_return_value_of_another_form_has_failed():
    assert run(enter("formless", lambda: True)).outcome == "failed"


def test_a_contradicted_claim_stays_contradicted_or_has_failed():
    on_record = {"contradicted": "measured 2.0 on three seeds"}
    result = run(enter("otherwise", lambda: ("2.0", False), **on_record))
    assert (result.outcome, result.note) == ("contradicted", "measured 2.0 on three seeds")
    result = run(enter("now", lambda: ("1.0", True), **on_record))
    assert result.outcome == "failed"
    assert "on record as contradicted, but it holds now" in result.measured
    assert run(enter("raises", broken, **on_record)).outcome == "failed"


def test_what_is_refused():
    enter("good", lambda: ("1.0", True))
    with pytest.raises(ValueError, match=f"there is a claim {PAPER}.good already"):
        enter("good", lambda: ("2.0", True))
    with pytest.raises(ValueError, match=r"no paper 'nobody' in core/papers.toml: known are .*dynamiclrp"):
        enter("other", lambda: ("1.0", True), paper="nobody")
    with pytest.raises(ValueError, match="an exact claim of 'dynamiclrp' cannot be contradicted"):
        enter("other", lambda: ("1.0", False), exact=True, contradicted="no")
    assert list(CLAIMS) == [f"{PAPER}.good"]


def test_the_function_stays_a_function():
    @claim(PAPER, statement="s", published="p")
    def plain():
        return "1", True

    assert plain() == ("1", True)


def test_verify_runs_in_order_and_goes_on_after_a_failure():
    assert [r.outcome for r in verify(toys())] == ["holds", "failed", "contradicted", "failed"]


def test_papers_have_all_their_columns():
    rows = papers()
    assert [row["number"] for row in rows.values()] == sorted(row["number"] for row in rows.values())
    for key, row in rows.items():
        assert {"key", "number", "title", "authors", "year", "room", "api"} <= row.keys(), key
        assert "arxiv" in row or "doi" in row or "url" in row, key


def invoke(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


def test_the_command_line_ends_with_1_when_one_failed():
    toys()
    done = invoke("verify", PAPER)
    assert done.exit_code == 1
    for text in ("holds", "(exact)", "contradicted", "failed"):
        assert text in done.output
    assert "Traceback" not in done.output
    assert "in broken" in invoke("verify", PAPER, "-v").output
    assert "in broken" in invoke("-v", "verify", PAPER).output


def test_the_command_line_ends_with_0_when_none_failed():
    enter("good", lambda: ("1.0", True))
    enter("otherwise", lambda: ("2.0", False), contradicted="measured 2.0 on three seeds")
    assert invoke("verify", PAPER).exit_code == 0
    assert invoke("verify", "--room", "predictions").exit_code == 0


def test_the_progress_bar_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    enter("good", lambda: ("1.0", True))
    assert "measuring" in invoke("verify", PAPER).stderr
    for switch in ("--no-progress", "--quiet"):
        assert not invoke(switch, "verify", PAPER).stderr


def test_json_is_a_list_of_objects():
    toys()
    done = invoke("verify", PAPER, "--json")
    assert done.exit_code == 1
    rows = json.loads(done.stdout)
    fields = {"paper", "statement", "published", "measured", "outcome", "exact", "seconds", "note"}
    assert all(row.keys() == fields for row in rows)
    assert [row["outcome"] for row in rows] == ["holds", "failed", "contradicted", "failed"]


def test_slow_claims_wait_to_be_asked_for():
    enter("good", lambda: ("1.0", True))
    enter("long", broken, slow=True)
    assert invoke("verify", PAPER).exit_code == 0
    assert invoke("verify", PAPER, "--slow").exit_code == 1


def test_bad_input_ends_with_2():
    enter("long", broken, slow=True)
    for arguments, text in {
        (): "say what to verify",
        (PAPER,): "add --slow",
        ("dynamiclpr",): "did you mean 'dynamiclrp'?",
    }.items():
        done = invoke("verify", *arguments)
        assert done.exit_code == 2, done.output
        assert text in " ".join(done.output.split())
