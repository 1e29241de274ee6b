"""Models of clicks made smaller: their tables of ids and their layers, within one budget.

Every table and every layer is taken apart by `afm`, for its own output. What each rank spoils is weighed where it counts, at the
output of the model, on data held out; so ranks of a table of a million rows and of a layer of a hundred compete in one unit.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .afm import affine_pairs, is_affine, low_rank_table, why_not_table
from .allocation import allocate
from .batches import call, evaluating, read_batches
from .calibration import LayerStats
from .compressed import Compressed, LayerRow
from .evidence import Evidence
from .factorization import Factorization
from .ladder import Ladder, Replacement, ranks_below, with_dense
from .layers import Layer, put, sharing_copy, sort_modules
from .products import linear
from .sensitivity import sensitivity
from .task import Task

__all__ = ["compress_ctr", "find_tables"]


@dataclass(frozen=True, eq=False)
class TableOf:
    """A table.

    Attributes:
        paths: of the modules that share it.
        module: the first of them.
    """

    paths: tuple[str, ...]
    module: nn.Embedding | nn.EmbeddingBag

    @property
    def layer(self) -> Layer:
        """It as a matrix (n, d)."""
        return Layer(self.paths[0], self.module)


def find_tables(model: nn.Module, keep: Sequence[str] = ()) -> tuple[dict[str, TableOf], dict[str, str]]:
    """The tables that can be taken apart, and why others cannot.

    Args:
        model: any model.
        keep: patterns of paths that are left alone.

    Returns:
        By path of the first module that has it; tables that share their weights are one.
    """
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append((name, module))
    tables: dict[str, TableOf] = {}
    left: dict[str, str] = {}
    for shared in users.values():
        name, first = shared[0]
        found = [(path, m) for path, m in shared if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
        if not found:
            continue
        paths = tuple(path for path, _ in found)
        kept = any(fnmatch.fnmatch(path, pattern) for path in paths for pattern in keep)
        why = "kept on request" if kept else why_not_table(found[0][1])  # type: ignore[arg-type]
        if why is None and len(found) < len(shared):
            why = f"its weights are tied: {' and '.join(path for path, _ in shared)} share them"
        if why is None and any(str(m) != str(first) for _, m in found):
            why = f"{' and '.join(paths)} share its weights and read them differently"
        if why is None:
            tables[name] = TableOf(paths, first)  # type: ignore[arg-type]
        else:
            left |= dict.fromkeys(paths, why)
    return tables, left


def compress_ctr(model: nn.Module, loader: Iterable[Any], ratio: float, *, keep: Sequence[str] = ()) -> Compressed:
    """Make a model of clicks smaller, tables and layers alike.

        min over ranks of  sum_t E |f(x; E_t) - f(x; E_t')|^2 + sum_l E |f(x; W_l) - f(x; W_l')|^2
        subject to  numbers of all tables and matrices <= (what they are now) / ratio

    Args:
        model: with `nn.Embedding` or `nn.EmbeddingBag` tables and linear layers. It is not changed; what stays is shared.
        loader: batches of what the model takes, as its stream of ids is: how often an id occurs is how much its row counts. Half
            is for statistics, a quarter to choose on, a quarter to report on.
        ratio: how many times smaller, above 1: 3 keeps a third of what tables and matrices hold.
        keep: patterns of paths left alone, as of a shell: "tables.0", "mlp.*".

    Returns:
        A `Compressed`. Tables become `LowRankEmbedding`, layers two each with a bias on the second; see `merge_table` for tables
        that layers alone read.

    Raises:
        ValueError: for a ratio that is none, or that no choice of ranks reaches; data that the model does not take; a model
            without tables (`tw.compress` is for those).

    Cost: four forward passes and two backward passes per batch, O(rows d^2) per table, an eigenproblem of each smaller side.
    Memory: the model, its factors, and up to 2 GiB of statistics at a time.

    Example:
        >>> from termwise.testing.trained_ctr import DeepFM
        >>> ids = torch.stack([torch.randint(n, (400,)) for n in (300, 90)], 1)
        >>> small = compress_ctr(DeepFM((300, 90)), ids, ratio=2)
        >>> small.kept <= 0.5, small.model(ids).shape
        (True, torch.Size([400]))
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio < float("inf"):
        hint = f": to keep {ratio:.0%} write {1 / ratio:.3g}" if isinstance(ratio, float) and 0 < ratio < 1 else ""
        raise ValueError(f"ratio says how many times smaller, 1 or above, got {ratio!r}{hint}")
    layers, left = sort_modules(model, keep)
    tables, kept = find_tables(model, keep)
    if not tables:
        why = "; ".join(f"{name}: {text}" for name, text in list(kept.items())[:4])
        raise ValueError(f"this model has no table that can be compressed ({why or 'no nn.Embedding'}): see tw.compress")
    task = Task(model, layers, read_batches(loader))
    left = {name: text for name, text in left.items() if text != "an embedding"} | kept
    ladders = {**_table_ladders(task, tables), **_layer_ladders(task)}
    unreached = [name for name in (*tables, *layers) if name not in ladders]
    left |= dict.fromkeys(unreached, "never reached by the data")
    everything = {name: table.layer for name, table in tables.items()} | layers
    for name in unreached:
        ladders[name] = with_dense(everything[name], [], np.zeros(0, np.int64), np.zeros(0), lambda i: _never())
    dense = sum(layer.size for layer in everything.values())
    allocation = allocate({name: ladder.curve() for name, ladder in ladders.items()}, dense / ratio)
    built = {name: ladders[name].build(i) for name, i in allocation.choice.items()}
    parts = {name: made.weight for name, made in built.items() if made.weight is not None}
    small = sharing_copy(model)
    for name in parts:
        for path in tables[name].paths if name in tables else (name,):
            put(small, path, built[name].module)
    parts |= {path: parts[name] for name, table in tables.items() if name in parts for path in table.paths}
    rows = [
        LayerRow(
            name, ladder.layer.shape, ladder.labels[i], ladder.layer.size, int(ladder.params[i]), float(ladder.errors[i]),
            parts[name].error() if name in parts else 0.0,
        )
        for name, ladder in ladders.items()
        for i in (allocation.choice[name],)
    ]  # fmt: skip
    return Compressed(
        small, "afm", "params", 1 / ratio, rows, parts, left, allocation.cost / dense, task.relative(allocation.error),
        task.relative(task.change(small, "report")), task.metric, sum(p.numel() for p in model.parameters()),
        counted=task.judged.kind,
    )  # fmt: skip


def _never() -> Replacement:
    raise AssertionError


def _layer_ladders(task: Task) -> dict[str, Ladder]:
    """Ranks of each layer that the data reached."""
    ladders = {}
    for group in task.groups(sensitive=True) if task.layers else ():
        for evidence in task.evidence(group, sensitive=True):
            if evidence.stats is not None:
                fitted = {**_fit(replace(evidence, new_bias=True)), "mean": evidence.stats.mean}
                ladders[evidence.layer.name] = affine_pairs(evidence.layer, fitted)
    return ladders


def _fit(evidence: Evidence) -> dict[str, Tensor]:
    """Terms for the layer's own output, and what each rank spoils of the model's."""
    found = evidence.own().project()
    return {"left": found.left, "right": found.right, "errors": evidence.errors(found)}


def _table_ladders(task: Task, tables: dict[str, TableOf]) -> dict[str, Ladder]:
    """Ranks of each table that the data reached: a table is the identity on the rows that are looked up."""
    felt, known = [], []
    watched = {path: Layer(path, table.module) for table in tables.values() for path in table.paths}
    watched = {path: Layer(path, task.model.get_submodule(path)) for path in watched}
    for batches in (task.batches.fit, task.batches.select):
        draws = torch.Generator().manual_seed(task.seed)
        felt.append(sensitivity(task.model, batches, watched, metric=task.metric, judged=task.judged, generator=draws))
        known.append(_looked_up(task.model, batches, watched))
    ladders = {}
    for name, table in tables.items():
        stats = [_joined([k[path] for path in table.paths if path in k]) for k in known]
        if stats[0] is None:
            continue
        h = [sum(f[path] for path in table.paths if path in f) for f in felt]
        d = table.module.embedding_dim
        eye = torch.eye(d, dtype=torch.float64, device=table.module.weight.device)
        identity = Layer(name, linear(eye, eye[0] if is_affine(table.module) else None))
        zero = torch.zeros_like(eye)  # the output does not depend on it
        evidence = Evidence(
            identity, stats[0], stats[1], *(m if isinstance(m, Tensor) else zero for m in h), shrinkage=task.shrinkage
        )
        ladders[name] = _table_ladder(table, _fit(evidence), stats[0].mean)
    return ladders


def _looked_up(model: nn.Module, batches: list[Any], tables: dict[str, Layer]) -> dict[str, LayerStats]:
    """Statistics of what tables put out."""
    found: dict[str, LayerStats] = {}

    def hook(path: str, layer: Layer) -> Any:
        def keep(_: nn.Module, args: Any, y: Tensor) -> None:
            new = LayerStats.of(layer.outputs(y))
            found[path] = found[path].merge(new) if path in found else new

        return keep

    handles = [layer.module.register_forward_hook(hook(path, layer)) for path, layer in tables.items()]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _joined(stats: list[LayerStats]) -> LayerStats | None:
    return list(itertools.accumulate(stats, LayerStats.merge))[-1] if stats else None


def _table_ladder(table: TableOf, fitted: dict[str, Tensor], mean: Tensor) -> Ladder:
    """Every rank that saves something: r (n + d) numbers."""
    n, d = table.layer.shape
    ranks = ranks_below(min(n, d, (n * d - 1) // (n + d)), 8 if min(n, d) >= 128 else 1)

    def build(i: int) -> Replacement:
        made = low_rank_table(table.module, fitted["left"][:, : ranks[i]], mean)
        left, right = made.table.weight.detach(), made.mix.weight.detach().T
        if made.mix.bias is not None:  # the mean is a term like others
            left = torch.cat([left, torch.ones_like(left[:, :1])], 1)
            right = torch.cat([right, made.mix.bias.detach()[None]])
        return Replacement(made, Factorization(table.layer.matrix, factors={"left": left, "right": right}))

    errors = fitted["errors"][torch.as_tensor(ranks, dtype=torch.int64)].numpy()
    return with_dense(table.layer, [f"rank {r}" for r in ranks], np.asarray(ranks, np.int64) * (n + d), errors, build)
