"""
Shares by absolute value
========================

DynamicLRP shares the relevance of a sum by the size of its summands, AttnLRP by their signed value. The same question,
answered by both: which words made a small reader answer so?
"""

# %%
# The reader is trained here in some seconds. A question names a kind; the context holds spans of words of five kinds; the
# answer is the span of the asked kind. Token 1 is the question, the words begin at token 3.

import matplotlib.pyplot as plt
import torch

import termwise as tw
from termwise.testing.trained import lookup_qa

subject = lookup_qa()
ids = subject.inputs[:1]
start, end = subject.labels[0].tolist()
print(f"answer: tokens {start} to {end}; questions answered right: {subject.accuracy:.0%}")

# %%
# Relevance of the start score. Signed shares let words oppose the answer; shares by size cannot.

figure, axes = plt.subplots(2, 1, figsize=(8, 3.6), sharex=True, layout="constrained")
for axis, rules in zip(axes, ("attnlrp", "dynamiclrp"), strict=True):
    why = tw.explain(subject.model, ids, target=lambda scores: scores[:, 0, start], rules=rules)
    relevance = why.inputs["input_ids"][0]
    axis.bar(
        range(len(relevance)), relevance, color=["tab:orange" if start <= i <= end else "tab:blue" for i in range(len(relevance))]
    )
    axis.set_title(f"{rules}: {why.summary()}", fontsize=9)
axes[-1].set_xlabel("token (orange: the answer)")

# %%
# Both add up, by different books. What a rule of the paper doubles or drops is among the parts, at the node where it happens:

for name, lost in sorted(why.losses.items(), key=lambda item: -item[1].abs().item())[:4]:
    print(f"{lost.item():+8.3f}  {name}")

# %%
# How much of a model do rules know at all? The census counts nodes on paths from input to output.

print(tw.coverage(subject.model, ids, select=lambda scores: scores[:, 0]))
assert torch.isfinite(why.whole).all()
