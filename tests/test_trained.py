"""Subjects that are trained where they are needed: what they promise, without training to the end."""

import pytest
import torch

from termwise.testing.trained import LookUp, digits_vit, lookup_qa, questions, two_digits_vit


@pytest.mark.parametrize("size", [LookUp(), LookUp(kinds=12, words=2, spans=7, longest=4)])
def test_the_answer_is_the_span_of_the_asked_kind_and_nothing_else(size):
    ids, spans = questions(200, torch.Generator().manual_seed(0), size)
    assert ids.max() == size.vocabulary - 1
    kind_of_word = torch.where(ids >= 3 + size.kinds, (ids - 3 - size.kinds) // size.words, -1)
    places = torch.arange(ids.shape[1])
    inside = (places >= spans[:, :1]) & (places <= spans[:, 1:])
    assert torch.equal(kind_of_word == (ids[:, 1] - 3)[:, None], inside)
    assert all(len(set(row[row >= 0].tolist())) == size.spans for row in kind_of_word)


@pytest.mark.parametrize(
    ("make", "short"), [(digits_vit, {"epochs": 1}), (two_digits_vit, {"steps": 3}), (lookup_qa, {"steps": 3})]
)
def test_training_is_deterministic_and_leaves_chance_alone(make, short):
    before = torch.random.get_rng_state()
    one = make.__wrapped__(1, **short)
    assert torch.equal(before, torch.random.get_rng_state())
    other = make.__wrapped__(1, **short)
    assert torch.equal(one.inputs, other.inputs)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert not any(p.requires_grad for p in one.model.parameters())
    assert not one.model.training
    assert not torch.equal(one.inputs, make.__wrapped__(2, **short).inputs)


def test_masks_are_the_ink_of_each_digit():
    found = two_digits_vit.__wrapped__(0, steps=2)
    assert found.masks.shape == (300, 2, 8, 16)
    assert not found.masks[:, 0, :, 8:].any()
    assert not found.masks[:, 1, :, :8].any()
    assert (found.labels[:, 0] != found.labels[:, 1]).all()
    assert found.masks.flatten(2).any(2).all()


@pytest.mark.slow
def test_they_learn():
    assert digits_vit().accuracy > 0.92
    assert two_digits_vit().accuracy > 0.75
    assert lookup_qa().accuracy > 0.97
