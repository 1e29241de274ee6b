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
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .adaptive import Adaptive, polynomial_error
from .clock import Clock
from .forecast import damped, forecast_terms
from .history import History, norms
from .noise import noise_levels
from .plan import Plan, plan
from .report import Report, Step
from .schedule import Method, Now
from .sites import find_sites, replaced_forward

__all__ = ["Accelerated"]


Stream = tuple[tuple[float, ...], int]
"""A call within a step: on what condition, and which of those with the same one."""


class Accelerated:
    """A model, pipeline or function that is computed at some steps and forecast at the others. Made by `tw.accelerate`.

    Called, it runs as what it was made of. As a context manager, it accelerates the model itself, whoever calls it.

    Attributes:
        report: of the last run, or of the one under way.
        method: when and what is computed.
        denoiser: the model or function inside of a pipeline.
        clock: where in a run it is.
        solver: that replaces a pipeline's scheduler while it runs, if any, and `steps` that it makes.
    """

    def __init__(
        self,
        target: Any,
        method: Method,
        *,
        scheduler: Any = None,
        time: str | None = None,
        solver: Any = None,
        steps: int | None = None,
    ) -> None:
        self.target, self.method, self.solver, self.steps = target, method, solver, steps
        scheduler = solver if solver is not None else scheduler
        self.denoiser = _denoiser(target)
        self._follows = scheduler is None  # the target's own
        self.scheduler = scheduler if scheduler is not None else getattr(target, "scheduler", None)
        self._forward = self.denoiser.forward if isinstance(self.denoiser, nn.Module) else self.denoiser
        self.clock = Clock(self._forward, self.scheduler, time, type(target).__name__)
        self._sites = {} if method.sites == "output" else find_sites(self._module(), method.sites)
        self._levels = noise_levels(self.scheduler)
        if method.variable == "log_snr" and self._levels is None:
            raise ValueError(
                f'variable="log_snr" needs to know how much noise there is at a time, and '
                f"{'no scheduler was given' if self.scheduler is None else f'{type(self.scheduler).__name__} does not say'}: "
                'give scheduler= one of diffusers with alphas_cumprod or a flow, or use variable="timestep"'
            )
        numbers = [sum(p.numel() for p in m.parameters()) for m in (self.denoiser, *self._sites.values())] if self._sites else [1]
        self._share = sum(numbers[1:]) / max(numbers[0], 1)  # of the parameters in what is forecast
        self._open = ExitStack()
        self._plan: Plan | None = None
        self._calibrating = False
        self._outputs: list[Tensor] = []
        self._weights: list[Tensor] = []
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
        if self._installed:
            raise RuntimeError(f"{type(self.denoiser).__name__} is accelerated already: leave the other context first")
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
                return self(*args, **kwargs)
        if self.steps is not None:
            signature = inspect.signature(self.target)
            given = signature.bind_partial(*args, **kwargs).arguments.get("num_inference_steps", self.steps)
            if given != self.steps:
                raise ValueError(
                    f"num_inference_steps={given}: a budget of {self.steps // 2 + 1} evaluations is spent on {self.steps} steps; "
                    "leave the number out, or ask for a tolerance on your own steps"
                )
            by_place = signature.bind_partial(*args).arguments
            if "num_inference_steps" in signature.parameters and "num_inference_steps" not in by_place:
                kwargs["num_inference_steps"] = self.steps
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
            if self.solver is not None:
                stack.callback(setattr, self.target, "scheduler", self.target.scheduler)
                self.target.scheduler = self.solver
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
        """Begin anew, as if nothing had been computed. A pipeline may have been given another scheduler."""
        if self._follows:
            self.scheduler = self.clock.scheduler = getattr(self.target, "scheduler", None)
            self._levels = noise_levels(self.scheduler)
        self.report = Report(tolerance=getattr(self.method, "tolerance", None))
        self.clock.reset()
        self._stream: Stream = ((), 0)
        self._calls: list[tuple[float, ...]] = []  # conditions of the calls in the present step
        self._kappa: list[float] = []
        self._rule = self.method.begin()
        self._forget()

    def _forget(self) -> None:
        self._histories: dict[tuple[Stream, str], History] = {}
        self._shapes: dict[Stream, torch.Size | None] = {}
        self._order: list[str] = []  # blocks as they are run
        self._placeholders: dict[tuple[Stream, str], Any] = {}

    # -- steps --------------------------------------------------------------------------------------------------------

    def _root(self, old: Callable[..., Any]) -> Callable[..., Any]:
        self._forward = old
        return functools.wraps(old)(lambda *args, **kwargs: self._step(*args, **kwargs))

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model: compute it, or forecast it."""
        time, x, condition = self.clock.read(args, kwargs)
        if self.clock.is_new_run(time):
            self.reset()
        if self.clock.advance(time):
            if len(self.clock.times) == 1:
                self._fits()
            self.report.steps.append(Step(self.clock.index, self.clock.times[-1]))
            self._calls = []
        self._stream, now = (condition, self._calls.count(condition)), self.report.steps[-1]
        self._calls.append(condition)
        if self._shapes.setdefault(self._stream, _shape(x)) != _shape(x):
            self._drop(self._stream)
            self._shapes[self._stream] = _shape(x)
            now.note = "the input changed its shape: begun anew"
        fresh = not any(stream == self._stream for stream, _ in self._histories)
        if self.clock.call == 0 and not (self.method.probes and not fresh):
            now.computed = self._decide(x)
        self._computing = now.computed or fresh
        self._undecided = self.method.probes and not fresh
        self._x, self._ran = x, set()
        if self.method.sites == "output":
            if not self._computing:
                now.blocks = 0.0
                return self._forecast("output")
            out = self._forward(*args, **kwargs)
            self._relative = _relative(out, x)
            self._keep("output", out)
            if self._calibrating and self.clock.call == 0:
                self._outputs.append(self._histories[self._stream, "output"].moving(out)[0].detach().clone())
        else:
            out = self._forward(*args, **kwargs)
            self._relative = _relative(out, x)
            if self.method.sites == "last_block":
                self._close_blocks(now)
            elif not self._computing:
                now.blocks = 0.0 if self.method.sites == "modules" else 1 - self._share
        self.report.memory = max(self.report.memory, sum(h.bytes for h in self._histories.values()))
        return out

    def _fits(self) -> None:
        """Refuse a run that is too short for the method, or without a known end where the method needs one."""
        method, grid = self.method, self.clock.grid
        budget, tolerance = getattr(method, "budget", None), getattr(method, "tolerance", None)
        if grid is None and (method.last_steps or budget or tolerance):
            raise ValueError(
                f"{type(method).__name__} must know when the run ends: give scheduler= (one of diffusers, or the times), or "
                "last_steps=0"
            )
        if self.steps is not None and grid is not None and len(grid) > self.steps:
            raise ValueError(
                f"a budget of {self.steps // 2 + 1} evaluations is spent on {self.steps} steps, and this run has {len(grid)}: "
                f"call this object in place of the pipeline, or give num_inference_steps={self.steps}"
            )
        wanted = max(method.first_steps + method.last_steps, budget or 0)
        if grid is not None and wanted > len(grid):
            raise ValueError(
                f"{type(method).__name__} wants {wanted} steps computed, and the run has {len(grid)}: nothing would be saved"
            )

    # -- deciding -----------------------------------------------------------------------------------------------------

    def _decide(self, x: Tensor | None, probe: float | None = None) -> bool:
        """Whether this step is computed."""
        steps = self.report.steps
        now = steps[-1]
        now.probe = probe
        if not self._histories and not self._calibrating:
            return True
        before = steps[:-1]
        since = 0
        while since < len(before) and not before[-1 - since].computed:
            since += 1

        index = now.index
        grid, times = self.clock.grid, self.clock.ahead()
        reach = self._reach(x, times)
        if self._calibrating:
            self._weights.append(reach[0] / norms([x]) if x is not None else torch.tensor([reach[0]]))
            return True
        if self._plan is not None and grid is not None and len(grid) == len(self._plan.errors):
            now.estimate = self._plan.errors[index]
            return index in self._plan.anchors
        ahead = [self._at(index + i, time) for i, time in enumerate(times)]
        nodes = self._key_nodes()

        def error(nodes: Sequence[float], k: int) -> float:
            return polynomial_error(self._kappa, nodes, ahead[k], choose=self.method.chooses_order)[0] * reach[k]

        if self._kappa:
            now.estimate = error(nodes, 0)
        errors = [0.0 if s.computed else s.estimate or 0.0 for s in before]
        segment = math.fsum(errors[len(errors) - since :])
        left = None if grid is None else len(ahead)
        computed = sum(s.computed for s in before)
        seen = Now(index, left, since, computed, nodes, ahead, error, segment, math.fsum(errors), probe)
        return self.method.at_an_end(seen) or self._rule(seen)

    def _reach(self, x: Tensor | None, times: list[float]) -> list[float]:
        """What a unit of error, relative to |x|, changes in the final output, for every time ahead.

        A sampler's flow carries relative errors on as they are where the data are Gaussian: pictures and their errors shrink
        alike. What is no sampler with noise levels is taken for the velocity of x.
        """
        after: list[float | None] = [*times[1:], None]
        if self._levels is not None:
            return [self._levels.reach(t, following) for t, following in zip(times, after, strict=True)]
        step = abs(times[-1] - times[-2]) if len(times) > 1 else abs(times[-1] - self.report.steps[-2].time)
        return [step if following is None else abs(t - following) for t, following in zip(times, after, strict=True)]

    def _key_nodes(self) -> list[float]:
        """Where what is nearest to the output was computed, newest first."""
        key = self._key_site()
        return next((history.nodes for (_, site), history in self._histories.items() if site == key), [])

    def _key_site(self) -> str | None:
        return "output" if self.method.sites == "output" else self._order[-1] if self.method.sites == "last_block" else None

    # -- features -----------------------------------------------------------------------------------------------------

    def _at(self, index: int | None = None, time: float | None = None) -> float:
        """A step (the present one) in the method's variable."""
        step = self.report.steps[-1]
        index, time = (step.index, step.time) if index is None or time is None else (index, time)
        if self.method.variable == "log_snr":
            assert self._levels is not None
            return self._levels.log_snr(time)
        return float(index) if self.method.variable == "step" else time

    def _terms(self, history: History, order: int | None = None) -> Any:
        nodes = history.nodes[: (self.method.order if order is None else order) + 1]
        return damped(forecast_terms(nodes, self._at(), self.method.form), self.method.damping)

    def _keep(self, site: str, value: Any, order: int | None = None) -> None:
        """Measure what a forecast would have been wrong by, and keep the truth."""
        order = self.method.order if order is None else order
        key, step = (self._stream, site), self.report.steps[-1]
        history = self._histories.setdefault(key, History(order + 1))
        if history.nodes and history.fits(value):
            truth = history.moving(value)
            top, key_site = min(order, len(history.nodes) - 1), site == self._key_site()
            errors = [self._error(history, truth, o) for o in range(0 if key_site else top, top + 1)]
            size = norms(truth).clamp_min(torch.finfo(torch.float64).tiny)
            step.error = (errors[-1] / size).mean().item()
            if key_site:
                self._measure(history, [(e / size * self._relative).mean().item() for e in errors])
        history.append(value, self._at())

    def _error(self, history: History, truth: list[Tensor], order: int) -> Tensor:
        """|forecast - truth| of every sample."""
        made = history.combine(self._terms(history, order).sum(0))
        return norms([t.detach() - m for t, m in zip(truth, made, strict=True)])

    def _measure(self, history: History, errors: list[float]) -> None:
        """Kappa of every order; the largest over the calls of a step."""
        u, product, kappa = self._at(), 1.0, []
        for error, node in zip(errors, history.nodes, strict=False):
            product *= abs(u - node)
            kappa.append(error / product if product else math.inf)
        if self.clock.call and self._kappa:
            kappa = [max(pair) for pair in zip(kappa, self._kappa, strict=False)]
        self._kappa = kappa

    def calibrate(self, *args: Any, **kwargs: Any) -> Any:
        """Run the target once with every step computed, and plan from then on which steps to compute.

        Args:
            *args: of a pipeline; for a model or function, first a function that is given it and runs it along its grid.
            **kwargs: of the same.

        Returns:
            What the target returns.

        Raises:
            TypeError: for a method that has a fixed schedule.
            ValueError: where no number of computed steps keeps to the tolerance or budget.

        Cost: a full run; keeps every output until it is over.
        """
        if not isinstance(self.method, Adaptive) or self.method.sites != "output":
            raise TypeError("only an adaptive schedule of the model's output is planned: use Adaptive(budget=...) or a tolerance")
        if self.target is self.denoiser and not (args and callable(args[0])):
            raise TypeError(
                "calibrate a model with a function that is given it and runs it along its grid: calibrate(sampler, ...)"
            )
        self._calibrating, self._plan, self._outputs, self._weights = True, None, [], []
        try:
            if self.target is self.denoiser:
                run, *args = args
                if isinstance(self.denoiser, nn.Module):
                    with self:
                        result = run(self.target, *args, **kwargs)
                else:
                    self.reset()
                    result = run(self, *args, **kwargs)
            else:
                result = self(*args, **kwargs)
        finally:
            self._calibrating = False
        nodes = [self._at(i, step.time) for i, step in enumerate(self.report.steps)]
        plans = plan(
            torch.stack(self._outputs), nodes, torch.stack(self._weights), first_steps=self.method.first_steps,
            last_steps=self.method.last_steps, max_skip=self.method.max_skip,
        )  # fmt: skip
        self._outputs, self._weights = [], []
        fit = [
            p for n, p in plans.items() if (n == self.method.budget if self.method.budget else p.total <= self.method.tolerance)
        ]
        if not fit:
            raise ValueError(f"{self.method}: no such number of steps can be computed, possible are {min(plans)} to {max(plans)}")
        self._plan = min(fit, key=lambda found: len(found.anchors))
        return result

    def _forecast(self, site: str) -> Any:
        history, step = self._histories[self._stream, site], self.report.steps[-1]
        order = None
        if self.method.chooses_order:
            order = 1 if self._plan is not None else polynomial_error(self._kappa, history.nodes, self._at())[1]
        terms = self._terms(history, order)
        weights = terms.sum(0)
        step.nodes, step.weights, step.gain = history.nodes[: len(weights)], weights.tolist(), float(abs(weights).sum())
        value = history.value(weights)
        if self.method.feeds_back:
            history.append(value, self._at())
        return value

    def _drop(self, stream: Stream) -> None:
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
            step.computed = self._computing or (step.computed and self.clock.call > 0)
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
        step.blocks = max(0.0 if self.clock.call == 0 else step.blocks, len(self._ran) / len(self._order))
        if self._computing:
            last = self._order[-1]
            if self.method.probes:
                error = step.error
                self._keep(f"{self._order[0]} (probe)", self._first, self.method.probe_order)  # type: ignore[attr-defined]
                step.error = error
            self._keep(last, self._latest)


def _relative(out: Any, x: Tensor | None) -> Tensor | float:
    """|prediction| / |picture| of every sample."""
    found = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return norms(found[:1]) / norms([x]) if x is not None and found and len(found[0]) == len(x) else 1.0


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
