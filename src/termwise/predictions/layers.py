"""Which layers to read relevance at: modules by path or glob, or the blocks that a model repeats.

What leaves a module is a cut through the network. Of each cut the relevance is known in the one pass that explains the
whole, which does not end there: cuts overlap, and are no parts of the sum.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence

from torch import nn

from termwise.core.program import Program

from .cuts import only_outlet
from .fold import foldable

__all__ = ["MOST", "Layers", "layer_nodes"]

Layers = str | Sequence[str]

MOST = 24
"""So many are taken where nobody says which: evenly chosen, the last one among them."""


def layer_nodes(program: Program, layers: Layers) -> dict[str, str]:
    """The values that leave these modules: path of the module -> name of the node, in order of execution.

    Args:
        program: a recording.
        layers: "auto": `repeated` blocks, at most `MOST` of them, none where there are none. Otherwise paths or globs, as
            ``"encoder.layer.*"``, in which no wildcard stands for a dot; modules without one value of their own (called
            several times, or handing on several) are passed over by a glob, and refused by name.

    Raises:
        ValueError: for a path that is no module's, or a glob that none fits.
    """
    asked = (layers,) if isinstance(layers, str) else tuple(layers)
    key = ("layers", asked)
    if key not in program.derived:
        program.derived[key] = _found(program, asked)
    found: dict[str, str] = program.derived[key]
    return found


def repeated(model: nn.Module) -> list[str]:
    """Paths of the blocks of a model: the outermost lists in which modules of one class stand at least twice.

    Of such a list all modules that have parameters are blocks, and nothing within them is.
    """
    found = []
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop(0)
        inner = [(f"{path}.{name}" if path else name, m) for name, m in module.named_children()]
        blocks = [(p, m) for p, m in inner if any(True for _ in m.parameters())]
        kinds = [type(m) for _, m in blocks]
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(set(kinds)) < len(kinds):
            found += [p for p, _ in blocks]
        else:
            waiting += inner
    return found


def _found(program: Program, asked: tuple[str, ...]) -> dict[str, str]:
    if asked == ("auto",):
        model = program.model
        found = dict(_that_hand_on(program, repeated(model) if isinstance(model, nn.Module) else []))
        step = max(1.0, len(found) / MOST)
        kept = {len(found) - 1 - int(i * step) for i in range(min(MOST, len(found)))}
        found = {path: node for i, (path, node) in enumerate(found.items()) if i in kept}
    else:
        found = {path: node for name in asked for path, node in _named(program, name)}
    order = {node.name: i for i, node in enumerate(program.nodes)}
    return dict(sorted(found.items(), key=lambda item: order[item[1]]))


def _named(program: Program, name: str) -> list[tuple[str, str]]:
    """The modules that a path or a glob means."""
    if not any(mark in name for mark in "*?["):
        return [(name, only_outlet(program, name))]
    modules = dict(program.model.named_modules()) if isinstance(program.model, nn.Module) else {}
    depth = name.count(".")
    fits = [path for path in modules if path.count(".") == depth and fnmatch.fnmatchcase(path, name)]
    found = list(_that_hand_on(program, fits))
    if not found:
        only_outlet(program, fits[0] if fits else name)  # says what is the matter with it
    return found


def _that_hand_on(program: Program, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Those of the modules that are called once and hand on one value, which rules do not fold into a batch norm."""
    folded = foldable(program)
    for path in paths:
        with contextlib.suppress(ValueError):
            if (node := only_outlet(program, path)) not in folded:
                yield path, node
