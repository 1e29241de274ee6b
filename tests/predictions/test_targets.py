"""What can be asked: every start is its definition, a list is its members, and none needs the model recorded anew."""

import gc
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from termwise.core.capture import capture
from termwise.core.program import DERIVED
from termwise.predictions import continuation, contrast, explain, next_token, node, weighting
from termwise.predictions.picked import picked
from termwise.predictions.propagate import propagate
from termwise.predictions.rules import gamma
from termwise.predictions.starts import Entry, Seen
from termwise.predictions.targets import Scored
from termwise.testing.architectures import build


def dense(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)
    return nn.Sequential(*layers).double().eval()


X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([4, 0, 2])
ONE = dense()


def same(a, b, atol=1e-12):
    """Every number of two explanations."""
    assert list(a.parts) == list(b.parts)
    torch.testing.assert_close(a.whole, b.whole, rtol=0, atol=atol)
    for name in a.parts:
        torch.testing.assert_close(a.parts[name], b.parts[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# -- each start is what it says ---------------------------------------------------------------------------------------

STARTS = {  # start -> the whole by its definition, from the logits z
    "a class": (2, lambda z: z[:, 2]),
    "a class per sample": (LABELS, lambda z: z[range(3), LABELS]),
    "a tuple": ((-1,), lambda z: z[:, -1]),
    "a tuple of tensors": ((LABELS,), lambda z: z[range(3), LABELS]),
    "against another": (contrast(2, 0), lambda z: z[:, 2] - z[:, 0]),
    "against another per sample": (contrast(LABELS, torch.tensor([1, 1, 1])), lambda z: z[range(3), LABELS] - z[:, 1]),
    "the largest against another": (contrast(b=0), lambda z: z.amax(1) - z[:, 0]),
    "against the rest": (contrast(2), lambda z: z[:, 2] - z[:, [0, 1, 3, 4]].mean(1)),
    "against probabilities": (contrast(2, "probabilities"), lambda z: z[:, 2] - (z.softmax(1) * z).sum(1)),
    "a weighting": (weighting(torch.arange(5.0)), lambda z: z @ torch.arange(5.0, dtype=z.dtype)),
    "a weighting per sample": (weighting(torch.eye(5)[LABELS]), lambda z: z[range(3), LABELS]),
    "the largest": (None, lambda z: z.amax(1)),
}


@pytest.mark.parametrize("name", STARTS)
def test_the_whole_is_its_definition(name):
    model = ONE
    target, whole = STARTS[name]
    why = explain(model, X, target=target).check()
    torch.testing.assert_close(why.whole, whole(model(X)).detach(), rtol=1e-12, atol=1e-12)


def test_relevance_is_linear_in_the_start():
    """What a weighting explains is the weighted sum of what its entries explain; so is every contrast."""
    model = ONE
    each = explain(model, X, target=[0, 1, 2, 3, 4])
    p = model(X).softmax(1).detach()
    for target, weights in [
        (contrast(2, 0), torch.tensor([-1.0, 0, 1, 0, 0])),
        (contrast(2), torch.tensor([-0.25, -0.25, 1, -0.25, -0.25])),
        (contrast(2, "probabilities"), torch.eye(5)[2] - p),
        (weighting(torch.arange(5.0)), torch.arange(5.0)),
    ]:
        why = explain(model, X, target=target)
        w = weights.double().expand(3, 5)
        for name, part in why.parts.items():
            together = (each.parts[name] * w.reshape(3, 5, *[1] * (part.ndim - 1))).sum(1)
            torch.testing.assert_close(part, together, rtol=0, atol=1e-12)


@settings(max_examples=10)
@given(st.lists(st.floats(-2, 2), min_size=5, max_size=5))
def test_any_weighting_adds_up(weights):
    w = torch.tensor(weights, dtype=torch.float64)
    why = explain(ONE, X, target=weighting(w), rules="zero")
    torch.testing.assert_close(why.total(), ONE(X).detach() @ w, rtol=1e-9, atol=1e-9)


def test_a_probability_contrast_starts_from_the_gradient_of_the_log_probability():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(x.log_softmax(1)[:, 1].sum(), x)
    why = explain(nn.Identity().eval(), x, target=contrast(1, "probabilities"), rules="zero")
    torch.testing.assert_close(why.inputs["input"], (x * gradient).detach(), rtol=0, atol=1e-14)


# -- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_is_its_members():
    model = ONE
    targets = [3, LABELS, contrast(2, 0), contrast(1), (0,), None, contrast(4, "probabilities")]
    together = explain(model, X, target=targets).check()
    assert together.whole.shape == (3, 7)
    assert together.parts["input:input"].shape == (3, 7, 4)
    assert together.parts["bias:2"].shape == (3, 7, 6)
    for t, target in enumerate(targets):
        alone = explain(model, X, target=target)
        same(together.only(t), alone)
        assert together.only(t).label(1) == alone.label(1)
        assert torch.equal(together.target[:, t], alone.target.reshape(3, -1)[:, -1])


def test_a_list_of_one_keeps_its_axis():
    assert explain(ONE, X, target=[2]).whole.shape == (3, 1)


def test_a_batch_is_its_samples():
    model = ONE
    targets = [LABELS, contrast(LABELS, 1), weighting(torch.eye(5)[LABELS])]
    together = explain(model, X, target=targets)
    for i in range(3):
        targets = [LABELS[i : i + 1], contrast(LABELS[i : i + 1], 1), weighting(torch.eye(5)[LABELS[i : i + 1]])]
        same(together[i], explain(model, X[i : i + 1], target=targets))


def test_functions_in_a_list_are_recorded_together():
    model = ONE
    picks = [lambda y: y[:, 0] * y[:, 1], lambda y: y[:, 2].square()]
    together = explain(model, X, target=picks).check()
    for t, pick in enumerate(picks):
        alone = explain(model, X, target=pick)
        torch.testing.assert_close(together.only(t).whole, alone.whole)
        torch.testing.assert_close(together.only(t).inputs["input"], alone.inputs["input"])


def test_what_narrow_uses_round_is_booked_for_each_target():
    """A float32 island in a float64 model: what meets there is rounded, once for each target and not for those before."""
    torch.manual_seed(0)
    first, last = nn.Linear(4, 6).double(), nn.Linear(6, 5).double()

    class Island(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x):
            h = self.first(x).float()
            return self.last((h.softmax(1) + h.log_softmax(1) * h.softmax(1)).double())

    model = Island().eval()
    together = explain(model, X, target=[0, 1, 2], rules="attnlrp").check()
    for t in range(3):
        same(together.only(t), explain(model, X, target=t, rules="attnlrp"))


def test_one_forward_pass_serves_a_list(monkeypatch):
    from termwise.predictions.propagate import Pass

    calls = []
    forward = Pass.forward
    monkeypatch.setattr(Pass, "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    explain(ONE, X, target=[0, 1, 2, contrast(3)])
    assert len(calls) == 1


def test_starts_need_no_recording_anew(monkeypatch):
    model = dense()
    explain(model, X)
    monkeypatch.setattr(sys.modules["termwise.core.capture"], "_record", lambda call: pytest.fail("recorded anew"))
    for target in (0, LABELS, (1,), contrast(0, 1), contrast(2), contrast(0, "probabilities"), weighting(torch.ones(5)), [0, 1]):
        explain(model, X, target=target)
    explain(model, X, at="2")
    explain(model, X, through=("2", 1))
    explain(model, X, target=lambda y: y[:, 0])
    with pytest.raises(BaseException, match="recorded anew"):  # another function of the output is part of the recording
        explain(model, X, target=lambda y: y[:, 0] - y[:, 1])


# -- language models --------------------------------------------------------------------------------------------------


def continued(model: nn.Module, text: torch.Tensor, tokens: int, **others) -> torch.Tensor:
    """The text with the most likely tokens appended one by one."""
    argument = "decoder_input_ids" if others else "input_ids"
    for _ in range(tokens):
        scores = model(**{argument: text}, **others).logits[:, -1]
        text = torch.cat([text, scores.argmax(-1, keepdim=True)], 1)
    return text


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_token_of_a_generated_text(name):
    """One call for all tokens: each is explained from the position before it, by nothing that comes later."""
    subject = build(name, batch=2).to(torch.float64)
    model = subject.model
    text = continued(model, subject.kwargs["input_ids"][:, :4], 3)
    call = {"kwargs": {"input_ids": text}, "rules": "attnlrp"}
    why = explain(model, **call, target=continuation(4, 7))
    why.check(1e-6 if name == "llama" else 1e-9)  # llama's norms compute in float32
    scores = model(input_ids=text).logits[:, 3:6].gather(2, text[:, 4:, None])[..., 0]
    torch.testing.assert_close(why.whole, scores, rtol=1e-9, atol=1e-9)
    for t, position in enumerate(range(4, 7)):
        relevance = why.only(t).inputs["input_ids"]
        assert (relevance[:, position:] == 0).all()
        assert (relevance[:, :position] != 0).all()
    same(why.only(1), explain(model, **call, target=next_token(5)), 1e-9)
    same(why.only(1), explain(model, **call, target=next_token(-2)), 1e-9)
    assert why.only(1).label() == f"class {text[0, 5]} as token 5"
    foil = explain(model, **call, target=contrast(next_token(5), 7)).check(1e-6)
    torch.testing.assert_close(foil.whole, scores[:, 1] - model(input_ids=text).logits[:, 4, 7], rtol=1e-9, atol=1e-9)


def test_padding_is_not_explained_from():
    ids, mask = torch.randint(0, 7, (2, 10)), torch.ones(2, 10, dtype=torch.long)
    mask[1, -2:] = 0
    seen, z = Seen(2, ids=ids, mask=mask), torch.randn(2, 10, 7)
    assert torch.equal(next_token(3).of(z, seen)[0], z[:, 2].gather(1, ids[:, 3:4])[:, 0])
    for t in (8, 9, -1):
        with pytest.raises(ValueError, match=rf"next_token\({t}\): in some sample the mask hides token {t} or the one before"):
            next_token(t).of(z, seen)


def test_the_first_token_is_predicted_by_nothing():
    seen = Seen(2, ids=torch.zeros(2, 10, dtype=torch.long))
    for t in (0, 10, -10):
        with pytest.raises(ValueError, match=rf"next_token\({t}\): there are 10 tokens.*say 1 to 9"):
            next_token(t).of(torch.randn(2, 10, 7), seen)


@pytest.mark.parametrize("name", ["t5", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bart", "whisper"))])
def test_two_texts(name):
    """Of an encoder and a decoder the decoder's tokens are predicted, and both texts explain them."""
    subject = build(name, batch=2).to(torch.float64)
    model, (source, value) = subject.model, next(iter(subject.kwargs.items()))
    text = continued(model, subject.kwargs["decoder_input_ids"][:, :2], 2, **{source: value})
    call = {"kwargs": {source: value, "decoder_input_ids": text}, "rules": "attnlrp"}
    why = explain(model, **call, target=[*continuation(2, 4), contrast(next_token(3)), (1, 7), None])
    why.check(1e-9)
    logits = model(**call["kwargs"]).logits
    torch.testing.assert_close(why.whole[:, 0], logits[:, 1].gather(1, text[:, 2:3])[:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(why.whole[:, 3], logits[:, 1, 7], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(why.whole[:, 4], logits[:, -1].amax(1), rtol=1e-9, atol=1e-9)
    assert why.parts[f"input:{source}"].shape == (2, 5, *value.shape[1:])
    decoder = why.only(0).inputs["decoder_input_ids"]
    assert (decoder[:, 2:] == 0).all()
    assert (decoder[:, :2] != 0).all()
    assert why.only(0).inputs[source].abs().sum() > 0


def test_the_mask_of_the_encoder_is_not_the_decoders():
    """Both texts may be equally long, the first padded: the last position of the other is its last."""
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.tensor([[1, 1, 1, 0, 0]] * 2)
    z = torch.randn(2, 5, 7)
    one = Seen.of({"input_ids": ids, "attention_mask": mask}, 2, slice(0, 2), 2)
    two = Seen.of({"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids * 2}, 2, slice(0, 2), 2)
    assert torch.equal(Entry().of(z, one)[0], z[:, 2].amax(1))
    assert torch.equal(Entry().of(z, two)[0], z[:, 4].amax(1))
    assert torch.equal(next_token(3).of(z, two)[0], z[:, 2, 2])


# -- nodes and boxes --------------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """Two rounds of message passing."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, adjacency):
        return self.second(adjacency @ self.first(adjacency @ x).relu())


def graph() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    adjacency = torch.eye(7, dtype=torch.float64)
    for a, b in [(0, 1), (1, 2), (2, 3), (4, 5)]:
        adjacency[a, b] = adjacency[b, a] = 0.5
    return Graph().double().eval(), torch.randn(7, 4, dtype=torch.float64), adjacency


def test_a_node_is_explained_by_its_neighbourhood():
    model, x, adjacency = graph()
    targets = [node(1, 2), node(-1), contrast(node(1, 2), 0)]
    why = explain(lambda x: model(x, adjacency), x, target=targets, rules="zero").check()
    z = model(x, adjacency).detach()
    torch.testing.assert_close(why.whole[0], torch.stack([z[1, 2], z[-1].max(), z[1, 2] - z[1, 0]]))
    assert why.inputs["x"].shape == (1, 3, 7, 4)
    touched = why.inputs["x"][0].abs().sum(-1) > 0
    assert touched.tolist() == [[True] * 4 + [False] * 3, [False] * 6 + [True], [True] * 4 + [False] * 3]  # two steps away
    assert why.only(0).label() == "class 2 of node 1"
    same(why.only(0), explain(lambda x: model(x, adjacency), x, target=node(1, 2), rules="zero"))
    both = explain(model, x, adjacency, target=node(1, 2)).check()  # the edges too
    assert both.inputs["adjacency"].shape == (1, 7, 7)
    inner = explain(model, x, adjacency, target=node(1, 2), at="first", rules="zero").check()
    assert inner.inside["first"].shape == (1, 7, 6)


def test_nodes_of_a_batch_of_graphs_are_tuples():
    model, x, adjacency = graph()
    batch = torch.stack([x, x.flip(0)])
    why = explain(lambda x: model(x, adjacency), batch, target=(1, 2), rules="zero").check()
    torch.testing.assert_close(why.whole, model(batch, adjacency)[:, 1, 2].detach())


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.score, self.place = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5), nn.Linear(8, 4)

    def forward(self, image):
        queries = self.body(image).relu().flatten(2).transpose(1, 2)
        return {"logits": self.score(queries), "pred_boxes": self.place(queries).sigmoid()}


def test_boxes():
    torch.manual_seed(0)
    model, image = Detector().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    out = model(image)
    why = explain(model, image, target=[(2, 3), (torch.tensor([1, 2]), 3)]).check()
    torch.testing.assert_close(why.whole, torch.stack([out["logits"][:, 2, 3], out["logits"][[0, 1], [1, 2], 3]], 1).detach())
    assert (why.only(0).heatmap()[:4] == 0).all()  # box 2 of four sees the lower left quarter only
    place = explain(model, image, target=("pred_boxes", 2, 0)).check()
    torch.testing.assert_close(place.whole, out["pred_boxes"][:, 2, 0].detach())
    assert any(name.startswith("constant:") for name in place.parts)  # sigmoid(0) = 1/2
    same(explain(model, image, target=[("pred_boxes", 2, 0), ("pred_boxes", 1, 3)]).only(0), place)
    with pytest.raises(ValueError, match="no tensor 'pred_box': did you mean 'pred_boxes'"):
        explain(model, image, target=("pred_box", 2, 0))
    with pytest.raises(ValueError, match="entries of one output"):
        explain(model, image, target=[("pred_boxes", 2, 0), (2, 3)])


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([], ValueError, "empty list"),
        ("cat", TypeError, r"integer class index, got 'cat'\. Else: a tuple.*contrast.*list of these"),
        ([0, lambda y: y[:, 0]], TypeError, "functions of the output are recorded.*two calls"),
        ([0, node(1)], ValueError, r"node\(\.\.\.\) takes the call as one sample"),
        (contrast(0, 9), ValueError, "out of range: the output has 5 classes"),
        (contrast(0, torch.tensor([1, 2])), ValueError, r"shape \(2,\) for 3 samples"),
        (weighting(torch.ones(4)), ValueError, r"weighting has shape \(4,\), the output \(3, 5\).*or \(5,\) for all"),
        (next_token(3), ValueError, r"output \(batch, tokens, vocabulary\).*Here the output is \(3, 5\), ids are none"),
        (node(5), ValueError, r"node\(5\) of an output of shape \(3, 5\)"),
        ([0, 7], ValueError, "target 7 is out of range"),
    ],
)
def test_a_bad_target(target, error, message):
    with pytest.raises(error, match=message):
        explain(ONE, X, target=target)


def test_a_bad_contrast():
    with pytest.raises(ValueError, match="unknown contrast 'others'"):
        contrast(0, "others")
    with pytest.raises(TypeError, match="one entry of the output"):
        contrast(weighting(torch.ones(5)))
    with pytest.raises(ValueError, match="several classes"):
        explain(nn.Linear(4, 1).double().eval(), X, target=contrast(0))
    with pytest.raises(ValueError, match=r"continuation\(3, 3\) holds no token"):
        continuation(3, 3)


def test_several_targets_are_chosen_from():
    several, one = explain(ONE, X, target=[0, 1]), explain(ONE, X, target=0)
    for ask in (several.top, several.heatmap):
        with pytest.raises(ValueError, match=r"2 targets are explained here: choose one, why\.only\(0\)\."):
            ask()
    with pytest.raises(ValueError, match="target 2 is out of range: 2 were asked"):
        several.only(2)
    with pytest.raises(ValueError, match="nothing to choose"):
        one.only(0)


def test_classes_are_named():
    names = ["ant", "bee", "cat", "dog", "eel"]
    why = explain(ONE, X, target=[contrast(2, 0), contrast(1), 4], classes=names)
    assert [why.only(t).label() for t in range(3)] == ["cat against ant", "bee against the rest", "eel"]
    assert why[0].only(0).label() == "cat against ant"  # as many classes as samples are no classes of samples
    assert explain(ONE, X, target=[0, 1, 2], classes=names[:3])[1].classes == names[:3]
    assert explain(ONE, X, target=weighting(torch.ones(5))).label() == "weighted output"


def test_pictures_of_several_targets_and_of_inner_modules(capsys):
    from termwise.report.page import Section, fragment, page

    why = explain(ONE, X, target=[contrast(2, 0), 1], classes=["ant", "bee", "cat", "dog", "eel"])
    for html in (fragment(why), page([Section(why)]), why._repr_html_()):
        assert html.index("cat against ant") < html.rindex("bee")
    why.show()
    assert "2 targets" in capsys.readouterr().out
    inner = explain(ONE, X, target=1, at="2").check()
    inner.show()
    assert "inner module" in capsys.readouterr().out
    convolutional = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)).double().eval()
    there = explain(convolutional, torch.randn(1, 1, 6, 6, dtype=torch.float64), target=1, at="0")
    assert "relevance of every pixel" in fragment(there)


# -- functions of the output ------------------------------------------------------------------------------------------


class Answer(dict):
    """Scores, the second of which are explained."""


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 5)

    def forward(self, x):
        h = x.tanh()
        return Answer(aux=self.one(h), logits=self.two(h))


PICKS = {
    "a class": lambda out: out["logits"][:, 3],
    "of a list of labels": lambda out: out["logits"][range(3), LABELS],
    "the winner": lambda out: out["logits"].max(1).values,
    "moved about": lambda out: out["logits"].T.unsqueeze(0)[0, -1],
}
MORE = {
    "a sum": lambda out: out["logits"][:, 3] + out["logits"][:, 1],
    "another output": lambda out: out["aux"][:, 1],
    "two outputs": lambda out: out["logits"][:, 3] * out["aux"][:, 1],
    "a function": lambda out: out["logits"][:, 3].exp(),
    "another dtype": lambda out: out["logits"][:, 3].float(),
    "of another sample": lambda out: out["logits"][[1, 1, 1], 3],
    "a constant": lambda out: torch.ones(3),
}


@pytest.mark.parametrize("name", [*PICKS, *MORE])
def test_only_a_function_that_picks_an_entry_is_a_start(name):
    torch.manual_seed(0)
    model = Two().double().eval()
    pick = {**PICKS, **MORE}[name]
    found = picked(model, (X,), {}, pick, {id(X)})
    assert (found is not None) == (name in PICKS)
    assert not X.requires_grad
    if found is None:
        return
    recorded = propagate(capture(model, X, select=Scored(pick)), "zero").run([X], lambda z: z)
    why = explain(model, X, target=pick, rules="zero").check(1e-12)
    assert (why.target, why.label()) == (None, "output")
    torch.testing.assert_close(why.whole, pick(model(X)).detach())
    assert list(why.parts) == list(recorded.parts)
    for part, value in recorded.parts.items():
        torch.testing.assert_close(why.parts[part], value, rtol=0, atol=1e-12)


def test_a_model_that_gives_back_its_input_is_left_alone():
    x = X.clone()
    assert picked(lambda x: x, (x,), {}, lambda z: z[:, 0], {id(x)}) is None
    why = explain(lambda x: x, x, target=lambda z: z[:, 1]).check()
    torch.testing.assert_close(why.whole, x[:, 1])
    assert not x.requires_grad


def test_fresh_functions_neither_record_nor_pile_up(monkeypatch):
    module = sys.modules["termwise.core.capture"]
    recordings, record = [], module._record
    monkeypatch.setattr(module, "_record", lambda call: recordings.append(call) or record(call))
    model = dense()
    graphs = lambda: sum(type(o) is torch.fx.Graph for o in gc.get_objects())
    explain(model, X)
    for k in range(5):  # an entry each
        why = explain(model, X, target=lambda z: z[:, k]).check()
        torch.testing.assert_close(why.whole, model(X)[:, k].detach())
    assert len(recordings) == 1
    explain(model, X, target=lambda z: z[:, 0] - z[:, 1])
    gc.collect()
    before = graphs()
    for _ in range(8):  # the same sum each time
        explain(model, X, target=lambda z: z[:, 0] * 2 - z[:, 1]).check()
    assert len(recordings) == 3
    gc.collect()
    assert graphs() <= before + 2  # one recording and its pass
    for k in range(DERIVED + 8):
        explain(model, X, rules={"linear": gamma(0.1 + k)})
    for k in range(module.KEPT + 2):  # as many that differ
        explain(model, X, target=lambda z: z[:, 0] * k)
    gc.collect()
    assert len(recordings) == 5 + module.KEPT
    assert graphs() <= before + 2 * module.KEPT + 2 * DERIVED


@pytest.mark.parametrize("rows", ["2KB", None])
def test_a_picking_function_with_a_limit_on_memory(rows):
    model = dense()
    why = explain(model, X, target=lambda z: z[:, 2], max_memory=rows)
    same(why, explain(model, X, target=lambda z: z[:, 2]))
    listed = explain(model, X, target=[lambda z: z[:, 2], lambda z: z[:, 0]])
    torch.testing.assert_close(listed.whole[:, 0], why.whole)
    torch.testing.assert_close(listed.parts["input:input"][:, 0], why.inputs["input"])
