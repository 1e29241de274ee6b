"""Where in a model features are forecast: the whole of it, its last block, or modules inside of blocks.

Modules are found by how diffusers, transformers and torch build them (lists of blocks) or by name, and their `forward` is
replaced while the acceleration lasts.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

__all__ = ["find_blocks", "find_sites", "replaced_forward"]

PARTS = ("attention", "attn", "feedforward", "mlp", "resnetblock")
"""What a class is called whose output a block adds to what it reads."""


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model by name: members of each `nn.ModuleList` nearest to it that holds most of its parameters.

    Raises:
        ValueError: for a model without.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1}
    outer = _outermost(lists)
    size = {name: sum(p.numel() for p in m.parameters()) for name, m in outer.items()}
    total = sum(p.numel() for p in model.parameters())
    chosen = {n: m for n, m in outer.items() if size[n] >= 0.1 * total}
    middle = {"mid_block": model.mid_block} if isinstance(getattr(model, "mid_block", None), nn.Module) else {}  # of a UNet
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has no list of blocks (an nn.ModuleList with a tenth of its parameters): use "
            'sites="output", or a tuple of patterns of module names'
        )
    return {f"{name}.{i}": block for name, members in chosen.items() for i, block in enumerate(members)} | middle


def find_sites(model: nn.Module, sites: str | tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules whose outputs are forecast, by name.

    Args:
        model: the denoiser.
        sites: "last_block" (all blocks), "modules" (attention and feed-forward layers of the blocks), or patterns of names.

    Raises:
        ValueError: where nothing is found.
    """
    if sites == "last_block":
        return find_blocks(model)
    if sites == "modules":
        found = _outermost(
            {
                f"{name}.{inner}": module
                for name, block in find_blocks(model).items()
                for inner, module in block.named_modules()
                if inner and any(part in type(module).__name__.lower() for part in PARTS)
            }
        )
        if not found:
            raise ValueError(
                f"the blocks of {type(model).__name__} have no attention or feed-forward layers that can be told by their "
                'classes: use sites="last_block", sites="output" or a tuple of patterns of module names'
            )
        return found
    names = dict(model.named_modules())
    found = {n: m for n, m in names.items() if n and any(fnmatch.fnmatchcase(n, pattern) for pattern in sites)}
    for pattern in sites:
        if not any(fnmatch.fnmatchcase(n, pattern) for n in found):
            near = difflib.get_close_matches(pattern, names, 3, 0.3)
            raise ValueError(
                f"no module of {type(model).__name__} is called {pattern!r}: nearest are {', '.join(near) or 'none'}"
            )
    return _outermost(found)


def _outermost(found: dict[str, Any]) -> dict[str, Any]:
    """Those that are not inside of another."""
    return {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}


@contextmanager
def replaced_forward(
    modules: Mapping[str, nn.Module], wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace the `forward` of modules, and put everything back, whatever happens.

    Args:
        modules: name -> module.
        wrap: gives the new forward for a name and the old one.

    Raises:
        RuntimeError: for a module that is accelerated already.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            old = module.forward
            if getattr(old, "_termwise_accelerated", False):
                raise RuntimeError(f"{name or type(module).__name__} is accelerated already: leave the other context first")
            new = wrap(name, old)
            new._termwise_accelerated = True  # type: ignore[attr-defined]
            own = module.__dict__.get("forward")  # set on the instance by somebody else
            module.forward = new
            stack.callback(
                lambda m=module, f=own: m.__dict__.pop("forward") if f is None else m.__dict__.__setitem__("forward", f)
            )
        yield
