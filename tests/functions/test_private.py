"""Private gradients: those of single samples, cut off, summed and blurred; what was spent is bounded."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import termwise as tw
from termwise.functions import privacy_spent, private_gradient


def model(seed: int = 0) -> tw.TangentModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = nn.Sequential(nn.Conv1d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 3)).double().eval()
    linear = tw.tangent(base)
    with torch.no_grad():
        for i, v in enumerate(linear.parameters()):
            v.copy_(0.1 * torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(i)))
    return linear


X = torch.randn(6, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 2, 1, 1, 0, 2])


def slow(linear: tw.TangentModel, clip: float) -> tuple[list[Tensor], Tensor]:
    """Sample by sample, through the model's own forward."""
    total, norms = None, []
    for x, y in zip(X, Y, strict=True):
        g = torch.autograd.grad(F.cross_entropy(linear(x[None]), y[None]), list(linear.parameters()))
        norms.append(math.sqrt(sum(part.square().sum().item() for part in g)))
        g = [part * min(1, clip / norms[-1]) for part in g]
        total = g if total is None else [a + b for a, b in zip(total, g, strict=True)]
    return total, torch.tensor(norms, dtype=torch.float64)


def test_it_is_the_sum_of_what_is_cut_off():
    linear = model()
    _, norms = slow(linear, 1.0)
    clip = norms.median().item()  # some are cut off, some are not
    expected, _ = slow(linear, clip)
    found = private_gradient(linear, F.cross_entropy, [X], Y, clip=clip, noise=0.0, expected=8)
    torch.testing.assert_close(found, norms, rtol=1e-10, atol=1e-12)
    for v, e in zip(linear.parameters(), expected, strict=True):
        torch.testing.assert_close(v.grad, e / 8, rtol=1e-10, atol=1e-12)


def test_the_noise_has_its_width():
    linear, blurs = model(), []
    private_gradient(linear, F.cross_entropy, [X], Y, clip=0.5, noise=0.0, expected=8)
    still = [v.grad for v in linear.parameters()]
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        private_gradient(linear, F.cross_entropy, [X], Y, clip=0.5, noise=1.2, expected=8, generator=g)
        blurs += [(v.grad - s).flatten() for v, s in zip(linear.parameters(), still, strict=True)]
    blur = torch.cat(blurs)
    assert blur.std().item() == pytest.approx(1.2 * 0.5 / 8, rel=0.05)
    assert abs(blur.mean().item()) < 0.005


def test_a_sample_moves_the_sum_by_no_more_than_the_clip():
    linear, found = model(), []
    for n in (6, 5):
        private_gradient(linear, F.cross_entropy, [X[:n]], Y[:n], clip=0.3, noise=0.0, expected=1)
        found.append(torch.cat([v.grad.flatten() for v in linear.parameters()]))
    assert 0.01 < (found[0] - found[1]).norm().item() <= 0.3 * (1 + 1e-9)


def test_what_is_spent():
    """Without sampling, one step is the Gaussian mechanism: epsilon is at most min over a of a / (2 sigma^2) + log(1/delta) / (a - 1)."""
    pytest.importorskip("opacus", reason='pip install "termwise[private]"')
    bound = min(a / (2 * 2.0**2) + math.log(1e5) / (a - 1) for a in (1 + i / 10 for i in range(1, 600)))
    assert 0.5 * bound < privacy_spent(2.0, 1.0, 1, 1e-5) <= bound
    assert privacy_spent(1.1, 0.02, 500, 1e-5) < privacy_spent(1.1, 0.02, 1000, 1e-5) < privacy_spent(0.9, 0.02, 1000, 1e-5)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opacus.accountants", None)
    with pytest.raises(ImportError, match=r'pip install "termwise\[private\]"'):
        privacy_spent(1.0, 0.1, 10, 1e-5)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_transformers_have_single_gradients_too(name):
    from termwise.testing.architectures import build

    s = build(name).to(torch.float64)
    inputs = [*s.inputs, *(s.kwargs or {}).values()]
    linear = tw.tangent(s.model, ["*layer*.1.*", "classifier.*"])
    norms = private_gradient(linear, F.cross_entropy, inputs[:1], torch.tensor([0, 1]), clip=1e9, noise=0.0, expected=2)
    assert (norms > 0).all()
    plain = torch.autograd.grad(
        F.cross_entropy(linear(inputs[0]), torch.tensor([0, 1])), list(linear.parameters()), allow_unused=True
    )
    for v, g in zip(linear.parameters(), plain, strict=True):
        torch.testing.assert_close(v.grad, torch.zeros_like(v) if g is None else g, rtol=1e-9, atol=1e-11)


def test_bad_input():
    linear = model()
    with pytest.raises(ValueError, match="clip"):
        private_gradient(linear, F.cross_entropy, [X], Y, clip=0, noise=1.0, expected=8)
    with pytest.raises(ValueError, match="empty"):
        private_gradient(linear, F.cross_entropy, [X[:0]], Y[:0], clip=1, noise=1.0, expected=8)
    with pytest.raises(ValueError, match="rate"):
        privacy_spent(1.0, 2.0, 10, 1e-5)
