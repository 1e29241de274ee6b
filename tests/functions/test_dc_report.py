"""The DC behind every activation of a network: measured by hand, batch by batch, and held against the prediction."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import termwise as tw
from termwise.functions import DCReport, RemoveDC, dc_component, dc_report
from termwise.testing.architectures import build


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(make) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def cnn() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.ReLU6()))


def test_layers_of_a_cnn_are_measured():
    model, x = cnn(), double(6, 3, 9, 9)
    r = dc_report(model, x).check(1e-12)
    assert r.layers == ["1 relu", "4 hardtanh"]
    for i, (name, layers) in enumerate(zip(r.layers, (1, 4), strict=True)):
        before = model[:layers](x).detach()
        y = model[layers](before)
        means = y.mean((2, 3), keepdim=True)
        assert r.whole[i].item() == pytest.approx(y.square().mean().item())
        assert r.parts["dc"][i].item() == pytest.approx(means.square().mean().item())
        assert r.parts["rest"][i].item() == pytest.approx((y - means).square().mean().item())
        m, s = before.mean((0, 2, 3)), before.std((0, 2, 3), correction=0)
        predicted = dc_component(model[layers], m, s)
        torch.testing.assert_close(r.channels[name], torch.stack([m, s, y.mean((0, 2, 3)), predicted], 1))
        assert r.measured[i].item() == pytest.approx(y.mean().item())
        assert r.predicted[i].item() == pytest.approx(predicted.mean().item())
        gap = (predicted - y.mean((0, 2, 3))).norm() / y.mean((0, 2, 3)).norm()
        assert r.off[i].item() == pytest.approx(gap.item())


def test_the_share_is_that_of_a_fourier_transform():
    model, x = seeded(lambda: nn.Sequential(nn.Conv1d(2, 3, 5), nn.GELU())), double(4, 2, 36)
    lines = torch.fft.fft(model(x)).abs().square()
    r = dc_report(model, x)
    assert r.share.item() == pytest.approx((lines[..., 0].sum() / lines.sum()).item())


def test_batches_are_one_data_set():
    for model, x in (
        (cnn(), double(7, 3, 9, 9)),
        (seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 3), nn.Tanh())), double(7, 5)),
    ):
        whole = dc_report(model, x)
        labels = torch.zeros(3)
        parts = dc_report(model, ((b, labels) for b in (x[:3], x[3:5], x[5:])))
        assert parts.layers == whole.layers
        for name in ("whole", "measured", "predicted", "off", "share"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-10, atol=1e-12)
        parts.check(1e-12)


def test_inputs_and_targets_are_one_batch():
    """As `linearize_channels` reads such a pair; targets of the inputs' shape are no second batch."""
    model, x = seeded(lambda: nn.Sequential(nn.Linear(5, 5), nn.ReLU())), double(7, 5)
    expected = dc_report(model, x)
    for targets in (torch.zeros(7), 100 * x):
        assert torch.equal(dc_report(model, (x, targets)).channels["1 relu"], expected.channels["1 relu"])
    assert not torch.equal(dc_report(model, [x, 100 * x]).measured, expected.measured)  # a list is of batches


def test_units_without_space_are_signals_over_the_samples():
    model, x = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU())), double(50, 5)
    y = model(x)
    r = dc_report(model, x).check(1e-12)
    assert r.share.item() == pytest.approx((y.mean(0).square().mean() / y.square().mean()).item())
    torch.testing.assert_close(r.channels["1 relu"][:, 2], y.mean(0).detach())


class Functional(nn.Module):
    """Activations that are no modules, in place, twice at one place; channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.b(F.relu_(self.a(x))), 0.2) + F.leaky_relu(self.b(self.a(x)), 0.3)


def test_functions_count_as_modules_do():
    model, x = seeded(Functional), double(3, 10, 4)
    r = dc_report(model, x).check()
    assert r.layers == ["relu", "leaky_relu", "leaky_relu (2)"]
    y = torch.relu(model.a(x)).detach()
    assert r.share[0].item() == pytest.approx((y.mean(1).square().mean() / y.square().mean()).item())
    assert len(r.channels["relu"]) == 6
    z = model.b(y).detach()
    expected = dc_component(nn.LeakyReLU(0.2), z.mean((0, 1)), z.std((0, 1), correction=0))
    torch.testing.assert_close(r.channels["leaky_relu"][:, 3], expected)
    other = dc_component(nn.LeakyReLU(0.3), *r.channels["leaky_relu (2)"][:, :2].T)
    torch.testing.assert_close(r.channels["leaky_relu (2)"][:, 3], other)


class Moved(nn.Module):
    """Channels last behind a convolution, channels first behind a product, and an activation written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 5, 3), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x).transpose(1, 2))
        z = self.b(y).permute(0, 2, 1)
        return 0.5 * z * (1 + torch.erf(z / 2**0.5))


def test_channels_are_found_where_they_were_moved():
    model, x = seeded(Moved), double(3, 2, 12)
    r = dc_report(model, x).check()
    assert r.layers == ["relu", "pointwise"]
    assert [len(c) for c in r.channels.values()] == [5, 7]
    torch.testing.assert_close(r.channels["relu"][:, 2], F.relu(model.a(x)).mean((0, 2)).detach())
    m, s = r.channels["pointwise"][:, :2].T
    torch.testing.assert_close(r.channels["pointwise"][:, 3], dc_component(F.gelu, m, s))


def test_batches_are_of_one_kind():
    model = nn.Sequential(nn.ReLU()).eval()
    with pytest.raises(ValueError, match="0 relu has 5 channels in one batch and 4 in another"):
        dc_report(model, [double(3, 5, 8), double(3, 4, 8)])


def test_slopes_may_be_learned():
    model, x = seeded(lambda: nn.Sequential(nn.Conv1d(1, 3, 3), nn.PReLU(3))), double(4, 1, 20)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.0, 0.5, -1.0]))
    r = dc_report(model, x).check()
    m, s = r.channels["1 prelu"][:, :2].T
    expected = torch.stack([dc_component(nn.LeakyReLU(a), m[i], s[i]) for i, a in enumerate((0.0, 0.5, -1.0))])
    torch.testing.assert_close(r.channels["1 prelu"][:, 3], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("act", [nn.PReLU(3), nn.PReLU(), nn.GELU(), nn.Softplus(), nn.Threshold(0.1, 0.0)], ids=str)
def test_single_precision_is_reported_as_double_is(act):
    model, x = seeded(lambda: nn.Sequential(nn.Conv1d(1, 3, 3), act)), double(4, 1, 20)
    single, expected = dc_report(model.float(), x.float()).check(), dc_report(model.double(), x)
    torch.testing.assert_close(single.predicted, expected.predicted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(single.channels[single.layers[0]], expected.channels[single.layers[0]], rtol=1e-4, atol=1e-5)


def test_gaussian_pre_activations_are_predicted():
    model = seeded(lambda: nn.Sequential(nn.Conv1d(1, 6, 9), nn.ReLU()))
    r = dc_report(model, double(200, 1, 400))  # white noise, filtered: Gaussian
    assert r.off.item() < 0.02
    assert r.measured.item() == pytest.approx(r.predicted.item(), rel=0.02)


def test_architectures_go_through_and_are_left_alone():
    subject = build("resnet")
    model, inputs = subject.model, subject.inputs
    before = {n: (dict(m._forward_hooks), m.training) for n, m in model.named_modules()}
    state = {n: v.clone() for n, v in model.state_dict().items()}
    r = dc_report(model, inputs).check()
    assert len(r.layers) > 4
    assert before == {n: (dict(m._forward_hooks), m.training) for n, m in model.named_modules()}
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def test_removing_the_dc_removes_it():
    x = double(2, 3, 5, 7)
    y = RemoveDC()(x)
    assert y.mean((2, 3)).abs().max() < 1e-15
    torch.testing.assert_close(y - y.mean((2, 3), keepdim=True), x - x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(RemoveDC(-1)(x), x - x.mean(-1, keepdim=True))
    torch.testing.assert_close(RemoveDC((1, 3)).train()(x), RemoveDC((1, 3)).eval()(x))
    assert not list(RemoveDC().parameters())
    assert "dims=(-1,)" in repr(RemoveDC(-1))
    model = nn.Sequential(*cnn()[:2], RemoveDC(), nn.ReLU()).eval()
    lines = dc_report(model, double(2, 3, 9, 9)).channels["3 relu"]
    assert lines[:, 0].abs().max() < 1e-14  # no mean arrives at the second
    with pytest.raises(ValueError, match=r"axes behind batch and channel.*\(2, 3\)"):
        RemoveDC()(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"the axes \(4,\)"):
        RemoveDC(4)(x)


def test_it_is_kept_in_files_and_drawn(tmp_path):
    r = dc_report(cnn(), double(2, 3, 9, 9))
    again = tw.Decomposition.load(r.save(tmp_path / "r"))
    assert isinstance(again, DCReport)
    assert again.table() == r.table()
    assert len(r.table().splitlines()) == 3
    assert "2 activation layers, 2 with a positive DC" in r.summary()
    shares, means, channels = r.pictures()
    assert shares.values["energy at frequency 0"] == r.share.tolist()
    assert [line.y for line in means.lines] == [r.measured.tolist(), r.predicted.tolist()]
    assert [line.y for line in channels.lines[:2]] == [r.channels[n][:, 3].tolist() for n in r.layers]
    assert len(r.plot().axes) == 3
    assert r[1].layers == ["4 hardtanh"]


def test_bad_data_are_refused():
    model = cnn()
    with pytest.raises(ValueError, match="no batches"):
        dc_report(model, [])
    with pytest.raises(ValueError, match="holds no samples"):
        dc_report(model, torch.ones(0, 3, 9, 9))
    with pytest.raises(ValueError, match="batch 1 is not finite"):
        dc_report(model, [double(1, 3, 9, 9), math.nan * double(1, 3, 9, 9)])
    with pytest.raises(TypeError, match="iterable of batches, got int"):
        dc_report(model, 3)
    with pytest.raises(TypeError, match="got float"):
        dc_report(model, [1.0])
    with pytest.raises(ValueError, match=r"no activation layer: known are .*relu"):
        dc_report(nn.Linear(2, 2).eval(), torch.ones(2, 2))
