"""The result of a relevance method: a prediction taken apart into inputs, biases, constants and what rules lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from termwise.core.decomposition import Decomposition

__all__ = ["KINDS", "Explanation"]

KINDS = {"input": "inputs", "bias": "biases", "constant": "constants", "rule": "rules"}
"""First word of a part's name -> the group that `shares` reports."""


@dataclass(frozen=True, eq=False, repr=False)  # repr: the base's one line, not every number
class Explanation(Decomposition):
    """One scalar per sample (`whole`, shape (batch,)), written as a sum over what made it.

    The parts are named by kind:

    - ``"input:<argument>"``: shape of that input; (batch, tokens) for token ids;
    - ``"bias:<module path>"``: (batch, *bias shape);
    - ``"constant:<module path or name>"``: position embeddings, class tokens, Python numbers, values f(0);
    - ``"rule:<op>@<module path>"``: (batch,), what a rule that does not conserve lost at that node, measured there.

    Attributes:
        target: the class index per sample, where the whole is one entry of an output; None otherwise.
        rules: name of the rule set.
        names: the tokens of each sample, for pictures; None where there are none.
        classes: names of the classes `target` indexes; None where unknown.
    """

    target: Tensor | None = None
    rules: str = "default"
    names: list[list[str]] | None = None
    classes: list[str] | None = None

    def _group(self, kind: str) -> dict[str, Tensor]:
        return {n.partition(":")[2]: p for n, p in self.parts.items() if n.startswith(kind + ":")}

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Relevance of every input by argument name, each of the shape of that input."""
        return self._group("input")

    @property
    def biases(self) -> dict[str, Tensor]:
        """Relevance of every bias by module path, (batch, *bias shape)."""
        return self._group("bias")

    @property
    def constants(self) -> dict[str, Tensor]:
        """Relevance of every other constant by name, (batch, ...)."""
        return self._group("constant")

    @property
    def losses(self) -> dict[str, Tensor]:
        """What rules lost, by ``op@module path``, (batch,)."""
        return self._group("rule")

    def shares(self) -> dict[str, Float[Tensor, " batch"]]:
        """The share of the whole that inputs, biases, constants and rules carry; each may be negative or above 1.

        They sum to 1 up to the remainder. Where the whole is 0 there are no shares, and the values are NaN.
        """
        sums = {group: torch.zeros_like(self.whole) for group in KINDS.values()}
        for name, value in self.contributions().items():
            sums[KINDS[name.partition(":")[0]]] += value
        whole = torch.where(self.whole == 0, torch.full_like(self.whole, torch.nan), self.whole)
        return {group: value / whole for group, value in sums.items()}

    def by_module(self) -> dict[str, Float[Tensor, " batch"]]:
        """Contribution of every module: its biases, its constants and what was lost in it. Inputs stand under "input"."""
        modules: dict[str, Tensor] = {}
        for name, value in self.contributions().items():
            kind, _, rest = name.partition(":")
            path = "input" if kind == "input" else rest.rpartition("@")[2]
            modules[path] = modules[path] + value if path in modules else value
        return modules

    def top(self, k: int = 10, sample: int = 0) -> list[tuple[str, float]]:
        """The k largest parts of one sample by absolute value, as (name, contribution).

        An input of tokens counts token by token, as ``"input:input_ids[3] 'happy'"``; every other part as a whole.
        """
        found: list[tuple[str, float]] = []
        for name, part in self.parts.items():
            if name.startswith("input:") and part.ndim == 2 and self.names is not None:
                tokens = self.names[sample]
                values = part[sample].tolist()
                if len(tokens) == len(values):
                    found += [(f"{name}[{i}] {t!r}", v) for i, (t, v) in enumerate(zip(tokens, values, strict=True))]
                    continue
            found.append((name, part[sample].sum().item()))
        return sorted(found, key=lambda item: -abs(item[1]))[:k]

    def label(self, sample: int = 0) -> str:
        """What is explained: the name or index of the target class, or "output"."""
        if self.target is None:
            return "output"
        index = int(self.target.reshape(len(self.target), -1)[sample, -1])
        return self.classes[index] if self.classes is not None and 0 <= index < len(self.classes) else f"class {index}"

    def summary(self) -> str:
        """One honest line for the first sample: closing, shares, cancellation."""
        shares = "no shares, the output is exactly 0"
        if len(self) and self.whole[0] != 0:
            shares = ", ".join(f"{group} {round(100 * s[0].item())} %" for group, s in self.shares().items())
        return f"adds up to {self.error():.1e} ({shares}, cancellation {self.cancellation():.3g}x)"

    def _repr_html_(self) -> str:
        from termwise.report.page import fragment

        return fragment(self)

    def heatmap(self, name: str | None = None, sample: int = 0) -> Float[Tensor, "height width"]:
        """Relevance of one image summed over its channels.

        Args:
            name: the image input (shape (batch, channels, height, width)); the first such input when not given.
            sample: which sample.

        Raises:
            ValueError: when no input has the shape of images.
        """
        images: dict[str, Any] = {n: p for n, p in self.inputs.items() if p.ndim == 4}
        if not images or (name is not None and name not in images):
            raise ValueError(f"no image input {name or ''}: inputs are { {n: tuple(p.shape) for n, p in self.inputs.items()} }")
        return images[name or next(iter(images))][sample].sum(0)
