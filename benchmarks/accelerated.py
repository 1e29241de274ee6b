"""Ways to sample a diffusion transformer with fewer evaluations, side by side at equal cost, against a fine grid.

    python benchmarks/accelerated.py [--budget 14] [--method NAME] [--samples 200] [--times]

The subject draws 8 x 8 digits (`termwise.testing.trained_dit`); a full run is 50 steps of DDIM, budgets are 25, 17, 14 and 10
evaluations. The truth is DDIM on 500 steps from the same noise, unclipped: clipping is another equation. Every cache runs on the
50 steps of DDIM and on the 50 of DPM-Solver++(2M), which is even in log-snr; `auto` is what `tw.accelerate(pipeline, budget=)`
does. What a method leaves open (first steps and interval, a threshold, a tolerance) is chosen on noise of its own: the least error
among the settings whose cost comes nearest to the budget. Cost is in full passes, by the attention and feed-forward layers that
were really run (a third and two thirds of a block). Errors are relative L2 of the picture, per sample, over three seeds of noise.
The Frechet distance to scikit-learn's digits is that of the features of a small classifier, which also says how many pictures show
the digit that was asked for: it is not FID. `--times` adds processor time (one thread, in turn with the full run, the least of three) and
what a step costs. Results are added to docs/data/accelerate.json, row by row.
"""

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler
from peers import caches
from torch import Tensor, nn

import termwise as tw
from termwise.computation import ABCache, Adaptive, ConfidenceGate, TaylorSeer, tuned_solver
from termwise.testing.trained import _digits
from termwise.testing.trained_cnn import digits_cnn
from termwise.testing.trained_dit import digits_dit, sample
from termwise.zoo.assets import cache_folder

OUT = Path(__file__).parent.parent / "docs" / "data" / "accelerate.json"
STEPS, FINE = 50, 500
BUDGETS = (14, 10, 17, 25)
SEEDS, CHOICE, CHOSEN_ON = (101, 102, 103), 7, 32
DDIM, TUNED = "DDIM", "DPM-Solver++(2M)"
TIMED = 16
THRESHOLDS = [0.002 * 1.5**i for i in range(18)]


class Pipeline:
    """What `tw.accelerate` takes for a pipeline of diffusers."""

    def __init__(self, transformer: nn.Module, solver: str) -> None:
        ddim = DDIMScheduler(clip_sample=False)
        self.transformer, self.scheduler = transformer, ddim if solver == DDIM else tuned_solver(ddim)

    def __call__(self, count: int, seed: int, num_inference_steps: int = STEPS) -> Tensor:
        labels, noise = torch.arange(count) % 10, torch.Generator().manual_seed(seed)
        return sample(self.transformer, self.scheduler, num_inference_steps, labels=labels, generator=noise)


# -- methods ------------------------------------------------------------------------------------------------------------


class Ours:
    """`tw.accelerate` of a pipeline, and what it kept."""

    def __init__(self, pipeline: Pipeline, method: Any = "auto", *, planned: bool = False, steps: int | None = STEPS, **options):
        self.model, self.fast = pipeline.transformer, tw.accelerate(pipeline, method, **options)
        self.steps = {} if steps is None else {"num_inference_steps": steps}
        if planned:
            self.fast.calibrate(CHOSEN_ON, CHOICE, **self.steps)

    def __call__(self, count: int, seed: int) -> Tensor:
        return self.fast(count, seed, **self.steps)

    @property
    def memory(self) -> int:
        return self.fast.report.memory


class Plain:
    """So many steps, all computed."""

    memory = 0

    def __init__(self, pipeline: Pipeline, steps: int):
        self.model, self.pipeline, self.steps = pipeline.transformer, pipeline, steps

    def __call__(self, count: int, seed: int) -> Tensor:
        return self.pipeline(count, seed, self.steps)


class Theirs:
    """A cache of diffusers, applied anew to each run."""

    def __init__(self, pipeline: Pipeline, make: Callable):
        self.pipeline, self.make, self.now = pipeline, make, math.nan
        self.new()

    def new(self) -> None:
        self.model = self.make(self.pipeline.transformer, self)
        self.model.register_forward_pre_hook(self.tell, with_kwargs=True)

    def tell(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self.now = kwargs["timestep"].flatten()[0].item()

    def __call__(self, count: int, seed: int) -> Tensor:
        plain, self.pipeline.transformer = self.pipeline.transformer, self.model
        try:
            return self.pipeline(count, seed)
        finally:
            self.memory = caches.memory(self.model)
            self.pipeline.transformer = plain


def fixed(budget: int, steps: int = STEPS) -> list[tuple[int, int]]:
    """First steps and interval of all schedules that compute so many."""
    return [(f, n) for f in range(1, min(9, budget)) for n in range(2, steps) if f + (steps - f) // n == budget]


def theirs_fixed(budget: int) -> list[tuple[int, int]]:
    """The same by the rule of diffusers."""
    count = lambda b, n: sum(i < b or (i - b - 1) % n == 0 for i in range(STEPS))  # noqa: E731
    found = [(b, n) for b in range(1, min(9, budget)) for n in range(2, STEPS // 2) if count(b, n) == budget]
    return found or [min(((b, n) for b in range(1, 9) for n in range(2, 25)), key=lambda s: abs(count(*s) - budget))]


def every(pipeline: Pipeline, setting: tuple[int, int], **options) -> Ours:
    return Ours(pipeline, TaylorSeer(first_steps=setting[0], interval=setting[1], **options))


def halves(pipeline: Pipeline, budget: int, **options) -> Ours:
    """Every second of 2 b - 2 steps, as auto, with other forecasts."""
    method = TaylorSeer(interval=2, first_steps=2, **options)
    return Ours(pipeline, method, steps=2 * budget - 2)


def theirs(pipeline: Pipeline, setting: Any, make: Callable) -> Theirs:
    return Theirs(pipeline, lambda model, self: make(model, setting, self))


@cache
def ratios(solver: str) -> list[float]:
    pipeline = Pipeline(model(), solver)

    def run(calibrated: nn.Module) -> None:
        Pipeline(calibrated, solver)(CHOSEN_ON, CHOICE)

    return caches.magnitudes(pipeline.transformer, run, STEPS)


def mag(pipeline: Pipeline, threshold: float) -> Theirs:
    found = ratios(DDIM if isinstance(pipeline.scheduler, DDIMScheduler) else TUNED)
    return Theirs(pipeline, lambda model, self: caches.mag(model, threshold, found, STEPS))


thresholds = lambda budget: THRESHOLDS  # noqa: E731
itself = lambda budget: [budget]  # noqa: E731
BOTH, ON_TUNED, ON_DDIM = (DDIM, TUNED), (TUNED,), (DDIM,)
METHODS: dict[str, tuple[Callable[[Pipeline, Any], Any], Callable[[int], list], tuple[str, ...]]] = {
    "plain": (Plain, itself, BOTH),
    "auto": (lambda p, b: Ours(p, budget=b, steps=None), itself, ON_DDIM),
    "every second step, order 1": (partial(halves, order=1, variable="log_snr", sites="output"), itself, ON_TUNED),
    "every second step, order 2": (partial(halves, order=2, variable="log_snr", sites="output"), itself, ON_TUNED),
    "every second step, order 2, published": (partial(halves, order=2, form="published", sites="output"), itself, ON_TUNED),
    "every second step, order 2, damped": (
        lambda p, s: halves(p, s[0], order=2, damping=s[1], variable="log_snr", sites="output"),
        lambda b: [(b, d / 4) for d in range(5)], ON_TUNED,
    ),
    "every second step, order 1, modules": (partial(halves, order=1), itself, ON_TUNED),
    "reuse": (partial(every, order=0, sites="output"), fixed, BOTH),
    "reuse, modules": (partial(every, order=0), fixed, BOTH),
    "TaylorSeer, order 1, modules": (partial(every, order=1), fixed, BOTH),
    "TaylorSeer, order 2, published, modules": (partial(every, order=2, form="published"), fixed, BOTH),
    "TaylorSeer, order 4, published, modules": (partial(every, order=4, form="published"), fixed, BOTH),
    "TaylorSeer, order 1, output": (partial(every, order=1, sites="output"), fixed, BOTH),
    "TaylorSeer, order 1, output, log-snr": (partial(every, order=1, sites="output", variable="log_snr"), fixed, BOTH),
    "AB-Cache, k = 3": (
        lambda p, s: Ours(p, ABCache(order=2, first_steps=s[0], interval=s[1])), fixed, BOTH,
    ),
    "ConfidenceGate": (lambda p, t: Ours(p, ConfidenceGate(threshold=t)), thresholds, BOTH),
    "Adaptive, tolerance": (lambda p, t: Ours(p, Adaptive(tolerance=t, variable="log_snr")), thresholds, BOTH),
    "Adaptive, budget": (lambda p, b: Ours(p, Adaptive(budget=b, variable="log_snr")), itself, BOTH),
    "planned": (lambda p, b: Ours(p, Adaptive(budget=b, variable="log_snr", first_steps=2), planned=True), itself, BOTH),
    "diffusers TaylorSeerCache, defaults": (
        partial(theirs, make=lambda m, s, self: caches.taylorseer(m, s[1], s[0], 1, sites=None, dtype=torch.bfloat16)),
        theirs_fixed, ON_DDIM,
    ),
    "diffusers TaylorSeerCache, lite": (
        partial(theirs, make=lambda m, s, self: caches.lite(m, s[1], s[0])), theirs_fixed, ON_DDIM,
    ),
    "diffusers TaylorSeerCache, attn1 and ff, bfloat16": (
        partial(theirs, make=lambda m, s, self: caches.taylorseer(m, s[1], s[0], 1, dtype=torch.bfloat16)), theirs_fixed, BOTH,
    ),
    "diffusers TaylorSeerCache, attn1 and ff": (
        partial(theirs, make=lambda m, s, self: caches.taylorseer(m, s[1], s[0], 1)), theirs_fixed, BOTH,
    ),
    "diffusers TaylorSeerCache, attn1 and ff, order 2": (
        partial(theirs, make=lambda m, s, self: caches.taylorseer(m, s[1], s[0], 2)), theirs_fixed, BOTH,
    ),
    "diffusers FirstBlockCache": (
        partial(theirs, make=lambda m, s, self: caches.first_block(m, s)), lambda b: [4 * t for t in THRESHOLDS], BOTH,
    ),
    "diffusers MagCache": (mag, lambda b: [4 * t for t in THRESHOLDS], BOTH),
    "diffusers PyramidAttentionBroadcast": (
        partial(theirs, make=lambda m, s, self: caches.attention_broadcast(m, s, lambda: self.now)), lambda b: [2, 4, 8], BOTH,
    ),
    "diffusers FasterCache": (
        partial(theirs, make=lambda m, s, self: caches.faster(m, s, lambda: self.now)), lambda b: [2, 4, 8], BOTH,
    ),
}  # fmt: skip
NOTES = {
    "diffusers TaylorSeerCache, defaults": "its patterns match no layer of DiT: nothing is cached, nothing is said",
    "diffusers TaylorSeerCache, lite": "forecasts proj_out, which DiT calls proj_out_2: the blocks give zeros, nothing is said",
    "diffusers PyramidAttentionBroadcast": "attention only: two thirds of a block are always run",
    "diffusers FasterCache": "attention only: two thirds of a block are always run; without guidance it crashes where its range "
    "has the first step, so it begins below 900",
}


# -- measuring ----------------------------------------------------------------------------------------------------------


@cache
def model() -> nn.Module:
    return digits_dit()


class Counter:
    """How many blocks ran: calls of their attention and feed-forward layers."""

    def __init__(self, dit: nn.Module) -> None:
        self.attention = self.feed_forward = self.last = 0
        self.depth = len(dit.transformer_blocks)
        self.handles = []
        for i, block in enumerate(dit.transformer_blocks):
            self.handles.append(block.attn1.to_q.register_forward_hook(self.add_attention))
            self.handles.append(block.ff.net[0].proj.register_forward_hook(partial(self.add_feed_forward, i)))

    def add_attention(self, *_: Any) -> None:
        self.attention += 1

    def add_feed_forward(self, block: int, *_: Any) -> None:
        self.feed_forward += 1
        self.last += block == self.depth - 1

    def close(self) -> dict[str, float]:
        for handle in self.handles:
            handle.remove()
        blocks = (self.attention + 2 * self.feed_forward) / 3
        return {"evaluations": self.last, "blocks": blocks, "passes": blocks / self.depth}


def counted(run: Any, count: int, seed: int) -> tuple[Tensor, dict[str, float]]:
    if isinstance(run, Theirs):
        run.new()
    counter = Counter(run.model)
    try:
        pictures = run(count, seed)
    finally:
        costs = counter.close()
    return pictures, {**costs, "KiB": run.memory / count / 1024}


@cache
def truth(count: int, seed: int) -> Tensor:
    """Of the fine grid, kept from run to run: it takes minutes."""
    file = cache_folder() / "accelerate" / f"truth_{seed}_{count}.pt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(Pipeline(model(), DDIM)(count, seed, FINE), file)
    return torch.load(file)


@cache
def full(solver: str, steps: int, count: int, seed: int) -> Tensor:
    return Pipeline(model(), solver)(count, seed, steps)


def off(pictures: Tensor, right: Tensor) -> Tensor:
    """Relative L2 of every sample."""
    return (pictures - right).flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)


@cache
def features_of_digits() -> np.ndarray:
    return features(_digits()[0])[0]


def features(pictures: Tensor) -> tuple[np.ndarray, Tensor]:
    """Of the classifier's last hidden layer, and its answers."""
    net = digits_cnn().model
    with torch.no_grad():
        hidden = net[:-1](pictures)
        return hidden.double().numpy(), net[-1](hidden).argmax(1)


def frechet(found: np.ndarray, right: np.ndarray) -> float:
    """Of two normal distributions with their means and covariances."""
    a, b = np.cov(found.T), np.cov(right.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    return float(((found.mean(0) - right.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root)


def quality(pictures: list[Tensor]) -> dict[str, float]:
    found, answers = features((torch.cat(pictures).clamp(-1, 1) + 1) / 2)
    asked = torch.cat([torch.arange(len(p)) % 10 for p in pictures])
    return {"accuracy": (answers == asked).float().mean().item(), "frechet": frechet(found, features_of_digits())}


tried: dict[tuple, tuple[float, float]] = {}


def choose(method: str, solver: str, budget: int) -> Any:
    """The setting whose cost is nearest to the budget, and of those within half a pass the one with the least error."""
    make, settings, _ = METHODS[method]
    if len(settings(budget)) == 1:
        return settings(budget)[0]
    for setting in settings(budget):
        key = (method, solver, setting)
        if key not in tried:
            pictures, cost = counted(make(Pipeline(model(), solver), setting), CHOSEN_ON, CHOICE)
            error = off(pictures, truth(CHOSEN_ON, CHOICE)).median().item()
            tried[key] = (cost["passes"], error if math.isfinite(error) else math.inf)
    found = {s: tried[method, solver, s] for s in settings(budget)}
    return min(found, key=lambda s: (max(0.0, abs(found[s][0] - budget) - 0.5), found[s][1]))


def one(method: str, solver: str, budget: int, samples: int) -> dict:
    """The row."""
    setting = choose(method, solver, budget)
    run = METHODS[method][0](Pipeline(model(), solver), setting)
    steps = 2 * budget - 2 if method.startswith(("auto", "every")) else budget if method == "plain" else STEPS
    found = [counted(run, samples, seed) for seed in SEEDS]
    by_seed = [off(p, truth(samples, seed)) for (p, _), seed in zip(found, SEEDS, strict=True)]
    own = [off(p, full(TUNED if method == "auto" else solver, steps, samples, s)) for (p, _), s in zip(found, SEEDS, strict=True)]
    costs = {k: sum(c[k] for _, c in found) / len(found) for k in found[0][1]}
    estimate = run.fast.report.estimate if isinstance(run, Ours) else None
    row = {
        "method": method, "solver": TUNED if method == "auto" else solver, "budget": budget, "steps": steps, "setting": setting,
        **costs, "off": torch.cat(by_seed).median().item(), "off_max": torch.cat(by_seed).max().item(),
        "off_by_seed": [e.median().item() for e in by_seed], "change": torch.cat(own).median().item(),
        "change_mean": torch.cat(own).mean().item(), "change_max": torch.cat(own).max().item(), "estimate": estimate, **quality([p for p, _ in found]),
        "samples": samples * len(SEEDS), "note": NOTES.get(method, ""),
    }  # fmt: skip
    return row


def seconds(runs: list[Callable[[], object]], rounds: int = 5) -> list[float]:
    """The least of several, in turn."""
    best = [math.inf] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            started = time.process_time()
            run()
            best[i] = min(best[i], time.process_time() - started)
    return best


def timed(row: dict) -> float:
    """Processor time over that of the full run."""
    make = METHODS[row["method"]][0]
    setting = tuple(row["setting"]) if isinstance(row["setting"], list) else row["setting"]
    solver = DDIM if row["method"] == "auto" else row["solver"]
    run, plain = make(Pipeline(model(), solver), setting), Plain(Pipeline(model(), DDIM), STEPS)
    ours, theirs = math.inf, math.inf
    for _ in range(3):
        if isinstance(run, Theirs):
            run.new()
        a, b = seconds([lambda: run(TIMED, CHOICE), lambda: plain(TIMED, CHOICE)], 1)
        ours, theirs = min(ours, a), min(theirs, b)
    return ours / theirs


def overhead(count: int) -> list[dict]:
    """What a computed and a forecast step cost, over a step of the model alone; call by call in turn, medians."""
    rows = []
    for name, method in {
        "output, order 1": TaylorSeer(interval=2, sites="output"),
        "output, order 2": TaylorSeer(interval=2, order=2, sites="output"),
        "Adaptive": Adaptive(budget=25, variable="log_snr"),
        "last block, gate": ConfidenceGate(threshold=0.02),
        "modules, order 1": TaylorSeer(interval=2),
    }.items():
        scheduler = DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(STEPS)
        plain, x, labels = digits_dit(), torch.randn(count, 1, 8, 8), torch.arange(count) % 10
        spent: dict[str, list[float]] = {"full": [], "computed": [], "forecast": []}
        with torch.no_grad(), tw.accelerate(model(), method, scheduler=scheduler) as fast:
            for _ in range(3):
                for t in scheduler.timesteps:
                    for net in (plain, model()):
                        started = time.process_time()
                        noise = net(x, timestep=t.expand(count), class_labels=labels).sample
                        passed = time.process_time() - started
                        kind = "full" if net is plain else "computed" if fast.report.steps[-1].computed else "forecast"
                        spent[kind].append(passed)
                    x = scheduler.step(noise, t, x).prev_sample
        middle = {k: float(np.median(v)) for k, v in spent.items() if v}
        rows.append({
            "what": name, "batch": count, "full_ms": 1e3 * middle["full"], "KiB": fast.report.memory / count / 1024,
            "computed": middle["computed"] / middle["full"], "forecast": middle.get("forecast", math.nan) / middle["full"],
        })  # fmt: skip
    return rows


# -- the file -----------------------------------------------------------------------------------------------------------


def key(row: dict) -> tuple:
    return row["method"], row["solver"], row["budget"]


def save(change: Callable[[dict], None]) -> None:
    found = json.loads(OUT.read_text()) if OUT.exists() else {"environment": {}, "rows": [], "steps": []}
    change(found)
    found["environment"] = {
        "python": sys.version.split()[0], "torch": torch.__version__, "diffusers": diffusers.__version__, "cores": os.cpu_count(),
        "threads": 1,
    }  # fmt: skip
    part = OUT.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(OUT)


def add(row: dict) -> None:
    def change(found: dict) -> None:
        found["rows"] = [*(r for r in found["rows"] if key(r) != key(row)), row]

    save(change)
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


def times(budgets: Sequence[int]) -> None:
    """Processor times of the rows that are there."""
    for row in json.loads(OUT.read_text())["rows"]:
        if row["method"] != "all computed" and "failed" not in row and row["budget"] in budgets:
            add({**row, "time": timed(row)})
    rows = [row for count in (1, TIMED) for row in overhead(count)]
    save(lambda found: found.update(steps=rows))
    print(json.dumps(rows, indent=1))


def references(samples: int) -> None:
    """The truth, and full runs."""
    for solver, steps in ((DDIM, FINE), (DDIM, STEPS), (TUNED, STEPS)):
        found = [truth(samples, s) if steps == FINE else full(solver, steps, samples, s) for s in SEEDS]
        errors = torch.cat([off(p, truth(samples, s)) for p, s in zip(found, SEEDS, strict=True)])
        add({
            "method": "all computed", "solver": solver, "budget": steps, "steps": steps, "evaluations": steps, "passes": steps,
            "off": errors.median().item(), "off_max": errors.max().item(), **quality(found), "samples": samples * len(SEEDS),
        })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, action="append")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--samples", type=int, default=200, help="of each seed")
    parser.add_argument("--times", action="store_true", help="only measure the times of the rows in the file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.times:
        times(given.budget or BUDGETS)
        return
    if not given.method:
        references(given.samples)
    for budget in given.budget or BUDGETS:
        for method in given.method or METHODS:
            for solver in METHODS[method][2]:
                try:
                    add(one(method, solver, budget, given.samples))
                except Exception as problem:  # a peer that does not run is a row too
                    add({"method": method, "solver": solver, "budget": budget, "failed": f"{type(problem).__name__}: {problem}"})


if __name__ == "__main__":
    main()
