"""LXT (efficient AttnLRP), with the transformers it was written for. It patches known classes: of our subjects, Llama's."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .environments import stub_torchvision
from .subjects import Subject


def before_import() -> None:
    """LXT imports zennit, and zennit torchvision."""
    stub_torchvision()
    from lxt.efficient import monkey_patch
    from transformers.models.llama import modeling_llama

    monkey_patch(modeling_llama)


def methods(subject: Subject, cache: Path) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Gradient x input of the patched model."""

    def attnlrp(x: Tensor, target: int) -> Tensor:
        if subject.name != "smollm2-135m":
            raise NotImplementedError(f"LXT patches classes of transformers and torchvision; {subject.name} is none of them")
        leaf = subject.embed(x).detach().requires_grad_()  # type: ignore[misc]
        (c,) = torch.autograd.grad(subject.model(leaf)[0, target], leaf)
        return (leaf * c).detach().sum(-1)

    return {"AttnLRP": attnlrp}
