"""What several papers measure on texts: MiniLM on sentences of film reviews, with the most relevant tokens masked.

The sentences are those of the part "test" of 8 to 14 words: the first fifty, or all that follow. One method is ahead of
another when the 95 % bootstrap interval of the difference, sentence by sentence, lies on its side of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from ..rationales import MaskedText, masked_text

Method = Callable[[nn.Module, Mapping[str, Tensor], Tensor], Tensor]
"""(model, token ids, explained class) to the relevance of each token, (1, tokens)."""

FIRST, FOLLOWING, MASK = (0, 50), (50, None), 103


def random(seed: int) -> Method:
    """A random order, the same for a text whenever it is asked for."""

    def drawn(model: nn.Module, x: Mapping[str, Tensor], target: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + int(x["input_ids"].sum()))
        return torch.rand(x["input_ids"].shape, generator=generator)

    return drawn


def masked(methods: Mapping[str, Method], sentences: tuple[int, int | None] = FIRST) -> dict[str, MaskedText]:
    """AOPC, accuracy and prediction performance on every sentence, by method; "random" and "again" are two random orders."""
    from termwise import zoo
    from termwise.zoo.sentences import split

    subject = zoo.load("minilm-sentiment")
    methods = {**methods, "random": random(0), "again": random(1)}
    chosen = [row for row in split("test") if 8 <= len(row[0].split()) <= 14]
    tests = []
    for text, label in chosen[slice(*sentences)]:
        x = subject.prepare(text)
        with torch.no_grad():
            target = subject.model(**x).argmax(1)
        keep = torch.zeros(x["input_ids"].shape[1], dtype=torch.bool)
        keep[[0, -1]] = True  # [CLS] and [SEP]
        relevance = torch.cat([method(subject.model, x, target) for method in methods.values()])
        rows = {name: ids.expand(len(methods), -1) for name, ids in x.items()}  # one row per method
        labels = torch.full((len(methods),), label)
        tests.append(masked_text(subject.model, rows, relevance, labels, mask_token=MASK, keep=keep, batch_size=64))
    return {name: _of_method(tests, i) for i, name in enumerate(methods)}


def _of_method(tests: list[MaskedText], i: int) -> MaskedText:
    columns = {f.name: [getattr(test, f.name) for test in tests] for f in fields(MaskedText)}
    return MaskedText(**{name: replace(ms[0], values=torch.stack([m.values[i] for m in ms])) for name, ms in columns.items()})


def ahead(found: Mapping[str, MaskedText], ours: str, theirs: str, metric: str) -> tuple[bool, str]:
    """Whether one method is ahead of another, and "difference [interval] to the other" in words."""
    difference = getattr(found[ours], metric) - getattr(found[theirs], metric)
    low, high = difference.interval()
    return low > 0 if difference.higher_is_better else high < 0, f"{difference.mean:+.2f} [{low:+.2f}, {high:+.2f}] to {theirs}"


def compared(found: Mapping[str, MaskedText], ours: str, others: tuple[str, ...], metric: str) -> tuple[str, bool]:
    """The means of all methods and whether one of them is ahead of the others, which a random order in its place is not.

    Raises:
        AssertionError: when the control, a second random order, is ahead of all of them too.
    """
    if all(ahead(found, "again", other, metric)[0] for other in others):
        raise AssertionError(f"a random order is ahead of {', '.join(others)} by {metric}: the measure measures nothing")
    means = ", ".join(f"{name} {getattr(test, metric).mean:.2f}" for name, test in found.items() if name != "again")
    won = [ahead(found, ours, other, metric) for other in others]
    return f"{means}; {ours} {', '.join(text for _, text in won)}", all(ok for ok, _ in won)
