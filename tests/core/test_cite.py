"""Citations: every name in the tables is a thing, every thing finds its paper, and nothing is cited that was not used."""

import copy
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import termwise as tw
from termwise import cli
from termwise.core.cite import TITLE, _rows
from termwise.core.claims import papers

ROOT = Path(__file__).parents[2]
p = tw.predictions
MODEL = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def keys(*things):
    return {paper.key for paper in tw.cite(*things).papers}


def found(name):
    """The object of a dotted name."""
    value = tw
    for part in name.removeprefix("termwise.").split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("key", list(_rows()))
def test_a_row_is_whole_and_what_it_names_cites_it(key):
    row = _rows()[key]
    assert {"key", "title", "authors", "year", "api"} <= row.keys()
    assert ("arxiv" in row) != ("doi" in row)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", row.get("arxiv", "0000.0000"))
    assert 1900 < row["year"] < 2100
    where = {"misc": set(), "article": {"journal"}, "book": {"publisher"}, "incollection": {"booktitle", "publisher"}}
    assert row.keys() & {"journal", "booktitle", "publisher"} == where[row.get("kind", "misc")]
    assert "arxiv" in row or "kind" in row
    assert key in keys(key)
    for name in [*row["api"], *row.get("results", ())]:
        thing = found(name)
        assert key in keys(thing), name
        assert key in keys(name), name


def test_both_tables_are_there_and_do_not_overlap():
    assert set(papers()) < set(_rows())
    sources = tomllib.loads((ROOT / "src/termwise/core/sources.toml").read_text("utf-8"))["paper"]
    assert len(_rows()) == len(papers()) + len(sources)


def test_fields_named_in_a_row_are_rule_sets_and_methods():
    from termwise.predictions.rules.sets import RULE_SETS

    known = {"default", "EpsilonGammaBox", *RULE_SETS, *tw.weights.METHODS}
    for key, row in _rows().items():
        assert set(row.get("names", ())) <= known, key


def test_every_rule_set_has_a_source():
    for rules in ("default", *tw.predictions.RULE_SETS, "dynamiclrp"):
        assert keys(rules), rules


@pytest.mark.parametrize(
    ("rules", "papers"),
    [
        ("deep-taylor", {"deep-taylor"}),
        ("dynamiclrp", {"dynamiclrp"}),
        ("mambalrp", {"lrp", "mambalrp", "attnlrp", "conservative-propagation"}),
        ("gamma", {"lrp", "lrp-overview", "attnlrp", "conservative-propagation"}),
        ("EpsilonPlusFlat", {"lrp", "deep-taylor", "zennit", "clever-hans"}),
        (p.rules.EpsilonGammaBox(-3, 3), {"lrp", "lrp-overview", "deep-taylor", "zennit"}),
        (p.rules.EpsilonPlus, {"lrp", "deep-taylor", "zennit"}),
        (p.rules.deep_taylor(-3, 3), {"deep-taylor"}),
        ("default", {"lrp", "lrp-overview", "attnlrp", "conservative-propagation"}),
    ],
)
def test_an_explanation_cites_its_rules_and_no_others(rules, papers):
    assert keys(tw.explain(MODEL, X, rules=rules)) == papers


def test_rules_of_ones_own_are_on_no_record():
    changed = p.rules.EpsilonGammaBox(-3, 3)
    changed["linear"] = "gamma"
    for own in ({torch.nn.Linear: "gamma"}, {**p.rules.EpsilonPlus}, changed):
        cited = tw.cite(tw.explain(MODEL, X, rules=own))
        assert not cited.papers
        assert 'No paper is on record for rules="custom"' in str(cited)


def test_every_named_mapping_knows_its_name():
    sets = p.rules.sets
    for name, rules in p.RULE_SETS.items():
        if isinstance(rules, sets.RuleSet):
            assert sets.name_of(rules) == sets.name_of(copy.copy(rules)) == name


def test_results_cite_what_made_them(tmp_path):
    assert keys(p.integrated_gradients(MODEL, X, target=0)) == {"integrated-gradients"}
    assert keys(p.smoothgrad(MODEL, X, target=0)) == {"smoothgrad"}
    assert keys(p.gradient_x_input(MODEL, X, target=0)) == {"gradient-x-input"}
    assert keys(tw.expand(MODEL, X, X, order=1)) == {"evaluating-derivatives"}
    factors = tw.weights.cur(torch.randn(6, 5), 2)
    assert keys(factors) == {"curing", "deim-cur"}
    assert keys(tw.Decomposition.load(factors.save(tmp_path / "cur"))) == {"curing", "deim-cur"}
    assert keys(tw.compress(MODEL, 0.8, data=torch.randn(64, 6), method="welore", progress=False)) == {"welore"}
    assert not keys(tw.compress(MODEL, 0.8, data=torch.randn(64, 6), progress=False))  # "auto" is this library's own
    series = tw.computation.TaylorSeer(interval=2, sites="output")
    assert keys(tw.accelerate(lambda x, t: x * t, series, scheduler=torch.linspace(0, 1, 9))) == {"taylorseer"}


def test_a_subclass_does_not_cite_what_its_base_does():
    assert keys(tw.functions.ResidualExpansion) == {"residual-depth"}


def test_functions_offer_all_their_methods():
    assert {"curing", "alds", "welore", "rom", "lord", "stable-cp", "tucker"} <= keys(tw.compress)
    assert {"lrp", "attnlrp", "dynamiclrp"} <= keys(tw.explain)
    assert keys(tw.functions.higher_order.reverse) == {"higher-order-ad"}
    assert keys(tw.decompx, tw.chefer) == {"decompx", "chefer"}


def test_what_is_not_known_is_said():
    with pytest.raises(ValueError, match="no paper is known by 'curring': did you mean 'curing'"):
        tw.cite("curring")
    with pytest.raises(TypeError, match="a Sequential does not say what made it"):
        tw.cite(MODEL)
    with pytest.raises(TypeError, match="print is not of this library"):
        tw.cite(print)
    plain = tw.Decomposition(torch.ones(1), {"a": torch.ones(1)})
    assert "No paper is on record for Decomposition" in str(tw.cite(plain))


def test_termwise_is_what_the_citation_file_says():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f'title: "{TITLE}"' in text
    assert 'name: "The Termwise authors"' in text
    assert str(tw.cite()) == f"The Termwise authors. {TITLE}. Version {tw.__version__}."


def test_bibtex_reads():
    text = tw.cite("rom", "higher-order-ad", "evaluating-derivatives", "lrp-overview", "deep-taylor").bibtex()
    entries = re.findall(r"^@(\w+)\{([\w-]+),\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    assert [(kind, key) for kind, key, _ in entries] == [
        ("software", "termwise"),
        ("book", "evaluating-derivatives"),
        ("article", "deep-taylor"),
        ("incollection", "lrp-overview"),
        ("article", "higher-order-ad"),
        ("misc", "rom"),
    ]
    for _, _, body in entries:
        assert body.count("{") == body.count("}")
        assert all(re.fullmatch(r"  \w+ = \{.*\},", line) for line in body.splitlines())
    assert "eprint = {2312.07046}" in text
    assert "  journal = {Pattern Recognition}," in text
    assert "  booktitle = {Explainable AI: Interpreting, Explaining and Visualizing Deep Learning}," in text
    assert "author = {Mathieu Huot and Sam Staton and Matthijs Vákár}" in text


def test_a_page_links_to_the_papers():
    page = tw.cite("rom")._repr_html_()
    assert '<a href="https://arxiv.org/abs/2312.07046">Rethinking Compression' in page


def test_the_command_line(tmp_path):
    run = CliRunner()
    assert "Sanghyeon Park" in run.invoke(cli.app, ["cite", "curing"]).output
    assert "@misc{curing," in run.invoke(cli.app, ["cite", "tw.compress", "--bibtex"]).output
    saved = tw.explain(MODEL, X, rules="deep-taylor").save(tmp_path / "why.safetensors")
    assert "Deep Taylor" in run.invoke(cli.app, ["cite", str(saved)]).output
    assert run.invoke(cli.app, ["cite", "curring"]).exit_code == 2


def test_the_table_goes_with_the_package():
    assert importlib.resources.files("termwise.core").joinpath("sources.toml").is_file()
    assert '"core/sources.toml"' in (ROOT / "pyproject.toml").read_text("utf-8")
