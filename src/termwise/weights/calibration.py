r"""What the layers of a model read: means, scatter matrices and sizes of their inputs, in one pass over some data.

    scatter = sum_i (x_i - mean)(x_i - mean)^T,     C = scatter / N,     G = C + mean mean^T

Batches are joined by the pairwise update, which does not cancel where the mean is large beside the spread:

    scatter <- scatter + scatter_b + d d^T N N_b / (N + N_b),     d = mean_b - mean

Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, eq. 2.1.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from termwise.core import one_file
from termwise.core.pictures import MANY, Bars, Line, Lines, Picture, Pictured, Steps, Table

from .batches import call, evaluating
from .gathered import Gathered
from .layers import Layer

__all__ = ["CalibrationStats", "LayerStats", "kept_tokens", "rows_read", "shrink"]

FORMAT = 1
"""Of files of statistics."""

SPECTRA = 512
"""Inputs up to which a picture has their spectrum."""

PATCHES = 256
"""Rows of a picture that a convolution reads, at most."""


@dataclass(frozen=True, eq=False)
class LayerStats(Pictured):
    """Statistics of N rows x of size n.

    Attributes:
        count: N.
        mean: shape (n,).
        scatter: centred, shape (n, n).
        abs_mean: mean of |x|, shape (n,).
    """

    count: int
    mean: Tensor
    scatter: Tensor
    abs_mean: Tensor

    @classmethod
    def of(cls, rows: Tensor, dtype: torch.dtype = torch.float64) -> Self:
        """Those of rows of shape (N, n)."""
        rows = rows.detach().to(dtype)
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred, rows.abs().mean(0))

    def merge(self, other: LayerStats) -> LayerStats:
        """Those of both together. Associative, so that workers can share the data."""
        count = self.count + other.count
        share, d = other.count / count, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(d, d) * (self.count * share)
        return LayerStats(count, self.mean + d * share, scatter, self.abs_mean + (other.abs_mean - self.abs_mean) * share)

    @property
    def covariance(self) -> Tensor:
        """C, shape (n, n)."""
        return self.scatter / self.count

    @property
    def gram(self) -> Tensor:
        """G = E[x x^T], shape (n, n)."""
        return self.covariance + torch.outer(self.mean, self.mean)

    @property
    def norms(self) -> Tensor:
        """Root mean square of each entry, shape (n,): WANDA's column norms over sqrt(N)."""
        return (self.covariance.diagonal() + self.mean.square()).sqrt()

    @property
    def directions(self) -> float:
        """(trace G)^2 / |G|^2: in how many directions the inputs spread, from 1 to n. Cost: O(n^2)."""
        gram = self.gram
        return float(gram.trace().square() / gram.square().sum().clamp_min(torch.finfo(gram.dtype).tiny))

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The spectrum of what the layer reads, where it is small enough, and the sizes of its inputs."""
        n = len(self.mean)
        sizes = self.norms.sort(descending=True).values.tolist()
        step = -(-n // 512)
        line = Line("inputs", list(range(1, n + 1, step)), sizes[::step])
        note = f"Of {self.count} rows. They spread in about {self.directions:.1f} directions of {n}."
        found: list[Picture] = [
            Lines("Inputs, the largest first", [line], x="rank of the input", y="root mean square", log_y=True, note=note)
        ]
        if n <= SPECTRA:
            energies = torch.linalg.eigvalsh(self.gram.double()).flip(0).clamp_min(0)
            spectrum = Line("energy", list(range(1, n + 1)), energies.tolist())
            left = Line(
                "left over by so many directions", list(range(n)), energies.flip(0).cumsum(0).flip(0).tolist(), role="remainder"
            )
            found.insert(0, Lines("Spectrum of the inputs", [spectrum, left], x="direction", y="energy E (v·x)²", log_y=True))
        return found


@dataclass(frozen=True)
class CalibrationStats(Mapping[str, LayerStats], Pictured):
    """Statistics by path of a layer. Layers that read the same tensor share one object.

    Attributes:
        layers: as named; a layer that the data never reached is missing.
    """

    layers: dict[str, LayerStats]

    def __getitem__(self, name: str) -> LayerStats:
        return self.layers[name]

    def __iter__(self) -> Any:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """In how many directions spreads what each layer reads, and the statistics of some layers one by one."""
        names = list(self.layers)
        shown = [names[round(i * (len(names) - 1) / max(min(MANY, len(names)) - 1, 1))] for i in range(min(MANY, len(names)))]
        if not names:
            return [Table("Nothing was read", ["layer"], [])]
        share = {"directions, as a share of the inputs": [self[n].directions / len(self[n].mean) for n in shown]}
        note = "(trace G)² / |G|² over the number of inputs: where it is small, few directions carry the layer."
        more = f" {len(shown)} of {len(names)} layers are shown, evenly chosen." if len(shown) < len(names) else ""
        bars = Bars("Directions that layers read", shown, share, y="share", note=note + more)
        some = shown[:: -(-len(shown) // 8)]
        return [bars, Steps("What a layer reads", "layer", some, [self[n].pictures()[0] for n in some])]

    @classmethod
    def collect(
        cls,
        model: nn.Module,
        batches: Iterable[Any],
        layers: Mapping[str, Layer],
        *,
        dtype: torch.dtype = torch.float64,
        patches: int = PATCHES,
        mask: str | None = "attention_mask",
        generator: torch.Generator | None = None,
        run: Callable[[nn.Module, Any], Any] = call,
    ) -> CalibrationStats:
        """Run the model on batches and keep what its layers read.

        Args:
            model: run as it is, in evaluation mode; hooks, modes and random state are afterwards as they were.
            batches: as `read_batches` gives them.
            layers: whose inputs to look at.
            dtype: of the sums. float32 loses the directions below 1e-7 of the largest.
            patches: rows taken at random from each picture that a convolution reads; all of them where there are fewer.
            mask: name of the keyword argument that is 0 where a token is padding; such rows do not count.
            generator: whose seed the patches are drawn with, those of a batch alike for every layer; seed 0 when not given.
            run: runs the model on a batch, where the pass serves another purpose as well.

        Returns:
            The statistics.

        Raises:
            ValueError: when a batch does not fit the model, or a layer reads NaN or infinity.

        Cost: one forward pass per batch and N n^2 per layer; layers that read one tensor pay once. Memory: O(sum of n^2).
        """
        batches = list(batches) if isinstance(batches, Iterator) else batches  # it may be run through twice
        for share in (True, False):  # the second time where layers read the same tensor in one call and not in another
            seen = _Run(dict(layers), dtype, patches, 0 if generator is None else generator.initial_seed(), share)
            handles = [layer.module.register_forward_hook(seen.hook(name), with_kwargs=True) for name, layer in layers.items()]
            try:
                with evaluating(model), torch.no_grad():
                    for batch in batches:
                        seen.look(functools.partial(run, model), batch, mask)
            except _Differs:
                continue
            finally:
                for handle in handles:
                    handle.remove()
            break
        return cls(seen.finish())

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file."""
        shared: dict[int, str] = {}
        first = {name: shared.setdefault(id(stats), name) for name, stats in self.layers.items()}
        tensors = {
            f"{name}/{part}": getattr(self.layers[name], part).contiguous()
            for name in dict.fromkeys(first.values())
            for part in ("mean", "scatter", "abs_mean")
        }
        counts = {name: self.layers[name].count for name in first}
        return one_file.write(path, tensors, "termwise", {"format": FORMAT, "shared": first, "counts": counts})

    @classmethod
    def load(cls, path: str | Path) -> CalibrationStats:
        """Read what `save` wrote."""

        def make(header: Any, tensors: dict[str, Tensor], path: Path) -> CalibrationStats:
            one_file.refuse_newer(path, header["format"], FORMAT)
            own = {
                name: LayerStats(header["counts"][name], *(tensors[f"{name}/{p}"] for p in ("mean", "scatter", "abs_mean")))
                for name in dict.fromkeys(header["shared"].values())
            }
            return cls({name: own[first] for name, first in header["shared"].items()})

        return one_file.read(path, "termwise", make, holds="statistics of calibration", saver="CalibrationStats.save")


class _Differs(Exception):
    """Layers read the same tensor in one call and not in another."""


class _Run:
    """The hooks' memory: what each layer read so far."""

    def __init__(self, layers: dict[str, Layer], dtype: torch.dtype, patches: int, seed: int, share: bool) -> None:
        self.layers, self.dtype, self.patches, self.seed, self.share = layers, dtype, patches, seed, share
        self.stats: dict[str, LayerStats] = {}
        self.keep: Tensor | None = None
        self.leaders: dict[str, str] = {}
        self.gathered = {name: Gathered(functools.partial(self.merge, name)) for name in layers}
        self.seen: list[tuple[Any, int, tuple[Any, ...], str]] = []

    def look(self, run: Callable[[Any], Any], batch: Any, mask: str | None) -> None:
        """Run one batch."""
        self.keep = kept_tokens(batch, mask)
        run(batch)
        self.seen.clear()
        self.seed += 1

    def hook(self, name: str) -> Any:
        layer = self.layers[name]

        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
            x = layer.read(args, kwargs)
            how = (type(layer.module), getattr(layer.module, "kernel_size", None), getattr(layer.module, "stride", None),
                   getattr(layer.module, "padding", None), getattr(layer.module, "dilation", None))  # fmt: skip
            same = (n for ref, version, h, n in self.seen if ref() is x and version == x._version and h == how)
            leader = next(same, None) if self.share else None
            if self.leaders.setdefault(name, leader or name) != (leader or name):
                raise _Differs
            if leader is not None:
                return
            self.seen.append((weakref.ref(x), x._version, how, name))
            draws = torch.Generator().manual_seed(self.seed)  # alike for every layer, whichever are looked at
            self.gathered[name].add(rows_read(layer, x.detach(), self.keep, draws, self.patches))

        return read

    def merge(self, name: str, rows: Tensor) -> None:
        new = LayerStats.of(rows, self.dtype)
        self.stats[name] = self.stats[name].merge(new) if name in self.stats else new

    def finish(self) -> dict[str, LayerStats]:
        """Everything, by layer; followers share what their leader has."""
        for gathered in self.gathered.values():
            gathered.finish()
        for name, stats in self.stats.items():
            if not stats.mean.isfinite().all() or not stats.scatter.diagonal().isfinite().all():
                raise ValueError(
                    f"{name!r} reads NaN or infinity when the model runs on data: mend the model, or leave out the samples that "
                    "it has no answer to"
                )
        return {name: self.stats[leader] for name, leader in self.leaders.items() if leader in self.stats}


def rows_read(layer: Layer, x: Tensor, keep: Tensor | None, generator: torch.Generator, patches: int = PATCHES) -> Tensor:
    """Rows of one call: a sample of the patches of a picture, the tokens that are none of padding (`keep`)."""
    rows = layer.rows(x)
    if isinstance(layer.module, nn.Conv2d) and len(rows) > patches * len(x):
        return rows[torch.randperm(len(rows), generator=generator)[: patches * len(x)].to(rows.device)]
    if keep is not None and x.shape[:-1] == keep.shape:
        return rows[keep.reshape(-1)]
    return rows


def kept_tokens(batch: Any, mask: str | None = "attention_mask") -> Tensor | None:
    """Where a token counts; None where all do."""
    if mask is None or not isinstance(batch, Mapping) or not isinstance(batch.get(mask), Tensor) or batch[mask].ndim != 2:
        return None
    kept: Tensor = batch[mask] != 0
    return None if kept.all() else kept


def shrink(gram: Tensor, share: float) -> Tensor:
    """(1 - share) G + share (tr G / n) I: between the data (0) and no data at all (1), against over-fitting few rows."""
    size = gram.diagonal().mean()
    return torch.eye(len(gram), dtype=gram.dtype, device=gram.device).mul_(share * size).add_(gram, alpha=1 - share)
