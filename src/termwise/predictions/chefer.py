"""Chefer, Gur and Wolf (2021): attention rollout in which every layer is weighed by gradient and relevance.

    M^(b) = mean_h relu(dy/dA^(b) * R^(b)),      C = prod_b (I + M^(b)),      token relevance = the rows of C that the head reads

A^(b) are the attention weights of layer b (heads h), y the explained logit, R^(b) the relevance that arrives at A^(b) from its
product with the values when R = 1 starts at y (a contrast is a sum of entries: they share it by size) and goes back by

- linear and convolution: R_i = sum_j (x_i w_ij)^+ R_j / P_j, with P_j the sum of the positive products; biases ignored;
- sums z = a + b (residual, positions): r_a = a R / z, then rescaled sample by sample so that the totals of the summands share
  R as |sum r_a| : |sum r_b| (eq. 9-10): keeps the total, and keeps summands that cancel from growing without bound;
- products of two activations: half of x VJP(R / z) each; norms, softmax and element-wise functions: R unchanged.

The rollout is an index of tokens and adds up to nothing. What adds up is step one carried to the input, 1 = inputs +
constants + what the rules lost: that is the Explanation, and the rollout stands beside it. Siblings take M from less.

Cost: two forward and two backward passes; A of all layers, O(layers heads s^2) a sample.
Source: papers.toml "chefer", eq. 2-14; the published code for the order of the product. We keep samples apart (its residual
rule sums over the batch), z+ takes both signs of x together, and divisions are guarded by the divisor's own sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from termwise.core.arguments import Samples, chosen_samples
from termwise.core.capture import arguments
from termwise.core.pictures import Picture, Pictured, Pixels
from termwise.core.program import Program

from .attention_maps import attentions, by_path, heads, in_windows, weights_and_gradients
from .attention_pictures import index_of_tokens, layer_maps
from .call import PredictionCall
from .explanation import Explanation
from .labels import class_names, token_names
from .propagate import Result
from .refusals import batched, finite_inputs, finite_result
from .relevance_form import Carried, Place, Rule, guarded, halved, times
from .rollout import NoRollout, Tokens, last_layer, name, patches, read_rows, rollout
from .rules.maps import AFFINE
from .targets import Target, asked
from .unfused import unfused

__all__ = [
    "AttentionExplanation", "AttentionReadout", "attention_gradcam", "attention_rollout", "chefer", "gradient_rollout",
    "partial_lrp", "raw_attention",
]  # fmt: skip


# -- its rules --------------------------------------------------------------------------------------------------------


def positive(at: Place, r: Tensor) -> list[Tensor | None]:
    """z+ over pairs of one sign, without bias: R_i = (x_i (W^T s)_i + |x_i| (|W|^T s)_i) / 2, s = R / P, P = (z + A) / 2.

    A = |x| |W|. Where nothing is positive (P = 0 up to the rounding of z + A) relevance is lost.
    """
    if sum(at.active) != 1:
        return halved(at, r)
    i = at.active.index(True)
    bias = [k for k, x in enumerate(at.operands) if x.ndim == 1 and k != i]
    plain = [torch.zeros_like(x) if k in bias else x for k, x in enumerate(at.operands)]
    sizes = [x.abs() for x in plain]
    z, a = at(*plain), at(*sizes)
    twice = z + a
    s = (r / twice).masked_fill(twice <= 8 * torch.finfo(z.dtype).eps * a, 0)
    towards, away = at.vjp(s, plain)[i], at.vjp(s, sizes)[i]
    assert towards is not None
    assert away is not None
    return [at.operands[k] * towards + sizes[k] * away if k == i else None for k in range(len(plain))]


def rescaled(at: Place, r: Tensor) -> list[Tensor | None]:
    """A sum: shares a R / z, then each summand's total rescaled to |S_a| / (|S_a| + |S_b|) of the total R.

    R_a = r_a S_R |S_a| / (|S_a| + |S_b|) / S_a = r_a S_R sign(S_a) / (|S_a| + |S_b|): nothing is divided by S_a.
    """
    shares = _shares(at, r)
    totals = [at.totals(share) for share in shares]
    size = sum(t.abs() for t in totals)
    total = sum(totals)
    return [
        share * at.spread(torch.where(size > 0, total * t.sign() / size, torch.ones_like(size)))
        for share, t in zip(shares, totals, strict=True)
    ]


def plain_shares(at: Place, r: Tensor) -> list[Tensor | None]:
    """A sum without the rescaling: keeps the total too, and lets summands that cancel grow from layer to layer."""
    return list(_shares(at, r))


def _shares(at: Place, r: Tensor) -> list[Tensor]:
    s = times(1 / guarded(at.value), r)
    return [times(at.alone(i).expand_as(r), s) for i in range(len(at.operands))]


RULES: dict[str, Rule] = {
    **dict.fromkeys((*AFFINE, "einsum"), positive),
    **dict.fromkeys(("add", "sub", "rsub"), rescaled),
}
"""What the method lays over the table of `termwise.predictions.relevance_form`."""


# -- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class AttentionExplanation(Explanation):
    """The relevance of the inputs, which adds up to `whole` = 1, and beside it what the attention layers say.

    Attributes:
        tokens: the rollout map, an index: per stream of tokens, named by the inputs it is made of, (batch, tokens).
        attention_relevance: relu(dy/dA * R) of every attention by module path, (batch, heads, queries, keys).
        attention_weights: A of every attention, the same shape.
        why_not: why there is no rollout, where there is none.
    """

    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    attention_relevance: Mapping[str, Tensor] = field(default_factory=dict)
    attention_weights: Mapping[str, Tensor] = field(default_factory=dict)
    why_not: str = ""

    def __getitem__(self, samples: Samples) -> AttentionExplanation:
        """Some of the samples, everywhere."""
        rows = chosen_samples(samples, len(self))
        chosen = super().__getitem__(rows)
        maps = (self.tokens, self.attention_relevance, self.attention_weights)
        tokens, relevance, weights = ({name: value[rows] for name, value in values.items()} for values in maps)
        return replace(chosen, tokens=tokens, attention_relevance=relevance, attention_weights=weights)

    @property
    def token_relevance(self) -> Float[Tensor, "batch tokens"]:
        """The rollout map of the first stream of tokens (an encoder's, where there is one)."""
        return _first(self.tokens, self.why_not)

    def ranking(self, name: str | None = None) -> Tensor:
        """The rollout map, of an image by pixels: what the method says is most relevant is its index, not its relevance."""
        return _ranking(self.tokens, self.picture, name, self.why_not)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What adds up, the index of tokens, and what each attention looks at."""
        found = [p for p in super().pictures(sample) if not isinstance(p, Pixels)]  # of which `heatmap` is the index
        names = None if self.names is None else self.names[sample]
        if self.tokens:
            heat = None if self.picture is None else self.heatmap(sample=sample)
            found.append(index_of_tokens("What attention looks at", self.token_relevance[sample], names, heat))
        return found + layer_maps("Relevance of attention", self.attention_relevance, names, sample)

    def heatmap(self, name: str | None = None, sample: int = 0) -> Float[Tensor, "height width"]:
        """The rollout map of one image, its patches interpolated to the image's size.

        Args:
            name: a stream of `tokens`; the first when not given.
            sample: which sample.

        Raises:
            ValueError: when there is no image, no such stream, or its tokens are no grid of patches.
        """
        return _heatmap(self.tokens, self.picture, name, sample, self.why_not)


@dataclass(frozen=True, eq=False)
class AttentionReadout(Pictured):
    """What a method reads out of the attention layers: an index of the input tokens, which adds up to nothing.

    Attributes:
        tokens: per stream of tokens, named by the inputs it is made of, (batch, tokens).
        attention_relevance: what the method makes of every attention by module path, (batch, queries, keys).
        target: the explained class index per sample; None where the output is no class.
        size: height and width of the image input; None where there is none.
    """

    tokens: Mapping[str, Tensor]
    attention_relevance: Mapping[str, Tensor]
    target: Tensor | None = None
    size: list[int] | None = None

    @property
    def token_relevance(self) -> Float[Tensor, "batch tokens"]:
        """The map of the first stream of tokens."""
        return _first(self.tokens)

    def ranking(self, name: str | None = None) -> Tensor:
        """The map of the tokens of an input, or of the pixels of an image; see `Explanation.ranking`."""
        return _ranking(self.tokens, self.size, name)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The index, and what the method makes of each attention."""
        heat = None if self.size is None else self.heatmap(sample=sample)
        index = index_of_tokens("What attention looks at", self.token_relevance[sample], None, heat)
        return [index, *layer_maps("Attention by layer", self.attention_relevance, None, sample)]

    def heatmap(self, name: str | None = None, sample: int = 0) -> Float[Tensor, "height width"]:
        """The map of one image, its patches interpolated to the image's size; arguments as of `AttentionExplanation`."""
        return _heatmap(self.tokens, self.size, name, sample)


def _first(tokens: Mapping[str, Tensor], why_not: str = "") -> Tensor:
    if not tokens:
        raise ValueError(why_not or "no tokens are reached")
    return next(iter(tokens.values()))


def _ranking(tokens: Mapping[str, Tensor], size: Any, name: str | None, why_not: str = "") -> Tensor:
    """The map of the stream that an input is part of."""
    own = [values for stream, values in tokens.items() if name in stream.split("+")]
    values = own[0] if own else _first(tokens, why_not)
    return values if size is None else patches(values, *size)


def _heatmap(tokens: Mapping[str, Tensor], size: Any, name: str | None, sample: int, why_not: str = "") -> Tensor:
    values = _first(tokens, why_not) if name is None else tokens.get(name)
    if values is None:
        raise ValueError(f"no stream of tokens {name!r}: there are {', '.join(tokens)}")
    if size is None:
        raise ValueError("no input has the shape of images, (batch, channels, height, width): see token_relevance")
    return patches(values[sample : sample + 1], *size)[0]


# -- the harness ------------------------------------------------------------------------------------------------------


class _Measured:
    """A, its gradient and, where rules are given, its relevance, of every attention of one call."""

    def __init__(
        self,
        model: Any,
        inputs: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        target: Target,
        rules: Mapping[str, Rule] | None,
    ) -> None:
        model, args, keywords = arguments(model, inputs, kwargs)
        finite_inputs(args, keywords)
        wanted = asked(target)
        if wanted.several or wanted.starts[0].alone:
            raise ValueError(
                f"target {target!r} asks for several explanations, or for one without samples: ask for one a sample here"
            )
        call = PredictionCall(model, args, keywords, wanted)
        recorded, self.tensors, (self.chosen,) = call.prepare(slice(0, call.batch))
        self.call, self.batch = call, call.batch
        self.program = program = unfused(recorded)
        self.found = attentions(program)
        _, maps, gradients = weights_and_gradients(program, self.found, self.tensors, self.chosen)
        relevance: dict[str, Tensor] = {}
        self.result: Result | None = None
        if rules is not None:
            watch: dict[str, Callable[[Tensor], None]] = {a.node: _keeper(relevance, a.node) for a in self.found}
            self.result = _carried(program, rules).run(self.tensors, self.chosen, watch=watch)
            finite_result(self.result, model)
            batched(self.result.parts, self.batch)
        images = [t for t in self.tensors if t.ndim == 4 and t.is_floating_point()]
        self.size = list(images[0].shape[2:]) if images else None
        self.weights, self.gradients = self._laid_out(maps), self._laid_out(gradients)
        arrived = [relevance.get(a.node, torch.zeros_like(m)) for a, m in zip(self.found, maps, strict=True)]
        self.relevance = self._laid_out(arrived)
        self._windows = [in_windows(program, a, m, self.batch) for a, m in zip(self.found, maps, strict=True)]

    def _laid_out(self, values: Sequence[Tensor]) -> list[Tensor]:
        """In one layout, and in one dtype: relevance is carried in float32 where the model computes more coarsely."""
        wide = [v.to(torch.promote_types(v.dtype, torch.float32)) for v in values]
        return [heads(self.program, a, v, self.batch) for a, v in zip(self.found, wide, strict=True)]

    @property
    def rows(self) -> Tokens:
        """The tokens that the head reads."""
        return read_rows(self.found, self.gradients)

    def rollout(self, maps: Sequence[Tensor], **options: Any) -> Tokens:
        """The maps multiplied through, streams in the order of the inputs."""
        for attention, within in zip(self.found, self._windows, strict=True):
            if within:
                raise NoRollout(
                    f"{attention.path} attends within windows: its tokens are not those of the layers around it, and maps of "
                    "layers cannot be multiplied. attention_relevance has each layer's; termwise.explain has the input's"
                )
        return self.ordered(rollout(self.found, maps, self.rows, **options))

    def ordered(self, tokens: Tokens) -> Tokens:
        """Streams in the order of the inputs they are made of."""
        order = [held.name for held in self.program.placeholders.values() if held.kind == "input"]
        return {
            n: tokens[n]
            for n in sorted(tokens, key=lambda n: (len(order) if n == "constant" else order.index(n.split("+")[0]), n))
        }

    def readout(self, tokens: Tokens, maps: Sequence[Tensor]) -> AttentionReadout:
        """A sibling's result."""
        return AttentionReadout(tokens, by_path(self.found, list(maps)), self.call.index[0], self.size)


def _carried(program: Program, rules: Mapping[str, Rule]) -> Carried:
    """The pass of a program, rewritten once and kept with the recording."""
    key = ("carried", tuple(rules.items()))
    known: Carried | None = program.derived.get(key)
    if known is None:
        known = program.derived[key] = Carried(program, rules, start="one").of(None)
    return known.of(program.model)


def _keeper(into: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def keep(r: Tensor) -> None:
        into[name] = r.detach()

    return keep


# -- the methods ------------------------------------------------------------------------------------------------------


def chefer(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Target = None,
    start_layer: int = 0,
    normalize_rows: bool = False,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> AttentionExplanation:
    """Relevance-weighted attention rollout, over every softmax attention of the model: self, cross, causal, grouped.

    Args:
        model: a module in eval mode, or a function of tensors.
        *inputs: its positional arguments, batch first. A single mapping is passed as keywords.
        kwargs: its keyword arguments.
        target: what is explained, as in `termwise.explain`.
        start_layer: attentions of each stream before this one, counted from 0, are left out of the rollout.
        normalize_rows: divide each row of I + M by its sum (the paper's code does for BERT, and does not for ViT).
        names: the tokens, for pictures: one list per sample, or one list for one sample.
        classes: names of the classes.

    Returns:
        An `AttentionExplanation`: `whole` is 1 for every sample, the parts are the relevance of inputs and constants and
        what rules lost; `token_relevance`, `attention_relevance` and `heatmap()` read the attention layers.

    Raises:
        NoAttention: when no softmax attention is found.
        ValueError: as `termwise.explain`; for a start_layer that leaves nothing.

    Example:
        >>> class Tiny(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.qkv, self.head = torch.nn.Linear(4, 12), torch.nn.Linear(4, 3)
        ...     def forward(self, x):
        ...         q, k, v = self.qkv(x).chunk(3, -1)
        ...         x = x + torch.nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        ...         return self.head(x[:, 0])
        >>> why = tw.chefer(Tiny().eval(), torch.randn(2, 5, 4), target=1).check()
        >>> why.whole.tolist(), tuple(why.token_relevance.shape)
        ([1.0, 1.0], (2, 5))
    """
    measured = _Measured(model, inputs, kwargs, target, RULES)
    result = measured.result
    assert result is not None
    weighed = [(g * r).relu() for g, r in zip(measured.gradients, measured.relevance, strict=True)]
    tokens, why_not = {}, ""
    try:
        tokens = measured.rollout([m.mean(1) for m in weighed], start_layer=start_layer, normalize_rows=normalize_rows)
    except NoRollout as problem:
        why_not = str(problem)
    return AttentionExplanation(
        whole=result.whole,
        parts=result.parts,
        target=measured.call.index[0],
        rules="chefer",
        names=token_names(names, measured.batch),
        classes=class_names(classes, measured.call.index[0]),
        tokens=tokens,
        attention_relevance=by_path(measured.found, weighed),
        attention_weights=by_path(measured.found, measured.weights),
        picture=measured.size,
        why_not=why_not,
    )


def gradient_rollout(
    model: Any, *inputs: Any, kwargs: Mapping[str, Any] | None = None, target: Target = None, start_layer: int = 0
) -> AttentionReadout:
    """Rollout of mean_h relu(dy/dA * A): the authors' successor, which needs no relevance.

    Arguments, streams and errors as of `chefer`. Cost: one forward and one backward pass.
    Source: Chefer et al., ICCV 2021, arXiv 2103.15679, eq. 5, for self-attention; cross-attention by the joint rollout.
    """
    measured = _Measured(model, inputs, kwargs, target, None)
    maps = [(g * a).relu().mean(1) for g, a in zip(measured.gradients, measured.weights, strict=True)]
    return measured.readout(measured.rollout(maps, start_layer=start_layer), maps)


def attention_rollout(
    model: Any, *inputs: Any, kwargs: Mapping[str, Any] | None = None, target: Target = None, start_layer: int = 0
) -> AttentionReadout:
    """Rollout of mean_h A with rows of I + M normalised: the same whatever is explained, but for the tokens the head reads.

    Arguments, streams and errors as of `chefer`. Every row of tokens sums to 1 where there is one stream.
    Source: Abnar & Zuidema 2020, arXiv 2005.00928.
    """
    measured = _Measured(model, inputs, kwargs, target, None)
    maps = [a.mean(1) for a in measured.weights]
    return measured.readout(measured.rollout(maps, start_layer=start_layer, normalize_rows=True), maps)


def raw_attention(model: Any, *inputs: Any, kwargs: Mapping[str, Any] | None = None, target: Target = None) -> AttentionReadout:
    """The last attention alone: its rows that the head reads, heads averaged. Arguments and errors as of `chefer`."""
    measured = _Measured(model, inputs, kwargs, target, None)
    maps = [a.mean(1) for a in measured.weights]
    return measured.readout(measured.ordered(last_layer(measured.found, maps, measured.rows)), maps)


def attention_gradcam(
    model: Any, *inputs: Any, kwargs: Mapping[str, Any] | None = None, target: Target = None
) -> AttentionReadout:
    """GradCAM on the last attention: relu(sum_h w_h A_h / heads), w_h the mean over keys of dy/dA in the rows that are read.

    Arguments and errors as of `chefer`. Source: the baseline "GradCAM" of papers.toml "chefer".
    """
    measured = _Measured(model, inputs, kwargs, target, None)
    maps = []
    for attention, a, g in zip(measured.found, measured.weights, measured.gradients, strict=True):
        read = measured.rows.get(name(attention.queries)) if attention.read else None
        fits = read is not None and read.shape[1] == g.shape[2]  # tokens may have been merged since
        weight = torch.einsum("bq,bhqk->bhk", read, g).mean(2) if fits else g.mean((2, 3))
        maps.append((weight[:, :, None, None] * a).mean(1).relu())
    return measured.readout(measured.ordered(last_layer(measured.found, maps, measured.rows)), maps)


def partial_lrp(model: Any, *inputs: Any, kwargs: Mapping[str, Any] | None = None, target: Target = None) -> AttentionReadout:
    """Relevance that arrives at the last attention, heads averaged, in the rows that the head reads.

    Arguments and errors as of `chefer`, and its rules. Source: Voita et al. 2019, arXiv 1905.09418, as the baseline of
    papers.toml "chefer".
    """
    measured = _Measured(model, inputs, kwargs, target, RULES)
    maps = [r.mean(1) for r in measured.relevance]
    return measured.readout(measured.ordered(last_layer(measured.found, maps, measured.rows)), maps)
