"""A diffusion transformer that draws 8 x 8 digits, small enough to be kept here: where samplers are made faster.

`DiTTransformer2DModel` of diffusers, 12 blocks of width 64, trained on scikit-learn's digits by benchmarks/train_digits_dit.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

__all__ = ["CLASSES", "CONFIG", "digits_dit", "sample"]

WEIGHTS = Path(__file__).parent / "digits_dit.safetensors"
CLASSES = 10
"""Labels; the class of that number stands for none."""

CONFIG: dict[str, Any] = {
    "num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 1, "num_layers": 12, "sample_size": 8, "patch_size": 2,
    "num_embeds_ada_norm": CLASSES, "attention_bias": True,
}  # fmt: skip


def digits_dit(dtype: torch.dtype = torch.float32) -> DiTTransformer2DModel:
    """The trained model, in eval mode.

    Args:
        dtype: of its parameters, which are kept in half precision.

    Raises:
        ImportError: without diffusers.
    """
    from diffusers import DiTTransformer2DModel
    from safetensors.torch import load_file

    model = DiTTransformer2DModel(**CONFIG).eval()
    model.load_state_dict(load_file(WEIGHTS))
    return model.to(dtype).requires_grad_(False)


@torch.no_grad()
def sample(
    denoiser: Any, scheduler: Any, steps: int, *, labels: Tensor, generator: torch.Generator, guidance: float = 1.0
) -> Tensor:
    """Pictures (n, 1, 8, 8) in [-1, 1] that `denoiser` draws from noise, as diffusers' pipelines do it.

    Args:
        denoiser: called with (pictures, timestep=, class_labels=), has `.sample` in its answer.
        scheduler: of diffusers; its state is set anew.
        steps: of the scheduler.
        labels: (n,), what to draw.
        generator: of the noise.
        guidance: above 1, each picture is drawn twice, without its label too, and what the label adds is multiplied.
    """
    dtype = next(denoiser.parameters()).dtype
    scheduler.set_timesteps(steps)
    x = torch.randn(len(labels), 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype) * scheduler.init_noise_sigma
    if guidance > 1:
        labels = torch.cat([labels, torch.full_like(labels, CLASSES)])
    for t in scheduler.timesteps:
        pictures = scheduler.scale_model_input(torch.cat([x, x]) if guidance > 1 else x, t)
        noise = denoiser(pictures, timestep=t.expand(len(pictures)), class_labels=labels).sample
        if guidance > 1:
            with_label, without = noise.chunk(2)
            noise = without + guidance * (with_label - without)
        x = scheduler.step(noise, t, x).prev_sample
    return x
