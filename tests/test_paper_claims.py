"""The claims of every room: what every paper has, and that the documentation shows what they say today."""

import json
from pathlib import Path

import pytest

from termwise.core.claims import load_claims, papers

CLAIMS = {(c.paper, c.statement): c for c in load_claims()}
SHOWN = json.loads((Path(__file__).parents[1] / "docs" / "reproduction.json").read_text("utf-8"))


@pytest.mark.parametrize("paper", list(papers()))
def test_every_paper_has_two_quick_claims_and_one_is_exact(paper):
    quick = [c for c in CLAIMS.values() if c.paper == paper and not c.slow]
    assert len(quick) >= (3 if papers()[paper]["room"] == "predictions" else 2)
    assert any(c.exact for c in quick)


@pytest.mark.parametrize("row", SHOWN, ids=lambda row: f"{row['paper']}: {row['statement'][:40]}")
def test_the_documentation_shows_no_claim_of_the_past(row):
    claim = CLAIMS[row["paper"], row["statement"]]
    assert row["published"] == claim.published
    assert row["outcome"] == ("contradicted" if claim.contradicted else "holds")
    assert row["note"] == "; ".join(n for n in (claim.note, claim.contradicted) if n)
