"""The mean over depths: each line of its equation against the slow way, one explanation per depth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from termwise.core.capture import CaptureError, capture
from termwise.predictions import contrast, explain, node, over_depth, spread
from termwise.predictions.over_depth import DIAGONAL, _DepthPass, _moved


class Residual(nn.Module):
    """Three depths behind the image: the stem, the sum with its block, the last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.block, self.inner = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.last, self.head = nn.Conv2d(6, 8, 3, stride=2), nn.Linear(8, 5)
        self.act, self.end = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = x + self.inner(self.block(x)).sigmoid()
        return self.head(self.end(self.last(x * 1)).mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual().double().eval()
        for tensor in (model.norm.running_mean, model.stem.bias):
            nn.init.normal_(tensor)
        return model, torch.randn(3, 3, 15, 18, dtype=torch.float64)


@pytest.mark.parametrize("rules", ["default", "zero", "epsilon", "z+"])
@pytest.mark.parametrize("shift", [0, 3])
def test_adds_up(network, rules, shift):
    model, x = network
    why = over_depth(model, x, rules=rules, shift=shift).check(1e-12)
    assert why.inputs["x"].shape == x.shape
    assert set(why.biases) >= {"block", "last", "head"}


def test_the_depths_are_what_everything_passes_through(network):
    model, x = network
    ready = _DepthPass(capture(model, x), "zero")
    assert ready.depths == 4  # the image, behind the stem, the sum (not what is inside its block), the last convolution


def test_is_the_weighted_mean_of_an_explanation_per_depth(network):
    model, x = network
    start = contrast(torch.tensor([1, 2, 0]), "probabilities")
    ours = over_depth(model, x, target=torch.tensor([1, 2, 0]), rules="zero", shift=0)
    whole = explain(model, x, target=start, rules="zero")
    inner = [explain(model, x, target=start, rules="zero", at=path) for path in ("act", "end")]
    maps = [whole.inputs["x"].sum(1), inner[0].parts["at:act"].sum(1), None, inner[1].parts["at:end"].sum(1)]

    class Behind(nn.Module):  # the sum has no module of its own
        def __init__(self):
            super().__init__()
            self.last, self.end, self.head = model.last, model.end, model.head

        def forward(self, y):
            return self.head(self.end(self.last(y)).mean((2, 3)))

    with torch.no_grad():
        y = model.act(model.norm(model.stem(x)))
        y = y + model.inner(model.block(y)).sigmoid()
    third = explain(Behind().eval(), y, target=start, rules="zero")
    maps[2] = third.inputs["y"].sum(1)
    weights = torch.stack([1 / m.abs().sum((1, 2)) for m in maps])
    weights = weights / weights.sum(0)
    expected = sum(w[:, None, None] * spread(m, *x.shape[2:]) for w, m in zip(weights, maps, strict=True))
    assert torch.allclose(ours.inputs["x"].sum(1), expected, atol=1e-13)
    assert torch.allclose(ours.inputs["x"][:, 0], ours.inputs["x"][:, 2])
    assert torch.allclose(ours.whole, whole.whole)
    for name, depths_before in {"stem": 1, "norm": 1, "block": 2, "inner": 2, "last": 3, "head": 4}.items():
        weight = weights[:depths_before].sum(0)
        assert torch.allclose(ours.biases[name], weight[:, None] * whole.biases[name], atol=1e-13), name
    sigmoid = next(v for k, v in ours.constants.items())
    reference = next(v for k, v in whole.constants.items())
    assert torch.allclose(sigmoid.reshape(3, -1).sum(1), weights[:2].sum(0) * reference.reshape(3, -1).sum(1), atol=1e-13)


def test_copies_are_averaged_and_their_pixels_sent_back(network):
    model, x = network
    target = torch.tensor([0, 0, 3])
    ours = over_depth(model, x, target=target, shift=4)
    expected, whole = torch.zeros_like(x), 0
    for dy, dx in DIAGONAL:
        padded = nn.functional.pad(x, (4, 4, 4, 4), mode="reflect")
        copy = padded[:, :, 4 + 4 * dy : 4 + 4 * dy + 15, 4 + 4 * dx : 4 + 4 * dx + 18]
        one = over_depth(model, copy, target=target, shift=0)
        image = x.clone().requires_grad_()
        moved = nn.functional.pad(image, (4, 4, 4, 4), mode="reflect")
        moved = moved[:, :, 4 + 4 * dy : 4 + 4 * dy + 15, 4 + 4 * dx : 4 + 4 * dx + 18]
        expected = expected + torch.autograd.grad(moved, image, one.inputs["x"])[0] / 4
        whole = whole + one.whole / 4
    assert torch.allclose(ours.inputs["x"], expected, atol=1e-13)
    assert torch.allclose(ours.whole, whole, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_spreading_loses_nothing(h, w, height, width, seed):
    small = torch.randn(2, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wide = spread(small, max(h, height), max(w, width))
    assert torch.allclose(wide.sum((1, 2)), small.sum((1, 2)), atol=1e-12)


def test_spreading_puts_relevance_where_it_was():
    small = torch.zeros(1, 4, 4)
    small[0, 1, 3] = 1
    wide = spread(small, 16, 16)
    assert wide.min() >= 0
    rows, columns = wide[0].sum(1), wide[0].sum(0)
    assert rows[:2].sum() == columns[:10].sum() == 0
    assert rows.argmax() in (5, 6)


def test_a_moved_picture_is_the_reflected_one():
    x = torch.arange(20.0).view(1, 1, 4, 5)
    padded = nn.functional.pad(x, (3, 3, 3, 3), mode="reflect")
    assert torch.equal(x.flatten(2)[..., _moved(x, 2, -3)].view_as(x), padded[:, :, 5:9, 0:5])


def test_a_class_is_the_same_in_every_copy_and_set_against_the_rest(network):
    model, x = network
    why = over_depth(model, x, shift=0)
    z = model(x)
    assert torch.equal(why.target, z.argmax(1))
    assert torch.allclose(why.whole, z.max(1).values - (z.softmax(1) * z).sum(1))
    plain = over_depth(model, x, target=lambda z: z[:, 1], shift=0)
    assert torch.allclose(plain.whole, z[:, 1])


def test_samples_do_not_meet(network):
    model, x = network
    both, one = over_depth(model, x, target=2), over_depth(model, x[1:2], target=2)
    assert torch.allclose(both.inputs["x"][1:2], one.inputs["x"], atol=1e-13)


def test_no_relevance_at_all_is_zero_and_not_nan():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 4, 3)).double().eval()
    nn.init.zeros_(model[3].weight)
    why = over_depth(model, torch.randn(2, 1, 6, 6, dtype=torch.float64), target=lambda z: z[:, 0], shift=0)
    assert (why.inputs["input"] == 0).all()
    assert torch.equal(why.whole, model[3].bias[0].detach().expand(2))
    torch.testing.assert_close(why.check(1e-12).biases["3"].sum(1), why.whole)  # every depth counts the same, and none is lost


class Answers(nn.Module):
    """A model that answers with a mapping, of scores that are not its first value."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, scale):
        z = self.model(x)
        return {"twice": 2 * z, "logits": z * scale}


def test_a_mapping_is_answered_and_an_input_by_name(network):
    model, x = network
    scale = torch.tensor(1.5, dtype=torch.float64)
    ours = over_depth(Answers(model).eval(), x, kwargs={"scale": scale}).check(1e-12)
    z = 1.5 * model(x)
    assert torch.equal(ours.target, z.argmax(1))
    torch.testing.assert_close(ours.whole, z.max(1).values - (z.softmax(1) * z).sum(1))
    named = over_depth(Answers(model).eval(), x, kwargs={"scale": scale}, target=("twice", 2))
    torch.testing.assert_close(named.whole, 2 * model(x)[:, 2])


def test_targets_and_classes_are_read_as_explain_reads_them(network):
    model, x = network
    last = over_depth(model, x, target=-1, classes=list("abcde"))
    assert last.target.tolist() == [4, 4, 4]
    assert last.label() == "e against probabilities"
    torch.testing.assert_close(last.whole, over_depth(model, x, target=4).whole)
    for bad, error, words in [
        ({"target": [0, 1]}, ValueError, "explains one target"),
        ({"target": node(0)}, ValueError, "explains one target"),
        ({"target": 9}, ValueError, "target 9 is out of range: the output has 5 classes"),
        ({"target": 0.5}, TypeError, "target must be an integer class index"),
        ({"classes": "abcde"}, TypeError, "classes is a list of names"),
        ({"classes": ["a", "b"], "target": 4}, ValueError, "classes has 2 names, and class 4 is explained"),
        ({"rules": "dynamiclrp"}, ValueError, "the depths are read from ratios"),
    ]:
        with pytest.raises(error, match=words):
            over_depth(model, x, **bad)
    one = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(13 * 16, 1), nn.Flatten(0)).double().eval()
    number = over_depth(one, x).check(1e-12)
    assert number.target is None
    torch.testing.assert_close(number.whole, one(x))


def test_bad_pictures_are_refused_in_words(network):
    model, x = network
    hole = x.clone()
    hole[1, 0, 2, 2] = torch.nan
    for image, error, words in [
        (hole, ValueError, "1 values that are NaN or infinite"),
        (x[:0], ValueError, "is empty, and there is nothing to explain"),
        (x.float(), CaptureError, "Residual itself raises RuntimeError"),
        ([x], ValueError, "takes images .* got list"),
    ]:
        with pytest.raises(error, match=words):
            over_depth(model, image)


def test_what_is_no_picture_is_refused(network):
    model, x = network
    with pytest.raises(ValueError, match=r"takes images .* got torch.float64 \(3, 4\)"):
        over_depth(model, x[:, 0, :4, 0])
    with pytest.raises(ValueError, match=r"shift must lie in 0..14"):
        over_depth(model, x, shift=15)
    with pytest.raises(ValueError, match="no feature map"):
        over_depth(lambda x: x.cos().sum((2, 3)), x, shift=0)
