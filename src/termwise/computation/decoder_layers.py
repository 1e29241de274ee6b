"""The layers of a decoder, and some of them taken out for a while: a list of modules that is exchanged, and put back.

The layers themselves are left alone and keep their numbers, so each goes on writing to its own place of a cache of keys and
values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["DecoderLayers", "cache_lengths", "crop_cache", "find_decoder"]


@dataclass(frozen=True, eq=False)
class DecoderLayers:
    """The list of layers of a causal language model.

    Attributes:
        decoder: the module that holds the list and runs it.
        name: of the list in it.
        layers: in order.
    """

    decoder: nn.Module
    name: str
    layers: tuple[nn.Module, ...]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.layers)

    @contextmanager
    def only(self, kept: Sequence[int]) -> Iterator[None]:
        """Run these layers and no others, for as long as this takes."""
        whole = self.decoder._modules[self.name]
        self.decoder._modules[self.name] = nn.ModuleList(self.layers[j] for j in kept)
        try:
            yield
        finally:
            self.decoder._modules[self.name] = whole


def find_decoder(model: nn.Module) -> DecoderLayers:
    """The layers of a causal language model of transformers.

    Raises:
        TypeError: for what is no model of transformers.
        ValueError: for an encoder-decoder, for layers that are not all attention over the whole past, or that read each other's
            keys and values, and where no list of numbered layers is found; for a model in training mode.
    """
    kind, config = type(model).__name__, getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise TypeError(
            f"{kind} is no causal language model of transformers: it has no configuration to read the number of layers from"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} has an encoder and a decoder: layers are skipped in models with a decoder alone")
    if model.training:
        raise ValueError(f"{kind} is in training mode, where dropout changes what it computes: call .eval()")
    text = config.get_text_config()
    other = {t for t in getattr(text, "layer_types", None) or () if t != "full_attention"}
    if other:
        raise ValueError(
            f"{kind} has layers of {', '.join(sorted(other))}: a layer that was skipped leaves a gap in what those remember; "
            "only attention over the whole past is supported"
        )
    if getattr(text, "num_kv_shared_layers", 0):
        raise ValueError(f"layers of {kind} read keys and values of other layers, which may be skipped: not supported")
    count = getattr(text, "num_hidden_layers", 0)
    found = [
        (module, name, tuple(child))
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count and all(_number(m) == i for i, m in enumerate(child))
    ]
    if len(found) != 1:
        raise ValueError(
            f"{kind} has {len(found) or 'no'} lists of {count} layers whose attention knows its number (layer_idx): "
            "layers are skipped in models with one"
        )
    return DecoderLayers(*found[0])


def cache_lengths(cache: Any, count: int) -> list[int]:
    """Tokens that each of `count` layers has in a cache.

    Raises:
        ValueError: for a cache that is not a plain `DynamicCache`, with layers that grow with every token and forget none.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    odd = (
        []
        if not isinstance(cache, DynamicCache)
        else sorted({type(x).__name__ for x in cache.layers if type(x) is not DynamicLayer})
    )
    if odd or not isinstance(cache, DynamicCache):
        raise ValueError(
            f"a {type(cache).__name__}{' of ' + ', '.join(odd) if odd else ''} cannot have layers of different lengths: use a "
            "DynamicCache over the whole past (static, sliding, quantised, recurrent and hybrid caches are not supported)"
        )
    return [x.get_seq_length() for x in cache.layers] + [0] * (count - len(cache.layers))


def crop_cache(cache: Any, length: int) -> None:
    """Forget all tokens from the `length`-th on, in every layer.

    `DynamicCache.crop` takes a number of tokens off every layer, which is wrong where some did not see all of them.
    """
    for layer in cache.layers:
        layer.crop(min(length - layer.get_seq_length(), 0))


def _number(layer: nn.Module) -> int | None:
    return next((m.layer_idx for m in layer.modules() if isinstance(getattr(m, "layer_idx", None), int)), None)
