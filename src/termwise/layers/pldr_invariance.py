r"""How far the tensor G of a PLDR-LLM depends on its text: a mean over texts, and what each adds to it.

    G(x)  =  mean of G  +  remainder(x),          s = sqrt(mean_x |remainder(x)|^2) / |mean of G|      per layer and head

Where s is 0 the network that makes G can be deleted (`freeze_g`). Source: papers.toml "pldr".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from termwise.core import Decomposition

from .pldr import PLDRForCausalLM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Invariance", "invariance"]


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

    def plot(self) -> Figure:
        """Relative deviation of G, layer by head; the mean of G in every one of them below."""
        import matplotlib.pyplot as plt

        s, mean = self.relative_std(), self.parts["mean_G"][0]
        layers, heads = s.shape
        figure, axes = plt.subplots(
            layers, heads + 1, figsize=(1.6 * (heads + 1), 1.7 * layers), layout="constrained", squeeze=False
        )
        for i in range(layers):
            axes[i, 0].barh(range(heads), s[i].tolist(), color="tab:red")
            axes[i, 0].set(xlim=(0, 1.1 * float(s.max())), yticks=range(heads), ylabel=f"layer {i}", title="deviation / mean")
            axes[i, 0].invert_yaxis()
            for j in range(heads):
                top = float(mean[i, j].abs().max())
                axes[i, j + 1].imshow(mean[i, j].numpy(), cmap="RdBu_r", vmin=-top, vmax=top)
                axes[i, j + 1].set(title=f"head {j}: {s[i, j]:.0%}", xticks=[], yticks=[])
        return figure


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
