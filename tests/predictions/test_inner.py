"""Relevance at a module and through a unit: explanation there + what flows through it = the whole explanation."""

import pytest
import torch
from torch import nn

from termwise.predictions import contrast, explain, patches
from termwise.testing.architectures import build


def call(name: str, batch: int = 2):
    subject = build(name, batch=batch).to(torch.float64)
    return subject.model, subject.inputs, {"kwargs": subject.kwargs}


def composed(model, inputs, options, path, **more):
    """The law: parts at the module and behind it, plus those of everything that flows through it, are the parts of all."""
    options = {"rules": "attnlrp", "target": 1, **options, **more}
    full = explain(model, *inputs, **options).check()
    inner = explain(model, *inputs, at=path, **options).check()
    torch.testing.assert_close(inner.whole, full.whole, rtol=0, atol=1e-12)
    every = torch.ones((), dtype=torch.float64)
    before = explain(model, *inputs, through=(path, every), **options).check()
    at = inner.inside[path]
    torch.testing.assert_close(before.whole, at.flatten(full.whole.ndim).sum(-1), rtol=0, atol=1e-10)
    names = {name for why in (inner, before) for name in why.parts} - {f"at:{path}"}
    assert names == set(full.parts)
    for name, part in full.parts.items():
        both = inner.parts.get(name, 0) + before.parts.get(name, 0)
        torch.testing.assert_close(both, part, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    return full, inner, before


@pytest.mark.parametrize(
    ("name", "paths"),
    {
        "resnet": ["4", "6.f", "6.f.1", "7.0"],
        "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1.attention", "bert.embeddings.word_embeddings", "bert.pooler"],
        "vit": ["vit.layers.0", "vit.layers.1.mlp.fc1", "vit.embeddings"],
        "lstm": ["embed", "rnn", "head"],
    }.items(),
)
def test_at_and_through_compose(name, paths):
    model, inputs, options = call(name)
    for path in paths:
        _, inner, _ = composed(model, inputs, options, path)
        module = dict(model.named_modules())[path]
        shape = value_of(module, model, inputs, options).shape
        assert inner.inside[path].shape == shape
    for rules in ("zero", "gamma") if name == "resnet" else ():
        composed(model, inputs, options, "6.f.1", rules=rules, target=[0, contrast(1)])
    alone = [x[:1] for x in inputs], {k: v[:1] for k, v in (options["kwargs"] or {}).items()}
    single = explain(model, *alone[0], kwargs=alone[1], at=paths[0], target=1, rules="attnlrp")
    several = explain(model, *inputs, **options, at=paths[0], target=1, rules="attnlrp")
    for part in single.parts:
        torch.testing.assert_close(several[0].parts[part], single.parts[part], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_windows_that_hold_samples_compose_too():
    model, inputs, options = call("swin")
    composed(model, inputs, options, "swin.encoder.layers.0.blocks.1")
    _, inner, _ = composed(model, inputs, options, "swin.encoder.layers.0.blocks.1.attention")
    assert next(iter(inner.inside.values())).shape[0] == 2


def value_of(module, model, inputs, options):
    found = []
    handle = module.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        model(*inputs, **(options["kwargs"] or {}))
    finally:
        handle.remove()
    return found[0][0] if isinstance(found[0], tuple) else found[0]


def test_relevance_there_is_value_times_gradient():
    """An independent twin: LRP-0 of a ReLU network is gradient x input at every layer."""
    model, inputs, _ = call("resnet")
    kept = []
    handle = model[4].register_forward_hook(lambda module, args, output: kept.append(output))
    output = model(inputs[0].requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad(output[:, 3].sum(), kept)
    why = explain(model, inputs[0].detach(), target=3, rules="zero", at="4").check()
    torch.testing.assert_close(why.inside["4"], (kept[0] * gradient).detach(), rtol=0, atol=1e-12)
    assert list(why.inputs) == []  # all of it passes through
    assert not any(name.startswith(("bias:0", "bias:4")) for name in why.parts)
    assert set(why.shares()) == {"inputs", "at", "biases", "constants", "rules"}
    torch.testing.assert_close(sum(why.shares().values()), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(("rules", "biases"), [("gamma", "zero"), ("zero", "distribute"), ("EpsilonPlusFlat", "distribute")])
def test_biases_that_are_given_away_compose_too(rules, biases):
    """And every target of a list is what it is alone: nothing of one backward pass is left for the next."""
    model, inputs, _ = call("resnet")
    composed(model, inputs, {}, "4", rules=rules, biases=biases)
    together = explain(model, *inputs, target=[0, 1], rules=rules, biases=biases)
    for t in range(2):
        alone = explain(model, *inputs, target=t, rules=rules, biases=biases)
        assert list(together.only(t).parts) == list(alone.parts)
        for name, part in alone.parts.items():
            torch.testing.assert_close(together.only(t).parts[name], part, rtol=0, atol=1e-12)


def test_between_a_convolution_and_its_batch_norm():
    """Rules that fold the one into the other leave them apart where somebody asks for what is between."""
    model, inputs, _ = call("resnet")
    there = explain(model, *inputs, target=2, rules="gamma", at="6.f.0").check()
    assert there.inside["6.f.0"].shape == value_of(model[6].f[0], model, inputs, {"kwargs": None}).shape
    assert "bias:6.f.1" in there.parts  # the batch norm's own
    unit = explain(model, *inputs, target=2, rules="gamma", through=("6.f.0", 3)).check()
    torch.testing.assert_close(unit.whole, there.inside["6.f.0"][:, 3].sum((1, 2)), rtol=0, atol=1e-12)


def test_the_units_of_a_layer_are_the_whole_of_it():
    """What flows through each channel, summed over all channels, is the explanation of those who have no way around."""
    model, inputs, _ = call("resnet")
    full = explain(model, *inputs, target=2, rules="gamma")
    inner = explain(model, *inputs, target=2, rules="gamma", at="4")
    channels = inner.inside["4"].shape[1]
    units = [explain(model, *inputs, target=2, rules="gamma", through=("4", k)).check() for k in range(channels)]
    for k, unit in enumerate(units):
        torch.testing.assert_close(unit.whole, inner.inside["4"][:, k].flatten(1).sum(1), rtol=0, atol=1e-12)
    for name in units[0].parts:  # what is before the layer
        total = sum(unit.parts[name] for unit in units)
        torch.testing.assert_close(total, full.parts[name], rtol=0, atol=1e-10)
    assert units[0].label() == "class 2 through unit 0 of 4"
    mask = torch.zeros(channels, 1, 1)
    mask[3] = mask[5] = 1
    pair = explain(model, *inputs, target=2, rules="gamma", through=("4", mask)).check()
    torch.testing.assert_close(pair.inputs["input"], units[3].inputs["input"] + units[5].inputs["input"], rtol=0, atol=1e-12)


def test_the_units_of_a_sequence_are_its_features():
    name, path = "lstm", "rnn"
    model, inputs, options = call(name)
    options |= {"target": 0, "rules": "attnlrp"}
    inner = explain(model, *inputs, **options, at=path)
    unit = explain(model, *inputs, **options, through=(path, 7)).check()
    torch.testing.assert_close(unit.whole, inner.inside[path][..., 7].sum(1), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=rf"{path!r} has no unit 99: its output .* has \d+ along axis 2"):
        explain(model, *inputs, **options, through=(path, 99))


def test_from_one_module_through_another():
    model, inputs, _ = call("resnet")
    between = explain(model, *inputs, target=2, at="0", through=("4", 1)).check()
    assert set(between.inside) == {"0"}
    through = explain(model, *inputs, target=2, through=("4", 1))
    torch.testing.assert_close(between.whole, through.whole)
    # no convolution is cut from its batch norm: the first is
    assert all(name == "at:0" or name.startswith("bias:") for name in between.parts)


class Twice(nn.Module):
    """A block that is called twice, an identity, and a module that sees no input."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.nothing, self.table = nn.Identity(), nn.Embedding(3, 4)

    def forward(self, x):
        return self.head(self.nothing(self.block(self.mix(self.block(x)))) + self.table(torch.tensor(1)))


@pytest.fixture
def twice():
    torch.manual_seed(0)
    return Twice().double().eval(), torch.randn(3, 4, dtype=torch.float64)


def test_a_module_that_is_called_twice(twice):
    model, x = twice
    with pytest.raises(ValueError, match=r"'block' is called 2 times: say which call, block#1 to block#2"):
        explain(model, x, at="block")
    with pytest.raises(ValueError, match=r"'block#3': 'block' is called 2 times, so the number lies in 1 to 2"):
        explain(model, x, at="block#3")
    first = explain(model, x, target=0, at="block#1").check()
    second = explain(model, x, target=0, at="block#2").check()
    h = model.block(x)
    assert torch.equal(first.inside["block#1"] == 0, h == 0)
    assert torch.equal(second.inside["block#2"] == 0, model.block(model.mix(h)) == 0)
    assert "bias:mix" in first.parts
    assert "bias:mix" not in second.parts
    composed(model, (x,), {}, "block#1")


def test_a_traced_recording_has_modules_too(twice):
    """Python that branches on data is recorded by tracing; paths and calls are those of the model."""
    model, x = twice

    class Branching(Twice):
        def forward(self, x):
            return super().forward(x * 2 if x.sum() > 1e9 else x)

    traced = Branching().double().eval()
    traced.load_state_dict(model.state_dict())
    for path in ("mix", "block#2"):
        torch.testing.assert_close(
            explain(traced, x[:1], target=0, at=path).inside[path], explain(model, x[:1], target=0, at=path).inside[path]
        )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mixx", "Twice has no module 'mixx': did you mean 'mix'"),
        ("nothing", r"'nothing' \(Identity\) is called by nothing that was recorded: it does nothing here"),
        ("table", "nothing that 'table' hands on depends on an input"),
        ("", "name a module: the output itself is what '' would be"),
    ],
)
def test_an_unknown_module(twice, path, message):
    model, x = twice
    with pytest.raises(ValueError, match=message):
        explain(model, x, at=path)


def test_a_bad_unit(twice):
    model, x = twice
    with pytest.raises(TypeError, match=r"through is \(path of a module, unit\)"):
        explain(model, x, through="mix")
    with pytest.raises(TypeError, match="a unit is the number of a channel or feature"):
        explain(model, x, through=("mix", 0.5))
    with pytest.raises(ValueError, match=r"mask through 'mix' has shape \(3,\), the module's output \(3, 4\)"):
        explain(model, x, through=("mix", torch.ones(3)))
    with pytest.raises(ValueError, match="nothing leads from"):
        explain(model, x, at="head", through=("mix", 0))


def test_a_list_of_targets_through_a_unit(twice):
    model, x = twice
    together = explain(model, x, target=[0, 1, contrast(0, 1)], through=("mix", 2)).check()
    for t, target in enumerate([0, 1, contrast(0, 1)]):
        alone = explain(model, x, target=target, through=("mix", 2))
        torch.testing.assert_close(together.only(t).inputs["x"], alone.inputs["x"], rtol=0, atol=1e-12)


# -- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 29])
def test_the_heat_map_of_an_inner_module_keeps_its_sum(side):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU())
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double().eval()
    why = explain(model, torch.randn(2, 3, side, side + 3, dtype=torch.float64), target=1, at="0").check()
    picture = why.heatmap(sample=1)
    assert picture.shape == (side, side + 3)
    torch.testing.assert_close(picture.sum(), why.inside["0"][1].sum(), rtol=1e-12, atol=0)
    assert picture.abs().sum() > 0
    assert why[1].picture == [side, side + 3]  # two numbers, and two samples
    torch.testing.assert_close(why[1].heatmap(), picture)


def test_bilinear_where_the_grid_is_a_divisor():
    """There the hats of torch's interpolation sum to the factor, and the map is torch's own, spread over the pixels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)).double().eval()
    why = explain(model, torch.randn(1, 1, 12, 12, dtype=torch.float64), target=0, at="1").check()
    small = why.inside["1"].sum(1, keepdim=True)
    large = nn.functional.interpolate(small, size=(12, 12), mode="bilinear", align_corners=False)[0, 0] / 16
    torch.testing.assert_close(why.heatmap(), large, rtol=1e-12, atol=1e-15)
    assert why.grouped({"at:1": patches(3, 3, 3)}).inside["1"].shape == (1, 1)
