"""captum, and the baselines that it or a few lines of torch give."""

from collections.abc import Callable
from pathlib import Path

import torch
from captum import attr
from torch import Tensor
from torch.nn import functional

from .subjects import Subject


def methods(subject: Subject, cache: Path) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Each from (input, target) to relevance of the input; of embeddings summed over their axis."""
    model = subject.model
    text = subject.kind == "text"

    def on(method, **options):  # type: ignore[no-untyped-def]
        def run(x: Tensor, target: int) -> Tensor:
            given = subject.embed(x) if subject.embed is not None else x
            found = method(given.detach().requires_grad_(), target=target, **options)
            return found.detach().sum(-1) if text else found.detach()

        return run

    def smooth(absolute: bool) -> Callable[[Tensor, int], Tensor]:
        def run(x: Tensor, target: int) -> Tensor:
            given = (subject.embed(x) if subject.embed is not None else x).detach()
            generator = torch.Generator().manual_seed(0)
            total = torch.zeros_like(given)
            for _ in range(25):
                noise = torch.randn(given.shape, generator=generator) * 0.15 * (given.max() - given.min())
                leaf = (given + noise).requires_grad_()
                total += torch.autograd.grad(model(leaf)[0, target], leaf)[0] / 25
            found = total.abs() if absolute else total * given
            return found.sum(-1) if text else found

        return run

    def gradcam(x: Tensor, target: int) -> Tensor:
        found = attr.LayerGradCam(model, subject.layer).attribute(x, target=target, relu_attributions=True)
        return functional.interpolate(found.detach(), x.shape[2:], mode="bilinear")

    def occlusion(x: Tensor, target: int) -> Tensor:
        side = subject.perturb["patch"]
        found = attr.Occlusion(subject.ask).attribute(
            x, target=target, sliding_window_shapes=(x.shape[1], side, side), strides=(x.shape[1], side, side),
            perturbations_per_eval=28,
        )  # fmt: skip
        return found.detach() / (side * side * x.shape[1])

    def leave_out(x: Tensor, target: int) -> Tensor:
        with torch.no_grad():
            whole = subject.ask(x)[0, target]
            rows = torch.stack([torch.cat([x[0, :i], x[0, i + 1 :]]) for i in range(x.shape[1])])
            return (whole - subject.ask(rows)[:, target])[None]

    def random(x: Tensor, target: int) -> Tensor:
        shape = x.shape if text else (1, 1, *x.shape[2:])
        return torch.rand(shape, generator=torch.Generator().manual_seed(int(x.float().abs().sum() * 1000) % 2**31)) - 0.5

    found = {
        "input x gradient": on(attr.InputXGradient(model).attribute),
        "integrated gradients": on(attr.IntegratedGradients(model).attribute, n_steps=20, internal_batch_size=10),
        "DeepLift": on(attr.DeepLift(model).attribute),
        "LRP": on(attr.LRP(model).attribute),
        "SmoothGrad (absolute)": smooth(absolute=True),
        "SmoothGrad x input": smooth(absolute=False),
        "random": random,
    }
    if text:
        return found | {"leave one out": leave_out}
    found["occlusion"] = occlusion
    return found | ({"GradCAM": gradcam} if subject.name != "vit-mnist" else {})
