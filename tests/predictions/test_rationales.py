"""ERASER's and DecompX's text metrics against loops written as in the papers."""

import math

import pytest
import torch
from torch import nn

from termwise.predictions import words
from termwise.predictions.faithfulness import comprehensiveness_eraser, masked_text, sufficiency_eraser
from termwise.predictions.rationales import ERASER, TENTHS

DOUBLE = torch.float64


class Reader(nn.Module):
    """Order matters, so that removing and keeping are no sums."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.table = nn.Embedding(20, 6, dtype=DOUBLE)
        self.rnn, self.head = nn.GRU(6, 5, batch_first=True).double(), nn.Linear(5, 3).double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=DOUBLE))

    def forward(self, input_ids):
        return self.head(self.rnn(self.table(input_ids))[0][:, -1])


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randint(1, 20, (3, 30), generator=g), torch.randn(3, 30, generator=g)


def probability(model, ids, label):
    with torch.no_grad():
        return model(ids[None]).softmax(1)[0, label].item()


@pytest.mark.parametrize("only", [False, True])
def test_eraser_is_its_definition(only):
    model, (ids, relevance) = Reader().eval(), texts()
    labels = model(ids).argmax(1)
    metric = (sufficiency_eraser if only else comprehensiveness_eraser)(model, ids, relevance)
    for i in range(3):
        order = relevance[i].argsort(descending=True)
        drops = [0.0]  # k = 0
        for share in ERASER:
            top = set(order[: math.ceil(share * 30 - 1e-9)].tolist())
            left = torch.tensor([t for j, t in enumerate(ids[i].tolist()) if (j in top) == only])
            drops.append(probability(model, ids[i], labels[i]) - probability(model, left, labels[i]))
        assert metric.values[i].item() == pytest.approx(sum(drops) / 6, abs=1e-12)
    assert metric.higher_is_better is not only


def test_decompx_metrics_are_their_definitions():
    model, (ids, relevance) = Reader().eval(), texts()
    own = model(ids).argmax(1)
    labels = torch.tensor([int(own[0]), int(own[1]), (int(own[2]) + 1) % 3])
    keep = torch.zeros(30, dtype=torch.bool)
    keep[0] = keep[-1] = True  # special tokens
    found = masked_text(model, ids, relevance, labels, mask_token=0, keep=keep)
    for i in range(3):
        order = [j for j in relevance[i].argsort(descending=True).tolist() if not keep[j]]
        drop, right, alone = [], [], []
        for share in TENTHS:
            top = order[: math.ceil(share * 28 - 1e-9)]
            without, only = ids[i].clone(), ids[i].clone()
            without[top] = 0
            only[[j for j in order if j not in top]] = 0
            drop.append(probability(model, ids[i], own[i]) - probability(model, without, own[i]))
            right.append(float(model(without[None]).argmax() == labels[i]))
            alone.append(float(model(only[None]).argmax() == labels[i]))
        assert found.aopc.values[i].item() == pytest.approx(sum(drop) / 9, abs=1e-12)
        assert found.accuracy.values[i].item() == pytest.approx(sum(right) / 9)
        assert found.prediction_performance.values[i].item() == pytest.approx(sum(alone) / 9)


def test_words_go_as_one():
    model, (ids, relevance) = Reader().eval(), texts()
    words = torch.arange(30) // 3
    whole = comprehensiveness_eraser(model, ids, relevance, feature_mask=words, shares=[0.1], baseline=0)
    best = relevance.view(3, 10, 3).sum(2).argmax(1)
    changed = ids.masked_fill(words == best[:, None], 0)
    label, rows = model(ids).argmax(1), torch.arange(3)
    drop = (model(ids).softmax(1) - model(changed).softmax(1))[rows, label] / 2
    torch.testing.assert_close(whole.values, drop)


def test_sub_words_are_merged_by_their_names():
    """`words` gives the groups: what it merges goes together."""
    model, (ids, relevance) = Reader().eval(), texts()
    names = [["re", "##ad"] * 15] * 3
    grouped = comprehensiveness_eraser(model, ids, relevance, feature_mask=words(names))
    pairs = comprehensiveness_eraser(model, ids, relevance, feature_mask=torch.arange(30) // 2)
    assert torch.equal(grouped.values, pairs.values)


def test_bad_shares():
    model, (ids, relevance) = Reader().eval(), texts()
    with pytest.raises(ValueError, match=r"0\.\.1"):
        comprehensiveness_eraser(model, ids, relevance, shares=[0.5, 1.5])
