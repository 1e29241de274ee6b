"""What layers read when those before them were replaced already, without running the model from its start for each.

A model with a list of blocks, each of which reads what the one before put out, is walked along: the inputs of one block are kept,
the block is run once for each group of its layers that read the same tensor, and once more to move on. That is as much as one run
of the model for each group of a block. What is not in such a list is reached by running the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from .batches import call, evaluating
from .layers import Layer
from .sensitivity import output_of

__all__ = ["Route", "Stream", "route"]

CHAINED = object()
"""Stands for what the block before put out."""


@dataclass(frozen=True)
class Route:
    """The order in which a model runs.

    Attributes:
        groups: layers that read the same tensor, in the order of their first call.
        blocks: modules each of which reads what the one before put out, and else only what the first one does.
    """

    groups: list[list[str]]
    blocks: list[str]

    def block(self, layer: str) -> str | None:
        """The one that a layer lies in."""
        return next((block for block in self.blocks if layer == block or layer.startswith(f"{block}.")), None)


def route(model: nn.Module, layers: Mapping[str, Layer], batch: Any) -> Route:
    """How a model runs, seen on one batch.

    Args:
        model: run in evaluation mode; hooks and modes are afterwards as they were.
        layers: that are of interest.
        batch: as of `read_batches`.

    Returns:
        The route; with no blocks where no list of modules is a chain.
    """
    lists = [
        [f"{name}.{key}" if name else key for key, _ in module.named_children()]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    ]
    calls: dict[str, list[tuple[list[Any], Tensor | None]]] = {name: [] for names in lists for name in names}
    reads: dict[str, Tensor] = {}

    def watch_block(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> None:
            calls[name].append((pytree.tree_leaves((args, kwargs)), _output(y)))

        return hook

    def watch_layer(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            reads.setdefault(name, Layer.read(args, kwargs))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch_block(name), with_kwargs=True) for name in calls]
    handles += [layer.module.register_forward_pre_hook(watch_layer(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with evaluating(model), torch.no_grad():
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    chains = [names for names in lists if _is_chain([calls[name] for name in names])]
    inside = [sum(layer.startswith(f"{names[0].rpartition('.')[0]}.".lstrip(".")) for layer in layers) for names in chains]
    blocks = max(zip(inside, chains, strict=True), key=lambda pair: pair[0])[1] if chains else []
    found = Route([], blocks)
    for name, x in reads.items():
        group = next((g for g in found.groups if reads[g[0]] is x and found.block(g[0]) == found.block(name)), None)
        if group is None:
            found.groups.append([name])
        else:
            group.append(name)
    return found


def _output(result: Any) -> Tensor | None:
    """The tensor that matters of what a module puts out, or nothing where there is none."""
    try:
        return output_of(result)
    except TypeError:
        return None


def _is_chain(calls: Sequence[Sequence[tuple[list[Any], Tensor | None]]]) -> bool:
    """Whether each is called once, with what the one before put out and with nothing else that the first was not."""
    if any(len(c) != 1 or c[0][1] is None for c in calls):
        return False
    common = {id(leaf) for leaf in calls[0][0][0] if isinstance(leaf, Tensor)}
    for ((_, before),), ((leaves, _),) in itertools.pairwise(calls):
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if sum(leaf is before for leaf in tensors) != 1 or any(leaf is not before and id(leaf) not in common for leaf in tensors):
            return False
    return True


class Stream:
    """Batches on their way through a model whose modules are replaced as they go.

    Args:
        model: run in evaluation mode.
        batches: as of `read_batches`.
        along: its route. Layers are visited in its order; modules may be replaced in the block where the stream is.

    Cost: memory of the inputs of one block for all batches.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], along: Route) -> None:
        self.model, self.batches, self.route = model, list(batches), along
        self.block: str | None = None
        self.read: list[Tensor] = []
        self.calls: list[dict[str, tuple[list[Any], Any]]] = []

    def inputs(self, layer: str) -> Iterator[list[Tensor]]:
        """What a layer reads, batch by batch: one tensor for each of its calls."""
        self._go(self.route.block(layer))
        for i in range(len(self.batches)):
            seen: list[Tensor] = []
            handle = self.model.get_submodule(layer).register_forward_pre_hook(_keeping(seen), with_kwargs=True)
            try:
                self._run(i)
            finally:
                handle.remove()
            yield seen

    def _go(self, block: str | None) -> None:
        """Move to a block, along the chain once it is reached."""
        if block == self.block:
            return
        if block is None or self.block is None:
            self.block = None
            if block is not None:
                self._enter(block)
            return
        order = self.route.blocks
        for following in order[order.index(self.block) + 1 : order.index(block) + 1]:
            self.read = [output_of(self._run(i)) for i in range(len(self.batches))]
            self.block = following

    def _run(self, i: int) -> Any:
        """The block where the stream is, or the model, on a batch."""
        with torch.no_grad():
            if self.block is None:
                with evaluating(self.model):
                    return call(self.model, self.batches[i])
            leaves, spec = self.calls[i][self.block]
            args, kwargs = pytree.tree_unflatten([self.read[i].clone() if leaf is CHAINED else leaf for leaf in leaves], spec)
            module = self.model.get_submodule(self.block)
            with evaluating(module):
                return module(*args, **kwargs)

    def _enter(self, block: str) -> None:
        """Run the model once, and keep what the block reads, and of the ones behind it all but that."""
        self.read, self.calls = [], []
        behind = self.route.blocks[self.route.blocks.index(block) :]
        for batch in self.batches:
            last: list[Tensor] = []
            calls: dict[str, tuple[list[Any], Any]] = {}

            def before(name: str, last: list[Tensor] = last, calls: dict[str, tuple[list[Any], Any]] = calls) -> Any:
                def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                    leaves, spec = pytree.tree_flatten((args, kwargs))
                    if name == block:
                        last[:] = [next(leaf for leaf in leaves if isinstance(leaf, Tensor))]
                        self.read.append(last[0].clone())
                    calls[name] = ([CHAINED if leaf is last[0] else leaf for leaf in leaves], spec)

                return hook

            def after(_: nn.Module, args: tuple[Any, ...], y: Any, last: list[Tensor] = last) -> None:
                last[:] = [output_of(y)]

            handles = []
            for name in behind:
                module = self.model.get_submodule(name)
                handles += [module.register_forward_pre_hook(before(name), with_kwargs=True), module.register_forward_hook(after)]
            try:
                with evaluating(self.model), torch.no_grad():
                    call(self.model, batch)
            finally:
                for handle in handles:
                    handle.remove()
            self.calls.append(calls)
        self.block = block


def _keeping(seen: list[Tensor]) -> Any:
    return lambda _, args, kwargs: seen.append(Layer.read(args, kwargs).clone())
