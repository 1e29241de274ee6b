"""MiniLM with a head of two classes, fitted to film sentences: real weights that answer a question about a text.

    logits = -z/2, z/2,   z = w . e(text) + b,      e: the encoder's unit vector; w, b by logistic regression on 1,500 sentences

The encoder is as published, the head is ours: fitted once, by Newton's method in float64, which has one optimum and no
chance in it, and kept in the cache. About a minute the first time.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from jaxtyping import Float, Int
from torch import Tensor, nn

from .assets import ASSETS, cache_folder
from .errors import need
from .minilm import SentenceEncoder, minilm, preparation
from .sentences import split

__all__ = ["Sentiment", "minilm_sentiment"]

SENTENCES, PENALTY = 1500, 1.0


class Sentiment(nn.Module):
    """A sentence encoder with a linear head.

    Args:
        encoder: texts to vectors.
        width: of the vectors.
    """

    def __init__(self, encoder: nn.Module, width: int = 384) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 2)

    def forward(self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"] | None = None) -> Float[Tensor, "b 2"]:
        logits: Tensor = self.head(self.encoder(input_ids, attention_mask))
        return logits


def minilm_sentiment() -> Sentiment:
    """The classifier in evaluation mode, float32.

    Raises:
        ImportError: transformers is not installed.
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    encoder = minilm()
    model = Sentiment(encoder)
    model.head.load_state_dict(need("safetensors.torch", extra="text", wanted_by="minilm-sentiment").load_file(_head(encoder)))
    return model.eval()


def _head(encoder: SentenceEncoder) -> Path:
    """The file of the fitted head, made on first use; all of it is there or none."""
    keys = ASSETS["minilm"].sha256[:8] + ASSETS["film-sentences"].sha256[:8]
    path = cache_folder() / "derived" / f"minilm-sentiment-{keys}-{SENTENCES}.safetensors"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            rows = split("train")[:SENTENCES]
            weight, bias = fit(embedded(encoder, [text for text, _ in rows]), torch.tensor([label for _, label in rows]))
            # only the difference of two logits counts; half to each keeps the classes alike
            head = {"weight": torch.stack([-weight, weight]).float() / 2, "bias": torch.stack([-bias, bias]).float() / 2}
            write = need("safetensors.torch", extra="text", wanted_by="minilm-sentiment").save_file
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="incoming-") as temporary:
                write(head, Path(temporary) / "head")
                os.replace(Path(temporary) / "head", path)
    return path


def embedded(encoder: nn.Module, texts: list[str]) -> Float[Tensor, "n width"]:
    """Vectors of texts, sixteen of similar length at a time."""
    prepare = preparation()
    ids = [prepare(text, truncate=True)["input_ids"][0] for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: list[Tensor] = [torch.empty(0)] * len(ids)
    for at in range(0, len(order), 16):
        chosen = order[at : at + 16]
        padded = nn.utils.rnn.pad_sequence([ids[i] for i in chosen], batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(ids[i]) for i in chosen], batch_first=True)
        with torch.no_grad():
            for i, vector in zip(chosen, encoder(padded, mask), strict=True):
                found[i] = vector
    return torch.stack(found)


def fit(x: Float[Tensor, "n width"], labels: Int[Tensor, " n"]) -> tuple[Float[Tensor, " width"], Float[Tensor, ""]]:
    """Logistic regression, sum of losses + |w|^2 / 2 (the bias is free), by Newton's method."""
    x = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    y = labels.double()
    penalty = torch.full((x.shape[1],), PENALTY, dtype=torch.float64)
    penalty[-1] = 0
    w = torch.zeros_like(penalty)
    for _ in range(20):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (p - y) + penalty * w
        hessian = (x.T * (p * (1 - p))) @ x + torch.diag(penalty)
        w = w - torch.linalg.solve(hessian, gradient)
    return w[:-1], w[-1]
