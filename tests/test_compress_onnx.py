"""Compressed models as ONNX: what onnxruntime computes is what torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import termwise as tw
from termwise.weights.low_rank_linear import GroupedLinear, LowRankLinear, Pivoted

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def seeded(make) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 6))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


class Asked(nn.Module):
    """A layer whose attributes are read, so that it must be a `LowRankLinear`."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 6)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)) / self.up.in_features)


CASES = {
    "mlp": (mlp, (24,), lambda m, x: tw.compress(m, 0.6, data=x, progress=False), Pivoted),
    "cnn": (cnn, (3, 10, 10), lambda m, x: tw.compress(m, 0.6, data=x, progress=False), Pivoted),
    "low rank": (Asked, (24,), lambda m, x: tw.compress(m, 0.6, data=x, method="aware", progress=False), LowRankLinear),
    "cp": (cnn, (3, 10, 10), lambda m, x: tw.compress(m, 0.6, data=x, method="cp", progress=False), nn.Sequential),
}


def same(small: nn.Module, x: torch.Tensor, path, dynamo: bool) -> None:
    small.eval()
    options = {"dynamic_shapes": ({0: "samples"},)} if dynamo else {"dynamic_axes": {"x": {0: "samples"}}, "input_names": ["x"]}
    torch.onnx.export(small, (x[:4],), str(path), dynamo=dynamo, **options)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert np.abs(found - small(x).numpy()).max() < 1e-5


@pytest.mark.filterwarnings("ignore:the output changes")  # weights are random, and errors large
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("case", list(CASES))
def test_onnxruntime_computes_what_torch_does(case, dynamo, tmp_path):
    make, shape, smaller, kind = CASES[case]
    model, x = seeded(make), normal(128, *shape)
    small = smaller(model, x).model
    assert any(isinstance(m, kind) for m in small.modules())
    same(small, x, tmp_path / "small.onnx", dynamo)


@pytest.mark.parametrize("dynamo", [True, False])
def test_layers_in_groups(dynamo, tmp_path):
    model = seeded(lambda: nn.Sequential(GroupedLinear(normal(4, 5, 6)), nn.ReLU(), nn.Linear(20, 6)))
    same(model, normal(16, 24), tmp_path / "small.onnx", dynamo)
