"""
The same pictures from fewer evaluations
========================================

A sampler calls its model again and again at times that are close together. `tw.accelerate` computes some of these calls and
forecasts the others from them, and says by how much the result is expected to have changed. Here on a small diffusion transformer
that draws digits.
"""

# %%
# The model, and a pipeline around it as diffusers has them: a scheduler, a transformer, a loop.

import matplotlib.pyplot as plt
import torch
from diffusers import DDIMScheduler

import termwise as tw
from termwise.computation import ABCache, TaylorSeer, tuned_solver
from termwise.testing.trained_dit import digits_dit


class Pipeline:
    def __init__(self, transformer, scheduler):
        self.transformer, self.scheduler = transformer, scheduler

    @torch.no_grad()
    def __call__(self, seed=1, num_inference_steps=50):
        x, digits = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(20) % 10
        self.path = []
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            noise = self.transformer(x, timestep=t.expand(20), class_labels=digits).sample
            x = self.scheduler.step(noise, t, x).prev_sample
            self.path.append(x)
        return x


def wrong(pictures, right):
    return ((pictures - right).flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)).median().item()


model = digits_dit()
pipeline = Pipeline(model, DDIMScheduler(clip_sample=False))
tuned = Pipeline(model, tuned_solver(pipeline.scheduler))
truth = tuned(num_inference_steps=150)

# %%
# Ten evaluations, spent in five ways. `auto` runs a solver of second order on 18 steps that are even in log-signal-to-noise, and
# computes every second one. What it is compared with is not only the cache of old outputs, but the same solver with ten steps.

ten = {
    "150 steps": truth,
    "DDIM, 10 steps": pipeline(num_inference_steps=10),
    "reuse, 50 steps": tw.accelerate(pipeline, ABCache(order=0, interval=5, first_steps=1))(),
    "TaylorSeer, 50 steps": tw.accelerate(pipeline, TaylorSeer(order=4, form="published", interval=6, first_steps=2))(),
    "DPM-Solver++(2M), 10 steps": tuned(num_inference_steps=10),
    "auto": tw.accelerate(pipeline, budget=10)(),
}
figure, rows = plt.subplots(len(ten), 1, figsize=(7, 5), layout="constrained")
for axes, (name, pictures) in zip(rows, ten.items(), strict=True):
    axes.imshow(pictures[:10, 0].permute(1, 0, 2).reshape(8, 80).clamp(-1, 1), cmap="gray")
    axes.set_title(f"{name}: off by {wrong(pictures, truth):.1%}", loc="left", fontsize=9)
    axes.axis("off")

# %%
# How an error grows on the way: the distance to the full run of the same 50 steps, for the same number of evaluations.

whole = (pipeline(), pipeline.path)[1]
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for name, method in {
    "reuse": ABCache(order=0, interval=4, first_steps=2),
    "TaylorSeer, published": TaylorSeer(order=4, form="published", interval=4, first_steps=2),
    "lines": TaylorSeer(order=1, interval=4, first_steps=2, sites="output"),
    "adaptive": tw.computation.Adaptive(budget=14, variable="log_snr"),
}.items():
    tw.accelerate(pipeline, method)()
    axes.semilogy(range(2, 50), [wrong(x, full) for x, full in zip(pipeline.path[2:], whole[2:], strict=True)], label=name)
axes.set(xlabel="step", ylabel="relative error of the picture", title="14 of 50 steps computed")
axes.legend()

# %%
# With a tolerance, steps are computed where going on without would be too wrong. The report has every step: which were computed,
# how wrong a forecast there would have been, what the others are expected to do to the result.

fast = tw.accelerate(pipeline, tolerance=0.03)
changed = wrong(fast(), whole[-1])
print(fast.report.summary())
print(f"measured: {changed:.3f}")
fast.report.plot()

# %%
# The tolerance is an estimate and no bound.

tolerances, found = [0.003, 0.01, 0.03, 0.1], []
for tolerance in tolerances:
    fast = tw.accelerate(pipeline, tolerance=tolerance)
    found.append((wrong(fast(), whole[-1]), fast.report.estimate, fast.report.evaluations))
figure, axes = plt.subplots(figsize=(4.5, 3.5), layout="constrained")
axes.loglog(tolerances, [f[0] for f in found], "o-", label="measured change")
axes.loglog(tolerances, [f[1] for f in found], "x--", label="estimate")
axes.loglog(tolerances, tolerances, ":", color="gray", label="tolerance")
for tolerance, (change, _, evaluations) in zip(tolerances, found, strict=True):
    axes.annotate(f"{evaluations} of 50", (tolerance, change), (4, -12), textcoords="offset points", fontsize=8)
axes.set(xlabel="tolerance", ylabel="relative change of the picture")
axes.legend()
