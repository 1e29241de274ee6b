"""
A long convolution, one token at a time
=======================================

A Toeplitz network mixes tokens by a long convolution. Its kernel is a sum of oscillations, and so the convolution a recurrence:
exact with as many numbers of state as there are taps, and very nearly so with a tenth.
"""

# %%
# A small Toeplitz network, fitted to copy what it read five tokens ago. Each channel of a mixer has its kernel of 128 taps.

import math

import matplotlib.pyplot as plt
import torch

import termwise as tw
from termwise.computation import TNN, to_recurrent

torch.manual_seed(0)
model = TNN(16, width=24, depth=2, length=128)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(150):
    tokens = torch.randint(16, (8, 96))
    logits = model(tokens)[:, 5:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, :-5].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval().requires_grad_(False)
print(f"loss {loss:.3f}, by guessing {math.log(16):.3f}")

# %%
# Exact, and with as few modes as miss a thousandth of the kernel's l1 norm. `to_recurrent` compares tokens with the model.

mixer = model.blocks[1].mixer
exact = tw.toeplitz_to_ssm(mixer.taps().double(), decay=mixer.decay).check()
few = tw.toeplitz_to_ssm(mixer.taps().double(), error=1e-3, decay=mixer.decay)
print(exact.summary())
print(few.summary())
example = torch.randint(16, (1, 96))
for name, options in {"exact": {}, "few": {"error": 1e-3}}.items():
    recurrent = to_recurrent(model, example, beyond="exact", **options)
    print(f"{name}: logits off by {recurrent.error:.1e}")

# %%
# Left: the modes of one channel, the oscillations that its kernel is made of. Middle: more state, less error, for this kernel and
# for noise. Right: beyond 128 tokens the recurrence that goes on is another convolution; the one that is ended is not.

orders = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
noise = torch.randn(128, 4, dtype=torch.float64)
kernels = {"trained": (mixer.taps().double(), mixer.decay), "noise": (noise, 1.0)}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
channel = int(few.whole.abs().sum(0).argmax())
for part in few.parts.values():
    axes[0].plot(part[:48, channel], color="tab:orange", linewidth=0.9, alpha=0.7)
axes[0].plot(few.whole[:48, channel], "k.", markersize=4, label="taps")
axes[0].plot(few.kernel(48)[:, channel], color="tab:blue", label="all modes together")
axes[0].set(xlabel="lag", title=f"{len(few.parts)} modes of a channel")
axes[0].legend()
for name, (taps, decay) in kernels.items():
    axes[1].semilogy(orders, [tw.toeplitz_to_ssm(taps, order, decay=decay).error() for order in orders], "o-", label=name)
axes[1].set(xlabel="order: numbers of state", ylabel="l1 error, worst channel", title="128 taps in fewer numbers")
axes[1].legend()
x = torch.randn(600, 24, dtype=torch.float64)
truth = torch.zeros_like(x)
for lag, tap in enumerate(exact.whole):
    truth[lag:] += tap * x[: len(x) - lag]
for beyond, label in ((math.inf, "goes on"), ("exact", "is ended")):
    ssm = tw.toeplitz_to_ssm(mixer.taps().double(), decay=mixer.decay, beyond=beyond)
    gap = (ssm.scan(x)[0] - truth).abs().amax(1) / truth.abs().max()
    axes[2].semilogy(gap.clamp_min(1e-17), label=label)
axes[2].axvline(128, color="0.6", linewidth=0.8)
axes[2].set(xlabel="token", ylabel="off by, over the largest output", title="beyond the taps")
axes[2].legend()
plt.show()
