"""The published ABPC: its axis, its ranking by the largest pixel of a patch."""

import pytest
import torch
from torch import nn

from termwise.predictions import blurred, perturbation_curves, published_abpc
from termwise.predictions.patch_maxima import patch_maxima


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double().eval()


X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_it_is_four_times_the_area_on_an_axis_of_fractions():
    relevance = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = published_abpc(model(), X, relevance, patch=2, steps=4, baseline="zeros")
    largest = relevance[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).amax((3, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    curves = perturbation_curves(model(), X, largest, baseline="zeros", score="accuracy", steps=4, patch=2)
    torch.testing.assert_close(found.values, 4 * curves.abpc.values)
    assert found.values.abs().max() <= 4
    turned = published_abpc(model(), X, -relevance, patch=2, steps=4, baseline="zeros")
    assert not torch.equal(found.values, turned.values)


def test_a_patch_counts_by_its_largest_pixel():
    relevance = torch.zeros(1, 2, 4, 4)
    relevance[0, :, 0, 0] = torch.tensor([2.0, 3.0])  # channels are summed first
    relevance[0, 0, 1, 1] = -90.0
    relevance[0, 0, 3, 3] = 4.0
    kept = patch_maxima(relevance, 2)
    assert kept.unfold(1, 2, 2).unfold(2, 2, 2).sum((3, 4)).tolist() == [[[5.0, 0.0], [0.0, 4.0]]]
    with pytest.raises(ValueError, match=r"no whole number of patches of 3 x 3"):
        patch_maxima(relevance, 3)


def test_what_goes_turns_into_the_published_blur():
    side = 60
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 4)).double().eval()
    reach = torch.arange(-25, 26, dtype=torch.float64)  # a kernel of 51
    weights = torch.exp(-0.5 * (reach / 20) ** 2)
    weights = weights / weights.sum()
    wide = nn.functional.pad(x, (25, 25, 25, 25), mode="replicate")
    seen = torch.einsum("bcijkl,k,l->bcij", wide.unfold(2, 51, 1).unfold(3, 51, 1), weights, weights)
    relevance = torch.randn(2, side, side, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = published_abpc(net, x, relevance, patch=20, steps=9)
    torch.testing.assert_close(found.values, published_abpc(net, x, relevance, patch=20, steps=9, baseline=seen).values)
    torch.testing.assert_close(blurred(x, 20.0, 51), seen)
    assert (blurred(x) - seen).abs().max() > 0.01  # the blur that other curves have is another
    with pytest.raises(ValueError, match="odd number of pixels, got 50"):
        blurred(x, 20.0, 50)
