"""Bootstrap: the definition by a loop, coverage, pairs, clusters, statistics that are no means, and bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from termwise.predictions.faithfulness import Metric

DOUBLE = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_interval_is_its_definition():
    """Slow twin: draw clusters, put their samples together, take the mean; percentiles over the draws."""
    values = torch.randn(11, generator=seeded(0), dtype=DOUBLE)
    clusters = [3, 3, 7, 7, 7, 0, 9, 9, 2, 2, 2]
    low, high = Metric("m", values).interval(0.9, clusters=clusters, resamples=300, generator=seeded(5))
    names = sorted(set(clusters))
    means = []
    for draw in torch.randint(len(names), (300, len(names)), generator=seeded(5)).tolist():
        chosen = [v for i in draw for v, c in zip(values.tolist(), clusters, strict=True) if c == names[i]]
        means.append(sum(chosen) / len(chosen))
    means = torch.tensor(means, dtype=DOUBLE)
    assert (low, high) == pytest.approx((means.quantile(0.05).item(), means.quantile(0.95).item()), abs=1e-12)


def test_it_covers_the_truth_as_often_as_it_says():
    """200 samples of 60 from a skewed distribution of mean 1; a 90 % interval misses one in ten, and less than one in five."""
    g = seeded(1)
    hits = 0
    for _ in range(200):
        values = -torch.rand(60, generator=g, dtype=DOUBLE).log()
        low, high = Metric("m", values).interval(0.9, resamples=400, generator=g)
        hits += low <= 1 <= high
    assert 160 <= hits <= 195


def test_pairs_take_out_what_both_share():
    g = seeded(2)
    hard = 10 * torch.randn(40, generator=g, dtype=DOUBLE)
    ours = Metric("area", hard + 0.1 + 0.01 * torch.randn(40, generator=g, dtype=DOUBLE))
    theirs = Metric("area", hard)
    low, high = (ours - theirs).interval()
    assert 0 < low < 0.1 < high
    assert ours.interval()[0] < theirs.interval()[1]  # unpaired, the intervals overlap
    assert (ours - theirs).mean == pytest.approx(ours.mean - theirs.mean)


def test_copies_of_a_sample_are_one_cluster():
    values = torch.randn(8, generator=seeded(3), dtype=DOUBLE)
    metric, copied = Metric("m", values), Metric("m", values.repeat_interleave(10))
    clusters = torch.arange(8).repeat_interleave(10)
    assert copied.interval(clusters=clusters) == pytest.approx(metric.interval())
    assert copied.interval()[1] - copied.interval()[0] < 0.5 * (metric.interval()[1] - metric.interval()[0])


@given(st.integers(2, 30), st.integers(0, 1000))
def test_the_interval_holds_the_mean_and_scales(n, seed):
    values = torch.randn(n, generator=seeded(seed), dtype=DOUBLE)
    metric = Metric("m", values)
    low, high = metric.interval()
    assert values.min() <= low <= metric.mean + 1e-12
    assert metric.mean <= high + 1e-12
    assert Metric("m", 3 * values - 1).interval() == pytest.approx((3 * low - 1, 3 * high - 1))


def test_a_statistic_that_is_no_mean():
    """A ratio of sums: every resample sums first and divides then."""
    counts = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 5.0]], dtype=DOUBLE)
    ratio = Metric("ratio", counts, of_means=lambda m: m[..., 0] / m[..., 1])
    assert ratio.mean == pytest.approx(4 / 11)
    low, high = ratio.interval(resamples=500, generator=seeded(0))
    found = [(counts[i, 0].sum() / counts[i, 1].sum()).item() for i in torch.randint(3, (500, 3), generator=seeded(0))]
    assert low == pytest.approx(torch.tensor(found).quantile(0.025).item(), abs=1e-6)
    assert high == pytest.approx(torch.tensor(found).quantile(0.975).item(), abs=1e-6)
    with pytest.raises(ValueError, match="no mean over samples"):
        ratio - ratio


def test_one_sample_has_no_spread_to_know():
    assert all(math.isnan(x) for x in Metric("m", torch.tensor([0.5])).interval())
    assert repr(Metric("ABPC", torch.tensor([0.5]))) == "ABPC 0.5 of 1 sample"
    assert repr(Metric("ABPC", torch.tensor([0.5, 0.5]))) == "ABPC 0.5 [0.5, 0.5] of 2 samples"


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    metric = Metric("m", torch.arange(5.0))
    assert metric.interval() == metric.interval()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m.interval(1.0), "level must lie in 0..1"),
        (lambda m: m.interval(resamples=0), "at least 1"),
        (lambda m: m.interval(clusters=[1, 2]), r"clusters has shape \(2,\) for 5 samples"),
        (lambda m: m - Metric("m", torch.ones(4)), "the same samples: there are 5 and 4"),
        (lambda m: Metric("m", torch.ones(0)), "one number per sample"),
        (lambda m: Metric("m", torch.ones(2, 2)), "go together"),
    ],
)
def test_bad_input_says_what_is_allowed(call, text):
    with pytest.raises(ValueError, match=text):
        call(Metric("m", torch.arange(5.0)))
