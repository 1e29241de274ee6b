"""The recipes of CONTRIBUTING run as they stand, each with the names of the file that it is written for."""

import doctest
import re
from pathlib import Path

import pytest
import torch
from tests import test_contract
from tests.predictions import definitions
from tests.predictions import test_rules_against_definitions as rules_tests

from termwise.core.claims import CLAIMS, run
from termwise.predictions import RULES
from termwise.predictions.claims import dynamiclrp as claims
from termwise.predictions.rules import products
from termwise.testing import CHECKS

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
RULE, DEFINITION, METHOD, ROW, CLAIM = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _nothing_stays():
    """The tables are afterwards what they were."""
    tables = (RULES, definitions.DEFINITIONS, CLAIMS)
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


def written_in(module, text):
    """What the text makes, with the names of a module at hand."""
    names = dict(vars(module))
    exec(compile(text, "CONTRIBUTING.md", "exec"), names)
    return names


def test_the_rule_is_its_definition():
    if "linalg_inv" in RULES:
        pytest.fail("linalg_inv has a rule now: take another operator for the recipe")
    written_in(products, RULE)
    written_in(definitions, DEFINITION)
    cases = rules_tests.cases("linalg_inv")
    assert cases
    for case in cases:
        rules_tests.check(RULES["linalg_inv"], definitions.DEFINITIONS["linalg_inv"], case)


def test_the_method_keeps_the_contract():
    names = {"__name__": "inclusion"}
    exec(compile(METHOD, "CONTRIBUTING.md", "exec"), names)
    example = eval("{" + ROW + "}", {**vars(test_contract), "inclusion": names["inclusion"]})["inclusion"]
    for check in CHECKS.values():
        check(example)
    found = doctest.DocTestFinder().find(names["inclusion"], "inclusion", globs={**names, "torch": torch}, module=False)
    assert sum(t.examples != [] for t in found) == 1
    assert doctest.DocTestRunner().run(found[0]).failed == 0


def test_the_claim_holds():
    before = set(CLAIMS)
    written_in(claims, CLAIM)
    (name,) = set(CLAIMS) - before
    result = run(CLAIMS[name])
    assert result.outcome == "holds", result.measured + result.details
