"""zennit's composites, in a process of its own with a stub in place of torchvision."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .environments import stub_torchvision
from .subjects import Subject


def before_import() -> None:
    """Before zennit is imported, and after transformers has seen that there is no torchvision."""
    from transformers import BertModel, LlamaForCausalLM  # noqa: F401

    stub_torchvision()


def methods(subject: Subject, cache: Path) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Its composites for pictures; zennit has no rule for attention, whose own gradient it takes.

    On texts they are one rule, epsilon in linear layers, from the embeddings on.
    """
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat

    def given(x: Tensor) -> Tensor:
        return (x if subject.embed is None else subject.embed(x)).detach()

    low, high = (torch.tensor(level).view(1, -1, 1, 1) for level in subject.box)
    classes = len(subject.model(given(subject.samples[0]))[0])

    def run(make):  # type: ignore[no-untyped-def]
        def attribute(x: Tensor, target: int) -> Tensor:
            with Gradient(model=subject.model, composite=make(canonizers=[SequentialMergeBatchNorm()])) as attributor:
                _, found = attributor(
                    given(x).requires_grad_(), lambda z: functional.one_hot(torch.tensor([target]), classes) * z
                )
            return found.detach() if subject.embed is None else found.detach().sum(-1)

        return attribute

    if subject.kind == "text":
        return {"EpsilonPlus": run(EpsilonPlus)}
    return {
        "EpsilonPlus": run(EpsilonPlus),
        "EpsilonPlusFlat": run(EpsilonPlusFlat),
        "EpsilonAlpha2Beta1": run(EpsilonAlpha2Beta1),
        "EpsilonGammaBox": run(
            lambda **options: EpsilonGammaBox(
                low=low.expand_as(subject.samples[0]), high=high.expand_as(subject.samples[0]), **options
            )
        ),
    }
