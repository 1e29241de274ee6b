"""Infidelity and sensitivity: exact on linear functions, equal to captum's, and able to tell a wrong map."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import termwise as tw
from termwise.predictions.faithfulness import infidelity, sensitivity_max

DOUBLE = torch.float64


def linear(seed: int) -> tuple[nn.Module, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(6, 3, dtype=DOUBLE).eval()
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 6, generator=g, dtype=DOUBLE))
    return model, torch.randn(4, 6, generator=g, dtype=DOUBLE)


def curved() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(4, 6, dtype=DOUBLE)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    return model, x, gradient


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_the_gradient_of_a_linear_function_is_perfect(seed):
    model, x = linear(seed)
    gradient = model.weight[1].expand_as(x)
    assert infidelity(model, x, gradient, 1).mean < 1e-12
    assert infidelity(model, x, gradient * (x - 0.3), 1, times_input=True, baseline=0.3).mean < 1e-12
    assert infidelity(model, x, -7 * gradient, 1, normalize=True).mean < 1e-12
    assert infidelity(model, x, 1.1 * gradient, 1).mean > 1e-8
    assert infidelity(model, x, gradient.flip(1), 1, normalize=True).mean > 1e-8


def fixed(x):
    """The same changes for both implementations: a function of the row number."""
    g = torch.Generator().manual_seed(len(x))
    change = 0.3 * torch.randn(x.shape, generator=g, dtype=DOUBLE)
    return change, x - change


@pytest.mark.parametrize("normalize", [False, True])
def test_it_is_captums(normalize):
    captum = pytest.importorskip("captum.metrics")
    model, x, gradient = curved()
    theirs = captum.infidelity(
        model, fixed, x, gradient, target=1, n_perturb_samples=7, max_examples_per_batch=28, normalize=normalize
    )
    ours = infidelity(model, x, gradient, 1, perturb=fixed, samples=7, normalize=normalize)
    torch.testing.assert_close(ours.values, theirs, rtol=1e-9, atol=1e-12)


def test_maps_with_the_input_in_them_as_captum_does():
    captum = pytest.importorskip("captum.metrics")
    model, x, gradient = curved()
    decorated = captum.infidelity_perturb_func_decorator(multiply_by_inputs=True)(lambda inputs, baselines=None: fixed(inputs)[1])
    theirs = captum.infidelity(model, decorated, x, gradient * x, target=1, n_perturb_samples=5, max_examples_per_batch=20)
    ours = infidelity(model, x, gradient * x, 1, perturb=fixed, samples=5, times_input=True)
    torch.testing.assert_close(ours.values, theirs, rtol=1e-9, atol=1e-12)


def test_probability_pictures_and_targets_of_ones_own():
    model, x, _ = curved()
    zero = torch.zeros_like(x)
    moved = infidelity(model, x, zero, 1, perturb=fixed, samples=3, score="probability").values
    rows = x.repeat_interleave(3, 0)
    drop = (model(rows).softmax(1) - model(fixed(rows)[1]).softmax(1))[:, 1].view(4, 3)
    torch.testing.assert_close(moved, drop.square().mean(1))
    picture = torch.rand(2, 3, 4, 4, dtype=DOUBLE)
    weight = torch.rand(1, 3, 4, 4, dtype=DOUBLE)
    perfect = infidelity(lambda x: (x * weight).sum((1, 2, 3)), picture, weight.expand(2, -1, -1, -1), lambda y: y)
    assert perfect.mean < 1e-12


def test_a_constant_map_is_not_sensitive_and_the_definition_by_a_loop():
    model, x, gradient = curved()
    assert sensitivity_max(lambda x: torch.ones_like(x), x).values.tolist() == [0.0] * 4

    def explain(x):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]

    found = sensitivity_max(explain, x, radius=0.1, samples=6, generator=torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    worst = torch.zeros(4, dtype=DOUBLE)
    for _ in range(6):
        step = (torch.rand(x.shape, generator=g, dtype=DOUBLE) * 2 - 1) * 0.1
        assert step.abs().max() <= 0.1
        moved = (explain(x + step) - gradient).norm(dim=1) / gradient.norm(dim=1)
        worst = torch.maximum(worst, moved)
    torch.testing.assert_close(found.values, worst)
    assert found.mean > 1e-3


def test_sensitivity_is_captums():
    """The same points for both: captum is handed those that our generator draws."""
    captum = pytest.importorskip("captum.metrics")
    model, x, _ = curved()

    def explain(x):
        leaf = (x[0] if isinstance(x, tuple) else x).detach().clone().requires_grad_()
        with torch.enable_grad():
            found = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
        return found if isinstance(x, tuple) else found[0]

    g = torch.Generator().manual_seed(3)
    steps = [(torch.rand(x.shape, generator=g, dtype=DOUBLE) * 2 - 1) * 0.1 for _ in range(4)]
    points = torch.stack([x + s for s in steps], 1).flatten(0, 1)  # captum repeats each sample in place
    theirs = captum.sensitivity_max(
        explain, x, perturb_func=lambda inputs, perturb_radius: points, n_perturb_samples=4, max_examples_per_batch=16
    )
    ours = sensitivity_max(explain, x, radius=0.1, samples=4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours.values, theirs)


def test_explanations_are_taken_as_maps():
    model, x, _ = curved()
    found = sensitivity_max(lambda x: tw.explain(model, x, target=1), x, samples=2)
    assert 0 < found.mean < 1
    with pytest.raises(TypeError, match="a tensor or an Explanation"):
        sensitivity_max(lambda x: 3, x)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, x: infidelity(m, x, x[:, :3], 1), r"\(4, 3\), inputs \(4, 6\)"),
        (lambda m, x: infidelity(m, x, x, 1, samples=0), "at least 1"),
        (lambda m, x: infidelity(m, x, x, 1, perturb=lambda x: (x[:1], x)), "must give two tensors"),
        (lambda m, x: infidelity(m, x, x, 9), "out of range"),
        (lambda m, x: sensitivity_max(lambda x: x, x, radius=0), "radius must be positive"),
    ],
)
def test_bad_input_says_what_is_allowed(call, text):
    with pytest.raises(ValueError, match=text):
        call(*linear(0))
