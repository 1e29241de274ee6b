r"""What an error at a layer's output does to the output of the model, to second order.

    d(f(x), f~(x)) ~ sum over rows of dy^T H dy,      H = E[g g^T] per row,      g = J^T u

J is the Jacobian of the model's output with respect to the layer's. With random signs u, E[u u^T] = I, d is the squared change of
the output; with u the gradient of -log p(y) at labels y drawn from the model's own p, E[g g^T] is its Fisher matrix and
d / 2 the Kullback-Leibler divergence. One backward pass gives one draw for every layer at once.

Errors of the rows of one sample add up where the output pools them. H is scaled by how much they do on average over all dW,

    coherence = E |sum_i g_i x_i^T|^2 / E sum_i |g_i|^2 |x_i|^2,      x without its mean where a bias takes that,

which is 1 for independent rows, and up to their number where all are alike. The rows of a sample are those of every call, where a
layer is called more than once.

Source: Martens & Grosse 2015, Optimizing neural networks with Kronecker-factored approximate curvature, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .batches import evaluating
from .calibration import kept_tokens
from .gathered import Gathered
from .judged import Judged
from .layers import Layer

__all__ = ["Distance", "Sensitivity", "distance", "draw", "listened", "listening", "output_of", "sensitivity"]

Distance = Literal["l2", "kl"]

BLOCK = 64
"""Positions that are compared at a time, each as wide as the vocabulary."""


def output_of(result: Any) -> Tensor:
    """The tensor that matters of what a model returns: its logits, or the only or first tensor.

    Raises:
        TypeError: when there is none.
    """
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise TypeError(f"the model returns {type(result).__name__}, in which there is no tensor: wrap it to return one")


def distance(truth: Tensor, found: Tensor, metric: Distance) -> Tensor:
    """How far one output is from the other, one number per sample.

    Args:
        truth: shape (samples, ...); of "kl" the last axis holds logits.
        found: the same shape.
        metric: "l2": |found - truth|^2. "kl": 2 KL(p_truth || p_found), summed over positions (twice, so that both are quadratic
            forms of the error with the same factor).
    """
    if metric == "l2":
        return (found.double() - truth.double()).square().reshape(len(truth), -1).sum(1)
    divergences = []
    for rows in zip(*(y.reshape(-1, y.shape[-1]).split(BLOCK) for y in (truth, found)), strict=True):
        p, q = (y.double().log_softmax(-1) for y in rows)
        divergences.append((p.exp() * (p - q)).sum(-1))
    return 2 * torch.cat(divergences).reshape(len(truth), -1).sum(1)


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Mapping[str, Layer],
    *,
    metric: Distance = "l2",
    judged: Judged | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The matrices H of several layers, shape (m, m), summed over the rows of a sample: units of `distance` per squared output.

    Args:
        model: run in evaluation mode; hooks, modes and `requires_grad` are afterwards as they were.
        batches: as `read_batches` gives them.
        layers: at whose outputs to look.
        metric: "l2", the squared change of the output, or "kl", twice the divergence of its softmax.
        judged: what counts of the output; looked at on the first batch when not given.
        generator: of the random signs or labels; seed 0 when not given.

    Returns:
        H by layer, float64, its coherence included. A layer that the output does not depend on is missing. Expected squared
        change of the output of one sample under dW: tr(H dW G dW^T).

    Cost: one forward and one backward pass per batch, without gradients of weights; N m (m + n) per layer. Memory: activations of
    one batch, and O(sum of m^2).
    """
    if judged is None:
        batches = list(batches)
        judged = Judged.of(model, batches[0])
    felt = Sensitivity(layers, metric, judged, generator)
    with felt.attached(model):
        for batch in batches:
            felt.run(model, batch)
    return felt.found()


class Sensitivity:
    """What `sensitivity` gathers, for runs that serve another purpose as well.

    Args:
        layers: at whose outputs to look.
        metric: see `sensitivity`.
        judged: what counts of the output.
        generator: of the random signs or labels; seed 0 when not given.
        coherent: scale by the coherence, which takes N m n per layer; the best terms do not depend on it.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        metric: Distance,
        judged: Judged,
        generator: torch.Generator | None = None,
        *,
        coherent: bool = True,
    ) -> None:
        self.felt = {name: _Felt(layer, coherent) for name, layer in layers.items()}
        self.metric, self.judged, self.generator = metric, judged, generator or torch.Generator().manual_seed(0)
        self.samples = 0

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """Listening to a model, for as long as this takes."""
        return listening(model, {one.layer.module: one.hook for one in self.felt.values()})

    def run(self, model: nn.Module, batch: Any) -> None:
        """The model on one batch, and one draw sent back."""
        for one in self.felt.values():
            one.begin(kept_tokens(batch))
        with torch.enable_grad():
            y = self.judged(model, batch)
            self.samples += len(y)
            for one in self.felt.values():
                one.samples = len(y) if self.judged.by_sample else 1
            if y.requires_grad:
                draw(y, self.metric, self.generator).backward()
        for one in self.felt.values():
            one.compare()

    def found(self) -> dict[str, Tensor]:
        """H by layer."""
        matrices = {name: one.matrix() for name, one in self.felt.items()}
        return {name: h / self.samples for name, h in matrices.items() if h is not None}


class _Felt:
    """What comes back to the output of one layer: sum of g g^T over rows, and how much the rows of a sample add up."""

    def __init__(self, layer: Layer, coherent: bool) -> None:
        self.layer, self.coherent, self.samples, self.calls = layer, coherent, 1, 0
        self.kept: Tensor | None = None
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.total: Tensor | None = None
        self.together, self.apart = 0.0, 0.0
        self.gathered = Gathered(self.square)

    def begin(self, kept: Tensor | None) -> None:
        """A batch, and where its tokens are none of padding."""
        self.kept, self.calls = kept, 0

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor:
        """Keep what comes back."""
        if not self.coherent:
            return listened(y, lambda gradient: self.gathered.add(self.layer.outputs(gradient).detach()))
        self.calls += 1
        x = self.layer.read(args, kwargs).detach()  # with the version of what was read
        version = x._version

        def keep(gradient: Tensor) -> None:
            g = self.layer.outputs(gradient).detach()
            self.gathered.add(g)
            if x.is_floating_point() and x._version == version:  # ids have no size; else it was changed in place since
                same = self.kept is not None and x.shape[:-1] == self.kept.shape
                rows = self.layer.rows(x)
                self.pairs.append((g, rows, self.kept.reshape(-1) if same else rows.new_ones(len(rows))))  # type: ignore[union-attr]
                if len(self.pairs) == self.calls:
                    self.compare()

        return listened(y, keep)

    def square(self, rows: Tensor) -> None:
        rows = rows.float() if rows.element_size() < 4 else rows
        square = (rows.T @ rows).double()  # a weight, and shrunk: single precision will do
        self.total = square if self.total is None else self.total.add_(square)

    def compare(self) -> None:
        """|sum_i g_i x_i^T|^2 for each sample against sum_i |g_i|^2 |x_i|^2, over the calls whose gradients are there."""
        pairs, self.pairs = self.pairs, []
        if not pairs:
            return
        pairs = [tuple(t.float() if t.element_size() < 4 else t for t in pair) for pair in pairs]  # type: ignore[misc]
        if self.layer.bias is not None:  # the bias takes the mean, one for all calls
            mean = sum(kept.to(x) @ x for _, x, kept in pairs) / sum(kept.sum() for *_, kept in pairs)
            pairs = [(g, x - mean, kept) for g, x, kept in pairs]
        count = self.samples if all(len(g) % self.samples == 0 for g, *_ in pairs) else 1
        calls = [(g.unflatten(0, (count, -1)), x.unflatten(0, (count, -1))) for g, x, _ in pairs]
        for i in range(count):
            self.together += float(sum(g[i].T @ x[i] for g, x in calls).square().sum())
        self.apart += sum(float((g.square().sum(1) * x.square().sum(1)).sum()) for g, x, _ in pairs)

    def matrix(self) -> Tensor | None:
        """The sum, scaled by the coherence."""
        self.gathered.finish()
        if self.total is None:
            return None
        return self.total * (self.together / self.apart if self.apart > 0 and self.together > 0 else 1.0)


@contextmanager
def listening(model: nn.Module, hooks: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Hooks at what layers put out, evaluation mode and no gradients of weights, for as long as this takes."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks.items()]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with evaluating(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in learning:
            parameter.requires_grad_(True)


def listened(y: Tensor, keep: Callable[[Tensor], None]) -> Tensor:
    """The same output, whose gradient is handed on; gradients begin here where they did not before."""
    if not y.requires_grad:  # the sum is no leaf, so that what comes next may change it in place
        y = y + torch.zeros((), dtype=y.dtype, device=y.device, requires_grad=True)
    y.register_hook(keep)
    return y


def draw(y: Tensor, metric: Distance, generator: torch.Generator) -> Tensor:
    """A scalar whose gradient at the output is one draw of u."""
    if metric == "l2":
        signs = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
        return (signs * y).sum()
    logs = y.float().log_softmax(-1).reshape(-1, y.shape[-1])
    labels = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(y.device)
    return -logs.gather(1, labels).sum()
