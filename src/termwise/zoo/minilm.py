"""MiniLM (Wang et al., 2020, arXiv:2002.10957) as a sentence encoder: six BERT layers, a mean, unit length.

    e(text) = m / |m|,      m = mean of the last hidden states under the mask

A coordinate of an embedding means nothing by itself; what two texts have in common does. To explain it, ask for the
cosine with another sentence: `against(zoo.load("minilm"), ["a happy dog"])` is a subject whose output is that cosine,
one class per sentence given. (Or give `explain` a target: `lambda e: e @ reference`.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .assets import fetch
from .errors import need
from .subject import Subject
from .texts import FastTokenizer, TextPreparation

__all__ = ["Cosines", "SentenceEncoder", "against", "minilm", "preparation"]


class SentenceEncoder(nn.Module):
    """Hidden states to one vector of unit length per text.

    Args:
        language_model: a transformers model with `last_hidden_state`.
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b width"]:
        hidden = self.language_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if attention_mask is None:
            return F.normalize(hidden.mean(1), dim=-1)
        mask = attention_mask.to(hidden.dtype)[..., None]
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


class Cosines(nn.Module):
    """An encoder followed by the cosines with fixed vectors.

    Args:
        encoder: texts to unit vectors.
        references: unit vectors, one per class.
    """

    references: Float[Tensor, "classes width"]

    def __init__(self, encoder: nn.Module, references: Float[Tensor, "classes width"]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("references", references.detach().clone())

    def forward(
        self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b classes"]:
        return self.encoder(input_ids, attention_mask) @ self.references.mT


def minilm() -> SentenceEncoder:
    """The encoder with its published weights, in evaluation mode, float32; BERT's unused pooler is left out.

    Raises:
        ImportError: transformers is not installed.
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    transformers = need("transformers", extra="text", wanted_by="minilm")
    read = need("safetensors.torch", extra="text", wanted_by="minilm").load_file
    config = transformers.BertConfig(**json.loads(fetch("minilm-config").read_text(encoding="utf-8")))
    bert = transformers.BertModel(config, add_pooling_layer=False)
    unused = ("pooler.", "embeddings.position_ids")
    state = {key: value for key, value in read(fetch("minilm")).items() if not key.startswith(unused)}
    bert.load_state_dict(state, strict=True)
    return SentenceEncoder(bert.float()).eval()


def preparation() -> TextPreparation:
    """WordPiece between [CLS] and [SEP], at most 256 tokens as in training; [MASK] stands in for a deleted one."""
    tokenizer = FastTokenizer(fetch("minilm-tokenizer"), raw=True)
    return TextPreparation(tokenizer, limit=256, prefix=(101,), suffix=(102,), baseline=103, style="wordpiece")


def against(subject: Subject, sentences: Sequence[str]) -> Subject:
    """A subject whose output is the cosine with each of some sentences.

    Args:
        subject: an encoder, `zoo.load("minilm")`; its model is shared, not copied.
        sentences: what to compare with; they become the classes.

    Returns:
        A subject with output (batch, sentences).

    Raises:
        ValueError: no sentences, or one that cannot be prepared.
    """
    if not isinstance(subject, Subject):
        raise TypeError(f"subject must be one of the zoo, as zoo.load('minilm'); got {type(subject).__name__}")
    if not sentences or isinstance(sentences, str):
        raise ValueError(f"sentences must be a list of at least one sentence, got {sentences!r}")
    with torch.no_grad():
        references = torch.cat([subject.model(**subject.prepare(sentence)) for sentence in sentences])
    return replace(subject, model=Cosines(subject.model, references).eval(), classes=list(sentences))
