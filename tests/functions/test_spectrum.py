"""Activations in the frequency domain: lines, harmonics, the series of the root, and what Gaussians leave at frequency 0."""

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, integrate
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

import termwise as tw
from termwise.functions import Spectrum, activation_spectrum, dc_component, harmonics, relu_harmonics, relu_spectrum
from termwise.functions.line_taylor import convolve, taylor_lines


def clock(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64) / size


def tone(b: int, a: float = 1.0, phase: float = 0.0, size: int = 1024) -> Tensor:
    return a * torch.cos(2 * math.pi * b * clock(size) + phase)


def binomial(k: int) -> float:
    return math.prod((0.5 - j) / (j + 1) for j in range(k))


# -- harmonics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act", [torch.tanh, F.gelu, torch.exp, torch.relu, nn.LeakyReLU(0.2)], ids=lambda act: getattr(act, "__name__", str(act))
)
def test_harmonics_are_a_cosine_transform(act):
    points = 4096
    y = act(1.7 * torch.cos(math.pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points))
    peer = torch.from_numpy(fft.dct(y.numpy(), type=2))[:9] / points
    peer[0] /= 2
    torch.testing.assert_close(harmonics(act, 1.7), peer, rtol=0, atol=1e-12 if act in (torch.tanh, F.gelu, torch.exp) else 2e-7)


def test_harmonics_of_polynomials_are_trigonometry():
    found = harmonics(lambda x: x**3 - x**2 + 2, 2.0, n=4)  # 8 (3 cos + cos 3)/4 - 2 - 2 cos 2 + 2
    torch.testing.assert_close(found, torch.tensor([0, 6, -2, 2, 0], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 40])
def test_relu_in_closed_form(n):
    for a in (1.0, 0.3, -2.0):
        torch.testing.assert_close(relu_harmonics(a, n), harmonics(torch.relu, a, n), rtol=0, atol=1e-9 * abs(a))
    assert relu_harmonics(1.0, 6).tolist() == pytest.approx(
        [1 / math.pi, 0.5, 2 / (3 * math.pi), 0, -2 / (15 * math.pi), 0, 2 / (35 * math.pi)]
    )


def test_amplitudes_may_be_many():
    a = torch.rand(3, 2, dtype=torch.float64)
    for f in (relu_harmonics, lambda a, n: harmonics(torch.relu, a, n)):
        assert f(a, 5).shape == (3, 2, 6)
        torch.testing.assert_close(f(a, 5)[2, 1], f(a[2, 1].item(), 5))
    assert harmonics(torch.tanh, torch.tensor(1.0)).dtype == torch.float32


def test_harmonics_refuse():
    with pytest.raises(ValueError, match="from 0 to 32767; got -1"):
        harmonics(torch.relu, 1.0, -1)
    with pytest.raises(ValueError, match="finite number"):
        relu_harmonics(math.nan, 3)
    with pytest.raises(ValueError, match="not finite on all of"):
        harmonics(torch.log, 1.0)
    with pytest.raises(ValueError, match="keeps the shape"):
        harmonics(lambda x: x.mean(), 1.0)


# -- the spectrum -----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999), bins=st.lists(st.integers(1, 60), min_size=1, max_size=4, unique=True), mean=st.floats(-1, 1),
    act=st.sampled_from([torch.relu, torch.tanh, F.gelu, torch.abs, F.softplus]), n=st.integers(1, 9),
)  # fmt: skip
def test_parts_add_up_and_hold_their_own_lines_only(seed, bins, mean, act, n):
    g = torch.Generator().manual_seed(seed)
    a, p = torch.rand(2, len(bins), generator=g, dtype=torch.float64)
    x = mean + sum(tone(b, 0.2 + a[i].item(), 6 * p[i].item()) for i, b in enumerate(bins))
    s = activation_spectrum(act, x, 1024, n=n).check(1e-10)
    assert s.remainder.abs().max() < 1e-12
    assert s.tones == [[float(b) for b in sorted(bins)]]
    torch.testing.assert_close(s.parts["dc"], act(x).mean().expand(1, 1024), rtol=0, atol=1e-12)
    y, seen = torch.fft.rfft(act(x)) * 2 / 1024, set()
    for k in range(2, n + 1):
        lines = s.amplitudes(f"harmonic_{k}")[0]
        for b in (k * b for b in bins if 0 < k * b < 512):
            if b not in seen | set(bins):
                assert lines[b].item() == pytest.approx(y[b].abs().item(), abs=1e-12)
            seen.add(b)
        assert lines[[i for i in range(513) if i not in {min(k * b % 1024, -k * b % 1024) for b in bins}]].max() < 1e-12
    meets = s.parts.get("intermodulation")
    assert (meets is None) == (len(bins) == 1)


def test_a_tone_through_relu():
    s = relu_spectrum(tone(16, 2.0, 0.4, 4096), fs=8192.0)
    assert s.tones == [[32.0]]  # Hz, and not bins
    assert s.gain.item() == pytest.approx(0.5, abs=1e-12)
    torch.testing.assert_close(s.parts["linear"], tone(16, 1.0, 0.4, 4096)[None], rtol=0, atol=1e-12)
    found = s.amplitudes()[0, [0, 16, 32, 48, 64]]
    torch.testing.assert_close(found, relu_harmonics(2.0, 4).abs(), rtol=0, atol=2e-4)
    assert s.frequencies[16] == 32
    assert "linear 50.0%" in s.summary()


def test_two_tones_meet():
    """(a + b)^2 = a^2 + b^2 + 2ab, and 2ab lies at the sum and the difference."""
    a, b = tone(20, 1.5), tone(33, 0.8)
    s = activation_spectrum(torch.square, a + b, 1024)
    torch.testing.assert_close(s.parts["intermodulation"][0], 2 * a * b, rtol=0, atol=1e-12)
    torch.testing.assert_close(s.parts["harmonic_2"][0] + s.parts["dc"][0], a * a + b * b, rtol=0, atol=1e-12)
    assert s.amplitudes("intermodulation")[0, [13, 53]].tolist() == pytest.approx([1.2, 1.2])
    assert s.parts["linear"].abs().max() < 1e-12


def test_each_signal_has_its_own_tones():
    x = torch.stack([tone(8), tone(40) + tone(100), torch.ones(1024).double(), torch.zeros(1024).double()])
    s = relu_spectrum(x, 1024)
    assert s.tones == [[8.0], [40.0, 100.0], [], []]
    for i in range(4):
        alone = relu_spectrum(x[i], 1024)
        for name in s.parts:
            expected = alone.parts.get(name, torch.zeros(1, 1024, dtype=torch.float64))
            torch.testing.assert_close(s.parts[name][i : i + 1], expected, rtol=0, atol=1e-13)
    assert s[1].tones == [[40.0, 100.0]]
    assert s.parts["dc"][2:, 0].tolist() == [1, 0]


def test_noise_has_no_harmonics():
    x = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = relu_spectrum(x, 500).check(1e-9)
    assert list(s.parts) == ["linear", "dc", "intermodulation"]
    assert s.tones == [[]]


def test_higher_harmonics_and_aliases():
    few = relu_spectrum(tone(16), 1024, n=2)
    assert list(few.parts) == ["linear", "dc", "harmonic_2", "higher_harmonics"]
    assert few.amplitudes("higher_harmonics")[0, 64] == pytest.approx(2 / (15 * math.pi), abs=1e-3)
    folded = relu_spectrum(tone(300), 1024).check()  # the second harmonic, 600, folds to 424
    assert folded.amplitudes("harmonic_2")[0, 424] > 0.2


def test_odd_sizes_and_single_precision():
    s = relu_spectrum(tone(5, size=701).float(), 701)
    assert s.whole.dtype == torch.float32
    assert s.error() < 1e-4
    assert s.amplitudes().shape == (1, 351)


@pytest.mark.parametrize("order", [None, 3])
def test_activations_in_place_leave_the_signal_alone(order):
    for act, plain in ((nn.ReLU(inplace=True), torch.relu), (nn.LeakyReLU(0.2, inplace=True), nn.LeakyReLU(0.2))):
        x = 0.3 + tone(16) + tone(40)
        before = x.clone()
        s, expected = (activation_spectrum(f, x, 1024, order) for f in (act, plain))
        assert torch.equal(x, before)
        assert s.tones == [[16.0, 40.0]]
        assert list(s.parts) == list(expected.parts)
        assert all(torch.equal(s.parts[name], part) for name, part in expected.parts.items())
        assert torch.equal(harmonics(act, 1.0), harmonics(plain, 1.0))


def test_single_precision_has_a_floor():
    """Tones below sqrt(eps) of the loudest are taken for rounding, as the docstring has it."""
    for kind, floor in ((torch.float32, 3.5e-4), (torch.float64, 1.5e-8)):
        kept, lost = (relu_spectrum((tone(16) + tone(40, a * floor)).to(kind), 1024) for a in (1.1, 0.9))
        assert (kept.tones, lost.tones) == ([[16.0, 40.0]], [[16.0]])
        assert 0.1 * floor < lost.error() < floor
        assert kept.error() < 0.1 * floor


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_taken_in_single(kind):
    x = tone(16).to(kind)
    s, expected = relu_spectrum(x, numpy.int64(256)), relu_spectrum(x.float(), 256.0)
    assert s.whole.dtype == torch.float32
    assert s.fs == 256.0
    assert torch.equal(s.parts["dc"], expected.parts["dc"])
    a = torch.tensor(1.5, dtype=kind)
    for f in (relu_harmonics, lambda a, n: harmonics(torch.relu, a, n)):
        assert torch.equal(f(a, 4), f(a.float(), 4))


def test_it_is_kept_in_files_and_drawn(tmp_path):
    s = relu_spectrum(torch.stack([tone(8), tone(40) + tone(100)]), 1024)
    again = tw.Decomposition.load(s.save(tmp_path / "s"))
    assert isinstance(again, Spectrum)
    assert (again.tones, again.fs) == (s.tones, 1024.0)
    torch.testing.assert_close(again.parts["harmonic_2"], s.parts["harmonic_2"])
    lines, over_time, sizes = s.pictures(1)
    named = {line.name: line for line in lines.lines}
    at = int((s.frequencies == 40).nonzero())
    assert dict(zip(named["linear"].x, named["linear"].y, strict=True))[40.0] == pytest.approx(
        float(s.amplitudes("linear")[1, at])
    )
    made = sum(
        torch.tensor(line.y, dtype=torch.float64) for line in over_time.lines[1:]
    )  # the parts, the rest of them and the remainder
    torch.testing.assert_close(made, torch.tensor(over_time.lines[0].y, dtype=torch.float64))
    assert set(sizes.names) == {*s.parts, "remainder", "whole"}
    assert len(s.plot(1).axes) == 3
    relu_spectrum(torch.zeros(8), 8).plot()


@pytest.mark.parametrize(
    ("signal", "options", "problem"),
    [
        (torch.ones(4), {"fs": 0}, "fs is the number of samples per second"),
        (torch.ones(4), {"fs": math.nan}, "positive and finite"),
        (torch.ones(0), {"fs": 1}, r"not empty, got \(0,\)"),
        (torch.ones(2, 3, 4), {"fs": 1}, r"got \(2, 3, 4\)"),
        (torch.tensor([1.0, math.nan]), {"fs": 1}, "not finite"),
        (torch.ones(4), {"fs": 1, "n": 0}, "n is the highest harmonic"),
        (torch.ones(4), {"fs": 1, "taylor_order": -1}, "taylor_order is a number of 0 or more, got -1"),
        (torch.ones(4), {"fs": 1, "taylor_order": 1.5}, "got 1.5"),
    ],
)
def test_bad_signals_are_refused(signal, options, problem):
    with pytest.raises(ValueError, match=problem):
        tw.relu_spectrum(signal, **options)


def test_bad_types_and_activations_are_refused():
    with pytest.raises(TypeError, match=r"real floating tensor.*int64"):
        relu_spectrum(torch.arange(4), 1)
    with pytest.raises(TypeError, match="list"):
        relu_spectrum([1.0, 2.0], 1)
    with pytest.raises(ValueError, match="keeps the shape"):
        activation_spectrum(lambda x: x[..., :1], torch.ones(4), 1)
    with pytest.raises(ValueError, match="the activation is not finite"):
        activation_spectrum(torch.log, tone(3), 1)
    with pytest.raises(ValueError, match="kink at 0 and bends"):
        activation_spectrum(F.elu, tone(3), 1, 4)


# -- the series -------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 24))
def test_convolution_is_the_definition(seed, size):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, size, dtype=torch.complex128, generator=g)
    slow = torch.stack([sum(b[:, j] * a[:, (k - j) % size] for j in range(size)) for k in range(size)], 1)
    torch.testing.assert_close(convolve(a, b), slow)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999), bins=st.lists(st.integers(1, 100), min_size=1, max_size=3, unique=True), mean=st.floats(-1, 1),
    order=st.integers(0, 9), slope=st.sampled_from([0.0, 0.1, -1.0, 1.0]),
)  # fmt: skip
def test_the_series_of_the_root_is_its_polynomial(seed, bins, mean, order, slope):
    g = torch.Generator().manual_seed(seed)
    x = mean + sum(tone(b, 0.2 + torch.rand((), generator=g).item(), b, 256) for b in bins)
    peak = x.abs().max()
    root = peak * sum(binomial(k) * ((x / peak) ** 2 - 1) ** k for k in range(order + 1))
    polynomial = (1 + slope) / 2 * x + (1 - slope) / 2 * root
    act = torch.relu if slope == 0 else torch.abs if slope == -1 else nn.LeakyReLU(slope)
    found = torch.fft.ifft(taylor_lines(act, x[None], order)[0] * 256)
    torch.testing.assert_close(found.real, polynomial, rtol=0, atol=1e-11)
    assert found.imag.abs().max() < 1e-11
    torch.testing.assert_close(activation_spectrum(act, x, 256, order).total()[0], polynomial, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("act", "coefficients"),
    [
        (torch.exp, [1, 1, 1 / 2, 1 / 6, 1 / 24]),
        (torch.tanh, [0, 1, 0, -1 / 3, 0, 2 / 15]),
        (lambda x: x**3 - 2 * x + 1, [1, -2, 0, 1]),
        (F.gelu, [0, 0.5, 1 / math.sqrt(2 * math.pi), 0, -1 / (6 * math.sqrt(2 * math.pi))]),
    ],
)
def test_smooth_activations_take_their_own_series(act, coefficients):
    x = 0.2 + tone(7, 0.3, 1.0, 256) + tone(11, 0.2, 2.0, 256)
    found = torch.fft.ifft(taylor_lines(act, x[None], len(coefficients) - 1)[0] * 256).real
    torch.testing.assert_close(found, sum(c * x**k for k, c in enumerate(coefficients)), rtol=0, atol=1e-12)


def test_the_remainder_is_the_error_of_the_series():
    x = tone(4, 2.0, size=4096)
    errors = [relu_spectrum(x, 4096, k).remainder.abs().max().item() / 2 for k in (1, 2, 4, 8)]
    assert errors == pytest.approx([0.25, 0.1875, 0.13671875, 0.0981903], abs=1e-6)  # at x = 0
    s = relu_spectrum(x, 4096, 3)
    assert s.amplitudes("higher_harmonics").max() < 1e-13  # a polynomial of degree 6
    assert s.amplitudes("harmonic_6")[0, 24] > 1e-3
    assert s.amplitudes("harmonic_8").max() < 1e-13
    assert "series of order 3" in s.summary()


# -- Gaussians --------------------------------------------------------------------------------------------------------

ACTS = [
    torch.relu, F.relu, Tensor.relu, torch.abs, Tensor.abs, F.relu6, F.hardtanh, F.leaky_relu, F.gelu, nn.ReLU(), nn.ReLU6(),
    nn.Hardtanh(-0.5, 2), nn.LeakyReLU(0.3), nn.GELU(),
]  # fmt: skip


@pytest.mark.parametrize(
    "act", [*ACTS, F.silu, torch.tanh, F.hardswish, nn.GELU("tanh")], ids=lambda act: getattr(act, "__name__", str(act))
)
def test_the_mean_over_a_gaussian(act):
    for m, s in ((0.0, 1.0), (-1.3, 0.4), (2.0, 3.0)):

        def density(v, m=m, s=s):
            return act(torch.tensor(v, dtype=torch.float64)).item() * norm.pdf(v, m, s)

        kinks = [k for k in (-3, -1, -0.5, 0, 1, 2, 3, 6) if abs(k - m) < 12 * s]
        peer = integrate.quad(density, m - 12 * s, m + 12 * s, points=kinks, epsabs=1e-10, limit=200)[0]
        assert dc_component(act, m, s).item() == pytest.approx(peer, abs=1e-9 if act not in (F.hardswish,) else 1e-5 * s)


def test_no_spread_is_the_function_itself():
    m = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    for act in (*ACTS, torch.tanh):
        torch.testing.assert_close(dc_component(act, m, 0.0), act(m), rtol=0, atol=1e-12)


def test_means_are_broadcast():
    m, s = torch.randn(3, 1), torch.rand(4)
    for act in (torch.relu, torch.tanh):
        assert dc_component(act, m, s).shape == (3, 4)
        assert dc_component(act, m, s).dtype == torch.float32
        assert dc_component(act, m, s)[1, 2].item() == pytest.approx(
            dc_component(act, m[1, 0].item(), s[2].item()).item(), abs=1e-6
        )


def test_jumps_are_met_to_a_hundredth():
    m = torch.linspace(-3, 3, 601, dtype=torch.float64)
    errors = [(dc_component(torch.sign, m, s) - (2 * torch.special.ndtr(m / s) - 1)).abs().max().item() for s in (0.2, 1.0, 4.0)]
    assert 1e-3 < max(errors) < 2e-2  # of a step of 2


def test_integers_are_numbers():
    m, s = torch.tensor([-1, 0, 2]), torch.tensor(2)
    for act in (torch.relu, torch.tanh):
        torch.testing.assert_close(dc_component(act, m, s), dc_component(act, m.double(), 2.0))


def test_bad_moments_are_refused():
    for act in (lambda x: x.sum(), lambda x: x[..., :1], lambda x: x.mean(-1)):
        with pytest.raises(ValueError, match=r"keeps the shape: this one made .* of \(2048, 3\)"):
            dc_component(act, torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="std is 0 or more, got -1"):
        dc_component(torch.relu, 0.0, -1.0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        dc_component(torch.relu, math.inf, 1.0)
