"""The mean of a data set is the mean of its samples, whatever the batches were, and an interrupt loses nothing."""

import pytest
import torch
from torch import nn

from termwise.predictions import MeanExplanation, contrast, explain, explain_dataset, patches


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double().eval()


X = torch.randn(11, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def close(a, b):
    assert list(a.parts) == list(b.parts)
    torch.testing.assert_close(a.whole, b.whole, rtol=0, atol=1e-12)
    for name in a.parts:
        torch.testing.assert_close(a.parts[name], b.parts[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"target": [0, contrast(1)]}, {"at": "1", "target": 2}, {"feature_mask": patches(6, 6, 2)}]
)
def test_the_mean_is_that_of_the_samples(options):
    model = convolutional()
    mean = explain_dataset(model, X.split(3), **options).check()
    every = explain(model, X, **options)
    assert mean.count == 11
    assert mean.whole.shape == (1, *every.whole.shape[1:])
    torch.testing.assert_close(mean.whole[0], every.whole.mean(0), rtol=0, atol=1e-12)
    for name, part in every.parts.items():
        torch.testing.assert_close(mean.parts[name][0], part.mean(0), rtol=0, atol=1e-12)
    close(explain_dataset(model, X.split(4), **options), mean)
    assert "mean of 11 samples" in repr(mean)


def test_the_class_is_named_where_all_share_it():
    model, names = convolutional(), ["ant", "bee", "cat"]
    assert explain_dataset(model, X.split(4), target=1, classes=names).label() == "bee"
    assert explain_dataset(model, X.split(4), classes=names).target is None  # the largest is now this, now that
    assert explain_dataset(model, X.split(4), target=contrast(1, 2), classes=names).label() == "bee against cat"


def test_texts_of_several_lengths():
    torch.manual_seed(0)

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

        def forward(self, ids, scale):
            return self.head(self.table(ids).sum(1)) * scale[:, None]

    model = Bag().double().eval()
    ids = [torch.randint(0, 20, (n, length)) for n, length in ((2, 5), (3, 5), (2, 8))]
    batches = [(i, torch.ones(len(i), dtype=torch.float64)) for i in ids]
    mean = explain_dataset(model, batches, target=1, rules="zero").check()
    each = [explain(model, *batch, target=1, rules="zero") for batch in batches]
    sums = torch.cat([why.inputs["ids"].sum(1) for why in each])
    assert mean.inputs["ids"].shape == (1,)
    torch.testing.assert_close(mean.inputs["ids"][0], sums.mean(), rtol=0, atol=1e-12)
    same_length = explain_dataset(model, [{"ids": i, "scale": s} for i, s in batches[:2]], target=1, rules="zero")
    assert same_length.inputs["ids"].shape == (1, 5)


def test_an_interrupt_loses_nothing():
    model, batches = convolutional(), list(X.split(3))

    def until(stop):
        yield from batches[:stop]
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match=r"interrupted after 2 batches: this is the mean of 6 samples.*after="):
        part = explain_dataset(model, until(2))
    close(part, explain_dataset(model, batches[:2]))
    whole = explain_dataset(model, batches[2:], after=part)
    close(whole, explain_dataset(model, batches))
    assert whole.count == 11
    with pytest.raises(KeyboardInterrupt):
        explain_dataset(model, until(0))


def test_an_interrupt_in_the_middle_of_a_batch(monkeypatch):
    """The mean so far is replaced, never changed."""
    from termwise.predictions import dataset

    model, calls = convolutional(), []
    explain_ = dataset.explain

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return explain_(*args, **options)

    monkeypatch.setattr(dataset, "explain", interrupted)
    with pytest.warns(UserWarning, match="mean of 8 samples"):
        part = explain_dataset(model, X.split(4))
    monkeypatch.undo()
    close(part, explain_dataset(model, X[:8].split(8)))


def test_it_is_saved_and_shows_progress(tmp_path, capsys):
    mean = explain_dataset(convolutional(), X.split(6), progress=True)
    again = MeanExplanation.load(mean.save(tmp_path / "mean"))
    assert isinstance(again, MeanExplanation)
    assert again.count == 11
    close(again, mean)
    assert "Explaining" in capsys.readouterr().out


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no batch in the data"):
        explain_dataset(convolutional(), [])
    one = explain_dataset(convolutional(), X.split(6), target=0)
    with pytest.raises(ValueError, match=r"the mean so far is of \(\) targets, this batch has \(2,\)"):
        explain_dataset(convolutional(), X.split(6), target=[0, 1], after=one)
