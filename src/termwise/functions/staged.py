r"""A function as a sum of stages, each fitted to what those before it left: what the regressor and the solver share.

    u(x) = sum_n u_n(x),    u_n = eps_n N_n

Source: Wang & Lai 2023.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from termwise.core import one_file
from termwise.core.arguments import integer
from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Line, Lines, Picture, Pictured

from .dominant_frequency import resolved
from .progress import progress_bar
from .quasi_newton import OPTIMIZERS
from .stage import Stage, StageRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Staged", "box", "factor", "magnitude", "points", "whole"]

FORMAT = 1
"""Version of the file layout written by `Staged.save`."""


class Report(Protocol):
    """What a progress bar is told."""

    def __call__(self, done: int) -> None:
        """So many iterations more."""


class Staged(Pictured):
    """A sum of fitted stages.

    Attributes:
        fitted: the stages.
        history: a `StageRecord` for each.
    """

    fitted: list[Stage]
    history: list[StageRecord]

    def __init__(self, stages: int, hidden: Sequence[int], iterations: int, optimizer: str) -> None:
        """Check what the two have in common."""
        whole(stages=stages, iterations=iterations)
        if not isinstance(hidden, Sequence) or not hidden or not all(integer(n) is not None and n > 0 for n in hidden):
            raise ValueError(f"hidden has a width for each hidden layer, as (20, 20): got {hidden!r}")
        if optimizer not in OPTIMIZERS:
            near = difflib.get_close_matches(str(optimizer), OPTIMIZERS, 1, 0.3)
            raise ValueError(
                f"optimizer is one of {', '.join(OPTIMIZERS)}, got {optimizer!r}; nearest is {(near or OPTIMIZERS)[0]}"
            )
        self.stages, self.hidden, self.iterations = int(stages), tuple(map(int, hidden)), int(iterations)
        self.optimizer = optimizer
        self.fitted, self.history = [], []

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        left = f": {len(self.history)} fitted, {self.history[-1].left:.1e} left" if self.history else ""
        return f"{type(self).__name__}({given}){left}"

    def predict(self, X: Any) -> Tensor:
        """The sum of the stages at points.

        Args:
            X: (n,) or (n, d), a float64 tensor or array.

        Returns:
            (n,).

        Raises:
            ValueError: before `fit`; for points of another dimension.
            TypeError: for points that are not float64.
        """
        parts = self._parts(X)
        return torch.stack(list(parts.values())).sum(0)

    def decompose(self, X: Any, y: Any = None) -> Decomposition:
        """Every stage's share at points.

        Args:
            X: (n,) or (n, d), a float64 tensor or array.
            y: the true values there, (n,).

        Returns:
            A Decomposition with parts `stage_0`, `stage_1`, ...; whole is y, and the remainder the error of the fit. Without y
            the whole is what `predict` gives.

        Raises:
            ValueError, TypeError: as `predict`; ValueError for y of another shape.
        """
        parts = self._parts(X)
        whole = torch.stack(list(parts.values())).sum(0) if y is None else points(y, "y").reshape(-1)
        if whole.shape != parts["stage_0"].shape:
            raise ValueError(f"y is ({len(parts['stage_0'])},), one value per point; got {tuple(whole.shape)}")
        return Decomposition(whole, parts)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What is left after each stage, and the frequency of what each was given.

        Raises:
            ValueError: before `fit`.
        """
        self._check_fitted()
        left = [self.history[0].eps, *(r.left for r in self.history)]
        curve = Line("left over", list(range(len(left))), left, role="remainder")
        note = f"At 0 the values themselves. After {len(self.history)} stages {left[-1] / (left[0] or 1.0):.1e} of them are left."
        found: list[Picture] = [
            Lines("What is left after each stage", [curve], x="stages", y="root mean square", log_y=True, note=note)
        ]
        if later := [r for r in self.history if r.f_d]:
            given = Line("what a stage was given", [max(r.f_d) for r in later], [r.eps for r in later], markers=True)
            x, y = "dominant frequency (periods per unit of length)", "its root mean square"
            found.append(Lines("Smaller and faster", [given], x=x, y=y, log_x=True, log_y=True))
        return found

    def _repr_html_(self) -> str | None:  # type: ignore[override]
        """The pictures; nothing before `fit`, where a notebook prints the class instead."""
        return super()._repr_html_() if self.fitted else None

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: weights as tensors, the rest as JSON in its header. No pickle.

        Args:
            path: where to; `.safetensors` is appended when there is no suffix.

        Returns:
            The path written; `MultiStage.load` reads it. An equation is code, and is not in it.

        Raises:
            ValueError: before `fit`.
            OSError: when the path cannot be written.
        """
        self._check_fitted()
        tensors = {f"{i}.{k}": v for i, s in enumerate(self.fitted) for k, v in s.state_dict().items()}
        header = {"format": FORMAT, "options": self._options(), "history": [asdict(r) for r in self.history]}
        return one_file.write(path, tensors, "termwise.multistage", header)

    # -- what fitting is made of --------------------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        """What a file keeps of how the stages were to be fitted."""
        return {"stages": self.stages, "hidden": self.hidden, "iterations": self.iterations, "optimizer": self.optimizer}

    def _parts(self, X: Any) -> dict[str, Tensor]:
        self._check_fitted()
        x = points(X, "X")
        if x.shape[1] != (d := len(self.fitted[0].centre)):
            raise ValueError(f"X has points of {x.shape[1]} coordinates, the stages were fitted to {d}: give (n, {d})")
        with torch.no_grad():
            return {f"stage_{n}": stage(x) for n, stage in enumerate(self.fitted)}

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError(f"this {type(self).__name__} has no stages yet: call fit first")

    @contextmanager
    def _bar(self, shown: bool) -> Iterator[Report]:
        """A progress bar over all iterations of all stages."""
        with progress_bar(self.stages * self.iterations, show=shown) as advance:
            yield lambda done: advance(done, f"stage {len(self.fitted)}")


def points(values: Any, name: str) -> Tensor:
    """Float64 points, (n, d), out of a tensor or array of (n,) or (n, d).

    Raises:
        TypeError: for anything but float64.
        ValueError: for other shapes, none at all, or values that are not finite.
    """
    kind = None if hasattr(values, "dtype") else torch.float64  # numbers of Python are float64
    found = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=kind)
    if found.dtype != torch.float64:
        raise TypeError(
            f"{name} is {str(found.dtype).removeprefix('torch.')}, the stages work in float64: float32 rounds at 6e-8 of the "
            f"whole, and every stage from there on fits that rounding. Compute {name} in float64, or accept that with .double()"
        )
    found = found.detach().unsqueeze(1) if found.ndim == 1 else found.detach()
    if found.ndim != 2 or not found.numel():
        raise ValueError(f"{name} is (n,) or (n, d) with at least one point, got {tuple(found.shape)}")
    if not bool(found.isfinite().all()):
        row = int((~found.isfinite()).any(1).nonzero()[0, 0])
        raise ValueError(f"{name} is not finite at point {row} ({found[row].tolist()}): leave such points out")
    return found


def magnitude(values: Tensor) -> float:
    """Root mean square, of numbers of any size: their squares alone may underflow."""
    scale = 2.0 ** math.frexp(float(values.abs().max()))[1]  # a power of two, by which division is exact
    return scale * (values / scale).square().mean().sqrt().item()


def whole(**given: Any) -> None:
    """Refuse what are no whole numbers of 1 or more."""
    for name, value in given.items():
        if integer(value) is None or value < 1:
            raise ValueError(f"{name} is a whole number of 1 or more, got {value!r}")


def box(x: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest corner of points (n, d)."""
    low, high = x.amin(0), x.amax(0)
    if not bool((high > low).all()):
        raise ValueError(f"X has no extent along axis {int((high - low).argmin())}: its points all lie at one place there")
    return low, high


def factor(x: Tensor, f_d: Tensor, stage: int) -> Tensor:
    """Kappa = 2 pi f_d in coordinates of [-1, 1], at least 1; warns where the points cannot show that frequency.

    N >= 3 pi f_d points per unit of length are asked for.
    """
    short = resolved(x) < 3 * math.pi * f_d
    if bool(short.any()):
        axis = int(short.nonzero()[0, 0])
        wanted = math.ceil(3 * math.pi * float(f_d[axis] * (x[:, axis].max() - x[:, axis].min())))
        warnings.warn(
            f"stage {stage}: what is left oscillates {float(f_d[axis]):.3g} times per unit of axis {axis}, the points are too "
            f"few to show that ({float(resolved(x)[axis]):.3g} per unit): between them it fits an alias. Give {wanted} or more "
            f"along that axis, or fewer stages",
            stacklevel=4,
        )
    low, high = box(x)
    return (2 * math.pi * f_d * (high - low) / 2).clamp(min=1.0)
