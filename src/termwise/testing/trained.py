"""Small subjects that learned something, trained here in seconds and stored nowhere: what faithfulness is measured on.

- `digits_vit`: a vision transformer on scikit-learn's handwritten digits (8 x 8), 16 patches of 2 x 2 and a class token;
- `two_digits_vit`: the same on pairs side by side (8 x 16): which digits are there, and, to a reader, where and in which pixels;
- `lookup_qa`: an encoder that answers "which words are of this kind?" by the start and end of a span.

Each is deterministic for a seed (one generator for weights, one for the data), leaves the global random state as it was, and is
kept for the process, so that claims and tests share one training. Returned models are in eval mode, without gradients.

Cost: 10 to 30 s each on one core, once. The digits come with scikit-learn: the extra `data`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LookUp", "SmallViT", "SpanReader", "Trained", "digits_vit", "lookup_qa", "two_digits_vit", "untrained_reader"]


@dataclass(frozen=True)
class Trained:
    """A trained model and data it never saw.

    Attributes:
        model: in eval mode, float32.
        inputs: held-out inputs, (n, ...).
        labels: their labels: the class, (n,); for pairs the left and right digit, (n, 2); for spans start and end, (n, 2).
        masks: for pairs the pixels of the left and of the right digit, (n, 2, 8, 16); None otherwise.
        mean: the mean patch of the training pictures at every place, of one picture's shape; None for tokens.
        accuracy: on the held-out data.
        seen: what it was trained on, where that is kept.
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    masks: Tensor | None
    mean: Tensor | None
    accuracy: float
    seen: Tensor | None = None


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a layer norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        """Four linear layers and two norms."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return out


class SmallViT(nn.Module):
    """A pre-norm vision transformer for one-channel pictures, read at its class token."""

    def __init__(
        self, grid: tuple[int, int], *, patch: int = 2, width: int = 48, depth: int = 4, heads: int = 4, classes: int = 10
    ) -> None:
        """`grid` patches of `patch` x `patch` pixels."""
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + grid[0] * grid[1], width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (batch, 1, height, width) to logits."""
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


class SpanReader(nn.Module):
    """A pre-norm encoder with a start and an end score at every position."""

    def __init__(self, vocabulary: int, length: int, *, width: int = 48, depth: int = 2, heads: int = 4) -> None:
        """Two linear heads on an encoder of learned positions."""
        super().__init__()
        self.table, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(0.3 * torch.randn(1, length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.span = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids (batch, length) to start and end logits, (batch, 2, length)."""
        return self.read(self.table(input_ids))

    def read(self, embedded: Tensor) -> Tensor:
        """The same of embedded tokens, (batch, length, width)."""
        out: Tensor = self.span(self.norm(self.blocks(embedded + self.positions))).transpose(1, 2)
        return out


@cache
def digits_vit(seed: int = 0, *, epochs: int = 12) -> Trained:
    """A vision transformer on handwritten digits, about 95 % right; a fifth of the 1,797 digits is held out.

    Args:
        seed: of weights, split and batches.
        epochs: over the training digits.

    Raises:
        ImportError: without scikit-learn.
    """
    images, labels = _digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    model = _seeded(seed, lambda: SmallViT((4, 4)))
    steps = _epochs(kept, 64, epochs, generator)
    _train(model, ((images[i], labels[i]) for i in steps), epochs * -(-len(kept) // 64), functional.cross_entropy, rate=3e-3)
    with torch.no_grad():
        accuracy = (model(images[held]).argmax(1) == labels[held]).float().mean().item()
    return Trained(model, images[held], labels[held], None, _mean_patch(images[kept], 4, 4), accuracy)


@cache
def two_digits_vit(seed: int = 0, *, steps: int = 500) -> Trained:
    """A vision transformer that says which digits a pair holds (one logit per digit); 300 held-out pairs of different digits.

    Accuracy counts pairs whose two largest logits are the two digits.

    Args:
        seed: of weights, split and pairs.
        steps: of 64 new pairs each, drawn from four fifths of the digits; held-out pairs are made of the others.

    Raises:
        ImportError: without scikit-learn.
    """
    images, labels = _digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]

    def pairs(pool: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Indices of n pairs of different digits, (n, 2), and their pictures."""
        drawn = pool[torch.randint(len(pool), (2 * n, 2), generator=generator)]
        drawn = drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]][:n]
        return drawn, torch.cat([images[drawn[:, 0]], images[drawn[:, 1]]], 3)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(steps):
            drawn, pictures = pairs(kept, 64)
            yield pictures, functional.one_hot(labels[drawn], 10).sum(1).float()

    model = _seeded(seed, lambda: SmallViT((4, 8), depth=3))
    _train(model, batches(), steps, functional.binary_cross_entropy_with_logits, rate=3e-3)
    drawn, pictures = pairs(held, 300)
    ink = pictures[:, 0] > 0.25
    left = torch.zeros_like(ink)
    left[..., :8] = True
    masks = torch.stack([ink & left, ink & ~left], 1)
    with torch.no_grad():
        found = model(pictures).topk(2).indices.sort().values
    accuracy = (found == labels[drawn].sort().values).all(1).float().mean().item()
    return Trained(model, pictures, labels[drawn], masks, _mean_patch(images[kept], 4, 8), accuracy)


@dataclass(frozen=True)
class LookUp:
    """How large a look-up task is.

    Attributes:
        kinds: of words.
        words: of each kind.
        spans: in a context, each of another kind.
        longest: words in a span at most.
    """

    kinds: int = 8
    words: int = 6
    spans: int = 5
    longest: int = 3

    @property
    def vocabulary(self) -> int:
        """Ids: 0 pads, 1 begins, 2 separates; then the kinds, then the words kind by kind."""
        return 3 + self.kinds * (1 + self.words)

    @property
    def length(self) -> int:
        """Tokens of a question and its context."""
        return 3 + self.spans * self.longest


@cache
def lookup_qa(seed: int = 0, *, steps: int = 400, size: LookUp = LookUp()) -> Trained:
    """A span reader: [begin, asked kind, separator, words ..., padding] to the span of words of the asked kind.

    It stands for extractive question answering (SQuAD): a question and a context in one sequence; an answer that is a span of
    the context, recognised by matching the question's key with the words themselves, as "when" asks for a date; a start and an
    end score to read it out. What it lacks is language. Accuracy counts exact spans of 300 held-out questions.

    Args:
        seed: of weights and questions.
        steps: of 64 new questions each.
        size: of the task.
    """
    generator = torch.Generator().manual_seed(seed)
    model = _seeded(seed, lambda: SpanReader(size.vocabulary, size.length))

    def loss(logits: Tensor, spans: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), spans.flatten())

    _train(model, (questions(64, generator, size) for _ in range(steps)), steps, loss, rate=5e-3)
    ids, spans = questions(300, generator, size)
    with torch.no_grad():
        accuracy = (model(ids).argmax(2) == spans).all(1).float().mean().item()
    return Trained(model, ids, spans, None, None, accuracy)


def untrained_reader(seed: int = 0, *, size: LookUp = LookUp()) -> nn.Module:
    """The reader of `lookup_qa` as it was before it learned anything: for controls."""
    return _seeded(seed, lambda: SpanReader(size.vocabulary, size.length)).eval().requires_grad_(False)


def questions(n: int, generator: torch.Generator, size: LookUp = LookUp()) -> tuple[Tensor, Tensor]:
    """Token ids (n, length) and spans (n, 2)."""
    kinds = torch.rand(n, size.kinds, generator=generator).argsort(1)[:, : size.spans]
    sizes = torch.randint(1, size.longest + 1, (n, size.spans), generator=generator)
    words = torch.randint(size.words, (n, size.spans, size.longest), generator=generator)
    asked = torch.randint(size.spans, (n,), generator=generator)
    starts, rows = 3 + sizes.cumsum(1) - sizes, torch.arange(n)
    ids = torch.zeros(n, size.length, dtype=torch.long)
    ids[:, 0], ids[:, 1], ids[:, 2] = 1, 3 + kinds[rows, asked], 2
    for span in range(size.spans):
        for place in range(size.longest):
            inside = place < sizes[:, span]
            word = 3 + size.kinds + kinds[:, span] * size.words + words[:, span, place]
            ids[rows[inside], starts[inside, span] + place] = word[inside]
    first = starts[rows, asked]
    return ids, torch.stack([first, first + sizes[rows, asked] - 1], 1)


def _digits() -> tuple[Tensor, Tensor]:
    """Pictures (1797, 1, 8, 8) in 0..1 and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise ImportError('the handwritten digits come with scikit-learn: pip install "termwise[data]"') from missing
    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)


def _mean_patch(images: Tensor, rows: int, columns: int) -> Tensor:
    """The mean of all 2 x 2 patches, tiled to a picture (1, 2 rows, 2 columns)."""
    return images.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((0, 2, 4)).repeat(1, rows, columns)


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def _epochs(pool: Tensor, size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from pool[torch.randperm(len(pool), generator=generator)].split(size)


def _train(
    model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int, loss: Callable[..., Tensor], *, rate: float
) -> None:
    """AdamW under a one-cycle rate; then eval mode, without gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    with torch.enable_grad():
        for inputs, wanted in batches:
            optimizer.zero_grad(set_to_none=True)
            loss(model(inputs), wanted).backward()
            optimizer.step()
            schedule.step()
    model.eval().requires_grad_(False)
