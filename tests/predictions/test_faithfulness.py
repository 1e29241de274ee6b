"""Perturbation curves: optimality, symmetry, chance, every input kind, and bad input."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from termwise.predictions.faithfulness import abpc, blurred, deletion, insertion, perturbation_curves

DOUBLE = torch.float64


def linear(n: int, seed: int, classes: int = 1) -> tuple[nn.Module, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(n, classes, dtype=DOUBLE)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, n, generator=g, dtype=DOUBLE))
        model.bias.copy_(torch.randn(classes, generator=g, dtype=DOUBLE))
    return model.eval(), torch.randn(1, n, generator=g, dtype=DOUBLE)


def ranking(order: tuple[int, ...]) -> torch.Tensor:
    """A relevance whose descending order is `order`."""
    relevance = torch.empty(1, len(order), dtype=DOUBLE)
    for place, feature in enumerate(order):
        relevance[0, feature] = -place
    return relevance


@given(st.integers(2, 5), st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_contributions_of_a_linear_model_are_the_best_of_all_orders(n, seed):
    model, x = linear(n, seed)
    options = {"baseline": 0.0, "steps": n, "random_orders": 1}
    contributions = deletion(model, x, x * model.weight[0], 0, **options).area.values
    every = [deletion(model, x, ranking(o), 0, **options).area.values for o in itertools.permutations(range(n))]
    assert len(every) == math.factorial(n)
    assert contributions <= min(every) + 1e-12


def test_the_curve_is_its_definition():
    """Slow twin: replace one feature after the other by hand."""
    model, x = linear(6, 3, classes=3)
    relevance = torch.tensor([[0.5, -1.0, 3.0, 0.0, 2.0, -4.0]], dtype=DOUBLE)
    curve = deletion(model, x, relevance, 2, baseline=0.7, steps=6)
    changed, probabilities = x.clone(), [model(x).softmax(1)[0, 2]]
    for feature in [2, 4, 0, 3, 1, 5]:
        changed[0, feature] = 0.7
        probabilities.append(model(changed).softmax(1)[0, 2])
    y = torch.stack(probabilities)
    torch.testing.assert_close(curve.scores[0], y)
    torch.testing.assert_close(curve.area.values[0], sum((y[i] + y[i + 1]) / 12 for i in range(6)))
    torch.testing.assert_close(curve.drop(1 / 6)[0], y[0] - y[1])
    torch.testing.assert_close(curve.drop(0.25)[0], y[0] - (y[1] + y[2]) / 2)


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_abpc_changes_sign_with_the_map(seed):
    model, x = linear(12, seed, classes=4)
    relevance = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed + 1), dtype=DOUBLE)

    def area(sign):
        curves = [
            deletion(model, x, sign * relevance, 1, baseline=0.0, order=o, random_orders=1) for o in ("ascending", "descending")
        ]
        return abpc(*curves).values

    torch.testing.assert_close(area(-1), -area(1), rtol=0, atol=1e-14)


def test_abpc_of_random_maps_is_nothing():
    model, x = linear(16, 5, classes=3)
    g = torch.Generator().manual_seed(11)
    maps = torch.rand(60, 16, generator=g, dtype=DOUBLE)
    many = x.expand(60, -1)
    values = abpc(
        *(deletion(model, many, maps, 0, baseline=0.0, order=o, steps=8, random_orders=1) for o in ("ascending", "descending"))
    ).values
    assert abs(values.mean()) < 3 * values.std() / 60**0.5
    assert values.std() > 1e-3  # so the bound above could have been missed


def test_a_useless_map_does_as_well_as_chance_and_a_right_one_better():
    model, x = linear(40, 7)
    right = deletion(model, x, x * model.weight[0], 0, baseline=0.0, random_orders=40)
    mean, spread = right.random_area
    assert (mean - right.area.values) / spread > 4
    chance = deletion(model, x, torch.zeros_like(x), 0, baseline=0.0, random_orders=40)  # nothing but ties
    mean, spread = chance.random_area
    assert (mean - chance.area.values).abs() / spread < 3.5


def test_abpc_of_contributions_is_positive_and_its_definition():
    model, x = linear(20, 4)
    least, most = (deletion(model, x, x * model.weight[0], 0, baseline=0.0, order=o) for o in ("ascending", "descending"))
    assert abpc(least, most).mean == pytest.approx(least.area.mean - most.area.mean)
    assert abpc(least, most).mean > 0


def test_ties_are_broken_by_the_seed():
    model, x = linear(30, 9)
    zero = torch.zeros_like(x)

    def curve(seed):
        return deletion(model, x, zero, 0, baseline=0.0, generator=torch.Generator().manual_seed(seed)).scores

    assert torch.equal(curve(1), curve(1))
    assert not torch.equal(curve(1), curve(2))
    before = torch.random.get_rng_state()
    deletion(model, x, zero, 0, baseline=0.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_patches_of_an_image_are_summed_over_channels_and_pixels():
    """A model that sums the picture; 5x7 pixels in patches of 2 leave narrow patches at two edges."""
    g = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 5, 7, generator=g, dtype=DOUBLE)
    curve = deletion(lambda x: x.sum((1, 2, 3)), image, image, lambda y: y, baseline=0.0, patch=2, steps=12, random_orders=2)
    assert curve.features == 12
    assert curve.what == "2x2 patches"
    assert curve.score == "logit"
    for sample in range(2):
        sums = [image[sample, :, i : i + 2, j : j + 2].sum() for i in range(0, 5, 2) for j in range(0, 7, 2)]
        left = torch.stack(sums).sort(descending=True).values.cumsum(0)
        torch.testing.assert_close(curve.scores[sample, 1:], image[sample].sum() - left)
    same = deletion(
        lambda x: x.sum((1, 2, 3)), image, image.sum(1), lambda y: y, baseline=0.0, patch=2, steps=12, random_orders=2
    )
    assert torch.equal(same.scores, curve.scores)


def test_an_image_baseline_may_be_a_channel_mean_or_a_picture():
    image = torch.rand(1, 3, 4, 4, dtype=DOUBLE)
    for baseline in (torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), torch.full((3, 4, 4), 2.0)):
        curve = deletion(lambda x: x.mean((2, 3)), image, image, 1, baseline=baseline, patch=2, random_orders=1, score="logit")
        assert curve.scores[0, -1] == 2.0


def test_blurred_pictures_keep_what_has_no_detail():
    flat = torch.full((2, 3, 20, 30), 0.3, dtype=DOUBLE)
    torch.testing.assert_close(blurred(flat), flat)
    point = torch.zeros(1, 1, 41, 41, dtype=DOUBLE)
    point[..., 20, 20] = 1
    seen = blurred(point, 2.0)[0, 0]
    torch.testing.assert_close(seen[20, 22] / seen[20, 20], torch.tensor(math.exp(-0.5), dtype=DOUBLE))
    torch.testing.assert_close(seen, seen.mT)
    with pytest.raises(ValueError, match="sigma"):
        blurred(flat, 0.0)


def test_each_sample_may_have_its_own_baseline():
    image = torch.rand(2, 3, 4, 4, dtype=DOUBLE)
    own = torch.stack([torch.zeros(3, 4, 4, dtype=DOUBLE), torch.ones(3, 4, 4, dtype=DOUBLE)])
    curve = deletion(lambda x: x.mean((2, 3)), image, image, 1, baseline=own, patch=2, random_orders=1, score="logit")
    assert curve.scores[:, -1].tolist() == [0.0, 1.0]


class Bag(nn.Module):
    """Logits from the mean embedding of the tokens that the mask allows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 2, dtype=DOUBLE)

    def forward(self, input_ids, attention_mask):
        weights = attention_mask.unsqueeze(-1).to(DOUBLE)
        return {"logits": (self.table(input_ids) * weights).sum(1) / weights.sum(1)}


@pytest.mark.parametrize("baseline", ["remove", 0])
def test_tokens_are_removed_or_masked_and_some_are_kept(baseline):
    model = Bag().eval()
    ids = torch.tensor([[7, 3, 4, 5], [7, 5, 6, 1]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    relevance = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 3.0, 2.0, 1.0]])
    keep = torch.tensor([True, False, False, False])
    curve = deletion(model, inputs, relevance, 1, baseline=baseline, keep=keep, steps=3, random_orders=3, score="logit")
    assert curve.what == "tokens"
    assert curve.features == 3
    assert curve.fractions.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    left = {"remove": [[7, 3, 5], [7, 6, 1]], 0: [[7, 3, 0, 5], [7, 0, 6, 1]]}[baseline]
    expected = torch.stack([model.table(torch.tensor(row)).mean(0)[1] for row in left])
    torch.testing.assert_close(curve.scores[:, 1], expected)
    assert torch.allclose(curve.scores[:, -1:], curve.random_scores[:, :, -1])  # all orders end alike


def test_target_defaults_to_what_the_model_says_of_the_whole_input():
    model, x = linear(5, 21, classes=4)
    chosen = int(model(x).argmax())
    a, b = (deletion(model, x, x, t, baseline=0.0, random_orders=1) for t in (None, chosen))
    assert torch.equal(a.scores, b.scores)


def test_progress_reaches_the_end():
    model, x = linear(5, 1)
    seen = []
    deletion(model, x.expand(3, -1), x.expand(3, -1), 0, baseline=0.0, progress=lambda done, of: seen.append((done, of)))
    assert seen[-1][0] == seen[-1][1]
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"target": 9}, "9 is out of range.*3 classes"),
        ({"target": torch.tensor([0, 1])}, r"shape \(2,\) for 1 samples"),
        ({"relevance": torch.tensor([[1.0, 2.0, torch.nan, 3.0, 4.0]])}, "relevance has 1 values that are NaN"),
        ({"order": "sideways"}, "descending.*sideways"),
        ({"relevance": torch.ones(1, 4)}, r"\(1, 4\).*expected \(1, 5\)"),
        ({"baseline": "remove"}, "no token ids"),
        ({"baseline": "blurry"}, "baseline must be.*blurry"),
        ({"baseline": "blur"}, "is for images"),
        ({"fractions": [0.5, 2.0]}, r"0\.\.1"),
        ({"fractions": [0.01]}, "replace none"),
        ({"steps": 0}, "at least 1"),
        ({"random_orders": 0}, "random_orders"),
        ({"keep": torch.ones(5, dtype=torch.bool)}, "no feature is left"),
    ],
)
def test_bad_input_says_what_is_allowed(change, text):
    model, x = linear(5, 0, classes=3)
    arguments = {"relevance": x, "target": 0, "baseline": 0.0, **change}
    with pytest.raises(ValueError, match=text):
        deletion(model, x, **arguments)


def test_training_mode_and_output_without_classes_are_refused():
    model, x = linear(5, 0)
    with pytest.raises(ValueError, match="eval"):
        deletion(nn.Sequential(nn.Linear(5, 2), nn.Dropout()), x, x, 0, baseline=0.0)
    with pytest.raises(ValueError, match=r"one number per sample.*leave target out"):
        deletion(lambda x: x.sum(1), x, x, 0, baseline=0.0)
    with pytest.raises(TypeError, match="integer"):
        deletion(model, x, x, torch.tensor(0.5), baseline=0.0)
    a = deletion(model, x, x, 0, baseline=0.0)
    with pytest.raises(ValueError, match="ascending"):
        abpc(a, a)
    with pytest.raises(ValueError, match="different fractions or scores"):
        abpc(deletion(model, x, x, 0, baseline=0.0, order="ascending", steps=2), a)


def test_its_areas_are_the_metrics_of_the_perturbation_curves():
    model, x = linear(7, 3, classes=3)
    many = x.expand(6, -1) + torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    relevance = many * model.weight[1]
    for score in ("probability", "logit", "accuracy"):
        curves = perturbation_curves(model, many, relevance, 1, baseline=0.0, score=score)
        options = {"baseline": 0.0, "score": score, "random_orders": 1}
        most, least = (deletion(model, many, relevance, 1, order=o, **options) for o in ("descending", "ascending"))
        shown = insertion(model, many, relevance, 1, **options)
        pairs = [(most.area, curves.deletion), (least.area, curves.insertion), (shown.area, curves.insertion)]
        for ours, theirs in [*pairs, (abpc(least, most), curves.abpc)]:
            assert (ours.name, ours.higher_is_better) == (theirs.name, theirs.higher_is_better)
            torch.testing.assert_close(ours.values, theirs.values)
            assert ours.interval() == pytest.approx(theirs.interval())
