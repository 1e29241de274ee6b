"""What the layers of a model read, over a data set of any size: sums of batches, which `tw.compress` takes.

    N, sum x, sum |x|, sum x x^T     per layer,     scatter = sum x x^T - N mean mean^T

Sums of batches are added in their order, whoever made them: the result does not depend on the number of workers. In float64 that
loses the square of what the mean is larger than the spread: 1e-16 becomes 1e-12 where it is a hundred times as large.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from termwise.core.arguments import whole_number
from termwise.engine import Answers, Dataset, Results, Row, RowResult
from termwise.jobs import OfModel, alike, identity, together
from termwise.own_model import named_or_own
from termwise.weights import CalibrationStats, LayerStats, find_layers

__all__ = ["StatisticsJob", "sample", "statistics"]

CHUNK, TOKENS = 32, 2048
"""Rows in a pass, at most, and tokens of a language model, which gives numbers for a whole vocabulary at each."""


@dataclass
class StatisticsJob(OfModel):
    """Gather statistics of what the layers read that `tw.compress` may take apart.

    A batch leaves 8 n^2 bytes for each layer of n inputs on the disk until the run is finished: make batches large. Rows of a
    batch that have the same shape share passes of 32. Where the model wraps a language model (`language_model`), as those of the
    zoo do, that one is asked, and a row is a text to it, never padded.

    Args:
        model: a name of the zoo, or path/to/file.py:factory.
        takes: what the data set holds, "text" or "image".
        keep: as of `tw.compress`.
        weights: as of `own_model.load`.
        size: side of the picture that your model takes.
        window: tokens of a language model's row, which is cut there.
    """

    model: str
    takes: Literal["text", "image"] = "text"
    keep: Sequence[str] = ()
    weights: Path | None = None
    size: int | None = None
    window: int = 512

    verb: ClassVar[str] = "statistics"
    decomposes: ClassVar[bool] = False
    scalars: ClassVar[Mapping[str, type]] = {}

    def __post_init__(self) -> None:
        self.window = whole_number("window", self.window)

    def settings(self) -> dict[str, Any]:
        """What was asked."""
        return {"model": self.named, "keep": list(self.keep), "size": self.size}

    def start(self) -> dict[str, Any]:
        """Load the model.

        Raises:
            ValueError: a model that takes something else; else as `own_model.load` and `find_layers`.
        """
        subject = named_or_own(self.model, self.weights, None, self.size)
        if subject.kind != self.takes:
            raise ValueError(f"{self.model} takes {subject.kind}, the data set holds {self.takes}")
        net: Any = getattr(subject.model, "language_model", subject.model) if self.takes == "text" else subject.model
        self._subject, self.net = subject, net
        self._layers = find_layers(net, self.keep)[0]
        if net is subject.model:
            return identity(self.model, subject)
        if hasattr(net, "config"):
            net.config.use_cache = False
        return identity(self.model, subject) | {"window": self.window}

    def run(self, rows: Sequence[Row]) -> Answers:
        """Sums of a batch. What is drawn (patches of pictures) is drawn from the numbers of its rows."""
        failed, groups = alike(self.prepared, rows)
        passes = [group[i : i + n] for group in groups for n in [self._rows(group[0][1])] for i in range(0, len(group), n)]
        if not passes:
            return Answers([failed[row.index] for row in rows])
        batches = [together([x for _, x in some]) for some in passes]
        seed = torch.Generator().manual_seed(rows[0].index)
        found = CalibrationStats.collect(self.net, batches, self._layers, generator=seed)
        sums: dict[str, Tensor] = {}
        for name, one in found.items():
            n = one.count
            sums |= {f"{name}/count": torch.tensor(n), f"{name}/sum": one.mean * n, f"{name}/absolute": one.abs_mean * n}
            sums[f"{name}/products"] = one.scatter + torch.outer(one.mean, one.mean) * n
        return Answers([failed.get(row.index, RowResult()) for row in rows], sums)

    def _rows(self, x: Any) -> int:
        """That pass together with one like this."""
        return CHUNK if self.net is self.subject.model else max(1, min(CHUNK, TOKENS // x["input_ids"].shape[1]))

    def prepared(self, value: Any) -> Any:
        """What the model takes for a row; a text that is too long is cut."""
        if self.takes == "image":
            return self.subject.prepare(value)
        x = self.subject.prepare(value, truncate=True)
        if not x["input_ids"].numel():
            raise ValueError("the text has no tokens")
        return x if self.net is self.subject.model else {name: ids[:, : self.window] for name, ids in x.items()}


def statistics(results: Results) -> CalibrationStats:
    """Those of all rows of a finished run.

    Raises:
        ValueError: when it is not finished, or gathered something else.
    """
    sums = results.statistics
    names = [key.removesuffix("/products") for key in sums if key.endswith("/products")]
    if not names:
        raise ValueError(f"{results.path} holds no statistics of layers: it is of {results.manifest['verb']}, or not finished")
    found = {}
    for name in names:
        count = int(sums[f"{name}/count"])
        mean = sums[f"{name}/sum"] / count
        scatter = sums[f"{name}/products"] - torch.outer(mean, mean) * count
        found[name] = LayerStats(count, mean, scatter, sums[f"{name}/absolute"] / count)
    return CalibrationStats(found)


def sample(job: StatisticsJob, data: Dataset, count: int, folder: Path) -> tuple[Any, list[Any]]:
    """The model proper, and some rows of the data as it takes them, for what is no sum over all. They are drawn with seed 0.

    Args:
        job: whose model.
        data: from where.
        count: how many, at most; those that cannot be read are left out.
        folder: where `sample.json` says which they are.
    """
    job.start()
    chosen = random.Random(0).sample(range(len(data)), min(count, len(data)))
    rows = [row for i in chosen for row in data.rows(i, i + 1) if row.problem is None]
    _, groups = alike(job.prepared, rows)
    read = {row.index: x for group in groups for row, x in group}
    good = [row.index for row in rows if row.index in read]  # in the order that they were drawn
    (folder / "sample.json").write_text(json.dumps({"seed": 0, "rows": good}), "utf-8")
    return job.net, [read[index] for index in good]
