r"""Fine-tuned models put together in weight space:  w = w_0 + sum_t w_t tau_t.

A module tau_t is what one task added to the weights it started from. A `Composition` keeps them apart: with the weights moved to
some of them it is specialised, with the weight of one at 0 that task is unlearned, at no cost and without data.

Source: papers.toml "second-order-composition"; Ilharco et al. 2023 (task arithmetic).
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from termwise.core.capture import explained

__all__ = ["Composition", "TaskVector", "checked_modules", "checked_weights", "compose"]

TaskVector = Mapping[str, Tensor]


def compose(model: nn.Module, taus: Sequence[TaskVector], weights: Sequence[float] | None = None) -> nn.Module:
    """A copy of the model at w_0 + sum_t w_t tau_t.

    Args:
        model: at w_0; it is left as it is.
        taus: modules: names of parameters -> what is added to them. They need not name the same ones.
        weights: one for each, not negative, of sum 1; by default 1/T.

    Returns:
        A module of the same class.

    Raises:
        TypeError: for what is no module, or taus that are no sequence of mappings.
        ValueError: for no modules, names or shapes that the model does not have, numbers that are not finite, another number of
            weights, weights that are negative or do not sum to 1.

    Cost: a copy of the model; O(T x parameters) additions.

    Example:
        >>> model, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
        >>> taus = [{"weight": torch.randn(2, 3)} for _ in range(2)]
        >>> both = tw.functions.compose(model, taus, [0.25, 0.75])
        >>> torch.allclose(both(x), model(x) + 0.25 * x @ taus[0]["weight"].T + 0.75 * x @ taus[1]["weight"].T, atol=1e-6)
        True

    Source: Porrello et al. 2025; Ilharco et al. 2023.
    """
    held = checked_modules(model, taus)
    found = copy.deepcopy(model)
    with torch.no_grad():
        for weight, tau in zip(checked_weights(weights, len(held)), held, strict=True):
            for name, value in tau.items():
                parameter = found.get_parameter(name)
                parameter.add_(weight * value.to(parameter))
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Composition:
    """Modules of several tasks, and the model that they make together.

    Attributes:
        base: the model at w_0, with a classifier of one row for each class seen.
        taus: what each task added.
        classes: the classes of each task; row by row they are those of the classifier.
        weights: w_t, of sum 1.
    """

    base: nn.Module
    taus: tuple[dict[str, Tensor], ...]
    classes: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]

    def __repr__(self) -> str:
        tasks = "; ".join(f"{w:.2g} x {', '.join(map(str, c))}" for w, c in zip(self.weights, self.classes, strict=True))
        return f"Composition({type(self.base).__name__}, modules by weight and classes: {tasks})"

    @cached_property
    def model(self) -> nn.Module:
        """The composed network, a module by itself: inputs to logits, a column for each class in the order of `classes`."""
        return compose(self.base, self.taus, self.weights)

    def predict(self, inputs: Tensor) -> Tensor:
        """Classes of inputs (batch, ...), among all that were seen: (batch,)."""
        with torch.no_grad():
            rows = explained(self.model(inputs)).argmax(1)
        return torch.tensor([c for task in self.classes for c in task], device=rows.device)[rows]

    def specialise(self, tasks: Sequence[int]) -> Composition:
        """The same with these tasks' modules alone, their weights raised to the sum 1. All classes can still be answered.

        Args:
            tasks: their numbers, from 0.

        Raises:
            ValueError: for no tasks, or modules of weight 0.
            IndexError: for a task that there is none of.
        """
        kept = {range(len(self.taus))[t] for t in tasks}
        total = sum(w for t, w in enumerate(self.weights) if t in kept)
        if not total > 0:
            raise ValueError(f"specialise keeps the modules of some tasks of 0..{len(self.taus) - 1}, got {list(tasks)}")
        return replace(self, weights=tuple(w / total if t in kept else 0.0 for t, w in enumerate(self.weights)))

    def unlearn(self, task: int) -> Composition:
        """The same without this task's module, the others' weights raised to the sum 1.

        Raises:
            ValueError: when it is the only one.
            IndexError: when there is no such task.
        """
        task = range(len(self.taus))[task]
        kept = [t for t, w in enumerate(self.weights) if t != task and w > 0]
        if not kept:
            raise ValueError("this is the only module, and without it there is the base alone: use `base`")
        return self.specialise(kept)


def checked_modules(model: nn.Module, taus: Sequence[TaskVector]) -> list[dict[str, Tensor]]:
    """The modules, when they fit the model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose parameters have names; got {type(model).__name__}")
    if isinstance(taus, Mapping) or not all(isinstance(tau, Mapping) for tau in taus):
        raise TypeError("taus is a sequence of modules, each a mapping from parameter names to tensors: for one give [tau]")
    if not len(taus) or not any(taus):
        raise ValueError("there are no modules to compose: give at least one, a mapping from parameter names to tensors")
    known = dict(model.named_parameters())
    for t, tau in enumerate(taus):
        for name, value in tau.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, 3, 0.3) or list(known)[:3]
                raise ValueError(f"taus[{t}] moves {name!r}, and there is no such parameter; there are {', '.join(near)}, ...")
            if value.shape != known[name].shape:
                seen = f"{tuple(value.shape)}, and the parameter {tuple(known[name].shape)}"
                raise ValueError(f"taus[{t}] has for {name} the shape {seen}: it was made for another model")
            if not bool(value.isfinite().all()):
                raise ValueError(f"taus[{t}] is not finite at {name}: its training diverged")
    return [{n: v.detach() for n, v in tau.items()} for tau in taus]


def checked_weights(weights: Sequence[float] | None, n: int) -> list[float]:
    """One for each of n modules, not negative, of sum 1."""
    found = [1 / n] * n if weights is None else [float(w) for w in weights]
    if len(found) != n:
        raise ValueError(f"there are {n} modules and {len(found)} weights: give one for each")
    if not all(w >= 0 for w in found) or not math.isclose(sum(found), 1, rel_tol=0, abs_tol=1e-6):
        raise ValueError(
            f"weights are not negative and sum to 1, got {', '.join(f'{w:g}' for w in found)} of sum {sum(found):g}: "
            "divide them by their sum"
        )
    return found
