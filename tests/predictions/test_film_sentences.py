"""How claims on texts compare methods: which way is good, what counts as ahead, and a control that raises."""

import pytest
import torch

from termwise.predictions.claims.film_sentences import ahead, compared, random
from termwise.predictions.metric import Metric
from termwise.predictions.rationales import MaskedText


def made(shift=0.0, seed=0):
    values = shift + torch.rand(40, generator=torch.Generator().manual_seed(seed))
    return MaskedText(Metric("a", values), Metric("b", values, higher_is_better=False), Metric("c", values))


FOUND = {"ours": made(0.5, 1), "theirs": made(0.0, 2), "random": made(0.0, 3), "again": made(0.0, 4)}


def test_ahead_is_a_whole_interval_on_the_good_side():
    assert ahead(FOUND, "ours", "theirs", "aopc")[0]
    assert not ahead(FOUND, "theirs", "ours", "aopc")[0]
    assert not ahead(FOUND, "random", "theirs", "aopc")[0]
    assert not ahead(FOUND, "theirs", "random", "aopc")[0]
    assert ahead(FOUND, "theirs", "ours", "accuracy")[0]  # low is good
    assert not ahead(FOUND, "ours", "theirs", "accuracy")[0]


def test_all_others_have_to_be_behind():
    text, holds = compared(FOUND, "ours", ("theirs", "random"), "aopc")
    assert holds
    assert "again" not in text
    assert not compared({**FOUND, "theirs": made(0.5, 5)}, "ours", ("theirs", "random"), "aopc")[1]


def test_the_control_must_fail():
    with pytest.raises(AssertionError, match="measures nothing"):
        compared({**FOUND, "again": made(1.0, 6)}, "ours", ("theirs", "random"), "aopc")


def test_random_orders_are_their_own_and_those_of_a_text():
    model, x, y = torch.nn.Identity(), {"input_ids": torch.tensor([[3, 4, 5]])}, {"input_ids": torch.tensor([[3, 4, 6]])}
    first = random(0)(model, x, torch.tensor([0]))
    assert torch.equal(first, random(0)(model, x, torch.tensor([1])))
    assert not torch.equal(first, random(1)(model, x, torch.tensor([0])))
    assert not torch.equal(first, random(0)(model, y, torch.tensor([0])))
