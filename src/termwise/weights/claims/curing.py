"""What Park and Moon (2025) claim of CURing, measured on random matrices and on residual perceptrons trained here on digits."""

from __future__ import annotations

import copy
import itertools
import math
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from termwise import core
from termwise.core.claims import claim
from termwise.testing.trained_mlp import digits_residual_mlp

from ..calibration import CalibrationStats, LayerStats
from ..compressed import Compressed
from ..cur import cur
from ..curing import angular_distance, curing, heal
from ..layers import find_layers
from ..projection import project

SEEDS = range(3)
BLOCKS = [f"blocks.{i}" for i in range(8)]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _decaying(seed: int, m: int = 192, n: int = 300) -> Tensor:
    """A matrix with singular values exp(-i / 12)."""
    g = torch.Generator().manual_seed(seed)
    q, z = (torch.linalg.qr(_normal(g, size, m)).Q for size in (m, n))
    return (q * torch.exp(-torch.arange(m, dtype=torch.float64) / 12)) @ z.T


def _spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


@claim(
    "curing",
    statement="a matrix of rank r is C U R of r of its columns and rows; with U = W[p, q]^-1 those are reproduced at any rank",
    published="C and R are true columns and rows, U = C^+ W R^+ the best link between them",
    exact=True,
    note="20 random matrices up to 40 x 60 in float64, importance W or |W| |x|; control: one rank less leaves something",
)
def enough_rank_is_exact() -> tuple[str, bool]:
    whole, crossed, control = 0.0, 0.0, math.inf
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        r = 3 + seed % 9
        w = _normal(g, 20 + seed, r) @ _normal(g, r, 60 - seed)
        whole = max(whole, cur(w, r).error())
        control = min(control, cur(w, r - 1).error())
        full = w + _normal(g, *w.shape)
        found = cur(full, r, importance=full.abs() * _normal(g, w.shape[1]).abs(), link="cross")
        for chosen in (found.remainder[found.rows], found.remainder[:, found.columns]):
            crossed = max(crossed, float(chosen.norm() / full.norm()))
    measured = f"off by {whole:.0e}, the cross by {crossed:.0e} at most; with one rank less by {control:.1g} at least"
    return measured, whole < 1e-10 and crossed < 1e-10 and control > 1e-3


@claim(
    "curing",
    statement="the spectral error stays below |Q[q]^-1| |W (I - QQ^T)| + |P[p]^-1| |(I - PP^T) W|, whatever the importance",
    published="DEIM's error is bounded by (eta_p + eta_q) sigma_{r+1}",
    exact=True,
    note="40 matrices with decaying spectra, ranks 5 to 40; with W itself the bound is the published one; control: constants of "
    "interpolation with the newest row alone, as CURing's code has it",
)
def the_error_keeps_its_bound() -> tuple[str, bool]:
    worst, formula, ours, theirs = 0.0, 0.0, [], []
    for seed in range(40):
        w, r = _decaying(seed, 96, 120), 5 + 7 * (seed % 6)
        g = torch.Generator().manual_seed(seed)
        importance = None if seed % 2 else w.abs() * _normal(g, 120).abs()
        found = cur(w, r, importance=importance)
        worst = max(worst, _spectral(found.remainder) / found.bound())
        if importance is None:
            u, s, vh = torch.linalg.svd(w, full_matrices=False)
            etas = [_eta(u[:, :r], found.rows), _eta(vh[:r].T, found.columns)]
            formula = max(formula, abs(found.bound() / (sum(etas) * float(s[r])) - 1))
            ours.append(sum(etas))
            theirs.append(sum(_eta(base, _newest_row_alone(base)) for base in (u[:, :r], vh[:r].T)))
    measured = (
        f"error over bound at most {worst:.2f}; off the published formula by {formula:.0e}; "
        f"median eta_p + eta_q {median(ours):.0f}, with the newest row alone {median(theirs):.0f}"
    )
    return measured, worst <= 1 and formula < 1e-9 and median(theirs) > 2 * median(ours)


def _eta(basis: Tensor, chosen: Tensor) -> float:
    return 1 / float(torch.linalg.svdvals(basis[chosen])[-1])


def _newest_row_alone(basis: Tensor) -> Tensor:
    """Each vector less its projection on the newest one alone, matched at the newest row; taken rows are left out."""
    chosen = [int(basis[:, 0].abs().argmax())]
    for j in range(1, basis.shape[1]):
        p = chosen[-1]
        residual = (basis[:, j] - basis[:, j - 1] * basis[p, j] / basis[p, j - 1]).abs()
        residual[chosen] = 0
        chosen.append(int(residual.argmax()))
    return torch.tensor(chosen)


@claim(
    "curing",
    statement="DEIM's rows and columns serve better than those with the largest norms; none is as good as truncation",
    published="DEIM identifies informative rows and columns",
    note="spectral error over sigma_{r+1} at rank 20, 192 x 300, singular values exp(-i/12), 10 seeds; control: random ones",
)
def deim_chooses_well() -> tuple[str, bool]:
    rows: dict[str, list[float]] = {name: [] for name in ("deim", "qdeim", "norm", "random")}
    for seed in range(10):
        w = _decaying(seed)
        least = float(torch.linalg.svdvals(w)[20])
        for name, found in rows.items():
            g = torch.Generator().manual_seed(seed)
            found.append(_spectral(cur(w, 20, selection=name, generator=g).remainder) / least)  # type: ignore[arg-type]
    m = {name: median(found) for name, found in rows.items()}
    measured = ", ".join(f"{name} {value:.2f}" for name, value in m.items())
    best = min(min(found) for found in rows.values())
    return measured, max(m["deim"], m["qdeim"]) < 0.9 * m["norm"] < m["random"] and best >= 1


@claim(
    "curing",
    statement="|W| |x| chooses better than |W|; at the same rank plain SVD is better than both, the projector far better",
    published="weights chosen by the combined influence of magnitude and activation; minimal performance loss",
    note="every layer of 8 blocks at half its rank, relative error of its output on held-out digits, medians over 16 layers, "
    "3 seeds; control: norms shuffled among the inputs",
)
def activations_guide_the_choice() -> tuple[str, bool]:
    tables = []
    for seed in SEEDS:
        subject = digits_residual_mlp(seed)
        layers = {name: layer for name, layer in find_layers(subject.model)[0].items() if name.startswith("blocks")}
        known, held = (CalibrationStats.collect(subject.model, [x], layers) for x in (subject.seen, subject.inputs))
        g = torch.Generator().manual_seed(seed)
        for name, layer in layers.items():
            w, norms = layer.matrix.double(), known[name].norms
            importances = (w.abs() * norms, w.abs(), w.abs() * norms[torch.randperm(len(norms), generator=g)])
            tables.append(_output_errors(w, min(w.shape) // 2, importances, known[name], held[name]))
    columns = list(zip(*tables, strict=True))
    aware, blind, shuffled, svd, projector = map(median, columns)
    won = sum(a < b for a, b in zip(*columns[:2], strict=True)) / len(tables)
    measured = (
        f"|W| |x| {aware:.2f}, |W| {blind:.2f}, shuffled {shuffled:.2f}, SVD {svd:.2f}, projector {projector:.2f}; "
        f"|W| |x| before |W| in {won:.0%} of {len(tables)} layers"
    )
    return measured, aware < 0.95 * blind and won > 0.8 and aware < 0.95 * shuffled and projector < svd < aware


def _output_errors(w: Tensor, r: int, importances: tuple[Tensor, ...], known: LayerStats, held: LayerStats) -> list[float]:
    """Of CUR with each importance, of truncated SVD and of the projector: |(W - W') x| / |W x| on held-out rows."""
    lost = [cur(w, r, importance=importance).remainder for importance in importances]
    for found in (project(w), project(w, known.gram)):
        left, right = found.factors(r)
        lost.append(w - left @ right)
    return [float((((e @ held.gram) * e).sum() / ((w @ held.gram) * w).sum()).sqrt()) for e in lost]


@claim(
    "curing",
    statement="how far a block turns its input says how much the output changes when it is replaced",
    published="layers with the smallest angular distance between input and output are chosen",
    note="8 blocks on digits, each one's first layer at rank 16, held-out change of the output, rank correlation, 5 seeds; then "
    "the three of six inner blocks that turn least among all 20 triples; control: the three that turn most. Angles shrink with "
    "depth, so that depth alone would say as much here",
)
def small_angles_are_safer() -> tuple[str, bool]:
    correlations, least, most = [], [], []
    for seed in range(5):
        subject = digits_residual_mlp(seed)
        far = angular_distance(subject.model, [subject.seen])
        alone = [_replaced(subject.model, subject.seen, subject.inputs, [block]) for block in BLOCKS]
        ranks = torch.stack([torch.tensor(v).argsort().argsort().double() for v in ([far[b] for b in BLOCKS], alone)])
        correlations.append(float(torch.corrcoef(ranks)[0, 1]))
        order = sorted(BLOCKS[1:-1], key=far.__getitem__)
        triples = itertools.combinations(order, 3)  # the first is of those that turn least, the last of those that turn most
        changes = torch.tensor([_replaced(subject.model, subject.seen, subject.inputs, list(t)) for t in triples])
        places = changes.argsort().argsort() + 1
        least.append(int(places[0]))
        most.append(int(places[-1]))
    measured = (
        f"rank correlation {', '.join(f'{c:.2f}' for c in correlations)}; the least turning are number "
        f"{', '.join(map(str, least))} of 20, the most turning {', '.join(map(str, most))}"
    )
    return measured, median(correlations) > 0.7 and median(least) <= 7 and median(most) >= 14


def _replaced(model: nn.Module, seen: Tensor, held: Tensor, blocks: list[str]) -> float:
    """Relative change of the output on held-out data with the first layer of some blocks at rank 16."""
    layers = {f"{name}.up": find_layers(model)[0][f"{name}.up"] for name in blocks}
    known = CalibrationStats.collect(model, [seen], layers)
    small = copy.deepcopy(model)
    for name, layer in layers.items():
        w = layer.matrix.double()
        found = cur(w, 16, importance=w.abs() * known[name].norms)
        small.get_submodule(name).weight.data.copy_(found.total())  # type: ignore[operator,union-attr]
    return _change(small, model, held)


def _change(small: nn.Module, model: nn.Module, held: Tensor) -> float:
    with torch.no_grad():
        return float((small(held) - model(held)).norm() / model(held).norm())


@claim(
    "curing",
    statement="healing U alone, C and R as they are, takes away at least a fifth of the squared errors of blocks in 50 steps",
    published="healing trains dU only, layer by layer, and recovers performance",
    note="6 of 8 blocks, first layers at rank 16, error of the blocks' outputs on held-out digits, 3 seeds; control: healed "
    "towards a network of another seed",
)
def healing_the_link() -> tuple[str, bool]:
    ratios, controls, kept = [], [], True
    for seed in SEEDS:
        subject, other = digits_residual_mlp(seed), digits_residual_mlp(seed + 1)
        small = curing(subject.model, 6, data=subject.seen, rank=16, layers=["*.up"])
        healed, wrong = (heal(small, model, data=subject.seen, at=BLOCKS) for model in (subject.model, other.model))
        before, after, control = (_block_error(s, subject.model, subject.inputs) for s in (small, healed, wrong))
        ratios.append(after / before)
        controls.append(control / before)
        kept &= all(torch.equal(healed.parts[n].factors[f], part.factors[f]) for n, part in small.parts.items() for f in "CR")
    measured = (
        f"{', '.join(f'{r:.2f}' for r in ratios)} of it left; towards another network {', '.join(f'{r:.2f}' for r in controls)}"
    )
    return measured, max(ratios) <= 0.8 < min(controls) and kept


def _block_error(small: Compressed, model: nn.Module, x: Tensor) -> float:
    """Mean over blocks of the squared error of their outputs, as a share of these."""
    seen: list[list[Tensor]] = []
    for network in (model, small.model):
        outputs: list[Tensor] = []
        handles = [network.get_submodule(name).register_forward_hook(lambda m, a, y: outputs.append(y)) for name in BLOCKS]
        with torch.no_grad():
            network(x)
        for handle in handles:
            handle.remove()
        seen.append(outputs)
    return sum(float((b - a).square().sum() / a.square().sum()) for a, b in zip(*seen, strict=True)) / len(BLOCKS)


@claim(
    "curing",
    statement="six blocks of SmolLM2-135M are replaced within half a minute of one core, nine percent of it within a minute",
    published="Llama3.1-8B to 7.32B parameters (-9%) in 129 s",
    slow=True,
    note="query, key and gate matrices of 6 and 16 blocks at rank 128, by angular distance, on 16 windows of 128 tokens of this "
    "library's source; seconds of the processor; its weights lie on a 4-bit grid; perplexity, before healing, is shown and not "
    "judged: it is not minimal loss",
)
def a_language_model_in_a_minute() -> tuple[str, bool]:
    model, ids = _language_model()
    texts, times, shares = [f"perplexity {_perplexity(model, ids[16:]):.1f}"], [], []
    for blocks in (6, 16):
        started = time.process_time()
        small = curing(model, blocks, data=_windows(ids[:16]), rank=128, metric="kl")
        times.append(time.process_time() - started)
        shares.append(1 - small.after / small.before)
        after = _perplexity(small.model, ids[16:])
        texts.append(f"{blocks} blocks: {times[-1]:.0f} s, {-shares[-1]:.1%} of the parameters, perplexity {after:.1f}")
    return "; ".join(texts), times[0] < 30 and times[1] < 60 and shares[1] >= 0.09


@claim(
    "curing",
    statement="in a block of SmolLM2-135M |W| |x| chooses no worse than |W|; plain truncated SVD is better than both",
    published="weights chosen by the combined influence of magnitude and activation; minimal performance loss",
    slow=True,
    note="gate, query and down matrix of block 4 at ranks 209, 128, 209; relative output error on 8 held-out windows of 128 "
    "tokens after 16 to calibrate on",
)
def activations_guide_a_language_model() -> tuple[str, bool]:
    model, ids = _language_model()
    ranks = {"mlp.gate_proj": 209, "self_attn.q_proj": 128, "mlp.down_proj": 209}
    found = find_layers(model)[0]
    layers = {name: found[f"model.layers.4.{name}"] for name in ranks}
    known, held = (CalibrationStats.collect(model, _windows(part), layers) for part in (ids[:16], ids[16:]))
    lines, holds = [], True
    for name, rank in ranks.items():
        w = layers[name].matrix.double()
        aware, blind, svd, projector = _output_errors(w, rank, (w.abs() * known[name].norms, w.abs()), known[name], held[name])
        lines.append(f"{name} {aware:.2f}, {blind:.2f}, SVD {svd:.2f}, projector {projector:.2f}")
        holds &= aware <= blind and svd < aware
    return "; ".join(lines), holds


def _language_model() -> tuple[nn.Module, Tensor]:
    """SmolLM2 and 24 windows of 128 tokens of this library's source."""
    from termwise import zoo

    subject = zoo.load("smollm2-135m")
    text = "\n".join(path.read_text("utf-8") for path in sorted(Path(core.__file__).parent.glob("*.py")))
    ids: Tensor = subject.prepare(text[:20_000])["input_ids"][0, : 24 * 128].reshape(24, 128)
    return subject.model.language_model, ids


def _windows(ids: Tensor) -> list[dict[str, object]]:
    return [{"input_ids": part, "use_cache": False} for part in ids.split(2)]


def _perplexity(model: nn.Module, ids: Tensor) -> float:
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return math.exp(float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())))
