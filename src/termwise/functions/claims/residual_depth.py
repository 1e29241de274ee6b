"""What Dherin and Munn (2025) claim of residual depth, measured on random towers and on ones trained here on digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.core.claims import claim

from ..residual_paths import residual_expansion
from ..scale_residuals import scale_residuals
from ..subset_expansion import subset_expansion

SEEDS = range(5)


class ResidualTower(nn.Module):
    """z + act(W_n z + b_n) after ... after z + act(W_1 z + b_1), weights of variance 1/width."""

    def __init__(self, n: int, width: int, act: Callable[[Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=bias) for _ in range(n))
        self.act = act
        for parameter in self.layers.parameters():
            nn.init.normal_(parameter, std=width**-0.5)

    def forward(self, z: Tensor) -> Tensor:
        """(batch, width) to the same."""
        for layer in self.layers:
            z = z + self.act(layer(z))
        return z


def _linear(z: Tensor) -> Tensor:
    return z


def _tower(seed: int, n: int, width: int, act: Callable[[Tensor], Tensor], **options: bool) -> tuple[ResidualTower, Tensor]:
    """A random tower and four inputs, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResidualTower(n, width, act, **options).double().eval(), torch.randn(4, width, dtype=torch.float64)


def _off(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


@claim(
    "residual-depth",
    statement="the term of order 2 is the sum of g_j'(z) g_i(z) over pairs i < j, with derivatives at the input z of the tower",
    published="the Residual Expansion Theorem",
    exact=True,
    note="tanh towers of 8 blocks, 5 seeds, float64, by jvps of each block; control: derivatives at the running stream",
)
def order_two_is_the_sum_over_pairs() -> tuple[str, bool]:
    worst, control = 0.0, math.inf
    for seed in SEEDS:
        model, z = _tower(seed, 8, 16, torch.tanh)
        found = residual_expansion(model, z, order=2).parts["order_2"]
        sums = []
        for streams in (False, True):
            points, total = [z], torch.zeros_like(z)
            for layer in model.layers:
                points.append(points[-1] + torch.tanh(layer(points[-1])).detach() * streams)
            for i, j in itertools.combinations(range(8), 2):
                first = torch.tanh(model.layers[i](points[i])).detach()
                total += torch.func.jvp(nn.Sequential(model.layers[j], nn.Tanh()), (points[j],), (first,))[1].detach()
            sums.append(total)
        worst, control = max(worst, _off(found, sums[0])), min(control, _off(found, sums[1]))
    return f"off by {worst:.0e} at most; with the control by {control:.2g} at least", worst < 1e-12 < 1e-2 < control


@claim(
    "residual-depth",
    statement="a tower of n linear blocks is the sum of its 2^n paths, order k that of C(n, k) ordered products",
    published="depth n is an ensemble of 2^n paths in n + 1 levels, the k-th of C(n, k)",
    exact=True,
    note="n = 1 ... 8, each path multiplied out, 5 seeds, float64; control: without the last order something is left",
)
def linear_towers_are_their_paths() -> tuple[str, bool]:
    worst, whole, control, counted = 0.0, 0.0, math.inf, True
    for seed in SEEDS:
        for n in (1, 3, 5, 8):
            model, z = _tower(seed, n, 8, _linear, bias=False)
            e = residual_expansion(model, z, order=n)
            for k in range(n + 1):
                paths = []
                for subset in itertools.combinations(range(n), k):
                    v = z
                    for i in subset:
                        v = v @ model.layers[i].weight.T
                    paths.append(v.detach())
                counted &= len(paths) == math.comb(n, k)
                worst = max(worst, _off(e.parts[f"order_{k}"], torch.stack(paths).sum(0)))
            whole = max(whole, e.error())
            control = min(control, residual_expansion(model, z, order=n - 1).error())
    measured = f"orders off by {worst:.0e}, the sum by {whole:.0e} at most; without the last order by {control:.0e} at least"
    return measured, counted and worst < 1e-11 and whole < 1e-11 and control > 1e-9


@claim(
    "residual-depth",
    statement="non-linear towers: a series in the strength converges at 1/n, diverges at 1 and says so; over subsets it is exact",
    published="the expansion holds for small strengths; the ensemble view is stated for networks at strength 1",
    note="tanh, 8 blocks of width 16, 5 seeds, orders 3, 10, 30; subsets against modules left out; control: the summary at 1/n",
)
def the_series_diverges_at_one() -> tuple[str, bool]:
    errors: dict[float, list[list[float]]] = {1 / 8: [], 0.5: [], 1.0: []}
    said, silent, radii, subsets = True, True, [], 0.0
    for seed in SEEDS:
        model, z = _tower(seed, 8, 16, torch.tanh)
        for strength, rows in errors.items():
            found = [residual_expansion(model, z, order=k, scale=strength) for k in (3, 10, 30)]
            rows.append([e.error() for e in found])
            if strength == 1:
                said &= all("DIVERGES" in e.summary() and e.diverges() for e in found[1:])
                radii.append(float(found[2].radius))
            elif strength == 1 / 8:
                silent &= not any(e.diverges() for e in found)
        pair = subset_expansion(model, z).check(1e-11).term(2, 5)
        values = {s: _only(model, z, s) for s in ((), (2,), (5,), (2, 5))}
        subsets = max(subsets, _off(pair, values[2, 5] - values[2,] - values[5,] + values[()]))
    text = "; ".join(
        f"strength {s:g}: {', '.join(f'{torch.tensor(rows)[:, i].median():.0e}' for i in range(3))}" for s, rows in errors.items()
    )
    measured = (
        f"median remainder at orders 3, 10, 30: {text}; estimated radius {min(radii):.2g} to {max(radii):.2g}; "
        f"a subset's term off by {subsets:.0e} at most"
    )
    small, large = torch.tensor(errors[1 / 8])[:, 2].max().item(), torch.tensor(errors[1.0])[:, 2].min().item()
    return measured, small < 1e-12 and large > 1e3 and said and silent and subsets < 1e-11 and max(radii) < 1


def _only(model: ResidualTower, z: Tensor, kept: tuple[int, ...]) -> Tensor:
    """The tower of some of its layers."""
    for i in kept:
        z = z + model.act(model.layers[i](z)).detach()
    return z


@claim(
    "residual-depth",
    statement="without scaling the output grows exponentially with depth; with 1/sqrt(n) and 1/n it does not",
    published="the number of paths explodes, and with it the signal; scaling each block tames it",
    note="linear blocks of variance 1/width, width 64, n = 8, 32, 128, 3 seeds; R^2 of log |f| / |x| over n; control: strength 1",
)
def unscaled_towers_explode() -> tuple[str, bool]:
    depths, seeds = (8, 32, 128), range(3)
    growth = {rule: torch.zeros(len(seeds), len(depths), dtype=torch.float64) for rule in ("1", "1/sqrt(n)", "1/n")}
    for seed in seeds:
        for column, n in enumerate(depths):
            model, z = _tower(seed, n, 64, _linear, bias=False)
            for rule, table in growth.items():
                out = model(z) if rule == "1" else scale_residuals(model, z, rule=rule)(z)
                table[seed, column] = (out.norm() / z.norm()).detach()
    logs = growth["1"].log().mean(0)
    fit = torch.corrcoef(torch.stack([torch.tensor(depths, dtype=torch.float64), logs]))[0, 1].square().item()
    per_block = math.exp((logs[-1] - logs[0]).item() / (depths[-1] - depths[0]))
    deepest = {rule: table[:, -1].max().item() for rule, table in growth.items()}
    measured = (
        f"|f| / |x| at n = 128, at most: strength 1 {deepest['1']:.0e} (x {per_block:.2f} per block, R^2 {fit:.4f}), "
        f"1/sqrt(n) {deepest['1/sqrt(n)']:.2f}, 1/n {deepest['1/n']:.2f}"
    )
    return measured, fit > 0.99 and per_block > 1.2 and deepest["1/sqrt(n)"] < 2.5 and deepest["1/n"] < 1.5


# -- trained here -----------------------------------------------------------------------------------------------------


class DeepMLP(nn.Module):
    """64 pixels, n residual blocks of two layers without normalisation, ten classes."""

    def __init__(self, n: int, width: int = 32) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.up, self.down = (nn.ModuleList(nn.Linear(width, width) for _ in range(n)) for _ in range(2))
        for layer in (*self.up, *self.down):
            nn.init.normal_(layer.weight, std=(2 / width) ** 0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 64) to logits."""
        z = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            z = z + down(F.relu(up(z)))
        out: Tensor = self.head(z)
        return out


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)


@cache
def _trained(rule: str, seed: int, n: int, steps: int = 120) -> tuple[nn.Module, float, float]:
    """A deep MLP under a rule: itself, its accuracy on 360 digits it did not see, its last training loss."""
    pixels, labels = _digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    held, kept = order[:360], order[360:]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = DeepMLP(n).eval()
    if rule != "1":
        model = scale_residuals(model, pixels[:2], rule=rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        batch = kept[torch.randint(len(kept), (128,), generator=generator)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        accuracy = (model(pixels[held]).argmax(1) == labels[held]).float().mean().item()
    return model, accuracy, sum(losses[-10:]) / 10


@claim(
    "residual-depth",
    statement="32 blocks without normalisation do not train unscaled; scaled by 1/n, 1/sqrt(n) or SkipInit they do",
    published="scaling each residual module makes deep networks trainable without normalisation",
    note="MLPs on scikit-learn's digits, 120 steps of SGD at one learning rate, 3 seeds, held-out accuracy; control: strength 1",
)
def scaled_towers_train() -> tuple[str, bool]:
    found = {rule: [_trained(rule, seed, 32)[1] for seed in range(3)] for rule in ("1", "1/n", "1/sqrt(n)", "skipinit")}
    measured = "accuracy, 3 seeds: " + "; ".join(f"{r}: {', '.join(f'{a:.2f}' for a in rows)}" for r, rows in found.items())
    return measured, max(found["1"]) < 0.3 and all(min(rows) > 0.85 for rule, rows in found.items() if rule != "1")


@claim(
    "residual-depth",
    statement="smaller strength is capacity control: trained, the mean squared Jacobian is smaller with 1/n than 1/sqrt(n)",
    published="scaling acts as a capacity control that implicitly regularises the model's complexity (geometric complexity)",
    note="16 blocks on digits, 3 seeds, mean |d logits / d pixels|^2 over 200 held-out digits; control: before training too",
)
def smaller_strength_is_simpler() -> tuple[str, bool]:
    pixels, _ = _digits()
    table = {}
    for rule in ("1/n", "1/sqrt(n)"):
        for steps in (0, 120):
            table[rule, steps] = [_complexity(_trained(rule, seed, 16, max(steps, 1))[0], pixels[:200]) for seed in range(3)]
    text = {steps: [b / a for a, b in zip(table["1/n", steps], table["1/sqrt(n)", steps], strict=True)] for steps in (0, 120)}
    accuracy = [_trained(rule, seed, 16)[1] for rule in ("1/n", "1/sqrt(n)") for seed in range(3)]
    measured = (
        f"geometric complexity, 1/sqrt(n) over 1/n: at the start {min(text[0]):.2f} to {max(text[0]):.2f}, trained "
        f"{min(text[120]):.2f} to {max(text[120]):.2f}; accuracy {min(accuracy):.2f} to {max(accuracy):.2f}"
    )
    return measured, min(text[120]) > 1 and min(accuracy) > 0.85


def _complexity(model: nn.Module, x: Tensor) -> float:
    """Mean squared Frobenius norm of the Jacobian."""
    x = x.clone().requires_grad_()
    logits = model(x)
    rows = [torch.autograd.grad(logits[:, c].sum(), x, retain_graph=True)[0] for c in range(logits.shape[1])]
    return torch.stack(rows).square().sum((0, 2)).mean().item()
