r"""The loss of a composition of fine-tuned models, to second order around the weights they have in common.

    l(w_0 + tau) = l_0 + J^T tau + (1/2) tau^T H tau + r(tau)

For modules tau_1 ... tau_T, each trained from w_0, and tau_P = sum_t w_t tau_t with sum_t w_t = 1, the mean of the single losses
exceeds the composed one, up to the remainders, by

    sum_t w_t l(w_0 + tau_t) - l(w_0 + tau_P) = Omega = (1/2) sum_(s<t) w_s w_t (tau_s - tau_t)^T H (tau_s - tau_t)

which is not negative where H has no negative curvature along the differences: there composing can only help, as long as the
remainders are small, which is measured.

Source: papers.toml "second-order-composition", theorems 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from termwise.core.capture import explained
from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Bars, Matrix, Picture
from termwise.core.trace import slow_transformer_path
from termwise.core.waterfall import waterfall

from .composition import TaskVector, checked_modules, checked_weights
from .fisher import diagonal_fisher
from .tangent import parameter_groups

__all__ = ["CompositionalLoss", "quadratic"]

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class CompositionalLoss(Decomposition):
    """The loss at w_0 + sum_t w_t tau_t, a number: parts `order_0` (), `order_1` (T,) by module, `order_2` (T, T) by pairs.

    The remainder is what is of third order and beyond, and with "ggn" or "fisher" also what those miss of H.

    Attributes:
        weights: (T,), w_t.
        losses: (T,), the loss at w_0 + tau_t, each module by itself, evaluated.
        slopes: (T,), J^T tau_t.
        curvature: (T, T), tau_s^T H tau_t.
    """

    weights: Tensor
    losses: Tensor
    slopes: Tensor
    curvature: Tensor

    @property
    def gap(self) -> Tensor:
        """sum_t w_t l(w_0 + tau_t) - l(w_0 + tau_P), evaluated: above 0 where composing helps."""
        return self.weights @ self.losses - self.whole

    @property
    def omega(self) -> Tensor:
        """(1/2) sum_(s<t) w_s w_t (tau_s - tau_t)^T H (tau_s - tau_t): what the gap is to second order."""
        own = self.curvature.diagonal()
        apart = own.unsqueeze(0) + own.unsqueeze(1) - self.curvature - self.curvature.T
        return torch.outer(self.weights, self.weights).mul(apart).triu(1).sum() / 2

    def pictures(self, sample: int = 0) -> list[Picture]:
        """From the loss before to the composed one, module by module; what every pair does; and the losses of each alone."""
        first, second = self.parts["order_1"].detach(), self.parts["order_2"].detach()
        n = len(first)
        own = second.diagonal()
        parts = {"loss before": self.parts["order_0"], **{f"slope of module {t}": first[t] for t in range(n)}}
        parts |= {f"curvature of module {t}": own[t] for t in range(n)} | {"pairs": second.sum() - own.sum()}
        steps = replace(waterfall(Decomposition(self.whole, parts)), title="The loss of the composition")
        pairs = Matrix(
            "Pairs of modules", torch.cat([second, first.unsqueeze(1)], 1).tolist(), [str(t) for t in range(n)],
            [*map(str, range(n)), "slope"], value="share of the loss", x="with module", y="module",
            note="What two modules do to the loss together, to second order; in the last column what each does by its slope.",
        )  # fmt: skip
        names = [*(f"module {t}" for t in range(n)), "their mean", "composed"]
        losses = [*self.losses.tolist(), float(self.weights @ self.losses), float(self.whole)]
        note = f"Composed it is lower than the mean by {float(self.gap):.3g}; to second order that is {float(self.omega):.3g}."
        return [steps, pairs, Bars("Each by itself", names, {"loss": losses}, y="loss", note=note)]

    def alone(self) -> Decomposition:
        """The loss of each module by itself, (T,), to second order: its remainders and this one make up gap - omega."""
        start = self.parts["order_0"].expand_as(self.losses)
        return Decomposition(self.losses, {"order_0": start, "order_1": self.slopes, "order_2": self.curvature.diagonal() / 2})


def quadratic(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    taus: Sequence[TaskVector],
    weights: Sequence[float] | None = None,
    *,
    hessian: str | Mapping[str, Tensor] = "exact",
) -> CompositionalLoss:
    """Take the loss of a composition apart: what there was, what each module does to it, and what every pair of them does.

        l(w_0 + sum_t w_t tau_t) = l_0 + sum_t w_t J^T tau_t + (1/2) sum_(s,t) w_s w_t tau_s^T H tau_t + remainder

    Args:
        model: at w_0, in eval mode.
        loss: of outputs and targets, a number; for "fisher" it is cross-entropy.
        inputs: (batch, ...).
        targets: as the loss takes them.
        taus: modules: names of parameters -> what is added to them.
        weights: one for each, not negative, of sum 1; by default 1/T.
        hessian: "exact"; "ggn", the part of it that is never negative (that of the outputs, J^T (d^2 loss) J); "fisher", the
            diagonal Fisher information for these inputs; or a diagonal of your own, by names.

    Returns:
        A `CompositionalLoss`.

    Raises:
        ValueError: for a model in training mode, modules that do not fit it, weights that are negative or do not sum to 1,
            another `hessian`, a loss that is no number or not finite at w_0.

    Cost: T + 2 evaluations and a backward pass; for "exact" T second backward passes, for "ggn" T derivatives forward, for
        "fisher" what `diagonal_fisher` takes. Memory that of a second backward pass and of the modules, O(T x parameters).

    Example:
        >>> model, x = torch.nn.Linear(3, 2).double().eval(), torch.randn(4, 3, dtype=torch.float64)
        >>> taus = [{"weight": torch.randn(2, 3, dtype=torch.float64)} for _ in range(3)]
        >>> found = tw.functions.quadratic(model, torch.nn.functional.mse_loss, x, torch.zeros(4, 2).double(), taus)
        >>> found.check().parts["order_2"].shape, torch.allclose(found.gap, found.omega)     # a quadratic loss: nothing is left
        (torch.Size([3, 3]), True)

    Source: Porrello et al. 2025, equations of section 3.
    """
    if isinstance(hessian, str) and hessian not in ("exact", "ggn", "fisher"):
        raise ValueError(f"hessian is 'exact', 'ggn', 'fisher' or a mapping from names to a diagonal, got {hessian!r}")
    held = checked_modules(model, taus)
    parameter_groups(model, None)  # refuses one in training mode, which is no function of its weights
    names = list(dict.fromkeys(n for tau in held for n in tau))
    start = {n: model.get_parameter(n).detach() for n in names}
    w = torch.tensor(checked_weights(weights, len(held)), dtype=start[names[0]].dtype, device=start[names[0]].device)

    def value(moved: Mapping[str, Tensor]) -> Tensor:
        found = loss(outputs(moved), targets)
        if not isinstance(found, Tensor) or found.ndim:
            raise ValueError(f"loss(outputs, targets) is a tensor without axes, got {_kind(found)}: take its mean")
        return found

    def outputs(moved: Mapping[str, Tensor]) -> Tensor:
        return explained(torch.func.functional_call(model, dict(moved), (inputs,)))

    with sdpa_kernel(SDPBackend.MATH), slow_transformer_path():  # fused attention has neither second derivatives nor forward ones
        with torch.no_grad():
            composed = {n: sum((a * t[n] for a, t in zip(w, held, strict=True) if n in t), start[n]) for n in names}
            whole = value(composed)
            losses = torch.stack([value({**start, **{n: start[n] + v for n, v in tau.items()}}) for tau in held])
        leaves = {n: s.clone().requires_grad_() for n, s in start.items()}
        with torch.enable_grad():
            here = value(leaves)
            gradient = _gradient(here, leaves, again=hessian == "exact")
            slopes = torch.stack([_dot(gradient, tau) for tau in held])
            if not bool(here.isfinite()):
                raise ValueError(f"the loss at w_0 is {here.item()}: look at the inputs and targets, and at the model itself")
            if hessian == "exact":
                curvature = _exact(slopes, leaves, held)
            elif hessian == "ggn":
                curvature = _gauss_newton(outputs, lambda z: loss(z, targets), start, held)
            else:
                own = diagonal_fisher(model, [inputs], params=names) if isinstance(hessian, str) else _fitting(hessian, start)
                turned = [{n: f * tau[n] if n in tau else torch.zeros_like(f) for n, f in own.items()} for tau in held]
                curvature = torch.stack([torch.stack([_dot(s, t) for t in held]) for s in turned])
    here, slopes = here.detach(), slopes.detach()
    parts = {"order_0": here, "order_1": w * slopes, "order_2": torch.outer(w, w) * curvature / 2}
    return CompositionalLoss(whole, parts, w, losses, slopes, curvature)


def _exact(slopes: Tensor, leaves: Mapping[str, Tensor], taus: Sequence[TaskVector]) -> Tensor:
    """tau_s^T H tau_t, backward through the gradient: H tau_s is the gradient of J^T tau_s."""
    rows = [torch.stack([_dot(turned, tau) for tau in taus]) for turned in (_gradient(s, leaves) for s in slopes)]
    curvature = torch.stack(rows).detach()
    return (curvature + curvature.T) / 2


def _gauss_newton(
    outputs: Callable[[Mapping[str, Tensor]], Tensor],
    loss: Callable[[Tensor], Tensor],
    start: dict[str, Tensor],
    taus: Sequence[TaskVector],
) -> Tensor:
    """(J tau_s)^T (d^2 loss) (J tau_t), J the derivative of the outputs."""
    moves = []
    for tau in taus:
        full = {n: tau.get(n, torch.zeros_like(s)) for n, s in start.items()}
        z, move = torch.func.jvp(outputs, (start,), (full,))
        moves.append(move.detach())
    leaf = {"z": z.detach().requires_grad_()}
    slope = _gradient(loss(leaf["z"]), leaf, again=True)["z"]
    turned = [_gradient((slope * m).sum(), leaf)["z"] for m in moves]
    return torch.stack([torch.stack([(t * m).sum() for m in moves]) for t in turned]).detach()


def _fitting(diagonal: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The diagonal, when it has what the modules move."""
    for name, value in start.items():
        if name not in diagonal or diagonal[name].shape != value.shape:
            seen = f"shape {tuple(diagonal[name].shape)}" if name in diagonal else "nothing"
            raise ValueError(f"hessian has {seen} for {name}, which a module moves and which is of shape {tuple(value.shape)}")
    return diagonal


def _gradient(value: Tensor, leaves: Mapping[str, Tensor], *, again: bool = False) -> dict[str, Tensor]:
    """By leaf, to be differentiated again if asked; 0 where nothing depends on it."""
    if not value.requires_grad:
        return {n: torch.zeros_like(leaf) for n, leaf in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=again, retain_graph=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Over the parameters of both."""
    shared = [(a[n] * v).sum() for n, v in b.items() if n in a]
    return torch.stack(shared or [next(iter(a.values())).new_zeros(())]).sum()


def _kind(found: object) -> str:
    return f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
