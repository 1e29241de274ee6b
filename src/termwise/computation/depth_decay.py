r"""Depth decay: the later a token is generated, the fewer layers it goes through.

    n_i = max(floor(L decay^i), min_layers),      skipped at token i: layers start, ..., start + L - n_i - 1

i counts generated tokens; the prompt goes through all L layers, and so token 0 is generated with all of them. What is skipped is
consecutive and only grows, so a layer that is run has been run on every token before: it misses no key or value, and no mask
changes. Layers below `start` and behind the widest gap are always run.

Exact is the bookkeeping; the tokens are others than the full model's. By how much: `depth_terms`. Without any loss:
`draft_decode`.
Cost: a token takes n_i of L layers, and the whole of embedding and head.
Source: Fan et al. 2025, Position-Aware Depth Decay Decoding (its abstract calls the decay a power law; its formula is
exponential).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from termwise.core.arguments import integer, plain_integers
from termwise.core.mosaic import mosaic
from termwise.core.pictures import Line, Lines, Picture, Pictured

from .decoder_layers import cache_lengths, find_decoder

__all__ = ["DepthDecay", "DepthReport", "Depths", "SkippedLayers", "skip_layers"]

ROUNDING = 1e-9
"""Taken for nothing under a floor: 100 * 0.29 is 28.999999999999996."""


class Depths(Protocol):
    """Which layers a token goes through. Each set holds those of all later tokens, and layer 0."""

    def layers(self, i: int, num_layers: int) -> list[int]:
        """Of generated token i, in a model of `num_layers`."""
        ...


@dataclass(frozen=True)
class DepthDecay:
    """How many layers are left at which token, and where the others are missing.

    Args:
        decay: of the number of layers with every token, in (0, 1]; 1 skips nothing.
        start: the first layer that may be skipped, at least 1 (masks and positions come from layer 0).
        min_layers: that are left at the end, at least `start`.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> method = tw.computation.DepthDecay(decay=0.9, start=2, min_layers=5)
        >>> [len(method.layers(i, 10)) for i in range(9)]
        [10, 9, 8, 7, 6, 5, 5, 5, 5]
        >>> method.layers(3, 10)
        [0, 1, 5, 6, 7, 8, 9]
    """

    decay: float
    start: int
    min_layers: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        plain_integers(self)
        if not (isinstance(self.decay, (int, float)) and 0 < self.decay <= 1):
            raise ValueError(f"decay is a number above 0 and at most 1 (nothing is skipped), got {self.decay!r}")
        if integer(self.start) is None or self.start < 1:
            raise ValueError(f"start is a whole number, at least 1 (masks and positions come from layer 0), got {self.start!r}")
        if integer(self.min_layers) is None or self.min_layers < self.start:
            raise ValueError(
                f"min_layers is a whole number, at least start={self.start} (layers before it are always run), got "
                f"{self.min_layers!r}"
            )

    def count(self, i: int, num_layers: int) -> int:
        """n_i, how many of `num_layers` generated token i goes through."""
        if integer(i) is None or i < 0:
            raise ValueError(f"i counts generated tokens from 0, got {i!r}")
        if integer(num_layers) is None or num_layers < self.min_layers:
            raise ValueError(f"min_layers={self.min_layers} is more than the model has, which is {num_layers!r}")
        return max(math.floor(int(num_layers) * self.decay ** int(i) + ROUNDING), self.min_layers)

    def layers(self, i: int, num_layers: int) -> list[int]:
        """Which layers generated token i goes through.

        Args:
            i: counts generated tokens, from 0; that one is generated from the prompt, with all layers.
            num_layers: of the model.

        Raises:
            ValueError: for a negative i, or a model with fewer than `min_layers`.
        """
        skipped = int(num_layers) - self.count(i, num_layers)
        return [j for j in range(num_layers) if not self.start <= j < self.start + skipped]

    def speedup(self, max_new_tokens: int, num_layers: int) -> float:
        """Layers of the full model over those that are run, for so many generated tokens."""
        every = [self.count(i, num_layers) for i in range(max_new_tokens)]
        return int(num_layers) * len(every) / sum(every)

    @classmethod
    def for_speedup(
        cls, speedup: float, *, max_new_tokens: int, num_layers: int, start: int | None = None, min_layers: int | None = None
    ) -> Self:
        """The slowest decay with which so many tokens take `speedup` times fewer layers in the mean.

        Args:
            speedup: wanted, L T / sum_(i < T) n_i.
            max_new_tokens: T, how many will be generated; fewer save less, more save more.
            num_layers: L, of the model.
            start: the first layer to skip; when not given, the widest gap lies in the middle.
            min_layers: the least depth; when not given, what the decay leaves at the last token.

        Raises:
            ValueError: where no decay saves that much.

        Example:
            >>> method = tw.computation.DepthDecay.for_speedup(1.5, max_new_tokens=128, num_layers=32)
            >>> round(method.decay, 5), method.min_layers, round(method.speedup(128, 32), 2)
            (0.99354, 14, 1.5)
        """
        for name, value in {"max_new_tokens": max_new_tokens, "num_layers": num_layers}.items():
            if integer(value) is None or value < 1:
                raise ValueError(f"{name} is a whole number, at least 1, got {value!r}")
        max_new_tokens, num_layers = int(max_new_tokens), int(num_layers)
        least = max(start or 1, 1) if min_layers is None else min_layers

        def saved(decay: float) -> float:
            return cls(decay, 1, least).speedup(max_new_tokens, num_layers)

        low, high = 1e-9, 1.0
        if not 1 <= speedup <= saved(low) + ROUNDING:
            raise ValueError(
                f"{max_new_tokens} tokens of {num_layers} layers, {least} of them always, can take 1 to {saved(low):.3g} "
                f"times fewer layers; got {speedup!r}"
            )
        if saved(high) < speedup - ROUNDING:
            while high - low > 1e-15:  # the largest decay that saves enough
                middle = (low + high) / 2
                low, high = (middle, high) if saved(middle) >= speedup - ROUNDING else (low, middle)
        else:
            low = 1.0
        if min_layers is None:
            least = cls(low, 1, least).count(max_new_tokens - 1, num_layers)
        return cls(low, max(1, least // 2) if start is None else start, least)


@dataclass
class DepthReport(Pictured):
    """Of one run.

    Attributes:
        num_layers: of the model.
        prompt: tokens of the prompt (with padding), which go through all layers.
        layers: of every generated token, those that were run.
        cache_lengths: tokens in the cache, by layer: those that went through it.
    """

    num_layers: int
    prompt: int = 0
    layers: list[list[int]] = field(default_factory=list)
    cache_lengths: list[int] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Of layers, one for each layer and generated token; the prompt counts as token 0."""
        return sum(map(len, self.layers))

    @property
    def saved(self) -> int:
        """Calls that the full model would have made besides."""
        return self.num_layers * len(self.layers) - self.calls

    @property
    def speedup(self) -> float:
        """Calls of the full model over those made: how much faster, if embedding and head were free."""
        return 1 + self.saved / self.calls if self.layers else 1.0

    def summary(self) -> str:
        """One line."""
        last = len(self.layers[-1]) if self.layers else self.num_layers
        return (
            f"{len(self.layers)} tokens: {self.calls} layers run and {self.saved} skipped, {self.speedup:.2f}x fewer; {last} "
            f"of {self.num_layers} at the last"
        )

    __str__ = summary

    def pictures(self, sample: int = 0) -> list[Picture]:
        """How many layers every generated token went through, and which."""
        counts = Line("layers run", list(range(len(self.layers))), [len(run) for run in self.layers])
        found: list[Picture] = [
            Lines("Layers by token", [counts], x="generated token", y="layers run", note=f"{self.summary()}.")
        ]
        if self.layers:
            ran = torch.zeros(self.num_layers, len(self.layers))
            for token, run in enumerate(self.layers):
                ran[run, token] = 1.0
            found.append(mosaic("Which layers", ran, value="run", x="generated token", y="layer", top=1.0, signed=False))
        return found


class SkippedLayers:
    """A language model that skips layers while it generates. Made by `skip_layers` (or `tw.accelerate`).

    Called, it is `model.generate`. As a context manager it changes the model itself, whoever calls it.

    Attributes:
        report: of the last run, or of the one under way.
    """

    def __init__(self, model: Any, method: Depths) -> None:
        self.model, self.method = model, method
        self._found = find_decoder(model)
        self._forward: Callable[..., Any] = self._found.decoder.forward
        self._signature = inspect.signature(self._forward)
        self._open = ExitStack()
        self._cache: Any = None
        self.method.layers(0, len(self._found))  # a schedule that does not fit says so here
        self.report = DepthReport(len(self._found))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate` with layers skipped."""
        with self:
            return self.model.generate(*args, **kwargs)

    def __enter__(self) -> Self:
        """Skip layers from here on.

        Raises:
            RuntimeError: where the model's layers are being skipped already.
        """
        decoder, before = self._found.decoder, vars(self._found.decoder).get("forward")
        if isinstance(getattr(before, "__self__", None), SkippedLayers):
            raise RuntimeError(f"layers of this {type(decoder).__name__} are being skipped already: leave that context first")
        self._forward = decoder.forward
        self._cache, self.report = None, DepthReport(len(self._found))
        decoder.forward = self._step  # type: ignore[assignment]
        text, count = self.model.config.get_text_config(), len(self._found)

        def restore() -> None:
            text.num_hidden_layers = count  # early exit of transformers leaves its own behind when it is interrupted
            if before is None:
                vars(decoder).pop("forward", None)
            else:
                decoder.forward = before
            self._cache = None

        self._open.callback(restore)
        return self

    def __exit__(self, *problem: object) -> None:
        """Put the model back as it was. The report stays."""
        self._open.close()

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the decoder: a prompt, or one more token."""
        if self.model.config.get_text_config().num_hidden_layers != len(self._found):
            raise ValueError(
                "the number of layers was changed in mid-run, as early exit does: no draft goes with skipped layers, see "
                "draft_decode"
            )
        given = self._signature.bind(*args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        cache, new = given.get("past_key_values"), _tokens(given)
        before = [0] * len(self._found) if cache is None else cache_lengths(cache, len(self._found))
        if begins := cache is None or cache is not self._cache or new > 1:
            self.report = DepthReport(len(self._found), before[0] + new)
        kept = list(range(len(self._found))) if begins else self.method.layers(len(self.report.layers), len(self._found))
        self._refuse_gaps(kept, before)
        with self._found.only(kept):
            out = self._forward(*args, **kwargs)
        self._cache = cache if cache is not None else out.past_key_values if hasattr(out, "past_key_values") else out[1]
        if self._cache is None:
            raise ValueError("the model was called without a cache, and every call would be a prompt: use use_cache=True")
        after = cache_lengths(self._cache, len(self._found))
        if after != (expected := [n + new * (j in kept) for j, n in enumerate(before)]):
            raise RuntimeError(
                f"{type(self._found.decoder).__name__} did not run the layers that it was told: its cache has {after} tokens "
                f"by layer where {expected} were expected"
            )
        self.report.layers.append(kept)
        self.report.cache_lengths = after
        return out

    def _refuse_gaps(self, kept: list[int], before: list[int]) -> None:
        """A layer that is run must have seen every token."""
        if not kept or kept[0] != 0:
            raise ValueError(f"layer 0 is always run (masks and positions come from it); the schedule gave {kept}")
        gaps = [j for j in kept if before[j] != before[0]]
        if gaps:
            raise ValueError(
                f"layer {gaps[0]} is to be run, and its cache has {before[gaps[0]]} of {before[0]} tokens: it was skipped "
                "before. A second run on a cache with gaps needs the prompt anew (a fresh cache, all tokens); a schedule must "
                "not bring a layer back"
            )


def skip_layers(model: nn.Module, method: Depths) -> SkippedLayers:
    """Generate with fewer layers, token by token, while the cache of keys and values stays right.

        n_i = max(floor(L decay^i), min_layers)      layers at generated token i

    Args:
        model: a causal language model of transformers in eval mode, with attention over the whole past in every layer.
        method: a `DepthDecay`, or any object whose `layers(i, num_layers)` lists the layers of token i. The counter is one for a
            batch and counts generated tokens: sequences that have ended, padding on the left and beams do not change it.

    Returns:
        A `SkippedLayers`: call it as `model.generate`, or enter it. A call of one token on the cache of the call before is a
        step; anything else is a prompt, goes through all layers, and begins a new run.

    Raises:
        TypeError: for what is no model of transformers.
        ValueError: for models without such layers, and schedules that do not fit; while running, for caches other than
            `DynamicCache`, calls without a cache, a second run on a cache with gaps, and several tokens at once on such a cache
            (assisted decoding and prompt lookup, whose drafts `draft_decode` makes and verifies).

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=6, num_attention_heads=2)
        >>> model = LlamaForCausalLM(config).eval()
        >>> fast = tw.computation.skip_layers(model, tw.computation.DepthDecay(0.8, start=2, min_layers=3))
        >>> ids = fast(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
        >>> [len(kept) for kept in fast.report.layers], fast.report.cache_lengths
        ([6, 4, 3, 3, 3], [7, 7, 3, 3, 4, 7])

    Source: Fan et al. 2025.
    """
    return SkippedLayers(model, method)


def _tokens(given: dict[str, Any]) -> int:
    """How many tokens a call brings."""
    tensors = [given.get(name) for name in ("input_ids", "inputs_embeds")]
    found = next((t for t in tensors if isinstance(t, Tensor)), None)
    if found is None:
        raise ValueError("the decoder was called without input_ids and without inputs_embeds")
    return found.shape[1]
