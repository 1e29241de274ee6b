r"""Relevance read at every depth of an image network, spread over the picture, and averaged.

Relevance that reached the pixels of a deep network is sharp and noisy; what has reached a late feature map is reliable and
coarse. Each is a whole decomposition, so any mean of them is one:

    whole = sum_u R_l(u) + (biases, constants and losses behind l)             at every depth l, exactly
    R(v)  = sum_l w_l sum_u spread_l(v, u) R_l(u)                              for a pixel v
    w_l   = (1 / sum_u |R_l(u)|) / sum_k (1 / sum_u |R_k(u)|)                  the less terms fight, the more they count

R_l(u) is relevance summed over the channels at position u of a value that everything passes through; spread_l is bilinear
enlargement whose columns sum to 1. A bias at depth d counts as often as depths lie before it: sum_(l before d) w_l.
Relevance starts from what sets the class apart, c = e_t - softmax(z), so that whole = z_t - sum_j p_j z_j.

The same can be done for copies of the picture moved by a few pixels, whose pixels are pixels of the picture: what they
receive goes back to where they came from. The whole is then the mean of the copies' wholes.

Cost: one forward and one backward pass, of four copies four; memory: that of one gradient pass.
Source: none known for the mean over depths; design "relevance as a rewrite". Peers: GradCAM reads one depth and drops what
is negative; FullGrad (Srinivas & Fleuret 2019, arXiv 1905.00780) adds biases of all depths up as maps, in absolute values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional

from termwise.core.capture import arguments
from termwise.core.program import Program, info, op_name
from termwise.core.rewrite import rewrite

from .call import PredictionCall
from .explanation import Explanation
from .labels import class_names
from .ledger import Ledger, Site
from .propagate import Pass, Result
from .refusals import finite_inputs, finite_result
from .rules import Rules
from .rules.sets import IN_ITS_FORM, name_of
from .starts import Contrast, Entry
from .targets import Asked, Target, asked

__all__ = ["depths", "over_depth", "spread"]

DIAGONAL = ((1, 1), (-1, -1), (1, -1), (-1, 1))


def over_depth(
    model: nn.Module | Callable[..., Any],
    image: Float[Tensor, "batch channels height width"],
    *,
    kwargs: Mapping[str, Any] | None = None,
    target: Target = None,
    rules: Rules = "default",
    shift: int = 0,
    classes: Sequence[str] | None = None,
) -> Explanation:
    """Say which places of a picture made the output: relevance averaged over the depths of the network, adding up.

    Args:
        model: in eval mode; the image is its one floating input.
        image: a batch of pictures.
        kwargs: other inputs, by name.
        target: a class, one per sample (batch,), or None for the largest score: that class against what the model says,
            z_t - sum_j p_j z_j. A start (`contrast`, `weighting`) or a function of the output: that, unchanged.
        rules: as of `explain`.
        shift: 0: the picture itself, one pass. Otherwise the mean over four copies of it, moved diagonally by this many
            pixels and continued by reflection.
        classes: names of the classes.

    Returns:
        An `Explanation`. The part ``"input:<argument>"`` has the image's shape; each channel has the same share, since a
        place was explained and not a colour. Biases, constants and losses are parts as of `explain`.

    Raises:
        ValueError: when no feature map carries all relevance, for a shift that leaves the picture, several targets; as
            `explain`.

    Cost: one gradient pass, with a shift four. Memory: O(graph of one pass + result).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(784, 5))
        >>> why = tw.predictions.over_depth(model.eval(), torch.randn(2, 3, 16, 16)).check()
        >>> why.inputs["input"].shape
        torch.Size([2, 3, 16, 16])
    """
    model, args, keywords = arguments(model, (image,), kwargs)
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
        given = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"over_depth takes images (batch, channels, height, width), got {given}")
    finite_inputs(args, keywords)
    if not 0 <= shift < min(image.shape[2:]):
        raise ValueError(f"shift must lie in 0..{min(image.shape[2:]) - 1} for pictures {tuple(image.shape[2:])}, got {shift}")
    if isinstance(rules, str) and rules in IN_ITS_FORM:
        raise ValueError(f"rules={rules!r} carries relevance itself, and the depths are read from ratios: use another set")
    image, wanted = image.detach(), _set_apart(model, image.detach(), keywords, asked(target))
    places = [_moved(image, dy * shift, dx * shift) for dy, dx in DIAGONAL] if shift else [_moved(image, 0, 0)]
    ready: _DepthPass | None = None
    whole, parts = image.new_zeros(len(image)), {}
    for place in places:
        call = PredictionCall(model, (image.flatten(2)[..., place].view_as(image),), keywords, wanted, rules=rules)
        program, tensors, wholes = call.prepare(slice(0, len(image)))
        if ready is None or ready.recorded.graph is not program.graph:
            ready = _DepthPass(program, rules)
        (result,) = ready.each(tensors, wholes)
        finite_result(result, model)
        for name, part in _mean(result, ready.depths, image).items():
            if name.startswith("input:"):  # to the pixels that were copied
                part = torch.zeros_like(part.flatten(1)).index_add(1, place, part.flatten(1))
                part = (part / image.shape[1]).view(len(image), 1, *image.shape[2:]).expand_as(image)
            parts[name] = parts[name] + part / len(places) if name in parts else part / len(places)
        whole = whole + result.whole / len(places)
    index = call.index[0]
    return Explanation(
        whole, parts, target=index, rules=name_of(rules), classes=class_names(classes, index),
        asked=call.questions(),
    )  # fmt: skip


def depths(program: Program) -> list[fx.Node]:
    """The feature maps through which all relevance passes, in order; the image itself is the first.

    No edge of the graph leads around such a value. Of several with nothing but functions of single entries between them,
    the last counts: what a convolution, a pooling or the head reads.
    """
    active = [n for n in program.graph.nodes if "info" in n.meta and info(n).active]
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    found, reach = [], -1
    for node in active:
        readers = [u for u in node.users if u in order and "info" in u.meta and info(u).active]
        value = node.meta.get("val")
        if reach <= order[node] and isinstance(value, Tensor) and value.ndim == 4 and any(map(_reads, readers)):
            found.append(node)
        reach = max([reach, *(order[u] for u in readers)])
    return found


def spread(relevance: Float[Tensor, "batch h w"], height: int, width: int) -> Float[Tensor, "batch height width"]:
    """Relevance of the positions of a feature map, over the pixels: bilinear, and no position's relevance is lost.

    Example:
        >>> wide = spread(torch.tensor([[[1.0, 0.0], [0.0, -3.0]]]), 7, 9)
        >>> bool(torch.isclose(wide.sum(), torch.tensor(-2.0)))
        True
    """
    rows, columns = (_columns(old, new, relevance) for old, new in zip(relevance.shape[1:], (height, width), strict=True))
    return rows @ relevance @ columns.mT


def _columns(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """Linear interpolation from `old` to `new` positions; each column sums to 1."""
    eye = torch.eye(old, dtype=like.dtype, device=like.device)
    weights = functional.interpolate(eye[None], new, mode="linear", align_corners=False)[0].mT
    return weights / weights.sum(0)


def _reads(node: fx.Node) -> bool:
    """Whether an operation looks at several entries of a feature map at once."""
    return op_name(node).startswith(("conv", "pad", "constant_pad", "mean", "sum", "adaptive", "avg", "max_pool", "flatten",
                                     "view", "reshape", "amax"))  # fmt: skip


class _Books(Ledger):
    """A ledger for each stretch between two depths, which shares leaves with the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections: dict[int, Ledger] = {}

    def section(self, k: int) -> Ledger:
        if k not in self.sections:
            new = self.sections[k] = Ledger(self.batch, complete=self.complete, dtype=self.dtype, biases=self.biases)
            new.inputs, new.leaves, new.constants, new._uses = self.inputs, self.leaves, self.constants, self._uses
        return self.sections[k]

    def parts(self) -> dict[str, Tensor]:
        """Named by the number of depths that lie before, "3|bias:conv"."""
        own = super().parts()
        return own | {f"{k}|{n}": p for k, section in self.sections.items() for n, p in section.parts().items()}


class _Section:
    """A site that writes into the books of its section; behind a depth, the relevance that arrives is kept as a map."""

    def __init__(self, site: Site, before: int, depth: int | None) -> None:
        self.site, self.before, self.depth = site, before, depth

    def __call__(self, books: _Books, *args: Any, **kwargs: Any) -> Any:
        y = self.site(books.section(self.before), *args, **kwargs)
        if self.depth is not None and y.requires_grad:
            value, name = y.detach(), f"map {self.depth}"
            books.watch(y, lambda c: books.book(name, (value * c).sum(1)))
        return y


class _DepthPass(Pass):
    """A pass that also finds the relevance at each depth."""

    books = _Books

    def __init__(self, program: Program, rules: Rules) -> None:
        super().__init__(program, rules)
        found = depths(self.program)
        if not found or found[0].op != "placeholder" or len(self._inputs) != 1:
            raise ValueError(
                f"{type(program.model).__name__} has no feature map through which all relevance passes, or several inputs: "
                "over_depth is for image networks of convolutions. Use explain"
            )
        number = {node: i for i, node in enumerate(found)}
        self.depths = len(found)
        sections: dict[str, _Section] = {}
        before = 0
        for node in self.program.graph.nodes:
            site = self.sites.get(node.name)
            if site is None and node in number and node.op != "placeholder":
                site = self.sites[node.name] = self._site(node, measured=False)
            if site is not None:
                sections[node.name] = _Section(site, before, number.get(node))
            before += node in number
        self.module = rewrite(self.program, sections, lift=self.lift)


def _mean(result: Result, count: int, image: Tensor) -> dict[str, Tensor]:
    """The mean over depths of one pass: the input as a map (batch, height, width), the other parts by name."""
    (name,) = [n for n in result.parts if n.startswith("input:")]
    maps = [result.parts[name].sum(1)] + [result.parts[f"map {i}"] for i in range(1, count)]
    mass = torch.stack([m.abs().sum((1, 2)) for m in maps])  # (depths, batch)
    weights = torch.where(mass > 0, 1 / mass, 0)
    weights = torch.where(weights.sum(0) > 0, weights / weights.sum(0), 1 / count)
    parts = {name: sum(w[:, None, None] * spread(m, *image.shape[2:]) for w, m in zip(weights, maps, strict=True))}
    before = torch.cat([torch.zeros_like(weights[:1]), weights.cumsum(0)])
    for numbered, part in result.parts.items():
        k, bar, rest = numbered.partition("|")
        if bar:
            weighed = before[int(k)].view(-1, *[1] * (part.ndim - 1)) * part
            parts[rest] = parts[rest] + weighed if rest in parts else weighed
    return parts  # type: ignore[return-value]


def _set_apart(model: Any, image: Tensor, keywords: dict[str, Any], wanted: Asked) -> Asked:
    """A class against what the model says; the largest is chosen on the picture itself, and is the same in all copies."""
    if wanted.several or wanted.starts[0].alone:
        raise ValueError("over_depth explains one target of a batch of pictures: a list of targets or a node is for explain")
    (start,) = wanted.starts
    if not isinstance(start, Entry) or isinstance(start.target, tuple) or callable(wanted.select):
        return wanted
    if start.target is None:
        call = PredictionCall(model, (image,), keywords, wanted)
        program, _, (whole,) = call.prepare(slice(0, len(image)))
        whole(program(image, kwargs=keywords))
        if call.index[0] is None:  # one number per picture
            return wanted
        start = Entry(call.index[0])
    return replace(wanted, starts=(Contrast(start, "probabilities"),))


def _moved(image: Tensor, dy: int, dx: int) -> Tensor:
    """For each pixel of the moved picture, the flat index of the pixel it is a copy of."""

    def line(size: int, by: int) -> Tensor:
        at = (torch.arange(size, device=image.device) + by).abs()
        return (size - 1) - ((size - 1) - at).abs()

    rows, columns = line(image.shape[2], dy), line(image.shape[3], dx)
    return (rows[:, None] * image.shape[3] + columns).flatten()
