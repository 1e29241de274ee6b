"""What Chavan, Lele and Gupta (2023) claim of ROM, measured on random towers, residual perceptrons and SmolLM2-135M."""

from __future__ import annotations

import math
from functools import cache, partial
from statistics import median

import torch
from torch import Tensor, nn

from termwise.core.claims import claim
from termwise.testing.trained_mlp import digits_residual_mlp

from ..calibration import LayerStats
from ..compress import compress
from ..evidence import Evidence
from ..layers import find_layers, put, sharing_copy
from ..low_rank import at_rank, fit_aware, fit_svd, pairs
from ..methods import Method
from ..projection import project
from ..rom import last_blocks, rom
from .language import perplexity, source_windows, the_model

SEEDS = range(3)
ENDS = ["stem", "head"]


def _one_shot(*, everywhere: bool) -> Method:
    """The projector at the ranks of ROM, with statistics of the model as it is."""
    return Method(fit_aware, pairs, partial(last_blocks, blocks=["*"] if everywhere else "last"), name="one pass")


@claim(
    "rom",
    statement="one layer is the projector; a tower is what running the whole model before each layer gives",
    published="layers in order, each on the outputs of the compressed ones before it",
    exact=True,
    note="residual towers of 5 blocks in float64, 5 seeds, half of the parameters; control: statistics of one pass differ",
)
def layers_one_after_the_other() -> tuple[str, bool]:
    single, walked, control = 0.0, 0.0, math.inf
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(256, 16, generator=g, dtype=torch.float64) @ torch.randn(16, 16, generator=g, dtype=torch.float64)
        layer = nn.Sequential(_random(nn.Linear(16, 12), g))
        small = rom(layer, 0.6, data=x, blocks=["*"], shrinkage=0.0)
        left, right = project(layer[0].weight, LayerStats.of(x[:128]).covariance).factors(small.parts["0"].rank)
        single = max(single, _off(small.parts["0"].total(), left @ right))
        tower = _random(_Tower(), g)
        found, stale = (
            rom(tower, 0.5, data=x, blocks=["*"]),
            compress(tower, 0.5, data=x, method=_one_shot(everywhere=True), progress=False),
        )
        twin = sharing_copy(tower)
        for name, target in find_layers(tower)[0].items():
            rows: list[Tensor] = []
            handle = twin.get_submodule(name).register_forward_pre_hook(lambda _, args, r=rows: r.append(args[0].detach()))  # type: ignore[misc]
            twin(x[:128])
            handle.remove()
            put(twin, name, at_rank(target, fit_aware(Evidence(target, LayerStats.of(rows[0]))), found.parts[name].rank).module)
        walked = max(walked, _off(found.model(x), twin(x)))
        control = min(control, _off(stale.model(x), twin(x)))
    measured = f"one layer off by {single:.0e}, towers by {walked:.0e} at most; in one pass by {control:.0e} at least"
    return measured, single < 1e-9 and walked < 1e-9 and control > 1e-3


class _Tower(nn.Module):
    """z + tanh(W z + b), five times."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(5))

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z = z + torch.tanh(layer(z))
        return z


def _random(module: nn.Module, generator: torch.Generator) -> nn.Module:
    module.double().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def _off(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


# -- residual perceptrons ---------------------------------------------------------------------------------------------


@cache
def _changes() -> dict[tuple[float, str], list[float]]:
    """Change of the output by budget and way, one for each seed."""
    found: dict[tuple[float, str], list[float]] = {}
    for budget in (0.8, 0.5):
        for seed in SEEDS:
            trained = digits_residual_mlp(seed)
            options = {"data": list(trained.seen.split(120)), "keep": ENDS}
            ways = {
                "one pass": compress(trained.model, budget, method=_one_shot(everywhere=False), progress=False, **options),
                "rom": rom(trained.model, budget, **options),
                "original": rom(trained.model, budget, target="original", **options),
                "all blocks": rom(trained.model, budget, blocks=["*"], **options),
                "truncated": compress(
                    trained.model, budget, method=Method(fit_svd, pairs, last_blocks, data=False), progress=False, **options
                ),
                "auto": compress(trained.model, budget, method="auto", progress=False, **options),
            }
            for way, small in ways.items():
                found.setdefault((budget, way), []).append(small.measured)
    return found


def _ratios(way: str, other: str) -> dict[float, list[float]]:
    found = _changes()
    return {b: [x / y for x, y in zip(found[b, way], found[b, other], strict=True)] for b in (0.8, 0.5)}


def _told(ratios: dict[float, list[float]]) -> str:
    return ", ".join(f"{median(r):.2f} at {budget:.0%} ({min(r):.2f} to {max(r):.2f})" for budget, r in ratios.items())


@claim(
    "rom",
    statement="at equal parameters the last blocks made smaller change the output less than all blocks made smaller alike",
    published="the first modules are left as they are, the last 12 of 32 compressed for 80 %",
    note="residual perceptrons of 8 blocks on digits, 3 seeds, change relative to all blocks, median and range; control: "
    "truncated W in the last blocks; auto, which weighs errors at the output, is several times below",
)
def the_last_blocks_are_the_ones() -> tuple[str, bool]:
    last, blind, auto = (_ratios(way, "all blocks") for way in ("rom", "truncated", "auto"))
    measured = f"last blocks {_told(last)}; truncated {_told(blind)}; auto {_told(auto)}"
    return measured, all(max(last[b]) < 0.75 < min(blind[b]) for b in last)


@claim(
    "rom",
    statement="fitted to what the layer put out originally, layers correct errors of those before: less change in every case",
    published="sequential compression accounts for errors of earlier layers",
    note="residual perceptrons of 8 blocks on digits, 3 seeds, 80 and 50 % of the parameters, relative to the paper's own target",
)
def the_original_output_is_the_better_target() -> tuple[str, bool]:
    ratios = _ratios("original", "rom")
    return _told(ratios), all(max(r) < 0.98 for r in ratios.values())


@claim(
    "rom",
    statement="the paper's own target, W x~, changes the output less than statistics of one pass",
    published="the features of compressed predecessors make later layers aware of their errors",
    note="residual perceptrons of 8 blocks on digits, 3 seeds, change relative to one pass at the same ranks",
    contradicted="W x~ repeats the errors of x~ instead of correcting them: as much change, or a little more; "
    "the original output as the target does correct them",
)
def sequential_beats_one_pass() -> tuple[str, bool]:
    ratios = _ratios("rom", "one pass")
    return _told(ratios), all(median(r) < 0.98 for r in ratios.values())


# -- a language model ---------------------------------------------------------------------------------------------------


@claim(
    "rom",
    statement="six blocks of SmolLM2-135M at 80 %: the original output as the target is no worse than the paper's, in perplexity",
    published="LLaMA-7B at 80 % ahead of LLM-Pruner without fine-tuning",
    slow=True,
    note="the last two of the six made smaller by the paper's rule; six windows of 256 tokens of one module of Python's library, "
    "two of another to measure; 4-bit weights",
)
def targets_on_a_language_model() -> tuple[str, bool]:
    model, keep = the_model(blocks=6)
    data, held = source_windows("argparse", 6), source_windows("textwrap", 2)
    found = {"dense": perplexity(model, held)}
    once = compress(model, 0.8, data=data, method=_one_shot(everywhere=False), keep=keep, progress=False)
    found["one pass"] = perplexity(once.model, held)
    for target in ("compressed", "original"):
        found[target] = perplexity(rom(model, 0.8, data=data, target=target, keep=keep).model, held)  # type: ignore[arg-type]
    return ", ".join(f"{k} {v:.3g}" for k, v in found.items()), found["original"] <= 1.05 * found["compressed"]
