"""The examples of the README run as they stand."""

import re
from pathlib import Path

import pytest
import torch

import assets

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def need(example: str) -> None:
    """Skip where a model or a photograph is not here (an error in CI)."""
    for name in re.findall(r"zoo\.load\(\"(.+?)\"\)", example):
        assets.subject(name)
    for name in re.findall(r"zoo\.photo\(\"(.+?)\"\)", example):
        assets.photo(name)


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=["photograph", "sentence", "own model", "beyond", "function", "smaller", "fewer calls"]
)
def test_an_example_runs_and_adds_up(example, capsys):
    need(example)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    if "expand" in example:
        assert names["terms"].error() < 1e-3
        assert names["flow"].shape == (2, 3)
        return
    if "compress" in example:
        assert names["small"].kept <= 0.5
        assert names["smaller"](torch.zeros(2, 64)).shape == (2, 10)
        return
    if "accelerate" in example:
        x, report = torch.ones(1, 3), names["fast"].report
        for t in names["times"]:
            x = x + 0.02 * names["velocity"](x, t)
        assert report.evaluations <= 12
        assert report.estimate <= 0.01
        assert (names["x"] - x).norm() / x.norm() < 2 * report.estimate
        return
    names["why"].check(1e-5)
    printed = capsys.readouterr().out
    if "china" in example:
        assert printed.startswith("palace adds up to ")
        assert names["heat"].shape == (224, 224)
    elif "contrast" in example:
        assert printed.startswith("NanoGuard: 195 of 195 nodes have a rule")
        for name in ("inside", "tokens", "rolled"):
            names[name].check(1e-5)
    elif "nanoguard" in example:
        assert names["why"].label() == "injection"
        assert len(printed.splitlines()) == 5
    else:
        assert "'inputs'" in printed


def test_the_pictures_are_there():
    """In light and dark, with a text for those who do not see them."""
    named = re.findall(r"(?:src|srcset)=\"(.+?)\"", README)
    assert len(named) == 2
    assert all((Path(__file__).parents[1] / name).is_file() for name in named)
    assert len(re.search(r"alt=\"(.+?)\"", README)[1]) > 80


def test_there_are_seven():
    assert len(EXAMPLES) == 7


def test_every_rule_set_is_in_the_table():
    from termwise.predictions.rules.sets import IN_ITS_FORM, RULE_SETS

    rows = re.findall(r"^\| `(.+?)` +\|", README, re.MULTILINE)
    assert sorted(rows) == sorted(["default", *RULE_SETS, *IN_ITS_FORM, "EpsilonGammaBox"])


def test_cancellation_is_what_the_text_says():
    """More than two hundredfold with LRP-0, threefold with the default rules."""
    import termwise as tw

    subject = assets.subject("mobilenet-v2")
    photo = subject.prepare(assets.photo("china"))
    assert tw.explain(subject.model, photo, rules="zero").cancellation() > 200
    assert tw.explain(subject.model, photo).cancellation() < 3.5
