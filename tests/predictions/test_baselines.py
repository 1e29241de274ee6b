"""The baselines: captum's numbers, exact identities, slow twins, inputs of every kind, and bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import termwise as tw
from termwise.predictions import gradcam, gradient_x_input, integrated_gradients, occlusion, smoothgrad

DOUBLE = torch.float64


def dense(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)).double().eval()
    return model, torch.randn(4, 5, dtype=DOUBLE)


def convolutional(bias: bool = True, head: bool = False) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=bias),
        nn.ReLU(),
    ]
    ends = (
        [nn.Flatten(), nn.Linear(128, 4, bias=bias)]
        if head
        else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4, bias=bias)]
    )
    return nn.Sequential(*layers, *ends).double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table, self.rnn, self.head = nn.Embedding(12, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, input_ids, attention_mask=None):
        x = self.table(input_ids)
        if attention_mask is not None:
            x = x * attention_mask.unsqueeze(-1).to(x)
        return {"logits": self.head(self.rnn(x)[0][:, -1])}


def reader() -> tuple[nn.Module, torch.Tensor]:
    return Reader().double().eval(), torch.randint(1, 12, (3, 6), generator=torch.Generator().manual_seed(0))


def gradient(model, x, target):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, target].sum(), leaf)[0]


# -- gradient x input --------------------------------------------------------------------------------------------------


@given(st.integers(0, 50))
@settings(max_examples=5)
def test_gradient_x_input_is_what_it_is_called(seed):
    model, x = dense(seed)
    torch.testing.assert_close(gradient_x_input(model, x, target=1).attributions(), x * gradient(model, x, 1))


def test_gradient_x_input_adds_up_without_biases_and_misses_them_otherwise():
    model, x = convolutional(bias=False)
    gradient_x_input(model, x, target=1).check(1e-12)
    model, x = convolutional()
    why = gradient_x_input(model, x, target=1)
    parts = tw.explain(model, x, target=1, rules="zero")
    torch.testing.assert_close(why.remainder, sum(b.flatten(1).sum(1) for b in parts.biases.values()))
    torch.testing.assert_close(why.attributions(), parts.attributions())


# -- integrated gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "theirs"), [("gauss-legendre", "gausslegendre"), ("midpoint", "riemann_middle")])
def test_integrated_gradients_are_captums(rule, theirs):
    captum = pytest.importorskip("captum.attr")
    model, x = dense()
    base = torch.randn(4, 5, dtype=DOUBLE)
    found, delta = captum.IntegratedGradients(model).attribute(
        x, base, target=2, n_steps=20, method=theirs, return_convergence_delta=True
    )
    ours = integrated_gradients(model, x, target=2, baseline=base, steps=20, rule=rule)
    torch.testing.assert_close(ours.attributions(), found, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.remainder, -delta, rtol=1e-5, atol=1e-9)  # theirs is the sum less f(x) - f(b)
    images, x = convolutional()
    found = captum.IntegratedGradients(images).attribute(x, 0.5, target=1, n_steps=8, method=theirs)
    torch.testing.assert_close(
        integrated_gradients(images, x, target=1, baseline=0.5, steps=8, rule=rule).attributions(), found, rtol=1e-6, atol=1e-9
    )


def test_the_completeness_gap_is_the_quadrature_error():
    """A cubic: its derivative is of degree 2, so two points of Gauss-Legendre are exact and two midpoints are not."""

    def cubic(x):
        return (x**3).sum(1)

    x = torch.randn(5, 4, dtype=DOUBLE)
    integrated_gradients(cubic, x, steps=2, baseline=-1.0).check(1e-10)
    assert integrated_gradients(cubic, x, steps=2, baseline=-1.0, rule="midpoint").error() > 1e-3
    gaps = [integrated_gradients(cubic, x, steps=n, baseline=-1.0, rule="midpoint").remainder.abs() for n in (8, 16)]
    torch.testing.assert_close(gaps[0] / gaps[1], torch.full((5,), 4.0, dtype=DOUBLE))  # of second order
    why = integrated_gradients(cubic, x, steps=2, baseline=-1.0)
    assert torch.equal(why.constants["baseline"], torch.full((5,), -4.0, dtype=DOUBLE))


def test_passes_may_be_of_any_size():
    model, x = dense()
    one = integrated_gradients(model, x, target=0, steps=7, batch_size=1)
    torch.testing.assert_close(one.attributions(), integrated_gradients(model, x, target=0, steps=7).attributions())
    one = smoothgrad(model, x, target=0, n=7, batch_size=1)
    torch.testing.assert_close(one.attributions(), smoothgrad(model, x, target=0, n=7).attributions())


def test_tokens_are_followed_through_their_embedding():
    """The twin replaces the embedding by what it looked up, and walks by hand."""
    captum = pytest.importorskip("captum.attr")
    model, ids = reader()
    for baseline in (None, 3):
        ours = integrated_gradients(model, {"input_ids": ids}, target=1, baseline=baseline, steps=6)
        rest = lambda e: model.head(model.rnn(e)[0][:, -1])
        x = model.table(ids).detach()
        base = torch.zeros_like(x) if baseline is None else model.table.weight[3].detach().expand_as(x)
        theirs = captum.IntegratedGradients(rest).attribute(x, base, target=1, n_steps=6).sum(-1)
        torch.testing.assert_close(ours.attributions(), theirs, rtol=1e-6, atol=1e-9)
        assert ours.inputs["input_ids"].shape == ids.shape


# -- SmoothGrad --------------------------------------------------------------------------------------------------------


def test_smoothgrad_is_its_definition():
    model, x = dense()
    g = torch.Generator().manual_seed(4)
    drawn = [torch.randn(5, generator=g, dtype=DOUBLE) for _ in range(6)]
    spread = 0.3 * (x.amax(1) - x.amin(1))
    every = torch.stack([gradient(model, x + spread[:, None] * d, 1) for d in drawn])
    wanted = {"signed": every.mean(0), "absolute": every.abs().mean(0), "squared": every.square().mean(0)}
    for kind, value in wanted.items():
        found = smoothgrad(model, x, target=1, n=6, noise=0.3, kind=kind, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(found.attributions(), value)
        assert found.rules == f"smoothgrad ({kind})"
    times = smoothgrad(
        model, x, target=1, n=6, noise=0.3, kind="signed", times_input=True, generator=torch.Generator().manual_seed(4)
    )
    torch.testing.assert_close(times.attributions(), x * wanted["signed"])
    torch.testing.assert_close(smoothgrad(model, x, target=1, noise=0.0, kind="signed").attributions(), gradient(model, x, 1))


# -- GradCAM -----------------------------------------------------------------------------------------------------------


def test_gradcam_is_captums_up_to_its_scale():
    captum = pytest.importorskip("captum.attr")
    model, x = convolutional(head=True)
    theirs = captum.LayerGradCam(model, model[4]).attribute(x, target=1)
    for relu in (False, True):
        small = theirs.relu() if relu else theirs
        large = nn.functional.interpolate(small, (8, 8), mode="bilinear", align_corners=False)[:, 0]
        for layer in (None, "4"):
            ours = gradcam(model, x, target=1, layer=layer, relu=relu).attributions()
            torch.testing.assert_close(ours.sum(1), large / 4)  # an entry is shared by four pixels
            torch.testing.assert_close(ours.flatten(1).sum(1), small.flatten(1).sum(1))
    before = gradcam(model, x, target=1, layer="3", relu=False).attributions()
    theirs = captum.LayerGradCam(model, model[3]).attribute(x, target=1)
    torch.testing.assert_close(before.flatten(1).sum(1), theirs.flatten(1).sum(1))


def test_class_activation_mapping_adds_up_to_the_bias_of_the_head():
    model, x = convolutional()
    why = gradcam(model, x, target=2, relu=False)
    torch.testing.assert_close(why.remainder, model[-1].bias[2].detach().expand(2))
    assert gradcam(model, x, target=2).attributions().min() >= 0


@given(st.integers(3, 9), st.integers(3, 20))
def test_enlarging_keeps_the_sum(small, large):
    from termwise.predictions.enlarge import enlarged

    coarse = torch.randn(2, small, small + 1, generator=torch.Generator().manual_seed(small), dtype=DOUBLE)
    fine = enlarged(coarse, (max(large, small), max(large, small) + 3))
    torch.testing.assert_close(fine.sum((1, 2)), coarse.sum((1, 2)))


# -- occlusion ---------------------------------------------------------------------------------------------------------


def test_occlusion_is_its_definition_by_patches_and_groups():
    model, x = convolutional()
    why = occlusion(model, x, target=1, patch=3, baseline=0.2)
    mask = torch.arange(8)[:, None] // 3 * 3 + torch.arange(8) // 3
    for group in mask.unique():
        inside = mask == group
        effect = model(x)[:, 1] - model(torch.where(inside, torch.tensor(0.2, dtype=DOUBLE), x))[:, 1]
        torch.testing.assert_close(why.attributions()[..., inside].flatten(1).sum(1), effect)
        assert why.attributions()[0][:, inside].unique().numel() == 1
    torch.testing.assert_close(why.constants["baseline"], model(torch.full_like(x, 0.2))[:, 1])
    grouped = occlusion(model, x, target=1, baseline=0.2, feature_mask=mask)
    torch.testing.assert_close(grouped.attributions(), why.attributions())


def test_occlusion_is_captums():
    captum = pytest.importorskip("captum.attr")
    model, x = dense()
    theirs = captum.FeatureAblation(model).attribute(x, 0.4, target=1)
    torch.testing.assert_close(occlusion(model, x, target=1, baseline=0.4).attributions(), theirs)
    mask = torch.tensor([[0, 0, 1, 1, 2]])
    theirs = captum.FeatureAblation(model).attribute(x, target=1, feature_mask=mask)
    ours = occlusion(model, x, target=1, feature_mask=mask).attributions()
    sizes = torch.tensor([2, 2, 2, 2, 1])
    torch.testing.assert_close(ours * sizes, theirs)  # captum gives every member of a group the whole effect


@given(st.integers(0, 100))
@settings(max_examples=5)
def test_occlusion_of_a_sum_over_features_is_exact(seed):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    occlusion(lambda x: (x**3).sum(1) + x[:, 0].exp(), x, baseline=0.7).check(1e-10)
    assert occlusion(lambda x: x.prod(1), x, baseline=0.7).error() > 1e-3


def test_tokens_are_removed_or_replaced():
    model, ids = reader()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    keep = torch.tensor([True, False, False, False, False, True])
    gone = occlusion(model, given, target=1, keep=keep)
    assert "constant:baseline" not in gone.parts
    masked = occlusion(model, given, target=1, baseline=0, keep=keep)
    whole = model(ids)["logits"][:, 1]
    for i in range(6):
        without = torch.cat([ids[:, :i], ids[:, i + 1 :]], 1)
        other = ids.clone()
        other[:, i] = 0
        for why, changed in ((gone, without), (masked, other)):
            wanted = torch.zeros(3, dtype=DOUBLE) if keep[i] else whole - model(changed)["logits"][:, 1]
            torch.testing.assert_close(why.attributions()[:, i], wanted.detach())


# -- what all share ----------------------------------------------------------------------------------------------------

ALL = [gradient_x_input, integrated_gradients, smoothgrad, occlusion]


@pytest.mark.parametrize("method", ALL)
def test_targets_of_every_kind(method):
    model, x = dense()
    by_class = method(model, x, target=1)
    each = method(model, x, target=torch.tensor([1, 1, 0, 1]))
    own = method(model, x, target=lambda y: y[:, 1])
    against = method(model, x, target=tw.predictions.contrast(1, 0))
    torch.testing.assert_close(own.attributions(), by_class.attributions())
    torch.testing.assert_close(each.attributions()[:2], by_class.attributions()[:2])
    if method is not smoothgrad:  # of absolute values there is no difference
        torch.testing.assert_close(against.attributions(), by_class.attributions() - method(model, x, target=0).attributions())
    assert by_class.target.tolist() == [1] * 4
    assert method(model, x).target.tolist() == model(x).argmax(1).tolist()
    with pytest.raises(ValueError, match="one target"):
        method(model, x, target=[0, 1])


def test_several_inputs_come_as_a_tuple():
    a, b = torch.randn(2, 3, dtype=DOUBLE), torch.randn(2, 3, dtype=DOUBLE)
    why = gradient_x_input(lambda a, b: (a * b).sum(1), a, b)
    torch.testing.assert_close(why.attributions(), (a * b, a * b))
    why = integrated_gradients(lambda a, b: (a * b).sum(1), a, b).check(1e-10)
    torch.testing.assert_close(why.attributions(), (a * b / 2, a * b / 2))
    with pytest.raises(ValueError, match="keyword inputs only: pass the others by name"):
        occlusion(lambda a, b: (a * b).sum(1), a, b)


def test_a_class_that_changes_on_the_way_stays_the_one_asked_about():
    """From b to x the largest class changes; the whole of every point is that of the class at x."""
    model = nn.Linear(2, 2, bias=False, dtype=DOUBLE).eval()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    why = integrated_gradients(model, torch.tensor([[2.0, 1.0]], dtype=DOUBLE), baseline=torch.tensor([0.0, 5.0], dtype=DOUBLE))
    assert why.target.tolist() == [0]
    assert why.constants["baseline"].tolist() == [0.0]
    why.check(1e-12)


ARCHITECTURES = ["resnet", "lstm", "nn.Transformer", "bert", "gpt2", "mamba", "t5", "vit", "swin", "whisper", "clip", "llava"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_differentiated_as_it_is_explained(name):
    """The same whole and the same inputs; of each input the derivative along itself is the sum of its part."""
    from termwise.testing.architectures import build

    subject = build(name).to(DOUBLE)
    call = {"kwargs": subject.kwargs, "target": subject.target}
    ours = gradient_x_input(subject.model, *subject.inputs, **call)
    why = tw.explain(subject.model, *subject.inputs, **call)
    torch.testing.assert_close(ours.whole, why.whole, rtol=1e-9, atol=1e-12)
    assert {n: p.shape for n, p in ours.inputs.items()} == {n: p.shape for n, p in why.inputs.items()}
    from termwise.predictions.gradients import Differentiated

    f = Differentiated(subject.model, subject.inputs, **call)
    values = [leaf.value for leaf in f.leaves]
    # a wide step: some models compute their norms in float32, whose rounding a narrow one would see
    up, down = (f.values([v * (1 + h) for v in values]) for h in (3e-3, -3e-3))
    torch.testing.assert_close(sum(ours.contributions().values()), (up - down) / 6e-3, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, x: integrated_gradients(m, x, steps=0), "steps must be at least 1"),
        (lambda m, x: integrated_gradients(m, x, rule="simpson"), "gauss-legendre.*midpoint.*simpson"),
        (lambda m, x: integrated_gradients(m, x, baseline=torch.zeros(9)), "does not fit inputs"),
        (lambda m, x: integrated_gradients(m, x, baseline="remove"), "no token ids"),
        (lambda m, x: smoothgrad(m, x, kind="mean"), "signed, absolute, squared"),
        (lambda m, x: smoothgrad(m, x, n=0), "n must be at least 1"),
        (lambda m, x: smoothgrad(m, x, times_input=True), "needs kind='signed'"),
        (lambda m, x: gradcam(m, x), "needs one image"),
        (lambda m, x: gradient_x_input(m, x, target=9), "out of range"),
        (lambda m, x: gradient_x_input(m.train(), x), "training mode"),
        (lambda m, x: gradient_x_input(m, x * float("nan")), "NaN or infinite"),
    ],
)
def test_bad_input_says_what_is_allowed(call, text):
    with pytest.raises(ValueError, match=text):
        call(*dense())


def test_layers_that_are_not_there():
    model, x = convolutional()
    with pytest.raises(ValueError, match=r"no module '44'"):
        gradcam(model, x, layer="44")
    with pytest.raises(ValueError, match="no map"):
        gradcam(model, x, layer="7")
    with pytest.raises(ValueError, match="no convolution over an image"):
        gradcam(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double().eval(), x)
    model, ids = reader()
    with pytest.raises(ValueError, match="the id of a token, or None"):
        integrated_gradients(model, ids, baseline=0.5)
    with pytest.raises(ValueError, match="token id 99 is out of range"):
        integrated_gradients(model, ids, baseline=99)


def test_files_and_tensors(tmp_path):
    import csv

    model, x = dense()
    why = integrated_gradients(model, x, target=0)
    path = why.to_csv(tmp_path / "why")
    assert path.name == "why.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    frame = why.to_frame()
    assert [r["part"] for r in rows] == frame["part"].tolist()
    assert [float(r["contribution"]) for r in rows] == frame["contribution"].tolist()
    assert [r["part"] for r in rows[:3]] == ["input:input", "constant:baseline", "remainder"]
