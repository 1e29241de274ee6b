r"""Tangent models: a network that is linear in its weights, whatever it is in its inputs.

    f_lin(x; v) = f(x; w_0) + D_w f(x; w_0) v,        v trained from 0, w_0 frozen

A convex loss of the output is then convex in v; models that were trained apart are averaged exactly,
f_lin(x; sum_i l_i v_i) = sum_i l_i f_lin(x; v_i) for sum_i l_i = 1, and what one of them learned is taken out exactly.

One run carries value and slope through the recorded operations (`pairs`): up to the first tangent weight the plain forward pass,
from there on three matrix products per linear layer in place of one.

Source: papers.toml "taft" (Liu, Golatkar & Soatto 2024). Deviations: any recorded network in place of hand-written layers; v
starts at 0; dropout is off, for two masks would make the slope no derivative.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import Tensor, nn

from termwise.core.arguments import strings
from termwise.core.capture import Call, arguments, capture
from termwise.core.decomposition import Decomposition
from termwise.core.interpret import evaluate
from termwise.core.program import Program

from .pairs import Pair, run_pairs

__all__ = ["TangentModel", "parameter_groups", "tangent"]

Tangent = Mapping[str, Tensor]


def tangent(
    model: nn.Module, params: str | Sequence[str] | None = None, *, select: Callable[[Any], Tensor] | None = None
) -> TangentModel:
    """Linearise a model in its weights: a module that trains v in f(x; w_0) + D_w f(x; w_0) v.

    Args:
        model: in eval mode, as `capture` takes it; kept by reference and never changed. Its weights are w_0: leave them alone.
        params: names of the parameters that get a tangent, with * and ? (`"encoder.layer.11.*"`, `"*.bias"`); a list of such
            patterns makes one group of each, a parameter belonging to the first that fits; None: every parameter.
        select: picks the tensor that is linearised out of what the model returns, where it has no logits.

    Returns:
        A `TangentModel`, equal to the model at first.

    Raises:
        TypeError: for what is no module.
        ValueError: for a pattern that fits no parameter (the nearest names are given), a module in training mode.

    Cost: v takes the memory of the weights it moves; see `TangentModel` for a pass.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).double().eval()
        >>> linear, x = tw.tangent(model, "2.*"), torch.randn(4, 3, dtype=torch.float64)
        >>> linear.load_state_dict({name: torch.randn_like(v) for name, v in linear.state_dict().items()})
        <All keys matched successfully>
        >>> linear.decompose(x).check().error() < 1e-12        # the head is linear in its weights already: no curvature
        True

    Source: Liu, Golatkar & Soatto 2024.
    """
    groups = parameter_groups(model, params)
    return TangentModel(model, groups, select)


def parameter_groups(model: nn.Module, params: str | Sequence[str] | None) -> dict[str, list[str]]:
    """Names of floating parameters by the pattern they fit first, as `tangent` takes them; refuses a module in training mode."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose parameters have names; got {type(model).__name__}")
    if training := [n for n, m in model.named_modules() if m.training]:
        raise ValueError(
            f"{type(model).__name__} is in training mode{f' (at {training[0]})' if training[0] else ''}, where dropout and batch "
            "statistics make it no function of its weights: call model.eval() first"
        )
    patterns = strings(["*"] if params is None else [params] if isinstance(params, str) else params)
    if patterns is None:
        raise TypeError(f"params must be a pattern of names of parameters, or a list of them; got {params!r}")
    names = [n for n, p in model.named_parameters() if p.is_floating_point() or p.is_complex()]
    if not names or not patterns:
        raise ValueError(
            f"{type(model).__name__} has no parameter that is floating" if not names else "params is empty: name some"
        )
    groups: dict[str, list[str]] = {}
    for pattern in patterns:
        if not any(fnmatchcase(n, pattern) for n in names):
            near = difflib.get_close_matches(pattern, names, 3, 0.3) or names[:3]
            raise ValueError(f"no parameter of {type(model).__name__} is called {pattern!r}; there are {', '.join(near)}, ...")
        taken = {n for group in groups.values() for n in group}
        groups[pattern] = [n for n in names if fnmatchcase(n, pattern) and n not in taken]
    return groups


class TangentModel(nn.Module):
    """A model to first order in its weights. Its parameters are v alone, by the model's own names; made by `tangent`.

    Cost: a forward pass takes the time of at most three of the model's when every weight has a tangent, and about one when only
    the last ones have; memory that of two. Training keeps for autograd what two forward passes keep behind the first tangent
    weight.
    """

    def __init__(
        self, model: nn.Module, groups: Mapping[str, Sequence[str]], select: Callable[[Any], Tensor] | None = None
    ) -> None:
        """With v = 0 for the named parameters, group by group."""
        super().__init__()
        self._held = (model,)  # not as a submodule: w_0 is neither trained nor saved, and the user's model not switched to train
        self._select = select
        self.groups = {name: tuple(members) for name, members in groups.items()}
        self.components: tuple[dict[str, Tensor], ...] = ()
        self.weights: tuple[float, ...] = ()
        self._programs: list[tuple[Program, dict[str, str]]] = []
        self.v = nn.Module()
        for name in (n for members in self.groups.values() for n in members):
            *path, last = name.split(".")
            owner = self.v
            for step in path:
                if step not in owner._modules:
                    owner.add_module(step, nn.Module())
                owner = owner._modules[step]  # type: ignore[assignment]
            owner.register_parameter(last, nn.Parameter(torch.zeros_like(model.get_parameter(name))))

    @property
    def primal(self) -> nn.Module:
        """The model at w_0."""
        return self._held[0]

    @property
    def tangent(self) -> dict[str, nn.Parameter]:
        """v, by the names of the model's parameters."""
        return dict(self.v.named_parameters())

    # -- what it computes ---------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """f(x; w_0) + D_w f(x; w_0) v: the tensor that `capture` takes for the output (logits, where there are some)."""
        program, names, tensors = self._recorded(inputs, kwargs)
        found = run_pairs(program, self._moving(program, names, tensors, self.tangent))
        return found.value + found.slope

    def decompose(self, *inputs: Any, **kwargs: Any) -> Decomposition:
        """Take f(x; w_0 + v) apart: the model as it was, what v does to first order, and the curvature that is left.

        Args:
            *inputs: of the model, as are the keywords.
            **kwargs: of the model.

        Returns:
            `whole` = f(x; w_0 + v), parts `primal` = f(x; w_0) and `tangent` = D_w f(x; w_0) v; with several groups of
            parameters `tangent:<pattern>` for each, from a run in which it alone moves. The remainder is the curvature,
            O(|v|^2).
        """
        program, names, tensors = self._recorded(inputs, kwargs)
        with torch.no_grad():
            values = program.bind(tensors)
            moved = {p: values[p] + self.tangent[n] for p, n in names.items()}
            parts = {"primal": evaluate(program.graph, values)}
            for group, members in self.groups.items():
                chosen = {n: v for n, v in self.tangent.items() if n in members}
                found = run_pairs(program, self._moving(program, names, tensors, chosen))
                key = "tangent" if len(self.groups) == 1 else f"tangent:{group}"
                parts[key] = found.slope if isinstance(found, Pair) else torch.zeros_like(found)
            return Decomposition(evaluate(program.graph, {**values, **moved}), parts)

    def _recorded(self, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Program, dict[str, str], list[Tensor]]:
        """The program for inputs like these, the parameter of every placeholder that moves, and the tensors of this call."""
        _, positional, keywords = arguments(self.primal, inputs, kwargs)
        call = Call(self.primal, positional, keywords, self._select)
        for program, names in self._programs:
            if program.accepts(call):
                return program, names, call.tensors
        program = capture(self.primal, *positional, kwargs=keywords, select=self._select)
        used = {n.name for n in program.graph.find_nodes(op="placeholder") if n.users}
        held = program.parameters
        names = {placeholder: name for name in self.tangent for placeholder in held.get(name, ()) if placeholder in used}
        if not names:
            raise ValueError(
                f"the output of {type(self.primal).__name__} depends on none of the parameters that have a tangent "
                f"({', '.join(list(self.tangent)[:3])}, ...): choose others"
            )
        self._programs.append((program, names))
        return program, names, call.tensors

    def _moving(self, program: Program, names: Mapping[str, str], tensors: list[Tensor], v: Tangent) -> dict[str, Any]:
        """A pair for every weight with a tangent, the plain value of every other placeholder."""
        values: dict[str, Any] = dict(program.bind(tensors))
        return values | {p: Pair(values[p], v[n]) for p, n in names.items() if n in v}

    # -- models that were trained apart -------------------------------------------------------------------------------

    def compose(self, tangents: Sequence[TangentModel | Tangent], weights: Sequence[float] | None = None) -> TangentModel:
        """The tangent model of sum_i weights_i v_i; where the weights sum to 1 its output is that mean of the outputs.

        Args:
            tangents: models of the same w_0, or what their `tangent` holds.
            weights: one for each; by default 1/n.

        Returns:
            A new model, which remembers what it was made of (`components`, `weights`) for `forget`.

        Raises:
            ValueError: for no tangents, another number of weights, or tangents of other parameters.
        """
        held = [{n: t.detach().clone() for n, t in _named(v).items()} for v in tangents]
        weights = [1 / len(held)] * len(held) if weights is None and held else [float(w) for w in weights or ()]
        if not held or len(weights) != len(held):
            raise ValueError(f"compose takes tangents and one weight for each: got {len(held)} tangents, {len(weights)} weights")
        shapes = {n: v.shape for n, v in self.tangent.items()}
        for i, v in enumerate(held):
            if {n: t.shape for n, t in v.items()} != shapes:
                odd = sorted({*v} ^ {*shapes}) or [n for n in shapes if v[n].shape != shapes[n]]
                raise ValueError(f"tangents[{i}] does not belong to this model: it differs at {', '.join(odd[:3])}")
        new = TangentModel(self.primal, self.groups, self._select)
        new._programs = self._programs
        new.components, new.weights = tuple(held), tuple(weights)
        with torch.no_grad():
            for name, v in new.tangent.items():
                v.copy_(new._composed(name))
        return new

    def forget(self, i: int) -> TangentModel:
        """The composition without its i-th tangent, the others' weights raised to the same sum: exact, and without training.

        Raises:
            ValueError: when this model is no composition of several, or was trained since.
            IndexError: when there is no such component.
        """
        if len(self.components) < 2:
            raise ValueError("forget takes one of several tangents out of a composition: make one with compose([...]) first")
        if any(not torch.equal(v, self._composed(name)) for name, v in self.tangent.items()):
            raise ValueError("this composition was trained after it was made: what it learned since belongs to no component")
        i = range(len(self.components))[i]
        rest = [j for j in range(len(self.components)) if j != i]
        left = sum(self.weights[j] for j in rest)
        scale = sum(self.weights) / left if left else 1.0
        return self.compose([self.components[j] for j in rest], [self.weights[j] * scale for j in rest])

    def _composed(self, name: str) -> Tensor:
        """sum_i weights_i v_i of one parameter."""
        terms = [w * c[name] for w, c in zip(self.weights, self.components, strict=True)]
        return sum(terms[1:], terms[0])

    # -- as a module --------------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Another device or dtype: the user's model stays as it is, so this one goes on with a copy of it."""
        super()._apply(fn, recurse)
        self._held = (copy.deepcopy(self.primal)._apply(fn),)
        self.components = tuple({n: fn(t) for n, t in c.items()} for c in self.components)
        self._programs = []
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": []}  # recordings are made anew


def _named(v: TangentModel | Tangent) -> Tangent:
    return v.tangent if isinstance(v, TangentModel) else v
