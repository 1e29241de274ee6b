"""Perturbation curves: exact identities, optimality over all orders, a slow twin, fill-ins, feature masks, bad input."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from termwise.predictions.faithfulness import (
    blurred,
    deletion,
    insertion,
    perturbation_curves,
    pixel_flipping,
    sampled,
)

DOUBLE = torch.float64
EVERY = ("deletion", "insertion", "abpc", "aopc", "aopc_least_first", "comprehensiveness", "sufficiency", "positive", "negative")


def network(n: int, seed: int, classes: int = 3, batch: int = 2) -> tuple[nn.Module, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(n, 5), nn.Tanh(), nn.Linear(5, classes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=DOUBLE))
    return model, torch.randn(batch, n, generator=g, dtype=DOUBLE)


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=20)
def test_contributions_of_a_linear_function_have_the_largest_aopc_of_all_orders(n, seed):
    g = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(n, generator=g, dtype=DOUBLE), torch.randn(1, n, generator=g, dtype=DOUBLE)

    def model(rows):
        return rows @ weight

    def aopc(orders):  # every order as a sample of its own
        relevance = -orders.argsort(1).to(DOUBLE)
        curves = perturbation_curves(
            model, x.expand(len(orders), -1), relevance, lambda y: y, baseline="zeros", score="logit", steps=n, batch_size=4096
        )
        return curves.aopc.values

    every = aopc(torch.tensor(list(itertools.permutations(range(n)))))
    own = aopc((x * weight).argsort(1, descending=True))
    assert own.item() >= every.max().item() - 1e-12


@settings(max_examples=20)
@given(st.integers(3, 12), st.integers(0, 10_000), st.sampled_from(["probability", "logit", "accuracy"]))
def test_identities_between_the_areas(n, seed, score):
    model, x = network(n, seed)
    relevance = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    curves = perturbation_curves(model, x, relevance, 1, baseline="zeros", score=score)
    turned = perturbation_curves(model, x, -relevance, 1, baseline="zeros", score=score)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(curves.abpc.values, curves.comprehensiveness.values - curves.sufficiency.values, **close)
    torch.testing.assert_close(curves.abpc.values, curves.insertion.values - curves.deletion.values, **close)
    torch.testing.assert_close(turned.abpc.values, -curves.abpc.values, **close)
    torch.testing.assert_close(turned.aopc.values, curves.aopc_least_first.values, **close)
    if score != "logit":
        assert all(-1 <= getattr(curves, name).values.min() <= getattr(curves, name).values.max() <= 1 for name in EVERY)


@settings(max_examples=6)
@given(st.integers(0, 10_000))
def test_batched_curves_are_those_of_deletion_one_by_one(seed):
    """The twin is `deletion` on single samples; both orders, logits and probabilities."""
    model, x = network(7, seed, batch=3)
    relevance = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    options = {"baseline": 0.3, "steps": 4}
    curves = perturbation_curves(model, x, relevance, None, **options, batch_size=5)
    logits = perturbation_curves(model, x, relevance, None, **options, score="logit")
    for i in range(3):
        one = slice(i, i + 1)
        for order, name in (("descending", "most_first"), ("ascending", "least_first")):
            for kind, batched in (("probability", curves), ("logit", logits)):
                alone = deletion(model, x[one], relevance[one], None, order=order, random_orders=1, score=kind, **options)
                torch.testing.assert_close(alone.scores, getattr(batched, name)[one])


def test_aopc_counts_the_zeroth_point():
    model, x = network(4, 0, batch=1)
    relevance = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=DOUBLE)
    curves = perturbation_curves(model, x, relevance, 0, baseline="zeros", steps=4)
    changed, y = x.clone(), [model(x).softmax(1)[0, 0].item()]
    for i in range(4):
        changed[0, i] = 0
        y.append(model(changed).softmax(1)[0, 0].item())
    assert curves.aopc.mean == pytest.approx(sum(y[0] - v for v in y) / 5, abs=1e-12)
    assert curves.positive.mean == pytest.approx(sum(y[1:]) / 4, abs=1e-12)
    assert curves.negative.mean == pytest.approx(float(curves.least_first[0, 1:].mean()), abs=1e-12)


def test_random_maps_have_no_area_and_a_good_one_has():
    model, x = network(30, 3, batch=1)
    many = x.expand(150, -1)
    random = torch.rand(150, 30, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    chance = perturbation_curves(model, many, random, 0, baseline="zeros", score="logit", batch_size=512).abpc
    assert abs(chance.mean) < 3 * chance.values.std().item() / 150**0.5
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[0, 0], leaf)
    good = perturbation_curves(model, x, x * gradient, 0, baseline="zeros", score="logit").abpc
    assert good.mean > 2 * chance.values.std().item()


def test_insertion_is_the_other_curve_read_backwards():
    model, x = network(8, 5)
    relevance = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    shown = insertion(model, x, relevance, 1, baseline=0.2, steps=8, random_orders=2, score="logit")
    least = deletion(model, x, relevance, 1, baseline=0.2, steps=8, order="ascending", random_orders=2, score="logit")
    torch.testing.assert_close(shown.scores, least.scores.flip(1))
    torch.testing.assert_close(shown.area.values, least.area.values)
    curves = perturbation_curves(model, x, relevance, 1, baseline=0.2, steps=8, score="logit")
    torch.testing.assert_close(shown.area.values, curves.insertion.values)
    torch.testing.assert_close(shown.random_scores[:, :, -1], model(x)[:, 1, None].expand(-1, 2))
    assert shown.order == "inserted"


# -- features and fill-ins ---------------------------------------------------------------------------------------------


def image_model(x):
    return torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3)), x[:, 0, 0, 0]], 1)


def images() -> torch.Tensor:
    return torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def test_a_feature_mask_of_patches_is_the_patches():
    x = images()
    relevance = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    rows, columns = torch.arange(6) // 2, torch.arange(8) // 2
    mask = rows[:, None] * 4 + columns
    options = {"baseline": "mean", "steps": 6}
    by_patch = perturbation_curves(image_model, x, relevance, 1, patch=2, **options)
    for chosen in (mask, mask[None], mask.expand(2, -1, -1), mask[None, None]):
        by_mask = perturbation_curves(image_model, x, relevance, 1, feature_mask=chosen, **options)
        assert torch.equal(by_mask.most_first, by_patch.most_first)
    assert by_mask.what == "groups"


def test_groups_of_ones_own_may_differ_between_samples_and_stay_where_told():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]], dtype=DOUBLE)
    mask = torch.tensor([[0, 0, 1, -1], [0, 1, 2, 3]])
    relevance = torch.tensor([[5.0, 5.0, 1.0, 99.0], [4.0, 3.0, 2.0, 1.0]], dtype=DOUBLE)
    curves = perturbation_curves(
        lambda x: x.sum(1), x, relevance, lambda y: y, baseline="zeros", score="logit", feature_mask=mask, fractions=[0.5, 1.0]
    )
    assert curves.most_first.tolist() == [[10, 7, 4], [10, 7, 0]]
    assert curves.least_first.tolist() == [[10, 7, 4], [10, 3, 0]]


def test_group_numbers_need_no_order():
    x = torch.tensor([[1.0, 2.0, 4.0]], dtype=DOUBLE)
    curves = perturbation_curves(
        lambda x: x.sum(1),
        x,
        x,
        lambda y: y,
        baseline="zeros",
        score="logit",
        feature_mask=torch.tensor([10**10, 7, 10**10]),
        steps=2,
    )
    assert curves.most_first.tolist() == [[7, 2, 0]]
    assert curves.fractions.tolist() == [0, 0.5, 1]


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 2, dtype=DOUBLE)

    def forward(self, input_ids, attention_mask):
        weights = attention_mask.unsqueeze(-1).to(DOUBLE)
        return {"logits": (self.table(input_ids) * weights).sum(1) / weights.sum(1)}


def test_padding_stays_out_of_the_sequence_and_tokens_leave_it():
    model = Bag().eval()
    ids = torch.tensor([[7, 3, 4, 0], [5, 6, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    relevance = torch.tensor([[1.0, 3.0, 2.0, 9.0], [1.0, 2.0, 9.0, 9.0]])
    keep = ids == 0
    keep[:, 0] = True  # a class token
    curves = perturbation_curves(model, inputs, relevance, 1, baseline="remove", keep=keep, score="logit", fractions=[1.0])
    wanted = torch.stack([model.table.weight[7, 1], model.table.weight[5, 1]])
    torch.testing.assert_close(curves.most_first[:, -1], wanted)


def test_fill_ins_are_what_they_are_called():
    x, relevance = images(), images()
    ends = {
        "zeros": torch.zeros_like(x),
        "mean": x.mean((2, 3), keepdim=True).expand_as(x),
        "blur": blurred(x),
    }
    curves = pixel_flipping(image_model, x, relevance, 1, fill_ins=list(ends), score="logit", steps=4, batch_size=256)
    for name, replaced in ends.items():
        torch.testing.assert_close(curves[name].most_first[:, -1], image_model(replaced)[:, 1])
    data = torch.rand(5, 3, 6, 8, dtype=DOUBLE)
    other = sampled(x, data, torch.Generator().manual_seed(0))
    assert all(any(torch.equal(row, d) for d in data) for row in other)
    own = pixel_flipping(image_model, x, relevance, 1, fill_ins={"another picture": other}, score="logit", steps=4)
    torch.testing.assert_close(own["another picture"].most_first[:, -1], image_model(other)[:, 1])
    with pytest.raises(ValueError, match="hold no sample like"):
        sampled(x, data.float())


def test_accuracy_is_whether_the_class_is_still_the_answer():
    model, x = network(6, 9, batch=3)
    curves = perturbation_curves(model, x, x, None, baseline="zeros", score="accuracy", steps=3)
    assert curves.most_first[:, 0].tolist() == [1, 1, 1]
    assert set(curves.most_first.unique().tolist()) <= {0.0, 1.0}
    last = (model(torch.zeros_like(x)).argmax(1) == model(x).argmax(1)).to(DOUBLE)
    assert torch.equal(curves.most_first[:, -1], last)


def test_it_draws_itself():
    model, x = network(6, 9)
    curves = perturbation_curves(model, x, x, 0, baseline="zeros")
    assert curves.figure("a $title$")[:4] == b"\x89PNG"
    assert repr(curves.abpc) in curves._repr_html_()
    shown = insertion(model, x, x, 0, baseline="zeros", random_orders=2)
    from termwise.report.curve import verdict

    assert shown.plot().axes[0].get_ylabel() == shown.pictures()[0].y
    assert "Showing the most relevant" in verdict(shown)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"score": "prob"}, "probability, logit, accuracy.*prob"),
        ({"relevance": torch.full((2, 5), torch.nan)}, "relevance has 10 values that are NaN or infinite"),
        ({"relevance": torch.eye(5)[:2] / 0}, "NaN or infinite"),
        ({"feature_mask": torch.zeros(4, dtype=torch.long)}, r"feature_mask has shape \(4,\): it must be \(5,\)"),
        ({"feature_mask": torch.full((5,), -2)}, "from 0"),
        ({"feature_mask": torch.full((5,), -1)}, "no feature is left"),
        ({"baseline": torch.zeros(7)}, r"\(7,\), which does not fit inputs \(2, 5\)"),
        ({"baseline": "mean"}, "is for images"),
        ({"target": torch.tensor([0, 5])}, "out of range"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_input_says_what_is_allowed(change, text):
    model, x = network(5, 0)
    with pytest.raises(ValueError, match=text):
        perturbation_curves(model, x, **{"relevance": x, "target": 0, "baseline": 0.0, **change})


def test_bad_types_and_outputs_without_classes():
    model, x = network(5, 0)
    with pytest.raises(TypeError, match="integers"):
        perturbation_curves(model, x, x, 0, baseline=0.0, feature_mask=torch.zeros(5))
    with pytest.raises(ValueError, match="take score='logit'"):
        perturbation_curves(lambda x: x.sum(1), x, x, lambda y: y, baseline=0.0)
    with pytest.raises(ValueError, match="leave generator out"):
        pixel_flipping(model, x, x, 0, generator=torch.Generator())
