"""zennit's composites, in a process of its own with a stub in place of torchvision."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .environments import stub_torchvision
from .subjects import Subject


def before_import() -> None:
    """Before zennit is imported."""
    stub_torchvision()


def methods(subject: Subject, cache: Path) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """For pictures; zennit has no rule for attention, whose own gradient it takes."""
    if subject.kind == "text":
        return {"any composite": _texts}
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat

    low = torch.stack([x.amin((0, 2, 3), keepdim=True) for x in subject.samples]).amin(0).expand_as(subject.samples[0])
    high = torch.stack([x.amax((0, 2, 3), keepdim=True) for x in subject.samples]).amax(0).expand_as(subject.samples[0])
    classes = subject.model(subject.samples[0]).shape[1]

    def run(make):  # type: ignore[no-untyped-def]
        def attribute(x: Tensor, target: int) -> Tensor:
            with Gradient(model=subject.model, composite=make(canonizers=[SequentialMergeBatchNorm()])) as attributor:
                leaf = x.detach().requires_grad_()
                _, found = attributor(leaf, lambda z: torch.eye(classes)[[target]] * z)
            return found.detach()

        return attribute

    return {
        "EpsilonPlus": run(EpsilonPlus),
        "EpsilonPlusFlat": run(EpsilonPlusFlat),
        "EpsilonAlpha2Beta1": run(EpsilonAlpha2Beta1),
        "EpsilonGammaBox": run(lambda **options: EpsilonGammaBox(low=low, high=high, **options)),
    }


def _texts(x: Tensor, target: int) -> Tensor:
    raise NotImplementedError("zennit has composites for image networks only")
