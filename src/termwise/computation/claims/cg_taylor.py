"""What Guan et al. (2025) claim of CG-Taylor, measured on digits drawn here."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from termwise.core.claims import claim

from ..confidence_gate import ConfidenceGate
from ..forecast import forecast_terms
from ..report import Report
from ..schedule import Method, Now, every
from ..taylorseer import TaylorSeer
from .digits import IMAGES, SEEDS, drawn, error, model, run

THRESHOLDS = (0.02, 0.03)
BLOCKS = 12


@dataclass(frozen=True, kw_only=True)
class At(Method):
    """Compute the steps that are named."""

    computed: tuple[int, ...] = ()

    def rule(self, now: Now) -> bool:
        """By its number."""
        return now.index in self.computed


@cache
def gated(threshold: float, seed: int) -> tuple[Tensor, Report]:
    """A run with the gate."""
    return run(ConfidenceGate(threshold=threshold, first_steps=2, last_steps=0), seed)


def computed(report: Report) -> tuple[int, ...]:
    """The steps."""
    return tuple(step.index for step in report.steps if step.computed)


@claim(
    "cg-taylor",
    statement="threshold 0 computes every step and changes no bit; without threshold the gate is a fixed interval, to the bit",
    published="otherwise we fall back to full computation",
    exact=True,
    note="digits' transformer, DDIM-50, 2 seeds; the cost of the second: computed steps and a 12th of a step for each other; "
    "control: threshold 0.02 changes the result",
)
def ends_of_the_gate() -> tuple[str, bool]:
    zero, fixed, differs = True, True, True
    for seed in SEEDS[:2]:
        pictures, report = run(ConfidenceGate(threshold=0.0), seed)
        zero &= torch.equal(pictures, drawn(seed)) and report.evaluations == 50
        pictures, report = run(ConfidenceGate(threshold=float("inf"), max_skip=3, first_steps=2, last_steps=0), seed)
        twin, counted = run(TaylorSeer(interval=4, sites="last_block", first_steps=2), seed)
        fixed &= torch.equal(pictures, twin) and computed(report) == computed(counted)
        fixed &= abs(report.cost - 14 - 36 / BLOCKS) < 1e-9
        differs &= not torch.equal(gated(0.02, seed)[0], drawn(seed))
    return (
        f"no bit changed at 0: {zero}; the fixed interval without: {fixed}; control differs: {differs}",
        zero and fixed and differs,
    )


@claim(
    "cg-taylor",
    statement="where the first block's forecast is wrong, the last one's is: rank correlation above 0.6 along a run",
    published="the error of the first block indicates how reliable the forecast of the last one is",
    note="all steps computed, forecasts of order 1 from every 2nd and 4th step, mean |difference| over mean |output|, rank "
    "correlation over 46 steps, 3 seeds, in each; at every distance alone too; control: the distance itself says less; told "
    "apart: one step ahead",
)
def first_block_tells_of_the_last() -> tuple[str, bool]:
    along, alone, distance, near = [], [], [], []
    for seed in SEEDS:
        outputs = _first_and_last(seed)
        for interval in (1, 2, 4):
            first, last, ahead = _wrong(outputs, interval)
            if interval == 1:
                near.append(_rank(first, last))
                continue
            along.append(_rank(first, last))
            distance.append(_rank(ahead, last))
            alone += [_rank(first[ahead == d], last[ahead == d]) for d in range(1, interval + 1)]
    measured = (
        f"{min(along):.2f} to {max(along):.2f}, at one distance {min(alone):.2f} at least; of the distance itself "
        f"{max(distance):.2f} at most; with every step computed, one ahead, {min(near):.2f} to {max(near):.2f}"
    )
    return measured, min(along) > 0.6 and min(alone) > 0.6 and max(distance) < min(along)


def _first_and_last(seed: int) -> list[list[Tensor]]:
    """Outputs of the first and last block at every step."""
    kept: list[list[Tensor]] = [[], []]

    def keeper(out: list[Tensor]) -> Any:
        return lambda module, inputs, output: out.append(output.clone())

    blocks = model().transformer_blocks
    hooks = [block.register_forward_hook(keeper(out)) for block, out in zip((blocks[0], blocks[-1]), kept, strict=True)]
    try:
        drawn.__wrapped__(seed)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def _wrong(outputs: list[list[Tensor]], interval: int) -> tuple[np.ndarray, ...]:
    """Relative errors of both forecasts at steps 4 to 49, and how far ahead they look."""
    rows = []
    for step in range(4, 50):
        old, new = [i for i in range(step) if every(interval, i, 2)][-2:]
        of_new, of_old = forecast_terms([float(new), float(old)], float(step)).sum(0).tolist()
        pairs = [(of_new * out[new] + of_old * out[old], out[step]) for out in outputs]
        rows.append([((made - true).abs().mean() / true.abs().mean()).item() for made, true in pairs] + [float(step - new)])
    return tuple(np.array(rows).T)


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


@claim(
    "cg-taylor",
    statement="at equal cost, its probes counted, the gate is nearer to the 50 steps than fixed intervals, by a fifth and more",
    published="a better balance between speed and quality than a fixed schedule",
    note="last block, thresholds 0.02 and 0.03, against intervals 2 to 6 interpolated at the same cost in logarithms, DDIM-50 as "
    "truth, 10 pictures, median, 3 seeds, in each; a skipped step costs a 12th; break-even: the depth at which a fixed interval "
    "of the same error costs as much; control: as many steps computed at random are further than fixed intervals",
)
def the_gate_beats_fixed_intervals() -> tuple[str, bool]:
    rows: dict[float, list[tuple[float, ...]]] = {threshold: [] for threshold in THRESHOLDS}
    blind = []
    for seed in SEEDS:
        fixed = [run(TaylorSeer(interval=n, sites="last_block", first_steps=2), seed) for n in (6, 5, 4, 3, 2)]
        costs = [float(report.evaluations) for _, report in fixed]
        errors = np.log([error(pictures, drawn(seed)) for pictures, _ in fixed])
        for threshold in THRESHOLDS:
            pictures, report = gated(threshold, seed)
            wrong, full = error(pictures, drawn(seed)), report.evaluations
            equal = float(np.interp(np.log(wrong), errors[::-1], costs[::-1]))  # a fixed interval of the same error
            rows[threshold].append((
                full, report.cost, wrong / np.exp(np.interp(report.cost, costs, errors)),
                wrong / np.exp(np.interp(full, costs, errors)), (50 - full) / max(equal - full, 1e-9),
            ))  # fmt: skip
            steps = (0, 1, *sorted(random.Random(seed).sample(range(2, 50), full - 2)))
            other = error(run(At(computed=steps, sites="last_block"), seed)[0], drawn(seed))
            blind.append(other / float(np.exp(np.interp(full, costs, errors))))
    texts = []
    for threshold, found in rows.items():
        full, cost, counted, uncounted, depth = (median(column) for column in zip(*found, strict=True))
        texts.append(
            f"threshold {threshold}: {full:.0f} computed, cost {cost:.1f}, error {counted:.2f} of a fixed interval's at that "
            f"cost ({uncounted:.2f} with probes free), break-even at {depth:.1f} blocks"
        )
    worst = max(row[2] for found in rows.values() for row in found)
    return f"{'; '.join(texts)}; random steps {min(blind):.1f} at least", worst < 0.8 and min(blind) > 1


@claim(
    "cg-taylor",
    statement="the gate must look at each picture: steps that it chose for other noise, computed without probes, do worse",
    published="dynamic: whether to forecast is decided at every step by the error of the first block",
    note="thresholds 0.02 and 0.03, the steps of the next seed, last block; otherwise as above; control: random steps",
    contradicted="the steps it chooses differ between noises by one or two places in fourteen; replayed they are as near "
    "(0.8 to 1.3 times the error) and cost 14 instead of 17: here the schedule is what helps, and it can be found once",
)
def every_picture_needs_its_own_steps() -> tuple[str, bool]:
    ratios, costs, blind = [], [], []
    for threshold in THRESHOLDS:
        for seed, other in zip(SEEDS, (*SEEDS[1:], SEEDS[0]), strict=True):
            pictures, report = gated(threshold, seed)
            steps = computed(gated(threshold, other)[1])
            replayed, twin = run(At(computed=steps, sites="last_block"), seed)
            shuffled = (0, 1, *sorted(random.Random(seed).sample(range(2, 50), len(steps) - 2)))
            wrong = error(pictures, drawn(seed))
            ratios.append(error(replayed, drawn(seed)) / wrong)
            blind.append(error(run(At(computed=shuffled, sites="last_block"), seed)[0], drawn(seed)) / wrong)
            costs.append(twin.cost / report.cost)
    if not min(blind) > 1.5:
        raise AssertionError(f"the control fails: random steps are at {blind}")
    measured = (
        f"replayed {min(ratios):.2f} to {max(ratios):.2f} times the error, median {median(ratios):.2f}, at {median(costs):.2f} "
        f"of the cost; random steps {min(blind):.1f} at least"
    )
    return measured, median(ratios) > 1.2


@claim(
    "cg-taylor",
    statement="2 (order + 1) tensors are kept, whatever the depth, where forecasts of modules keep 2 (order + 1) per block",
    published="significantly fewer cached features: the last block in place of every module",
    exact=True,
    note="bytes of the digits' transformer cut to 3, 6 and 12 blocks, order 1 and 2, 10 pictures of 16 tokens of width 64",
)
def memory_does_not_grow_with_depth() -> tuple[str, bool]:
    tensor = IMAGES * 16 * 64 * 4
    gate, modules = {}, {}
    blocks = model().transformer_blocks
    try:
        for depth in (3, 6, BLOCKS):
            model().transformer_blocks = blocks[:depth]
            for order in (1, 2):
                found = run(ConfidenceGate(threshold=0.05, order=order, probe_order=order), SEEDS[0], steps=10)[1]
                gate[depth, order] = found.memory / tensor
                modules[depth, order] = run(TaylorSeer(order=order), SEEDS[0], steps=10)[1].memory / tensor
    finally:
        model().transformer_blocks = blocks
    measured = f"gate {sorted(set(gate.values()))}, modules {[modules[d, 1] for d in (3, 6, BLOCKS)]} tensors at order 1"
    holds = all(gate[key] == 2 * (key[1] + 1) and modules[key] == key[0] * gate[key] for key in gate)
    return measured, holds
