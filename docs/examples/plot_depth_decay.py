"""
Layers that late tokens skip
============================

Depth decay generates later tokens with fewer layers. The cache stays right; the tokens do not stay the same. By how much they
change is measured here, on a small language model that is trained in this example, and then nothing is lost: the same layers
draft, and all of them verify.
"""

# %%
# A language model of six layers, on the characters of Python's own help.

import matplotlib.pyplot as plt
import torch

from termwise.computation import DepthDecay, depth_terms, draft_decode, skip_layers
from termwise.testing.trained_lm import help_pages, small_lm

model = small_lm(layers=6, steps=120)
held = help_pages()[1]
prompt = held[1000:1032][None]
greedy = {"do_sample": False, "max_new_tokens": 64}

# %%
# Skipping begins at layer 2, and only grows. The report counts the layers that were run; the cache of a layer has the tokens that
# went through it, and no others.

method = DepthDecay.for_speedup(1.4, max_new_tokens=64, num_layers=6, start=2)
fast = skip_layers(model, method)
ids = fast(prompt, **greedy)
print(method)
print(fast.report)
print("tokens in the cache, by layer:", fast.report.cache_lengths)
full = model.generate(prompt, **greedy)
print(f"{(ids == full)[:, 32:].double().mean():.0%} of the tokens are those of the full model")

# %%
# One pass over a text tells what was taken from the last hidden state at every token: what skipped layers would have added, and
# what those that were run add differently because of it. Both together are the remainder.

terms = depth_terms(model, held[: 40 * 96].view(40, 96), method, prompt_length=32)
print(terms)

# %%
# The same skips as drafts. The whole model looks at three at once and keeps those it would have written: the text is its own.

found = draft_decode(model, prompt, method, max_new_tokens=64, drafts=3)
print(found)
print("the same text:", torch.equal(found.sequences, full))

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
run = torch.tensor([[j in kept for kept in fast.report.layers] for j in range(6)])
left.imshow(run, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1.6)
left.set(xlabel="generated token", ylabel="layer", title="layers that were run (blue)")
size = terms.whole.norm(dim=-1).mean(0)
for name, part in {"left out": terms.skipped, "changed downstream": terms.downstream, "remainder": terms.remainder}.items():
    right.plot(range(96), part.norm(dim=-1).mean(0) / size, label=name)
right.axvline(31.5, color="0.6", lw=1)
right.set(xlabel="place in the text (grey: end of the prompt)", ylabel="share of the last hidden state")
right.legend()
plt.show()
