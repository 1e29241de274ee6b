r"""A language model with power-law graph attention, and generation that keeps keys, values and G.

    x = LN(sqrt(d) embedding),   x <- LN(x + attention(x)),   x <- LN(x + SwiGLU(x)),   logits = x W + b

Trained as published, with G of the whole window: what it predicts at one position depends on tokens behind it, and its perplexity
with teacher forcing is no perplexity. With G from a prompt, or any G given, it is a causal model.

Source: papers.toml "pldr".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core import one_file

from .metric_network import SwiGLU
from .power_law_attention import CURVATURES, LayerCache, PowerLawAttention

__all__ = ["PLDRCache", "PLDRConfig", "PLDRForCausalLM"]

FORMAT = 1
"""Version of the file layout written by `PLDRForCausalLM.save`."""


@dataclass(frozen=True)
class PLDRConfig:
    """Sizes of a `PLDRForCausalLM`; what is not given follows from the others.

    Args:
        vocab_size: tokens.
        d_model: width.
        n_layers: decoder layers.
        n_heads: heads of each, a divisor of d_model.
        d_ff: width of the feed-forward layers, ceil(8 d_model / 3) when not given.
        metric_layers, metric_denses, metric_hidden: of the network that makes G (`PowerLawAttention`).
        rotary: positions by rotation. Without, the model knows the order of tokens from the mask alone.
        curvature: "learned", the paper's; "fixed", with G a buffer; "identity", scaled dot-product attention.

    Raises:
        ValueError: for sizes below 1 or a curvature that does not exist; heads are looked at by the layer.
    """

    vocab_size: int
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    d_ff: int | None = None
    metric_layers: int = 2
    metric_denses: int = 2
    metric_hidden: int | None = None
    rotary: bool = True
    curvature: str = "learned"

    def __post_init__(self) -> None:
        """Refuse what no layer would look at."""
        if self.vocab_size < 1 or self.n_layers < 1:
            raise ValueError(f"vocab_size and n_layers are 1 or more; got {self.vocab_size} and {self.n_layers}")
        if self.curvature not in CURVATURES:
            raise ValueError(f"curvature is one of {', '.join(CURVATURES)}; got {self.curvature!r}")


@dataclass
class PLDRCache:
    """KV-cache and G-cache of a text: one `LayerCache` per layer, and which positions count.

    An empty one, `PLDRCache()`, given to the model takes keys, values and G of the prompt; given again, it takes keys and values
    of what follows, and G stays.
    """

    layers: list[LayerCache] = field(default_factory=list)
    keep: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions held."""
        return 0 if not self.layers or self.layers[0].keys is None else self.layers[0].keys.shape[2]

    @property
    def g(self) -> list[Tensor]:
        """Per layer, (batch, H, d_k, d_k) or as it was given; as `g_cache` it makes another call use it."""
        return [layer.g for layer in self.layers if layer.g is not None]

    def crop(self, length: int) -> None:
        """Forget all positions but the first `length`. G stays that of the prompt, also where that is cut.

        Raises:
            ValueError: when there are not so many, or none would be left.
        """
        if not 1 <= length <= self.length:
            raise ValueError(f"the cache has {self.length} positions: keep 1 to as many; got {length}")
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        self.keep = None if self.keep is None else self.keep[:, :length]


class _Decoder(nn.Module):
    def __init__(self, config: PLDRConfig) -> None:
        super().__init__()
        self.attention = PowerLawAttention(
            config.d_model,
            config.n_heads,
            curvature=config.curvature,
            metric_layers=config.metric_layers,
            metric_denses=config.metric_denses,
            metric_hidden=config.metric_hidden,
            rotary=config.rotary,
        )
        self.feed_forward = SwiGLU(config.d_model, config.d_ff or -(-8 * config.d_model // 3))
        self.norm1, self.norm2 = (nn.LayerNorm(config.d_model, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, keep: Tensor | None, g: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = self.norm1(x + self.attention(x, keep, g_cache=g, cache=cache))
        out: Tensor = self.norm2(x + self.feed_forward(x))
        return out


class PLDRForCausalLM(nn.Module):
    """A decoder with power-law graph attention and a linear head.

    Args:
        config: its sizes.

    Example:
        >>> model = tw.layers.PLDRForCausalLM(tw.layers.PLDRConfig(vocab_size=20)).double().eval()
        >>> prompt, cache = torch.tensor([[3, 1, 4, 1, 5]]), tw.layers.PLDRCache()
        >>> _ = model(prompt, cache=cache)  # keys, values and G of the prompt
        >>> more = torch.tensor([[9, 2]])
        >>> step, whole = model(more, cache=cache), model(torch.cat([prompt, more], dim=1), g_cache=cache.g)
        >>> torch.allclose(step, whole[:, 5:], rtol=1e-10, atol=1e-12)
        True

    Source: Gokden 2025.
    """

    def __init__(self, config: PLDRConfig) -> None:
        super().__init__()
        if not isinstance(config, PLDRConfig):
            raise TypeError(f"config must be a PLDRConfig, got {type(config).__name__}: PLDRConfig(vocab_size=...) makes one")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=1e-6)
        self.layers = nn.ModuleList(_Decoder(config) for _ in range(config.n_layers))
        self.head = nn.Linear(config.d_model, config.vocab_size)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        g_cache: Sequence[Tensor] | None = None,
        cache: PLDRCache | None = None,
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            input_ids: (batch, n).
            attention_mask: (batch, n), False or 0 where a token is padding, on either side.
            g_cache: per layer, G for `PowerLawAttention.forward`; with it the model is causal.
            cache: of the tokens before, appended to. An empty one takes G: of `g_cache`, or of these tokens.

        Returns:
            (batch, n, vocab_size).

        Raises:
            ValueError: for shapes that do not fit, ids beyond the vocabulary, a G for a cache that has one.
            TypeError: for ids that are no integers.
        """
        keep = self._checked(input_ids, attention_mask, cache)
        if g_cache is not None and len(g_cache) != len(self.layers):
            raise ValueError(f"g_cache has one G per layer, {len(self.layers)} of them; got {len(g_cache)}")
        if cache is not None and not cache.layers:
            cache.layers = [LayerCache() for _ in self.layers]
        x = self.norm(self.embedding(input_ids) * self.config.d_model**0.5)
        before = [] if cache is None else [replace(one) for one in cache.layers]
        try:
            for i, layer in enumerate(self.layers):
                x = layer(x, keep, None if g_cache is None else g_cache[i], None if cache is None else cache.layers[i])
        except Exception:
            if cache is not None:  # layers that had read these tokens forget them
                cache.layers = before
            raise
        if cache is not None:
            cache.keep = keep
        logits: Tensor = self.head(x)
        return logits

    @torch.no_grad()
    def curvatures(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """G of every layer and head, read from texts: (layers, batch, H, d_k, d_k).

        Args: as `forward`.

        Raises:
            ValueError: where G does not depend on the text (curvature "fixed" or "identity").
        """
        if self.config.curvature != "learned":
            raise ValueError(f'curvature is "{self.config.curvature}" in this model: G does not depend on a text')
        cache = PLDRCache()
        self(input_ids, attention_mask, cache=cache)
        return torch.stack(cache.g)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        *,
        attention_mask: Tensor | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        g_cache: Sequence[Tensor] | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Continue a text token by token.

        Args:
            input_ids: (batch, n), the prompts, padded on the left where at all.
            max_new_tokens: how many to append.
            attention_mask: (batch, n), False or 0 where a token is padding.
            temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
            generator: of the draws.
            g_cache: per layer, G; that of the prompt when not given.
            use_cache: keep keys, values and G. Without, every token is computed from the text so far, and with it G, unless
                `g_cache` has it: a slow twin, and another function where G is not (see `invariance`).

        Returns:
            (batch, n + max_new_tokens).

        Raises:
            ValueError: for shapes that do not fit, padding at the end, a temperature below 0, nothing to continue.

        Cost: with the cache, one token through the network per step and no metric network; O(n) keys per layer.
        """
        keep = None if attention_mask is None else attention_mask.bool()
        if input_ids.ndim != 2 or not input_ids.shape[1]:
            raise ValueError(f"input_ids is (batch, n) with n of 1 or more; got {tuple(input_ids.shape)}")
        if keep is not None and not bool(keep[:, -1].all()):
            raise ValueError("padding stands at the end of a prompt: pad on the left, new tokens follow the last one")
        if max_new_tokens < 0 or not temperature >= 0:
            raise ValueError(f"max_new_tokens and temperature are 0 or more; got {max_new_tokens} and {temperature}")
        text, cache, new = input_ids, PLDRCache() if use_cache else None, input_ids
        for step in range(max_new_tokens):
            given = g_cache if step == 0 or not use_cache else None
            logits = self(new if use_cache else text, keep, g_cache=given, cache=cache)[:, -1]
            if temperature:
                drawn = (logits / temperature).softmax(-1)
                new = torch.multinomial(drawn, 1, generator=generator)
            else:
                new = logits.argmax(-1, keepdim=True)
            text = torch.cat([text, new], dim=1)
            keep = None if keep is None else torch.cat([keep, torch.ones_like(keep[:, :1])], dim=1)
        return text

    def save(self, path: str | Path) -> Path:
        """Write weights and sizes as one safetensors file.

        Args:
            path: where to; `.safetensors` is appended when there is no suffix.

        Returns:
            The path written.

        Raises:
            OSError: when it cannot be written.
        """
        return one_file.write(path, self.state_dict(), "termwise.pldr", {"format": FORMAT, "config": asdict(self.config)})

    @staticmethod
    def load(path: str | Path) -> PLDRForCausalLM:
        """Read what `save` wrote, in the precision it was saved in. Runs no code from the file.

        Args:
            path: as it was given to `save`.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when it holds no such model, or was written by a newer version.
        """
        return one_file.read(path, "termwise.pldr", _read, holds="a PLDRForCausalLM", saver="PLDRForCausalLM.save")

    def _checked(self, ids: Tensor, mask: Tensor | None, cache: PLDRCache | None) -> Tensor | None:
        """Which positions count, with those of the cache; None where all do."""
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"input_ids are integers; got {ids.dtype}")
        if ids.ndim != 2 or not ids.numel():
            raise ValueError(f"input_ids is (batch, n), neither of them 0; got {tuple(ids.shape)}")
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.vocab_size:
            raise ValueError(f"input_ids lie in 0..{self.config.vocab_size - 1}; got {int(ids.min())} to {int(ids.max())}")
        before = 0 if cache is None else cache.length
        if mask is None:
            if before and cache.keep is not None:  # type: ignore[union-attr]
                return torch.cat([cache.keep, torch.ones_like(ids, dtype=torch.bool)], dim=1)  # type: ignore[union-attr]
            return None
        if mask.shape == ids.shape and before:
            past = cache.keep  # type: ignore[union-attr]
            mask = torch.cat([mask.new_ones(ids.shape[0], before) if past is None else past.to(mask.dtype), mask], dim=1)
        if mask.shape != (ids.shape[0], before + ids.shape[1]):
            raise ValueError(f"attention_mask is {tuple(ids.shape)}, as input_ids; got {tuple(mask.shape)}")
        return mask.bool()


def _read(header: Any, tensors: dict[str, Tensor], path: Path) -> PLDRForCausalLM:
    """The model that a header describes."""
    one_file.refuse_newer(path, header["format"], FORMAT)
    config = PLDRConfig(**header["config"])
    held, many = sum(t.numel() for t in tensors.values()), len(tensors)
    table, claimed = tuple(tensors["embedding.weight"].shape), (config.vocab_size, config.d_model)
    wide, deep = (config.d_ff or 0, config.metric_hidden or 0), (config.n_layers, config.metric_layers, config.metric_denses)
    if table != claimed or max(wide) > held or max(deep) > many:
        raise ValueError(f"{path} claims {config}, and holds {many} tensors of {held} numbers: it is damaged")
    with torch.random.fork_rng(devices=[]):
        model = PLDRForCausalLM(config).to(tensors["head.weight"].dtype)
    model.load_state_dict(tensors)
    return model.eval()
