"""Toeplitz kernels as recurrences: the definition tap by tap, the closed form, what lies beyond it, fewer modes, whole models."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import termwise as tw
from termwise.computation import TNN, ToeplitzMixer, convolution_taps, to_recurrent
from termwise.computation.hankel import column_space, continued, fit
from termwise.core import Decomposition, DoesNotAddUp
from termwise.testing import check_decomposition

SIZES = st.tuples(st.integers(1, 24), st.integers(1, 3), st.integers(0, 999))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decayed(taps: torch.Tensor, decay: float) -> torch.Tensor:
    return taps * torch.tensor([decay**j for j in range(len(taps))], dtype=taps.dtype)[:, None]


def convolved(kernel: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The definition, output by output: the slow twin."""
    y = torch.zeros_like(x)
    for i in range(x.shape[-2]):
        for j in range(min(i + 1, len(kernel))):
            y[..., i, :] += kernel[j] * x[..., i - j, :]
    return y


def stepped(ssm, x, state=None):
    found = []
    for token in x.unbind(-2):
        y, state = ssm.step(token, state)
        found.append(y)
    return torch.stack(found, -2), state


def smooth(n: int = 128) -> torch.Tensor:
    j = torch.arange(n, dtype=torch.float64)[:, None]
    return torch.cat([(-j / 30).exp() * (j / 7).cos(), (-j / 12).exp() + 0.3 * (-j / 50).exp()], 1)


# -- the closed form --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SIZES, st.floats(0.5, 1.0))
def test_modes_make_the_taps(size, decay):
    n, d, seed = size
    t = normal(n, d, seed=seed)
    ssm = tw.toeplitz_to_ssm(t, decay=decay).check(1e-11)
    assert len(ssm.parts) == (n + 1) // 2
    assert ssm.order == n
    assert torch.allclose(ssm.whole, decayed(t, decay), rtol=0, atol=1e-12)
    assert torch.allclose(sum(ssm.parts.values()), decayed(t, decay), rtol=0, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.floats(0.6, 1.0), st.integers(1, 70), st.sampled_from([(), (2,)]))
def test_it_is_the_convolution_at_any_length(size, decay, length, batch):
    n, d, seed = size
    t, x = normal(n, d, seed=seed), normal(*batch, length, d, seed=seed + 1)
    ssm = tw.toeplitz_to_ssm(t, decay=decay, beyond="exact")
    truth = convolved(decayed(t, decay), x)
    (one, last), (many, end) = stepped(ssm, x), ssm.scan(x)
    assert torch.allclose(one, truth, rtol=0, atol=1e-10)
    assert torch.allclose(many, truth, rtol=0, atol=1e-10)
    assert torch.allclose(last.modes, end.modes, rtol=0, atol=1e-10)
    assert torch.equal(last.past, end.past)
    assert last.position == end.position == length


@pytest.mark.parametrize("beyond", ["exact", math.inf])
@pytest.mark.parametrize("order", [None, 9])
def test_scan_and_step_go_on_from_each_other(order, beyond):
    t, x = normal(40, 3), normal(2, 400, 3, seed=1)
    ssm = tw.toeplitz_to_ssm(t, order, decay=0.95, beyond=beyond)
    whole, _ = ssm.scan(x)
    first, state = ssm.scan(x[:, :301])
    middle, state = stepped(ssm, x[:, 301:350], state)
    last, _ = ssm.scan(x[:, 350:], state)
    assert torch.allclose(torch.cat([first, middle, last], 1), whole, rtol=0, atol=1e-11)
    kernel = ssm.kernel(40) if beyond == "exact" else ssm.kernel(400)
    assert torch.allclose(whole, convolved(kernel, x), rtol=0, atol=1e-10)


def test_the_kernel_goes_on_as_the_recurrence_does():
    t = normal(6, 2)
    ssm = tw.toeplitz_to_ssm(t, decay=0.9)
    impulse = torch.zeros(20, 2, dtype=torch.float64)
    impulse[0] = 1
    free = replace(ssm, beyond=math.inf)
    assert torch.allclose(ssm.kernel(20), stepped(free, impulse)[0], rtol=0, atol=1e-13)
    assert torch.allclose(ssm.kernel(20)[6], -t.sum(0) * 0.9**6, rtol=0, atol=1e-13)  # the tap that was appended
    assert torch.allclose(ssm.kernel(20)[7:14], ssm.kernel(7) * 0.9**7, rtol=0, atol=1e-13)
    powers = ssm.powers(torch.arange(20))
    assert torch.allclose(powers, ssm.poles[None] ** torch.arange(20)[:, None, None], rtol=0, atol=1e-13)


def test_the_recurrence_is_its_equation():
    t, x = normal(5, 2), normal(5, 2, seed=1)
    ssm = tw.toeplitz_to_ssm(t, decay=0.8)
    u = torch.zeros_like(ssm.weights)
    state = None
    for token in x:
        u = ssm.poles * u + ssm.weights * token
        y, state = ssm.step(token, state)
        assert torch.allclose(y, u.sum(0).real, rtol=0, atol=1e-14)


def test_single_precision_keeps_its_digits():
    t, x = normal(300, 2).float(), normal(300, 2, seed=1).float()
    y, state = tw.toeplitz_to_ssm(t).scan(x)
    truth = convolved(t.double(), x.double())
    assert y.dtype == torch.float32
    assert state.modes.dtype == torch.complex128
    assert (y - truth).abs().max() < 1e-6 * truth.abs().max()


def test_gradients_are_those_of_the_convolution():
    t, x = normal(12, 2), normal(30, 2, seed=1)
    ssm = tw.toeplitz_to_ssm(t, decay=0.9, beyond="exact")
    kernel, weight = decayed(t, 0.9), normal(30, 2, seed=2)
    wanted = torch.autograd.functional.jacobian(lambda x: (convolved(kernel, x.clone()) * weight).sum(), x)
    for run in (lambda x: ssm.scan(x)[0], lambda x: stepped(ssm, x)[0]):
        y = x.clone().requires_grad_()
        (run(y) * weight).sum().backward()
        assert torch.allclose(y.grad, wanted, rtol=0, atol=1e-11)


# -- beyond the taps --------------------------------------------------------------------------------------------------


def test_tokens_beyond_the_taps_are_refused():
    ssm, x = tw.toeplitz_to_ssm(normal(8, 2)), normal(9, 2)
    _, state = ssm.scan(x[:8])
    for call in (lambda: ssm.step(x[8], state), lambda: ssm.scan(x)):
        with pytest.raises(ValueError, match=r"token 9 lies beyond the 8 taps.*inf max.*beyond='exact' .it keeps 8"):
            call()


def test_a_decay_may_make_the_rest_small_enough():
    t, x = normal(64, 2), normal(200, 2, seed=1)
    assert tw.toeplitz_to_ssm(t, decay=0.7, beyond=1e-8).scan(x)[1].position == 200
    with pytest.raises(ValueError, match="token 65"):
        tw.toeplitz_to_ssm(t, decay=0.9, beyond=1e-8).scan(x)


@settings(max_examples=30, deadline=None)
@given(SIZES, st.floats(0.7, 1.0), st.integers(0, 40), st.booleans())
def test_the_wrap_is_within_its_bound_and_the_bound_is_met(size, decay, more, compressed):
    n, d, seed = size
    order = max(1, n // 3) if compressed and n > 1 else None
    ssm = tw.toeplitz_to_ssm(normal(n, d, seed=seed), order, decay=decay, beyond=math.inf)
    length = n + more
    bound = ssm.wrap_error_bound(length)
    kernel = ssm.kernel(length)
    worst = kernel[n:].abs().sum(0).argmax()
    x = torch.sign(kernel.flip(0))[:, worst].nan_to_num()[:, None].expand(-1, d)  # the input that makes the most of it
    gap = (ssm.scan(x)[0] - convolved(kernel[:n], x)).abs().max().item()
    assert gap <= bound * (1 + 1e-9) + 1e-9
    assert gap >= bound * (1 - 1e-9) - 1e-9
    assert bound <= ssm.wrap_error_bound() * (1 + 1e-9) + 1e-12
    assert ssm.wrap_error_bound(n) == 0


@pytest.mark.parametrize("order", [None, 5])
def test_the_bound_of_any_length_is_a_limit(order):
    ssm = tw.toeplitz_to_ssm(normal(20, 3), order, decay=0.9)
    assert ssm.wrap_error_bound() == pytest.approx(ssm.wrap_error_bound(20_000), rel=1e-6)
    assert ssm.wrap_error_bound(60) < ssm.wrap_error_bound()


@pytest.mark.parametrize("decay", [1.0, 0.999])
def test_a_hundred_thousand_tokens_drift_by_rounding_only(decay):
    t, x = normal(32, 2), normal(100_000, 2, seed=1)
    y, state = tw.toeplitz_to_ssm(t, decay=decay, beyond="exact").scan(x)
    truth = (decayed(t, decay).flip(0) * x[-32:]).sum(0)
    assert (y[-1] - truth).abs().max() < 1e-10
    assert state.modes.shape == (16, 2)
    assert state.past.shape == (32, 2)


# -- fewer modes ------------------------------------------------------------------------------------------------------


def test_a_kernel_of_few_oscillations_is_found():
    t = smooth()
    ssm = tw.toeplitz_to_ssm(t, order=2).check(1e-10)
    wanted = torch.tensor([math.exp(-1 / 30) * complex(math.cos(1 / 7), math.sin(1 / 7))])
    assert torch.allclose(ssm.poles[:1, 0], wanted.to(ssm.poles.dtype), atol=1e-6)
    assert sorted(ssm.poles[:, 1].real.tolist()) == pytest.approx([math.exp(-1 / 12), math.exp(-1 / 50)], abs=1e-8)


def test_the_error_decides_the_order():
    t = smooth() + (1 + torch.arange(128, dtype=torch.float64)[:, None]) ** -1.5
    orders = []
    for error in (1e-1, 1e-2, 1e-4):
        ssm = tw.toeplitz_to_ssm(t, error=error)
        assert ssm.error() <= error
        orders.append(ssm.order)
    assert orders == sorted(orders)
    assert orders[0] < orders[-1] < 32
    assert tw.toeplitz_to_ssm(t, orders[-1] - 2).error() > 1e-4


def test_noise_does_not_compress_and_the_error_says_so():
    with pytest.raises(ValueError, match=r"no order up to 32 comes within 0.001 of these 64 taps: the nearest was 0\.\d+ at"):
        tw.toeplitz_to_ssm(normal(64, 2), error=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(1, 3), st.integers(0, 99), st.data())
def test_outputs_stay_within_the_bound_and_poles_within_the_circle(n, d, seed, data):
    order = data.draw(st.integers(1, n // 2))
    ssm, x = tw.toeplitz_to_ssm(normal(n, d, seed=seed), order), normal(n, d, seed=seed + 1)
    gap = (ssm.scan(x)[0] - convolved(ssm.whole, x)).abs().max()
    assert gap <= ssm.bound() * x.abs().max() + 1e-10
    assert ssm.poles.abs().max() <= 1 + 1e-12
    assert ssm.order <= order


def test_growing_taps_get_poles_that_do_not_grow():
    t = torch.exp(torch.arange(100, dtype=torch.float64) / 60)[:, None]
    ssm = tw.toeplitz_to_ssm(t, order=16)
    poles, weights = fit(t, column_space(t, 16))
    drawn = replace(ssm, poles=poles, weights=weights)
    assert ssm.poles.abs().max() <= 1 + 1e-12
    assert ssm.error() < 1e-3 < 1e-2 < drawn.error()


def test_products_with_the_hankel_matrix_are_those_of_the_matrix():
    t = normal(21, 1)
    matrix = torch.stack([t[i : i + 10, 0] for i in range(12)])
    u = torch.linalg.svd(matrix)[0][:, :3]
    found = column_space(t, 3)[0]
    gap = (found @ found.T @ matrix - u @ u.T @ matrix).norm() / matrix.norm()
    assert found.shape == (12, 3)
    assert gap < 0.1
    assert torch.allclose(column_space(t, 10)[0].T @ column_space(t, 10)[0], torch.eye(10, dtype=t.dtype), atol=1e-10)
    assert torch.equal(continued(t)[:21], t)


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("order", "exact"), [(None, True), (3, False)])
def test_the_contract(order, exact, dtype):
    made = {"slices_are_decompositions": "a slice adds up its parts one by one, and the whole at once: see below"}
    found = check_decomposition(
        lambda t: tw.toeplitz_to_ssm(t, order, decay=0.9),
        exact=exact,
        inputs=(normal(9, 2).to(dtype),),
        batched=False,
        exceptions=made,
    )
    for chosen in (slice(0, 3), slice(4, None), torch.arange(9) % 2 == 0):
        assert torch.allclose(found[chosen].remainder, found.remainder[chosen], rtol=0, atol=1e-6)
    assert len(list(found)) == 9
    assert found[:0].error() == 0


def test_wrong_weights_do_not_add_up():
    ssm = tw.toeplitz_to_ssm(normal(10, 2))
    with pytest.raises(DoesNotAddUp):
        replace(ssm, weights=ssm.weights.conj()).check()
    with pytest.raises(DoesNotAddUp):
        replace(ssm, decay=0.9).check()


def test_files_hold_modes_and_no_parts(tmp_path):
    ssm = tw.toeplitz_to_ssm(normal(64, 3), decay=0.99, beyond="exact")
    path = ssm.save(tmp_path / "kernel")
    again = Decomposition.load(path)
    x = normal(100, 3, seed=1)
    assert torch.allclose(again.scan(x)[0], ssm.scan(x)[0], rtol=0, atol=1e-12)
    assert torch.equal(again.weights, ssm.weights)
    assert path.stat().st_size < 16 * 1024
    assert again.beyond == "exact"
    assert ssm.to(torch.float32).poles.dtype == torch.complex128
    assert ssm[3:5].save(tmp_path / "slice").exists()
    assert "the kernel ends" in repr(ssm)


@pytest.mark.parametrize(
    ("taps", "options", "message"),
    [
        (torch.ones(4), {}, r"taps are a tensor \(n, channels\).*\(4,\)"),
        (torch.ones(0, 3), {}, r"\(0, 3\)"),
        ([1.0], {}, "got list"),
        (torch.ones(4, 2, dtype=torch.bfloat16), {}, r"bfloat16.*\.float\(\)"),
        (torch.ones(4, 2, dtype=torch.complex64), {}, "complex64"),
        (torch.tensor([[1.0], [math.nan]]), {}, "NaN"),
        (torch.ones(6, 1), {"order": 4}, r"order lies in 1 \.\.\. 3 for 6 taps.*got 4"),
        (torch.ones(6, 1), {"order": 2.0}, "got 2.0"),
        (torch.ones(6, 1), {"order": 2, "error": 0.1}, "not both"),
        (torch.ones(6, 1), {"error": 0.0}, "between 0 and 1"),
        (torch.ones(6, 1), {"decay": 1.1}, r"\(0, 1\], got 1.1"),
        (torch.ones(6, 1), {"beyond": "wrap"}, "'exact' or a share"),
        (torch.ones(6, 1), {"beyond": -1.0}, "got -1.0"),
    ],
)
def test_bad_kernels_are_refused(taps, options, message):
    with pytest.raises(ValueError, match=message):
        tw.toeplitz_to_ssm(taps, **options)


def test_bad_inputs_are_refused():
    ssm = tw.toeplitz_to_ssm(normal(6, 2))
    with pytest.raises(ValueError, match=r"2 channels, last axis of the input; got shape \(3,\)"):
        ssm.step(normal(3))
    with pytest.raises(ValueError, match="bfloat16"):
        ssm.step(normal(2).bfloat16())
    with pytest.raises(ValueError, match=r"\(\.\.\., tokens, channels\)"):
        ssm.scan(normal(2))
    state = ssm.step(normal(2))[1]
    with pytest.raises(ValueError, match=r"state of shape \(4, 3, 2\), got \(3, 2\)"):
        ssm.step(normal(4, 2), state)


# -- whole models -----------------------------------------------------------------------------------------------------


def network(**options) -> TNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TNN(20, width=8, length=16, **options).double().eval()


def tokens(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(20, (batch, length), generator=torch.Generator().manual_seed(0))


def test_a_mixer_is_its_convolution():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixer = ToeplitzMixer(3, 10, decay=0.9).double()
    x = normal(2, 25, 3)
    assert torch.allclose(mixer(x), convolved(decayed(mixer.taps(), 0.9), x), rtol=0, atol=1e-12)


def test_a_network_token_by_token_is_itself():
    model, ids = network(), tokens(60)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recurrent = to_recurrent(model, ids[:1], beyond="exact")
    assert list(recurrent.mixers) == ["blocks.0.mixer", "blocks.1.mixer"]
    assert recurrent.error < 1e-12
    sizes, found = [], []
    for token in ids.unbind(1):
        found.append(recurrent.step(token))
        sizes.append(recurrent.state_bytes())
    assert torch.allclose(torch.stack(found, 1), model(ids), rtol=0, atol=1e-11)
    assert len(set(sizes)) == 1
    recurrent.reset()
    assert recurrent.state_bytes() == 0
    assert torch.allclose(torch.cat([recurrent(ids[:, :33]), recurrent(ids[:, 33:])], 1), model(ids), rtol=0, atol=1e-11)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    compressed = to_recurrent(model, ids[:1], order=6, beyond="exact")
    assert 1e-9 < compressed.error < 0.5


class LongConvolution(nn.Module):
    """Of the kind that crops what its padding adds."""

    def __init__(self, padding: int = 7) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(4, 4, 8, groups=4, padding=padding), nn.Conv1d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.conv(x)[..., : x.shape[-1]]))


def test_depthwise_convolutions_are_converted():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LongConvolution().double().eval()
    x = normal(2, 4, 30)
    recurrent = to_recurrent(model, x[:1], time=2, beyond="exact")
    found = torch.stack([recurrent.step(token) for token in x.unbind(2)], 2)
    assert torch.allclose(found, model(x), rtol=0, atol=1e-12)
    assert torch.equal(convolution_taps(model.conv)[0], model.conv.weight[:, 0, -1])
    with pytest.raises(ValueError, match=r"^conv: .*looks ahead has no recurrence: of 8 taps it needs padding=7"):
        to_recurrent(LongConvolution(padding=4).double().eval(), x, time=2)


class Mean(nn.Module):
    """Looks at other tokens where nobody expects it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ToeplitzMixer(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y - y.mean(1, keepdim=True)


def test_models_that_are_no_recurrence_are_refused():
    x = normal(2, 6, 4)
    with pytest.raises(ValueError, match=r"Mean differs by .* something besides inner looks at other tokens"):
        to_recurrent(Mean().double().eval(), x)
    with pytest.raises(ValueError, match="training mode"):
        to_recurrent(Mean(), x)
    with pytest.raises(ValueError, match="Linear has no ToeplitzMixer"):
        to_recurrent(nn.Linear(4, 4).double().eval(), x)
    with pytest.raises(ValueError, match="2 tokens or more along axis 1"):
        to_recurrent(network(), tokens(1))
    with pytest.raises(ValueError, match="mixes channels"):
        convolution_taps(nn.Conv1d(4, 4, 3, padding=2))
    with pytest.raises(ValueError, match=r"^blocks\.0\.mixer: order lies in 1 \.\.\. 8"):
        to_recurrent(network(), tokens(6), order=9)
    with pytest.raises(ValueError, match="token 17 lies beyond"):
        to_recurrent(network(), tokens(6))(tokens(20))
