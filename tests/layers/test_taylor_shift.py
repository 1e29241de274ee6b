"""TaylorShift: both forms are one function, which is the loop of its definition; what it leaves out is measured and bounded."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from termwise.layers import TaylorShiftAttention, crossover, taylor_shift_attention, taylor_shift_expansion
from termwise.layers.taylor_sums import ROWS, pairs, taylor_sums, taylor_weights
from termwise.testing.cost import peak


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_definition(query, key, value, tau=1.0, *, weight=None, is_causal=False, keep=None) -> Tensor:
    """One query after the other, one key after the other, out of the equation; (L, d), (S, d), (S, c), keep (L, S)."""
    weight = weight or (lambda s: 1 + s + s * s / 2)
    rows = []
    for i, q in enumerate(query):
        above, below = torch.zeros_like(value[0]), 0.0
        for j, k in enumerate(key):
            if (is_causal and j > i) or (keep is not None and not keep[i, j]):
                continue
            w = weight(tau * float(q @ k) / math.sqrt(float(q @ q) * float(k @ k)))
            above, below = above + w * value[j], below + w
        rows.append(above / below if below else above)
    return torch.stack(rows)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 7), st.integers(1, 6), st.booleans(), st.booleans(), st.floats(-2, 3), st.integers(0, 99)
)
def test_both_forms_are_the_loop(length, d, c, causal, masked, tau, seed):
    q, k, v = double(length, d, seed=seed), double(length, d, seed=seed + 1), double(length, c, seed=seed + 2)
    keep = torch.rand(length, generator=torch.Generator().manual_seed(seed)) < 0.6 if masked else None
    truth = by_definition(q, k, v, tau, is_causal=causal, keep=None if keep is None else keep.expand(length, -1))
    for implementation in ("direct", "efficient"):
        found = taylor_shift_attention(q, k, v, tau, implementation=implementation, is_causal=causal, attn_mask=keep)
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("d", [1, 2, 7, 16])
@pytest.mark.parametrize("length", [ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 5])
@pytest.mark.parametrize("causal", [False, True])
def test_forms_agree_over_blocks(d, length, causal):
    q, k = double(2, 2, 3, length, d)
    v, tau = double(2, 3, length, 5), torch.tensor([0.5, 1.0, 3.0])
    keep = torch.rand(2, 1, 1, length, generator=torch.Generator().manual_seed(1)) < 0.8
    for mask in (None, keep):
        direct, efficient = (
            taylor_shift_attention(q, k, v, tau, implementation=form, is_causal=causal, attn_mask=mask)
            for form in ("direct", "efficient")
        )
        torch.testing.assert_close(efficient, direct, rtol=1e-9, atol=1e-9)


def test_queries_and_keys_of_different_number_and_broadcast_heads():
    q, k, v = double(4, 300, 6), double(1, 170, 6, seed=1), double(4, 170, 3, seed=2)
    direct, efficient = (taylor_shift_attention(q, k, v, implementation=form) for form in ("direct", "efficient"))
    torch.testing.assert_close(efficient, direct, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(direct[2, :5], by_definition(q[2, :5], k[0], v[2]), rtol=1e-9, atol=1e-11)


@given(st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_pairs_are_all_pairs(d, seed):
    """Against the outer product: with their weights, pairs of q and of k make (q . k)^2 / 2."""
    q, k = double(2, 4, d, seed=seed)
    sums = taylor_sums(q, k, torch.eye(4, dtype=torch.float64))
    truth = taylor_weights(q @ k.T)
    torch.testing.assert_close(sums / sums[0, 0] * truth[0, 0], truth, rtol=1e-9, atol=1e-9)
    assert pairs(q).shape == (4, (d // 2 + 1) * d)
    found, wanted = pairs(q[:1]), (q[0, :, None] * q[0]).flatten()
    assert all((found - w).abs().min() < 1e-15 for w in wanted)


@given(st.floats(-50, 50), st.sampled_from([2, 4, 6]))
def test_weights_are_the_series_and_positive(s, order):
    found = taylor_weights(torch.tensor(s, dtype=torch.float64), order).item()
    assert found > 0
    assert found == pytest.approx(sum(s**k / math.factorial(k) for k in range(order + 1)), rel=1e-9)


def test_higher_orders_come_nearer_to_the_softmax():
    q, k, v = double(3, 30, 6)
    truth = by_definition(q, k, v, 2.0, weight=math.exp)
    errors = [float((taylor_shift_attention(q, k, v, 2.0, order=p) - truth).norm()) for p in (2, 4, 6, 8)]
    assert all(b < a / 5 for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["direct", "efficient"])
def test_gradients(form, causal, monkeypatch):
    monkeypatch.setattr("termwise.layers.taylor_sums.ROWS", 3)  # blocks enough
    q, k, v = (x.requires_grad_() for x in double(3, 2, 7, 4))
    tau = torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: taylor_shift_attention(*a, implementation=form, is_causal=causal), (q, k, v, tau), fast_mode=True
    )


@pytest.mark.parametrize("form", ["direct", "efficient"])
def test_a_masked_key_is_as_if_it_were_not_there(form):
    q, k, v = double(3, 2, 40, 8)
    keep = torch.arange(40) % 3 > 0
    k[:, ~keep], v[:, ~keep] = math.nan, math.inf
    found = taylor_shift_attention(q, k, v, implementation=form, attn_mask=keep)
    gone = taylor_shift_attention(q, k[:, keep], v[:, keep], implementation=form)
    torch.testing.assert_close(found, gone, rtol=1e-12, atol=1e-12)
    nothing = taylor_shift_attention(q, k, v, implementation=form, attn_mask=torch.zeros(40, dtype=torch.bool))
    assert (nothing == 0).all()


def test_a_mask_of_pairs_is_direct():
    q, k, v = double(3, 20, 4)
    keep = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    found = taylor_shift_attention(q, k, v, attn_mask=keep)
    torch.testing.assert_close(found, by_definition(q, k, v, keep=keep), rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match=r"mask that differs between queries, \(20, 20\)"):
        taylor_shift_attention(q, k, v, attn_mask=keep, implementation="efficient")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_does_not_overflow(dtype, causal):
    """Equal keys and large values: sums of pairs grow with the sequence, means do not."""
    q, v = torch.randn(1, 600, 64, generator=torch.Generator().manual_seed(0)), torch.full((1, 600, 64), 100.0)
    k = q[:, :1].expand(-1, 600, -1)
    v[..., ::2] += torch.randn(1, 600, 32, generator=torch.Generator().manual_seed(1))
    for form in ("direct", "efficient"):
        found = taylor_shift_attention(*(x.to(dtype) for x in (k, k, v)), implementation=form, is_causal=causal)
        truth = taylor_shift_attention(*(x.to(dtype).double() for x in (k, k, v)), is_causal=causal)
        assert found.dtype == dtype
        assert ((found.double() - truth).norm() / truth.norm()) < 4 * torch.finfo(dtype).eps
    zero = torch.zeros(1, 5, 64, dtype=dtype)
    assert taylor_shift_attention(zero, zero, zero + 1).eq(1).all()


@pytest.mark.parametrize(("form", "tau", "size"), [("direct", 10.0, 1.0), ("efficient", 1.0, 1000.0)])
def test_sums_over_keys_pass_the_largest_half(form, tau, size):
    """1,200 equal keys: 61 each are more than 65,504, and so are 1,000 each of one block; what is read is their mean."""
    x = torch.ones(1, 1200, 4, dtype=torch.float16)
    found = taylor_shift_attention(x, x, size * x, torch.tensor([tau]), implementation=form)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, size * x, rtol=5e-3, atol=0)


def test_crossover_is_where_the_counts_meet():
    for d in (1, 8, 16, 32, 64, 128):
        time, memory = crossover(d)
        assert 4 * time**2 * d + 6 * time**2 == pytest.approx(time * (4 * d**3 + 10 * d**2 + 9 * d + 4), rel=1e-12)
        entries = d**2 * (d + 1) + 2 * d * memory + (d + 1) * memory + d**2 * memory
        assert d * memory + 2 * memory**2 == pytest.approx(entries, rel=1e-12)
    assert [round(n) for n in crossover(64)] == [4161, 2174]
    for wrong in (0, 2.5, -1):
        with pytest.raises(ValueError, match="whole number of 1 or more"):
            crossover(wrong)


def test_the_switch_is_at_the_crossover(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "termwise.layers.taylor_shift.taylor_sums", lambda q, *a, **o: asked.append(len(q)) or taylor_sums(q, *a, **o)
    )
    x = double(74, 8)
    for length, keys in ((72, 72), (73, 73), (1, 74), (74, 60)):  # crossover(8).time = 72.7; one query is never worth it
        taylor_shift_attention(x[:length], x[:keys], x[:keys])
    taylor_shift_attention(x, x, x, order=4)
    taylor_shift_attention(x, x[:60], x[:60], is_causal=True)
    assert asked == [73]


def test_memory_does_not_grow_as_the_square():
    def held(length, form, causal):
        q, k, v = torch.randn(3, length, 16)
        with torch.no_grad():
            return peak(lambda: taylor_shift_attention(q, k, v, implementation=form, is_causal=causal))

    for causal in (False, True):
        assert held(2048, "efficient", causal) < held(2048, "direct", causal) / 4
        assert held(4096, "efficient", causal) < 2.2 * held(2048, "efficient", causal)


def test_pairs_of_queries_and_of_keys_are_held_a_few_rows_at_a_time():
    for length, keys in ((4096, 200), (200, 4096)):
        q, k, v = torch.randn(length, 32), torch.randn(keys, 32), torch.randn(keys, 32)
        with torch.no_grad():
            held = peak(lambda q=q, k=k, v=v: taylor_shift_attention(q, k, v, implementation="efficient"))
        assert held < pairs(q if length > keys else k).nbytes / 2


def test_causal_outputs_do_not_see_the_future():
    q, k, v = double(3, 2 * ROWS + 9, 6)
    whole = taylor_shift_attention(q, k, v, implementation="efficient", is_causal=True)
    for n in (1, ROWS, ROWS + 3):
        part = taylor_shift_attention(q[:n], k[:n], v[:n], implementation="efficient", is_causal=True)
        torch.testing.assert_close(part, whole[:n], rtol=1e-10, atol=1e-12)


def test_symmetries():
    q, k, v = double(3, 200, 8)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    found = taylor_shift_attention(q, k, v)
    torch.testing.assert_close(taylor_shift_attention(q, k[order], v[order]), found, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(taylor_shift_attention(3 * q, 0.2 * k, v), found, rtol=1e-9, atol=1e-11)
    assert (taylor_shift_attention(q, k, torch.ones_like(v)) - 1).abs().max() < 1e-12  # rows sum to 1
    weights = taylor_shift_attention(q, k, torch.eye(200, dtype=torch.float64))
    assert weights.min() > 0.5 / (200 * (1 + 1 + 0.5))


BAD = {
    r"one floating dtype": lambda q: (q, q.float(), q),
    r"query is \(..., L, d\).*\(5, 4\), key \(5, 3\)": lambda q: (q, q[:, :3], q),
    r"no key to attend to": lambda q: (q, q[:0], q[:0]),
    r"do not broadcast": lambda q: (q.expand(2, 5, 4), q.expand(3, 5, 4), q),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_tensors(message):
    with pytest.raises((ValueError, TypeError), match=message):
        taylor_shift_attention(*BAD[message](double(5, 4)))


OPTIONS = {
    r"implementation is one of auto, direct, efficient; got 'linear'": {"implementation": "linear"},
    r"order is even.*got 3": {"order": 3},
    r"no efficient form of order 4": {"order": 4, "implementation": "efficient"},
    r"True where a key counts; got torch.float32": {"attn_mask": torch.zeros(5)},
    r"attn_mask \(1, 4\) does not broadcast to the scores \(2, 5, 5\)": {"attn_mask": torch.ones(4, dtype=torch.bool)},
    r"attn_mask \(3, 1, 5\) does not": {"attn_mask": torch.ones(3, 1, 5, dtype=torch.bool)},
    r"temperature \(3,\) does not broadcast to the leading axes \(2,\)": {"temperature": torch.ones(3)},
}


@pytest.mark.parametrize("message", OPTIONS)
def test_bad_options(message):
    q = double(2, 5, 4)
    with pytest.raises((ValueError, TypeError), match=message):
        taylor_shift_attention(q, q, q, **OPTIONS[message])


# -- the expansion ------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.booleans(), st.booleans(), st.floats(0.1, 4), st.integers(0, 99))
def test_terms_are_taylorshift_and_the_rest_is_bounded(length, causal, masked, tau, seed):
    q, k, v = double(length, 5, seed=seed), double(length, 5, seed=seed + 1), double(length, 3, seed=seed + 2)
    keep = torch.rand(length, length, generator=torch.Generator().manual_seed(seed)) < 0.6 if masked else None
    e = taylor_shift_expansion(q, k, v, tau, is_causal=causal, attn_mask=keep)
    truth = by_definition(q, k, v, tau, weight=math.exp, is_causal=causal, keep=keep)
    torch.testing.assert_close(e.whole, truth, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(e.total(), by_definition(q, k, v, tau, is_causal=causal, keep=keep), rtol=1e-9, atol=1e-11)
    assert list(e.parts) == ["constant", "linear", "quadratic"]
    assert (e.remainder.norm(dim=-1) <= e.bound() * (1 + 1e-9) + 1e-12).all()
    assert e.weight_error <= e.weight_bound * (1 + 1e-9)
    assert e.weight_bound.item() == pytest.approx(tau**3 * math.exp(tau) / 6)


def test_parts_are_their_equations():
    q, k, v = double(3, 6, 4)
    e = taylor_shift_expansion(q, k, v)
    s = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).T
    total = (1 + s + s**2 / 2).sum(1, keepdim=True)
    for part, weights in zip(e.parts.values(), (torch.ones_like(s), s, s**2 / 2), strict=True):
        torch.testing.assert_close(part, weights @ v / total, rtol=1e-9, atol=1e-12)


def test_the_bound_is_nearly_reached():
    """A query beside a key of its own direction, with a long value, and many keys across: the weight's error is the bound's order."""
    e = taylor_shift_expansion(*torch.eye(4, dtype=torch.float64)[None].expand(3, 4, 4), 0.01)
    assert e.weight_error / e.weight_bound > 0.98
    rows = e.remainder.norm(dim=-1) / e.bound()
    assert 0.2 < rows.min() <= rows.max() <= 1


# -- the module ---------------------------------------------------------------------------------------------------------


def module(form: str = "auto", seed: int = 0) -> TaylorShiftAttention:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = TaylorShiftAttention(12, 3, implementation=form).double()
        torch.nn.init.uniform_(found.temperature, 0.5, 2)
    return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", ["direct", "efficient"])
def test_the_module_is_its_equation(form, causal, masked):
    m, x = module(form), double(2, 9, 12)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = masked
    found = m.requires_grad_(False)(x, key_padding_mask=padding if masked else None, is_causal=causal)
    for b in range(2):
        heads = []
        for h in range(3):
            q, k, v = (p(x[b])[:, 4 * h : 4 * h + 4] for p in (m.q_proj, m.k_proj, m.v_proj))
            keep = ~padding[b].expand(9, -1)
            n = (keep.tril() if causal else keep).sum(1, keepdim=True)
            heads.append((n / 4).sqrt() * by_definition(q, k, v, float(m.temperature[h]), is_causal=causal, keep=keep))
        torch.testing.assert_close(found[b], m.out_proj(torch.cat(heads, 1)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_the_module_expands(causal):
    m, x = module(), double(2, 9, 12)
    e = m.expand(x, is_causal=causal)
    torch.testing.assert_close(e.total(), m(x, is_causal=causal), rtol=1e-9, atol=1e-12)
    assert list(e.parts) == ["constant", "linear", "quadratic", "bias"]
    assert (e.remainder.norm(dim=-1) <= e.bound()).all()
    assert 0 < e.error() < 0.2  # temperatures of up to 2
    assert (e.weight_error <= e.weight_bound).all()
    assert list(TaylorShiftAttention(12, 3, bias=False).expand(x.float()).parts) == ["constant", "linear", "quadratic"]


@pytest.mark.parametrize("form", ["direct", "efficient"])
def test_outputs_have_unit_size(form):
    """Whatever the length, for values with entries of variance 1 and nothing in common."""
    m = TaylorShiftAttention(16, 1, bias=False, implementation=form)
    for projection in (m.q_proj, m.k_proj, m.v_proj, m.out_proj):
        torch.nn.init.eye_(projection.weight)
    for length in (64, 1024):
        x, values = torch.randn(2, 16, length, 16, generator=torch.Generator().manual_seed(0))
        assert 0.9 < m(x, x, values).norm(dim=-1).mean() < 1.1


def test_cross_attention_and_bad_calls():
    m, x = module(), double(2, 9, 12)
    assert m(x, double(2, 5, 12, seed=1)).shape == x.shape
    with pytest.raises(ValueError, match=r"\(batch, positions, 12\); got \(2, 9, 11\)"):
        m(x[..., :11])
    with pytest.raises(ValueError, match=r"key_padding_mask is boolean and \(2, 9\)"):
        m(x, key_padding_mask=torch.zeros(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="as many keys as queries; got 5 and 9"):
        m(x, x[:, :5], is_causal=True)
    with pytest.raises(ValueError, match=r"multiple of num_heads.*12 and 5"):
        TaylorShiftAttention(12, 5)
    with pytest.raises(ValueError, match="implementation is one of"):
        TaylorShiftAttention(12, 3, implementation="fast")
