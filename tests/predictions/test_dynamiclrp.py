"""DynamicLRP's rules against a literal walk in numpy; its promises, which a recorded graph does not need."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from predictions import literal_walk
from predictions.test_targets import ONE, STARTS, X
from termwise.predictions import contrast, coverage, explain, next_token, node
from termwise.predictions.dynamiclrp import RULES
from termwise.predictions.relevance_form import TABLE
from termwise.testing.architectures import ARCHITECTURES, build


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1)
        self.scale, self.head = nn.Parameter(torch.randn(3, 1, 1)), nn.Linear(3, 4)

    def forward(self, x):
        h = self.one(x).relu()
        y = nn.functional.max_pool2d(h + self.two(h), 2) * self.scale
        return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


class Diamond(nn.Module):
    def __init__(self):
        super().__init__()
        self.u, self.v, self.w = (nn.Parameter(torch.randn(5)) for _ in range(3))
        self.head = nn.Linear(5, 3, bias=False)

    def forward(self, x):
        h = x + self.u
        return self.head((h + self.v) + (h + self.w))


def seeded(make, seed):
    torch.manual_seed(seed)
    return make().double().eval()


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_literal_walk(seed):
    net = seeded(Net, seed)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    why = explain(net, x, target=1, rules="dynamiclrp").check(1e-10)
    names = {
        "w1": "one.weight",
        "b1": "one.bias",
        "w2": "two.weight",
        "b2": "two.bias",
        "scale": "scale",
        "w3": "head.weight",
        "b3": "head.bias",
    }
    p = {k: dict(net.named_parameters())[v].detach().numpy() for k, v in names.items()}
    for i in range(2):
        whole, parts = literal_walk.walk(x[i].numpy(), p, 1)
        ours = {
            "x": why.inputs["x"], "b1": why.biases["one"], "b2": why.biases["two"], "b3": why.biases["head"], "scale": why.constants["scale"],
        }  # fmt: skip
        assert why.whole[i].item() == pytest.approx(whole, rel=1e-12)
        for name, value in parts.items():
            np.testing.assert_allclose(ours[name][i].numpy(), value, rtol=0, atol=1e-10 * max(1, abs(value).max()), err_msg=name)
        # shares by absolute value are shares: everything is there, and nothing is lost
        assert sum(v.sum() for v in parts.values()) == pytest.approx(whole, rel=1e-9)
    assert max(v.abs().max().item() for v in why.losses.values()) < 1e-9 * why.whole.abs().max().item()


DIAMOND = Diamond().double().eval()  # recorded once; a pass reads the weights as they are


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_no_promise_is_needed_on_a_diamond(seed):
    """Sums save no operand in autograd's graph, so that a walk there must wait; in ours every operand is at hand."""
    net, generator = DIAMOND, torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data.normal_(generator=generator)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    p = {"u": net.u, "v": net.v, "w": net.w, "W": net.head.weight}
    p = {k: v.detach().numpy() for k, v in p.items()}
    for rules, walked in (("dynamiclrp", literal_walk.diamond), ("zero", literal_walk.diamond_by_ratio)):
        why = explain(net, x, target=2, rules=rules)
        for i in range(3):
            whole, parts = walked(x[i].numpy(), p, 2)
            assert why.whole[i].item() == pytest.approx(whole, rel=1e-10)
            np.testing.assert_allclose(why.inputs["x"][i].numpy(), parts["x"], rtol=1e-8, atol=1e-9)
            for name in "uvw":
                np.testing.assert_allclose(why.constants[name][i].numpy(), parts[name], rtol=1e-8, atol=1e-9)


def relevance(function, *operands, **kept):
    """Parts of a function of tensors under these rules, summed to one number a sample."""
    return explain(function, *operands, rules="dynamiclrp", **kept)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


CASES = {
    "subtraction: half each": (lambda a, b: (a - b).flatten(1)[:, 0], lambda a, b: (0.5, 0.5)),
    "a difference with a number: half is lost": (lambda a, b: (a - 3.0)[:, 0] * 1.0, lambda a, b: (0.5, 0.0)),
    "a quotient: |a| against |1/b|": (
        lambda a, b: (a / b)[:, 0],
        lambda a, b: (a.abs() / (a.abs() + (1 / b).abs()), (1 / b).abs() / (a.abs() + (1 / b).abs())),
    ),
    "a product: |a| against |b|": (lambda a, b: (a * b)[:, 0], lambda a, b: (a.abs() / (a.abs() + b.abs()), b.abs() / (a.abs() + b.abs()))),
    "two matrices: all to each": (lambda a, b: (a[:, None] @ b[:, :, None])[:, 0, 0], None),
    "exp passes it on": (lambda a, b: a.exp()[:, 0], lambda a, b: (1.0, 0.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:the output does not depend")
def test_shares(name):
    function, share = CASES[name]
    torch.manual_seed(3)
    a, b = rand(4, 1), rand(4, 1)
    why = relevance(function, a, b)
    wanted = (1.0, 1.0) if share is None else share(a[:, 0], b[:, 0])
    for part, fraction in zip(("a", "b"), wanted, strict=True):
        torch.testing.assert_close(why.inputs[part][:, 0], why.whole * fraction, rtol=1e-9, atol=1e-12)
    why.check(1e-9)


def test_sums_share_by_absolute_value():
    x = rand(3, 6)
    for reduce in (torch.sum, torch.mean):
        why = relevance(lambda x: reduce(x, 1), x)
        torch.testing.assert_close(
            why.inputs["x"], why.whole[:, None] * x.abs() / x.abs().sum(1, keepdim=True), rtol=1e-8, atol=1e-10
        )


def test_fused_attention_gives_half_to_the_values_and_loses_the_rest():
    q, k, v = rand(2, 1, 4, 3), rand(2, 1, 4, 3), rand(2, 1, 4, 3)
    why = relevance(lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v)[:, 0, 1, 2], q, k, v)
    assert not why.inputs["q"].any()
    assert not why.inputs["k"].any()
    torch.testing.assert_close(why.inputs["v"].flatten(1).sum(1), why.whole / 2, rtol=1e-9, atol=1e-12)
    (lost,) = [value for name, value in why.losses.items() if name.startswith("scaled_dot")]
    torch.testing.assert_close(lost, why.whole / 2, rtol=1e-9, atol=1e-12)


PUBLISHED = (
    "add", "sub", "mul", "div", "neg", "sqrt", "rsqrt", "pow", "exp", "log", "mm", "bmm", "convolution", "sum", "mean", "cat", "stack",
    "unbind", "split", "max", "gather", "view", "reshape", "transpose", "permute", "expand", "repeat", "squeeze", "unsqueeze", "slice",
    "index", "select", "max_pool2d", "max_pool3d", "adaptive_avg_pool2d", "layer_norm", "batch_norm", "scaled_dot_product_attention",
    "gelu", "silu", "relu", "softmax", "masked_fill", "clone", "_to_copy", "dropout", "embedding",
)  # fmt: skip


def test_the_47_operations_of_the_paper_have_rules_in_both_tables():
    from termwise.predictions import RULES as RATIO

    assert len(PUBLISHED) == 47
    assert not [op for op in (*PUBLISHED, "split_with_sizes") if op not in RATIO]
    leaf = "embedding"  # a look-up of the explained ids is where a pass begins, summed over the width
    assert {op for op in (*PUBLISHED, "split_with_sizes") if op not in {**TABLE, **RULES}} == {leaf}


@pytest.mark.parametrize("name", STARTS)
def test_every_start_is_its_weighted_entries(name):
    """The rules are linear in R, so that whole = sum_j w_j z_j is the weighted sum of what its entries explain."""
    target, whole = STARTS[name]
    why = explain(ONE, X, target=target, rules="dynamiclrp").check(1e-10)
    z = ONE(X).detach().requires_grad_()
    held = z.detach().softmax(1)
    value = z[:, 2] - (held * z).sum(1) if name == "against probabilities" else whole(z)
    (w,) = torch.autograd.grad(value.sum(), z)
    each = explain(ONE, X, target=[0, 1, 2, 3, 4], rules="dynamiclrp")
    torch.testing.assert_close(why.whole, value.detach(), rtol=1e-12, atol=1e-12)
    for part, found in why.parts.items():
        wanted = (each.parts[part] * w.reshape(3, 5, *[1] * (found.ndim - 1))).sum(1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10, msg=lambda m, n=part: f"{n}: {m}")


class Scores(nn.Module):
    """The next token's score at each token."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

    def forward(self, input_ids):
        return self.head(self.table(input_ids).cumsum(1).relu())


def test_starts_that_know_more_of_the_call():
    model, ids = seeded(Scores, 0), torch.tensor([[1, 2, 3, 4], [3, 3, 0, 6]])
    for target in (next_token(3), contrast(next_token(2), 0), (1, 4)):
        why = explain(model, ids, target=target, rules="dynamiclrp").check(1e-10)
        plain = explain(model, ids, target=target, rules="zero")
        torch.testing.assert_close(why.whole, plain.whole, rtol=1e-12, atol=1e-12)
    edges, x = rand(4, 4), rand(4, 3)
    graph = lambda x: edges @ nn.functional.linear(x, edges[:2, :3])
    for target in (node(2), node(1, 0), contrast(node(3, 1), 0)):
        why = explain(graph, x, target=target, rules="dynamiclrp").check(1e-10)
        torch.testing.assert_close(why.whole, explain(graph, x, target=target).whole, rtol=1e-12, atol=1e-12)
    functions = [lambda z: z[:, 0] - z[:, 1], lambda z: z[:, 2]]
    explain(ONE, X, target=functions, rules="dynamiclrp").check(1e-10)


@pytest.mark.parametrize("name", ["bert", "llama", "vit", "resnet", "clip"])
def test_it_runs_and_closes(name):
    subject = build(name).to(torch.float64)
    why = explain(subject.model, *subject.inputs, kwargs=subject.kwargs, target=subject.target, rules="dynamiclrp")
    why.check(1e-7)  # float32 islands inside some of them


FILLED = {
    "padding with zeros": lambda x: nn.functional.pad(x, (0, 1)),
    "padding with a number": lambda x: nn.functional.pad(x, (1, 0), value=0.6),
    "a number for some": lambda x: x.index_fill(1, torch.tensor([2]), 0.9),
    "a triangle": lambda x: x.unflatten(1, (2, -1)).tril().flatten(1),
    "windows beyond the edge": lambda x: nn.functional.unfold(x.unflatten(1, (1, 2, -1)), 2, padding=1).flatten(1),
}


@pytest.mark.parametrize("name", FILLED)
def test_what_falls_on_a_number_that_was_filled_in_is_lost_and_measured(name):
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    why = explain(lambda x: torch.sigmoid(FILLED[name](x)).sum(1, keepdim=True), x, target=0, rules="dynamiclrp").check(1e-10)
    lost = sum(part for part_name, part in why.parts.items() if part_name.startswith("rule:"))
    assert (lost.abs() > 1e-3).all()


def test_several_values_are_refused_by_name():
    subject = build("lstm")
    with pytest.raises(ValueError, match=r"aten.lstm at rnn .* relevance form"):
        explain(subject.model, *subject.inputs, rules="dynamiclrp")


class TestCoverage:
    def test_counts(self):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2), nn.ReLU()).eval()
        found = coverage(model, torch.randn(1, 1, 4, 4))
        assert (found.nodes, found.covered, found.fraction) == (5, 5, 1.0)
        assert dict(found.counts)["relu"] == 2
        frame = found.to_frame()
        assert list(frame.columns) == ["op", "nodes", "rule"]
        assert frame["nodes"].sum() == 5
        assert "5 of 5 nodes" in str(found)

    def test_a_missing_rule_is_seen(self, monkeypatch):
        from termwise.predictions import coverage as verb
        from termwise.predictions.rules import RULES as RATIO

        monkeypatch.delitem(RATIO, "relu")
        found = verb(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval(), torch.randn(1, 2))
        assert found.covered == 1
        assert found.missing[0].startswith("aten.relu")
        assert "no rule for aten.relu" in str(found)

    @pytest.mark.parametrize("reduce", ["prod", "sum"])
    def test_what_explain_refuses_is_not_covered(self, reduce):
        index = torch.tensor([[0, 1, 0, 1]])
        model = lambda x: x.cos().scatter_reduce(1, index.expand(len(x), -1), x, reduce).relu()
        found = coverage(model, torch.randn(2, 4))
        if reduce == "sum":
            assert (found.nodes, found.covered) == (3, 3)
            return
        assert (found.nodes, found.covered) == (3, 2)
        assert found.missing[0].startswith("aten.scatter_reduce")
        assert found.rules["scatter_reduce"] == ""
        with pytest.raises(ValueError, match=r"scatter_reduce.* has no rule for that"):
            explain(model, torch.randn(2, 4))

    def test_each_set_is_counted_by_itself(self):
        subject = build("lstm")
        assert coverage(subject.model, *subject.inputs).fraction == 1
        found = coverage(subject.model, *subject.inputs, rules="dynamiclrp")
        assert [where.partition(" ")[0] for where in found.missing] == ["aten.lstm"]
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 2)).eval()
        x = torch.randn(1, 1, 4, 4)
        assert dict(coverage(model, x).rules)["conv2d"].startswith("gamma(0.25")
        assert dict(coverage(model, x, rules="dynamiclrp").rules)["sigmoid"] == "unchanged"
        shared = coverage(model, x, rules={"sigmoid": "abs"})  # shares by size are for sums
        assert [where.partition(" ")[0] for where in shared.missing] == ["aten.sigmoid"]
        with pytest.raises(ValueError, match="unknown rules 'zeros'"):
            coverage(model, x, rules="zeros")
        bag = nn.Sequential(nn.EmbeddingBag(5, 3), nn.ReLU()).eval()
        assert coverage(bag, torch.tensor([[1, 2], [3, 4]])).fraction == 1
        found = coverage(bag, torch.tensor([[1, 2], [3, 4]]), rules="dynamiclrp")
        assert [where.partition(" ")[0] for where in found.missing] == ["aten.embedding_bag"]

    @pytest.mark.slow
    def test_every_architecture(self):
        assert len(ARCHITECTURES) >= 25
        for name in ARCHITECTURES:
            s = build(name)
            found = coverage(s.model, *s.inputs, kwargs=s.kwargs, select=s.target if callable(s.target) else None)
            assert found.fraction == 1, f"{name}: {found}"
