r"""A residual network whose branches are weakened with depth, so that its paths do not explode.

    z_k = z_(k-1) + s_k g_k(z_(k-1)),      s_k = 1/n,  1/sqrt(n),  or learned from 0

Order k of the expansion has C(n, k) paths. With s = 1/n they sum to at most 1/k! times a path, and with s = 1/sqrt(n) the second
moment stays bounded in n; with s = 1 the sum grows like 2^n.

Source: Dherin & Munn 2025 (scaling as the cure); De & Smith 2020 (SkipInit).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from termwise.core.capture import arguments
from termwise.core.interpret import evaluate
from termwise.core.program import Program

from .residual_blocks import Tower

__all__ = ["ScaledResiduals", "scale_residuals"]

RULES = ("1/n", "1/sqrt(n)", "skipinit")


class ScaledResiduals(nn.Module):
    """A copy of a network with its branches multiplied by `scales`; it trains as the network does.

    Attributes:
        model: the copy, whose parameters these are.
        scales: (n,), a buffer, or a parameter where they are learned.
        blocks: names of the branches.
    """

    scales: Tensor

    def __init__(self, model: nn.Module, program: Program, blocks: list[str], scales: Tensor, *, learned: bool) -> None:
        """Made by `scale_residuals`."""
        super().__init__()
        self.model, self.blocks, self._program = model, tuple(blocks), program
        if learned:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales)

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """What the model returned when it was recorded, with weaker branches."""
        program = self._program.of(self.model)
        tensors = program.tensors(*inputs, kwargs=kwargs)
        found: Tensor = evaluate(program.graph, {**bound(program, tensors), "switches": self.scales})
        return found


def bound(program: Program, tensors: list[Tensor]) -> dict[str, Tensor]:
    """A value for every placeholder but the switches; the model's own parameters, which may be trained."""
    given = copy.copy(program)
    given.placeholders = {n: p for n, p in program.placeholders.items() if n != "switches"}
    return given.bind(tensors, detached=False)


def scale_residuals(
    model: nn.Module, *inputs: Any, rule: str = "1/sqrt(n)", kwargs: Mapping[str, Any] | None = None,
    select: Callable[[Any], Tensor] | None = None,
) -> ScaledResiduals:  # fmt: skip
    """Weaken the residual branches of a network with their number.

        z_k = z_(k-1) + s_k g_k(z_(k-1))

    Args:
        model: in eval mode; it is copied, and left as it is.
        *inputs: an example of its inputs, from which the operations are recorded.
        rule: "1/n", "1/sqrt(n)", or "skipinit": a learned scale for every branch, which starts at 0.
        kwargs: keyword arguments of the model.
        select: picks the tensor out of what the model returns, where it has no logits.

    Returns:
        A module with the copy's parameters. It runs what was recorded: without dropout, with running statistics.

    Raises:
        ValueError: for an unknown rule, or a network without residual branches.
        TypeError: for a function, which has no parameters to keep.

    Cost: one product per branch.

    Example:
        >>> class Block(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return x + torch.tanh(super().forward(x))
        >>> model = torch.nn.Sequential(*(Block(3, 3) for _ in range(4))).eval()
        >>> x = torch.randn(2, 3)
        >>> bool((tw.functions.scale_residuals(model, x, rule="skipinit")(x) == x).all())
        True

    Source: Dherin & Munn 2025; De & Smith 2020, arXiv 2002.10444.
    """
    if rule not in RULES:
        raise ValueError(f"rule is one of {', '.join(RULES)}, got {rule!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose parameters are kept; got {type(model).__name__}")
    model, positional, keywords = arguments(model, inputs, kwargs)  # type: ignore[assignment]
    tower = Tower(model, positional, keywords, select)
    n = len(tower.blocks)
    scales = tower.switches({"1/n": 1 / n, "1/sqrt(n)": n**-0.5, "skipinit": 0.0}[rule])
    program = tower.program.of(None)
    return ScaledResiduals(copy.deepcopy(model), program, tower.names, scales, learned=rule == "skipinit").eval()
