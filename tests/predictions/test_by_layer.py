"""Relevance at many layers in one pass: each is what the explanation from that layer on finds there, and pictures keep its sum."""

import json
import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import termwise as tw
from termwise.predictions import explain, explain_dataset, words
from termwise.predictions.by_layer import carried_by_patches, carried_by_tokens, short
from termwise.predictions.layers import MOST, repeated
from termwise.testing.architectures import build

built = cache(build)


def call(name: str, batch: int = 2):
    subject = built(name, batch=batch).to(torch.float64)
    return subject.model, subject.inputs, {"kwargs": subject.kwargs, "target": 1}


@pytest.mark.parametrize(
    ("name", "paths", "more"),
    [
        ("resnet", ["1", "4", "6.f", "7.0"], {"rules": "zero"}),
        ("resnet", ["1", "4", "6.f", "6.f.1"], {"rules": "gamma"}),  # which folds batch norms
        ("resnet", ["4", "6"], {"rules": "gamma", "biases": "zero"}),
        ("resnet", ["4", "6"], {"rules": "zero", "biases": "distribute"}),
        ("bert", ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.0.attention", "bert.pooler"], {"rules": "attnlrp"}),
        ("bert", ["bert.encoder", "bert.encoder.layer.1"], {"biases": "absorb"}),  # one value of two modules
        ("vit", ["vit.layers.0", "vit.layers.1.mlp.fc1"], {}),
        pytest.param("mixtral", ["model.layers.0", "model.layers.1"], {}, marks=pytest.mark.slow),
        pytest.param("swin", ["swin.encoder.layers.0.blocks.1.attention", "swin.encoder.layers.1"], {}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_layer_is_what_the_explanation_from_there_on_finds(name, paths, more):
    model, inputs, options = call(name)
    plain = explain(model, *inputs, **options, **more)
    why = explain(model, *inputs, **options, **more, layers=paths)
    assert list(why.parts) == list(plain.parts)
    assert all(torch.equal(why.parts[n], plain.parts[n]) for n in plain.parts)  # to look changes nothing
    assert set(why.layers) == set(paths)
    for path in paths:
        there = explain(model, *inputs, **options, **more, at=path)
        torch.testing.assert_close(why.layers[path], there.inside[path], rtol=0, atol=1e-10)
        rest = sum((v for n, v in there.contributions().items() if n != f"at:{path}"), there.remainder)
        torch.testing.assert_close(why.whole - why.passing()[path], rest, rtol=0, atol=1e-10)


def test_all_layers_take_one_backward_pass(monkeypatch):
    model, inputs, options = call("vit")
    explain(model, *inputs, **options, layers="auto")
    passes, real = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or real(*a, **k))
    assert len(explain(model, *inputs, **options, layers="auto").layers) == 2
    assert len(passes) == 1


def test_a_list_of_targets_and_little_memory_give_the_same():
    model, inputs, options = call("bert", batch=3)
    options["target"] = [0, 1]
    why = explain(model, *inputs, **options, layers="auto")
    assert why.layers["bert.encoder.layer.0"].shape == (3, 2, 10, 32)
    pieces = explain(model, *inputs, **options, layers="auto", max_memory="3MB")
    for t in range(2):
        alone = explain(model, *inputs, kwargs=options["kwargs"], target=t, layers="auto")
        for path, value in alone.layers.items():
            torch.testing.assert_close(why.only(t).layers[path], value, rtol=0, atol=1e-12)
            torch.testing.assert_close(pieces.only(t).layers[path], value, rtol=0, atol=1e-12)


def test_samples_files_and_means_keep_the_layers(tmp_path):
    model, inputs, options = call("bert", batch=3)
    why = explain(model, *inputs, **options, layers="auto")
    for chosen in (why[-1], why[2:], why[torch.tensor([2])]):
        assert all(torch.equal(chosen.layers[n], v[2:]) for n, v in why.layers.items())
    back = tw.Decomposition.load(why.save(tmp_path / "why"))
    assert list(back.layers) == list(why.layers)
    assert back.channels == chosen.channels == why.channels == dict.fromkeys(why.layers, -1)
    assert all(torch.equal(back.layers[n], v) for n, v in why.layers.items())
    kwargs = options.pop("kwargs")
    mean = explain_dataset(model, [{k: v[i : i + 1] for k, v in kwargs.items()} for i in range(3)], **options, layers="auto")
    assert mean.channels == why.channels
    for path, value in why.layers.items():
        torch.testing.assert_close(mean.layers[path][0], value.mean(0), rtol=0, atol=1e-12)


def test_a_file_from_before_there_were_layers_is_read(tmp_path):
    why = explain(nn.Linear(3, 2).eval(), torch.randn(2, 3), target=0)
    path = why.save(tmp_path / "why")
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = json.loads(header["termwise"])
    del content["fields"]["layers"], content["fields"]["channels"]
    save_file(tensors, path, {**header, "termwise": json.dumps(content)})
    back = tw.Decomposition.load(path)
    assert back.layers == {}
    assert torch.equal(back.whole, why.whole)


@pytest.mark.parametrize(
    ("name", "blocks"),
    {
        "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
        "resnet": ["1", "4", "5", "6", "7"],  # not the convolution that is folded into its batch norm
        "lstm": [],
    }.items(),
)
def test_the_blocks_that_a_model_repeats(name, blocks):
    model, inputs, options = call(name)
    assert list(explain(model, *inputs, **options, layers="auto").layers) == blocks


@pytest.mark.slow
def test_of_many_blocks_some_are_taken_evenly():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(60))).double().eval()
    found = [int(path) for path in explain(model, torch.randn(1, 2).double(), target=0, layers="auto").layers]
    assert len(found) == MOST
    assert found[-1] == 59
    assert {b - a for a, b in pairwise(found)} == {2, 3}


def test_a_wrapper_is_not_a_block():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert repeated(nn.Sequential(nn.BatchNorm1d(2), inner)) == ["1.0", "1.2"]
    assert repeated(nn.Linear(2, 2)) == []


def test_globs_stay_at_their_depth():
    model, inputs, options = call("bert")
    whole, inner = (
        explain(model, *inputs, **options, layers=glob).layers
        for glob in ("bert.encoder.layer.*", ["bert.encoder.layer.?.output"])
    )
    assert list(whole) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert list(inner) == ["bert.encoder.layer.0.output", "bert.encoder.layer.1.output"]
    assert torch.equal(whole["bert.encoder.layer.0"], inner["bert.encoder.layer.0.output"])


def test_what_cannot_be_read_is_refused():
    model, inputs, options = call("resnet")
    for layers, message in (
        ("6.g", "no module '6.g'.*did you mean"),
        ("x.*", r"no module 'x.\*'"),
        ("0", "'0' is one operation with the batch norm behind it under these rules: name the batch norm"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(model, *inputs, **options, rules="gamma", layers=layers)
    with pytest.raises(ValueError, match="leave it out, or at= and through="):
        explain(model, *inputs, **options, layers="auto", at="4")
    for layers in ([4], 4, None):
        with pytest.raises(TypeError, match="layers is 'auto', a path of a module or a list of them, got"):
            explain(model, *inputs, **options, layers=layers)
    with pytest.raises(ValueError, match="no module 'head'"):
        explain(lambda x: x.tanh(), torch.randn(2, 3), target=1, layers="head")
    assert explain(lambda x: x.tanh(), torch.randn(2, 3), target=1, layers="auto").layers == {}
    with pytest.raises(ValueError, match=r"carries relevance itself.*layers out"):
        explain(model, *inputs, **options, rules="dynamiclrp", layers="4")
    assert explain(model, *inputs, **options, rules="dynamiclrp", layers="auto").layers == {}


# -- as pictures show it ----------------------------------------------------------------------------------------------


def test_words_carry_the_sum_over_their_width():
    model, inputs, options = call("bert")
    names = [[f"w{i}" for i in range(10)]] * 2
    why = explain(model, *inputs, **options, layers="auto", names=names)
    shown = why.pictures(1)[0]
    assert shown.layers == ["layer.0", "layer.1"]
    for row, value in zip(shown.by_layer, why.layers.values(), strict=True):
        assert row == pytest.approx([float(v) for v in value[1].sum(-1)], abs=1e-14)
    assert "behind attention a position holds a mixture" in shown.note
    assert "lost by rules, or went to biases behind the block, or past it" in shown.note
    passes = why.pictures(1)[-1].lines
    assert passes[0].y == pytest.approx([float(v[1]) for v in why.passing().values()])
    assert [a + b for a, b in zip(passes[0].y, passes[1].y, strict=True)] == pytest.approx(passes[2].y)
    grouped = why.grouped(words(names))
    assert [type(p).__name__ for p in grouped.pictures(1)] == ["Words", "Waterfall", "Lines"]


@pytest.mark.slow
def test_two_texts_of_one_length_are_not_taken_for_one_another():
    model, _, options = call("t5")
    kwargs = {k: v[:, :6] for k, v in options["kwargs"].items() if k != "decoder_attention_mask"}
    names = [["a"] * 6] * 2
    why = explain(model, kwargs=kwargs, target=1, layers="auto", names=names)
    assert list(why.layers) == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    assert {v.shape[1] for v in why.layers.values()} == {6}
    assert why.pictures()[0].layers == ()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 40), st.integers(2, 40))
def test_patches_carry_what_lies_in_them(h, w, height, width):
    value = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(h * w), dtype=torch.float64)
    found = carried_by_patches({"l": value}, {"l": -3}, (height, width), 1)
    if h == w == 1:
        assert found == {}
        return
    grid = found["l"]
    assert max(grid.shape) == min(14, max(height, width))
    torch.testing.assert_close(grid.sum(), value[1].sum())
    rows, columns = math.lcm(h, grid.shape[0]), math.lcm(w, grid.shape[1])  # a slow twin: on a grid finer than both
    fine = value[1].sum(0).repeat_interleave(rows // h, 0).repeat_interleave(columns // w, 1) / (rows // h * columns // w)
    slow = fine.view(grid.shape[0], -1, grid.shape[1], columns // grid.shape[1]).sum((1, 3))
    torch.testing.assert_close(grid, slow)


def test_tokens_of_a_picture_lie_in_a_grid_behind_class_tokens():
    tokens = torch.arange(2.0 * 18 * 3).view(2, 18, 3)
    layers = {"l": tokens, "vector": torch.ones(2, 5), "odd": torch.ones(2, 23, 4)}
    grid = carried_by_patches(layers, dict.fromkeys(layers, -1), (32, 32), 0)
    assert list(grid) == ["l"]
    torch.testing.assert_close(grid["l"].sum(), tokens[0, 2:].sum().double())
    model, inputs, options = call("vit")
    why = explain(model, *inputs, **options, layers="auto")
    shown = why.pictures()[0]
    assert shown.by_layer.shape == (2, 14, 14)
    torch.testing.assert_close(float(shown.by_layer[1].sum()), float(why.layers["vit.layers.1"][0, 1:].sum()))
    assert carried_by_tokens(why.layers, why.channels, 5, 0) == {}


def test_short_names_keep_their_last_words():
    assert short(["a.b.0", "a.b.1"]) == ["b.0", "b.1"]
    assert short(["0", "1"]) == ["0", "1"]
    assert short(["encoder.block.0", "decoder.block.0"]) == ["encoder.block.0", "decoder.block.0"]
    assert short(["a.b.c"]) == ["b.c"]
    assert short([]) == []
    assert short(["model.model.layers.0", "model.model.layers.1"]) == ["layers.0", "layers.1"]


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(".".join), unique=True))
@example(["a.b.x", "b.b.x"])
def test_short_names_differ_where_names_do(names):
    shown = short(names)
    assert len(set(shown)) == len(names)
    assert all(name.endswith(s) for name, s in zip(names, shown, strict=True))
