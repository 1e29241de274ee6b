"""Which modules of a model can be taken apart, and how each one is a matrix.

    y = W x + b,    W of shape (m, n) = (out, in),    x one row of what the module reads

A linear layer is one already; a convolution is one over unfolded patches, W of shape (f, c * kh * kw).
"""

from __future__ import annotations

import copy
import fnmatch
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from termwise.core.arguments import a_module

__all__ = ["Layer", "find_layers", "put", "sharing_copy", "sort_modules"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that is a matrix.

    Attributes:
        name: its path in the model.
        module: `nn.Linear`, `nn.Conv2d` with one group, or the transposed linear layer of GPT-2 (transformers' `Conv1D`).
    """

    name: str
    module: nn.Module

    @property
    def matrix(self) -> Tensor:
        """W, shape (m, n), as it is now, detached."""
        return self.as_matrix(self.module.weight.detach())  # type: ignore[operator]

    def as_matrix(self, weight: Tensor) -> Tensor:
        """Something of the shape of the module's weight, its gradient, as (m, n)."""
        return weight.T if _transposed(self.module) else weight.flatten(1)

    @property
    def kernel(self) -> Tensor:
        """The same as (f, c, kh, kw), of a linear layer with a kernel of 1."""
        return self.module.weight.detach() if isinstance(self.module, nn.Conv2d) else self.matrix[:, :, None, None]

    @property
    def bias(self) -> Tensor | None:
        """b, shape (m,), detached."""
        bias: Tensor | None = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        m, n = self.matrix.shape
        return m, n

    @property
    def size(self) -> int:
        """Its m n entries: how many numbers it is as it stands, without its bias."""
        return self.matrix.numel()

    @staticmethod
    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What the module was called with, by position or by name."""
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        return x

    def rows(self, x: Tensor) -> Tensor:
        """What W multiplies, shape (N, n), from what the module reads; one picture may come without an axis of samples."""
        if not isinstance(self.module, nn.Conv2d):
            return x.reshape(-1, x.shape[-1])
        conv = self.module
        x = x[None] if x.ndim == 3 else x
        padding = conv.padding
        if isinstance(padding, str) or conv.padding_mode != "zeros":
            x = F.pad(x, conv._reversed_padding_repeated_twice, "constant" if conv.padding_mode == "zeros" else conv.padding_mode)
            padding = (0, 0)
        patches = F.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])

    def outputs(self, y: Tensor) -> Tensor:
        """What came out, shape (N, m), one row for each of `rows`."""
        if not isinstance(self.module, nn.Conv2d):
            return y.reshape(-1, y.shape[-1])
        y = y[None] if y.ndim == 3 else y
        return y.flatten(2).transpose(1, 2).reshape(-1, y.shape[1])


def find_layers(model: nn.Module, keep: Sequence[str] = ()) -> tuple[dict[str, Layer], dict[str, str]]:
    """The modules that can be taken apart.

    Args:
        model: any model.
        keep: patterns of paths that are left alone with all that is in them, as of a shell: "head", "layers.0".

    Returns:
        The layers by path, in order of registration, and for every other module with a matrix of weights why it is left alone.

    Raises:
        ValueError: when a pattern fits no module; when nothing is left to take apart.
    """
    layers, left = sort_modules(model, keep)
    if not layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left.items())[:4]) or "it has no nn.Linear and no nn.Conv2d"
        raise ValueError(f"nothing in this model can be compressed ({reasons})")
    return layers, left


def sort_modules(model: nn.Module, keep: Sequence[str] = ()) -> tuple[dict[str, Layer], dict[str, str]]:
    """As `find_layers`, where none is no error."""
    paths = [name for name, _ in model.named_modules() if name]
    keep = [keep] if isinstance(keep, str) else keep
    for pattern in keep:
        if not fnmatch.filter(paths, pattern):
            raise ValueError(f"keep={pattern!r} fits no module of this model; its paths look like {', '.join(paths[:3])}, ...")
    layers: dict[str, Layer] = {}
    left: dict[str, str] = {}
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name, module in model.named_modules():
        if _is_matrix(module) and any(fnmatch.fnmatch(path, pattern) for path in _upwards(name) for pattern in keep):
            left[name] = "kept on request"
        elif (why := _why_not(module, owners)) is None:
            layers[name] = Layer(name, module)
        elif why:
            left[name] = why
    return layers, left


def _upwards(name: str) -> Iterator[str]:
    """A path and those of the modules it lies in."""
    parts = name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def _why_not(module: nn.Module, owners: dict[int, list[str]]) -> str | None:
    """None for a layer, "" for a module without a matrix, else why it is left alone."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "an embedding"
    if not _is_matrix(module):
        known = isinstance(module, nn.modules.conv._ConvNd | nn.Bilinear | nn.RNNBase | nn.MultiheadAttention)
        return f"{type(module).__name__} is not taken apart" if known else ""
    if isinstance(module, nn.Linear | nn.Conv2d) and not _as_torch_has_it(module):
        return f"{type(module).__name__} has a forward of its own"
    if parametrize.is_parametrized(module) or any(n.endswith(("weight_v", "original1")) for n, _ in module.named_parameters()):
        return "its weight is computed from other parameters (remove the parametrization first)"
    weight: Tensor = module.weight  # type: ignore[assignment]
    if not weight.is_floating_point():
        return f"its weights are {weight.dtype}: take a model that is not quantised"
    if len(owners.get(id(weight), ())) > 1:
        return f"its weights are tied: {' and '.join(owners[id(weight)])} share them"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "a grouped convolution"
    if not weight.isfinite().all():
        raise ValueError(f"the weights of {type(module).__name__} hold NaN or infinity: nothing can be said of such a model")
    return None


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d) or _transposed(module)


def _as_torch_has_it(module: nn.Module) -> bool:
    """Whether a subclass computes what the class of torch does: one that pads or scales besides is another map."""
    base = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    return all(getattr(type(module), name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward"))


def _transposed(module: nn.Module) -> bool:
    """Whether it is GPT-2's linear layer, which transformers calls Conv1D and keeps as (in, out)."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and isinstance(module, library.Conv1D)


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of the tree of modules over the same parameters: replacing a module in it leaves the model as it was.

    Buffers are copied, as running it in training mode may change them.
    """
    model = a_module(model, "of the architecture that was compressed")
    return copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set a module everywhere where the one at this path is, in place."""
    old = model.get_submodule(name)
    for parent, key in list(_places(model, old)):
        parent._modules[key] = module
    module.train(old.training)


def _places(model: nn.Module, wanted: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is wanted:
                yield parent, key
