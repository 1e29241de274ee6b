"""The contract of every method: whole = sum of named parts + remainder, and the remainder is measured.

    remainder = whole - sum_name contribution(name),      contribution(name) = parts[name] summed to whole's shape

`whole` has shape S, first axis the sample where there is one. A part has shape S + extra dims, which is a part of
parts (the pixels of an input, the channels of a bias). Nothing here knows a method: a method returns a Decomposition
or a final subclass that adds what its domain needs.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from . import one_file
from .arguments import Samples, chosen_samples, file_path, number
from .pictures import Picture, Pictured
from .waterfall import sizes, waterfall

if TYPE_CHECKING:
    import numpy
    import pandas
    import xarray

__all__ = ["Decomposition", "DoesNotAddUp"]

FORMAT = 1
"""Version of the file layout written by `Decomposition.save`."""

# Rounding of a long sum: loose enough for a thousand cancelling terms, tight enough to see a lost one.
RTOL = {torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 1e-5, torch.complex64: 1e-5}


COLUMNS = ["sample", "part", "contribution", "share"]
"""Of `to_frame` and `to_csv`."""


class DoesNotAddUp(ArithmeticError):
    """The parts and the whole differ by more than was allowed; the message has the numbers."""


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors with == has no truth value
class Decomposition(Pictured):
    """A tensor written as a sum of named parts and a measured remainder.

    Args:
        whole: what is taken apart, shape S (first axis: samples).
        parts: name -> tensor of shape S + extra dims; the extra dims are summed.

    Raises:
        ValueError: when a part's shape does not begin with S.

    Example:
        >>> whole = torch.tensor([3.0, 5.0])
        >>> d = Decomposition(whole, {"left": torch.tensor([1.0, 2.0]), "right": torch.tensor([[1.0, 1.0], [1.5, 1.5]])})
        >>> d.remainder.tolist(), d.check().error()
        ([0.0, 0.0], 0.0)
    """

    whole: Tensor
    parts: Mapping[str, Tensor]

    _classes: ClassVar[dict[str, type[Decomposition]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Remember the subclass, so that `load` gives it back."""
        super().__init_subclass__(**kwargs)
        Decomposition._classes[f"{cls.__module__}:{cls.__qualname__}"] = cls

    def __post_init__(self) -> None:
        """Refuse parts that cannot be summed to the whole."""
        if not isinstance(self.whole, Tensor):
            raise TypeError(f"the whole must be a tensor, got {type(self.whole).__name__}: torch.as_tensor(...) makes one")
        if not isinstance(self.parts, Mapping):
            raise TypeError(f"parts must be a mapping from names to tensors, got {type(self.parts).__name__}")
        shape = self.whole.shape
        for name in self.parts:
            if not isinstance(name, str) or not isinstance(self.parts[name], Tensor):
                raise TypeError(f"part {name!r} is a {type(self.parts[name]).__name__}: parts are tensors by name, a string")
            if self.parts[name].device != self.whole.device:
                raise ValueError(
                    f"part {name!r} is on {self.parts[name].device} and the whole on {self.whole.device}: move them to one device"
                )
            if self.parts[name].shape[: len(shape)] != shape:
                raise ValueError(
                    f"part {name!r} has shape {tuple(self.parts[name].shape)}, which does not begin with the whole's "
                    f"{tuple(shape)}: give each part the whole's axes first, then its own"
                )

    # -- the identity -------------------------------------------------------------------------------------------------

    def contribution(self, name: str) -> Tensor:
        """The part `name` summed to the shape of `whole`."""
        if name not in self.parts:
            near = difflib.get_close_matches(str(name), self.parts, n=1)
            raise ValueError(
                f"no part {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.parts)}")
            )
        part = self.parts[name]
        return part.flatten(self.whole.ndim).sum(-1) if part.ndim > self.whole.ndim else part

    def contributions(self) -> dict[str, Tensor]:
        """Every part summed to the shape of `whole`, by name."""
        return {name: self.contribution(name) for name in self.parts}

    def total(self) -> Tensor:
        """What the parts make together, shape S. A subclass whose parts do not combine by a sum overrides this."""
        return sum(self.contributions().values(), torch.zeros_like(self.whole))

    @property
    def remainder(self) -> Tensor:
        """`whole - total()`, shape S."""
        return self.whole - self.total()

    def error(self) -> float:
        """The worst sample's |remainder| / |whole| (Euclidean norms over a sample's axes).

        Where a sample's whole is exactly 0 a relative error is undefined, and |remainder| itself is taken.
        """
        return _worst_ratio(self.remainder.unsqueeze(-1), self.whole.unsqueeze(-1))

    def cancellation(self) -> float:
        """How much the parts fight: the worst sample's sum of |parts|, element by element, over |whole|.

        1 means that nothing cancels. At 1000, parts a thousand times the whole compensate each other, and a single
        one of them says little. Where the whole is exactly 0 the sum of |parts| itself is taken.
        """
        dims = self.whole.ndim
        size = torch.zeros_like(self.whole.abs())
        for part in self.parts.values():
            size = size + (part.abs().flatten(dims).sum(-1) if part.ndim > dims else part.abs())
        return _worst_ratio(size.unsqueeze(-1), self.whole.unsqueeze(-1))

    def check(self, rtol: float | None = None) -> Self:
        """Return self when `error() <= rtol`.

        Args:
            rtol: largest relative remainder allowed; by dtype when not given (1e-9 in float64, 1e-5 in float32,
                1e-2 in half precision).

        Raises:
            DoesNotAddUp: with the numbers, when it does not.
        """
        allowed = number(RTOL.get(self.whole.dtype, 1e-2) if rtol is None else rtol)
        if allowed is None or not allowed >= 0:
            raise ValueError(f"rtol is the largest relative remainder allowed, a number of 0 or more; got {rtol!r}")
        error = self.error()
        if not error <= allowed:  # not >: a NaN must fail
            raise DoesNotAddUp(
                f"{len(self.parts)} parts make {_numbers(self.total())} of {_numbers(self.whole)}: the remainder is "
                f"{error:.2g} of the whole, allowed were {allowed:.2g} (cancellation {self.cancellation():.3g}x)"
            )
        return self

    # -- looking at it ------------------------------------------------------------------------------------------------

    def __getitem__(self, samples: Samples) -> Self:
        """Some of the samples (first axis).

        Args:
            samples: a number, which keeps the axis, with one sample; a slice; several numbers, or a mask with one boolean for
                each sample, as a list, an array or a tensor.

        Raises:
            IndexError: for a sample that there is not, or a mask of another length.
            TypeError: for anything else.
        """
        rows = chosen_samples(samples, len(self))
        chosen: dict[str, Any] = {
            f.name: _take(getattr(self, f.name), rows, len(self)) for f in fields(self) if f.name != "parts"
        }
        return replace(self, parts={name: part[rows] for name, part in self.parts.items()}, **chosen)

    def __len__(self) -> int:
        """Number of samples."""
        if not self.whole.ndim:
            raise TypeError("this decomposition has a single number as its whole, and no samples to count or select")
        return len(self.whole)

    def __iter__(self) -> Any:
        """One decomposition per sample."""
        return (self[i] for i in range(len(self)))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The same with every floating tensor moved by `torch.Tensor.to` (a device, a dtype)."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(*args, **kwargs) if value.is_floating_point() or value.is_complex() else value
            if isinstance(value, Mapping):
                return {k: move(v) for k, v in value.items()}
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def to_xarray(self) -> xarray.Dataset:
        """An xarray Dataset: `whole`, `remainder`, `contribution` (part, ...) and each part under its own name."""
        import xarray

        axes = ["sample", *(f"axis_{i}" for i in range(1, self.whole.ndim))][: self.whole.ndim]

        def array(value: Tensor, name: str) -> xarray.DataArray:
            own = [f"{name}_{i}" for i in range(value.ndim - self.whole.ndim)]
            return xarray.DataArray(_numpy(value), dims=[*axes, *own])

        contributions = self.contributions()
        stacked = torch.stack(list(contributions.values())) if contributions else self.whole.new_zeros(0, *self.whole.shape)
        return xarray.Dataset(
            {
                **{name: array(part, name) for name, part in self.parts.items()},
                "whole": array(self.whole, "whole"),
                "remainder": array(self.remainder, "remainder"),
                "contribution": (["part", *axes], _numpy(stacked)),
            },
            coords={"part": list(contributions)},
        )

    def to_frame(self) -> pandas.DataFrame:
        """A pandas DataFrame, one row per sample and part, with its contribution and its share of the whole."""
        import pandas

        return pandas.DataFrame(self._rows(), columns=COLUMNS)

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows of `to_frame` as a CSV file, without pandas.

        A spreadsheet takes text that begins with one of = + - @ for a formula; such names of parts get an apostrophe in front.

        Args:
            path: where to; `.csv` is appended when there is no suffix.

        Returns:
            The path written.

        Raises:
            OSError: when it cannot be written.
        """
        path = file_path(path, ".csv")
        if path.is_dir() or not path.parent.is_dir():
            raise OSError(f"{path} cannot be written: name a file in a folder that exists")
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({**row, "part": _no_formula(row["part"])} for row in self._rows())
        return path

    def _rows(self) -> list[dict[str, Any]]:
        """One per sample and part, sample by sample; the remainder is the last of each."""
        whole = self.whole.reshape(len(self.whole), -1).sum(-1) if self.whole.ndim else self.whole.reshape(1)
        sums = {
            name: value.reshape(len(whole), -1).sum(-1).tolist()
            for name, value in {**self.contributions(), "remainder": self.remainder}.items()
        }
        return [
            {"sample": i, "part": name, "contribution": s[i], "share": s[i] / w if w else math.nan}
            for i, w in enumerate(whole.tolist())
            for name, s in sums.items()
        ]

    def summary(self) -> str:
        """One honest line: what it adds up to, and how much the parts fight."""
        return f"{len(self.parts)} parts, adds up to {self.error():.1e} (cancellation {self.cancellation():.3g}x)"

    def __repr__(self) -> str:
        """Class, shape and the honest line."""
        return f"{type(self).__name__}(whole {tuple(self.whole.shape)} {self.whole.dtype}: {self.summary()})"

    def show(self, sample: int = 0) -> None:
        """Print one sample of the decomposition as a table in the terminal.

        Raises:
            ValueError: when there is no such sample.
        """
        from termwise.report.terminal import show

        show(self, sample)

    @property
    def by_sample(self) -> bool:
        """Whether the first axis of the whole counts samples; where it does not, all of it is one thing to look at."""
        return self.whole.ndim > 0

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What there is to be seen of one sample: a waterfall where it is one number, else the sizes of the parts.

        Raises:
            ValueError: when there is no such sample.
        """
        one_number = self.whole.ndim == self.by_sample and not self.whole.is_complex()
        return [waterfall(self, sample) if one_number else sizes(self, sample)]

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: tensors as tensors, everything else as JSON in its header. No pickle.

        Args:
            path: where to; `.safetensors` is appended when there is no suffix.

        Returns:
            The path written. An existing file is replaced only once the new one is whole.

        Raises:
            TypeError: when a field is neither a tensor nor JSON.
            OSError: when the path cannot be written.
        """
        tensors, header = self.packed()
        # complex numbers, which the format has in single precision only
        stored = {k: torch.view_as_real(v.detach().resolve_conj()) if v.is_complex() else v for k, v in tensors.items()}
        return one_file.write(path, stored, "termwise", header)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file keeps of it: the tensors by name, and everything else as JSON.

        Returns:
            (tensors, header): a field's name, or field/key for mappings, -> tensor; and the JSON that `unpacked` reads.
        """
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                tensors[f.name] = value
            elif isinstance(value, Mapping) and value and all(isinstance(v, Tensor) for v in value.values()):
                tensors |= {f"{f.name}/{k}": v for k, v in value.items()}
                plain[f.name] = {"tensors": list(value)}  # keeps the order of the names
            else:
                plain[f.name] = {"json": value}
        pairs = [k for k, v in tensors.items() if v.is_complex()]
        name = f"{type(self).__module__}:{type(self).__qualname__}"
        return tensors, {"format": FORMAT, "class": name, "fields": plain, "complex": pairs}

    @staticmethod
    def unpacked(tensors: Mapping[str, Tensor], header: Mapping[str, Any], source: str | Path) -> Decomposition:
        """The decomposition that `packed` was of. Runs no code: a class is one that is defined, or one of ours.

        Args:
            tensors: by name; complex ones may be complex or, as a file has them, pairs of reals.
            header: the JSON.
            source: where it comes from, for messages.

        Raises:
            ValueError: for a newer format, or a class that is not defined here.

        Example:
            >>> d = Decomposition(torch.ones(1), {"a": torch.ones(1, 2) / 2})
            >>> Decomposition.unpacked(*d.packed(), "memory").check()
            Decomposition(whole (1,) torch.float32: 1 parts, adds up to 0.0e+00 (cancellation 1x))
        """
        return _read(header, dict(tensors), source)

    @staticmethod
    def load(path: str | Path) -> Decomposition:
        """Read what `save` wrote, as the class that wrote it. Runs no code from the file.

        Args:
            path: as it was given to `save`.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when the file is no decomposition, or was written by a newer version.
        """
        return one_file.read(path, "termwise", _read, holds="a decomposition", saver="Decomposition.save")


Decomposition._classes[f"{Decomposition.__module__}:Decomposition"] = Decomposition


def _read(content: Any, tensors: dict[str, Tensor], path: str | Path) -> Decomposition:
    """The decomposition that a header describes."""
    one_file.refuse_newer(path, content["format"], FORMAT)
    for name in content.get("complex", ()):
        if not tensors[name].is_complex():  # aligned anew: a file aligns to 8 bytes, complex128 needs 16
            tensors[name] = torch.view_as_complex(tensors[name].clone())
    values: dict[str, Any] = {}
    for name, stored in content["fields"].items():
        if "json" in stored:
            values[name] = stored["json"]
        else:
            values[name] = {key: tensors.pop(f"{name}/{key}") for key in stored["tensors"]}
    values |= tensors
    return _class(content["class"], path)(**values)


def _class(name: str, path: str | Path) -> type[Decomposition]:
    """The class a file names: one already defined, or one of ours, never a module that the file chooses."""
    module = name.partition(":")[0]
    if name not in Decomposition._classes and module.startswith("termwise."):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    if name not in Decomposition._classes:
        raise ValueError(f"{path} holds a {name}, which is not defined here: import its module first")
    return Decomposition._classes[name]


def _worst_ratio(part: Tensor, whole: Tensor) -> float:
    """Max over samples of |part| / |whole|; |part| where the whole is 0."""
    part, whole = (t.detach().reshape(t.shape[0], math.prod(t.shape[1:])).to(_wide(t)).norm(dim=1) for t in (part, whole))
    ratios = torch.where(whole == 0, part, part / torch.where(whole == 0, torch.ones_like(whole), whole))
    return ratios.max().item() if ratios.numel() else 0.0


def _no_formula(name: str) -> str:
    """A name that no spreadsheet computes."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else name


def _wide(t: Tensor) -> torch.dtype:
    """A dtype in which a norm does not overflow."""
    return torch.complex128 if t.is_complex() else torch.float64


def _take(value: Any, samples: slice | Tensor, batch: int) -> Any:
    """The chosen samples of a field, where it has one entry per sample; the field itself otherwise."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value[samples]
    if isinstance(value, list) and len(value) == batch:
        return value[samples] if isinstance(samples, slice) else [value[i] for i in torch.arange(batch)[samples]]
    return value


def _numpy(t: Tensor) -> numpy.ndarray:
    t = t.detach().cpu()
    return t.float().numpy() if t.dtype == torch.bfloat16 else t.resolve_conj().numpy()


def _numbers(values: Tensor) -> str:
    """A few of the values, for a message."""
    flat = [f"{v:.6g}" for v in values.detach().flatten()[:3].tolist()]
    return ", ".join(flat) + (", ..." if values.numel() > 3 else "")
