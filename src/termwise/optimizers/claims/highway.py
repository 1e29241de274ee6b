"""What Fagnou et al. (2025) claim of Highway backpropagation, measured on random towers, a GRU and residual MLPs on digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.core.claims import claim

from ..highway import HighwayBackward, HighwayGradients, highway_gradients
from ..recurrent import highway_recurrent

SEEDS = range(5)


class Tower(nn.Module):
    """A linear stem, then z + s tanh(W_l z + b_l), weights of variance 1/width."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.stem, self.layers = nn.Linear(width, width), nn.ModuleList(nn.Linear(width, width) for _ in range(n))
        self.register_buffer("strength", torch.ones(()))

    def branch(self, i: int, z: Tensor) -> Tensor:
        out: Tensor = self.strength * torch.tanh(self.layers[i](z))
        return out

    def stream(self, x: Tensor) -> list[Tensor]:
        """z_1 ... z_(n+1)."""
        found = [self.stem(x)]
        for i in range(len(self.layers)):
            found.append(found[-1] + self.branch(i, found[-1]))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) to the same."""
        return self.stream(x)[-1]


@cache
def _recorded_once(n: int, width: int) -> Tower:
    return Tower(n, width).double().eval()


def _tower(seed: int, n: int, strength: float, width: int = 16, rows: int = 8) -> tuple[Tower, tuple[Tensor, Tensor]]:
    """A random tower (the same object for the same sizes, with other weights) with inputs and targets, float64."""
    model = _recorded_once(n, width)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model.strength.fill_(strength)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=width**-0.5)
        x, y = torch.randn(2, rows, width, dtype=torch.float64)
        return model, (x, y)


def _gru(seed: int, steps: int, remember: float = 0.0) -> tuple[nn.GRUCell, nn.Module, tuple[Tensor, Tensor]]:
    """A random cell whose update gate is raised by `remember`, a loss of its last state, and a sum of early inputs to recall."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cell, loss, x = nn.GRUCell(2, 16).double(), Recall(16).double(), torch.randn(steps, 8, 2, dtype=torch.float64)
    with torch.no_grad():
        cell.bias_ih[16:32] += remember
    return cell, loss, (x, x[: steps // 5, :, :1].sum(0))


class Recall(nn.Module):
    """Squared error of a linear reading of the last state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, 1)

    def forward(self, states: Tensor, y: Tensor) -> Tensor:
        """A number of (T, samples, width) and (samples, 1)."""
        return F.mse_loss(self.out(states[-1]), y)


@claim(
    "highway",
    statement="as many iterations as layers give the gradient: of residual towers and of a GRU through time",
    published="an iterative algorithm that approximates backpropagation, and is equal to it after L iterations",
    exact=True,
    note="tanh towers of 6 and 24 blocks, a GRU of 12 steps, 5 seeds, float64; control: one iteration less, at 6 blocks",
)
def all_paths_are_the_gradient() -> tuple[str, bool]:
    tower, recurrent, control = 0.0, 0.0, float("inf")
    for seed in SEEDS:
        for n in (6, 24):
            found = highway_gradients(*_one(*_tower(seed, n, 1.0)), iterations=n)
            tower = max(tower, found.errors()[-1])
            control = min(control, found.errors()[-2]) if n == 6 else control
        cell, loss, batch = _gru(seed, 12)
        recurrent = max(recurrent, highway_recurrent(cell, loss, batch, iterations=12).error())
    measured = f"towers off by {tower:.0e} at most, the GRU by {recurrent:.0e}; one iteration less: {control:.0e} at least"
    return measured, tower < 1e-12 and recurrent < 1e-12 and control > 1e-6


def _one(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[nn.Module, Callable[..., Tensor], tuple[Tensor, Tensor]]:
    return model, F.mse_loss, batch


@claim(
    "highway",
    statement="iteration k adds the sum over all choices of k blocks of the product of their Jacobians, and nothing else",
    published="a decomposition of the gradient as the sum of gradients flowing through all paths",
    exact=True,
    note="towers of 6 blocks, the stem's bias, subsets by dense Jacobians, 5 seeds; control: Jacobians at the next layer's input",
)
def iterations_are_sums_over_subsets() -> tuple[str, bool]:
    worst, control = 0.0, float("inf")
    for seed in SEEDS:
        model, batch = _tower(seed, 6, 1.0, width=5, rows=1)
        found = highway_gradients(*_one(model, batch), iterations=6)
        bias = [slices["stem.bias"] for slices in (_part(found, k) for k in range(7))]
        for shift in (0, 1):
            slow = _subsets(model, *batch, shift)
            off = max(((b - s).norm() / s.norm()).item() for b, s in zip(bias, slow, strict=True))
            worst, control = (max(worst, off), control) if shift == 0 else (worst, min(control, off))
    return f"orders off by {worst:.0e} at most; at the wrong input by {control:.2g} at least", worst < 1e-11 and control > 1e-2


def _part(found: HighwayGradients, k: int) -> dict[str, Tensor]:
    """Order k alone, by name of the parameter."""
    before = found.gradient(k - 1) if k else {}
    return {n: g - before[n] if k else g for n, g in found.gradient(k).items()}


def _subsets(model: Tower, x: Tensor, y: Tensor, shift: int) -> list[Tensor]:
    """d_0^(k), k = 0 ... n, by the definition: a product of dense Jacobians for every subset of the blocks."""
    stream = [z.detach() for z in model.stream(x)]
    n = len(model.layers)
    jacobians = [
        torch.autograd.functional.jacobian(lambda z, i=i: model.branch(i, z), stream[i + shift][0]).detach() for i in range(n)
    ]
    end = stream[-1].requires_grad_()
    (d,) = torch.autograd.grad(F.mse_loss(end, y), end)
    found = []
    for k in range(n + 1):
        total = torch.zeros_like(d[0])
        for chosen in itertools.combinations(range(n), k):
            one = d[0]
            for i in reversed(chosen):
                one = jacobians[i].mT @ one
            total += one
        found.append(total)
    return found


@claim(
    "highway",
    statement="few iterations suffice where blocks are small; where they are not, three of 24 leave a poor gradient",
    published="few iterations suffice (2 to 10, by the model)",
    note="24 blocks s tanh(W z + b), width 16, s = 0.1, 0.3, 1, 5 seeds, medians; control: 3 iterations at s = 1",
)
def small_blocks_need_few_iterations() -> tuple[str, bool]:
    table = {s: [highway_gradients(*_one(*_tower(seed, 24, s)), iterations=8) for seed in SEEDS] for s in (0.1, 0.3, 1.0)}
    errors = {s: torch.tensor([f.errors() for f in found]).median(0).values for s, found in table.items()}
    text = "; ".join(f"s = {s:g}: {', '.join(f'{e:.2g}' for e in row[:6].tolist())}" for s, row in errors.items())
    cosines = {s: torch.tensor([f.cosines()[3] for f in found]) for s, found in table.items()}
    norms = [f.norms()[3] for f in table[1.0]]
    least = ", ".join(f"{row.min():.4g}" for row in cosines.values())
    measured = (
        f"median error at K = 0 ... 5: {text}; least cosine at K = 3: {least}; norm there at s = 1: {min(norms):.2f} to "
        f"{max(norms):.2f} of the gradient's"
    )
    falling = all(bool((row[1:] < row[:-1]).all()) for row in errors.values())
    good = cosines[0.1].min() > 0.9999 and cosines[0.3].min() > 0.97
    return measured, falling and bool(good) and bool(cosines[1.0].max() < 0.97)


@claim(
    "highway",
    statement="at equal sequential depth K iterations beat a gradient through K blocks that takes the highway past the rest",
    published="approximates backpropagation iteratively (this comparison is ours)",
    note="24 blocks, s = 0.1, 0.3, 1, K = 1, 3, 6, 5 seeds; the K last blocks, or K spread evenly; cut off: no highway below",
)
def it_beats_truncated_backpropagation() -> tuple[str, bool]:
    ratios: dict[str, list[float]] = {"last": [], "even": [], "cut off": []}
    for s, seed in itertools.product((0.1, 0.3, 1.0), SEEDS):
        model, batch = _tower(seed, 24, s)
        found = highway_gradients(*_one(model, batch), iterations=6)
        for k in (1, 3, 6):
            even = {round((i + 1) * 24 / (k + 1)) for i in range(k)}
            rivals = {"last": (range(24 - k, 24), True), "even": (even, True), "cut off": (range(24 - k, 24), False)}
            for name, (through, highway) in rivals.items():
                slow = _truncated(model, *batch, through, highway)
                row = torch.cat([slow[n].flatten() for n in found.names])
                ratios[name].append(((row - found.whole[0]).norm() / found.whole.norm() / found.errors()[k]).item())
    measured = "error of the rival over that of K iterations: " + "; ".join(
        f"{name} {min(r):.2f} to {max(r):.3g}" for name, r in ratios.items()
    )
    return measured, all(min(r) > 1 for r in ratios.values())


def _truncated(model: Tower, x: Tensor, y: Tensor, through: Collection[int], highway: bool) -> dict[str, Tensor]:
    """Backpropagation through some blocks only; past the others along the highway, or not at all."""
    stream = [z.detach() for z in model.stream(x)]
    end = stream[-1].clone().requires_grad_()
    (d,) = torch.autograd.grad(F.mse_loss(end, y), end)
    found: dict[str, Tensor] = {}
    for i in reversed(range(len(model.layers))):
        z, own = stream[i].clone().requires_grad_(), dict(model.layers[i].named_parameters())
        back, *rest = torch.autograd.grad(model.branch(i, z), [z, *own.values()], d)
        found |= {f"layers.{i}.{n}": g for n, g in zip(own, rest, strict=True)}
        d = d + back if i in through else d if highway else torch.zeros_like(d)
    found |= {"stem.weight": d.mT @ x, "stem.bias": d.sum(0)}
    return found


@claim(
    "highway",
    statement="through time, with the update gate as highway, K iterations beat backpropagation truncated to K steps",
    published="adaptable to recurrent neural networks, whose linear state path is the residual path",
    note="GRU of 16 units, 50 steps, a sum of the first ten inputs read off at the end, gate raised by 2, 5 seeds; K = 0 ... 4",
)
def a_gate_is_a_highway_through_time() -> tuple[str, bool]:
    ratios, gated, cut = [], [], []
    for seed in SEEDS:
        cell, loss, batch = _gru(seed, 50, remember=2.0)
        highway = highway_recurrent(cell, loss, batch, iterations=4)
        truncated = highway_recurrent(cell, loss, batch, iterations=4, gate=lambda x, h: torch.zeros_like(h))
        gated.append(highway.errors())
        cut.append(truncated.errors())
        ratios += [b / a for a, b in zip(gated[-1], cut[-1], strict=True)]
    a, b = torch.tensor(gated).median(0).values.tolist(), torch.tensor(cut).median(0).values.tolist()
    measured = (
        f"median error at K = 0 ... 4: {', '.join(f'{e:.2g}' for e in a)}; truncated: {', '.join(f'{e:.2g}' for e in b)}; "
        f"ratio {min(ratios):.1f} at least"
    )
    return measured, min(ratios) > 1.5


@claim(
    "highway",
    statement="rounds are K + 1 whatever the depth; iterations for a cosine of 0.99 need not grow with the number of blocks",
    published="few iterations suffice (2 to 10, by the model), parallel over layers",
    note="blocks of strength 1/sqrt(L), L = 8, 16, 32, 64, 3 seeds, the largest; control: strength 1, where they grow with L",
)
def rounds_do_not_grow_with_depth() -> tuple[str, bool]:
    needed: dict[str, list[int]] = {"1/sqrt(L)": [], "1": []}
    rounds = set()
    for n in (8, 16, 32, 64):
        for rule, strength in (("1/sqrt(L)", n**-0.5), ("1", 1.0)):
            found = [highway_gradients(*_one(*_tower(seed, n, strength)), iterations=min(n, 24)) for seed in range(3)]
            needed[rule].append(max(next((k for k, c in enumerate(f.cosines()) if c > 0.99), 25) for f in found))
            rounds |= {f.rounds - len(f.parts) for f in found}
    text = "; ".join(f"strength {rule}: {', '.join(map(str, ks))}" for rule, ks in needed.items())
    small, large = needed["1/sqrt(L)"], needed["1"]
    measured = f"iterations for cosine 0.99 at L = 8, 16, 32, 64: {text}"
    return measured, rounds == {0} and small[-1] <= 2 * small[0] and small[-1] <= 8 and large[-1] >= 1.5 * large[0]


# -- trained here -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """z + V relu(W norm(z))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, z: Tensor) -> Tensor:
        """(batch, width) to the same."""
        out: Tensor = z + self.down(F.relu(self.up(self.norm(z))))
        return out


def digit_tower(seed: int, blocks: int = 16, width: int = 32) -> nn.Sequential:
    """64 pixels, pre-norm residual blocks, a norm, ten classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, width), *(Block(width) for _ in range(blocks)), nn.LayerNorm(width), nn.Linear(width, 10)
        ).eval()


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)


def _train(seed: int, iterations: int | None, steps: int = 150) -> tuple[float, float]:
    """Mean loss of the last 30 steps and accuracy on 360 digits it did not see; None: by backpropagation."""
    pixels, labels = _digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    held, kept = order[:360], order[360:]
    model = digit_tower(seed)
    answer = model if iterations is None else HighwayBackward(model, iterations)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        batch = kept[torch.randint(len(kept), (64,), generator=generator)]
        optimizer.zero_grad()
        loss = F.cross_entropy(answer(pixels[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        accuracy = (model(pixels[held]).argmax(1) == labels[held]).float().mean().item()
    return sum(losses[-30:]) / 30, accuracy


@claim(
    "highway",
    statement="16 blocks train with 3 iterations as with backpropagation (mean loss within 10 %), with none more slowly",
    published="major speedups can be achieved with minimal performance degradation",
    note="pre-norm residual MLPs on digits, 150 steps of Adam, same batches, 3 seeds; control: K = 0, 20 % above",
)
def few_iterations_train() -> tuple[str, bool]:
    table = {k: [_train(seed, k) for seed in range(3)] for k in (None, 3, 0)}
    loss = {k: sum(i for i, _ in rows) / len(rows) for k, rows in table.items()}
    worst = {k: min(a for _, a in rows) for k, rows in table.items()}
    named = {None: "backpropagation", 3: "K = 3", 0: "K = 0"}
    measured = "; ".join(f"{named[k]}: loss {loss[k]:.3f}, accuracy {worst[k]:.3f} at least" for k in table)
    return measured, loss[3] < 1.1 * loss[None] and loss[0] > 1.2 * loss[None] and worst[3] > 0.9 and worst[0] > 0.8
