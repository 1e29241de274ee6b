r"""Multi-stage regression: networks that fit what those before them left, down to the rounding of float64.

    e_n = y - sum_(m < n) u_m(x),    eps_n = RMS(e_n),    u_n = eps_n N_n  with N_n fitted to  e_n / eps_n

What a network leaves is small and oscillates fast. Scaled to magnitude 1, and given to a network whose first layer is
sin(kappa_n x W + b) with kappa_n = 2 pi f_d, f_d the dominant frequency of e_n, it is as easy as the first was. The logarithm of
the mean square is minimised, which has no scale: a square of 1e-20 is no reason to stop.

For a smooth function of one variable a Chebyshev series of 40 terms leaves 3e-15 in milliseconds; in two variables one network of
the stages' size, trained as long by BFGS, left two to five times less (claim `stages_help_in_two_variables`). Stages are for
functions of one variable without such a series, and for equations (`MultiStagePINN`).

Source: papers.toml "multistage" (Wang & Lai 2023). Deviations: BFGS with the full matrix in place of Adam and L-BFGS; kappa has
one entry per axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from termwise.core import one_file
from termwise.core.arguments import seeded

from .dominant_frequency import dominant_frequency
from .quasi_newton import minimise
from .stage import Stage, StageRecord
from .staged import FORMAT, Staged, box, factor, magnitude, points

__all__ = ["MultiStage"]


class MultiStage(Staged):
    """A regressor of stages.

        u(x) = sum_n eps_n N_n(x)

    Args:
        stages: how many at most; `fit` ends earlier when what is left is rounding.
        hidden: widths of the hidden layers of each.
        iterations: of the optimizer, for each.
        optimizer: "bfgs" (a matrix of P x P for P parameters a stage), or "lbfgs" for large ones.
        tol: what is left, relative to y (root mean squares), at which `fit` ends.

    Attributes:
        fitted: the stages, modules of points (n, d).
        history: a `StageRecord` for each: eps, f_d, kappa, what is left.

    Raises:
        ValueError: for numbers below 1, an unknown optimizer.

    Cost: for n points and P parameters, each iteration two or three passes over n P and one over P^2.

    Example:
        >>> x = torch.linspace(-1, 1, 100, dtype=torch.float64)
        >>> y = torch.sin(2 * x + 1)
        >>> model = tw.MultiStage(stages=2, hidden=(10,), iterations=60).fit(x, y)
        >>> d = model.decompose(x, y)
        >>> list(d.parts), torch.equal(d.remainder, y - d.total()), model.history[1].left < model.history[0].left
        (['stage_0', 'stage_1'], True, True)

    Source: Wang & Lai 2023.
    """

    def __init__(
        self,
        stages: int = 3,
        hidden: Sequence[int] = (20, 20),
        *,
        iterations: int = 900,
        optimizer: str = "bfgs",
        tol: float = 1e-15,
    ) -> None:
        super().__init__(stages, hidden, iterations, optimizer)
        if not tol >= 0:
            raise ValueError(f"tol is 0 or more, got {tol}")
        self.tol = tol

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "tol": self.tol}

    def fit(self, X: Any, y: Any, *, generator: torch.Generator | None = None, progress: bool = True) -> Self:
        """Fit the stages, one after the other.

        Args:
            X: points, (n,) or (n, d) with d up to 3, a float64 tensor or array. In 1-D evenly spaced, or denser towards the ends.
            y: the values there, (n,) float64.
            generator: of the first weights; one seeded with 0 by default.
            progress: show a bar on a terminal.

        Returns:
            itself.

        Raises:
            TypeError: for what is not float64, with what float32 costs.
            ValueError: for shapes that do not fit, values that are not finite, points without extent.

        Warns:
            UserWarning: when the points are too few for the frequency of what is left: the stage would fit aliases.
        """
        x, left = points(X, "X"), points(y, "y")
        if left.shape != (len(x), 1):
            raise ValueError(f"y is ({len(x)},), one value per point of X; got {tuple(left.shape)}. Fit one model per column")
        if not 1 <= x.shape[1] <= 3:
            raise ValueError(f"X has {x.shape[1]} coordinates: dominant frequencies are looked for in 3 at most")
        left, corners = left.squeeze(1), box(x)
        generator = seeded(generator)
        self.fitted, self.history = [], []
        size = magnitude(left)
        with self._bar(progress) as report:
            for n in range(self.stages):
                eps = magnitude(left)
                if n and eps <= self.tol * size:
                    break
                f_d = dominant_frequency(x, left) if n else x.new_empty(0)
                kappa = factor(x, f_d, n) if n else f_d
                eps = eps or 1.0  # a function that is 0 everywhere
                stage, target = Stage(corners, self.hidden, eps, kappa, generator), left / eps
                used = minimise(
                    lambda: (stage.network(x) - target).square().mean().log(),
                    list(stage.parameters()), self.iterations, self.optimizer, report,
                )  # fmt: skip
                with torch.no_grad():
                    after = left - stage(x)
                if n and not magnitude(after) < eps:  # rounding: nothing that a stage could fit
                    break
                left = after
                record = StageRecord(eps, tuple(f_d.tolist()), tuple(kappa.tolist()), magnitude(left), used)
                self.fitted.append(stage.requires_grad_(False).eval())
                self.history.append(record)
        return self

    @staticmethod
    def load(path: str | Path) -> MultiStage:
        """Read what `save` wrote, of a regressor or of a solver: a fitted sum of stages. Runs no code from the file.

        Args:
            path: as it was given to `save`.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when it holds no stages, or was written by a newer version.
        """
        return one_file.read(path, "termwise.multistage", _read, holds="stages", saver="MultiStage.save")


def _read(header: Any, tensors: Mapping[str, Tensor], path: Path) -> MultiStage:
    """The model that a header describes."""
    one_file.refuse_newer(path, header["format"], FORMAT)
    model = MultiStage(**header["options"])
    for n, record in enumerate(header["history"]):
        state = {k.partition(".")[2]: v for k, v in tensors.items() if k.partition(".")[0] == str(n)}
        claimed, held = [*model.hidden, 1], [len(state[k]) for k in sorted(state, key=len) if k.startswith("biases.")]
        if claimed != held:
            raise ValueError(f"{path} claims stages of the widths {claimed} and holds {held}: it is damaged")
        stage = Stage((state["centre"], state["centre"]), model.hidden, 1.0, state["kappa"], torch.Generator())
        stage.load_state_dict(state)
        model.fitted.append(stage.requires_grad_(False).eval())
        model.history.append(StageRecord(**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}))
    return model
