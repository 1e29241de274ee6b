"""Jets beside their peers: nested torch.func.jvp and jax.experimental.jet, orders 1 to 10, in one interleaved run.

    python benchmarks/jets.py [--quick]

Subjects: an MLP (64 inputs, 3 x 256, tanh, 64 samples) and a small transformer (2 blocks of width 64, 16 tokens, 4 samples,
layer norm, GELU). float64, one thread each; jax is jitted, and has an environment of its own that is made under the cache folder.
The transformer of nested jvp has its layer norms written out: through the fused one nested jvp is wrong from order 2 on.
Then Laplacians: collapsed beside the same Taylor mode uncollapsed and nested forward over forward. Writes docs/data/jets.json.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import numpy as np
import torch
from peers.vit import Block
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import termwise as tw
from termwise.core.capture import capture
from termwise.testing.cost import peak
from termwise.zoo.assets import cache_folder

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "data" / "jets.json"
JAX = "jax==0.7.2"


class Transformer(nn.Module):
    """Blocks over tokens that are given as vectors."""

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x)).mean(1))


class WrittenOut(nn.Module):
    """A layer norm in primitives."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        d = x - x.mean(-1, keepdim=True)
        return d / (d.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


def written_out(model: nn.Module) -> nn.Module:
    """The same network without a fused layer norm."""
    import copy

    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, WrittenOut(child))
    return model


def nested(f, x: Tensor, h: Tensor, order: int) -> Tensor:  # type: ignore[no-untyped-def]
    """The highest derivative along a line, one jvp around another."""

    def along(t: Tensor) -> Tensor:
        return f(x + t * h)

    for _ in range(order):  # (fused attention has no forward derivative)
        along = (lambda g: lambda t: torch.func.jvp(g, (t,), (torch.ones_like(t),))[1])(along)
    with sdpa_kernel(SDPBackend.MATH):
        return along(torch.zeros((), dtype=x.dtype))


def timed(function, rounds: int = 5) -> float:  # type: ignore[no-untyped-def]
    """The least seconds of several."""
    best = math.inf
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - started)
    return best


class Jax:
    """The peer's process; every question may fail, and then says why."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        home = cache_folder() / "peers" / "jax"
        python = home / "bin" / "python"
        if not list(home.glob("lib/python*/site-packages/jax/experimental/jet.py")):
            venv.create(home, clear=True, with_pip=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", JAX], check=True)
        self.folder = tempfile.TemporaryDirectory()
        np.savez(f"{self.folder.name}/weights.npz", **arrays)
        command = [str(python), str(HERE / "peers" / "jax_jet.py"), f"{self.folder.name}/weights.npz"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, name: str, order: int) -> dict:
        """Seconds and derivatives."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name} {order}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main() -> None:
    """Print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="orders 1, 2, 4 and 8 in one round, and nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)
    )
    subjects = {
        "mlp": (mlp.double().eval(), torch.randn(64, 64).double()),
        "transformer": (Transformer().double().eval(), torch.randn(4, 16, 64).double()),
    }
    arrays = {}
    for name, (model, x) in subjects.items():
        model.requires_grad_(False)
        h = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
        arrays |= {f"{name}:x": x.numpy(), f"{name}:h": h.numpy()}
        arrays |= {f"{name}.{k}": v.numpy() for k, v in model.state_dict().items()}
    jax = Jax(arrays)
    rows = []
    for name, (model, x) in subjects.items():
        h = torch.from_numpy(arrays[f"{name}:h"])
        twin, program = written_out(model), capture(model, x)  # recorded once, as jax's function is compiled once
        for order in (1, 2, 4, 8) if quick else range(1, 11):
            series = [h, *[torch.zeros_like(x)] * (order - 1)]

            def ours(program=program, x=x, series=series):  # type: ignore[no-untyped-def]
                with torch.no_grad():
                    return tw.jet(program, [x], [series], convention="derivatives")

            best = {"forward": math.inf, "ours": math.inf, "jax": math.inf, "nested": math.inf}
            found = ours()
            for _ in range(1 if quick else 5):
                best["forward"] = min(best["forward"], timed(lambda m=model, x=x: m(x)))
                best["ours"] = min(best["ours"], timed(ours))
                answer = jax.ask(name, order)
                if "seconds" in answer:
                    best["jax"] = min(best["jax"], answer["seconds"])
                if order <= 5:
                    best["nested"] = min(best["nested"], timed(lambda m=twin, x=x, h=h, k=order: nested(m, x, h, k), 1))
            row = {"subject": name, "order": order, **{k: v * 1e3 for k, v in best.items() if v < math.inf}}
            row["memory"] = peak(ours) / max(1, peak(lambda m=model, x=x: m(x)))
            if "derivatives" in answer:
                mine = torch.stack([c.flatten()[:3] for c in (found[0], *found[1])])
                theirs = torch.tensor(answer["derivatives"], dtype=mine.dtype)
                row["difference to jax"] = ((mine - theirs).abs() / theirs.abs().clamp_min(1e-12)).max().item()
            else:
                row["jax error"] = answer["error"]
            if order <= 5:
                last = nested(twin, x, h, order)
                row["difference to nested"] = ((found[1][-1] - last).abs().max() / last.abs().max()).item()
            rows.append(row)
            print({k: round(v, 3) if isinstance(v, float) and v > 1e-3 else v for k, v in row.items()}, flush=True)
    laplacians = []
    for n in (10, 50):
        model = nn.Sequential(nn.Linear(n, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).double().eval()
        model.requires_grad_(False)
        x = torch.randn(256, n).double()
        program = capture(model, x)
        basis = torch.eye(n, dtype=x.dtype)

        def collapsed(program=program, x=x):  # type: ignore[no-untyped-def]
            with torch.no_grad():
                return tw.functions.laplacian(program, x)[:, 0]

        def standard(program=program, x=x, basis=basis):  # type: ignore[no-untyped-def]
            wide = x.expand(n, *x.shape).reshape(-1, n)
            lines = basis.unsqueeze(1).expand(-1, *x.shape).reshape(-1, n)
            with torch.no_grad():
                return 2 * tw.jet(program, [wide], [[lines, torch.zeros_like(lines)]])[1][1].reshape(n, -1).sum(0)

        def forward_over_forward(model=model, x=x, basis=basis):  # type: ignore[no-untyped-def]
            def second(v: Tensor) -> Tensor:
                def slope(y: Tensor) -> Tensor:
                    return torch.func.jvp(model, (y,), (v.expand_as(y),))[1]

                return torch.func.jvp(slope, (x,), (v.expand_as(x),))[1][:, 0]

            return torch.func.vmap(second)(basis).sum(0)

        names = {"collapsed": collapsed, "standard": standard, "forward over forward": forward_over_forward}
        best = dict.fromkeys(names, math.inf)
        for _ in range(2 if quick else 7):
            for key, f in names.items():
                best[key] = min(best[key], timed(f, 1))
        values = [f() for f in names.values()]
        worst = max(((v - values[0]).abs().max() / values[0].abs().max()).item() for v in values)
        memory = {key: peak(f) / 2**20 for key, f in names.items()}
        laplacians.append({"n": n, "ms": {k: v * 1e3 for k, v in best.items()}, "MiB": memory, "largest difference": worst})
        print(laplacians[-1], flush=True)
    if not quick:
        environment = {"python": sys.version.split()[0], "torch": torch.__version__, "jax": JAX.partition("==")[2], "threads": 1}
        OUT.write_text(json.dumps({"environment": environment, "jets": rows, "laplacians": laplacians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
