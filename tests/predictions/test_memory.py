"""A limit on memory is kept, and changes no number."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from termwise.predictions import contrast, explain
from termwise.predictions.memory import Meter, as_bytes, graph_size, shown

WIDE, BATCH = 60_000, 12


class Pointwise(nn.Module):
    """Little to compute and much to keep: of five tanh the ratio tanh(x) / x, 240 kB each for every sample."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1, WIDE))

    def forward(self, x):
        for _ in range(5):
            x = torch.tanh(x * self.scale) * self.scale
        return x.unflatten(1, (3, -1)).sum(2)


def most(run) -> int:
    """The most that was allocated at a time, by the allocator's own events."""
    run()  # what is made once is made
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    live = peak = 0
    for event in sorted(
        (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    ):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Pointwise().eval(), torch.randn(BATCH, WIDE)


def test_the_limit_is_kept(subject):
    model, x = subject
    free = most(lambda: explain(model, x, target=1))
    result = sum(p.numel() * 4 for p in explain(model, x, target=1).parts.values())
    for limit in (free // 2, result + (free - result) // 4):
        assert most(lambda limit=limit: explain(model, x, target=1, max_memory=limit)) <= limit
    assert free > 2 * result  # or the limit would say nothing


def test_targets_add_nothing_but_their_result(subject):
    model, x = subject
    x = x[:3]
    size = x.numel() * 4
    one, six = (most(lambda n=n: explain(model, x, target=list(range(3)) * n)) for n in (1, 2))
    assert (six - one) / (3 * size) == pytest.approx(1, abs=0.1)


def test_pieces_give_the_same(subject):
    model, x = subject
    targets = [torch.arange(BATCH) % 3, contrast(torch.arange(BATCH) % 3, 0)]
    whole = explain(model, x, target=targets)
    parts = explain(model, x, target=targets, max_memory=whole_size(whole) + 12_000_000)
    torch.testing.assert_close(parts.whole, whole.whole)
    assert torch.equal(parts.target, whole.target)
    for name in whole.parts:
        torch.testing.assert_close(parts.parts[name], whole.parts[name], rtol=1e-5, atol=1e-5)


def whole_size(why) -> int:
    return sum(p.numel() * p.element_size() for p in why.parts.values())


def test_other_routes_in_pieces():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x = torch.randn(9, 4, dtype=torch.float64)
    for options in ({"at": "1"}, {"through": ("1", 2)}, {"target": lambda y: y[:, 0]}, {"target": torch.arange(9) % 3}):
        whole, parts = explain(model, x, **options), explain(model, x, **options, max_memory="10KB")
        for name in whole.parts:
            torch.testing.assert_close(parts.parts[name], whole.parts[name], rtol=0, atol=1e-13)


def test_too_little_for_one_target_says_how_much(subject):
    model, x = subject
    with pytest.raises(
        ValueError, match=r"max_memory=100\.0KB is too small: one target of one sample needs (\S+) for its"
    ) as told:
        explain(model, x, target=1, max_memory="100KB")
    needed = str(told.value).partition("needs ")[2].partition(" ")[0]
    assert 5 * 240_000 <= as_bytes(needed) <= 7 * 240_000
    # with that much the pass fits, and the result is told apart
    with pytest.raises(ValueError, match=r"for the result of 12 samples and 1 targets: (\S+) at least") as told:
        explain(model, x, target=1, max_memory=as_bytes(needed) + 1_000_000)
    enough = str(told.value).partition("targets: ")[2].partition(" ")[0]
    explain(model, x, target=1, max_memory=enough)


@pytest.mark.parametrize("bad", ["", "2 apples", "-1GB", 0, True, "0MB", "GB", 1.5, "1.5", "0.5B"])
def test_a_bad_limit(bad):
    with pytest.raises(ValueError, match="max_memory is a whole number of bytes, or a size as"):
        explain(nn.Linear(2, 2).eval(), torch.ones(1, 2), max_memory=bad)


def test_sizes_are_rounded_up():
    for size in (1, 999, 1000, 1001, 12_345_678, 10**9, 10**9 + 1):
        assert size <= as_bytes(shown(size)) <= max(size + 1, 1.1 * size)


def test_the_meter_counts_what_is_alive():
    with Meter() as meter:
        x = torch.ones(1000)
        assert meter.live == 4000
        y = x.exp()
        z = y[:10].view(2, 5)  # no memory of its own
        y.mul_(2)
        del y
        assert meter.live == 8000
        del z
        assert meter.live == 4000
        [torch.ones(1000) for _ in range(50)].clear()
        assert meter.live == 4000
    assert meter.peak == 4000 + 50 * 4000


def test_the_graph_is_measured_without_keeping_it():
    x = torch.randn(1000, requires_grad=True)
    meter = Meter()

    def chain():
        y = x
        for _ in range(100):
            y = y.sin().exp()  # exp keeps its value, sin its argument: that of the exp before
        return y

    with meter:
        size = graph_size(chain)
    assert size == 100 * 4000
    assert meter.peak < 50 * 4000
