r"""How far the tensor G of a PLDR-LLM depends on its text: a mean over texts, and what each adds to it.

    G(x)  =  mean of G  +  remainder(x),          s = sqrt(mean_x |remainder(x)|^2) / |mean of G|      per layer and head

Where s is 0 the network that makes G can be deleted (`freeze_g`). Source: papers.toml "pldr".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from termwise.core import Decomposition
from termwise.core.mosaic import mosaic
from termwise.core.pictures import Matrix, Picture, Steps

from .pldr import PLDRForCausalLM

__all__ = ["Invariance", "invariance"]

HEADS = 16
"""Whose matrices a picture has, at most."""


@dataclass(frozen=True, eq=False, repr=False)
class Invariance(Decomposition):
    """`whole` is G of every text, (texts, layers, H, d_k, d_k); one part, `mean_G`; the remainder depends on the text."""

    def relative_std(self) -> Tensor:
        """sqrt(mean_x |G(x) - mean|^2) / |mean|, Frobenius norms: (layers, H)."""
        spread = self.remainder.flatten(-2).norm(dim=-1).square().mean(0).sqrt()
        return spread / self.parts["mean_G"][0].flatten(-2).norm(dim=-1)

    def determinants(self) -> Tensor:
        """Of G of every text: (texts, layers, H)."""
        return torch.linalg.det(self.whole)

    def summary(self) -> str:
        """One honest line: over how many texts, and how far they differ."""
        s = self.relative_std()
        return f"G of {len(self)} texts adds up to its mean but for {s.min():.1e} to {s.max():.1e}, median {s.median():.1e}"

    @property
    def by_sample(self) -> bool:
        """False: texts are looked at together."""
        return False

    def pictures(self, sample: int = 0) -> list[Picture]:
        """How much G depends on the text, layer by head; the mean of G in every head; and what one text adds to it.

        Raises:
            ValueError: when there is no such sample.
        """
        if not -len(self) <= sample < len(self):
            raise ValueError(f"sample {sample} is out of range: there are {len(self)} texts")
        s, mean, rest = self.relative_std(), self.parts["mean_G"][0], self.remainder[sample]
        layers, heads = s.shape
        rows, columns = [f"layer {i}" for i in range(layers)], [f"head {j}" for j in range(heads)]
        note = "Standard deviation over texts, relative to the mean. Where it is 0, the network that makes G can be deleted."
        title = "How much G depends on the text"
        found: list[Picture] = [Matrix(title, s.tolist(), rows, columns, value="deviation", signed=False, note=note)]
        places = [divmod(int(p), heads) for p in s.flatten().argsort(descending=True)[:HEADS].sort().values]
        more = f" The {HEADS} heads that depend most are shown." if len(places) < s.numel() else ""
        for title, value, what in (("The mean of G", mean, "mean of G"), ("What this text adds", rest, "remainder")):
            drawn = [
                mosaic("", value[i, j], value=what, most=32, note=f"Deviation {s[i, j]:.1%} of the mean.") for i, j in places
            ]
            found.append(Steps(title, "head", [f"{rows[i]}, {columns[j]}" for i, j in places], drawn, note=more.strip()))
        return found


def invariance(model: PLDRForCausalLM, loader: Iterable[Tensor | tuple[Tensor, Tensor]]) -> Invariance:
    """Read G of many texts, and take it apart into its mean and what depends on the text.

    Args:
        model: with learned curvature; run without gradients, as it stands.
        loader: batches of ids (batch, n), or pairs of ids and attention mask. Lengths may differ between batches.

    Returns:
        An `Invariance`, in float64.

    Raises:
        ValueError: for no texts, or a model whose G does not depend on them.

    Cost: one forward pass; memory texts layers H d_k^2.

    Example:
        >>> model = tw.layers.PLDRForCausalLM(tw.layers.PLDRConfig(vocab_size=20))
        >>> found = tw.layers.invariance(model, torch.randint(20, (3, 8, 12)))
        >>> found.whole.shape, found.relative_std().shape
        (torch.Size([24, 2, 4, 16, 16]), torch.Size([2, 4]))

    Source: Gokden 2025, the comparison of deductive outputs over prompts.
    """
    found = [model.curvatures(*(batch if isinstance(batch, tuple | list) else (batch,))).transpose(0, 1) for batch in loader]
    if not found:
        raise ValueError("the loader has no batch: give texts, ids (batch, n)")
    whole = torch.cat(found).double()
    return Invariance(whole, {"mean_G": whole.mean(0).expand_as(whole)})
