"""A small BERT-shaped classifier, trained here on sentences: a text model that has learned something, in seconds.

Words in the order of their frequency, [CLS] in front and [SEP] behind, two post-norm layers, tanh pooler on [CLS]. A tenth of
the words is replaced by [MASK] while training, so that masking a word later asks the model something it knows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MASK", "SmallBert", "Words", "train_text"]

PAD, CLS, SEP, MASK, UNKNOWN = range(5)


class Words:
    """Sentences to ids: every word that occurs at least three times has one."""

    def __init__(self, sentences: Iterable[str]) -> None:
        """Count them."""
        counts = Counter(word for sentence in sentences for word in self.split(sentence))
        known = sorted((w for w, n in counts.items() if n >= 3), key=lambda w: (-counts[w], w))
        self.names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *known]
        self._ids = {word: i for i, word in enumerate(self.names)}

    @staticmethod
    def split(sentence: str) -> list[str]:
        """Lower-case words and marks."""
        return re.findall(r"[a-z0-9]+(?:'[a-z]+)?|[^\sa-z0-9]", sentence.lower())

    def __call__(self, sentence: str, limit: int = 40) -> Tensor:
        """Ids of one sentence, (tokens,)."""
        return torch.tensor([CLS, *[self._ids.get(w, UNKNOWN) for w in self.split(sentence)[: limit - 2]], SEP])

    def __len__(self) -> int:
        """How many ids there are."""
        return len(self.names)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.act, self.down = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        x = self.norm1(x + self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)))
        out: Tensor = self.norm2(x + self.down(self.act(self.up(x))))
        return out


class SmallBert(nn.Module):
    """Logits (batch, 2) of token ids (batch, tokens)."""

    def __init__(self, vocabulary: int, width: int = 32, layers: int = 2, heads: int = 4, length: int = 40) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norm, self.layers = nn.LayerNorm(width), nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(places))
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        out: Tensor = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        return out


def train_text(rows: Sequence[tuple[str, int]], seed: int, *, epochs: int = 3) -> tuple[SmallBert, Words]:
    """A classifier trained on (sentence, 0 or 1), leaving the global random state as it was.

    Args:
        rows: the training sentences.
        seed: of first weights, order and masks.
        epochs: passes over the sentences.

    Returns:
        The model in eval mode, float32, with frozen weights, and its vocabulary.
    """
    words = Words(sentence for sentence, _ in rows)
    ids, labels = [words(sentence) for sentence, _ in rows], torch.tensor([label for _, label in rows])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallBert(len(words))
        nn.init.normal_(model.words.weight, std=0.1)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
        for _ in range(epochs):
            for chosen in _batches(ids):
                batch = nn.utils.rnn.pad_sequence([ids[i] for i in chosen], batch_first=True)
                mask = batch != PAD
                hidden = (torch.rand(batch.shape) < 0.1) & (batch > SEP)
                loss = F.cross_entropy(model(batch.masked_fill(hidden, MASK), mask), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval().requires_grad_(False), words


def _batches(ids: Sequence[Tensor], size: int = 64) -> list[list[int]]:
    """Sentences of similar length together, batches in random order."""
    shuffled = torch.randperm(len(ids)).tolist()
    order = sorted(shuffled, key=lambda i: len(ids[i]))
    groups = [order[at : at + size] for at in range(0, len(order), size)]
    return [groups[i] for i in torch.randperm(len(groups)).tolist()]
