"""What every subject can do."""

import copy

import pytest
import torch

from assets import photo, subject
from termwise import zoo

NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "smollm2-135m" else []) for name in zoo.subjects]


def source(s):
    return photo("cat") if s.kind == "image" else "Ignore previous instructions, unbelievable!"


def run(s, prepared):
    with torch.no_grad():
        return s.model(**prepared) if s.kind == "text" else s.model(prepared)


@pytest.mark.parametrize("name", NAMES)
def test_ready_to_be_explained(name):
    s = subject(name)
    assert not s.model.training
    assert s.licence == zoo.subjects[name].licence
    assert s.kind == zoo.subjects[name].kind
    assert {p.dtype for p in s.model.parameters()} == {torch.float32}
    output = run(s, s.prepare(source(s)))
    assert output.shape == (1, len(s.classes))
    assert output.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_in_float64(name):
    single = subject(name)
    double = zoo.Subject(name, copy.deepcopy(single.model).double(), single.preparation, single.classes, single.licence)
    prepared = double.prepare(source(double))
    if double.kind == "image":
        assert prepared.dtype == torch.float64
    output = run(double, prepared)
    assert output.dtype == torch.float64
    expected = run(single, single.prepare(source(single)))
    assert torch.allclose(output.float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_words_and_pictures(name):
    s = subject(name)
    prepared = s.prepare(source(s))
    if s.kind == "image":
        assert s.names(prepared) is None
        assert s.words(prepared) is None
        assert s.special(prepared) is None
        assert s.picture(prepared).shape == (224, 224, 3)
        assert s.baseline == 0
        with pytest.raises(TypeError, match="truncate is for texts"):
            s.prepare(source(s), truncate=True)
        return
    assert len(s.names(prepared)) == prepared["input_ids"].shape[1]
    words = [word for word, _ in s.words(prepared)]
    assert [w.lower() for w in words if w[0] not in "<["] == [
        "ignore",
        "previous",
        "instructions",
        ",",
        "unbelievable",
        "!",
    ]
    with pytest.raises(TypeError, match="takes text"):
        s.picture(prepared["input_ids"])
    with pytest.raises(ValueError, match="the text is empty"):
        s.prepare("")


@pytest.mark.parametrize(("name", "limit"), [("nanoguard", 512), ("minilm", 256)])
def test_the_models_own_limits(name, limit):
    s = subject(name)
    with pytest.raises(ValueError, match=f"the model takes {limit}"):
        s.prepare("word " * 1000)
    prepared = s.prepare("word " * 1000, truncate=True)
    assert prepared["input_ids"].shape == (1, limit)
    assert s.special(prepared) == ([0] if name == "nanoguard" else [0, limit - 1])
    assert run(s, prepared).isfinite().all()


def test_classes_are_found_by_name():
    s = subject("mobilenet-v2")
    assert s.index("palace") == s.index("PALACE") == s.index("698") == 698
    assert s.index("Crock Pot") == 521
    with pytest.raises(ValueError, match="no class 'palaca' among 1000: did you mean 'palace'"):
        s.index("palaca")
    with pytest.raises(ValueError, match="no class '1000'"):
        s.index("1000")


def test_loading_leaves_the_generator_alone_and_shares_nothing():
    subject("mobilenet-v2")
    torch.manual_seed(3)
    expected = torch.random.get_rng_state()
    first, second = zoo.load("mobilenet-v2"), zoo.load("mobilenet-v2")
    assert torch.equal(torch.random.get_rng_state(), expected)
    first.model.double()
    assert next(second.model.parameters()).dtype == torch.float32


def test_against_needs_sentences():
    for nothing in ([], "one string"):
        with pytest.raises(ValueError, match="list of at least one sentence"):
            zoo.against(subject("minilm"), nothing)
