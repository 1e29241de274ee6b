r"""Learning tasks one after another as modules that compose: ITA (each by itself) and IEL (all of them as one).

    ITA:  minimise CE(w_0 + tau_t) + (alpha / 2) |tau_t|_F^2               each module alone, none looks at another
    IEL:  minimise CE(w_0 + (1/T) sum_(t<=T) tau_t) + beta T Omega         in tau_T, the former modules held

|tau|_F^2 = sum_i F_i tau_i^2, with F the diagonal Fisher information of w_0 and its classifier over the samples of all tasks so
far; Omega is that of `quadratic`, with F for H. Before a task the classifier is pre-tuned (`probe`, `align`); while it is trained
past classes are masked. The penalty is no part of the loss: every step of AdamW is followed by one of the penalty, at the share s
of the first learning rate that the schedule has left, as in decoupled weight decay:

    theta <- theta - s (d delta / d theta)^T g / (1 + s c F),        c = alpha or beta
    g = c F tau_t for ITA,    g = c F [(1 - 1/T) tau_T - (1/T) sum_(t<T) tau_t] for IEL

In the first task of IEL 1/T is taken as 1/2, or there would be no penalty. alpha = 0 is task arithmetic.

Source: papers.toml "second-order-composition". Deviations: the classifier is part of w_0 once it is pre-tuned, and no module
moves it; the denominator (published is 1) keeps the step from overshooting where c F is large.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.core.arguments import seeded
from termwise.core.capture import explained

from .adapters import Adapter, adapter
from .composition import Composition
from .fisher import diagonal_fisher
from .pretuning import ClassGaussian, align, probe
from .progress import progress_bar

__all__ = ["IEL", "ITA", "IncrementalLearner"]

FLOOR = 1e-5
"""Added to F, so that no weight is free to go anywhere (published)."""

PROBING, SAMPLES = 3, 256
"""Epochs of probing, and features drawn per class in each epoch of alignment (published)."""


class IncrementalLearner(ABC):
    """What ITA and IEL have in common; use one of them."""

    def __init__(
        self,
        model: nn.Module,
        head: str,
        strength: float,
        *,
        kind: str,
        params: str | list[str] | None,
        rank: int,
        epochs: int,
        lr: float,
        batch_size: int,
        progress: bool,
        generator: torch.Generator | None,
    ) -> None:
        """Check what the two have in common."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, whose parameters have names; got {type(model).__name__}")
        layer = dict(model.named_modules()).get(head)
        if not isinstance(layer, nn.Linear):
            last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1:]
            raise ValueError(f"head names the nn.Linear that makes the logits, got {head!r}; the last one is {last}")
        if not (0 <= strength < math.inf and epochs > 0 and 0 < lr < math.inf and batch_size > 0):
            raise ValueError(f"penalty >= 0 and epochs, lr, batch_size > 0: got {strength}, {epochs}, {lr} and {batch_size}")
        self._features, self._head = _with(model, head, nn.Identity()), head
        self._layer = layer
        self._kind: dict[str, Any] = {"kind": kind, "params": params, "rank": rank}
        adapter(self._features, **self._kind)  # refuses what does not fit before anything is trained
        self._rows = _classifier(layer.weight[:0], layer.weight.new_zeros(0))
        self._strength, self._epochs, self._lr, self._batch_size, self._progress = strength, epochs, lr, batch_size, progress
        self._generator = seeded(generator)
        self._gaussians: list[ClassGaussian] = []
        self._taus: list[dict[str, Tensor]] = []
        self._classes: list[tuple[int, ...]] = []
        self._samples = 0
        self.fisher: dict[str, Tensor] = {}

    def learn(self, inputs: Tensor, labels: Tensor) -> Composition:
        """Learn one task: pre-tune the classifier, measure F, train a module. When that fails, nothing was learned.

        Args:
            inputs: (n, ...) of this task; they are not kept.
            labels: (n,), integers, at least two classes, none of which an earlier task had.

        Returns:
            The composition of all tasks so far, at weights 1/T.

        Raises:
            TypeError: for what are no tensors.
            ValueError: for an empty task, one of a single class, classes that an earlier task had, inputs that are not finite or
                in another precision than the model, a head that is not the model's last operation, a loss that diverges.

        Cost: `epochs` of the model's training, and one pass of `diagonal_fisher`; memory O(T x parameters).
        """
        new, targets = self._checked(inputs, labels)
        rows = slice(len(self._gaussians), len(self._gaussians) + len(new))
        with torch.no_grad():
            features = torch.cat([explained(self._features(x)) for x in inputs.split(self._batch_size)])
        if not self._taus:
            self._last(inputs[:1], features[:1])
        gaussians = [*self._gaussians, *(ClassGaussian.of(features[targets == k]) for k in range(len(new)))]
        zero = self._rows.weight.new_zeros(len(new), self._rows.in_features)
        classifier = _classifier(torch.cat([self._rows.weight, zero]), torch.cat([self._rows.bias, zero[:, 0]]))
        probe(classifier, features, targets, rows, epochs=PROBING, generator=self._generator)
        epochs = 10 + 5 * len(self._taus)
        align(classifier, gaussians, samples=SAMPLES, epochs=epochs, generator=self._generator)
        base = _with(self._features, self._head, classifier)
        module = adapter(self._features, generator=self._generator, **self._kind)
        fisher = self._measured(base, inputs, module.names)
        self._train(base, module, fisher, inputs, targets, rows)
        self._taus.append({n: d.detach().clone() for n, d in module.deltas().items()})  # from here on it is learned
        self._classes.append(new)
        self._gaussians, self._rows, self.fisher = gaussians, classifier, fisher
        self._samples += len(inputs)
        t = len(self._taus)
        return Composition(base, tuple(self._taus), tuple(self._classes), (1 / t,) * t)

    # -- what the two differ in ---------------------------------------------------------------------------------------

    @abstractmethod
    def _moved(self, name: str, delta: Tensor) -> Tensor:
        """What is added to a weight while the newest module is trained."""

    @abstractmethod
    def _pull(self, name: str, delta: Tensor) -> Tensor:
        """The gradient of the penalty in the newest delta, but for its strength and F."""

    # -- one task -----------------------------------------------------------------------------------------------------

    def _checked(self, inputs: Tensor, labels: Tensor) -> tuple[tuple[int, ...], Tensor]:
        """Its classes, and every sample's place among them."""
        for name, given in (("inputs", inputs), ("labels", labels)):
            if not isinstance(given, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(given).__name__}: use torch.as_tensor")
        if len(inputs) != len(labels) or not len(labels) or labels.ndim != 1 or labels.is_floating_point():
            shapes = f"{tuple(inputs.shape)} and {tuple(labels.shape)} of {labels.dtype}"
            raise ValueError(f"a task has inputs (n, ...) and integer labels (n,), n > 0; got {shapes}")
        if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            raise ValueError("the inputs of this task are not finite")
        if inputs.is_floating_point() and inputs.dtype != self._layer.weight.dtype:
            kind = str(self._layer.weight.dtype).removeprefix("torch.")
            raise ValueError(f"the inputs are {inputs.dtype}, the model {self._layer.weight.dtype}: give inputs.to(torch.{kind})")
        found, targets = labels.unique(return_inverse=True)
        new = tuple(found.tolist())
        if again := sorted({c for task in self._classes for c in task} & {*new}):
            raise ValueError(f"classes {again} were in an earlier task: tasks share no classes")
        if len(new) < 2:
            raise ValueError(f"this task has class {new[0]} alone: with past classes masked there is nothing to tell it from")
        return new, targets

    def _last(self, inputs: Tensor, features: Tensor) -> None:
        """Refuse a head behind which something follows."""
        layer = self._layer
        with torch.no_grad():
            whole = explained(_with(self._features, self._head, layer)(inputs))
            fits = features.shape == (1, layer.in_features) and whole.shape == (1, layer.out_features)
            fits = fits and torch.allclose(layer(features), whole, atol=1e-4)
        if not fits:
            raise ValueError(
                f"{self._head!r} is not what makes the logits (n, classes): something follows it. Name the last nn.Linear"
            )

    def _measured(self, base: nn.Module, inputs: Tensor, names: list[str]) -> dict[str, Tensor]:
        """F of all tasks so far and this one, each with the classifier as it was then."""
        n, found = self._samples, diagonal_fisher(base, inputs.split(self._batch_size), params=names)
        return {k: (n * self.fisher.get(k, 0) + len(inputs) * f) / (n + len(inputs)) for k, f in found.items()}

    def _train(
        self, base: nn.Module, module: Adapter, fisher: dict[str, Tensor], inputs: Tensor, targets: Tensor, rows: slice
    ) -> None:
        """AdamW on the masked cross-entropy under a cosine schedule, after every step one of the penalty."""
        start = {n: base.get_parameter(n).detach() for n in module.names}
        optimizer = torch.optim.AdamW(module.parameters(), lr=self._lr, weight_decay=0.0)
        steps = self._epochs * -(-len(inputs) // self._batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad(), progress_bar(steps, show=self._progress) as report:
            for _ in range(self._epochs):
                for i in torch.randperm(len(inputs), generator=self._generator).split(self._batch_size):
                    optimizer.zero_grad(set_to_none=True)
                    moved = {n: start[n] + self._moved(n, d) for n, d in module.deltas().items()}
                    logits = explained(torch.func.functional_call(base, moved, (inputs[i],)))[:, rows]  # past classes masked
                    loss = F.cross_entropy(logits, targets[i])
                    if not bool(loss.isfinite()):
                        raise ValueError(f"the loss of task {len(self._taus)} is {loss.item()}: lower lr ({self._lr:g})")
                    loss.backward()
                    optimizer.step()
                    self._penalise(module, fisher, optimizer.param_groups[0]["lr"] / self._lr)
                    schedule.step()
                    report(1, f"task {len(self._taus)}, loss {loss.item():.3g}")

    def _penalise(self, module: Adapter, fisher: dict[str, Tensor], share: float) -> None:
        """One step: theta <- theta - share (d delta / d theta)^T strength F pull."""
        if not self._strength:
            return
        deltas = module.deltas()
        with torch.no_grad():
            stiff = {n: self._strength * (fisher[n] + FLOOR) for n in deltas}
            pulls = {n: stiff[n] / (1 + share * stiff[n]) * self._pull(n, d) for n, d in deltas.items()}
        parameters = list(module.parameters())
        slopes = torch.autograd.grad([deltas[n] for n in pulls], parameters, list(pulls.values()))
        with torch.no_grad():
            for p, slope in zip(parameters, slopes, strict=True):
                p.sub_(share * slope)


class ITA(IncrementalLearner):
    """Incremental task arithmetic: every module is trained by itself, held near w_0 by alpha |tau|^2_F / 2.

    Args:
        model: w_0, in eval mode; it is copied.
        head: name of the linear layer that makes its logits, which is replaced by one row for each class that is learned.
        alpha: strength of the penalty; 0 is task arithmetic. Published with LoRA: 0.02.
        kind: of the modules: "lora", "full" or "ia3"; see `adapter`, as for `params` and `rank`.
        params: which parameters move.
        rank: of "lora".
        epochs: over each task.
        lr: of AdamW at first; it falls as a cosine.
        batch_size: samples in a step.
        progress: show a bar on a terminal.
        generator: of everything that is drawn; one seeded with 0 by default.

    Raises:
        TypeError: for what is no module.
        ValueError: for a head that is no linear layer, an unknown kind or parameter, a negative penalty, a model in training
            mode.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).eval()
        >>> learner = tw.functions.ITA(model, "2", alpha=0.1, epochs=1)
        >>> for first in (0, 2):                                    # two tasks of two classes
        ...     found = learner.learn(torch.randn(20, 4), torch.arange(20) % 2 + first)
        >>> found.classes, found.weights, found.unlearn(0).weights
        (((0, 1), (2, 3)), (0.5, 0.5), (0.0, 1.0))

    Source: Porrello et al. 2025, ITA.
    """

    def __init__(
        self,
        model: nn.Module,
        head: str,
        alpha: float = 0.02,
        *,
        kind: str = "lora",
        params: str | list[str] | None = None,
        rank: int = 16,
        epochs: int = 20,
        lr: float = 3e-4,
        batch_size: int = 128,
        progress: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            model, head, alpha, kind=kind, params=params, rank=rank, epochs=epochs, lr=lr, batch_size=batch_size,
            progress=progress, generator=generator,
        )  # fmt: skip

    def _moved(self, name: str, delta: Tensor) -> Tensor:
        return delta

    def _pull(self, name: str, delta: Tensor) -> Tensor:
        return delta


class IEL(IncrementalLearner):
    """Incremental ensemble learning: the newest module is trained through the composition, held near the others by Omega.

    Args:
        model: as for `ITA`, and so are all others.
        head: name of the linear layer that makes its logits.
        beta: strength of the penalty.
        kind: of the modules.
        params: which parameters move.
        rank: of "lora".
        epochs: over each task.
        lr: of AdamW at first.
        batch_size: samples in a step.
        progress: show a bar on a terminal.
        generator: of everything that is drawn.

    Raises:
        TypeError: as for `ITA`.
        ValueError: as for `ITA`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).eval()
        >>> learner = tw.functions.IEL(model, "2", beta=0.1, kind="ia3", epochs=1)
        >>> learner.learn(torch.randn(20, 4), torch.arange(20) % 2).predict(torch.randn(3, 4)).shape
        torch.Size([3])

    Source: Porrello et al. 2025, IEL.
    """

    def __init__(
        self,
        model: nn.Module,
        head: str,
        beta: float = 0.02,
        *,
        kind: str = "lora",
        params: str | list[str] | None = None,
        rank: int = 16,
        epochs: int = 20,
        lr: float = 3e-4,
        batch_size: int = 128,
        progress: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            model, head, beta, kind=kind, params=params, rank=rank, epochs=epochs, lr=lr, batch_size=batch_size,
            progress=progress, generator=generator,
        )  # fmt: skip

    def _moved(self, name: str, delta: Tensor) -> Tensor:
        return (delta + self._former(name)) / (len(self._taus) + 1)

    def _pull(self, name: str, delta: Tensor) -> Tensor:
        share = 1 / max(len(self._taus) + 1, 2)
        return (1 - share) * delta - share * self._former(name)

    def _former(self, name: str) -> Tensor | float:
        return sum(tau[name] for tau in self._taus)


def _with(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """A copy with another layer in a place, which trains nothing."""
    found = copy.deepcopy(model).requires_grad_(False)
    found.set_submodule(name, copy.deepcopy(layer).requires_grad_(False).train(model.training))
    return found


def _classifier(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of these rows, of which there may be none yet."""
    found = nn.utils.skip_init(nn.Linear, weight.shape[1], 1, device=weight.device, dtype=weight.dtype)
    found.weight, found.bias, found.out_features = nn.Parameter(weight.detach()), nn.Parameter(bias.detach()), len(bias)
    return found.eval()
