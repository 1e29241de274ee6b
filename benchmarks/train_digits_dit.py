"""Train the diffusion transformer that the room `computation` is measured on, and write its weights, log and sample sheet.

    python benchmarks/train_digits_dit.py

`DiTTransformer2DModel` of diffusers: 8 x 8 digits of scikit-learn, patches of 2, 12 blocks of width 64, labels dropped one time
in ten. Noise prediction, linear betas, 1000 levels. One thread and fixed seeds: the same machine writes the same file.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional

from termwise.testing.trained_dit import CLASSES, CONFIG, WEIGHTS

ROOT = Path(__file__).parent.parent
LOG, SHEET = ROOT / "docs" / "data" / "digits_dit.json", ROOT / "docs" / "data" / "digits_dit.png"
BATCH, RATE, WARM, DECAY, DROP = 128, 1e-3, 100, 0.998, 0.1


def train(steps: int, seed: int = 0) -> tuple[DiTTransformer2DModel, list[list[float]]]:
    """The averaged model, and [step, loss] of every hundredth step."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    model = DiTTransformer2DModel(**CONFIG).eval()  # eval: each block would drop labels of its own
    for block in model.transformer_blocks:  # blocks begin as the identity
        torch.nn.init.zeros_(block.norm1.linear.weight), torch.nn.init.zeros_(block.norm1.linear.bias)
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    noise_levels = DDIMScheduler().alphas_cumprod
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.99))
    factor = lambda step: min(1, (step + 1) / WARM) * (1 - step / steps) ** 0.5  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    log, total = [], 0.0
    for step in range(steps):
        chosen = torch.randint(len(pictures), (BATCH,))
        x, y = pictures[chosen], torch.where(torch.rand(BATCH) < DROP, CLASSES, labels[chosen])
        t, noise = torch.randint(1000, (BATCH,)), torch.randn(BATCH, 1, 8, 8)
        a = noise_levels[t].view(-1, 1, 1, 1)
        guess = model(a.sqrt() * x + (1 - a).sqrt() * noise, timestep=t, class_labels=y).sample
        loss = functional.mse_loss(guess, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(mean.values()), list(model.state_dict().values()), 1 - decay)
        total += loss.item()
        if (step + 1) % 100 == 0:
            log.append([step + 1, total / 100])
            print(f"{step + 1} {total / 100:.4f}", flush=True)
            total = 0.0
    model.load_state_dict(mean)
    return model, log


def sheet(model: DiTTransformer2DModel) -> None:
    """Eight samples of every digit."""
    from termwise.testing.trained_dit import sample

    pictures = sample(model, DDIMScheduler(), 50, labels=torch.arange(10).repeat(8), generator=torch.Generator().manual_seed(1))
    rows = pictures.view(8, 10, 8, 8).permute(0, 2, 1, 3).reshape(64, 80)
    plt.imsave(SHEET, rows.clamp(-1, 1).numpy(), cmap="gray")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6000)
    started, options = time.time(), parser.parse_args()
    model, log = train(options.steps)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, WEIGHTS)
    LOG.write_text(
        json.dumps({"seed": 0, "steps": options.steps, "seconds": round(time.time() - started), "loss": log}, indent=1)
    )
    sheet(model)
