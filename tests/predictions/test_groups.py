"""Groups of entries add up to what their entries did."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from termwise.predictions import Groups, explain, patches, words


@cache
def image(targets=1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 4, 3)).double().eval()
    return explain(model, torch.randn(2, 3, 8, 6, dtype=torch.float64), target=list(targets) if targets != 1 else 1)


def text(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6), nn.Flatten(), nn.Linear(36, 3)).double().eval()
    return explain(model, torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 0]]), target=1, **options)


NAMES = [["[CLS]", "un", "##believ", "##able", "!", "[SEP]"], ["[CLS]", "good", "film", "##s", "[SEP]", "[PAD]"]]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 4), min_size=48, max_size=48))
def test_a_group_is_the_sum_of_its_entries(groups):
    why = image()
    mask = torch.tensor(groups).reshape(8, 6)
    found = why.grouped(mask).check().inputs["input"]
    assert found.shape == (2, max(groups) + 1)
    for g in range(max(groups) + 1):  # the slow twin
        expected = (why.inputs["input"] * (mask == g)).sum((1, 2, 3))
        torch.testing.assert_close(found[:, g], expected, rtol=0, atol=1e-12)


def test_every_shape_captum_takes():
    why = image()
    per_pixel = torch.arange(48).reshape(8, 6) % 5
    expected = why.grouped(per_pixel)
    for mask in (per_pixel[None], per_pixel[None, None], per_pixel.expand(3, 8, 6), per_pixel.expand(2, 3, 8, 6)):
        assert torch.equal(why.grouped(mask).inputs["input"], expected.inputs["input"])
        assert torch.equal(why.grouped({"input": mask}).inputs["input"], expected.inputs["input"])
    own = torch.stack([per_pixel, 4 - per_pixel]).unsqueeze(1)  # a mask for each sample
    for i in range(2):
        assert torch.equal(why.grouped(own)[i].inputs["input"], why[i].grouped(own[i : i + 1]).inputs["input"])
    rows = torch.arange(8)[:, None].expand(8, 6)
    torch.testing.assert_close(why.grouped(rows).inputs["input"], why.inputs["input"].sum((1, 3)))
    assert why.grouped(per_pixel).biases.keys() == why.biases.keys()


def test_captum_agrees():
    """Their kernels give a group's number to each of its entries; ours is that number, for a linear model."""
    captum = pytest.importorskip("captum.attr")
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double().eval()
    x, mask = torch.randn(2, 1, 8, 6, dtype=torch.float64), patches(8, 6, 4)
    theirs = captum.FeatureAblation(model).attribute(x, target=1, feature_mask=mask[None, None])
    ours = explain(model, x, target=1, feature_mask=mask).inputs["input"]
    torch.testing.assert_close(theirs, ours[:, mask].unsqueeze(1))


def test_patches():
    mask = patches(5, 7, 3)
    assert mask.shape == (5, 7)
    assert mask[0].tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert mask[:, 0].tolist() == [0, 0, 0, 3, 3]
    assert explain_patches().shape == (2, 6)
    with pytest.raises(ValueError, match="patches of 0 pixels"):
        patches(5, 7, 0)


def explain_patches():
    why = image()
    found = why.grouped(patches(8, 6, 3)).inputs["input"]
    torch.testing.assert_close(found[:, 3], why.inputs["input"][:, :, 3:6, 3:6].sum((1, 2, 3)))
    return found


def test_words_keep_their_names():
    why = text(names=NAMES, feature_mask=words(NAMES)).check()
    plain = text(names=NAMES)
    assert why.names == [["[CLS]", "unbelievable", "!", "[SEP]"], ["[CLS]", "good", "films", "[SEP]", "[PAD]"]]
    (part,) = why.inputs.values()
    (tokens,) = plain.inputs.values()
    assert part.shape == (2, 5)
    torch.testing.assert_close(part[0, 1], tokens[0, 1:4].sum())
    torch.testing.assert_close(part[1, 2], tokens[1, 2:4].sum())
    assert part[0, 4] == 0  # the first sample has four words
    assert any(name.endswith("[1] 'unbelievable'") for name, _ in why.top(9))
    from termwise.report.tokens import words as drawn

    assert [w.text for w in drawn(why, 0)] == ["[CLS]", "unbelievable", "!", "[SEP]"]
    assert [w.text for w in drawn(why, 1)] == ["[CLS]", "good", "films", "[SEP]", "[PAD]"]


def test_a_mask_of_ones_own_has_no_names():
    assert text(names=NAMES).grouped(torch.tensor([0, 0, 1, 1, 2, 2])).names is None
    named = Groups(torch.tensor([[0, 0, 1, 1, 2, 2]]), [["a", "b", "c"]])
    assert text(names=NAMES).grouped(named).names == [["a", "b", "c"]] * 2


def test_several_targets_and_inner_modules():
    why = image((0, 2))
    mask = patches(8, 6, 2)
    assert torch.equal(why.grouped(mask).only(1).inputs["input"], why.only(1).grouped(mask).inputs["input"])
    inner = text(at="0")
    thirds = torch.arange(6) // 2  # of the features of every token
    assert inner.grouped(thirds).check().inside["0"].shape == (2, 3)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(6, 8, dtype=torch.long), ValueError, r"shape \(6, 8\), which fits no input: input:input \(2, 3, 8, 6\)"),
        (torch.zeros(2, 3, 8, 1, dtype=torch.long), ValueError, "fits no input"),
        (torch.zeros(1, 2, 3, 8, 6, dtype=torch.long), ValueError, "fits no input"),
        (torch.zeros(8, 6), TypeError, "number of a group for every entry, integers; it is torch.float32"),
        (torch.full((8, 6), -1), ValueError, "has group -1: groups are counted from 0"),
        (torch.full((8, 6), 10**10), ValueError, r"has group 10000000000, and there are 288 entries: count groups from 0"),
        ({"inputs": torch.zeros(8, 6, dtype=torch.long)}, ValueError, "names 'inputs'; there are input:input"),
        ({"input": torch.zeros(7, dtype=torch.long)}, ValueError, r"shape \(7,\), input:input has \(2, 3, 8, 6\)"),
    ],
)
def test_a_bad_mask(mask, error, message):
    with pytest.raises(error, match=message):
        image().grouped(mask)


def test_a_mask_that_fits_two_inputs():
    why = explain(lambda a, b: (a * b).sum(1), torch.randn(2, 3), torch.randn(2, 3))
    mask = torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match=r"fits input:a, input:b: say which"):
        why.grouped(mask)
    assert why.grouped({"a": mask}).check(1e-4).inputs["b"].shape == (2, 3)


def test_words_of_samples_that_differ_in_length():
    with pytest.raises(ValueError, match="the samples have 2, 1 tokens: pad them"):
        words([["a", "b"], ["c"]])
