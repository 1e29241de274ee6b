r"""What skipped layers take away from the residual stream, token by token, in one teacher-forced pass.

    h_L = h_0 + sum_l D_l                        the full model, D_l = layer l's output minus its input
    h'_L = h_0 + sum_(l kept) D'_l               the same tokens with layers skipped
    h_L - h'_L = sum_(l skipped) D_l + sum_(l kept) (D_l - D'_l)

The first sum is what was left out, the second what that changed in the layers that were run. The tokens that go through
layer l are the first so many of the sequence, and attention looks back, so one pass in which layer l leaves the other tokens
alone equals decoding them one by one.

Cost: two forward passes over the tokens (saving nothing); memory O(L tokens width).
Source: Fan et al. 2025 for the schedule; the split of the difference is a telescoping sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Line, Lines, Picture
from termwise.core.series import series

from .decoder_layers import DecoderLayers, find_decoder
from .depth_decay import Depths

__all__ = ["DepthTerms", "depth_terms", "one_pass", "visits"]


@dataclass(frozen=True, repr=False, eq=False)
class DepthTerms(Decomposition):
    """The last hidden state (before the final norm) as embedding and layers; the remainder is what skipping changed.

    Attributes:
        whole: of the full model, (batch, tokens, width).
        parts: `embedding` and `layer 0` ... as they are added with layers skipped; 0 at tokens that skip the layer.
        skipped: what the full model's layers add at tokens that skip them.
        downstream: what the layers that are run add less, or more, because of it. skipped + downstream is the remainder.
        kl: of the next token's distribution, full model against skipping, by position (batch, tokens).
        depth: layers that each token went through, (batch, tokens).
    """

    skipped: Float[Tensor, "b t d"]
    downstream: Float[Tensor, "b t d"]
    kl: Float[Tensor, "b t"]
    depth: Int[Tensor, "b t"]

    def summary(self) -> str:
        """One line: how much was left out, and what came of it."""
        size = self.whole.norm()
        left, changed = (float(t.norm() / size) for t in (self.skipped, self.downstream))
        return (
            f"{len(self.parts) - 1} layers, {self.depth.double().mean():.1f} per token: adds up to {self.error():.1e} (left out "
            f"{left:.2g}, changed downstream {changed:.2g} of the whole), KL {self.kl.mean():.2g} per token"
        )

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What every layer adds, what is left of the hidden state after it, and what skipping changed by token.

        Raises:
            ValueError: when there is no such sample.
        """
        terms = series(self, sample, title="Layer by layer", x="layer", places=list(self.parts))
        left, changed = (float(t[sample].norm()) for t in (self.skipped, self.downstream))
        note = f"What is left after the last is what skipping changed: left out {left:.3g}, changed downstream {changed:.3g}."
        at = list(range(self.depth.shape[1]))
        kl = Line("full model against skipping", at, self.kl[sample].tolist(), role="remainder")
        depth = Line("layers run", at, self.depth[sample].tolist(), stems=True)
        return [
            replace(terms, note=note),
            Lines("What it does to the next token", [kl], x="token", y="KL divergence (nats)"),
            Lines("Depth of every token", [depth], x="token", y="layers"),
        ]


def depth_terms(
    model: nn.Module,
    input_ids: Int[Tensor, "b t"],
    method: Depths,
    *,
    prompt_length: int,
    attention_mask: Int[Tensor, "b t"] | None = None,
) -> DepthTerms:
    """Take the last hidden state apart, where layers are skipped at the tokens behind a prompt.

        h_L = h_0 + sum_(l kept) D'_l + remainder,      remainder = sum_(l skipped) D_l + sum_(l kept) (D_l - D'_l)

    Args:
        model: as `skip_layers` takes it.
        input_ids: tokens of prompts and of what follows them (as it was generated, or any text).
        method: a `DepthDecay`, or another schedule.
        prompt_length: tokens (with padding on the left) that go through all layers; the last of them predicts token 0.
        attention_mask: 0 on padding.

    Returns:
        A `DepthTerms`, on the tokens of the sequence.

    Raises:
        TypeError, ValueError: as `skip_layers`; for a prompt that is not within the sequence.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=6, num_attention_heads=2)
        >>> model = LlamaForCausalLM(config).double().eval()
        >>> d = depth_terms(model, torch.randint(16, (1, 9)), tw.computation.DepthDecay(0.8, 2, 3), prompt_length=4)
        >>> bool((d.remainder - d.skipped - d.downstream).abs().max() < 1e-12), d.depth.tolist()
        (True, [[6, 6, 6, 6, 4, 3, 3, 3, 3]])
    """
    found = find_decoder(model)
    seen = visits(method, len(found), input_ids.shape[1], prompt_length, input_ids.device)
    everywhere = torch.ones_like(seen)
    full, whole, logits = _run(model, found, everywhere, input_ids, attention_mask)
    less, _, other = _run(model, found, seen, input_ids, attention_mask)
    kl = functional.kl_div(other.log_softmax(-1), logits.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    missing = ~seen[:, None, :, None]
    skipped = (full[1:] * missing).sum(0)
    downstream = ((full[1:] - less[1:]) * ~missing).sum(0)
    parts = {"embedding": less[0], **{f"layer {j}": less[j + 1] for j in range(len(found))}}
    return DepthTerms(whole, parts, skipped, downstream, kl, seen.sum(0).expand(input_ids.shape).clone())


def one_pass(
    model: nn.Module,
    input_ids: Int[Tensor, "b t"],
    method: Depths,
    *,
    prompt_length: int,
    attention_mask: Int[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b t vocabulary"]:
    """Logits of given tokens as if they had been decoded one by one with layers skipped. Arguments and errors as `depth_terms`.

    Cost: one forward pass over the tokens.
    """
    found = find_decoder(model)
    seen = visits(method, len(found), input_ids.shape[1], prompt_length, input_ids.device)
    with torch.no_grad(), _masked(found, seen, lambda *_: None):
        logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    return logits


def visits(
    method: Depths, num_layers: int, tokens: int, prompt_length: int, device: torch.device | None = None
) -> Bool[Tensor, "layers t"]:
    """Which tokens go through which layer: all of the prompt, and position p behind it as generated token p - prompt_length + 1.

    Raises:
        ValueError: for a prompt that is not within the sequence, and for a schedule that brings a layer back.
    """
    if not 1 <= prompt_length <= tokens:
        raise ValueError(f"a prompt has 1 to all {tokens} tokens of the sequence, got prompt_length={prompt_length!r}")
    seen = torch.ones(num_layers, tokens, dtype=torch.bool)
    for p in range(prompt_length, tokens):
        kept = method.layers(p - prompt_length + 1, num_layers)
        seen[:, p] = torch.zeros(num_layers, dtype=torch.bool).index_fill(0, torch.tensor(kept), True)
        if (seen[:, p] & ~seen[:, p - 1]).any() or not seen[0, p]:
            raise ValueError(
                f"generated token {p - prompt_length + 1} goes through {kept}: layer 0 is always run, and no layer comes back"
            )
    return seen.to(device)


def _run(
    model: nn.Module, found: DecoderLayers, seen: Tensor, input_ids: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What embedding and each layer add, (layers + 1, batch, tokens, width), what the last one puts out, and the logits."""
    added: list[Tensor] = []
    last: list[Tensor] = []

    def keep(j: int, before: Tensor, after: Tensor) -> None:
        if j == 0:
            added.append(before)
        added.append(after - before)
        last[:] = [after]

    with torch.no_grad(), _masked(found, seen, keep):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    return torch.stack(added), last[0], logits


@contextmanager
def _masked(found: DecoderLayers, seen: Tensor, keep: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    """Layers leave alone the tokens that do not go through them."""

    def hook(j: int) -> Callable[..., Any]:
        def masked(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = torch.where(seen[j, :, None], out if isinstance(out, Tensor) else out[0], before)
            keep(j, before, after)
            return after if isinstance(out, Tensor) else (after, *out[1:])

        return masked

    with ExitStack() as stack:
        for j, layer in enumerate(found.layers):
            stack.callback(layer.register_forward_hook(hook(j), with_kwargs=True).remove)
        yield
