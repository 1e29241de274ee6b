"""The claims of this room: what every paper has."""

import pytest

from termwise.core.claims import load_claims, papers, run

CLAIMS = load_claims("functions")


@pytest.mark.parametrize("paper", [key for key, row in papers().items() if row["room"] == "functions"])
def test_every_paper_has_two_quick_claims_and_one_is_exact(paper):
    quick = [c for c in CLAIMS if c.paper == paper and not c.slow]
    assert len(quick) >= 2
    assert any(c.exact for c in quick)


def test_a_claim_holds():
    (found,) = [c for c in CLAIMS if c.name == "higher-order-ad.perturbations_are_not_confused"]
    result = run(found)
    assert result.outcome == "holds", result.measured + result.details
