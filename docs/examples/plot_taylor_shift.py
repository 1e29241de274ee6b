"""
Attention in powers of its scores
=================================

Softmax attention is a sum over keys of exponentials. With queries and keys of length 1 the exponentials are nearly a parabola,
and a sum of parabolas over keys needs no matrix of scores. How much of the softmax is in each power, and what is left out?
"""

# %%
# One layer, 200 tokens. Parts are constant, linear and quadratic in the scores; the whole is the same layer with exponentials.

import matplotlib.pyplot as plt
import torch
from torch.utils.flop_counter import FlopCounterMode

import termwise as tw
from termwise.layers import TaylorShiftAttention, crossover, taylor_shift_attention, taylor_shift_expansion

torch.manual_seed(0)
attend, x = TaylorShiftAttention(32, 4).double(), torch.randn(1, 200, 32, dtype=torch.float64)
e = attend.expand(x)
print(e.summary())
for name, part in e.parts.items():
    print(f"{name:10}{part.norm() / e.whole.norm():.3f}")

# %%
# The temperature decides how sharp attention may be, and how good the parabola is. The bound is known before anything else.

q, k, v = torch.randn(3, 1, 300, 16, dtype=torch.float64)
temperatures = torch.linspace(0.1, 4, 20)
found = [taylor_shift_expansion(q, k, v, float(t)) for t in temperatures]

figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
s = torch.linspace(-2, 2, 100)
axes[0].plot(s, s.exp(), label="exponential")
axes[0].plot(s, 1 + s + s**2 / 2, label="1 + s + s²/2")
axes[0].set(xlabel="score", title="weights, before their sum")
axes[1].semilogy(temperatures, [float(f.weight_error) for f in found], label="worst weight")
axes[1].semilogy(temperatures, [float(f.weight_bound) for f in found], "--", label="its bound")
axes[1].semilogy(temperatures, [f.error() for f in found], label="output, relative")
axes[1].set(xlabel="temperature", title="what is left out")

# %%
# Both ways to the same numbers: through scores, and through moments of the keys.

lengths, products = [64, 128, 256, 512, 1024, 2048], {}
for form in ("direct", "efficient"):
    for n in lengths:
        with FlopCounterMode(display=False) as counter:
            taylor_shift_attention(*torch.randn(3, 1, n, 16), implementation=form)
        products.setdefault(form, []).append(counter.get_total_flops())
    axes[2].loglog(lengths, products[form], "o-", label=form)
axes[2].axvline(crossover(16).time, color="0.7", label="counted by the paper")
axes[2].set(xlabel="tokens", title="operations in products, d = 16")
for axis in axes:
    axis.legend()
plt.show()

# %%
# In place of a model's attention: a copy, to be trained.

layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
print(tw.layers.convert(layer).self_attn)
