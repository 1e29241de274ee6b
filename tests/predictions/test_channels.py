"""Channels are found where they are: moving them elsewhere, by any way that a model may take, changes no picture."""

import numpy as np
import pytest
import torch
from torch import nn

import termwise as tw
from termwise.predictions import explain
from termwise.predictions.by_layer import carried_by_patches, carried_by_tokens
from termwise.predictions.channels import channel_axes, channel_axis


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Last(nn.Module):
    """A residual block on (batch, height, width, channels)."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + self.linear(x).relu()


class First(Last):
    """The same on (batch, channels, height, width)."""

    def forward(self, x):
        return x + nn.functional.conv2d(x, self.linear.weight[:, :, None, None], self.linear.bias).relu()


class Maps(nn.Module):
    """Blocks of either kind on a picture of 8 x 6 entries and 8 channels: the same function."""

    def __init__(self, block):
        super().__init__()
        self.first, self.patches, self.head = block is First, nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 3)
        self.blocks = nn.ModuleList([block(8), block(8)])

    def forward(self, x):
        x = self.patches(x)
        x = x if self.first else x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3) if self.first else (1, 2)))


class Text(nn.Module):
    """Convolutions over tokens, as many as there are channels."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList([nn.Conv1d(6, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1)])

    def forward(self, ids):
        x = self.table(ids).transpose(1, 2)
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x.mean(2))


@pytest.mark.parametrize("batch", [1, 2])
def test_maps_are_summed_over_channels_wherever_these_are(batch):
    x = rand(batch, 3, 32, 24)
    last, first = (explain(seeded(lambda b=b: Maps(b)), x, target=1, layers="auto", rules="zero") for b in (Last, First))
    assert set(last.channels.values()) == {-1}
    assert set(first.channels.values()) == {-3}
    assert list(last.channels) == list(last.layers) == ["blocks.0", "blocks.1"]
    shown = [why.pictures(batch - 1)[0].by_layer for why in (last, first)]
    np.testing.assert_allclose(*shown, rtol=0, atol=1e-12)
    maps = np.stack([value[-1].sum(0).numpy() for value in first.layers.values()])
    assert [b.sum() for b in shown[0]] == pytest.approx([m.sum() for m in maps])
    widest = carried_by_patches({"l": last.layers["blocks.0"]}, {"l": -1}, (14, 14), 0)["l"]
    assert widest.sum().item() == pytest.approx(float(last.layers["blocks.0"][0].sum()))


def test_what_flows_through_a_channel_and_the_map_at_a_module_are_of_channels_too():
    x = rand(2, 3, 32, 24)
    models = [seeded(lambda b=b: Maps(b)) for b in (Last, First)]
    last, first = (explain(m, x, target=1, rules="zero", through=("blocks.0", 6)) for m in models)
    torch.testing.assert_close(last.whole, first.whole)
    last, first = (explain(m, x, target=1, rules="zero", at="blocks.0") for m in models)
    torch.testing.assert_close(last.heatmap(), first.heatmap())
    assert last.channels == {"blocks.0": -1}


@pytest.mark.parametrize("batch", [1, 3])
def test_words_of_a_convolution_with_as_many_channels(batch):
    ids = torch.arange(6 * batch).view(batch, 6)
    why = explain(seeded(Text), ids, target=0, names=[[f"w{i}" for i in range(6)]] * batch, layers="auto")
    shown = why.pictures()[0]
    assert shown.layers == ["blocks.0", "blocks.1"]
    for row, value in zip(shown.by_layer, why.layers.values(), strict=True):
        assert row == pytest.approx(value[0].sum(0).tolist())
        assert row != pytest.approx(value[0].sum(1).tolist())


def test_tokens_of_a_transformer_are_summed_over_their_width():
    make = lambda: nn.Sequential(
        *(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2)), nn.Linear(8, 2)
    )
    why = explain(seeded(make), rand(2, 8, 8), target=(0, 1), layers="auto")
    assert why.channels == {"0": -1, "1": -1, "2": -1}
    carried = carried_by_tokens(why.layers, why.channels, 8, 1)
    assert carried["0"] == pytest.approx(why.layers["0"][1].sum(1).tolist())


def test_a_layer_whose_channels_are_not_known_is_left_out():
    model = nn.Sequential(nn.Tanh(), nn.Tanh(), nn.Flatten(), nn.Linear(192, 2)).double().eval()
    why = explain(model, rand(1, 3, 8, 8), target=0, layers=["0", "1"])
    assert why.channels == {}
    assert why.pictures()[0].layers == ()
    assert carried_by_patches(why.layers, {}, (8, 8), 0) == {}
    assert carried_by_tokens({"l": torch.ones(1, 4, 4)}, {}, 4, 0) == {}


class Turned(nn.Module):
    """A transformer that has its samples second."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 2)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, 0.0) for _ in range(2)])

    def forward(self, x):
        x = self.patches(x).flatten(2).permute(2, 0, 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(0))


@pytest.mark.parametrize("batch", [1, 2])
def test_values_that_do_not_begin_with_samples_are_left_out(batch):
    why = explain(seeded(Turned), rand(batch, 3, 16, 16), target=0, layers="auto")
    assert len(why.layers) == 2
    assert why.channels == {}


def moved(name):
    """Ways of moving the four channels of (2, 4, 6, 5) maps, and where they are then."""
    return {
        "permute": (lambda x: x.permute(0, 2, 3, 1), -1),
        "transpose": (lambda x: x.transpose(1, 3), -1),
        "movedim": (lambda x: x.movedim(1, 2), -2),
        "mT": (lambda x: x.mT, -3),
        "flatten": (lambda x: x.flatten(2), -2),
        "tokens": (lambda x: x.flatten(2).mT, -1),
        "windows": (lambda x: x.permute(0, 2, 3, 1).reshape(2, 3, 2, 5, 4).transpose(1, 2), -1),
        "apart": (lambda x: x.permute(0, 2, 3, 1).reshape(2, 6, 5, 2, 2), None),
        "whole": (lambda x: x.flatten(1), None),
        "unsqueeze": (lambda x: x.unsqueeze(2), -4),
        "select": (lambda x: x[..., 1], -2),
        "of them": (lambda x: x[:, 1], None),
        "row": (lambda x: x[:, :, 1], -2),
        "some": (lambda x: x[:, 1:3, ::2], -3),
        "mean": (lambda x: x.mean((2, 3), keepdim=True) * x, -3),
        "gone": (lambda x: x.mean((2, 3)), None),
        "beside": (lambda x: torch.cat([x, x.tanh()], 1), -3),
        "split": (lambda x: x.split(2, 1)[0], -3),
        "pool": (lambda x: nn.functional.max_pool2d(x, 2), -3),
        "at odds": (lambda x: x.permute(0, 2, 1, 3).repeat(1, 1, 1, 1)[:, :4, :4, :4] + x[:, :4, :4, :4], None),
        "scores": (lambda x: x.flatten(2).mT @ x.flatten(2), None),
        "values": (lambda x: (x.flatten(2).mT @ x.flatten(2)).softmax(-1) @ x.flatten(2).mT, -1),
        "units": (lambda x: x.flatten(2) @ torch.ones(30, 7, dtype=x.dtype), -1),
        "gate": (lambda x: x * x.mean((2, 3)).sigmoid()[:, :, None, None], -3),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "permute", "transpose", "movedim", "mT", "flatten", "tokens", "windows", "apart", "whole", "unsqueeze", "select",
        "of them", "row", "some", "mean", "gone", "beside", "split", "pool", "at odds", "gate",
        "scores", "values", "units",
    ],
)  # fmt: skip
def test_channels_are_followed(name):
    move, axis = moved(name)
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    program = tw.capture(lambda x: move(layer(x)), rand(2, 3, 6, 5))
    assert channel_axes(program).get(program.output.name) == axis
    if axis is not None:
        ndim = program.output.meta["val"].ndim
        assert channel_axis(program, program.output.name) == ndim + axis
        if name not in (
            "some",
            "split",
            "beside",
            "pool",
            "values",
            "units",
        ):  # the definition: of a map in which channel 2 alone is anything
            alone = torch.zeros(2, 4, 6, 5, dtype=torch.float64)
            alone[:, 2] = 1
            found = move(alone).movedim(axis, 0)
            assert found.flatten(1).any(1).tolist() == [False, False, True, False]
