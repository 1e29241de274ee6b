"""A table of low rank read by linear layers alone: its second factor becomes part of them.

    W (mix(t), z) + c = W_1 (U t + mu) + W_2 z + c = (W_1 U) t + W_2 z + (c + W_1 mu)

That holds when nothing but the arrangement of numbers lies between table and layers. Whether it does is read off the model as it
was recorded; a product, a sum or an activation between them is found there, and refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from termwise.core.capture import capture
from termwise.core.program import Program, describe, op_name

from .batches import evaluating
from .layers import put, sharing_copy
from .low_rank_linear import LowRankEmbedding
from .products import linear

__all__ = ["merge_table"]

ARRANGING = {
    "cat", "stack", "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "clone", "contiguous",
    "alias", "dropout", "detach", "_to_copy",
}  # fmt: skip
"""Operations that put numbers in another place, or leave them where they are (dropout does while not training)."""


def merge_table(model: nn.Module, name: str, *inputs: Any) -> nn.Module:
    """Merge the linear layer of a `LowRankEmbedding` into the linear layers that read it.

    Args:
        model: it is not changed; what stays is shared with the result.
        name: path of the table in it.
        inputs: positional arguments of the model, to record it with and to compare on.

    Returns:
        A copy in which the table is narrow, a plain `nn.Embedding` or `nn.EmbeddingBag`, and every layer that reads it as well.

    Raises:
        ValueError: when there is no such table, or something else than the arrangement of numbers lies between it and a linear
            layer (the message has the operation, its module and line); when the model has the width of the table written into it.

    Cost: one recording and four forward passes.

    Example:
        >>> from termwise.weights import afm_embedding
        >>> emb, layer = torch.nn.Embedding(40, 8), torch.nn.Linear(24, 5)
        >>> model = torch.nn.Sequential(afm_embedding(emb, torch.ones(40), rank=3), torch.nn.Flatten(), layer).eval()
        >>> ids = torch.randint(40, (10, 3))
        >>> merged = merge_table(model, "0", ids)
        >>> merged, torch.allclose(merged(ids), model(ids), atol=1e-5)
        (Sequential(
          (0): Embedding(40, 3)
          (1): Flatten(start_dim=1, end_dim=-1)
          (2): Linear(in_features=9, out_features=5, bias=True)
        ), True)
    """
    table = _table(model, name)
    with evaluating(model):
        program = capture(model, *inputs)
        readers = _readers(program, name)
        small = sharing_copy(model)
        for path in readers:
            put(small, path, _merged(model, table, path, inputs))
        put(small, name, table.table)
        with evaluating(small), torch.no_grad():
            truth = program(*inputs)
            try:
                found = small(*inputs)
            except RuntimeError as problem:
                raise ValueError(
                    f"{name} cannot be merged into {', '.join(readers)}: the model has its width written into it ({problem})"
                ) from None
    off, whole = (found - truth).norm(), truth.norm()
    if found.shape != truth.shape or off > 100 * torch.finfo(truth.dtype).eps ** 0.75 * whole:
        raise ValueError(f"{name} cannot be merged into {', '.join(readers)}: the output would change by {off / whole:.1e}")
    return small


def _table(model: nn.Module, name: str) -> LowRankEmbedding:
    tables = [path for path, module in model.named_modules() if isinstance(module, LowRankEmbedding)]
    try:
        found = model.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, LowRankEmbedding):
        there = f"there are {', '.join(tables[:4])}" if tables else "there is none: make one with afm_embedding or compress_ctr"
        raise ValueError(f"no LowRankEmbedding at {name!r}: {there}")
    return found


def _readers(program: Program, name: str) -> list[str]:
    """Paths of the linear layers that read a table, and all of whose reads are of it."""
    held = {node: program.placeholders[node.name].name for node in program.graph.find_nodes(op="placeholder")}
    mixes = [user for node, path in held.items() if path == f"{name}.mix.weight" for user in node.users]
    if not mixes:
        raise ValueError(f"{name} cannot be merged: the model does not read it on these inputs")
    reads: dict[fx.Node, None] = {}
    for mix in mixes:
        reads |= dict.fromkeys(_reads(mix, name))
    paths = []
    for node in reads:
        weight = node.args[1]
        path = held.get(weight, "") if isinstance(weight, fx.Node) else ""
        owner, _, leaf = path.rpartition(".")
        if leaf != "weight" or not isinstance(program.model.get_submodule(owner), nn.Linear):
            raise ValueError(f"{name} cannot be merged into {describe(node)}: its weight is not that of an nn.Linear")
        if not all(user in reads for user in weight.users):  # type: ignore[union-attr]
            raise ValueError(f"{name} cannot be merged into {owner}, which reads something else as well")
        paths.append(owner)
    return list(dict.fromkeys(paths))


def _reads(node: fx.Node, name: str) -> Iterator[fx.Node]:
    """The linear operations that a value arrives at as it is."""
    for user in node.users:
        op = op_name(user)
        if op == "linear" and user.args[0] is node and node not in user.args[1:]:
            yield user
        elif user.op == "call_function" and op in ARRANGING:
            yield from _reads(user, name)
        elif user.op == "output":
            raise ValueError(f"{name} cannot be merged: its rows are an output of the model")
        else:
            raise ValueError(f"{name} cannot be merged: between it and a linear layer there is {describe(user)}")


def _merged(model: nn.Module, table: LowRankEmbedding, path: str, inputs: tuple[Any, ...]) -> nn.Linear:
    """The layer at a path, reading the narrow table in place of the wide one."""
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    width = table.embedding_dim
    marks = _marks(model, table, layer, inputs)
    starts = (marks == 1).nonzero()[:, 0].tolist()
    whole = torch.arange(1, width + 1, device=marks.device)
    if (
        not starts
        or int((marks != 0).sum()) != width * len(starts)
        or not all(torch.equal(marks[s : s + width], whole) for s in starts)
    ):
        raise ValueError(f"a table cannot be merged into {path}, which reads parts of its rows, or reads them in another order")
    weight, mix = layer.weight.detach().double(), table.mix.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    columns, at = [], 0
    for s in starts:
        columns += [weight[:, at:s], weight[:, s : s + width] @ mix]
        at = s + width
        if table.mix.bias is not None:
            moved = weight[:, s:at] @ table.mix.bias.detach().double()
            bias = moved if bias is None else bias + moved
    merged = linear(torch.cat([*columns, weight[:, at:]], 1).to(layer.weight), None if bias is None else bias.to(layer.weight))
    for parameter in merged.parameters():
        parameter.requires_grad_(layer.weight.requires_grad)
    return merged


def _marks(model: nn.Module, table: LowRankEmbedding, layer: nn.Linear, inputs: tuple[Any, ...]) -> Tensor:
    """Which entry of a row, from 1, each input of a layer is; 0 for what is none of the table.

    The table puts out 1 ... d, and then -1 ... -d; half the difference of what arrives is the mark.
    """

    def arriving(sign: float) -> Tensor:
        arrived: list[Tensor] = []

        def mark(_: nn.Module, args: Any, y: Tensor) -> Tensor:
            return sign * torch.arange(1, y.shape[-1] + 1, device=y.device).to(y).expand_as(y)

        def keep(_: nn.Module, args: Any) -> None:
            arrived.append(args[0].reshape(-1, args[0].shape[-1])[0].clone())

        handles = [table.register_forward_hook(mark), layer.register_forward_pre_hook(keep)]
        try:
            with torch.no_grad():
                model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        return arrived[0]

    return ((arriving(1.0) - arriving(-1.0)) / 2).round().long()
