"""What `compress` returns: a smaller model, what each layer became, and how far its output is from what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from termwise.core.pictures import MANY, Bars, Picture, Pictured, Table

from .factorization import Factorization

if TYPE_CHECKING:
    import pandas

__all__ = ["Compressed", "LayerRow"]


@dataclass(frozen=True)
class LayerRow:
    """What became of one layer.

    Attributes:
        layer: its path.
        shape: (m, n) of its matrix.
        choice: "rank 128", "dense".
        dense, params: numbers before and after, without the bias.
        error: what the method expected it to spoil, squared, in its unit.
        weight_error: |W - W'| / |W|.
    """

    layer: str
    shape: tuple[int, int]
    choice: str
    dense: int
    params: int
    error: float
    weight_error: float


@dataclass(frozen=True, eq=False)
class Compressed(Pictured):
    """A smaller model and its account.

    Attributes:
        model: plain torch modules, over the parameters of the model it was made of where layers stayed. The `save_pretrained` of
            a model of transformers writes the recipe too, and `load_compressed` reads it; `from_pretrained` cannot, and fails.
        method, unit, budget: as asked.
        layers: one row for each layer that could be compressed.
        parts: the factorization of each layer that was replaced, by path.
        left: why other modules with weights were left alone, by path.
        kept: what the compressible layers cost now, as a share of what they cost.
        predicted: change of the output expected by the allocator; NaN where the method does not say.
        measured: change of the output on data that nothing else was done with: |f~ - f| / |f|, or nats per position for "kl".
        metric: "l2" or "kl".
        before: parameters of the whole model as it was.
        gap: additivity: squared change measured on the data that choices were made on, over the sum of the layers' expected ones.
        counted: what of the output a change is measured of, where it is more than one tensor.
        selected: change of the output on the data that choices were made on, in the unit of `measured`; a budget in "error" is a
            ceiling on this one. NaN where it was not looked at.
        held_out: whether there was enough data to keep some apart; else `measured` is of data that all else was done with, too.
    """

    model: nn.Module
    method: str
    unit: str
    budget: float
    layers: list[LayerRow]
    parts: Mapping[str, Factorization]
    left: Mapping[str, str]
    kept: float
    predicted: float
    measured: float
    metric: str
    before: int
    gap: float = math.nan
    counted: str = "the output"
    selected: float = math.nan
    held_out: bool = True

    def __post_init__(self) -> None:
        from .saved import with_recipe

        with_recipe(self.model, self.parts)

    @property
    def after(self) -> int:
        """Parameters of the whole model now."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def zeros(self) -> int:
        """Weights that were set to zero and are stored all the same."""
        return sum(part.whole.numel() - part.rank for part in self.parts.values() if part.form == "masked")

    def summary(self) -> str:
        """What was kept and what it cost, in two lines."""
        data = "held-out data" if self.held_out else "the very data it was fitted to, which says little"
        dense = sum(row.dense for row in self.layers)
        changed = sum(row.choice != "dense" for row in self.layers)
        expected = "" if math.isnan(self.predicted) else f" (expected {self._change(self.predicted)})"
        numbers = sum(row.params for row in self.layers)
        done = (
            f"masked, {self.zeros / dense:.1%} of their weights are zeros ({self.zeros:,} of {dense:,}); "
            f"the model is as large and as fast as it was"
            if self.zeros
            else f"replaced, {self.kept:.1%} of their {self.unit_name} kept ({numbers:,} of {dense:,} numbers; whole model "
            f"{self.after:,} of {self.before:,})"
        )
        return (
            f"{self.method}: {changed} of {len(self.layers)} layers {done}\n"
            f"output changed by {self._change(self.measured)} on {data}{expected}{self._ceiling()}"
        )

    @property
    def unit_name(self) -> str:
        """What the share in `kept` is of."""
        return "params" if self.unit == "error" else self.unit

    def _ceiling(self) -> str:
        if self.unit != "error":
            return ""
        return f", by {self._change(self.selected)} on those that the ceiling of {self._change(self.budget)} holds on"

    def _change(self, value: float) -> str:
        return f"{value:.2%}" if self.metric == "l2" else f"{value:.3g} nats per position"

    def report(self) -> str:
        """A table, one line per layer, the most spoiling first, and the summary."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="dim", padding=(0, 1))
        for title in ("layer", "shape", "choice", "kept", "weights off", "expected error"):
            table.add_column(title, justify="left" if title in ("layer", "choice") else "right")
        for row in sorted(self.layers, key=lambda row: -row.error):
            table.add_row(
                Text(row.layer), f"{row.shape[0]} x {row.shape[1]}", row.choice, f"{row.params / row.dense:.0%}",
                f"{row.weight_error:.1%}", f"{row.error:.2e}",
            )  # fmt: skip
        console = Console(width=120, record=True, file=_Nowhere())
        console.print(table)
        for name, why in self.left.items():
            console.print(f"not compressed: {name} ({why})", markup=False, highlight=False)
        if self.counted != "the output":
            console.print(f"counted of the output: {self.counted}", markup=False, highlight=False)
        console.print(self.summary(), markup=False, highlight=False)
        return "".join(c if c.isprintable() or c == "\n" else "·" for c in console.export_text())  # names may hold escapes

    def show(self) -> None:
        """Print the report."""
        print(self.report())

    def pictures(self, sample: int = 0) -> list[Picture]:
        """How much of each layer was kept and its share of the expected error, as a chart and as a table."""
        total = sum(row.error for row in self.layers if math.isfinite(row.error)) or 1.0
        ranked = sorted(self.layers, key=lambda row: -row.error if math.isfinite(row.error) else 0.0)
        names = {row.layer for row in ranked[:MANY]}
        rows = [row for row in self.layers if row.layer in names]  # in the order of the model
        more = "" if len(rows) == len(self.layers) else f" The {len(rows)} of {len(self.layers)} that spoil most are shown."
        shares = {
            "numbers kept": [row.params / row.dense for row in rows],
            "of the expected error": [row.error / total if math.isfinite(row.error) else math.nan for row in rows],
        }
        note = self.summary().splitlines()[-1]
        heads = ["layer", "outputs", "inputs", "choice", "kept", "weights off by", "expected error"]
        cells = [[row.layer, *row.shape, row.choice, row.params / row.dense, row.weight_error, row.error] for row in ranked]
        note = f"{note[:1].upper()}{note[1:]}.{more}"
        found: list[Picture] = [
            Bars("What became of the layers", [row.layer for row in rows], shares, y="share", note=note),
            Table("Layers, the most spoiling first", heads, cells, note="Errors are squared, in the unit of the method."),
        ]
        if self.left:
            found.append(Table("Left alone", ["module", "why"], [[name, why] for name, why in self.left.items()]))
        return found

    def __repr__(self) -> str:
        return f"Compressed({self.summary()})"

    def to_frame(self) -> pandas.DataFrame:
        """One row per layer."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.layers])

    def save(self, folder: str | Path) -> Path:
        """Write the weights, the recipe and the modules they need: see `saved.save`."""
        from .saved import save

        return save(self, folder)


class _Nowhere:
    """Where a recording console writes."""

    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass
