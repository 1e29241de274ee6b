"""What Bermeitinger, Hrycej and Handschuh (2023) claim of deep and parallel networks, measured on residual MLPs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.core.claims import claim

from ..shallow import shallow

SEEDS = range(5)
LAYOUTS = ("deep", "parallel", "no skip")


class DeepNet(nn.Module):
    """A stem, n blocks of two layers, a head. Last layers of blocks are drawn 1/sqrt(n) as large: their sum is one of n."""

    def __init__(self, n: int, width: int, *, inputs: int = 64, outputs: int = 10, skip: bool = True) -> None:
        super().__init__()
        self.stem, self.head, self.skip = nn.Linear(inputs, width), nn.Linear(width, outputs), skip
        self.act: Callable[[Tensor], Tensor] = F.relu
        self.up, self.down = (nn.ModuleList(nn.Linear(width, width) for _ in range(n)) for _ in range(2))
        for up, down in zip(self.up, self.down, strict=True):
            nn.init.normal_(up.weight, std=(2 / width) ** 0.5)
            nn.init.normal_(down.weight, std=(1 / (width * (n if skip else 1))) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        z = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            z = z + down(self.act(up(z))) if self.skip else down(self.act(up(z)))
        out: Tensor = self.head(z)
        return out


def _net(seed: int, n: int, width: int, dtype: torch.dtype = torch.float64, *, skip: bool = True) -> DeepNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DeepNet(n, width, skip=skip).to(dtype).eval()


def _input(seed: int, rows: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _off(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


@claim(
    "shallow-again",
    statement="the branches side by side are one broad layer, of the same parameters",
    published="a single broad layer composed of all initially stacked layers in parallel",
    exact=True,
    note="16 blocks of width 64, 5 seeds, float64, against a loop over the branches; control: the deep network",
)
def branches_are_one_wide_layer() -> tuple[str, bool]:
    worst, control, fused = 0.0, math.inf, True
    for seed in SEEDS:
        deep, x = _net(seed, 16, 64), _input(seed)
        flat = shallow(deep, x)
        with torch.no_grad():
            z = deep.stem(x)
            loop = deep.head(z + sum(down(F.relu(up(z))) for up, down in zip(deep.up, deep.down, strict=True)))
            worst = max(worst, _off(flat(x), loop), _off(flat.merged()(x), loop))
            control = min(control, _off(deep(x), loop))
        fused &= flat.fused == 16 and sum(p.numel() for p in flat.parameters()) == sum(p.numel() for p in deep.parameters())
    return f"off by {worst:.0e} at most; the deep network by {control:.2g} at least", fused and worst < 1e-12 < 0.05 < control


@claim(
    "shallow-again",
    statement="with the terms of order 2 kept, two blocks are reproduced exactly",
    published="the expansion of the stack; terms of higher order are dropped",
    exact=True,
    note="two blocks of width 16, 5 seeds, float64; control: three blocks, where paths through all three are missing",
)
def order_two_is_exact_for_two_blocks() -> tuple[str, bool]:
    off = {
        n: [_off(shallow(_net(s, n, 16), _input(s), order=2)(_input(s)), _net(s, n, 16)(_input(s))) for s in SEEDS]
        for n in (2, 3)
    }
    measured = f"off by {max(off[2]):.0e} at most; three blocks by {min(off[3]):.1e} at least"
    return measured, max(off[2]) < 1e-12 < 1e-4 < min(off[3])


@claim(
    "shallow-again",
    statement="substituting the parallel network for the deep one, with its weights, errs by the square of the branches' size",
    published="the expansion suggests truncating the higher-order terms",
    note="8 tanh blocks, last layers times 2^-5 ... 2^-9, 5 seeds, float64: slope of log error; control: order 2 has slope 3",
)
def substitution_errs_by_the_square() -> tuple[str, bool]:
    slopes: dict[int, list[float]] = {1: [], 2: []}
    sizes = [2.0**-k for k in range(5, 10)]
    for seed in SEEDS:
        x, deep = _input(seed), _net(seed, 8, 16)
        deep.act = torch.tanh  # a kink that is crossed costs order 2 its third power
        flat = shallow(deep, x)
        last = [(p, p.detach().clone()) for name, p in flat.model.named_parameters() if name.startswith("down")]
        found = []
        for size in sizes:
            with torch.no_grad():
                for parameter, full in last:
                    parameter.copy_(full * size)
            found.append(flat.truncation(x))
        for order, rows in slopes.items():
            rows.append(math.log(found[0][order] / found[-1][order]) / math.log(sizes[0] / sizes[-1]))
    one, two = ((min(s), max(s)) for s in slopes.values())
    measured = f"slope {one[0]:.3f} to {one[1]:.3f}; with order 2 {two[0]:.3f} to {two[1]:.3f}"
    return measured, 1.9 < one[0] <= one[1] < 2.1 and 2.8 < two[0] <= two[1] < 3.2


@claim(
    "shallow-again",
    statement="the broad layer runs faster than its branches one after another: 1.5 times at 16 blocks of width 64",
    published="potential to accelerate the training process",
    note="forward, 32 samples, float32, one thread, best of 40, interleaved; control: branches in a loop gain nothing",
)
def the_wide_layer_is_faster() -> tuple[str, bool]:
    deep, x = _net(0, 16, 64, torch.float32), _input(0, 32, torch.float32)
    flat = shallow(deep, x)
    wide, loop = flat.merged(), _Loop(deep)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            best = _fastest({"deep": deep, "wide": wide, "side by side": loop}, x)
    finally:
        torch.set_num_threads(threads)
    ratio = {name: best["deep"] / seconds for name, seconds in best.items()}
    measured = (
        f"deep {best['deep'] * 1e6:.0f} us; one wide layer {ratio['wide']:.1f} times as fast, branches in a loop "
        f"{ratio['side by side']:.2f} times"
    )
    return measured, ratio["wide"] > 1.5 > 1.3 > ratio["side by side"]


class _Loop(nn.Module):
    def __init__(self, deep: DeepNet) -> None:
        super().__init__()
        self.deep = deep

    def forward(self, x: Tensor) -> Tensor:
        z = total = self.deep.stem(x)
        for up, down in zip(self.deep.up, self.deep.down, strict=True):
            total = total + down(F.relu(up(z)))
        out: Tensor = self.deep.head(total)
        return out


def _fastest(models: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> dict[str, float]:
    best = dict.fromkeys(models, math.inf)
    for _ in range(40):
        for name, model in models.items():
            started = time.perf_counter()
            for _ in range(5):
                model(x)
            best[name] = min(best[name], (time.perf_counter() - started) / 5)
    return best


# -- trained from the start -------------------------------------------------------------------------------------------


def _losses(layout: str, seed: int, n: int, width: int, steps: int) -> tuple[float, float]:
    """Training loss (last 20 steps) and loss on 360 held-out digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels, labels = torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    held, kept = order[:360], order[360:]
    model: nn.Module = _net(seed, n, width, torch.float32, skip=layout != "no skip")
    if layout == "parallel":
        model = shallow(model, pixels[:2])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    recent = []
    for _ in range(steps):
        batch = kept[torch.randint(len(kept), (64,), generator=generator)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        recent.append(loss.item())
    with torch.no_grad():
        return sum(recent[-20:]) / 20, F.cross_entropy(model(pixels[held]), labels[held]).item()


def _parity(depths: Sequence[int], widths: Sequence[int], steps: int) -> tuple[str, bool]:
    """Held-out loss of both layouts over a grid: their mean difference beside the spread over seeds; and without skips."""
    seeds = range(3)
    grid = list(itertools.product(depths, widths))
    table = {(layout, *at): torch.tensor([_losses(layout, s, *at, steps)[1] for s in seeds]) for layout in LAYOUTS for at in grid}
    gaps = torch.stack([table["parallel", *at] - table["deep", *at] for at in grid])
    spread = torch.stack([table[layout, *at].var() for layout in LAYOUTS[:2] for at in grid]).mean().sqrt().item()
    worse = [(table["no skip", n, w].mean() / table["deep", n, w].mean()).item() for n, w in grid if n == max(depths)]
    apart = {at: gap.mean().item() for at, gap in zip(grid, gaps, strict=True) if abs(gap.mean().item()) > 2 * spread}
    clear = "; ".join(f"{'deep' if gap > 0 else 'parallel'} wins at {n} x {w} by {abs(gap):.2f}" for (n, w), gap in apart.items())
    means = {layout: torch.cat([table[layout, *at] for at in grid]).mean().item() for layout in LAYOUTS}
    size, deepest = gaps.mean(1).abs().mean().item(), max(depths)
    measured = (
        f"held-out loss: deep {means['deep']:.3f}, parallel {means['parallel']:.3f}; difference {gaps.mean().item():+.3f} on "
        f"average, {size:.3f} in size, spread over seeds {spread:.3f}; at depth {deepest} without skips {min(worse):.1f} to "
        f"{max(worse):.1f} times the loss; {clear or 'no configuration apart by more than 2 spreads'}"
    )
    return measured, size <= 2 * spread and min(worse) > 1.2


@claim(
    "shallow-again",
    statement="trained from the start, deep and parallel layouts reach the same held-out loss; without skips depth is worse",
    published="both layouts produced similar results in terms of training and validation set loss",
    note="residual MLPs on digits, depth 2 and 12, width 16, 3 seeds, 200 steps of Adam at one rate; control: no skips",
)
def layouts_reach_the_same_loss() -> tuple[str, bool]:
    return _parity((2, 12), (16,), 200)


@claim(
    "shallow-again",
    statement="and so over a larger grid: 24 configurations",
    published="6912 combinations of layers, filters, kernels and other choices",
    slow=True,
    note="depth 2, 4, 8, 16, width 8 and 16, 3 seeds, 300 steps; control: no skip connections",
)
def layouts_reach_the_same_loss_over_a_grid() -> tuple[str, bool]:
    return _parity((2, 4, 8, 16), (8, 16), 300)
