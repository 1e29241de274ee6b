"""What goes wrong is told: what, where, and what to do."""

import pytest
import torch
from torch import nn

from termwise import predictions
from termwise.core import CaptureError
from termwise.predictions import chefer, decompx, explain, gradient_x_input, integrated_gradients, smoothgrad

X = torch.randn(2, 4)


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*(layers or (nn.Linear(4, 3),))).eval()


class Custom(nn.Module):
    """A model from a function of its input."""

    def __init__(self, function, inner: nn.Module | None = None):
        super().__init__()
        self.function, self.inner = function, inner or nn.Identity()
        self.eval()

    def forward(self, *x):
        return self.function(self.inner, *x)


def test_no_model():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module or a function of tensors, got int"):
        explain(3, X)


def test_training_mode():
    with pytest.raises(ValueError, match=r"Sequential is in training mode.*model\.eval\(\)"):
        explain(nn.Sequential(nn.Linear(4, 3)), X)
    partly = net(nn.Linear(4, 3), nn.Dropout())
    partly[1].train()
    with pytest.raises(ValueError, match=r"\(at 1\).*eval"):
        explain(partly, X)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda inner, x: x.sum(), r"shape \(\) for 2 samples: there is no scalar per sample.*target=<function"),
        (lambda inner, x: x.reshape(-1), r"shape \(8,\) for 2 samples"),
        (lambda inner, x: x[:, None, None], r"shape \(2, 1, 1, 4\).*target=\(i, j, \.\.\.\) with 3 indices"),
    ],
)
def test_output_without_a_scalar_per_sample(function, message):
    with pytest.raises(ValueError, match=message):
        explain(Custom(function), X)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (3, ValueError, r"target 3 is out of range: the output has 3 classes, 0 to 2"),
        (-4, ValueError, r"out of range"),
        (torch.tensor([0, 1, 2]), ValueError, r"shape \(3,\) for 2 samples"),
        (torch.tensor([0, 7]), ValueError, r"out of range"),
        (1.5, TypeError, r"integer class index, got 1\.5"),
        ((0, 1), ValueError, r"2 indices, each sample's output has 1 axes"),
        ((5,), ValueError, r"axis 1 of the output has size 3"),
        (lambda y: y, ValueError, r"one scalar per sample, shape \(batch,\); it gave \(2, 3\)"),
    ],
)
def test_target(target, error, message):
    with pytest.raises(error, match=message):
        explain(net(), X, target=target)


def test_target_of_a_regression():
    model = Custom(lambda inner, x: inner(x)[:, 0], nn.Linear(4, 1).eval())
    explain(model, X).check()
    with pytest.raises(ValueError, match=r"one number per sample.*leave target out"):
        explain(model, X, target=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_or_infinity(bad):
    x = X.clone()
    x[1, 2] = bad
    with pytest.raises(ValueError, match=r"input\[0\] has 1 values that are NaN or infinite"):
        explain(net(), x)
    model = net(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[2].weight[0, 1] = bad
    with pytest.raises(ValueError, match=r"weight 2\.weight has NaN or infinite"):
        explain(model, X + 3, target=0)


def test_an_output_of_exactly_zero_is_said():
    model = Custom(lambda inner, x: torch.stack([x.sum(1) - x.sum(1), x.sum(1)], 1))
    why = explain(model, torch.ones(1, 4), target=0)
    assert why.whole.item() == 0
    assert why.error() == 0.0  # absolute: relative to 0 there is none
    assert "exactly 0" in why.summary()
    assert why.shares()["inputs"].isnan().all()


def test_nothing_to_explain():
    with pytest.raises(ValueError, match=r"no input to explain: none is floating.*embedding"):
        explain(Custom(lambda inner, i: inner(i.float()), nn.Linear(4, 3).eval()), torch.ones(2, 4, dtype=torch.long), target=0)


def test_an_input_without_effect_warns():
    model = Custom(lambda inner, x, y: inner(x), nn.Linear(4, 3).eval())
    with pytest.warns(UserWarning, match="does not depend on 'input:.*': its relevance is exactly 0"):
        why = explain(model, X, torch.randn(2, 5))
    assert sum(bool(p.abs().sum() == 0) for p in why.inputs.values()) == 1


def test_leaving_torch():
    with pytest.raises(CaptureError, match=r"could not be recorded\. torch\.export said.*fallback trace said.*numpy"):
        explain(Custom(lambda inner, x: torch.from_numpy(x.numpy() * 2)), X)


def test_an_operator_without_rule():
    class Deep(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(torch.eye(4) + x[:, :, None] * x[:, None, :])[:, 0]

    model = net(nn.Linear(4, 4), Deep())
    with pytest.raises(ValueError, match=r"no rule for aten\.\S+ at 1 \(test_bad_input\.py:\d+\)\. Add one with @.*rule\("):
        explain(model, X, target=0)
    # and the way out it names
    names = {"linalg_inv", "linalg_inv_ex"}
    message = ""
    try:
        explain(model, X, target=0)
    except ValueError as problem:
        message = str(problem)
    (op,) = [n for n in names if f"aten.{n} " in message]
    why = explain(model, X, target=0, rules={op: "gradient"})
    why.check(1e-4)
    assert any(k.startswith(f"rule:{op}") for k in why.parts)


def test_unknown_rules():
    with pytest.raises(ValueError, match="unknown rules 'attnlpr': did you mean 'attnlrp'"):
        explain(net(), X, rules="attnlpr")
    with pytest.raises(ValueError, match="unknown rule 'gama': did you mean 'gamma'"):
        explain(net(), X, rules={"linear": "gama"})
    with pytest.raises(ValueError, match=r"'linaer' in `rules` is no operator.*did you mean 'linear'"):
        explain(net(), X, rules={"linaer": "gamma"})
    with pytest.raises(TypeError, match="an operator, a module class or a glob"):
        explain(net(), X, rules={3: "gamma"})


def test_samples_that_influence_each_other():
    model = Custom(lambda inner, x: inner(x - x.mean(0)), nn.Linear(4, 3).eval())
    with pytest.raises(ValueError, match=r"samples of a batch influence each other.*one sample at a time"):
        explain(model, X)
    explain(model, X[:1], target=0)


def test_batch_second():
    model = Custom(lambda inner, x: inner(x)[0][-1], nn.LSTM(4, 3).eval())
    with pytest.raises(ValueError, match="samples"):
        explain(model, torch.randn(5, 2, 4))


def test_names_of_another_length():
    with pytest.raises(ValueError, match="names has 1 lists of tokens for 2 samples"):
        explain(net(), X, names=["a", "b"])


class Attending(nn.Module):
    """A convolution and one attention over the patches that it makes: every method has something to say of it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x).tanh().flatten(2).mT
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((x + nn.functional.scaled_dot_product_attention(q, k, v)).tanh().mean(1))


METHODS = [
    *("explain", "decompx", "over_depth", "gradient_x_input", "integrated_gradients", "smoothgrad", "gradcam", "occlusion"),
    *("shapley", "chefer", "attention_rollout", "gradient_rollout", "raw_attention", "attention_gradcam", "partial_lrp"),
]


@pytest.mark.parametrize("name", METHODS)
def test_under_inference_mode_as_outside(name):
    method = getattr(predictions, name)
    torch.manual_seed(1)
    model, x = Attending().eval(), torch.randn(2, 3, 16, 16)

    def maps(why):
        return [*getattr(why, "tokens", {}).values(), *getattr(why, "parts", {}).values()]

    expected = maps(method(model, x, target=0))
    assert expected[0].any()
    with torch.inference_mode():
        inside, made = maps(method(model, x, target=0)), x * 1
        within = maps(method(model, made, target=0))
    outside = maps(method(model, made, target=0))  # of a tensor that was made inside
    for found in (inside, within, outside):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    if name in ("explain", "gradient_x_input", "occlusion"):
        assert not any(m.is_inference() for m in inside)


def test_an_argument_that_hides_tensors():
    class Cache:
        def __init__(self):
            self.layers = [{"keys": torch.ones(2, 3)}]

    with pytest.raises(TypeError, match="argument cache is a Cache, inside which there are tensors"):
        explain(lambda x, cache: x + cache.layers[0]["keys"], torch.ones(2, 3), Cache())


# -- what the model itself refuses -------------------------------------------------------------------------------------


def refuses():
    raise RuntimeError("no such picture")


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (net(), X.double(), r"Sequential itself raises RuntimeError for input \(2, 4\) torch\.float64: .*dtype"),
        (net(), X.to(torch.complex64), r"itself raises RuntimeError for input \(2, 4\) torch\.complex64"),
        (net(), torch.randn(2, 5), r"itself raises RuntimeError for input \(2, 5\) torch\.float32: .*cannot be multiplied"),
        (net(nn.Conv2d(3, 4, 3)), torch.randn(2, 1, 8, 8), r"for input \(2, 1, 8, 8\).*3 channels.*mend the inputs"),
        (
            net(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)),
            torch.tensor([[1, 2, 99]]),
            r"raises IndexError .*out of range",
        ),
        (Custom(lambda inner, x: refuses()), X, r"Custom itself raises RuntimeError .*: no such picture\. Call the model"),
    ],
)
def test_what_the_model_itself_refuses_is_said_once(model, x, message):
    with pytest.raises(ValueError, match=message) as caught:
        explain(model, x)
    assert "leaves torch" not in str(caught.value)
    assert "export" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X.to("meta"), ValueError, r"input\[0\] is on the meta device"),
        (X.to_sparse(), ValueError, r"input\[0\] is sparse \(torch\.sparse_coo\): pass input\[0\]\.to_dense\(\)"),
        (torch.zeros(0, 4), ValueError, r"input\[0\] has shape \(0, 4\): it is empty"),
        (torch.zeros(1, 0, dtype=torch.long), ValueError, r"input\[0\] has shape \(1, 0\): it is empty"),
        (X.numpy(), TypeError, r"no tensor among the inputs, got ndarray: pass tensors"),
        ("hello", TypeError, r"no tensor among the inputs, got str"),
    ],
)
def test_inputs_without_values(x, error, message):
    with pytest.raises(error, match=message):
        explain(net(), x)


def test_an_output_that_depends_on_nothing():
    with pytest.raises(ValueError, match=r"output of Custom depends on no input that can be explained"):
        explain(Custom(lambda inner, x: inner(torch.ones(len(x), 4)), nn.Linear(4, 3).eval()), X)


def test_an_output_of_integers():
    with pytest.raises(CaptureError, match=r"returned a tensor of torch\.int64, in which there is no floating tensor") as caught:
        explain(Custom(lambda inner, x: x.argmax(-1)), X)
    assert "FakeTensor" not in str(caught.value)


def test_what_cannot_be_recorded():
    branches = Custom(lambda inner, x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)))
    with pytest.raises(CaptureError, match=r"cond keeps its branches as they are: write the control flow in Python") as caught:
        explain(branches, X)
    assert str(caught.value).count("branches") == 1

    def packed(gru, x, lengths):
        return gru(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][-1]

    with pytest.raises(CaptureError, match=r"packs sequences by their lengths.*padded batch"):
        explain(Custom(packed, nn.GRU(4, 4, batch_first=True).eval()), torch.randn(2, 5, 4), torch.tensor([5, 3]))
    with pytest.raises(CaptureError, match=r"it holds TorchScript \(at 0\).*Use the module it was made from"):
        explain(net(scripted()), X)


def scripted() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(4, 3))


@pytest.mark.parametrize("rules", [None, 3])
def test_rules_of_no_kind(rules):
    with pytest.raises(TypeError, match=rf"name of a set \(default, .*\) or a mapping, got {rules}"):
        explain(net(), X, rules=rules)


@pytest.mark.parametrize("target", ["cat", {}])
def test_a_target_of_no_kind(target):
    with pytest.raises(TypeError, match="target must be an integer class index"):
        explain(net(), X, target=target)


@pytest.mark.parametrize("method", [chefer, decompx, gradient_x_input, integrated_gradients, smoothgrad])
def test_names_of_classes_are_checked_by_every_method(method):
    head = Custom(lambda inner, x: inner(nn.functional.scaled_dot_product_attention(x, x, x)[:, 0]), nn.Linear(4, 3))
    x = torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match="classes has 1 names, and class 2 is explained"):
        method(head, x, target=2, classes=["cat"])
    with pytest.raises(TypeError, match="classes is a list of names, got the string 'abc'"):
        method(head, x, classes="abc")
    assert method(head, x, target=2, classes=("cat", "dog", "eel")).label() == "eel"
    if method is decompx:  # every class at once
        with pytest.raises(ValueError, match="classes has 2 names, and class 2 is explained"):
            method(head, x, classes=["cat", "dog"])


@pytest.mark.parametrize("rules", ["zero", "cp-lrp", "gamma-vit"])
def test_a_head_that_is_held_says_so(rules):
    """Softmax is constant under these rules, and an output that is one would explain nothing."""
    message = r"Sequential ends in aten\.softmax at 1 .*explain the logits before it.*rules='attnlrp'"
    for target in (1, lambda p: p[:, 0], lambda p: p[:, 0] - p[:, 1]):
        with pytest.raises(ValueError, match=message):
            explain(net(nn.Linear(4, 3), nn.Softmax(-1)), X, rules=rules, target=target)
    explain(net(nn.Linear(4, 3), nn.Softmax(-1)), X, rules="attnlrp").check()
    explain(net(nn.Linear(4, 3), nn.Sigmoid()), X, rules=rules).check()
    explain(net(nn.Linear(4, 3), nn.Softmax(-1)), X, rules="zero", at="1").check()
    with pytest.raises(ValueError, match=r"no part .* arrives .* The model ends in aten\.softmax at 1 .*: decompose the logits"):
        decompx(net(nn.Linear(4, 3), nn.Softmax(-1)), X)


def test_an_input_that_rules_hold_is_not_said_to_be_unused():
    attend = Custom(lambda inner, q, v: (q.softmax(-1) * v).sum(1))
    with pytest.warns(UserWarning, match=r"does not depend on 'input:q' by these rules, which give nothing to what it goes into"):
        explain(lambda q, v: attend(q, v), X, X, rules="zero")  # one tensor twice is two inputs
    with pytest.warns(UserWarning, match=r"does not depend on 'input:b': its relevance"):
        explain(lambda a, b: a.sum(1), X, X)


def test_names_and_classes():
    with pytest.raises(TypeError, match="names is a list of tokens for each sample, got the string 'hello'"):
        explain(net(), X, names="hello")
    with pytest.raises(ValueError, match="classes has 1 names, and class 2 is explained"):
        explain(net(), X, target=2, classes=["cat"])
    with pytest.raises(TypeError, match="classes is a list of names, got the string 'abc'"):
        explain(net(), X, target=2, classes="abc")


def test_a_sample_is_shown_and_a_path_that_cannot_be_written_is_said(tmp_path, capsys):
    why = explain(net(), X, target=0)
    why.show(sample=1)
    assert capsys.readouterr().out
    with pytest.raises(ValueError, match="sample 7 is out of range: there are 2"):
        why.show(sample=7)
    with pytest.raises(OSError, match=r"nowhere/why\.safetensors cannot be written.*choose a folder"):
        why.save(tmp_path / "nowhere" / "why")


def test_an_autocast_around_the_call_is_ignored():
    model = net()
    with torch.autocast("cpu", torch.bfloat16):
        inside = explain(model, X, target=0)
    assert torch.equal(inside.whole, explain(model, X, target=0).whole)
