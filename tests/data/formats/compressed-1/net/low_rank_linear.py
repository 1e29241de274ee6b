"""Layers stored as products of smaller ones. This file needs torch alone: it is written beside the weights that use it."""

import torch
from torch import Tensor, nn

__all__ = ["GroupedLinear", "LowRankEmbedding", "LowRankLinear", "Pivoted"]


class LowRankLinear(nn.Sequential):
    """Linear layers one after the other, with the attributes of one `nn.Linear`, for models that read them.

    Its parameters have the names that a plain `nn.Sequential` gives them.
    """

    @property
    def in_features(self) -> int:
        """Inputs, n."""
        return self[0].in_features

    @property
    def out_features(self) -> int:
        """Outputs, m."""
        return self[-1].out_features

    @property
    def bias(self) -> Tensor | None:
        """Of the last."""
        return self[-1].bias

    @property
    def weight(self) -> Tensor:
        """The matrix (m, n), multiplied out at every access."""
        product = self[-1].weight
        for layer in reversed(self[:-1]):
            product = product @ layer.weight
        return product


class LowRankEmbedding(nn.Module):
    """A table of rows of rank r: a narrow table, and a linear layer that makes its rows wide.

        y(id) = mix(table[id])

    r (n + d) numbers for n rows of size d. What a table does with ids (bags, padding, sparse gradients) the narrow one does.

    Args:
        table: `nn.Embedding` or `nn.EmbeddingBag` of n rows of size r.
        mix: `nn.Linear` from r to d; without a bias where rows are added up, or one of them must stay zero.
    """

    def __init__(self, table: nn.Module, mix: nn.Linear) -> None:
        super().__init__()
        self.table, self.mix = table, mix

    def forward(self, input: Tensor, *rest: Tensor, **named: Tensor) -> Tensor:
        """As of the table it stands for: ids, and of a bag its offsets and weights."""
        return self.mix(self.table(input, *rest, **named))

    @property
    def num_embeddings(self) -> int:
        """Rows, n."""
        return self.table.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Size of a row, d."""
        return self.mix.out_features

    @property
    def padding_idx(self) -> int | None:
        """The row that is not learned."""
        return self.table.padding_idx

    @property
    def weight(self) -> Tensor:
        """The table (n, d), multiplied out at every access."""
        return self.mix(self.table.weight)


class GroupedLinear(nn.Module):
    """Linear layers side by side, each of which reads its own share of the inputs: what a grouped convolution is to one.

        y = (V_1 x_1, ..., V_k x_k),      x = (x_1, ..., x_k)

    Args:
        blocks: V, shape (k, j, n / k).
    """

    def __init__(self, blocks: Tensor) -> None:
        super().__init__()
        self.blocks = nn.Parameter(blocks)

    def forward(self, input: Tensor) -> Tensor:
        """(..., n) to (..., k j)."""
        k, _, width = self.blocks.shape
        return torch.einsum("...ki,kji->...kj", input.unflatten(-1, (k, width)), self.blocks).flatten(-2)

    @property
    def in_features(self) -> int:
        """Inputs, n."""
        return self.blocks.shape[0] * self.blocks.shape[2]

    @property
    def out_features(self) -> int:
        """Outputs, k j."""
        return self.blocks.shape[0] * self.blocks.shape[1]

    @property
    def weight(self) -> Tensor:
        """The matrix (k j, n), zero outside its blocks, written out at every access."""
        return torch.block_diag(*self.blocks)

    @property
    def bias(self) -> None:
        """It has none."""
        return


class Pivoted(nn.Module):
    """A layer of rank r by r of its own outputs, and what the other outputs are made of.

        h = first(x),      y = (h, mix(h)) in the order of `position`

    r (m + n - r) numbers: fewer than the dense m n for every r below both, which two factors of r (m + n) are not.

    Args:
        first: `nn.Linear` or `nn.Conv2d` to r outputs.
        mix: `nn.Linear`, or `nn.Conv2d` of kernel 1, from r to m - r outputs.
        position: output i is entry position[i] of (h, mix(h)), shape (m,).
    """

    def __init__(self, first: nn.Module, mix: nn.Module, position: Tensor) -> None:
        super().__init__()
        self.first, self.mix = first, mix
        self.axis = -1 if isinstance(first, nn.Linear) else -3  # from the end: one picture may come without an axis of samples
        self.register_buffer("position", position)

    def forward(self, input: Tensor) -> Tensor:
        """As of the layer it stands for."""
        h = self.first(input)
        return torch.cat([h, self.mix(h)], self.axis).index_select(self.axis, self.position)

    @property
    def in_features(self) -> int:
        """Inputs, n."""
        return self.first.in_features

    @property
    def out_features(self) -> int:
        """Outputs, m."""
        return len(self.position)

    @property
    def bias(self) -> Tensor | None:
        """Shape (m,), multiplied out."""
        if self.first.bias is None:
            return None
        own = self.first.bias
        return torch.cat([own, self.mix.bias + self.mix.weight.flatten(1) @ own])[self.position]

    @property
    def weight(self) -> Tensor:
        """The matrix (m, n), multiplied out at every access."""
        rows = self.first.weight
        return torch.cat([rows, (self.mix.weight.flatten(1) @ rows.flatten(1)).reshape(-1, *rows.shape[1:])])[self.position]
