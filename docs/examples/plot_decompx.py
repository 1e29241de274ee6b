"""
Token by token, layer by layer
==============================

DecompX writes every logit, and every hidden state, as an exact sum over the tokens of the input. MiniLM with a head of two
classes reads a sentence about a film.
"""

# %%
# All classes come at once: the whole has shape (batch, classes), and the part of the input one number per class and token.

import matplotlib.pyplot as plt
import torch

import termwise as tw

subject = tw.zoo.load("minilm-sentiment")
x = subject.prepare("A gorgeous, witty film, ruined a little by its silly ending.")
why = tw.decompx(subject.model, x, names=subject.names(x), classes=subject.classes).check(1e-4)
print(why, tuple(why.inputs["input_ids"].shape))

# %%
# One class as a picture. ``show`` prints the same in colours in a terminal.

one = why.of_class()
tokens, values = subject.names(x), one.inputs["input_ids"][0]


def sentence(axis, tokens, values, title):
    """Words on a background whose colour is the part, red for and blue against."""
    place, scale = 0.0, values.abs().max()
    for token, value in zip(tokens, values, strict=True):
        box = {"boxstyle": "round,pad=0.25", "facecolor": plt.cm.RdBu_r(0.5 + 0.45 * (value / scale).item()), "edgecolor": "none"}
        axis.text(place, 0.5, token, bbox=box, fontsize=11, va="center")
        place += 0.017 * len(token) + 0.022
    axis.set(xlim=(0, place), title=title)
    axis.axis("off")


figure, axis = plt.subplots(figsize=(11, 1.3), layout="constrained")
sentence(axis, tokens, values, f"{one.label()}: {one.whole[0]:.2f} = sum of the words")

# %%
# What becomes of a token on its way: how much of each hidden state, at the end averaged over positions, is its part. ``at`` gives
# the parts of any module's output, (batch, positions, width, tokens); here their sizes, per layer.

layers = [f"encoder.language_model.encoder.layer.{i}" for i in range(6)]
sizes = torch.stack([why.at(layer).parts["input:input_ids"][0].norm(dim=1).mean(0) for layer in layers])
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
picture = axis.imshow(sizes / sizes.sum(1, keepdim=True), aspect="auto", cmap="Greys")
axis.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right")
axis.set_yticks(range(6), [f"layer {i + 1}" for i in range(6)])
axis.set_title("share of the hidden states by source token")
figure.colorbar(picture, ax=axis)

# %%
# Kept apart, biases are a part of their own, and the numbers of the tokens are those of relevance run backwards (CP-LRP), which
# for one class is cheaper.

apart = tw.decompx(subject.model, x, biases="parts", target=one.target)
backwards = tw.explain(subject.model, x, rules="cp-lrp", target=one.target)
print({name: round(part.sum().item(), 4) for name, part in apart.parts.items()})
print(f"largest difference {(apart.inputs['input_ids'] - backwards.inputs['input_ids']).abs().max():.0e}")
