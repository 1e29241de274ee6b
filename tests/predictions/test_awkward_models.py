"""Masks beside gates, bags, one-hot ids, shared inputs, projections: models at which relevance once went astray."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from termwise.core import capture
from termwise.predictions import explain


class Custom(nn.Module):
    """A model from a function of itself and its inputs."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module.double())
        self.eval()

    def forward(self, *args):
        return self.function(self, *args)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gradient_times_input(model, x, target=0):
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
    return x * gradient


# -- gates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [lambda m: m, lambda m: (1 - m).unsqueeze(1).squeeze(1)])
def test_a_mask_does_not_make_a_gate_of_what_it_covers(mask):
    model = Custom(lambda self, x, m: self.head(torch.relu(x) * mask(m)), head=nn.Linear(4, 2))
    x, m = rand(2, 4), torch.tensor([[1.0, 1, 0, 0], [0, 1, 0, 1]]).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "the output does not depend on x" would be untrue
        why = explain(model, x, m, rules="cp-lrp", target=0).check()
    wanted = gradient_times_input(lambda x: model(x, m), x) / 2  # half each, as of any product
    torch.testing.assert_close(next(iter(why.inputs.values())), wanted)


def test_a_gate_of_another_path_is_still_one():
    model = Custom(
        lambda self, x: self.head(self.up(x) * F.silu(self.gate(x))),
        up=nn.Linear(4, 4),
        gate=nn.Linear(4, 4),
        head=nn.Linear(4, 2),
    )
    x = rand(2, 4)
    held = F.silu(model.gate(x)).detach()
    why = explain(model, x, rules="cp-lrp", target=0).check()
    wanted = gradient_times_input(lambda x: model.head(model.up(x) * held), x)
    torch.testing.assert_close(next(iter(why.inputs.values())), wanted)
    # x itself, excited by what it is made of
    excited = Custom(lambda self, x: self.head(x * torch.sigmoid(self.gate(x))), gate=nn.Linear(4, 4), head=nn.Linear(4, 2))
    held = torch.sigmoid(excited.gate(x)).detach()
    why = explain(excited, x, rules="cp-lrp", target=0)
    torch.testing.assert_close(next(iter(why.inputs.values())), gradient_times_input(lambda x: excited.head(x * held), x))


@pytest.mark.parametrize("rules", ["zero", "cp-lrp"])
def test_a_sign_is_held_and_lp_pooling_explained(rules):
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.LPPool1d(2, 2), nn.Flatten(), nn.Linear(6, 2)).double().eval()
    x = rand(2, 2, 5)
    why = explain(model, x, rules=rules, target=0).check()
    # x |x| / |x| is x: were the sign a factor of its own, half would be its
    signed = Custom(lambda self, x: self.head(torch.sign(x) * torch.relu(torch.abs(x))), head=nn.Linear(4, 2))
    y = rand(2, 4)
    torch.testing.assert_close(next(iter(explain(signed, y, rules=rules, target=0).inputs.values())), y * signed.head.weight[0])
    assert why.inputs["input"].any()


# -- ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_is_an_embedding_of_its_ids(mode):
    bag, head = nn.EmbeddingBag(10, 6, mode=mode, padding_idx=3).double(), nn.Linear(6, 3).double()
    ids = torch.tensor([[1, 3, 2], [4, 4, 5]])
    why = explain(nn.Sequential(bag, head).eval(), ids, target=1, rules="zero").check()
    rows, counts = bag.weight[ids].detach(), (ids != 3).sum(1, keepdim=True)
    if mode == "max":
        rows = rows.masked_fill((ids == 3)[..., None], -torch.inf)
        first = F.one_hot(rows.argmax(1), 3).mT
        wanted = (torch.where(first == 1, rows, 0) * head.weight[1]).sum(-1)
    else:
        wanted = (rows @ head.weight[1]).masked_fill(ids == 3, 0) / (counts if mode == "mean" else 1)
    torch.testing.assert_close(why.inputs["input"], wanted.detach())


def test_bags_of_several_groups_and_weighted():
    bag, head = nn.EmbeddingBag(10, 6, mode="sum"), nn.Linear(6, 3)
    groups = Custom(lambda self, i: self.head(self.bag(i.reshape(-1, 3)).reshape(2, 2, 6).sum(1)), bag=bag, head=head)
    ids = torch.randint(10, (2, 2, 3))
    why = explain(groups, ids, target=0, rules="zero").check()
    torch.testing.assert_close(next(iter(why.inputs.values())), (bag.weight[ids] @ head.weight[0]).detach())
    weighted = Custom(lambda self, i, w: self.head(self.bag(i, per_sample_weights=w)), bag=bag, head=head)
    w = rand(2, 3)
    why = explain(weighted, ids[:, 0], w, target=0, rules="zero").check()
    half = (w * (bag.weight[ids[:, 0]] @ head.weight[0])).detach() / 2
    for part in why.inputs.values():
        torch.testing.assert_close(part, half)


def test_one_hot_ids_are_explained():
    model = Custom(lambda self, i: self.head(F.one_hot(i.T, 6).double()).sum(0), head=nn.Linear(6, 3))
    ids = torch.randint(6, (2, 4))
    why = explain(model, ids, target=1).check()
    torch.testing.assert_close(next(iter(why.inputs.values())), model.head.weight[1][ids].detach())


# -- inputs that no sample owns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("causal", [True, False])
def test_a_transformer_with_a_float_mask(batch, causal):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = Custom(
        lambda self, x, m: self.head(self.encoder(x, mask=m)[:, -1]),
        encoder=nn.TransformerEncoder(layer, 1),
        head=nn.Linear(8, 3),
    )
    mask = nn.Transformer.generate_square_subsequent_mask(5).double()
    if not causal:
        mask[1, 4] = 0.0
    x = rand(batch, 5, 8)
    why = explain(model, x, mask, target=0).check()
    assert next(iter(why.inputs.values())).shape == x.shape
    if batch > 1:
        alone = explain(model, x[1:2], mask, target=0)
        torch.testing.assert_close(next(iter(why.inputs.values()))[1], next(iter(alone.inputs.values()))[0])


def test_an_input_that_all_samples_share_is_a_constant_of_each():
    model = Custom(lambda self, x, shared: self.head(x * 2 + shared), head=nn.Linear(4, 2))
    x, shared = rand(3, 4), rand(4)
    why = explain(model, x, shared, target=0).check()
    (name,) = why.constants
    torch.testing.assert_close(why.constants[name], (shared * model.head.weight[0]).detach().expand(3, -1))
    one = explain(model, x[:1], shared, target=0).check()  # of one sample it can be the input it is
    assert len(one.inputs) == 2
    torch.testing.assert_close(list(one.inputs.values())[1], why.constants[name][:1])


def test_what_new_empty_holds_moves_no_sample():
    def rotated(self, x):
        y = x.new_empty(len(x), 8)
        y[:, :4] = x
        y[:, 4:] = -x
        return self.head(y)

    program = capture(Custom(rotated, head=nn.Linear(8, 2)), rand(2, 4))
    assert all(axis is not None for axis in program.axes.values())


# -- recurrent ---------------------------------------------------------------------------------------------------------


def test_projections_and_cells_add_up_sample_by_sample():
    lstm = nn.LSTM(4, 5, 2, proj_size=3, batch_first=True, bidirectional=True)
    projected = Custom(lambda self, x: self.head(self.lstm(x)[0][:, -1]), lstm=lstm, head=nn.Linear(6, 2))

    def steps(self, x):
        h = c = x.new_zeros(len(x), 5)
        for t in range(3):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(self.gru(x[:, 0], h))

    cells = Custom(steps, cell=nn.LSTMCell(4, 5), gru=nn.GRUCell(4, 5), head=nn.Linear(5, 2))
    x = rand(2, 3, 4)
    for model in (projected, cells):
        why = explain(model, x, target=0).check()
        for i in range(2):
            alone = explain(model, x[i : i + 1], target=0)
            for name, part in alone.parts.items():
                torch.testing.assert_close(why.parts[name][i], part[0])
    assert {"cell", "gru"} <= set(why.biases)


def test_a_norm_written_with_var_mean_holds_its_deviation():
    def norm(self, x):
        var, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
        return self.head((x - mean) / torch.sqrt(var + 1e-5))

    model = Custom(norm, head=nn.Linear(4, 2))
    x = rand(2, 4)
    same = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), model.head).eval()
    ours, wanted = (next(iter(explain(m, x, target=0, rules="zero").inputs.values())) for m in (model, same))
    torch.testing.assert_close(ours, wanted)


def test_nothing_is_lost_in_a_logarithm_whose_softmax_is_held():
    model = Custom(
        lambda self, x: torch.log_softmax(self.head(x), 1) + torch.logsumexp(self.head(x), 1, keepdim=True), head=nn.Linear(4, 3)
    )
    for rules in ("zero", "cp-lrp"):
        why = explain(model, rand(2, 4), rules=rules, target=0).check()
        assert not why.losses


def test_what_a_recurrent_layer_reads_may_be_held_while_its_state_is_not():
    """Constant inputs of a decoder, and a layer behind a softmax that is held, whose biases then belong to a constant."""

    def decoded(self, x):
        state = self.start(x)[None]
        return self.head(self.gru(self.words.expand(len(x), -1, -1), state)[0][:, -1])

    decoder = Custom(decoded, start=nn.Linear(4, 5), gru=nn.GRU(4, 5, batch_first=True), head=nn.Linear(5, 2))
    decoder.words = rand(1, 3, 4)
    behind = Custom(
        lambda self, x: self.head(self.rnn(torch.softmax(x, 1)[:, None])[0][:, 0]) + x[:, :2],
        rnn=nn.RNN(4, 5, batch_first=True), head=nn.Linear(5, 2),
    )  # fmt: skip
    for model, rules in ((decoder, "zero"), (decoder, "default"), (behind, "zero"), (behind, "cp-lrp")):
        why = explain(model, rand(2, 4), target=0, rules=rules).check(1e-9)
        assert not why.losses


def test_a_plain_attribute_that_requires_grad_is_no_activation():
    model = Custom(lambda self, x: self.head(torch.tanh(x * self.scale + self.shift)), head=nn.Linear(4, 3))
    model.scale, model.shift = rand(4).requires_grad_(), rand(4).requires_grad_() * 2
    x = rand(2, 4)
    why = explain(model, x, target=0, rules="zero").check(1e-9)
    model.scale, model.shift = model.scale.detach(), model.shift.detach()
    same = explain(model, x, target=0, rules="zero")
    for name, part in same.parts.items():
        torch.testing.assert_close(why.parts[name], part)
