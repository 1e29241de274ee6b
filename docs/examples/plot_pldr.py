"""
A tensor between query and key
==============================

Power-law graph attention scores a query and a key as q G k. G comes from a network that has read the whole text. How much of it
is the text's, and how much the model's own?
"""

# %%
# A small language model on the help texts that come with Python, character by character.

import pydoc_data.topics

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from termwise.layers import PLDRCache, PLDRConfig, PLDRForCausalLM, freeze_g, invariance

torch.manual_seed(0)
text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
letters = sorted(set(text))
ids = torch.tensor([letters.index(letter) for letter in text[:200_000]])


def windows(count: int, length: int = 48) -> torch.Tensor:
    return ids[torch.randint(len(ids) - length - 1, (count, 1)) + torch.arange(length + 1)]


model = PLDRForCausalLM(PLDRConfig(len(letters), d_model=32, n_heads=2))
prompts = windows(40)[:, :-1]
before = invariance(model, [prompts])
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
for _ in range(150):
    batch = windows(16)
    loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
model.eval().requires_grad_(False)
after = invariance(model, [prompts])
print("before:", before.summary())
print("after: ", after.summary())

# %%
# G of one head for three prompts, and its mean over forty. Training makes it less a matter of the text, and nearly singular.

head = (1, 0)
figure, axes = plt.subplots(2, 5, figsize=(11, 4.6), layout="constrained")
for row, (name, found) in zip(axes, {"before training": before, "after": after}.items(), strict=True):
    shown = [*found.whole[:3, *head], found.parts["mean_G"][0, *head]]
    top = float(torch.stack(shown).abs().max())
    for axis, g, title in zip(row, shown, ["prompt 1", "prompt 2", "prompt 3", "mean of 40"], strict=False):
        axis.imshow(g.numpy(), cmap="RdBu_r", vmin=-top, vmax=top)
        axis.set(title=title, xticks=[], yticks=[])
    row[0].set_ylabel(f"{name}\ndeviation {found.relative_std()[head]:.0%}")
    row[4].semilogy(torch.linalg.svdvals(shown[3]).numpy(), "o-")
    row[4].set(title="its singular values")
plt.show()

# %%
# Every layer and head at once.

after.plot()

# %%
# A prompt, read once, leaves keys, values and G behind. What follows is then computed token by token, and is what the whole text
# would give with that same G, which is not what it gives with its own: there G has seen the end.

cache = PLDRCache()
prompt, rest = prompts[:1, :24], prompts[:1, 24:]
model(prompt, cache=cache)
stepwise = torch.cat([model(token, cache=cache) for token in rest.split(1, dim=1)], dim=1)
print(f"same G: {(stepwise - model(prompts[:1], g_cache=cache.g)[:, 24:]).abs().max():.1e}")
print(f"its own: {(stepwise - model(prompts[:1])[:, 24:]).abs().max():.1e}")

# %%
# With one G for good, the network that made it can go.

frozen = freeze_g(model, prompts)
print(sum(p.numel() for p in model.parameters()), "parameters, then", sum(p.numel() for p in frozen.parameters()))
start = torch.tensor([[letters.index(letter) for letter in "The "]])
print("".join(letters[i] for i in frozen.generate(start, 60, temperature=0.7, generator=torch.Generator().manual_seed(0))[0]))
