r"""What one task adds to the weights, in three forms: every weight, a product of low rank, a factor per row.

    full: delta = D,      lora: delta = B A, B (rows, rank), A (rank, columns),      ia3: delta = (l - 1) * W_0, l (rows, 1)

Each is an `nn.Module` that begins at delta = 0, and whose `deltas()` are by the names of the model's parameters: composition,
penalties and Fisher information speak of delta, never of B, A or l.

Source: Hu et al. 2022 (LoRA); Liu et al. 2022 ((IA)^3); papers.toml "second-order-composition".
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from termwise.core.arguments import seeded

from .tangent import parameter_groups

__all__ = ["IA3", "KINDS", "Adapter", "Full", "LoRA", "adapter"]


class Adapter(nn.Module, ABC):
    """Parameters of one task's module, and the deltas that they make."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(weights)

    @abstractmethod
    def deltas(self) -> dict[str, Tensor]:
        """What is added to each parameter, by name; differentiable."""


class Full(Adapter):
    """delta is free."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.free = nn.ParameterList(torch.zeros_like(w) for w in weights.values())

    def deltas(self) -> dict[str, Tensor]:
        """The parameters themselves."""
        return dict(zip(self.names, self.free, strict=True))


class LoRA(Adapter):
    """delta = B A; A is drawn as He et al. do, B begins at 0."""

    def __init__(self, weights: Mapping[str, Tensor], rank: int, generator: torch.Generator) -> None:
        super().__init__(weights)
        self.shapes = [w.shape for w in weights.values()]
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for w in weights.values():
            rows, columns = len(w), w[0].numel()
            r = min(rank, rows, columns)
            drawn = torch.rand(r, columns, generator=generator, dtype=w.dtype) * 2 - 1
            self.a.append((drawn * columns**-0.5).to(w.device))
            self.b.append(torch.zeros(rows, r, dtype=w.dtype, device=w.device))

    def deltas(self) -> dict[str, Tensor]:
        """The products."""
        return {n: (b @ a).view(s) for n, s, a, b in zip(self.names, self.shapes, self.a, self.b, strict=True)}


class IA3(Adapter):
    """delta = (l - 1) * W_0, a factor for each output; l begins at 1."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.held = list(weights.values())
        self.factors = nn.ParameterList(
            torch.ones(len(w), *[1] * (w.ndim - 1), dtype=w.dtype, device=w.device) for w in self.held
        )

    def deltas(self) -> dict[str, Tensor]:
        """W_0, scaled."""
        return {n: (f - 1) * w for n, f, w in zip(self.names, self.factors, self.held, strict=True)}


KINDS = ("full", "lora", "ia3")
"""What `adapter` makes."""


def adapter(
    model: nn.Module,
    kind: str = "full",
    *,
    params: str | list[str] | None = None,
    rank: int = 16,
    generator: torch.Generator | None = None,
) -> Adapter:
    """A module for one task, at delta = 0.

    Args:
        model: whose weights W_0 are moved, in eval mode; it is left as it is.
        kind: "full", "lora" or "ia3".
        params: names or patterns with * and ? of the parameters that move; None: all of them for "full", the weights of linear,
            convolutional and attention layers for the others.
        rank: of "lora", at most; a smaller matrix takes its own.
        generator: of A; one seeded with 0 by default.

    Returns:
        An `nn.Module` with `deltas()`.

    Raises:
        ValueError: for another kind (the nearest is named), a rank below 1, parameters that there are none of or that are no
            matrices.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).eval()
        >>> lora = tw.functions.adapter(model, "lora", rank=2)
        >>> {name: int(delta.count_nonzero()) for name, delta in lora.deltas().items()}
        {'0.weight': 0, '2.weight': 0}

    Source: Hu et al. 2022; Liu et al. 2022.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind).lower(), KINDS, 1, 0.3)
        raise ValueError(f"kind is one of {', '.join(KINDS)}, got {kind!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    if rank < 1:
        raise ValueError(f"rank is 1 or more, got {rank}")
    names = [n for group in parameter_groups(model, params).values() for n in group]
    if kind != "full" and params is None:
        matrices = _matrices(model)
        names = [n for n in names if n in matrices]
    weights = {n: model.get_parameter(n).detach() for n in names}
    if not weights:
        raise ValueError(f"{type(model).__name__} has no linear, convolutional or attention layers: name its matrices by params=")
    if kind == "full":
        return Full(weights)
    if flat := [n for n, w in weights.items() if w.ndim < 2]:
        raise ValueError(
            f"{kind} moves matrices, and {flat[0]} is of shape {tuple(weights[flat[0]].shape)}: use params='*.weight'"
        )
    generator = seeded(generator)
    return LoRA(weights, rank, generator) if kind == "lora" else IA3(weights)


def _matrices(model: nn.Module) -> set[str]:
    """Names of the weights of layers that multiply."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    names = {
        f"{n}.{w}".lstrip(".") for n, m in model.named_modules() if isinstance(m, kinds) for w in ("weight", "in_proj_weight")
    }
    return names & {n for n, _ in model.named_parameters()}
