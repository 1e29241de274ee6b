"""What Kaushal, Vaidhya and Rish (2023) claim of LoRD, measured on random layers, digits, and blocks of SmolLM2-135M."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from termwise.core.claims import claim
from termwise.testing.trained import Trained, _digits
from termwise.testing.trained_mlp import digits_mlp, digits_residual_mlp

from ..calibration import LayerStats
from ..compress import compress
from ..compressed import Compressed
from ..evidence import Evidence
from ..layers import Layer, find_layers
from ..lord import choose, domain_report, lord, type_sweep
from ..low_rank import at_rank, fit_aware, fit_svd
from .language import perplexity, prose_windows, source_windows, the_model

SEEDS = range(5)


@claim(
    "lord",
    statement="the projector on outputs is the whitened SVD, and is exact with fewer rows than inputs, where whitening fails",
    published="eigenvectors of the covariance of outputs, W' = V_r V_r^T W",
    exact=True,
    note="20 random layers up to 30 x 40 in float64, ranks 1 to 8; whitening by Cholesky, truncation and inverse; then 10 rows, "
    "where Cholesky breaks down, against a pseudo-inverse; control: truncation of W itself",
)
def whitened_is_projected() -> tuple[str, bool]:
    worst, few, control, broken = 0.0, 0.0, math.inf, 0
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        m, n, r = 10 + seed, 40 - seed, 1 + seed % 8
        layer = Layer("", nn.Linear(n, m, bias=False, dtype=torch.float64))
        layer.module.weight.data = torch.randn(m, n, generator=g, dtype=torch.float64)
        mix = torch.randn(n, n, generator=g, dtype=torch.float64)
        for rows in (200, 10):
            x = torch.randn(rows, n, generator=g, dtype=torch.float64) @ mix
            evidence = Evidence(layer, LayerStats.of(x), shrinkage=0.0)
            ours, plain = (_total(layer, fit(evidence), r) for fit in (fit_aware, fit_svd))
            gram = x.T @ x / rows
            if rows == 200:
                root = torch.linalg.cholesky(gram)
                back = torch.linalg.inv(root)
            else:
                broken += int(torch.linalg.cholesky_ex(gram).info != 0)
                values, vectors = torch.linalg.eigh(gram)
                kept = values > 1e-9 * values[-1]
                root = vectors[:, kept] * values[kept].sqrt()
                back = (vectors[:, kept] / values[kept].sqrt()).T
            u, s, v = torch.linalg.svd(layer.matrix @ root, full_matrices=False)
            whitened = u[:, :r] * s[:r] @ v[:r] @ back
            off = float(((ours - whitened) @ x.T).norm() / (whitened @ x.T).norm())
            worst, few = (max(worst, off), few) if rows == 200 else (worst, max(few, off))
            control = min(control, float(((plain - whitened) @ x.T).norm() / (whitened @ x.T).norm()))
    measured = (
        f"outputs off by {worst:.0e}, with 10 rows by {few:.0e} (Cholesky failed {broken} of 20 times); control {control:.2g}"
    )
    return measured, worst < 1e-9 and few < 1e-9 and broken >= 15 and control > 1e-2


def _total(layer: Layer, fitted: Any, rank: int) -> Tensor:
    found = at_rank(layer, fitted, rank).weight
    assert found is not None
    return found.total()


@claim(
    "lord",
    statement="a rank cut is no parameter cut: with 39.58 % fewer ranks 1536 x 576 keeps 83 %, a square layer grows to 121 %",
    published="ranks of linear layers are reduced by up to 39.58 %",
    exact=True,
    note="counted on modules that were built; control: `lord` leaves a layer dense at its break-even rank, and not at half of it",
)
def a_rank_cut_is_no_parameter_cut() -> tuple[str, bool]:
    shares: list[float] = []
    built: dict[bool, list[str]] = {True: [], False: []}
    for m, n in ((1536, 576), (576, 576)):
        layer = Layer("", nn.Linear(n, m, bias=False))
        full = min(m, n)
        rank = round((1 - 0.3958) * full)
        fitted = {"left": torch.zeros(m, full), "right": torch.zeros(full, n)}
        shares.append(sum(p.numel() for p in at_rank(layer, fitted, rank).module.parameters()) / (m * n))
        small = nn.Sequential(nn.Linear(n // 16, m // 16), nn.ReLU(), nn.Linear(m // 16, 4))
        rows = torch.ones(64, n // 16)
        even = math.ceil(m * n / 16 / (m + n))  # of the layer a sixteenth as wide
        for ranks in (even, even // 2):
            found = lord(small, {"*": 16 * ranks / full}, data=rows, keep=["2"])
            built[ranks == even].append(found.layers[0].choice)
    measured = f"{shares[0]:.1%} and {shares[1]:.1%} of the parameters; at break-even {built[True]}, at half of it {built[False]}"
    halves = all(choice.startswith("rank") for choice in built[False])
    return measured, 0.82 < shares[0] < 0.84 and 1.20 < shares[1] < 1.22 and halves and set(built[True]) == {"dense"}


# -- sweeps on digits -------------------------------------------------------------------------------------------------


def _batches(trained: Trained) -> list[tuple[Tensor, Tensor]]:
    images, labels = _digits()
    seen: Tensor = trained.seen  # type: ignore[assignment]
    own = labels[torch.cdist(seen, images.flatten(1)).argmin(1)]
    return list(zip(seen.split(64), own.split(64), strict=True))


def _perplexity(model: nn.Module, batches: list[Any]) -> float:
    with torch.no_grad():
        losses = [functional.cross_entropy(model(x), y, reduction="sum") for x, y in batches]
    return math.exp(float(sum(losses)) / sum(len(y) for _, y in batches))


@claim(
    "lord",
    statement="sweeps over types find ranks that are down by over 39.58 % together, at under 1 % of perplexity",
    published="ranks down by up to 39.58 % with under 1 % of perplexity",
    note="perceptrons and residual ones on digits, 5 seeds, medians of perplexity on held-out labels; 0.05 % was allowed for "
    "each type, for single sweeps add up to more (1 % each makes 1.8 and 4.9 %); control: truncated W costs twice that",
)
def sweeps_find_the_room() -> tuple[str, bool]:
    texts, holds = [], True
    for name, train in {"perceptron": digits_mlp, "residual": digits_residual_mlp}.items():
        rows = []
        for seed in SEEDS:
            trained = train(seed)
            data, held = _batches(trained), [(trained.inputs, trained.labels)]
            ratios = choose(type_sweep(trained.model, data, score=_perplexity), 0.0005)
            small = lord(trained.model, ratios, data=data)
            blind = lord(trained.model, ratios, data=data, shrinkage=1.0)  # the identity for G: truncation
            before = _perplexity(trained.model, held)
            increases = [_perplexity(s.model, held) / before - 1 for s in (small, blind)]
            rows.append([*increases, _rank_cut(small), small.kept])
        increase, wrong, cut, kept = (median(column) for column in zip(*rows, strict=True))
        texts.append(f"{name}: ranks down by {cut:.0%} ({kept:.0%} of parameters) at {increase:+.2%}, truncated {wrong:+.2%}")
        holds &= increase < 0.01 and wrong > 2 * increase and cut > 0.3958
    return "; ".join(texts), holds


def _rank_cut(small: Compressed) -> float:
    full = [min(row.shape) for row in small.layers]
    ranks = [small.parts[row.layer].rank if row.layer in small.parts else min(row.shape) for row in small.layers]
    return 1 - sum(ranks) / sum(full)


@claim(
    "lord",
    statement="the domain it was calibrated on suffers less than another, by a factor of 1.3 at least",
    published="models of one programming language leave room: monolingual code is where the ranks are low",
    note="digits, head kept, layers at 0.3 of their ranks, relative change of the output on held-out digits against the "
    "same by a quarter turn, 5 seeds, medians; 1.5 had been expected; control: truncated W knows no domain",
)
def other_domains_suffer_more() -> tuple[str, bool]:
    texts, holds = [], True
    for name, train, head in (("perceptron", digits_mlp, "6"), ("residual", digits_residual_mlp, "head")):
        factors: dict[str, list[float]] = {"lord": [], "svd": []}
        for seed in SEEDS:
            trained = train(seed)
            turned = trained.inputs.unflatten(1, (8, 8)).rot90(1, (1, 2)).flatten(1)
            for key, shrinkage in (("lord", 0.0), ("svd", 1.0)):
                small = lord(trained.model, 0.3, data=trained.seen, keep=[head], shrinkage=shrinkage)
                report = domain_report(trained.model, small.model, {"in": trained.inputs, "out": turned})
                factors[key].append(report["increase"][1] / report["increase"][0])
        ours, control = median(factors["lord"]), median(factors["svd"])
        texts.append(f"{name}: {ours:.2f} ({min(factors['lord']):.2f} at least), truncated {control:.2f}")
        holds &= ours > 1.3 > control
    return "; ".join(texts), holds


# -- a language model ---------------------------------------------------------------------------------------------------


@claim(
    "lord",
    statement="six blocks of SmolLM2-135M at 90 %: perplexity grows ten times less than with truncated layers",
    published="StarCoder 16B to 13.2B without loss on HumanEval",
    slow=True,
    note="one rank per type; calibrated on six windows of 256 tokens of one module of Python's library, measured on two of "
    "another and on two of English; 4-bit weights of a small model: no room of 39 % here, "
    "and no domain gap: prose grew as code did",
)
def a_language_model_and_its_domain() -> tuple[str, bool]:
    model, keep = the_model(blocks=6)
    data, domains = source_windows("argparse", 6), {"code": source_windows("textwrap", 2), "prose": prose_windows(2)}
    names = list(find_layers(model, keep)[0])
    found = {"dense": {k: perplexity(model, v) for k, v in domains.items()}}
    for method, options in (("lord", {}), ("lord, truncated", {"shrinkage": 1.0})):
        small = compress(model, 0.9, data=data, method="lord", keep=keep, progress=False, **options)
        found[method] = {k: perplexity(small.model, v) for k, v in domains.items()}
    growth = {m: {k: v[k] / found["dense"][k] - 1 for k in domains} for m, v in found.items()}
    measured = (
        "; ".join(f"{m}: code {v['code']:.3g}, prose {v['prose']:.3g}" for m, v in found.items()) + f" ({len(names)} layers)"
    )
    return measured, all(growth["lord"][k] < growth["lord, truncated"][k] / 10 for k in domains)
