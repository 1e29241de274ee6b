"""Where in a run a call of the model is: which step, and which call within it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Clock"]

TIMES = ("timestep", "timesteps", "t", "time", "sigma", "noise_labels")
CALLS = 8
"""Calls with one time that are told apart (guidance calls twice); more are taken for a time that does not move."""
SAMPLES = ("sample", "hidden_states", "latents", "x")
"""What is denoised, where it is called so; else the first floating tensor."""
CONDITIONS = ("class_labels", "encoder_hidden_states", "pooled_projections", "y", "context")
"""Arguments that tell the calls of a step apart, where they are tensors."""
NEAR = 1e-2
"""Times in half precision are taken for the scheduler's that are as near as this."""


class Clock:
    """Reads the time of a call, and counts steps: a new time is a new step, the same one another call in it.

    Args:
        forward: what is called.
        scheduler: with `timesteps`, or the times themselves, or None where the end of a run is not known.
        name: of the argument that is the time; the first of timestep, t, time, sigma that there is, by default.
        what: is called, for messages.

    Raises:
        ValueError: where no argument is known to be a time.
    """

    def __init__(self, forward: Callable[..., Any], scheduler: Any, name: str | None, what: str) -> None:
        self.signature, self.scheduler = inspect.signature(forward), scheduler
        found = [n for n in TIMES if n in self.signature.parameters]
        if name is None and not found:
            raise ValueError(
                f"{what} takes {', '.join(self.signature.parameters) or 'no arguments'}, none of which is known to be a time: "
                "give time= its name"
            )
        self.name = name or found[0]
        self.reset()

    def reset(self) -> None:
        """Before the first call of a run."""
        self.times: list[float] = []  # of the steps so far
        self.index = -1  # of the present step in the grid
        self.call = 0  # within the step
        self.grid: list[float] | None = None  # times of all steps, where they are known
        self._told = 0.0  # as the model was told it
        self._unit = 1.0  # of the scheduler's times in those that the model is told
        self._direction = 0
        self._begun_with: Any = None

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, Tensor | None, tuple[float, ...]]:
        """The time that a call says, what is denoised, and on what condition.

        Raises:
            ValueError: without a time, or with several.
            RuntimeError: where a gradient is wanted.
        """
        bound = self.signature.bind(*args, **kwargs).arguments
        given = {**bound, **bound.get("kwargs", {})}
        if given.get(self.name) is None:
            raise ValueError(
                f"the model was called without {self.name!r}, which says where in the run it is: give time= its name"
            )
        times = torch.as_tensor(given[self.name]).detach().double().flatten()
        if not len(times) or not (times == times[0]).all() or not torch.isfinite(times[0]):
            raise ValueError(f"{self.name} is {times.tolist()[:4]}: all samples of a call are at one finite time in a forecast")
        tensors = [v for k, v in given.items() if k != self.name and isinstance(v, Tensor) and v.is_floating_point()]
        if torch.is_grad_enabled() and any(v.requires_grad for v in tensors):
            raise RuntimeError("an input requires a gradient, and forecasts have none: use torch.no_grad()")
        tensors = [given[n] for n in SAMPLES if isinstance(given.get(n), Tensor)] or tensors
        conditions = [given[n].detach().double() for n in CONDITIONS if isinstance(given.get(n), Tensor)]
        marks = tuple(m for c in conditions for m in (c.numel(), c.sum().item(), c.square().sum().item()))
        return times[0].item(), tensors[0].detach() if tensors else None, marks

    def is_new_run(self, told: float) -> bool:
        """Whether the time goes back, or the scheduler has set its times anew."""
        back = bool(self._direction) and (told - self._told) * self._direction < 0
        return back or (bool(self.times) and getattr(self.scheduler, "timesteps", None) is not self._begun_with)

    def advance(self, told: float) -> bool:
        """Take note of a call; True if it begins a step.

        Raises:
            ValueError: for times that stand still, or are none of the scheduler's.
        """
        if self.times and told == self._told:
            self.call += 1
            if self.call >= CALLS:
                raise ValueError(
                    f"the model was called {CALLS + 1} times at time {told}: a time grid must not repeat; reset() begins anew"
                )
            return False
        if not self.times:
            self._begun_with = getattr(self.scheduler, "timesteps", None)
            self.grid = self._read_grid(told)
        elif not self._direction:
            self._direction = 1 if told > self._told else -1
        if self.grid is not None and self.index + 1 >= len(self.grid):
            raise ValueError(
                f"the scheduler has {len(self.grid)} times, and the model is called at {told} after them: reset() begins anew"
            )
        self.call, self._told = 0, told
        self.index += 1
        if self.grid is not None:  # two times that are one in half precision were taken for one step
            ahead = self.grid[self.index :]
            distance, skipped = min((abs(t - told * self._unit), i) for i, t in enumerate(ahead))
            if distance > NEAR * max(map(abs, self.grid)):
                raise ValueError(
                    f"the model is called at time {told}, and the scheduler goes on with {ahead[:3]}: is it the one in use?"
                )
            self.index += skipped
        self.times.append(told if self.grid is None else self.grid[self.index])
        return True

    def ahead(self) -> list[float]:
        """The present time and those that follow, as far as they are known."""
        return self.times[-1:] if self.grid is None else self.grid[self.index :]

    def _read_grid(self, told: float) -> list[float] | None:
        """The times of the run that begins, from the one that the model is told; some models are told a share of all."""
        times = getattr(self.scheduler, "timesteps", self.scheduler)
        if times is None:
            return None
        grid: list[float] = torch.as_tensor(times).double().unique_consecutive().tolist()
        rising = [b > a for a, b in itertools.pairwise(grid)]
        if any(r != rising[0] for r in rising):
            raise ValueError(
                f"the scheduler's times go back or repeat: {grid[:6]}...; forecasts need a grid that only rises or only falls"
            )
        units = [1.0, getattr(self.scheduler, "config", {}).get("num_train_timesteps", 1.0)]
        distance, start, self._unit = min((abs(t - told * unit), i, unit) for unit in units for i, t in enumerate(grid))
        if distance > NEAR * max(map(abs, grid)):
            raise ValueError(
                f"the model is called at time {told}, and the scheduler's times are {grid[:4]}...: is it the right one?"
            )
        return grid[start:]  # with a picture to begin with, a run starts in the middle
