"""Power-law graph attention: each equation once more per head and per row; who knows of what; caches; what is frozen is the same."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.layers import (
    LayerCache,
    PLDRCache,
    PLDRConfig,
    PLDRForCausalLM,
    PowerLawAttention,
    freeze_g,
    invariance,
)
from termwise.layers.rotary import rotate
from termwise.testing import check_decomposition


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def seeded(make, seed: int = 0) -> nn.Module:
    """In float64, with every parameter moved away from its first value: no bias is 0, no norm is plain."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = make().double().eval()
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def layer(seed: int = 0, **options) -> PowerLawAttention:
    return seeded(lambda: PowerLawAttention(12, 3, metric_hidden=5, **options), seed)


def language_model(seed: int = 0, **options) -> PLDRForCausalLM:
    return seeded(lambda: PLDRForCausalLM(PLDRConfig(11, d_model=12, n_heads=3, metric_layers=1, **options)), seed)


# -- the equations, per head and per row ----------------------------------------------------------------------------------


def slow_rows(network: nn.Module, rows: Tensor) -> Tensor:
    return torch.stack([network(row) for row in rows])


def slow_norm(norm: nn.LayerNorm, row: Tensor) -> Tensor:
    centred = row - row.sum() / len(row)
    return norm.weight * centred / (centred.square().sum() / len(row) + 1e-6).sqrt() + norm.bias


def slow_gated(glu: nn.Module, row: Tensor) -> Tensor:
    gate = glu.gate.weight @ row + glu.gate.bias
    return glu.down.weight @ (gate * torch.sigmoid(gate) * (glu.up.weight @ row + glu.up.bias)) + glu.down.bias


def slow_turn(row: Tensor, position: int) -> Tensor:
    """Pairs as complex numbers."""
    pairs = [complex(a, b) for a, b in row.view(-1, 2).tolist()]
    turned = [
        z * complex(math.cos(t), math.sin(t)) for i, z in enumerate(pairs) for t in [position / 10000 ** (2 * i / len(row))]
    ]
    return torch.tensor([part for z in turned for part in (z.real, z.imag)], dtype=row.dtype)


def slow_curvature(attend: PowerLawAttention, head: int, queries: list[Tensor]) -> list[Tensor]:
    """A, A_LM, A_P, G_LM of one head."""
    net, d = attend.metric, len(queries[0])
    metric = sum((torch.outer(q, q) for q in queries), torch.zeros(d, d, dtype=queries[0].dtype))
    rows = [slow_norm(net.norm, row) for row in metric]
    for residual in net.residual:
        changed = []
        for row in rows:
            new = row
            for glu in residual.chain:
                new = slow_gated(glu, new)
            changed.append(slow_norm(residual.norm, row + new))
        rows = changed
    metric = torch.stack(rows)
    u = net.weight[head] @ metric + net.bias[head]
    positive, potential = torch.empty_like(u), torch.empty_like(u)
    for i in range(d):
        for j in range(d):
            x = float(u[i, j])
            positive[i, j] = x * x / (1 + math.exp(-x)) + 1e-9
            potential[i, j] = math.exp(float(net.power[head, i, j]) * math.log(positive[i, j]))
    return [metric, positive, potential, net.coupling[head] @ potential + net.coupling_bias[head]]


@torch.no_grad()
def slow_attention(attend: PowerLawAttention, x: Tensor, g: Tensor | None = None) -> Tensor:
    """One text (n, d_model), without padding."""
    d, out = x.shape[1] // attend.n_heads, []
    heads = []
    for h in range(attend.n_heads):
        rows = slice(h * d, (h + 1) * d)
        q, k, v = ([m.weight[rows] @ token + m.bias[rows] for token in x] for m in (attend.q_proj, attend.k_proj, attend.v_proj))
        if attend.rotary:
            q, k = ([slow_turn(row, i) for i, row in enumerate(side)] for side in (q, k))
        curvature = slow_curvature(attend, h, q)[3] if g is None else g[h]
        found = []
        for i in range(len(x)):
            scores = torch.stack([q[i] @ curvature @ k[j] / math.sqrt(d) for j in range(i + 1)])
            weights = scores.exp() / scores.exp().sum()
            found.append(sum(w * value for w, value in zip(weights, v, strict=False)))
        heads.append(torch.stack(found))
    for i in range(len(x)):
        out.append(attend.o_proj.weight @ torch.cat([head[i] for head in heads]) + attend.o_proj.bias)
    return torch.stack(out)


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize(("metric_layers", "metric_denses"), [(0, 1), (1, 1), (2, 3)])
def test_the_layer_is_its_equations(rotary, metric_layers, metric_denses):
    attend, x = layer(rotary=rotary, metric_layers=metric_layers, metric_denses=metric_denses), double(2, 6, 12)
    for row, out in zip(x, attend(x), strict=True):
        torch.testing.assert_close(out.detach(), slow_attention(attend, row), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_deductive_outputs_are_theirs():
    attend, x = layer(), double(2, 6, 12)
    q = attend.queries(x)
    found = attend.energy_curvature(q)
    for b in range(2):
        for h in range(3):
            expected = slow_curvature(attend, h, list(q[b, h]))
            for name, got, want in zip(found._fields, found, expected, strict=True):
                torch.testing.assert_close(got[b, h], want, rtol=1e-10, atol=1e-12, msg=name)
    assert (found.A_LM >= 1e-9).all()
    assert not torch.allclose(found.G_LM[0], found.G_LM[1])


def test_with_g_given_it_is_used():
    attend, x, g = layer(), double(2, 6, 12), double(3, 4, 4, seed=1)
    for row, out in zip(x, attend(x, g_cache=g), strict=True):
        torch.testing.assert_close(out.detach(), slow_attention(attend, row, g), rtol=1e-10, atol=1e-10)
    both = torch.stack([g, 2 * g])
    torch.testing.assert_close(attend(x, g_cache=both)[1], attend(x, g_cache=2 * g)[1])
    fixed = layer(curvature="fixed")
    fixed.g = g
    torch.testing.assert_close(fixed(x), fixed(x, g_cache=g), rtol=0, atol=0)


@pytest.mark.parametrize("rotary", [True, False])
def test_identity_is_scaled_dot_product_attention(rotary):
    attend, x = layer(rotary=rotary), double(2, 7, 12)
    heads = [m(x).view(2, 7, 3, 4).transpose(1, 2) for m in (attend.q_proj, attend.k_proj, attend.v_proj)]
    if rotary:
        heads[:2] = [rotate(h, torch.arange(7)[None]) for h in heads[:2]]
    plain = attend.o_proj(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(2, 7, 12))
    identity = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    torch.testing.assert_close(attend(x, g_cache=identity), plain, rtol=1e-12, atol=1e-12)
    without = layer(rotary=rotary, curvature="identity")
    without.load_state_dict({k: v for k, v in attend.state_dict().items() if not k.startswith("metric")})
    torch.testing.assert_close(without(x), plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(PowerLawAttention(12, 3, curvature="fixed").g, identity.float(), rtol=0, atol=0)


# -- positions ------------------------------------------------------------------------------------------------------------


def test_positions_are_distances_only_where_nothing_stands_between():
    q, k, g = double(1, 1, 1, 8), double(1, 1, 1, 8, seed=1), double(8, 8, seed=2)

    def score(i: int, j: int, between: Tensor) -> float:
        at = [rotate(x, torch.tensor([[p]])) for x, p in ((q, i), (k, j))]
        return float(at[0].flatten() @ between @ at[1].flatten())

    identity = torch.eye(8, dtype=torch.float64)
    assert score(3, 1, identity) == pytest.approx(score(53, 51, identity), rel=1e-12)
    assert score(3, 1, g) != pytest.approx(score(53, 51, g), rel=1e-2)
    torch.testing.assert_close(rotate(q, torch.tensor([[7]])).norm(), q.norm())


# -- causality ------------------------------------------------------------------------------------------------------------


def influence(call, x: Tensor) -> Tensor:
    """(n, n): how much the output at i moves with the input at j."""
    slopes = torch.autograd.functional.jacobian(call, x)  # (1, n, width, 1, n, width)
    return slopes.abs().sum((0, 2, 3, 5))


def test_the_layer_sees_the_future_and_with_g_given_it_does_not():
    attend, x = layer(), double(1, 5, 12)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    seen = influence(attend, x)
    assert (seen[1:][later[1:]] > 1e-6).all(), "each position but the first moves with every later one"
    assert (seen[0, 1:] < 1e-12).all(), "the first has one key, whatever G is"
    given = influence(lambda x: attend(x, g_cache=double(3, 4, 4)), x)
    assert (given[later] == 0).all()
    assert (given[~later] > 0).all()


@given(st.integers(0, 2**31), st.integers(2, 9))
@settings(deadline=None, max_examples=15)
def test_models_with_g_given_are_causal(seed, n):
    model, ids = language_model(seed % 3), tokens(2, n, seed=seed)
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 11
    g = list(model.curvatures(tokens(1, 7, seed=seed + 1))[:, 0])
    with torch.no_grad():
        assert torch.equal(model(ids, g_cache=g)[:, :-1], model(changed, g_cache=g)[:, :-1])
        if n > 2:
            assert (model(ids)[:, 1:-1] - model(changed)[:, 1:-1]).abs().max() > 1e-8


# -- caches ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans(), st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_cached_steps_are_the_recomputation_with_the_same_g(steps, rotary, seed):
    model, ids = language_model(rotary=rotary), tokens(2, 5 + sum(steps), seed=seed)
    cache = PLDRCache()
    with torch.no_grad():
        found = [model(ids[:, :5], cache=cache)]
        at = 5
        for n in steps:
            found.append(model(ids[:, at : at + n], cache=cache))
            at += n
        assert cache.length == at
        again = model(ids, g_cache=cache.g)
    torch.testing.assert_close(torch.cat(found, dim=1), again, rtol=1e-10, atol=1e-10)


def test_the_cached_model_is_another_function_than_the_uncached_one():
    model, ids = language_model(), tokens(2, 12)
    cache = PLDRCache()
    with torch.no_grad():
        first, then = model(ids[:, :5], cache=cache), model(ids[:, 5:], cache=cache)
        assert torch.equal(first, model(ids[:, :5]))
        assert (then - model(ids)[:, 5:]).abs().max() > 1e-3


def test_a_cropped_cache_goes_on_from_there():
    model, ids = language_model(), tokens(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :2] = False
    for keep in (None, mask):
        cache = PLDRCache()
        with torch.no_grad():
            whole = model(ids, keep, cache=cache)
            g = cache.g
            cache.crop(6)
            assert cache.length == 6
            again = model(ids[:, 6:], cache=cache)
        torch.testing.assert_close(again, whole[:, 6:], rtol=1e-10, atol=1e-10)
        assert all(a is b for a, b in zip(g, cache.g, strict=True))
    with pytest.raises(ValueError, match=r"9 positions.*got 10"):
        cache.crop(10)
    with pytest.raises(ValueError, match="got 0"):
        cache.crop(0)


def test_a_cache_may_take_g_that_is_given():
    model, ids, cache = language_model(), tokens(1, 6), PLDRCache()
    g = list(model.curvatures(tokens(1, 9, seed=3))[:, 0])
    with torch.no_grad():
        a, b = model(ids[:, :4], g_cache=g, cache=cache), model(ids[:, 4:], cache=cache)
        torch.testing.assert_close(torch.cat([a, b], 1), model(ids, g_cache=g), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"6 positions and the G they were read with"):
        model(ids, g_cache=g, cache=cache)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generation_is_recomputation_with_the_g_of_the_prompt(temperature):
    model, prompt = language_model(), tokens(3, 6)
    before = torch.random.get_rng_state()

    def go(**options) -> Tensor:
        return model.generate(prompt, 20, temperature=temperature, generator=torch.Generator().manual_seed(1), **options)

    cached, g = go(), list(model.curvatures(prompt))
    assert cached.shape == (3, 26)
    assert torch.equal(cached[:, :6], prompt)
    assert torch.equal(cached, go(g_cache=g, use_cache=False))
    assert torch.equal(cached, go(g_cache=g))
    assert torch.equal(cached, go())
    assert torch.equal(before, torch.random.get_rng_state())
    if temperature:
        assert not torch.equal(cached, model.generate(prompt, 20, temperature=0.8, generator=torch.Generator().manual_seed(2)))
    else:
        logits = model(cached[:, :-1], g_cache=g)
        assert torch.equal(logits[:, 5:].argmax(-1), cached[:, 6:])


def test_uncached_generation_computes_g_anew():
    model, prompt = language_model(3), tokens(1, 4)
    found = model.generate(prompt, 12, use_cache=False)
    text = prompt
    for _ in range(12):
        text = torch.cat([text, model(text)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, text)
    assert torch.equal(model.generate(prompt, 0), prompt)


# -- padding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nowhere(side):
    model, short, long = language_model(), tokens(1, 4), tokens(1, 7, seed=1)
    filler = tokens(1, 3, seed=2)
    padded = torch.cat([torch.cat([filler, short] if side == "left" else [short, filler], dim=1), long])
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    mask[0] = mask[0] if side == "left" else mask[0].flip(0)
    with torch.no_grad():
        out = model(padded, mask)
        torch.testing.assert_close(out[0][mask[0].bool()], model(short)[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out[1], model(long)[0], rtol=1e-10, atol=1e-10)
        assert out.isfinite().all()
        torch.testing.assert_close(model.curvatures(padded, mask)[:, :1], model.curvatures(short), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(model.curvatures(padded)[:, :1], model.curvatures(short), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_leaves_gradients_finite(dtype):
    """Rows in front see no key at all."""
    model, ids, mask = language_model().to(dtype), tokens(2, 5), torch.ones(2, 5)
    mask[0, :2] = 0
    out = model(ids, mask)
    assert out.isfinite().all()
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_generation_of_padded_prompts():
    model, short, long = language_model(), tokens(1, 4), tokens(1, 7, seed=1)
    padded = torch.cat([torch.cat([tokens(1, 3, seed=2), short], dim=1), long])
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :3] = False
    found = model.generate(padded, 9, attention_mask=mask)
    assert torch.equal(found[:1, 3:], model.generate(short, 9))
    assert torch.equal(found[1:], model.generate(long, 9))
    with pytest.raises(ValueError, match="pad on the left"):
        model.generate(padded, 2, attention_mask=mask.flip(1))


def test_a_mask_may_follow_a_cache():
    model, ids, cache = language_model(), tokens(2, 8), PLDRCache()
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 6] = False
    with torch.no_grad():
        model(ids[:, :5], cache=cache)
        step = model(ids[:, 5:], mask[:, 5:], cache=cache)
        torch.testing.assert_close(step[:, -1], model(ids, mask, g_cache=cache.g)[:, -1], rtol=1e-10, atol=1e-10)


# -- training -------------------------------------------------------------------------------------------------------------


def test_gradients():
    attend, x = seeded(lambda: PowerLawAttention(4, 2, metric_layers=1, metric_denses=1, metric_hidden=2)), double(1, 3, 4)
    names, values = zip(*attend.named_parameters(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(attend, dict(zip(names, values, strict=True)), (x,))

    leaves = [t.detach().clone().requires_grad_() for t in (x, *values)]
    assert torch.autograd.gradcheck(call, leaves, atol=1e-6)
    found = torch.autograd.grad(call(*leaves).square().sum(), leaves)
    # the bias of keys moves the scores of a query by q G R_j b, which turns with j: nothing is idle
    assert all((g != 0).any() for g in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_entries_of_a_lm_that_vanish(dtype):
    """u = 0 everywhere and the most negative power that is drawn: 1e-9^-1/2 = 3e4."""
    attend = PowerLawAttention(8, 2)
    with torch.no_grad():
        attend.metric.weight.zero_()
        attend.metric.power.fill_(-0.5)
        attend.metric.coupling.mul_(1e-3)
    attend = attend.to(dtype)
    x = double(1, 4, 8).to(dtype)
    found = attend.energy_curvature(attend.queries(x))
    torch.testing.assert_close(found.A_P, torch.full_like(found.A_P, 1e-9**-0.5))
    assert found.A_P.dtype == torch.float32
    assert found.G_LM.dtype == dtype
    attend(x).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in attend.parameters())


def test_first_powers_are_small():
    """Xavier's deviation is 0.58 here: some of fifty would be beyond 1/2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        largest = [float(PowerLawAttention(2, 1, metric_hidden=2).metric.power.detach().abs().max()) for _ in range(50)]
    assert max(largest) == 0.5
    assert min(largest) < 0.4


def test_it_learns():
    """Copy: the second half of each text is its first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PLDRForCausalLM(PLDRConfig(11, d_model=16, n_layers=2, n_heads=2))
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        losses = []
        for _ in range(60):
            ids = torch.arange(12)[None].expand(16, 12).add(torch.randint(11, (16, 1))) % 11
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    assert losses[0] > 2
    assert losses[-1] < 0.5 * losses[0]


# -- frozen ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotary", [True, False])
@torch.no_grad()
def test_what_is_frozen_is_the_same(rotary):
    model, prompt, ids = language_model(rotary=rotary), tokens(1, 6), tokens(2, 9, seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    frozen = freeze_g(model, prompt)
    g = list(model.curvatures(prompt)[:, 0])
    torch.testing.assert_close(frozen(ids), model(ids, g_cache=g), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen(prompt), model(prompt), rtol=1e-12, atol=1e-12)
    assert frozen.config.curvature == ("fixed" if rotary else "identity")
    assert not any("metric" in name for name in frozen.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(frozen.generate(prompt, 9), model.generate(prompt, 9))
    with pytest.raises(ValueError, match="does not depend on a text"):
        freeze_g(frozen, prompt)
    several = freeze_g(model, ids)
    mean = list(model.curvatures(ids).mean(1))
    torch.testing.assert_close(several(prompt), model(prompt, g_cache=mean), rtol=1e-12, atol=1e-12)


# -- invariance -----------------------------------------------------------------------------------------------------------


def test_invariance_is_a_decomposition():
    model = language_model()
    check_decomposition(lambda ids: invariance(model, [ids]), exact=False, inputs=(tokens(3, 5),), models=(model,), batched=False)


def test_invariance_by_hand():
    model, batches = language_model(), [tokens(3, 5), (tokens(2, 8, seed=1), torch.ones(2, 8))]
    found = invariance(model, batches)
    assert found.whole.shape == (5, 2, 3, 4, 4)
    every = [g for ids, *_ in [(batches[0],), batches[1]] for g in model.curvatures(ids).unbind(1)]
    for i in range(2):
        for h in range(3):
            mean = sum(g[i, h] for g in every) / 5
            spread = math.sqrt(sum(float((g[i, h] - mean).square().sum()) for g in every) / 5)
            assert float(found.relative_std()[i, h]) == pytest.approx(spread / float(mean.norm()), rel=1e-9)
    torch.testing.assert_close(found.determinants()[4, 1, 2], torch.linalg.det(every[4][1, 2]))
    assert "5 texts" in repr(found)
    same = invariance(model, [tokens(1, 5).expand(4, 5)])
    assert same.relative_std().max() < 1e-14


def test_invariance_has_a_picture():
    found = invariance(language_model(), [tokens(3, 5)])
    deviation, mean, rest = found.pictures(1)
    assert deviation.values == found.relative_std().tolist()
    assert mean.names == rest.names == [f"layer {i}, head {j}" for i in range(2) for j in range(3)]
    assert torch.equal(torch.tensor(mean.pictures[4].values, dtype=torch.float64), found.parts["mean_G"][0, 1, 1])
    assert torch.equal(torch.tensor(rest.pictures[4].values, dtype=torch.float64), found.remainder[1, 1, 1])
    assert len(found.plot().axes) == 2 * (1 + 6 + 6)  # each with its scale
    with pytest.raises(ValueError, match="sample 3 is out of range: there are 3 texts"):
        found.plot(3)


def test_invariance_needs_texts_and_a_g_of_theirs():
    with pytest.raises(ValueError, match="no batch"):
        invariance(language_model(), [])
    with pytest.raises(ValueError, match='"identity"'):
        invariance(language_model(curvature="identity"), [tokens(1, 3)])


# -- files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["learned", "fixed", "identity"])
def test_files(tmp_path, curvature):
    model, ids = language_model(curvature=curvature), tokens(2, 6)
    if curvature == "fixed":
        model = freeze_g(language_model(), ids)
    path = model.save(tmp_path / "model")
    assert path.suffix == ".safetensors"
    before = torch.random.get_rng_state()
    again = PLDRForCausalLM.load(tmp_path / "model")
    assert torch.equal(before, torch.random.get_rng_state())
    assert again.config == model.config
    assert torch.equal(again(ids), model(ids))


def test_files_that_are_none(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError):
        PLDRForCausalLM.load(tmp_path / "nothing")
    (tmp_path / "text.safetensors").write_text("hello, this is no file of tensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        PLDRForCausalLM.load(tmp_path / "text")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="without a PLDRForCausalLM"):
        PLDRForCausalLM.load(tmp_path / "other")
    save_file({"head.weight": torch.ones(1)}, tmp_path / "new.safetensors", {"termwise.pldr": json.dumps({"format": 99})})
    with pytest.raises(ValueError, match="update termwise"):
        PLDRForCausalLM.load(tmp_path / "new")
    save_file(
        {"head.weight": torch.ones(1)},
        tmp_path / "bad.safetensors",
        {"termwise.pldr": json.dumps({"format": 1, "config": {"size": 1}})},
    )
    with pytest.raises(ValueError, match="cannot be read"):
        PLDRForCausalLM.load(tmp_path / "bad")
    with pytest.raises(OSError, match="cannot be written"):
        language_model().save(tmp_path / "no" / "folder")


# -- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerLawAttention(10, 3), "multiple of n_heads.*10 and 3"),
        (lambda: PowerLawAttention(9, 3), r"even; got 9 / 3 = 3"),
        (lambda: PowerLawAttention(8, 2, curvature="free"), "learned, fixed, identity; got 'free'"),
        (lambda: PowerLawAttention(8, 2, metric_denses=0), "got 2 and 0"),
        (lambda: PLDRConfig(0), "got 0 and 2"),
        (lambda: PLDRConfig(5, curvature="free"), "got 'free'"),
        (lambda: layer()(double(2, 3, 11)), r"\(batch, positions, 12\); got \(2, 3, 11\)"),
        (lambda: layer()(double(2, 3, 12), torch.ones(2, 3)), "keep is boolean"),
        (lambda: layer()(double(2, 3, 12), torch.ones(2, 4, dtype=torch.bool)), r"\(2, 3\).*\(2, 4\)"),
        (lambda: layer()(double(2, 3, 12), g_cache=double(4, 4)), r"g_cache is \(3, 4, 4\).*got \(4, 4\)"),
        (lambda: layer().energy_curvature(double(2, 3, 5)), r"\(batch, 3, positions, 4\)"),
        (lambda: layer(curvature="fixed").energy_curvature(double(2, 3, 5, 4)), 'curvature is "fixed"'),
        (lambda: language_model()(tokens(5)), r"\(batch, n\).*got \(5,\)"),
        (lambda: language_model()(tokens(2, 0)), "neither of them 0"),
        (lambda: language_model()(torch.tensor([[3, 11]])), r"0\.\.10; got 3 to 11"),
        (lambda: language_model()(tokens(2, 4), torch.ones(2, 5)), r"\(2, 4\).*got \(2, 5\)"),
        (lambda: language_model()(tokens(2, 4), g_cache=[double(3, 4, 4)]), "one G per layer, 2 of them; got 1"),
        (lambda: language_model().generate(tokens(2, 0), 3), "n of 1 or more"),
        (lambda: language_model().generate(tokens(2, 3), -1), "0 or more; got -1"),
        (lambda: language_model().generate(tokens(2, 3), 1, temperature=math.nan), "0 or more"),
    ],
)  # fmt: skip
def test_bad_input_says_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_ids_are_integers():
    with pytest.raises(TypeError, match=r"integers; got torch\.float64"):
        language_model()(double(2, 3))


def test_a_layer_cache_alone():
    attend, x, cache = layer(), double(2, 6, 12), LayerCache()
    steps = [attend(x[:, :3], cache=cache), attend(x[:, 3:], cache=cache)]
    torch.testing.assert_close(torch.cat(steps, 1), attend(x, g_cache=cache.g), rtol=1e-10, atol=1e-10)


def test_a_call_that_fails_leaves_the_cache_as_it_was():
    model, ids, cache = language_model(), tokens(1, 6), PLDRCache()
    g = list(model.curvatures(tokens(1, 9, seed=3))[:, 0])
    with torch.no_grad():
        with pytest.raises(ValueError, match="g_cache is"):
            model(ids, g_cache=[*g[:-1], g[-1][:, :2]], cache=cache)
        assert all(one.keys is None for one in cache.layers)
        model(ids[:, :4], g_cache=g, cache=cache)
        torch.testing.assert_close(model(ids[:, 4:], cache=cache), model(ids, g_cache=g)[:, 4:], rtol=1e-10, atol=1e-10)
