"""Run a model that is called again and again along a time grid less often, and know by how much its output changed.

    fast = tw.accelerate(pipeline, TaylorSeer(interval=4))
    images = fast(prompt)
    fast.report.estimate, fast.report.speedup

A model, the `transformer` or `unet` of a pipeline, or a function is called with a time. Each time is a step; a method says which
are computed, and the others are forecast from those (`forecast`). Everything is put back afterwards.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .ab_cache import ABCache
from .adaptive import Adaptive
from .confidence_gate import ConfidenceGate
from .forecast import damped, forecast_terms
from .history import History, norms
from .noise import noise_levels
from .report import Report, Step
from .schedule import Method, Now
from .sites import find_blocks, find_sites, replaced_forward
from .taylorseer import TaylorSeer

__all__ = ["Accelerated", "accelerate"]

TIMES = ("timestep", "timesteps", "t", "time", "sigma", "noise_labels")
STREAMS = 8
"""Calls with one time that are told apart (guidance calls twice); more are taken for a time that does not move."""
SMOOTHING = 0.5
"""Weight of the newest ratio of measured to estimated errors."""


NAMED = {"taylorseer": TaylorSeer(), "cg-taylor": ConfidenceGate(), "ab-cache": ABCache(), "reuse": ABCache(order=0)}


def accelerate(
    target: Any,
    method: str | Method = "auto",
    *,
    tolerance: float | None = None,
    budget: int | None = None,
    scheduler: Any = None,
    time: str | None = None,
) -> Accelerated:
    """Compute a model that is called along a time grid at some of the times, and forecast it at the others.

    Args:
        target: a pipeline of diffusers, the model inside of one (DiT, PixArt, SD3, Flux, UNet, ...), any module, or a function.
        method: "auto" (adaptive), "taylorseer", "cg-taylor", "ab-cache", "reuse", or an object such as
            `TaylorSeer(interval=4, order=1)`.
        tolerance: for "auto": relative L2 change of the final output, an estimate and no bound.
        budget: for "auto": steps to compute.
        scheduler: that makes the times, of diffusers; or the times themselves. A pipeline's own by default.
        time: name of the argument that is the time, where it is none of timestep, t, time, sigma.

    Returns:
        What is called in place of the target, or entered as a context in which the model is accelerated whoever calls it.

    Raises:
        ValueError: for a method that does not exist, or a fixed one with a tolerance or budget.
        TypeError: for a target that is nothing of the above.

    Cost: a forecast reads order + 1 copies of each feature; memory as much.

    Example:
        >>> def velocity(x, t):
        ...     return torch.cos(t) * torch.ones_like(x)
        >>> fast = tw.accelerate(velocity, tw.computation.ABCache(interval=2, order=3))
        >>> x = torch.zeros(1, 1)
        >>> for t in torch.arange(0, 1, 0.02):
        ...     x = x + 0.02 * fast(x, t)
        >>> fast.report.evaluations, len(fast.report.steps)
        (26, 50)
    """
    if isinstance(method, str) and method in ("auto", "adaptive"):
        method = _automatic(target, tolerance, budget, scheduler)
    elif tolerance is not None or budget is not None:
        name = method if isinstance(method, str) else type(method).__name__
        raise ValueError(f'{name} has a fixed schedule, or one of its own: tolerance and budget go with method="auto"')
    if isinstance(method, str):
        if method not in NAMED:
            raise ValueError(
                f"no method {method!r}: choose one of auto, {', '.join(NAMED)}, or give an object such as TaylorSeer(interval=4)"
            )
        method = NAMED[method]
    if not isinstance(method, Method):
        raise TypeError(f"a method is a name or an object such as TaylorSeer(interval=4), got {type(method).__name__}")
    return Accelerated(target, method, scheduler=scheduler, time=time)


def _automatic(target: Any, tolerance: float | None, budget: int | None, scheduler: Any) -> Adaptive:
    """The adaptive schedule, in log-snr where there is one."""
    levels = noise_levels(scheduler if scheduler is not None else getattr(target, "scheduler", None))
    tolerance = 0.05 if tolerance is None and budget is None else tolerance
    return Adaptive(tolerance=tolerance, budget=budget, order=2, variable="step" if levels is None else "log_snr")


class Accelerated:
    """A model, pipeline or function that is computed at some steps and forecast at the others. Made by `tw.accelerate`.

    Called, it runs as what it was made of. As a context manager, it accelerates the model itself, whoever calls it.

    Attributes:
        report: of the last run, or of the one under way.
        method: when and what is computed.
        denoiser: the model or function inside of a pipeline.
    """

    def __init__(self, target: Any, method: Method, *, scheduler: Any = None, time: str | None = None) -> None:
        self.target, self.method = target, method
        self.denoiser = _denoiser(target)
        self.scheduler = scheduler if scheduler is not None else getattr(target, "scheduler", None)
        self._forward = self.denoiser.forward if isinstance(self.denoiser, nn.Module) else self.denoiser
        self._signature = inspect.signature(self._forward)
        self._time_name = _time_name(self._signature, time, type(target).__name__)
        self._sites = {} if method.sites == "output" else find_sites(self._module(), method.sites)
        self._blocks = find_blocks(self.denoiser) if method.sites == "last_block" or method.probes else {}
        self._levels = noise_levels(self.scheduler)
        if method.variable == "log_snr" and self._levels is None:
            raise ValueError(
                f'variable="log_snr" needs to know how much noise there is at a time, and '
                f"{'no scheduler was given' if self.scheduler is None else f'{type(self.scheduler).__name__} does not say'}: "
                'give scheduler= one of diffusers with alphas_cumprod or a flow, or use variable="timestep"'
            )
        self._open = ExitStack()
        self._installed = False
        self.reset()

    # -- a context, and a call ----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Accelerate from here on.

        Raises:
            RuntimeError: when the model is accelerated already, or drops out at random.
            TypeError: for a function, which can only be called through this object.
        """
        if not isinstance(self.denoiser, nn.Module):
            raise TypeError("a function cannot be accelerated where others call it: call this object in its place")
        self.reset()
        self._open.enter_context(self._installation())
        return self

    def __exit__(self, *problem: object) -> None:
        """Put everything back and let go of what was kept. The report stays."""
        self._open.close()
        self._forget()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the target. A pipeline begins anew with each call; a model or function where the time goes back."""
        if not isinstance(self.denoiser, nn.Module):
            return self._step(*args, **kwargs)
        if self.target is not self.denoiser and not self._installed:
            with self:
                return self.target(*args, **kwargs)
        if self._installed:
            return self.target(*args, **kwargs)
        with self._installation():
            return self.target(*args, **kwargs)

    @contextmanager
    def _installation(self) -> Iterator[None]:
        model = self._module()
        active = [n for n, m in model.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p]
        if active:
            raise RuntimeError(
                f"{type(model).__name__} has active dropout ({active[0]}): a forecast would follow the noise; call .eval()"
            )
        with ExitStack() as stack:
            if self._sites:
                stack.enter_context(replaced_forward(self._sites, self._site))
            stack.enter_context(replaced_forward({"": model}, lambda name, old: self._root(old)))
            self._installed = True
            try:
                yield
            finally:
                self._installed = False

    def _module(self) -> nn.Module:
        if not isinstance(self.denoiser, nn.Module):
            raise TypeError(f'a {type(self.denoiser).__name__} has no modules inside: use sites="output"')
        return self.denoiser

    def reset(self) -> None:
        """Begin anew, as if nothing had been computed."""
        self.report = Report(tolerance=getattr(self.method, "tolerance", None))
        self._grid: list[float] | None = None
        self._direction = 0
        self._stream = 0
        self._ratio = 1.0
        self._rule = self.method.begin()
        self._forget()

    def _forget(self) -> None:
        self._histories: dict[tuple[int, str], History] = {}
        self._shapes: dict[int, torch.Size | None] = {}
        self._order: list[str] = []  # blocks as they are run
        self._placeholders: dict[tuple[int, str], Any] = {}
        self._size: dict[int, Tensor] = {}  # norms of the last computed output, per sample

    # -- steps --------------------------------------------------------------------------------------------------------

    def _root(self, old: Callable[..., Any]) -> Callable[..., Any]:
        self._forward = old
        return functools.wraps(old)(lambda *args, **kwargs: self._step(*args, **kwargs))

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model: compute it, or forecast it."""
        time, x = self._read(args, kwargs)
        self._advance(time)
        now = self.report.steps[-1]
        if self._shapes.setdefault(self._stream, _shape(x)) != _shape(x):
            self._drop(self._stream)
            self._shapes[self._stream] = _shape(x)
            now.note = "the input changed its shape: begun anew"
        fresh = not any(stream == self._stream for stream, _ in self._histories)
        if self._stream == 0 and not (self.method.probes and not fresh):
            now.computed = self._decide(x)
        self._computing = now.computed or fresh
        self._undecided = self.method.probes and not fresh
        self._x, self._ran = x, set()
        if self.method.sites == "output":
            if not self._computing:
                now.blocks = 0.0
                return self._forecast("output")
            out = self._forward(*args, **kwargs)
            self._keep("output", out)
        else:
            out = self._forward(*args, **kwargs)
            if self.method.sites == "last_block":
                self._close_blocks(now)
            elif not self._computing:
                now.blocks = 0.0
        if self._computing:
            found = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            self._size[self._stream] = norms(found[:1])
        self.report.memory = max(self.report.memory, sum(h.bytes for h in self._histories.values()))
        return out

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, Tensor | None]:
        """The time of a call, and what is denoised."""
        bound = self._signature.bind(*args, **kwargs).arguments
        flat = {**bound, **bound.get("kwargs", {})}
        if self._time_name not in flat or flat[self._time_name] is None:
            raise ValueError(
                f"the model was called without {self._time_name!r}, which says where in the run it is: give time= its name"
            )
        times = torch.as_tensor(flat[self._time_name]).detach().double().flatten()
        if not len(times) or not (times == times[0]).all() or not torch.isfinite(times[0]):
            raise ValueError(
                f"{self._time_name} is {times.tolist()[:4]}: all samples of a call are at one finite time in a forecast"
            )
        tensors = [v for k, v in flat.items() if k != self._time_name and isinstance(v, Tensor) and v.is_floating_point()]
        if torch.is_grad_enabled() and any(v.requires_grad for v in tensors):
            raise RuntimeError("an input requires a gradient, and forecasts have none: use torch.no_grad()")
        return times[0].item(), tensors[0].detach() if tensors else None

    def _advance(self, time: float) -> None:
        """A new time is a new step, the same one another call in it; a time that goes back begins a new run."""
        steps = self.report.steps
        if steps and time == steps[-1].time:
            self._stream += 1
            if self._stream >= STREAMS:
                raise ValueError(
                    f"the model was called {STREAMS + 1} times at time {time}: a time grid must not repeat; reset() begins anew"
                )
            return
        if steps and self._direction and (time - steps[-1].time) * self._direction < 0:
            self.reset()
            steps = self.report.steps
        if not steps:
            self._grid = self._read_grid(time)
        elif not self._direction:
            self._direction = 1 if time > steps[-1].time else -1
        self._stream = 0
        if self._grid is not None and len(steps) >= len(self._grid):
            raise ValueError(
                f"the scheduler has {len(self._grid)} times, and the model is called at {time} after all of them: "
                "reset() begins anew"
            )
        steps.append(Step(len(steps), time))

    def _read_grid(self, first: float) -> list[float] | None:
        """The times of the run that begins, where they are known."""
        times = getattr(self.scheduler, "timesteps", self.scheduler)
        if times is None:
            if self.method.last_steps or getattr(self.method, "budget", None) or getattr(self.method, "tolerance", None):
                raise ValueError(
                    f"{type(self.method).__name__} must know when the run ends: give scheduler= (one of diffusers, or the "
                    "times), or last_steps=0"
                )
            return None
        grid: list[float] = torch.as_tensor(times).double().unique_consecutive().tolist()
        if first in grid:  # pictures to begin with: the run starts in the middle
            grid = grid[grid.index(first) :]
        rising = [b > a for a, b in itertools.pairwise(grid)]
        if any(r != rising[0] for r in rising):
            raise ValueError(
                f"the scheduler's times go back or repeat: {grid[:6]}...; forecasts need a grid that only rises or only falls"
            )
        wanted = self.method.first_steps + self.method.last_steps
        budget = getattr(self.method, "budget", None)
        if wanted > len(grid) or (budget or 0) > len(grid):
            raise ValueError(
                f"{type(self.method).__name__} wants {max(wanted, budget or 0)} steps computed, and the run has {len(grid)}: "
                "nothing would be saved"
            )
        return grid

    # -- deciding -----------------------------------------------------------------------------------------------------

    def _decide(self, x: Tensor | None, probe: float | None = None) -> bool:
        """Whether this step is computed."""
        steps = self.report.steps
        now = steps[-1]
        now.probe = probe
        if not self._histories:
            return True
        before = steps[:-1]
        since = 0
        while since < len(before) and not before[-1 - since].computed:
            since += 1

        def estimate(ahead: int) -> float:
            if ahead:
                return self._estimate(x, ahead)
            if now.estimate is None:
                now.estimate = self._estimate(x)
            return now.estimate

        left = None if self._grid is None else len(self._grid) - now.index
        errors = [0.0 if s.computed else s.estimate or 0.0 for s in before]
        segment = math.fsum(errors[len(errors) - since :])
        seen = Now(now.index, left, since, sum(s.computed for s in before), estimate, segment, math.fsum(errors), probe)
        return self.method.at_an_end(seen) or self._rule(seen)

    def _estimate(self, x: Tensor | None, ahead: int = 0) -> float:
        """Relative change of the final output if a step is forecast: the last term, as far as an error reaches.

        A sampler's flow carries relative errors on as they are where the data are Gaussian: pictures and their errors shrink
        alike. So the change is |error of the prediction| x reach / |picture|, the largest over samples and calls.
        """
        steps, worst = self.report.steps, 0.0
        index, before = len(steps) - 1 + ahead, steps[-2].time
        now = steps[-1].time if self._grid is None else self._grid[index]
        if self._grid is None:
            following: float | None = now + (now - before)
        else:
            following = self._grid[index + 1] if index + 1 < len(self._grid) else None
        if self._levels is not None:
            reach = self._levels.reach(now, following)
        else:
            reach = abs(now - (before if following is None else following))
        for (stream, _), history in self._key_histories():
            terms = self._terms(history, at=self._at(index, now))
            change, size = norms(history.combine(terms[-1])), norms(history.combine(terms.sum(0)))
            share = change / size * self._ratio
            if x is not None and stream in self._size:
                share = share * self._size[stream] / norms([x]) * reach
            worst = max(worst, math.inf if share.isnan().any() else share.max().item())
        return worst

    def _key_histories(self) -> Iterator[tuple[tuple[int, str], History]]:
        """Of every call, what is nearest to the output."""
        key = "output" if self.method.sites == "output" else (self._order[-1] if self._order else None)
        return ((k, h) for k, h in self._histories.items() if key is None or k[1] == key)

    # -- features -----------------------------------------------------------------------------------------------------

    def _at(self, index: int | None = None, time: float | None = None) -> float:
        """A step (the present one) in the method's variable."""
        step = self.report.steps[-1]
        index, time = (step.index, step.time) if index is None or time is None else (index, time)
        if self.method.variable == "log_snr":
            assert self._levels is not None
            return self._levels.log_snr(time)
        return float(index) if self.method.variable == "step" else time

    def _terms(self, history: History, order: int | None = None, at: float | None = None) -> Any:
        nodes = history.nodes[: (self.method.order if order is None else order) + 1]
        return damped(forecast_terms(nodes, self._at() if at is None else at, self.method.form), self.method.damping)

    def _keep(self, site: str, value: Any, order: int | None = None) -> None:
        """Measure what a forecast would have been wrong by, and keep the truth."""
        order = self.method.order if order is None else order
        key, step = (self._stream, site), self.report.steps[-1]
        history = self._histories.setdefault(key, History(order + 1))
        if history.nodes and history.fits(value):
            terms = self._terms(history, order)
            truth = history.moving(value)
            wrong = [t.detach() - made for t, made in zip(truth, history.combine(terms.sum(0)), strict=True)]
            error, size = norms(wrong), norms(truth)
            step.error = (error / size.clamp_min(torch.finfo(torch.float64).tiny)).mean().item()
            if len(terms) > 1:
                ratio = (error.mean() / norms(history.combine(terms[-1])).mean().clamp_min(1e-300)).item()
                self._ratio += SMOOTHING * (ratio - self._ratio) if math.isfinite(ratio) else 0.0
        history.append(value, self._at())

    def _forecast(self, site: str) -> Any:
        history, step = self._histories[self._stream, site], self.report.steps[-1]
        terms = self._terms(history)
        weights = terms.sum(0)
        step.nodes, step.weights, step.gain = history.nodes[: len(weights)], weights.tolist(), float(abs(weights).sum())
        value = history.value(weights)
        if self.method.feeds_back:
            history.append(value, self._at())
        return value

    def _drop(self, stream: int) -> None:
        self._histories = {k: h for k, h in self._histories.items() if k[0] != stream}

    # -- modules inside -----------------------------------------------------------------------------------------------

    def _site(self, name: str, old: Callable[..., Any]) -> Callable[..., Any]:
        block = self._block if self.method.sites == "last_block" else self._inner
        return lambda *args, **kwargs: block(name, old, args, kwargs)

    def _inner(self, name: str, old: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module inside of a block, for "modules" and patterns."""
        if not self._computing and (self._stream, name) in self._histories:
            return self._forecast(name)
        value = old(*args, **kwargs)
        self._keep(name, value)
        return value

    def _block(self, name: str, old: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A block, of which all but the last say nothing when they are skipped (and the first, where it is a probe)."""
        key = (self._stream, name)
        if self._undecided:  # the first block of a gate
            value = old(*args, **kwargs)
            self._undecided = False
            self._computing = self._decide(self._x, self._probe(name, value))
            step = self.report.steps[-1]
            step.computed = self._computing or (step.computed and self._stream > 0)
            self._latest = value
            self._ran.add(name)
            return value
        if not self._computing and key in self._placeholders:
            return self._forecast(name) if name == self._order[-1] else self._placeholders[key]
        value = self._latest = old(*args, **kwargs)
        self._ran.add(name)
        if self._computing:
            if name not in self._order:
                self._order.append(name)
            if name == self._order[0] and self.method.probes:
                self._first = value
            self._placeholders[key] = pytree.tree_map(_placeholder, value)
        return value

    def _probe(self, name: str, value: Any) -> float:
        """r, the largest over the samples."""
        history = self._histories[self._stream, f"{name} (probe)"]
        self._first = value
        made = history.combine(self._terms(history, self.method.probe_order).sum(0))  # type: ignore[attr-defined]
        truth = history.moving(value)
        r = [
            ((t.detach() - m).abs().flatten(1).mean(1) / t.detach().abs().flatten(1).mean(1)).max()
            for t, m in zip(truth, made, strict=True)
        ]
        return float(torch.stack(r).max())

    def _close_blocks(self, step: Step) -> None:
        """After a call: keep the last block's output, and the first one's for a gate."""
        step.blocks = max(0.0 if self._stream == 0 else step.blocks, len(self._ran) / len(self._order))
        if self._computing:
            last = self._order[-1]
            if self.method.probes:
                error = step.error
                self._keep(f"{self._order[0]} (probe)", self._first, self.method.probe_order)  # type: ignore[attr-defined]
                step.error = error
            self._keep(last, self._latest)


def _shape(x: Tensor | None) -> torch.Size | None:
    return None if x is None else x.shape


def _placeholder(leaf: Any) -> Any:
    """A tensor of that shape which takes no memory: nobody reads what stands before a forecast."""
    return leaf.new_zeros(()).expand(leaf.shape) if isinstance(leaf, Tensor) else leaf


def _denoiser(target: Any) -> Any:
    """What a pipeline calls at every step, or the target itself."""
    if isinstance(target, nn.Module) or (callable(target) and not hasattr(target, "scheduler")):
        return target
    for name in ("transformer", "unet", "prior", "model"):
        if isinstance(getattr(target, name, None), nn.Module):
            return getattr(target, name)
    raise TypeError(
        f"{type(target).__name__} is no model, function, or pipeline with a transformer or unet: give the module that is called "
        "at every step"
    )


def _time_name(signature: inspect.Signature, given: str | None, what: str) -> str:
    if given is not None:
        return given
    for name in TIMES:
        if name in signature.parameters:
            return name
    raise ValueError(
        f"{what} takes {', '.join(signature.parameters) or 'no arguments'}, none of which is known to be a time: "
        "give time= its name"
    )
