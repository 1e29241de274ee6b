"""Localisation, segmentation and randomisation: known answers, scikit-learn and scipy as oracles, and what must be noticed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import termwise as tw
from termwise.predictions.faithfulness import (
    mass_inside,
    planted,
    pointing_game,
    randomisation,
    segmentation,
    span_identification,
    token_f1,
    top_token_in_answer,
)
from termwise.predictions.randomisation import spearman
from termwise.predictions.segmentation import average_precision

DOUBLE = torch.float64


def test_planted_evidence_is_found_by_a_model_that_looks_for_it():
    """The score is the best match of the evidence; relevance must lie on it, and a random map scores the share of its area."""
    g = torch.Generator().manual_seed(0)
    evidence = torch.randn(2, 3, 3, generator=g, dtype=DOUBLE)
    images, mask = planted(0.1 * torch.randn(12, 2, 14, 14, generator=g, dtype=DOUBLE), evidence, g)
    assert mask.sum((1, 2)).tolist() == [9] * 12
    assert torch.equal(images.permute(1, 0, 2, 3)[:, mask].view(2, 12, 9), evidence.flatten(1)[:, None].expand(-1, 12, -1))
    assert len({tuple(m.nonzero()[0].tolist()) for m in mask}) > 6
    model = nn.Sequential(nn.Conv2d(2, 1, 3, bias=False), nn.AdaptiveMaxPool2d(1), nn.Flatten()).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(evidence[None])
    relevance = tw.explain(model, images, target=0, rules="zero").inputs["input"]
    assert mass_inside(relevance, mask).values.tolist() == [1.0] * 12
    assert pointing_game(relevance, mask).mean == 1
    chance = torch.rand(400, 14, 14, generator=g, dtype=DOUBLE)
    inside = mass_inside(chance, mask[:1].expand(400, -1, -1))
    low, high = inside.interval(0.999)
    assert low < 9 / 196 < high


def test_masses_and_points_by_hand():
    relevance = torch.tensor([[4.0, -9.0, 4.0, 2.0], [-1.0, -1.0, -2.0, -3.0]])
    mask = torch.tensor([True, True, False, False])
    assert mass_inside(relevance, mask).values.tolist() == pytest.approx([0.4, 0.0])
    assert pointing_game(relevance, mask).values.tolist() == [0.5, 1.0]  # one of two largest; both of two
    with pytest.raises(ValueError, match=r"mask has shape \(3,\)"):
        mass_inside(relevance, mask[:3])
    with pytest.raises(ValueError, match="does not fit"):
        planted(torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 3))


def test_token_f1_by_hand():
    relevance = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    marked = torch.tensor([[True, False, True, False, False]])
    found = [token_f1(relevance, marked, k).mean for k in (1, 2, 3, 5, 80)]
    assert found == pytest.approx([2 / 3, 2 / 4, 4 / 5, 4 / 7, 4 / 7])
    with pytest.raises(ValueError, match="marked token"):
        token_f1(relevance, ~marked & marked, 1)


def test_spans_by_hand():
    relevance = torch.tensor([[9.0, 1.0, 5.0, 2.0], [0.0, 7.0, 8.0, 1.0], [3.0, 0.0, 9.0, 1.0]])
    span = torch.tensor([[2, 3], [1, 2], [2, 2]])
    context = torch.tensor([False, True, True, True]).expand(3, -1)
    found = {name: m.values.tolist() for name, m in span_identification(relevance, span, context).items()}
    assert found["top-1"] == [1, 1, 1]
    assert found["top-2 strict"] == [0.5, 1, 1]  # a one-token answer counts twice
    assert found["top-2 span"] == [0.5, 1, 0.5]
    assert found["IoU"] == pytest.approx([1 / 4, 1, 1 / 3])
    assert span_identification(relevance, span)["top-1"].values.tolist() == [0, 1, 1]
    tokens = [["the", "a", "b", " New"], ["x", "y", " York", "z"], ["", "", "", ""]]
    hits = top_token_in_answer(relevance, tokens, [["The end"], ["new york city", "nyc"], ["x"]])
    assert hits.values.tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="skip samples without"):
        span_identification(relevance, span.flip(1))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.booleans())
def test_average_precision_is_scikit_learns(seed, ties):
    metrics = pytest.importorskip("sklearn.metrics")
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(40, generator=g, dtype=DOUBLE)
    scores = (scores * 5).floor() if ties else scores
    truth = torch.rand(40, generator=g) < 0.3
    truth[0] = True
    assert average_precision(scores, truth).item() == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-12)


def test_segmentation_is_its_definition():
    metrics = pytest.importorskip("sklearn.metrics")
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 6, 7, generator=g, dtype=DOUBLE)
    masks = torch.rand(5, 6, 7, generator=g) < 0.4
    found = segmentation(maps, masks)
    normal = [(m - m.min()) / (m.max() - m.min()) for m in maps]
    seen = torch.stack([m > m.mean() for m in normal])
    for i in range(5):
        t, p = masks[i].flatten(), seen[i].flatten()
        assert found.pixel_accuracy.values[i].item() == pytest.approx(metrics.accuracy_score(t, p))
        assert found.f1.values[i].item() == pytest.approx(metrics.f1_score(t, p))
        both = torch.cat([1 - normal[i].flatten(), normal[i].flatten()])
        assert found.map.values[i].item() == pytest.approx(metrics.average_precision_score(torch.cat([~t, t]), both))
    per_class = metrics.jaccard_score(masks.flatten(), seen.flatten(), average=None)  # over the whole data set
    assert found.miou.mean == pytest.approx(per_class.mean())
    low, high = found.miou.interval()
    assert low < found.miou.mean < high


def test_a_pixel_at_the_mean_is_background():
    """The foreground is what lies above the mean: of a map that says nothing, nothing."""
    mask = torch.tensor([[[True, False], [False, False]]])
    assert segmentation(torch.ones(1, 2, 2), mask).pixel_accuracy.mean == 0.75
    at_the_mean = torch.tensor([[[2.0, 1.0], [1.0, 0.0]]])
    assert segmentation(at_the_mean, mask).pixel_accuracy.mean == 1.0


def test_segmentation_enlarges_small_maps_and_refuses_empty_masks():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4, :4] = True
    small = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert segmentation(small, mask).f1.mean > 0.6
    assert segmentation(small[:, None].expand(-1, 3, -1, -1), mask).f1.mean > 0.6
    with pytest.raises(ValueError, match="object and background"):
        segmentation(small, torch.ones(1, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="maps of the same images"):
        segmentation(small, mask.expand(2, -1, -1))


# -- randomisation -----------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.booleans())
def test_spearman_is_scipys(seed, ties):
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, 25, generator=g, dtype=DOUBLE)
    if ties:
        a, b = (a * 2).round(), (b * 2).round()
    wanted = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(wanted, abs=1e-12)


def trained() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)).double().eval()
    return model, torch.randn(8, 40, dtype=DOUBLE)


def test_relevance_forgets_with_the_model_and_the_model_stays():
    model, x = trained()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    check = randomisation(model, lambda m: tw.explain(m, x, target=0, rules="zero"))
    assert check.layers == ["4", "2", "0"]
    assert check.correlations.shape == (8, 3)
    assert abs(check.after().mean) < 0.3
    assert check.after("4").mean > check.after().mean - 0.3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert check.figure()[:4] == b"\x89PNG"


def test_a_map_that_ignores_the_top_shows():
    """Only the first layer is looked at: the correlation stays 1 until that layer is redrawn."""
    model, x = trained()
    check = randomisation(model, lambda m: x * m[0].weight.sum(0), absolute=True)
    assert check.correlations[:, :2].min() > 1 - 1e-12
    assert check.after().mean < 0.9


def test_redrawing_is_top_down_and_adds_up():
    model, x = trained()
    seen = []
    randomisation(model, lambda m: seen.append({k: v.clone() for k, v in m.state_dict().items()}) or x, layers=["4", "0"])
    changed = [{k for k in s if not torch.equal(s[k], seen[0][k])} for s in seen]
    assert changed == [set(), {"4.weight", "4.bias"}, {"4.weight", "4.bias", "0.weight", "0.bias"}]
    with pytest.raises(ValueError, match="'1' is no layer with weights: there are 0, 2, 4"):
        randomisation(model, lambda m: x, layers=["1"])
