"""Shallow networks: branches side by side, paths through two, one wide layer, and how far that is from the deep network."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import termwise as tw
from termwise.functions import shallow, subset_expansion
from termwise.testing.architectures import build


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, act: nn.Module, *, conv: bool = False, bias: bool = True) -> None:
        super().__init__()
        layer = (lambda a, b: nn.Conv2d(a, b, 3, padding=1, bias=bias)) if conv else (lambda a, b: nn.Linear(a, b, bias=bias))
        self.up, self.act, self.down = layer(width, hidden), act, layer(hidden, width)

    def branch(self, z: Tensor) -> Tensor:
        return self.down(self.act(self.up(z)))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.branch(z)


def net(n: int, act: nn.Module | None = None, *, seed: int = 0, hidden=lambda k: 6, **options: bool) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(Block(4, hidden(k), act or nn.ReLU(), **options) for k in range(n))).double().eval()


@settings(max_examples=6, deadline=None)
@given(
    n=st.integers(1, 4), seed=st.integers(0, 9), act=st.sampled_from([nn.ReLU(), nn.GELU(), nn.LeakyReLU(0.3), nn.Tanh()]),
    bias=st.booleans(), conv=st.booleans(),
)  # fmt: skip
def test_order_one_and_two_are_the_sums_of_the_definition(n, seed, act, bias, conv):
    model = net(n, act, seed=seed, bias=bias, conv=conv)
    z = double(2, 4, 5, 5, seed=seed) if conv else double(3, 4, seed=seed)
    flat, pairs = shallow(model, z), shallow(model, z, order=2)
    one = z + sum(b.branch(z) for b in model)
    two = one + sum(k.branch(z + i.branch(z)) - k.branch(z) for i, k in itertools.combinations(model, 2))
    torch.testing.assert_close(flat(z), one, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pairs(z), two, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(flat.merged()(z), one, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(flat.deep(z), model(z))
    assert flat.fused == (n if n > 1 else 0)
    if n == 2:
        torch.testing.assert_close(pairs(z), model(z), rtol=1e-10, atol=1e-12)


def test_only_what_is_alike_is_fused():
    x = double(3, 4)
    widths = net(4, hidden=lambda k: (6, 6, 8, 8)[k])
    acts = nn.Sequential(*(Block(4, 6, a) for a in (nn.GELU(), nn.GELU("tanh"), nn.GELU(), nn.ELU(0.5)))).double().eval()
    rectified = nn.Sequential(*itertools.chain(*((Block(4, 6, nn.Tanh()), nn.ReLU()) for _ in range(3)))).double().eval()
    normed = nn.Sequential(*(nn.Sequential(nn.LayerNorm(4), Block(4, 6, nn.Tanh())) for _ in range(1))).double().eval()
    for model, fused in ((widths, 4), (acts, 2), (rectified, 0), (normed, 0)):
        flat = shallow(model, x)
        assert flat.fused == fused
        if model is rectified:
            z = total = x
            for block in model[::2]:
                z, total = torch.relu(z), torch.relu(total + block.branch(z))
            torch.testing.assert_close(flat(x), total)
        elif fused:
            torch.testing.assert_close(flat(x), x + sum(b.branch(x) for b in model))


def test_it_trains_with_the_parameters_it_has():
    model, x = nn.Sequential(*net(3), nn.Linear(4, 2).double()).eval(), double(5, 4)
    before = [p.clone() for p in model.parameters()]
    flat = shallow(model, x[:2])
    assert [p.shape for p in flat.parameters()] == [p.shape for p in before]
    merged, mine = flat.merged(), [p.clone() for p in flat.parameters()]
    for module in (merged, flat):
        assert all(torch.equal(p, b) for p, b in zip(flat.parameters(), mine, strict=True))  # merged shares none of them
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = (module(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    *blocks, head = flat.model
    torch.testing.assert_close(flat(x), head(x + sum(b.branch(x) for b in blocks)))
    assert not torch.allclose(flat.deep(x), model(x))  # the deep network of the parameters as they are now


def test_truncation_and_parts():
    model, x = net(4), double(3, 4)
    flat, pairs = shallow(model, x), shallow(model, x, order=2)
    d, exact = flat.decompose(x), subset_expansion(model, x)
    assert list(d.parts) == ["identity", *flat.blocks]
    torch.testing.assert_close(d.whole, model(x))
    torch.testing.assert_close(d.parts["identity"], x)
    for i, (name, block) in enumerate(zip(flat.blocks, model, strict=True)):
        torch.testing.assert_close(d.parts[name], block.branch(x))
        torch.testing.assert_close(d.parts[name], exact.term(i))
    torch.testing.assert_close(d.total(), flat(x))
    torch.testing.assert_close(d.remainder, sum(exact.contribution(f"size_{k}") for k in (2, 3, 4)))
    both = pairs.decompose(x)
    torch.testing.assert_close(both.parts["pairs"], exact.parts["size_2"])
    torch.testing.assert_close(both.total(), pairs(x))
    found = flat.truncation(x)
    assert found == pytest.approx(pairs.truncation(x), rel=1e-9)
    assert found[0] == tw.Decomposition(model(x), {"x": x}).error()
    assert found[1] == pytest.approx(d.error(), rel=1e-9)
    assert found[2] == pytest.approx(both.error(), rel=1e-9)


@pytest.mark.parametrize("name", ["resnet", "gpt-neox"])
def test_architectures(name):
    subject = build(name, batch=2).to(torch.float64)
    kwargs = subject.kwargs or {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat = shallow(subject.model, *subject.inputs, kwargs=kwargs)
        found = flat.truncation(*subject.inputs, **kwargs)
    assert found[0] > found[1] > found[2]
    if name == "gpt-neox":  # attention and feed-forward part side by side, twice: two branches
        assert found[2] < 1e-12
        merged = flat.merged()
        given = [v for v in kwargs.values() if isinstance(v, Tensor)]
        torch.testing.assert_close(merged(*given), flat(**kwargs))


def test_what_is_refused():
    model, x = net(2), double(3, 4)
    with pytest.raises(ValueError, match=r"order is 1 .* or 2 .*, got 3"):
        shallow(model, x, order=3)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        shallow(lambda x: x, x)
    with pytest.raises(ValueError, match="has no residual branch"):
        shallow(nn.Linear(4, 4).double().eval(), x)
    with pytest.raises(ValueError, match="this program was recorded for"):
        shallow(model, x)(double(3, 5))


def test_the_verb_is_at_the_top():
    assert tw.shallow is shallow
