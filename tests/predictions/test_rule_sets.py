"""Composites, keys by position, folding and bias policies, on whole networks and against networks worked out by hand."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.predictions.definitions import TERMS, Case, contributions, proportions
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.core.capture import capture
from termwise.core.program import op_name
from termwise.predictions import explain
from termwise.predictions.fold import fold_batch_norm, foldable
from termwise.predictions.propagate import Pass, propagate
from termwise.predictions.rules import (
    RULE_SETS,
    DeconvNet,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    GuidedBackprop,
    alpha_beta,
    deep_taylor,
    depth,
    epsilon,
    first,
    flat,
    gamma,
    operators,
    rules_of,
    zbox,
    zplus,
)

aten = torch.ops.aten


class Residual(nn.Module):
    """What an image network has: convolutions, batch norm, a skip, poolings of both kinds, a sigmoid, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.inner_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.start(x))), 2)
        x = torch.relu(x + self.inner_norm(self.inner(x)))
        x = F.avg_pool2d(x, 3).flatten(1)
        return self.head(torch.sigmoid(self.hidden(x)))


@functools.cache  # recorded once; a recording takes the weights as they are
def kept(make: type[nn.Module]) -> nn.Module:
    return make().double().eval()


def residual(seed: int = 0) -> Residual:
    torch.manual_seed(seed)
    model = kept(Residual)
    for module in model.children():
        module.reset_parameters()
    for norm in (model.norm, model.inner_norm):
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.bias, std=0.3)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model


def picture(seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- zennit's composites, worked out layer by layer in relevance (and not in ratios) ------------------------------------

E = 1e-6


def stable(x: Tensor) -> Tensor:
    return x + torch.where(x < 0, -E, E)


def merged(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = 0 if convolution.bias is None else convolution.bias
    return (convolution.weight * gain[:, None, None, None]).detach(), ((bias - norm.running_mean) * gain + norm.bias).detach()


def by_hand(model: Residual, x: Tensor, target: int, convolution: list, start: str) -> tuple[Tensor, Tensor]:
    """Relevance of x and of all biases together, one sample."""
    w1, b1 = merged(model.start, model.norm)
    w2, b2 = merged(model.inner, model.inner_norm)
    h = torch.relu(F.conv2d(x, w1, b1, padding=1))
    pooled, winners = F.max_pool2d(h, 2, return_indices=True)
    branch = F.conv2d(pooled, w2, b2, padding=1)
    summed = pooled + branch
    averaged = F.avg_pool2d(torch.relu(summed), 3)
    hidden = torch.sigmoid(model.hidden(averaged.flatten(1)))
    logits = model.head(hidden)

    relevance = F.one_hot(torch.tensor([target]), 3) * logits  # starts as the logit itself
    owned = torch.zeros(())

    def through(op, terms, *operands, stabilizer=E):
        nonlocal relevance, owned
        m, b, _ = contributions(Case(op, operands))
        found, bias = proportions(m, b, relevance.reshape(-1), terms, stabilizer)
        relevance, owned = found.reshape(operands[0].shape), owned + bias.sum()

    plain = TERMS["zero"]()
    through(aten.linear.default, plain, hidden, model.head.weight.detach(), model.head.bias.detach())
    through(aten.linear.default, plain, averaged.flatten(1), model.hidden.weight.detach(), model.hidden.bias.detach())
    a = torch.relu(summed)
    spread = F.interpolate((relevance.reshape(averaged.shape) / stable(averaged)), scale_factor=3)
    relevance = a * spread / 9
    here, there = (v * relevance / stable(summed) for v in (pooled, branch))
    relevance = there
    through(aten.conv2d.default, convolution, pooled, w2, b2, [1, 1], [1, 1])
    relevance = F.max_unpool2d(relevance + here, winners, 2)
    if start == "":
        through(aten.conv2d.default, convolution, x, w1, b1, [1, 1], [1, 1])
    elif start == "flat":
        through(aten.conv2d.default, plain, torch.ones_like(x), torch.ones_like(w1), None, [1, 1], [1, 1])
    else:  # z-box on [-1, 2]
        m = sum(
            contributions(Case(aten.conv2d.default, (v, w, None, [1, 1], [1, 1])))[0]
            for v, w in ((x, w1), (torch.ones_like(x), w1.clamp_min(0)), (torch.full_like(x, -2), w1.clamp_max(0)))
        )
        relevance = proportions(m, torch.zeros(len(m)).double(), relevance.reshape(-1), plain, E)[0].reshape(x.shape)
    return relevance, owned


COMPOSITES = {
    "EpsilonPlus": (EpsilonPlus, TERMS["z+"](), ""),
    "EpsilonPlusFlat": (EpsilonPlusFlat, TERMS["z+"](), "flat"),
    "EpsilonAlpha2Beta1": (EpsilonAlpha2Beta1, TERMS["alpha-beta"](2, 1), ""),
    "EpsilonAlpha2Beta1Flat": (EpsilonAlpha2Beta1Flat, TERMS["alpha-beta"](2, 1), "flat"),
    "EpsilonGammaBox": (EpsilonGammaBox(-1, 2), TERMS["gamma"](0.25), "box"),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_is_what_its_name_says(name):
    rules, convolution, start = COMPOSITES[name]
    model = residual()
    for seed in range(2):
        x = picture(seed)
        x[:, :, :2] = 0
        why = explain(model, x, target=1, rules=rules).check(1e-9)
        relevance, owned = by_hand(model, x, 1, convolution, start)
        torch.testing.assert_close(why.inputs["x"], relevance.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sum(b.sum() for b in why.biases.values()), owned.detach(), rtol=1e-9, atol=1e-12)
        if start != "":
            assert why.inputs["x"][:, :, :1].abs().sum() > 0  # zeros have relevance too


def test_a_norm_that_no_layer_precedes_passes_relevance_as_it_is():
    torch.manual_seed(0)
    norm, head = nn.BatchNorm1d(4), nn.Linear(4, 2)
    norm.running_mean.normal_()
    model, x = nn.Sequential(norm, head).double().eval(), torch.randn(1, 4).double()
    why = explain(model, x, target=1, rules=EpsilonPlus).check(1e-9)
    alone = explain(head, norm(x).detach(), target=1, rules=EpsilonPlus)
    torch.testing.assert_close(why.inputs["input"], alone.inputs["input"])


@pytest.mark.parametrize(("rules", "guided"), [(DeconvNet, False), (GuidedBackprop, True)])
def test_rectified_gradients(rules, guided):
    """DeconvNet and GuidedBackprop: the gradient of a network whose ReLUs have another derivative."""

    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp_min(0)

        @staticmethod
        def backward(ctx, c):
            return c.clamp_min(0) * (ctx.saved_tensors[0] > 0 if guided else 1)

    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ]
    model = nn.Sequential(*layers).double().eval()
    x = picture().requires_grad_()
    y = x
    for layer in model:
        y = Relu.apply(y) if isinstance(layer, nn.ReLU) else layer(y)
    (gradient,) = torch.autograd.grad(y[0, 2], x)
    why = explain(model, x.detach(), target=2, rules=rules).check(1e-9)
    torch.testing.assert_close(why.inputs["input"], (x * gradient).detach())
    assert sum(p.abs().sum() for p in why.losses.values()) > 0.1 * why.whole.abs()


# -- what is lost, and where -------------------------------------------------------------------------------------------

CONSERVING = {
    "zero": "zero",
    "gamma": "gamma",
    "gamma-vit": "gamma-vit",
    "the box": {operators("conv*"): gamma(), first("conv*"): zbox(0, 1)},
}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(sorted(CONSERVING)))
def test_conserving_rules_lose_nothing_at_any_node(seed, name):
    model, x = residual(seed), picture(seed, batch=2)
    program = capture(model, x)
    result = Pass(program, CONSERVING[name], measure_all=True).run([x], lambda y: y[:, 0])
    lost = {n: p.abs().max().item() for n, p in result.parts.items() if n.startswith("rule:")}
    assert len(lost) > 8
    assert max(lost.values()) < 1e-12 * (1 + sum(p.abs().sum().item() for p in result.parts.values()))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([n for n in RULE_SETS if n not in ("DeconvNet", "GuidedBackprop")]))
def test_every_set_adds_up_and_loses_where_it_may(seed, name):
    model, x = residual(seed), picture(seed, batch=2)
    why = explain(model, x, target=0, rules=name)
    assert (why.whole - why.total()).abs().max() < 1e-11 * sum(p.abs().sum() for p in why.parts.values())
    may = {"conv2d", "linear", "add", "avg_pool2d", "sigmoid"}
    assert {n.partition("@")[0] for n, p in why.losses.items() if p.abs().max() > 1e-9} <= may


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv, self.head = nn.Conv2d(2, 4, 2, 2), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        return self.head(x + F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))[:, 0]


def test_gamma_vit_holds_attention_and_loses_nothing():
    torch.manual_seed(0)
    model, x = kept(Attention), picture(batch=2)
    assert not explain(model, x, target=1, rules="gamma-vit").check(1e-9).losses
    assert explain(model, x, target=1, rules="gamma").check(1e-9).losses
    assert chosen(model, x, "gamma-vit") == ["gamma(100)", "gamma(0.05)", "gamma(0.05)"]


def test_mambalrp_is_attnlrp():
    """Which holds the gates of a scan that capture recognises; see the twenty-step scan in test_identities."""
    assert RULE_SETS["mambalrp"] == RULE_SETS["attnlrp"]


# -- bias policies -----------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    """Every kind of bias: of linear layers and of norms that are folded and that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.folded, self.b = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.InstanceNorm1d(6, affine=True), nn.BatchNorm1d(6)])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.folded(self.a(x))).unsqueeze(-1) * torch.tensor([1.0, -0.5, 2.0]).to(x)
        x = x + self.norms[0](x.mT).mT
        for norm in self.norms[1:]:
            x = x + norm(x)
        return self.b(x.mean(-1))


def normed(seed: int) -> Normed:
    torch.manual_seed(seed)
    model = kept(Normed)
    for p in model.parameters():
        nn.init.normal_(p)
    return model


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["distribute", "zero"]), st.sampled_from(["zero", "gamma", "z+"]))
def test_inputs_receive_what_biases_own(seed, biases, rules):
    model, x = normed(seed), torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    why = explain(model, x, target=1, rules=rules, biases=biases)
    assert not why.biases
    scale = sum(p.abs().sum() for p in why.parts.values())
    assert (why.whole - why.total()).abs().max() < 1e-11 * scale
    lost = sum(p.abs().sum() for p in why.losses.values())
    if rules == "zero" or lost < 1e-9 * scale:  # then nothing but the inputs is left
        assert (why.inputs["x"].sum(1) - why.whole).abs().max() < 1e-9 * scale


def test_absorbed_biases_are_missing_from_the_sum():
    model, x = normed(0), torch.randn(2, 6).double()
    parts, absorbed = (explain(model, x, target=1, rules="gamma", biases=b) for b in ("parts", "absorb"))
    assert {n for n in parts.parts if not n.startswith("bias:")} == set(absorbed.parts)
    assert all(torch.equal(parts.parts[n], p) for n, p in absorbed.parts.items())
    missing = sum(b.reshape(2, -1).sum(1) for b in parts.biases.values())
    torch.testing.assert_close(absorbed.remainder, missing)
    with pytest.raises(Exception, match="the remainder is"):
        absorbed.check(1e-9)


def test_biases_of_norms_are_distributed_by_absolute_contribution():
    """One norm, worked out with its Jacobian: R_i = x_i J_ji c_j + beta_j c_j |x_i J_ji| / sum_i |x_i J_ji|."""
    torch.manual_seed(0)
    for norm, shape in (
        (nn.LayerNorm(5), (1, 5)),
        (nn.GroupNorm(2, 4), (1, 4, 3)),
        (nn.InstanceNorm1d(3, affine=True), (1, 3, 4)),
        (nn.BatchNorm1d(3), (1, 3)),
    ):
        norm = norm.double().eval()
        for p in norm.parameters():
            nn.init.normal_(p)
        x = torch.randn(shape, dtype=torch.float64)
        c = torch.randn(shape, dtype=torch.float64)
        y, y0 = norm(x), norm(torch.zeros_like(x)) * 0
        channels = (1, -1) + (1,) * (x.ndim - 2)
        bias = norm.bias if not isinstance(norm, nn.BatchNorm1d) else norm(torch.zeros_like(x))[0]
        beta = (bias.reshape(channels) if not isinstance(norm, nn.LayerNorm) else bias).expand_as(y0).detach().reshape(-1)
        columns = [explained_column(norm, x, j, beta) for j in range(x.numel())]
        m = torch.stack(columns)  # (outputs, inputs): x_i J_ji
        wanted = ((m + beta[:, None] * m.abs() / m.abs().sum(1, keepdim=True)) * c.reshape(-1)[:, None]).sum(0)
        why = explain(lambda x, f=norm, c=c: (f(x) * c).flatten(1).sum(1), x, rules="zero", biases="distribute")
        torch.testing.assert_close(why.inputs["x"].reshape(-1), wanted.detach())
        torch.testing.assert_close(wanted.sum(), (y * c).sum())


def explained_column(norm: nn.Module, x: Tensor, j: int, beta: Tensor) -> Tensor:
    """Contributions to output j, with the norm's statistics held: output j less its bias is linear in what moves."""
    leaf = x.clone().requires_grad_()
    if isinstance(norm, nn.BatchNorm1d):
        y = norm(leaf)
    else:
        groups = {nn.LayerNorm: 1, nn.GroupNorm: getattr(norm, "num_groups", 1), nn.InstanceNorm1d: x.shape[1]}[type(norm)]
        spread = leaf.reshape(1, groups, -1)
        held = spread.detach()
        y = (spread - spread.mean(-1, keepdim=True)) / (held.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        gain = norm.weight if isinstance(norm, nn.LayerNorm) else norm.weight.reshape(1, -1, *[1] * (x.ndim - 2))
        y = y.reshape(x.shape) * gain
    (row,) = torch.autograd.grad(y.reshape(-1)[j], leaf)
    return (x * row).reshape(-1).detach()


@pytest.mark.parametrize("biases", ["distribute", "zero"])
def test_a_folded_norm_gives_its_offset_to_the_inputs_of_the_layer_before(biases):
    torch.manual_seed(0)
    conv, norm, rest = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), [nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)]
    norm.running_mean.normal_()
    nn.init.normal_(norm.bias)
    model = nn.Sequential(conv, norm, *rest).double().eval()
    one = nn.Conv2d(2, 3, 3).double()
    weight, bias = merged(conv, norm)
    one.load_state_dict({"weight": weight, "bias": bias})
    x = picture()
    found = [
        explain(m, x, target=1, rules="zero", biases=biases).inputs["input"] for m in (model, nn.Sequential(one, *rest).eval())
    ]
    torch.testing.assert_close(found[0], found[1])


def test_a_policy_that_is_none():
    with pytest.raises(ValueError, match=r"biases is one of 'parts', .*got 'distributed': did you mean 'distribute'"):
        explain(nn.Linear(2, 2).eval(), torch.ones(1, 2), biases="distributed")


# -- where rules go ----------------------------------------------------------------------------------------------------


def chosen(model: nn.Module, x: Tensor, rules) -> list[str]:
    """The rule of each affine operation, in order."""
    program = capture(model, x)
    return [repr(r) for n, r in rules_of(program, rules).items() if n.startswith(("conv", "linear"))]


def test_keys_say_where():
    model, x = residual(), picture()
    g, z, e, f = gamma(), zplus(), epsilon(), flat()
    assert chosen(model, x, {operators("conv*", "linear"): z}) == ["zplus()"] * 4
    assert chosen(model, x, {operators("conv*", "linear"): z, first("conv*", "linear"): f}) == ["flat()", *["zplus()"] * 3]
    assert chosen(model, x, {nn.Module: z, first(nn.Linear): e}) == ["zplus()", "zplus()", "epsilon(1e-06)", "zplus()"]
    assert (
        chosen(model, x, {depth(0, 0.5, "conv*", "linear"): z, depth(0.5, 1, "conv*", "linear"): e})
        == [repr(z)] * 2 + [repr(e)] * 2
    )
    assert chosen(model, x, {depth(0.5, 1, aten.linear): e, depth(0, 0.5, aten.linear.default): g, "conv2d": f}) == [
        repr(f)
    ] * 2 + [repr(g), repr(e)]
    assert chosen(model, x, {**EpsilonPlus, "head*": g})[-2:] == ["epsilon(1e-06)", "gamma(0.25)"]
    assert chosen(model, x, {**EpsilonPlus, "head*": "zero"})[-1].startswith("<function affine")
    assert chosen(model, x, {operators("no_such"): z, first("no_such"): f}) == chosen(model, x, "default")  # a composite fits all


@pytest.mark.parametrize(("made", "name"), [(gamma(), "gamma"), (zplus(), "z+"), (alpha_beta(), "alpha-beta"), (flat(), "flat")])
def test_a_rule_for_affine_operations_leaves_the_others_of_a_module_alone(made, name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU()), nn.Linear(6, 2)).double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    by_rule, by_name = (explain(model, x, target=0, rules={"0*": given}) for given in (made, name))
    assert list(by_rule.parts) == list(by_name.parts)
    for part, value in by_rule.parts.items():
        torch.testing.assert_close(value, by_name.parts[part])
    assert not torch.equal(by_rule.inputs["input"], explain(model, x, target=0).inputs["input"])


def test_of_three_the_middle_one_is_in_the_second_half():
    model, x = kept(Attention), picture()
    halves = {depth(0, 0.5, "conv*", "linear"): zplus(), depth(0.5, 1, "conv*", "linear"): gamma()}
    assert chosen(model, x, halves) == ["zplus()", "gamma(0.25)", "gamma(0.25)"]


def test_first_is_the_first_to_be_executed():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.early = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(torch.relu(self.early(x)))

    model = Crossed().eval()
    program = capture(model, torch.ones(1, 4))
    paths = {n.name: n.meta["info"].path for n in program.nodes}
    (found,) = [paths[n] for n, r in rules_of(program, {first("linear"): flat()}).items() if r is flat()]
    assert found == "early"


def test_keys_print_as_they_are_written():
    assert repr(operators("conv*", nn.Linear)) == "operators('conv*', Linear)"
    assert repr(first("conv*")) == "first('conv*')"
    assert repr(depth(0, 0.25, aten.linear)) == "depth(0, 0.25, aten.linear)"
    assert "operators('conv*'): zplus(stabilizer=1e-06)" in repr(EpsilonPlus)
    assert "object at" not in "".join(
        map(repr, (EpsilonPlusFlat, EpsilonAlpha2Beta1, DeconvNet, EpsilonGammaBox(0, 1), deep_taylor()))
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("EpsilonPlas", "did you mean 'EpsilonPlus'"),
        ("EpsilonGammaBox", r"needs the range of the input: rules=EpsilonGammaBox\(low, high\)"),
        ({"conv2d": "alpha_beta"}, "unknown rule 'alpha_beta': did you mean 'alpha-beta'"),
        ({"stert": zplus()}, "did you mean 'start'"),
    ],
)
def test_what_is_no_rule_or_place(rules, message):
    with pytest.raises(ValueError, match=message):
        explain(residual(), picture(), rules=rules)


def test_keys_that_mean_nothing():
    with pytest.raises(ValueError, match=r"0 <= low < high <= 1, got 0\.5 and 0\.2"):
        depth(0.5, 0.2, "conv*")
    with pytest.raises(ValueError, match="say which operators"):
        first()
    with pytest.raises(ValueError, match="both ends of the input's range, or none"):
        deep_taylor(0)
    with pytest.raises(TypeError, match="a key of `rules` is an operator"):
        explain(residual(), picture(), rules={operators(3): zplus()})


def test_equal_rules_share_a_pass():
    model, x = residual(), picture()
    program = capture(model, x)
    passes = {id(propagate(program, EpsilonGammaBox(-3.0, 2.0)).sites) for _ in range(3)}
    passes |= {id(propagate(program, {operators("conv*"): alpha_beta(2, 1)}).sites) for _ in range(3)}
    assert len(passes) == 2


# -- folding -----------------------------------------------------------------------------------------------------------

PAIRS = {
    "linear": (nn.Linear(3, 4), nn.BatchNorm1d(4), (2, 3)),
    "conv1d": (nn.Conv1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6), (2, 4, 5)),
    "conv2d": (nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3, affine=False), (2, 2, 5, 5)),
    "conv3d": (nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), (2, 1, 3, 3, 3)),
    "transposed": (nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3), (2, 2, 3, 3)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_folding_changes_no_output(name):
    affine, norm, shape = PAIRS[name]
    torch.manual_seed(0)
    model = nn.Sequential(affine, norm, nn.ReLU(), nn.Flatten()).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(shape, dtype=torch.float64)
    program = capture(model, x)
    folded = fold_batch_norm(program, foldable(program))
    assert "batch_norm" in {op_name(n) for n in program.nodes}
    assert "batch_norm" not in {op_name(n) for n in folded.nodes}
    torch.testing.assert_close(folded(x), model(x), rtol=1e-13, atol=1e-13)
    assert torch.equal(program(x), model(x))  # and the program is as it was


def test_what_cannot_be_folded_is_left():
    class Shared(nn.Module):
        """The convolution's value is used twice; the norm before a convolution has none before it."""

        def __init__(self):
            super().__init__()
            self.before, self.conv, self.after = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            y = self.conv(self.before(x))
            return (self.after(y) + y).flatten(1)

    class OtherAxis(nn.Module):
        """What is behind a layer of features along the last axis, or a picture without a batch, has its channels elsewhere."""

        def __init__(self):
            super().__init__()
            self.conv, self.rows, self.linear, self.channels = (
                nn.Conv2d(2, 4, 1),
                nn.BatchNorm1d(4),
                nn.Linear(4, 4),
                nn.BatchNorm1d(4),
            )

        def forward(self, x):
            return self.channels(self.linear(self.rows(self.conv(x[0]))))[None].flatten(1)

    torch.manual_seed(0)
    other = OtherAxis().double().eval()
    for norm in (other.rows, other.channels):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    for model, x in ((Shared().double().eval(), picture()), (other, torch.randn(1, 2, 4, 4, dtype=torch.float64))):
        assert foldable(capture(model, x)) == set()
        why = explain(model, x, target=0, rules="z+").check(1e-9)
        torch.testing.assert_close(why.whole, model(x)[:, 0].detach())


@pytest.mark.parametrize(("inner", "groups"), [(4, 1), (3, 1), (4, 2)])
def test_a_transposed_convolution_by_another_name_is_left(inner, groups):
    """`convolution` of decomposed programs, whose weight has its output channels in axis 1."""

    class Decomposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.ConvTranspose1d(inner, 4, 2, groups=groups), nn.BatchNorm1d(4)

        def forward(self, x):
            y = torch.ops.aten.convolution(x, self.conv.weight, self.conv.bias, [1], [0], [1], True, [0], groups)
            return self.norm(y).flatten(1)

    torch.manual_seed(0)
    model, x = Decomposed().double().eval(), torch.randn(2, inner, 5, dtype=torch.float64)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    assert foldable(capture(model, x)) == set()
    torch.testing.assert_close(explain(model, x, target=0, rules="z+").check(1e-9).whole, model(x)[:, 0].detach())


# -- sources of an input's entries -------------------------------------------------------------------------------------


def test_relevance_of_a_region_is_moved_back_to_the_input():
    """Through padding and reshaping, to zeros as to other pixels; what falls on the padding is lost."""
    conv, head = nn.Conv2d(2, 3, 3).double(), nn.Linear(3, 2).double()

    def padded(x):
        return head(torch.relu(conv(F.pad(x.mT, (1, 1, 1, 1)))).mean((2, 3)))

    def inside(x):
        return head(torch.relu(F.conv2d(x.mT, conv.weight, conv.bias)).mean((2, 3)))

    x = torch.zeros(2, 2, 5, 5, dtype=torch.float64)
    x[:, :, 2] = 1
    rules = {first("conv*"): "flat"}
    found = explain(inside, x, target=1, rules=rules).check(1e-9)
    assert not found.inputs["x"][0].eq(0).any()
    assert found.losses["conv2d@"].abs().max() < 1e-12
    found = explain(padded, x, target=1, rules=rules).check(1e-9)
    assert not found.inputs["x"][0].eq(0).any()
    assert found.losses["conv2d@"].abs().max() > 1e-3


def test_a_region_of_embedded_tokens():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2))
        .double()
        .eval()
    )
    ids = torch.tensor([[0, 1, 2], [3, 0, 0]])
    why = explain(model, ids, target=1, rules={first("linear"): "w2"}).check(1e-9)
    assert why.inputs["input"].shape == (2, 3)
    single = [explain(model, ids[i : i + 1], target=1, rules={first("linear"): "w2"}).inputs["input"] for i in range(2)]
    torch.testing.assert_close(why.inputs["input"], torch.cat(single))


def test_an_input_at_the_end_of_its_range_has_no_relevance_made_of_rounding():
    """Where every entry says as little as it can, the denominator is the rounding of two equal sums."""
    torch.manual_seed(0)
    model = nn.Linear(300, 1).eval()
    x = torch.where(model.weight > 0, -2.1, 2.6).detach() * (1 - 1e-6)  # a little inside, less than the sums' rounding
    why = explain(model, x, target=0, rules={"linear": zbox(-2.1, 2.6)}).check(1e-5)
    assert why.inputs["input"].abs().max() == 0
    torch.testing.assert_close(why.losses["linear@"], why.whole)


def test_the_rule_of_a_first_layer_elsewhere_warns():
    with pytest.warns(
        UserWarning, match=r"linear@hidden is for a layer that sees the input: what it gives to zeros here is lost"
    ):
        why = explain(residual(), picture(), target=0, rules={"hidden": "flat"})
    why.check(1e-9)
