"""Random programs, as source text: a seed makes a model of a dozen lines, its inputs, and what to print of it.

Lines are drawn from the grammar and run as they are drawn, so that each fits the values before it, stays finite, and lies away
from kinks. Operands are the last value mostly, often one that nothing has used yet, and any other at times: branches split, rejoin
and reuse. In the end every value that nothing uses is brought together by linear layers.
"""

from __future__ import annotations

import dataclasses
import linecache
import random
import re
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from tests.fuzz.grammar import LINEAR, ROWS, SMOOTH, Row
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BATCH", "Program", "random_program"]

BATCH, CLASSES, IDS = 3, 4, 7
LINES, DEPTH = (9, 14), 8
LARGEST, ENTRIES = 8.0, 96  # of a value: its size, its entries per sample
MARGIN = 0.01  # to a kink
ONE_SAMPLE: dict[Any, int] = {
    (nn.RNNBase, nn.InstanceNorm1d, nn.Conv1d, nn.ConvTranspose1d): 2,
    (nn.Conv2d, nn.ConvTranspose2d): 3,
}
"""Layers -> so many axes are one sample to them, whose samples would then not be apart."""
NAMES: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
FAMILIES = {"any": (0.6, ROWS), "smooth": (0.25, SMOOTH), "piecewise linear": (0.15, LINEAR)}
"""How often a program is drawn from which rows."""


@dataclass(frozen=True)
class Program:
    """A model as text.

    Attributes:
        seed: of the weights and inputs.
        dtype: "float64" or "float32".
        family: of `FAMILIES`.
        inputs: name -> shape of a sample, or the number of ids.
        layers: name -> the expression that makes it.
        lines: name of a value -> its expression; the last one is returned.
    """

    seed: int
    dtype: str
    family: str
    inputs: dict[str, tuple[int, ...]]
    layers: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)

    def source(self) -> str:
        """A class in Python, one line per operation."""
        layers = [f"        self.{name} = {text}" for name, text in self.layers.items()]
        lines = [f"        {name} = {text}" for name, text in self.lines.items()]
        return "\n".join(
            [
                f"class Seed{self.seed}(nn.Module):  # {self.dtype}, {self.family}",
                "    def __init__(self):",
                "        super().__init__()",
                *layers,
                f"    def forward(self, {', '.join(self.inputs)}):",
                *lines,
                f"        return {self.output}",
            ]
        )

    def __str__(self) -> str:
        """All that is needed to see it again."""
        inputs = ", ".join(
            f"{n}: {'ids ' if n.startswith('ids') else ''}(batch, {', '.join(map(str, s))})" for n, s in self.inputs.items()
        )
        return f"{self.source()}\n# {inputs}; Program.model() makes the weights from the seed"

    @property
    def output(self) -> str:
        """The name of the value that is returned."""
        return next(reversed(self.lines)) if self.lines else next(iter(self.inputs))

    def model(self) -> nn.Module:
        """The module, in eval mode, with weights made from the seed."""
        name, text = f"<seed {self.seed}>", self.source()
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # tracebacks show the lines
        names = dict(NAMES)
        exec(compile(text, name, "exec"), names)
        model = names[f"Seed{self.seed}"]()
        for layer, made in self.layers.items():
            setattr(model, layer, _layer(made, self.seed, layer))  # that of its name, whatever other layers there are
        return model.to(getattr(torch, self.dtype)).eval()

    def draw(self, batch: int = BATCH, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs for it."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        return tuple(
            torch.stack([torch.randperm(IDS, generator=generator)[: shape[0]] for _ in range(batch)])  # none twice
            if name.startswith("ids")
            else torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(getattr(torch, self.dtype))
            for name, shape in self.inputs.items()
        )

    def depths(self) -> dict[str, int]:
        """Lines on the longest way from an input to each value."""
        depths = dict.fromkeys(self.inputs, 0)
        for name, text in self.lines.items():
            depths[name] = 1 + max((depths[used] for used in _names(text)), default=0)
        return depths

    def cut(self, lines: dict[str, str]) -> Program:
        """With these lines, and without what is then unused."""
        wanted, kept = {next(reversed(lines))}, {}
        for name in reversed(lines):
            if name in wanted:
                kept[name] = lines[name]
                wanted |= set(_names(lines[name]))
        kept = dict(reversed(kept.items()))
        layers = {
            name: text
            for name, text in self.layers.items()
            if any(f"self.{name}(" in f"{t}(" or re.search(rf"self\.{name}\b", t) for t in kept.values())
        }
        inputs = {name: shape for name, shape in self.inputs.items() if name in wanted}
        return dataclasses.replace(self, inputs=inputs, layers=layers, lines=kept)


def _names(text: str) -> list[str]:
    """The values that an expression uses."""
    return re.findall(r"\b(?:v|x|ids)\d+\b", text)


def _layer(text: str, seed: int, name: str) -> Any:
    """A layer or parameter, with weights from a seed of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(1000 * seed + int(name.removeprefix("l")))
        made = eval(text, NAMES)
        if isinstance(made, nn.Module):
            made.apply(_perturb).double().eval()
            return made
        return nn.Parameter(made.detach().double())


@torch.no_grad()
def _perturb(layer: nn.Module) -> None:
    """Norms and biases that are not what they begin as, and would hide."""
    for key, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if key == "running_var":
            value.mul_(1 + 0.3 * torch.rand_like(value))
        elif value.is_floating_point() and (value.ndim == 1 or key.startswith("running")):
            value.add_(0.2 * torch.randn_like(value))


def random_program(seed: int) -> Program:
    """The program of a seed."""
    for attempt in count():
        chance = random.Random(seed + 1_000_003 * attempt)
        family = chance.choices(list(FAMILIES), [share for share, _ in FAMILIES.values()])[0]
        drawing, lines = _Drawing(chance, seed, family), chance.randint(*LINES)
        while len(drawing.program.lines) < lines or max(drawing.program.depths().values()) < DEPTH - 1:
            if not drawing.line():  # a dead end, as of few numbers that are all alike
                break
        else:
            drawing.finish()
            return drawing.program
    raise AssertionError("unreachable")


class _Drawing:
    """A program as it grows, and its values."""

    def __init__(self, chance: random.Random, seed: int, family: str) -> None:
        self.chance = chance
        shapes = [(chance.randint(3, 6),), (chance.randint(2, 4), chance.randint(3, 5)), (2, 4, 4)]
        inputs = {f"x{i}": chance.choice(shapes) for i in range(chance.choice((1, 1, 2, 2, 3)))}
        if chance.random() < 0.2:
            inputs = {"ids0": (chance.randint(2, 4),), **(inputs if chance.random() < 0.5 else {})}
        self.program = Program(seed, chance.choice(("float64", "float64", "float32")), family, inputs)
        self.rows = FAMILIES[family][1]
        wide = dataclasses.replace(self.program, dtype="float64")
        self.values: dict[str, Tensor] = dict(zip(inputs, wide.draw(), strict=True))
        self.used: set[str] = set()
        self.layers: dict[str, Any] = {}
        if "ids0" in inputs:
            self.take(f"<nn.Embedding({IDS}, 4)>(ids0)", last=True)

    def line(self) -> bool:
        """Draw until something fits; whether anything does."""
        for _ in range(300):
            if self.chance.random() < 0.08 and self.layers:
                layer, value = self.chance.choice(list(self.layers)), self.operand()
                one = next((n for kind, n in ONE_SAMPLE.items() if isinstance(self.layers[layer], kind)), None)
                fits = isinstance(self.layers[layer], nn.Module) and self.values[value].ndim != one
                if fits and self.take(f"self.{layer}({value}){self.index(layer)}"):
                    return True
                continue
            row = self.chance.choice(self.rows)
            value = self.operand()
            if self.values[value].ndim in row.ranks and self.take(*self.filled(row, value)):
                return True
        return False

    def index(self, layer: str) -> str:
        """What picks the sequence out of what a recurrent layer returns."""
        return "[0]" if isinstance(self.layers[layer], nn.RNNBase | nn.LSTMCell) else ""

    def operand(self, fits: Any = lambda value: True) -> str:
        """The last value mostly, one that nothing has used, or any."""
        names = [name for name, value in self.values.items() if value.is_floating_point() and fits(value)]
        unused = [name for name in names if name not in self.used]
        kind = self.chance.random()
        return names[-1] if kind < 0.5 else self.chance.choice(unused if unused and kind < 0.8 else names)

    def filled(self, row: Row, a: str) -> tuple[str, str]:
        """The template and its margin, with values, sizes and numbers in place."""
        x = self.values[a]
        axis = self.chance.randint(1, x.ndim - 1)
        fields = {
            "a": a, "b": self.operand(lambda v: v.shape == x.shape), "c": self.operand(lambda v: v.ndim == x.ndim),
            "last": x.shape[-1], "channels": x.shape[1], "axes": ", ".join(map(str, x.shape[1:])), "axis": axis,
            "size": x.shape[axis], "size1": x.shape[1], "i": self.chance.randrange(x.shape[axis]), "i1": self.chance.randrange(x.shape[1]),
            "n": self.chance.randint(2, 5), "x": round(self.chance.uniform(0.3, 1.5), 1),
        }  # fmt: skip
        return row.text.format(**fields), row.margin.format(**fields)

    def take(self, text: str, margin: str = "", *, last: bool = False) -> bool:
        """Run a line; keep it where its value is one to go on with, or the last one."""
        made: dict[str, str] = {}

        def layer(match: re.Match[str]) -> str:
            made[f"l{len(self.program.layers) + len(made)}"] = match[1]
            return f"self.{list(made)[-1]}"

        text = re.sub(r"<(.*?)>(?=[(, )]|$)", layer, text)
        names = {**NAMES, "gaps": gaps, **self.values}
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                layers = {name: _layer(call, self.program.seed, name) for name, call in made.items()}
                names["self"] = types.SimpleNamespace(**self.layers, **layers)
                if margin and not (eval(margin, names).abs() > MARGIN).all():
                    return False
                value = eval(text, names)
        except (RuntimeError, IndexError, ValueError, TypeError, AssertionError):  # it does not fit
            return False
        if not last and not _useful(value):
            return False
        name = f"v{len(self.program.lines)}"
        self.used |= set(_names(text))
        self.layers |= layers
        self.values[name] = value
        self.program.layers.update(made)
        self.program.lines[name] = text
        return True

    def finish(self) -> None:
        """Linear layers that bring together what nothing has used."""
        unused = [name for name, value in self.values.items() if name not in self.used and value.is_floating_point()]
        for name in unused:
            size = self.values[name][0].numel()
            before = self.program.output
            self.take(f"<nn.Linear({size}, {CLASSES})>({name}.flatten(1))", last=True)
            if name != unused[0]:
                self.take(f"{before} + {self.program.output}", last=True)


def _useful(value: Any) -> bool:
    """A batch of numbers, not too many, neither large nor all alike."""
    if not (isinstance(value, Tensor) and value.dtype == torch.float64 and 2 <= value.ndim <= 4 and value.shape[0] == BATCH):
        return False
    enough = 2 <= value[0].numel() <= ENTRIES and bool(value.isfinite().all())
    return (
        enough
        and value.abs().max() < LARGEST
        and bool((value.flatten(1).std(1) > 0.05).all())
        and not bool((value[0] == value[1]).all())
    )


def gaps(x: Tensor, axis: int) -> Tensor:
    """Distances between neighbours in size along an axis. Zeros that are zero on both sides of a kink are no ties."""
    values = x.sort(axis).values
    low, high = values.narrow(axis, 0, values.shape[axis] - 1), values.narrow(axis, 1, values.shape[axis] - 1)
    return torch.where((low == 0) & (high == 0), 1.0, high - low)


def shrunk(program: Program) -> Iterator[Program]:
    """Smaller programs, the smallest first: cut at the end, without one line, with a value that is given in place of made."""
    names = list(program.lines)
    for k in range(len(names) - 1):
        yield program.cut(dict(list(program.lines.items())[: k + 1]))
    with torch.no_grad():
        shapes = _shapes(program)
    for k in reversed(range(len(names) - 1)):
        if names[k] not in shapes or len(shapes[names[k]]) == 0:
            continue
        given = f"x{90 + k}"
        lines = {n: re.sub(rf"\b{names[k]}\b", given, t) for n, t in program.lines.items() if n != names[k]}
        smaller = dataclasses.replace(program, inputs={**program.inputs, given: shapes[names[k]]}).cut(lines)
        if len(smaller.lines) + len(smaller.inputs) < len(program.lines) + len(program.inputs):
            yield smaller
    for k in range(len(names)):
        for used in dict.fromkeys(_names(program.lines[names[k]])):
            if shapes.get(used) == shapes.get(names[k]) and k < len(names) - 1:
                lines = {n: re.sub(rf"\b{names[k]}\b", used, t) for n, t in program.lines.items() if n != names[k]}
                yield program.cut(lines)


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """The shape of a sample of each value."""
    model = program.model()
    values: dict[str, Any] = {
        "torch": torch,
        "nn": nn,
        "F": F,
        "self": model,
        **dict(zip(program.inputs, program.draw(), strict=True)),
    }
    for name, text in program.lines.items():
        values[name] = eval(text, values)
    return {name: tuple(values[name].shape[1:]) for name in (*program.inputs, *program.lines)}
