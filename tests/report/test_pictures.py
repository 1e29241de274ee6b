"""Colours, maps, waterfalls and curves as pictures."""

import io

import matplotlib.image
import numpy as np
import pytest
import torch

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Pixels
from termwise.core.waterfall import bars
from termwise.report import curve, figures, heatmap
from termwise.report.colour import COOL, WARM, blended, css, robust_scale

from .examples import curve as example_curve
from .examples import image, matrix


def read(data: bytes) -> np.ndarray:
    assert data.startswith(b"\x89PNG")
    return matplotlib.image.imread(io.BytesIO(data), format="png")


def test_colours_are_symmetric_about_zero():
    assert blended(0.0, 1.0).tolist() == [255, 255, 255]
    assert blended(2.0, 2.0).tolist() == list(WARM)
    assert blended(-5.0, 2.0).tolist() == list(COOL)
    assert css(0.5, 1.0).rpartition(",")[2] == css(-0.5, 1.0).rpartition(",")[2]


def test_scale_is_robust_and_never_zero():
    values = np.ones(1000)
    values[0] = 1e6
    assert robust_scale(values) == 1.0
    assert robust_scale(np.zeros(4)) == 1.0
    assert robust_scale([]) == 1.0
    assert robust_scale(np.eye(100)[0]) > 0  # the percentile is 0, the maximum is not
    with pytest.raises(ValueError, match="2 of 3 values are NaN"):
        robust_scale([1.0, np.nan, np.inf])
    with pytest.raises(ValueError, match="percentile"):
        robust_scale([1.0], 0)


def test_map_overlay_and_figure():
    relevance = torch.zeros(20, 30)
    relevance[5, 6], relevance[15, 20] = 2.0, -2.0
    colours = heatmap.relevance_map(relevance, percentile=100)
    assert colours.shape == (20, 30, 3)
    assert colours[5, 6].tolist() == list(WARM)
    assert colours[15, 20].tolist() == list(COOL)
    assert read(heatmap.png(colours)).shape[:2] == (20, 30)
    picture = np.full((20, 30, 3), 128, dtype=np.uint8)
    over = heatmap.overlay(picture, relevance).astype(int)
    assert over[5, 6, 0] > over[5, 6, 2]
    assert over[15, 20, 2] > over[15, 20, 0]
    shown = Pixels("a $ b", relevance.numpy(), picture)
    assert read(figures.png([shown], "costs $5")).shape[2] == 4
    with pytest.raises(ValueError, match="same height and width"):
        heatmap.overlay(picture[:10], relevance)
    with pytest.raises(ValueError, match="sum over the channels"):
        heatmap.relevance_map(torch.zeros(3, 4, 4))


def test_smoothing_keeps_the_sum_away_from_borders():
    relevance = torch.zeros(41, 41)
    relevance[20, 20] = 3.0
    assert heatmap.smoothed(relevance).sum() == pytest.approx(3.0)
    assert heatmap.smoothed(relevance)[20, 18] == pytest.approx(heatmap.smoothed(relevance)[22, 20])
    assert np.array_equal(heatmap.smoothed(relevance, 0), relevance.numpy())


def test_pictures_are_the_same_bytes_every_time():
    why = image()
    assert figures.png(why.pictures(), "a $ sign") == figures.png(why.pictures(), "a $ sign")
    drawn = [curve.picture(example_curve())]
    assert figures.svg(drawn) == figures.svg(drawn)
    assert figures.svg(drawn) != figures.svg([curve.picture(example_curve(classes=False))])


def test_waterfall_goes_from_zero_to_the_whole():
    why = image(batch=2)
    for sample in range(2):
        steps = bars(why, k=5, sample=sample)
        assert steps[0].start == 0.0
        assert steps[-1].kind == "whole"
        assert steps[-1].value == float(why.whole[sample])
        assert [b.start for b in steps[1:-1]] == [b.end for b in steps[:-2]]
        assert steps[-2].end == pytest.approx(float(why.whole[sample]))
        sizes = [abs(b.value) for b in steps[1:-2]]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) == 5
        assert steps[-2].kind == "the rest"
        assert steps[-2].label == f"{len(why.parts) - 6} more"


def test_waterfall_shows_a_remainder_and_gathers_losses_by_module():
    whole = torch.tensor([10.0])
    parts = {
        "input:x": torch.tensor([4.0]),
        "rule:a@m": torch.tensor([1.0]),
        "rule:b@m": torch.tensor([2.0]),
        "other": torch.tensor([1.0]),
    }
    steps = {(b.label, b.kind): b.value for b in bars(Decomposition(whole, parts))}
    assert steps == {
        ("x", "input"): 4.0, ("m", "lost by rules"): 3.0, ("other", "part"): 1.0, ("remainder", "remainder"): 2.0, ("whole", "whole"): 10.0,
    }  # fmt: skip


def test_waterfall_needs_one_number_per_sample():
    with pytest.raises(ValueError, match="one real number per sample"):
        bars(matrix())
    with pytest.raises(ValueError, match="sample 3 is out of range: there are 1"):
        bars(image(), sample=3)


def test_verdict_says_what_the_top_tenth_costs():
    text = curve.verdict(example_curve())
    assert "most relevant 10 % of the 8x8 patches costs the model 50 of 90 points" in text
    assert "a random 10 % costs 10." in text
    assert "Half of the score is gone after 10 %, in random order after 50 %." in text
    low = example_curve()
    low.scores[:] = low.scores[:, :1] * 0.9
    assert "gone never, in random order after 50 %" in curve.verdict(low)
    assert "costs the model 0.5 of 0.9;" in curve.verdict(example_curve(classes=False))
