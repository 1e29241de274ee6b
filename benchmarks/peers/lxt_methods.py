"""LXT (efficient AttnLRP), with the transformers it was written for. It patches known classes: of ours, Llama's and BERT's."""

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from .environments import stub_torchvision
from .subjects import NotTried, Subject


def before_import() -> None:
    """LXT imports zennit, and zennit torchvision."""
    stub_torchvision()
    import transformers
    from lxt.efficient import monkey_patch
    from transformers.models.bert import modeling_bert
    from transformers.models.llama import modeling_llama

    monkey_patch(modeling_llama)
    monkey_patch(modeling_bert)
    load = transformers.AutoModelForCausalLM.from_pretrained

    def older(folder, *, dtype, **options):  # type: ignore[no-untyped-def]
        """The configuration is written by a newer transformers: names of two of its entries changed."""
        theta = json.loads((Path(folder) / "config.json").read_text())["rope_parameters"]["rope_theta"]
        return load(folder, torch_dtype=dtype, rope_theta=theta, **options)

    transformers.AutoModelForCausalLM.from_pretrained = older


def methods(subject: Subject, cache: Path) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Gradient x input of the patched model."""

    def attnlrp(x: Tensor, target: int) -> Tensor:
        if subject.name not in ("smollm2-135m", "minilm-sentiment"):
            raise NotTried(f"LXT patches classes of transformers and torchvision; {subject.name} is none of them")
        leaf = subject.embed(x).detach().requires_grad_()  # type: ignore[misc]
        (c,) = torch.autograd.grad(subject.model(leaf)[0, target], leaf)
        return (leaf * c).detach().sum(-1)

    def held(x: Tensor, target: int) -> Tensor:
        """The encoder's last step, to unit length, is a function and no class that LXT patches: here the length is held."""
        with mock.patch.object(functional, "normalize", lambda h, dim: h / h.norm(dim=dim, keepdim=True).detach()):
            return attnlrp(x, target)

    return {"AttnLRP": attnlrp, **({"AttnLRP, length held": held} if subject.name == "minilm-sentiment" else {})}
