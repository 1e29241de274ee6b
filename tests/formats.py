"""Files of every format that we write, kept as they were once written: tests/data/formats/KIND-FORMAT/NAME.

    python tests/formats.py

writes those of today's formats that are not there yet, and what they hold into expected.json. A file that is there is never written
again: it stands for what users have on their disks.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import termwise as tw
from termwise.core import decomposition
from termwise.core.decomposition import Decomposition
from termwise.engine import Dataset, Results, folder, run
from termwise.functions import staged
from termwise.layers import pldr
from termwise.weights import CalibrationStats, calibration, find_layers, saved

FOLDER = Path(__file__).parent / "data" / "formats"
FORMATS = {
    "decomposition": decomposition.FORMAT, "multistage": staged.FORMAT, "pldr": pldr.FORMAT, "statistics": calibration.FORMAT,
    "compressed": saved.FORMAT, "results": folder.FORMAT,
}  # fmt: skip


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 3)).double().eval()


def relu() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()


class Towers(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*(nn.Linear(4, 4) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = x + torch.tanh(layer(x))
        return x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.out = nn.Embedding(11, 4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        q, k, v = self.qkv(self.table(input_ids)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


IDS = torch.tensor([[1, 2, 3, 4], [3, 9, 10, 0]])


def towers() -> nn.Module:
    return Towers().double().eval()


def attention() -> nn.Module:
    return Attention().double().eval()


def loss() -> Decomposition:
    model = net()
    taus = [{n: 0.1 * k * torch.ones_like(p) for n, p in model.named_parameters()} for k in (1, -2)]
    return tw.functions.quadratic(model, nn.functional.mse_loss, rand(2, 6), torch.zeros(2, 3).double(), taus)


def skipped() -> Decomposition:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=6, num_attention_heads=2)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    model = LlamaForCausalLM(config).double().eval()
    return tw.computation.depth_terms(model, ids, tw.computation.DepthDecay(0.8, 2, 3), prompt_length=4)


def tones() -> Decomposition:
    t = torch.arange(64, dtype=torch.float64) / 64
    return tw.functions.activation_spectrum(torch.square, 3 * torch.cos(2 * torch.pi * 4 * t), fs=64)


def means() -> Decomposition:
    model = nn.Sequential(nn.Conv1d(1, 4, 5), nn.ReLU(), nn.Conv1d(4, 2, 5), nn.ReLU()).double().eval()
    return tw.functions.dc_report(model, rand(2, 1, 16))


def small_pldr() -> Any:
    config = tw.layers.PLDRConfig(
        vocab_size=12, d_model=8, n_layers=1, n_heads=2, d_ff=8, metric_layers=1, metric_denses=1, metric_hidden=4
    )
    return tw.layers.PLDRForCausalLM(config).double()


MAKE: dict[str, Callable[[], Decomposition]] = {
    "Decomposition": lambda: tw.tangent(net()).decompose(rand(2, 6)),
    "Explanation": lambda: tw.explain(net(), rand(2, 6), target=1, classes=["a", "b", "c"]),
    "MeanExplanation": lambda: tw.predictions.explain_dataset(net(), rand(4, 6).split(2), target=1),
    "TokenDecomposition": lambda: tw.decompx(attention(), IDS),
    "AttentionExplanation": lambda: tw.chefer(attention(), IDS, target=1),
    "Expansion": lambda: tw.expand(net(), rand(2, 6), rand(2, 6).sin(), order=3, at=0.1),
    "ResidualExpansion": lambda: tw.residual_expansion(towers(), rand(2, 4), order=2),
    "SubsetExpansion": lambda: tw.functions.subset_expansion(towers(), rand(2, 4)),
    "LinearityScores": lambda: next(iter(tw.functions.linearity_scores(relu(), rand(4, 6)).values())),
    "TaylorShiftExpansion": lambda: tw.layers.taylor_shift_expansion(*(rand(2, 2, 5, 4) for _ in "qkv")),
    "CompositionalLoss": loss,
    "Spectrum": tones,
    "DCReport": means,
    "HighwayGradients": lambda: tw.optimizers.highway_gradients(
        towers(), nn.functional.mse_loss, (rand(2, 4), torch.zeros(2, 4).double()), iterations=2
    ),
    "DiagonalSSM": lambda: tw.toeplitz_to_ssm(rand(16, 2), decay=0.99),
    "DepthTerms": skipped,
    "Invariance": lambda: tw.layers.invariance(small_pldr(), torch.arange(24).reshape(2, 2, 6) % 12),
    "Factorization": lambda: tw.weights.tucker2(rand(4, 5, 3), (2, 2)),
    "CURDecomposition": lambda: tw.weights.cur(rand(8, 6), rank=3),
    "CPDecomposition": lambda: tw.weights.cp(rand(4, 5, 3), rank=2),
}  # fmt: skip


def write_stages(path: Path) -> None:
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)
    tw.MultiStage(stages=2, hidden=(5,), iterations=30).fit(x, torch.sin(2 * x + 1)).save(path)


def write_pldr(path: Path) -> None:
    small_pldr().save(path)


def write_statistics(path: Path) -> None:
    model = net()
    CalibrationStats.collect(model, [rand(40, 6)], find_layers(model)[0]).save(path)


def write_compressed(folder: Path) -> None:
    tw.compress(net(), 0.6, data=rand(40, 6), progress=False).save(folder)


def write_results(path: Path) -> None:
    from engine.subjects import Lengths

    with tempfile.TemporaryDirectory() as place:
        data, out = Path(place, "lines.txt"), Path(place, "out")
        data.write_text("one\nthree\nbad\nfour\n")
        run(Lengths(), Dataset.open(data), out, workers=1, batch_size=2)
        shutil.copytree(out, path, ignore=shutil.ignore_patterns("run.jsonl", ".lock"))
    manifest = path / "manifest.json"  # without the folder of the data, which is one of this machine
    manifest.write_text(manifest.read_text("utf-8").replace(str(data), data.name), "utf-8")


def look(path: Path) -> dict[str, Any]:
    """What a file holds: of each tensor its shape and its first numbers as stored, and what is computed from them."""
    kind = path.parent.name.rpartition("-")[0]
    if kind == "decomposition":
        d = Decomposition.load(path)
        stored = {"whole": d.whole, **d.parts}
        return {"class": type(d).__name__, "stored": {k: _numbers(v) for k, v in stored.items()}, "computed": _numbers(d.total())}
    if kind == "multistage":
        return {"computed": _numbers(tw.MultiStage.load(path).predict(torch.linspace(-1, 1, 5, dtype=torch.float64)))}
    if kind == "results":
        found = Results(path)
        return {"stored": {f"row {i}": _numbers(d.whole) for i, d in enumerate(found)}, "computed": _numbers(found[1].total())}
    if kind == "pldr":
        return {"computed": _numbers(tw.layers.PLDRForCausalLM.load(path)(IDS).detach())}
    if kind == "statistics":
        stats = CalibrationStats.load(path)
        return {"stored": {name: _numbers(stats[name].mean) for name in stats}, "computed": _numbers(stats["0"].scatter)}
    return {"computed": _numbers(tw.load_compressed(path, net())(rand(2, 6)).detach())}


def _numbers(t: Tensor) -> list[float]:
    t = torch.view_as_real(t) if t.is_complex() else t
    return [*t.shape, *t.flatten()[:6].tolist()]


def main() -> None:
    expected = FOLDER / "expected.json"
    known = json.loads(expected.read_text("utf-8")) if expected.exists() else {}
    writers: dict[str, Callable[[Path], Any]] = {
        **{f"decomposition-{FORMATS['decomposition']}/{name}.safetensors": lambda p, m=make: m().save(p) for name, make in MAKE.items()},
        f"multistage-{FORMATS['multistage']}/stages.safetensors": write_stages,
        f"pldr-{FORMATS['pldr']}/model.safetensors": write_pldr,
        f"statistics-{FORMATS['statistics']}/layers.safetensors": write_statistics,
        f"compressed-{FORMATS['compressed']}/net": write_compressed,
        f"results-{FORMATS['results']}/lines": write_results,
    }  # fmt: skip
    for name, write in writers.items():
        path = FOLDER / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        write(path)
        known[name] = look(path)
        sys.stdout.write(f"{name}\n")
    lines = (f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known))
    expected.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
