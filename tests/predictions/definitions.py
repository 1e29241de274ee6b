"""Every rule a second time: slow, obvious, and without the machinery of the rules.

A definition gets a `Case` (an operator with its arguments, some of which are activations) and cotangents c of its
output; it returns the relevance of every active operand, entry by entry, what constants own, and what is lost.

The operators that are sums of products share one definition, `sum_of_products`: the contribution of one entry of one
operand is what the operator makes of that entry alone, all others zero. It is found by calling the operator, once per
entry. Everything else is written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

STATES = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


@dataclass
class Case:
    """An operator and its arguments; `active` are positions among the floating tensors, in order of the arguments."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    active: tuple[int, ...] = (0,)
    label: str = ""

    def __post_init__(self) -> None:
        self.leaves, self.spec = pytree.tree_flatten((tuple(self.args), dict(self.kwargs)))
        self.slots = [i for i, leaf in enumerate(self.leaves) if is_float(leaf)]
        self.leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]

    @property
    def name(self) -> str:
        """The operator without its overload."""
        return self.op._schema.name.partition("::")[2] if hasattr(self.op, "_schema") else self.op.__name__

    @property
    def tensors(self) -> list[Tensor]:
        """The floating tensors among the arguments."""
        return [self.leaves[i] for i in self.slots]

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with other floating tensors in place."""
        leaves = list(self.leaves)
        for slot, tensor in zip(self.slots, tensors, strict=True):
            leaves[slot] = tensor
        return pytree.tree_unflatten(leaves, self.spec)

    def __call__(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        """The operator's floating values, flattened into one real vector."""
        args, kwargs = self.arguments(self.tensors if tensors is None else tensors)
        return flat(self.op(*args, **kwargs))

    def __str__(self) -> str:
        shapes = ", ".join(f"{tuple(t.shape)}{'*' if i in self.active else ''}" for i, t in enumerate(self.tensors))
        rest = [leaf for i, leaf in enumerate(self.leaves) if i not in self.slots and not isinstance(leaf, Tensor)]
        return f"{self.op}({shapes}; {rest}) {self.label}"


@dataclass
class Relevance:
    """What a definition says: one tensor per active operand, the sum over constants, the sum that is lost."""

    inputs: list[Tensor]
    constants: float | Tensor = 0.0
    lost: float | Tensor = 0.0


Definition = Callable[[Case, Tensor], Relevance]

DEFINITIONS: dict[str, Definition] = {}
"""Operator -> the slow definition of its rule in the table."""


def defines(*ops: str) -> Callable[[Definition], Definition]:
    """Enter a definition for these operators."""

    def enter(function: Definition) -> Definition:
        for op in ops:
            assert op not in DEFINITIONS, op
            DEFINITIONS[op] = function
        return function

    return enter


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def real(value: Tensor) -> Tensor:
    """One real vector; a complex number is two."""
    value = value.detach().resolve_conj().resolve_neg()
    return (torch.view_as_real(value) if value.is_complex() else value).reshape(-1)


def flat(values: Any) -> Tensor:
    return torch.cat([real(v) for v in pytree.tree_leaves(values) if is_float(v)])


def entries(value: Tensor) -> Iterator[Tensor]:
    """The tensor with one real entry kept and all others zero, for every entry."""
    vector = real(value)
    for i in range(vector.numel()):
        one = torch.zeros_like(vector)
        one[i] = vector[i]
        yield unreal(one, value)


def unreal(vector: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        return torch.view_as_complex(vector.reshape(*like.shape, 2).contiguous())
    return vector.reshape(like.shape)


def folded(relevance: list[Tensor], value: Tensor) -> Tensor:
    """One number per entry, of a complex entry the sum of its two."""
    r = torch.stack(relevance) if relevance else value.new_zeros(0)
    return r.reshape(*value.shape, 2).sum(-1) if value.is_complex() else r.reshape(value.shape)


def finite(vector: Tensor) -> Tensor:
    return vector.masked_fill(~vector.isfinite(), 0)


# -- sums of products --------------------------------------------------------------------------------------------------


def sum_of_products(terms: Callable[[int], list[tuple[int, ...]]]) -> Definition:
    """y = f(0) + a sum of terms, each a product of some operands: of k active factors 1/k each.

    `terms(n)` groups the n floating operands. Where every operand is a term of its own, f is affine.
    """

    def definition(case: Case, c: Tensor) -> Relevance:
        tensors, active = case.tensors, set(case.active)
        zeros = [torch.zeros_like(t) for t in tensors]
        f0 = finite(case(zeros))  # an infinite fill is a mask
        result = {i: torch.zeros(tensors[i].shape, dtype=torch.float64) for i in active}
        constants, rebuilt = (f0 * c).sum(), f0.clone()
        for term in terms(len(tensors)):
            inside = [tensors[i] if i in term else zeros[i] for i in range(len(tensors))]
            value = finite(case(inside)) - f0
            rebuilt += value
            factors = [i for i in term if i in active]
            if not factors:
                constants = constants + (value * c).sum()
            for i in factors:
                found, total = [], torch.zeros_like(value)
                for entry in entries(tensors[i]):
                    contribution = finite(case([*inside[:i], entry, *inside[i + 1 :]])) - f0
                    total += contribution
                    found.append((contribution * c).sum() / len(factors))
                assert close(total, value), f"{case} is no sum of products of its operands"
                result[i] += folded(found, tensors[i])
        assert close(rebuilt, finite(case())), f"{case} is more than the sum of its terms"
        return Relevance([result[i] for i in case.active], constants)

    return definition


def close(a: Tensor, b: Tensor, rtol: float = 1e-11) -> bool:
    return bool((a - b).abs().max() <= rtol * (1 + b.abs().max())) if a.numel() else True


def each(n: int) -> list[tuple[int, ...]]:
    return [(i,) for i in range(n)]


def together(n: int) -> list[tuple[int, ...]]:
    return [tuple(range(n))]


affine = sum_of_products(each)
product = sum_of_products(together)
with_bias = sum_of_products(lambda n: [(0, 1), (2,)][: max(1, n - 1)])
bias_first = sum_of_products(lambda n: [(0,), (1, 2)])

defines(
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "numpy_T", "mT", "expand", "expand_as", "repeat", "squeeze",
    "unsqueeze", "flatten", "unflatten", "select", "slice", "narrow", "index", "index_select", "gather", "take",
    "take_along_dim", "flip", "roll", "rot90", "as_strided", "masked_select", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "tril", "triu", "diagonal", "diag", "diag_embed", "split", "split_with_sizes", "chunk", "unbind", "clone",
    "contiguous", "alias", "_to_copy", "to", "type_as", "lift_fresh", "lift_fresh_copy", "movedim", "swapaxes", "unfold",
    "unfold_copy", "im2col", "col2im", "repeat_interleave", "view_as_real", "view_as_complex", "_conj", "conj", "resolve_conj",
    "conj_physical", "_conj_physical", "real", "imag", "complex", "getitem", "detach", "view_copy", "expand_copy", "permute_copy",
    "_reshape_copy", "positive", "hstack", "vstack", "atleast_1d", "atleast_2d", "squeeze_", "broadcast_to", "tensor_split",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "_pad_circular", "block_diag", "dropout", "native_dropout", "alpha_dropout", "feature_dropout", "ravel", "resolve_neg",
    "nan_to_num", "embedding",
    "neg", "sum", "mean", "cumsum", "diff", "trace", "nansum", "nanmean", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_fft_r2c", "_fft_c2c", "_fft_c2r", "fft_fft", "fft_ifft", "fft_rfft",
    "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfft",
    "fft_ihfft", "fft_fftshift", "fft_ifftshift",
    "add", "sub", "rsub", "cat", "stack", "where", "masked_fill", "masked_scatter", "scatter", "scatter_add", "index_put",
    "_unsafe_index_put", "index_add", "index_copy", "index_fill", "select_scatter", "slice_scatter", "diagonal_scatter",
    "as_strided_scatter", "pad", "constant_pad_nd", "fill", "concat", "concatenate", "dstack", "column_stack",
)(affine)  # fmt: skip
defines(
    "mul", "mm", "bmm", "mv", "dot", "vdot", "matmul", "outer", "ger", "inner", "kron", "tensordot", "einsum", "linalg_cross", "cross", "expert_product",
    "chain_matmul", "linalg_vecdot", "_trilinear", "trapezoid", "embedding_bag", "_embedding_bag",
)(product)  # fmt: skip
defines(
    "linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "conv_tbc"
)(with_bias)
defines("addmm", "addmv", "addbmm", "baddbmm", "addr", "addcmul")(bias_first)
defines("rotary")(sum_of_products(lambda n: [(0, 1), (0, 2)]))
defines("bilinear")(sum_of_products(lambda n: [(0, 1, 2), (3,)][: n - 2]))


@defines("copy")
def copied(case: Case, c: Tensor) -> Relevance:
    """copy(x, src) is src, broadcast: what stood in x before is gone."""
    zero = torch.zeros(case.tensors[0].shape, dtype=torch.float64)
    alone = Case(case.op, case.args, case.kwargs, (1,))
    from_source = affine(alone, c)
    if 1 not in case.active:
        return Relevance([zero], (case() * c).sum())
    return Relevance([zero, *from_source.inputs] if 0 in case.active else from_source.inputs)


@defines("lerp")
def interpolated(case: Case, c: Tensor) -> Relevance:
    """a + w (b - a), w a constant: affine in a and b."""
    weight = case.tensors[2:]
    two = Case(lambda a, b, *w: case.op(a, b, *(w or case.args[2:])), (*case.tensors[:2],), {}, case.active)
    return affine(Case(lambda a, b: two.op(a, b, *weight), tuple(case.tensors[:2]), {}, case.active), c)


@defines("batch_norm")
def batch_norm(case: Case, c: Tensor) -> Relevance:
    """Running statistics: gamma (x - mu) / sqrt(var + eps) + beta, entry by entry."""
    x, weight, bias, mean, var, training, _, eps, _ = case.args
    if training:
        return normalised(x, ordinals(x, (1,)), along(weight, 1, x, True), along(bias, 0, x, True), eps, c)
    result, constants, c = torch.zeros_like(x), 0.0, c.reshape(x.shape)
    for k in range(x.shape[1]):
        gain = (1.0 if weight is None else weight[k].item()) / math.sqrt(var[k].item() + eps)
        offset = (0.0 if bias is None else bias[k].item()) - gain * mean[k].item()
        result[:, k] = x[:, k] * gain * c[:, k]
        constants += offset * c[:, k].sum().item()
    return Relevance([result], constants)


@defines("grid_sampler_2d", "grid_sampler_3d", "grid_sampler")
def sampled(case: Case, c: Tensor) -> Relevance:
    """Linear in the picture; where it is sampled is a position, which has no relevance."""
    picture = affine(Case(lambda x: case.op(x, *case.args[1:]), case.args[:1], {}, (0,)), c)
    if 0 not in case.active:
        return Relevance([torch.zeros_like(case.tensors[1])], picture.inputs[0].sum())
    return Relevance([picture.inputs[0], *(torch.zeros_like(case.tensors[i]) for i in case.active[1:])])


@defines("stft", "istft")
def spectral(case: Case, c: Tensor) -> Relevance:
    """Linear in the signal, whatever its windows."""
    return affine(Case(lambda x: case.op(x, *case.args[1:], **case.kwargs), case.args[:1], {}, (0,)), c)


# -- winners and functions of degree one -------------------------------------------------------------------------------


@defines(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "max", "min", "amax", "amin",
    "sort", "topk", "median", "nanmedian", "kthvalue", "mode", "cummax", "cummin", "aminmax", "msort",
)  # fmt: skip
def winners(case: Case, c: Tensor) -> Relevance:
    """Every output is the one input entry of the same value (the values are all different)."""
    if case.name in ("max", "min") and isinstance(case.args[-1], Tensor) and len(case.args) == 2:
        return two_operands(case, c)
    y = case()
    found, taken = {}, torch.zeros_like(y)
    for i, t in enumerate(case.tensors):
        same = (real(t)[:, None] == y[None]).double()
        taken += same.sum(0)
        found[i] = (same * real(t)[:, None] * c).sum(1).reshape(t.shape)
    assert bool((taken == 1).all()), f"{case}: the values of this case are not all different"
    return Relevance([found[i] for i in case.active], sum(found[i].sum() for i in found if i not in case.active))


def slope(case: Case, i: int, c: Tensor, step: float = 1e-3) -> Tensor:
    """d (y . c) / d x_i entry by entry, by differences over five points."""
    tensors, x = case.tensors, real(case.tensors[i])
    out = []
    for k in range(x.numel()):
        total = torch.zeros((), dtype=torch.float64)
        for at, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            moved = x.clone()
            moved[k] += at * step
            total += weight * (case([*tensors[:i], unreal(moved, tensors[i]), *tensors[i + 1 :]]) * c).sum() / (12 * step)
        out.append(total)
    return torch.stack(out).reshape(tensors[i].shape)


def derivative(fraction: float, *, conserves: bool = True) -> Definition:
    """R = fraction x df/dx by differences; the constant operands own the same of theirs, or what is left is lost."""

    def definition(case: Case, c: Tensor) -> Relevance:
        all_parts = [fraction * t * slope(case, i, c) for i, t in enumerate(case.tensors)]
        mine = [all_parts[i] for i in case.active]
        if not conserves:
            return Relevance(mine, 0.0, (case() * c).sum() - sum(p.sum() for p in mine))
        return Relevance(mine, sum(p.sum() for i, p in enumerate(all_parts) if i not in case.active))

    return definition


degree_one = derivative(1.0)
defines("linalg_matrix_norm", "std", "std_mean", "cdist", "_cdist_forward", "dist", "pdist", "_pdist_forward",
        "_euclidean_dist")(degree_one)  # fmt: skip
defines("var")(derivative(0.5))


@defines("angle")
def angle(case: Case, c: Tensor) -> Relevance:
    """An angle does not feel how long its number is: all is lost."""
    return Relevance([torch.zeros(case.tensors[0].shape, dtype=torch.float64)], 0.0, (case() * c).sum())


@defines("linalg_vector_norm", "linalg_norm", "norm", "frobenius_norm")
def vector_norm(case: Case, c: Tensor) -> Relevance:
    """Of degree one, except for the number of entries that are not 0, which is constant."""
    if 0 in case.args[1:2]:
        return Relevance([torch.zeros_like(case.tensors[0])], (case() * c).sum())
    return degree_one(case, c)


@defines("pairwise_distance")
def pairwise_distance(case: Case, c: Tensor) -> Relevance:
    """|a - b + eps|_p: of degree one in a, b and eps."""
    a, b = case.tensors
    _, _, p, eps, *keep = [*case.args, *(2.0, 1e-6)[len(case.args) - 2 :]]
    size = torch.tensor(eps, dtype=torch.float64)
    whole = Case(lambda a, b, e: torch.linalg.vector_norm(a - b + e, p, -1, *keep), (a, b, size), {}, case.active)
    parts = [t * slope(whole, i, c) for i, t in enumerate(whole.tensors)]
    return Relevance([parts[i] for i in case.active], sum(p.sum() for i, p in enumerate(parts) if i not in case.active))


@defines("renorm")
def held_denominator(case: Case, c: Tensor) -> Relevance:
    """x times a factor that is held constant."""
    return Relevance([(case() * c).reshape(case.tensors[0].shape)])


# -- element by element ------------------------------------------------------------------------------------------------


@defines(
    "gelu", "silu", "elu", "selu", "celu", "mish", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh",
    "acosh", "atanh", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "sigmoid",
    "softplus", "log_sigmoid", "hardtanh", "hardsigmoid", "hardswish", "relu6", "hardshrink", "softshrink",
    "erf", "erfc", "erfinv", "square", "clamp", "clamp_min", "clamp_max", "clip", "logit", "sinc",
    "pointwise", "lgamma", "digamma", "special_i0", "special_ndtr", "threshold", "special_log_ndtr", "special_erfcx", "frac", "special_expit",
    "special_entr", "fmod", "remainder", "deg2rad", "rad2deg", "special_i0e", "special_i1", "special_i1e", "pow",
    "relu", "leaky_relu", "abs", "_prelu_kernel", "prelu", "rrelu",
)  # fmt: skip
def element_by_element(case: Case, c: Tensor) -> Relevance:
    """R_i = c_i (f(x_i) - f(0)), with f(0) = 0 where that is infinite."""
    (position,) = case.active
    x, tensors = case.tensors[position], case.tensors
    if case.name == "prelu" and x.ndim > 2:  # its slopes lie along the channels
        slopes = tensors[1].reshape(-1, *[1] * (x.ndim - 2))
        return element_by_element(Case(lambda x: torch.where(x > 0, x, slopes * x), (x,)), c)
    y, f0 = first(case), first(case, [*tensors[:position], torch.zeros_like(x), *tensors[position + 1 :]])
    y, f0, cs = y.tolist(), f0.expand_as(y.clone()).reshape(-1).tolist(), c.tolist()
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    sources = torch.arange(x.numel()).reshape(x.shape)
    sources = (
        sources.expand(shape).reshape(-1).tolist() if x.ndim <= len(shape) and case.name not in ("prelu",) else range(x.numel())
    )
    result, constants = [0.0] * x.numel(), 0.0
    for j, (value, origin) in enumerate(zip(y, f0, strict=True)):
        if cs[j] == 0:
            continue
        origin = origin if math.isfinite(origin) else 0.0
        result[sources[j]] += cs[j] * (value - origin)
        constants += cs[j] * origin
    return Relevance([torch.tensor(result, dtype=torch.float64).reshape(x.shape)], constants)


def first(case: Case, tensors: Sequence[Tensor] | None = None) -> Tensor:
    args, kwargs = case.arguments(case.tensors if tensors is None else tensors)
    value = case.op(*args, **kwargs)
    return real(value[0] if isinstance(value, tuple) else value)


@defines("maximum", "minimum", "fmax", "fmin", "atan2", "logaddexp", "logaddexp2", "xlogy", "special_xlogy", "copysign", "hypot")
def two_operands(case: Case, c: Tensor) -> Relevance:
    """Of two activations the own derivative, by differences."""
    if len(case.active) == 1:
        return element_by_element(case, c)
    return derivative(1.0, conserves=case.name in ("max", "min", "maximum", "minimum", "fmax", "fmin", "copysign", "hypot"))(
        case, c
    )


@defines("sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside", "floor_divide", "nextafter")
def steps(case: Case, c: Tensor) -> Relevance:
    return Relevance([torch.zeros_like(case.tensors[i]) for i in case.active], (case() * c).sum())


# -- quotients, products of many ---------------------------------------------------------------------------------------


@defines("div", "true_divide")
def quotient(case: Case, c: Tensor) -> Relevance:
    """a (1 / b): half each, summed where one was broadcast."""
    if case.kwargs.get("rounding_mode"):
        return steps(case, c)
    shares = (case() * c).reshape(torch.broadcast_shapes(*(t.shape for t in case.tensors)))
    return Relevance([(shares / len(case.active)).sum_to_size(case.tensors[i].shape) for i in case.active])


@defines("glu")
def gated(case: Case, c: Tensor) -> Relevance:
    """a_i (s_i - 1/2) + a_i / 2, s the sigmoid of b: half of each product to a, the other to b and to the number 1/2."""
    x, dim = case.tensors[0], [*case.args, -1][1]
    a, b = x.chunk(2, dim)
    c = c.reshape(a.shape)
    s = 1 / (1 + (-b).exp())
    return Relevance([torch.cat([a * s * c / 2, a * (s - 0.5) * c / 2], dim)], (a * c / 4).sum())


def gated_by_constant(case: Case, c: Tensor) -> Relevance:
    """All to a."""
    x, dim = case.tensors[0], [*case.args, -1][1]
    a, b = x.chunk(2, dim)
    return Relevance([torch.cat([a / (1 + (-b).exp()) * c.reshape(a.shape), torch.zeros_like(b)], dim)])


@defines("linalg_solve")
def solution(case: Case, c: Tensor) -> Relevance:
    """A^-1 b: by differences, of degree -1 in A and 1 in b."""
    parts = [
        sign * t * slope(case, i, c) / len(case.active) for i, (t, sign) in enumerate(zip(case.tensors, (-1, 1), strict=True))
    ]
    return Relevance([parts[i] for i in case.active])


@defines("var_mean")
def variance_and_mean(case: Case, c: Tensor) -> Relevance:
    """Degree 2 in the first value, 1 in the second."""
    x, cut = case.tensors[0], len(c) // 2
    half = torch.cat([c[:cut] / 2, c[cut:]])
    return Relevance([x * slope(case, 0, half)])


@defines("prod", "cumprod")
def running_product(case: Case, c: Tensor) -> Relevance:
    """Every factor of a product gets the same part of its relevance, by walking through the factors."""
    x, dim = case.tensors[0], (case.args[1] if len(case.args) > 1 and isinstance(case.args[1], int) else None)
    rows = x.reshape(1, -1) if dim is None else x.movedim(dim, -1).reshape(-1, x.shape[dim] if x.ndim else 1)
    result = torch.zeros_like(rows)
    if case.name == "prod":
        for r, cc in zip(range(len(rows)), c.tolist(), strict=True):
            result[r] = math.prod(rows[r].tolist()) * cc / rows.shape[1]
    else:
        cs = c.reshape(x.shape).movedim(dim, -1).reshape(rows.shape)
        for r in range(rows.shape[0]):
            for k in range(rows.shape[1]):
                result[r, : k + 1] += math.prod(rows[r, : k + 1].tolist()) * cs[r, k] / (k + 1)
    moved = x if dim is None else x.movedim(dim, -1)
    result = result.reshape(moved.shape)
    return Relevance([result if dim is None else result.movedim(-1, dim)])


@defines("cosine_similarity")
def cosine(case: Case, c: Tensor) -> Relevance:
    """sum_i a_i b_i / (|a| |b|): half of each term to a_i and b_i."""
    a, b = torch.broadcast_tensors(*case.tensors)
    dim, eps = [*case.args[2:], *(1, 1e-8)[len(case.args) - 2 :]]
    size = (a.square().sum(dim).sqrt().clamp_min(eps) * b.square().sum(dim).sqrt().clamp_min(eps)).unsqueeze(dim)
    terms = a * b / size * c.reshape(size.shape) / len(case.active)
    return Relevance([terms.sum_to_size(case.tensors[i].shape) for i in case.active])


@defines("scatter_reduce")
def scatter_reduce(case: Case, c: Tensor) -> Relevance:
    _, _, _, _, how, *_ = case.args
    return winners(case, c) if how in ("amax", "amin") else affine(case, c)


# -- norms -------------------------------------------------------------------------------------------------------------


def normalised(
    x: Tensor, groups: Tensor, weight: Tensor, bias: Tensor, eps: float, c: Tensor, *, centre: bool = True
) -> Relevance:
    """y = w (x - mean) / sigma + b within each group of entries, with sigma a number: one matrix per group.

    `groups` numbers the entries of x; weight and bias are spread over x.
    """
    result = torch.zeros_like(x).reshape(-1)
    v, w, g, k = (t.reshape(-1) for t in (x, weight.expand_as(x), groups.expand_as(x), c.reshape(x.shape)))
    for number in g.unique():
        members = (g == number).nonzero()[:, 0]
        n, values = len(members), v[members]
        mean = values.sum() / n if centre else 0.0
        sigma = math.sqrt((values - mean).square().sum().item() / n + eps)
        matrix = torch.eye(n, dtype=x.dtype) - (1 / n if centre else 0.0)
        for i, member in enumerate(members):
            column = w[members] * matrix[:, i] / sigma  # d y / d x_i
            result[member] = values[i] * (column * k[members]).sum()
    return Relevance([result.reshape(x.shape)], (bias.expand_as(x) * c.reshape(x.shape)).sum())


def along(vector: Tensor | None, default: float, x: Tensor, channel: bool) -> Tensor:
    if vector is None:
        return torch.full_like(x, default)
    return (vector.reshape(-1, *[1] * (x.ndim - 2)) if channel else vector).expand_as(x)


def ordinals(x: Tensor, own: Sequence[int]) -> Tensor:
    """Number the entries of x by their position along the axes `own`."""
    shape = [x.shape[d] if d in own else 1 for d in range(x.ndim)]
    return torch.arange(math.prod(shape)).reshape(shape).expand(x.shape)


@defines("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def last_axes_norm(case: Case, c: Tensor) -> Relevance:
    if not hasattr(case.op, "_schema"):  # recognised from primitives
        x, weight = case.args
        return normalised(
            x, ordinals(x, range(x.ndim - 1)), along(weight, 1, x, False), torch.zeros_like(x), 1e-6, c, centre=False
        )
    x, shape, *rest = case.args
    weight, bias, eps = None, None, None
    if "rms" in case.name:
        weight, eps = [*rest, None, None][:2]
        eps = torch.finfo(x.dtype).eps if eps is None else eps
    else:
        weight, bias, eps = [*rest, None, None, None][:3]
        eps = 1e-5 if eps is None else eps
    groups = ordinals(x, range(x.ndim - len(shape)))
    c = c[: x.numel()]
    return normalised(x, groups, along(weight, 1, x, False), along(bias, 0, x, False), eps, c, centre="rms" not in case.name)


@defines("group_norm", "native_group_norm")
def group_norm(case: Case, c: Tensor) -> Relevance:
    if case.name == "group_norm":
        x, g, weight, bias, eps = [*case.args, None, None, 1e-5][:5] if len(case.args) < 5 else case.args[:5]
        eps = 1e-5 if eps is None else eps
    else:
        x, weight, bias, *_, g, eps = case.args
    per = x.shape[1] // g
    groups = ordinals(x, (0,)) * g + (torch.arange(x.shape[1]) // per).reshape(-1, *[1] * (x.ndim - 2))
    return normalised(x, groups, along(weight, 1, x, True), along(bias, 0, x, True), eps, c[: x.numel()])


@defines(
    "instance_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "native_batch_norm",
    "_batch_norm_with_update_functional",
)
def statistics_of_this_input(case: Case, c: Tensor) -> Relevance:
    x, weight, bias, *rest = case.args
    if case.name == "instance_norm":
        mean, var, use_input, _, eps, _ = rest
        own = (0, 1)
    else:
        use_input = next((r for r in rest if isinstance(r, bool)), "no_training" not in case.name)
        mean, var = [*(r for r in rest if isinstance(r, Tensor)), None, None][:2]
        eps, own = rest[-1], (1,)
    if not use_input:
        return batch_norm(Case(case.op, (x, weight, bias, mean, var, False, 0.0, eps, False)), c[: x.numel()])
    return normalised(x, ordinals(x, own), along(weight, 1, x, True), along(bias, 0, x, True), eps, c[: x.numel()])


# -- softmax and attention ---------------------------------------------------------------------------------------------


@defines("softmax", "_softmax", "special_softmax", "_safe_softmax", "_masked_softmax")
def softmax(case: Case, c: Tensor) -> Relevance:
    """AttnLRP: R_i = x_i (R_i - s_i sum_j R_j)."""
    x, dim = case.tensors[0], case.args[1]
    y = case().reshape(x.shape)
    if case.name == "_masked_softmax":
        dim = case.args[2] if len(case.args) > 2 and case.args[2] is not None else -1
    result = torch.zeros_like(x)
    rows = [t.movedim(dim, -1).reshape(-1, t.shape[dim] if t.ndim else 1) for t in (x, y, c.reshape(x.shape))]
    out = result.movedim(dim, -1) if x.ndim else result
    found = torch.zeros_like(rows[0])
    for r, (xs, s, cs) in enumerate(zip(*rows, strict=True)):
        above = s * cs
        for i in range(len(xs)):
            found[r, i] = (xs[i] * (above[i] - s[i] * above.sum())) if s[i] != 0 else 0.0
    out.copy_(found.reshape(out.shape))
    return Relevance([result], 0.0, (y.reshape(-1) * c).sum() - result.sum())


@defines("log_softmax", "_log_softmax", "special_log_softmax")
def log_softmax(case: Case, c: Tensor) -> Relevance:
    """x_i - log sum_j exp x_j: R_i = x_i (c_i - s_i sum_j c_j)."""
    x, dim = case.tensors[0], case.args[1]
    s, cs = x.exp() / x.exp().sum(dim, keepdim=True), c.reshape(x.shape)
    result = x * (cs - s * cs.sum(dim, keepdim=True))
    return Relevance([result], 0.0, (case() * c).sum() - result.sum())


@defines("logsumexp")
def logsumexp(case: Case, c: Tensor) -> Relevance:
    """R_i = x_i s_i c: lost is c times the entropy of the softmax."""
    x, dims = case.tensors[0], case.args[1]
    shifted = (x - x.amax(dims, keepdim=True)).exp()
    weights = shifted / shifted.sum(dims, keepdim=True)
    cs = c.reshape(weights.sum(dims, keepdim=True).shape)
    entropy = -(weights * weights.clamp_min(1e-300).log()).sum(dims, keepdim=True)
    return Relevance([x * weights * cs], 0.0, (entropy * cs).sum())


@defines("logcumsumexp")
def logcumsumexp(case: Case, c: Tensor) -> Relevance:
    x, dim = case.tensors[0], case.args[1]
    xs, cs = x.movedim(dim, -1), c.reshape(x.shape).movedim(dim, -1)
    result = torch.zeros_like(xs)
    for k in range(xs.shape[-1]):
        part = xs[..., : k + 1].exp()
        result[..., : k + 1] += xs[..., : k + 1] * part / part.sum(-1, keepdim=True) * cs[..., k : k + 1]
    return Relevance([result.movedim(-1, dim)], 0.0, (case() * c).sum() - result.sum())


def attention_matrices(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, float]:
    """q, k, v (repeated for grouped queries), scores, weights, the additive mask, the scale; all explicit."""
    q, k, v, mask, _, causal, *_ = [*case.args, *[None, 0.0, False][max(0, len(case.args) - 3) :]]
    mask, causal = case.kwargs.get("attn_mask", mask), case.kwargs.get("is_causal", causal)
    if case.kwargs.get("enable_gqa") or q.shape[-3] != k.shape[-3]:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scale = case.kwargs.get("scale") or 1 / math.sqrt(q.shape[-1])
    scores = (q @ k.mT) * scale
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    elif mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.nan_to_num(scores.exp() / scores.exp().sum(-1, keepdim=True))
    return q, k, v, scores, weights, mask, scale


@defines("scaled_dot_product_attention")
def attention(case: Case, c: Tensor) -> Relevance:
    """Three steps, each by its own definition: A v half each, softmax by AttnLRP, q k^T half each."""
    q, k, v, _scores, a, _, scale = attention_matrices(case)
    c = c.reshape((a @ v).shape)
    moving = set(case.active)
    through = bool(moving & {0, 1, 3})
    r_v = v * (a.mT @ c) * (1 / 2 if through else 1)
    r_a = a * (c @ v.mT) * (1 / 2 if 2 in moving else 1)
    ratio = torch.zeros_like(a)  # R of a score / score: R_a - a sum R_a
    for index in torch.cartesian_prod(*(torch.arange(n) for n in a.shape[:-1])).reshape(-1, a.ndim - 1).tolist():
        row = r_a[tuple(index)]
        ratio[tuple(index)] = row - a[tuple(index)] * row.sum()
    half = 1 / 2 if {0, 1} <= moving else 1
    r_q, r_k = q * scale * (ratio @ k) * half, k * scale * (ratio.mT @ q) * half
    found = {0: r_q, 1: r_k, 2: r_v}
    if 3 in moving:
        found[3] = (ratio * case.tensors[3].masked_fill(ratio == 0, 0)).sum_to_size(case.tensors[3].shape)
    parts = [ungroup(found[i], case.tensors[i]) for i in case.active]
    return Relevance(parts, 0.0, (case() * c.reshape(-1)).sum() - sum(p.sum() for p in parts))


def ungroup(value: Tensor, like: Tensor) -> Tensor:
    """Sum over the copies of keys and values that grouped queries shared."""
    if value.shape == like.shape:
        return value
    if value.ndim != like.ndim or value.shape[-3] == like.shape[-3]:
        return value.sum_to_size(like.shape)
    n = like.shape[-3]
    return value.unflatten(-3, (n, value.shape[-3] // n)).sum(-3).sum_to_size(like.shape)


def attention_with_constant_weights(case: Case, c: Tensor) -> Relevance:
    """CP-LRP: o = A v, A a constant."""
    _, _, v, _, a, _, _ = attention_matrices(case)
    c = c.reshape((a @ v).shape)
    if 2 not in case.active:
        return Relevance([torch.zeros_like(case.tensors[i]) for i in case.active], (case() * c.reshape(-1)).sum())
    value = ungroup(v * (a.mT @ c), case.tensors[2])
    return Relevance([value if i == 2 else torch.zeros_like(case.tensors[i]) for i in case.active])


# -- recurrent layers --------------------------------------------------------------------------------------------------


def squashed(z: Tensor) -> Tensor:
    """tanh with the ratio tanh(z) / z as its derivative."""
    ratio = torch.where(z == 0, torch.ones_like(z), torch.tanh(z) / torch.where(z == 0, torch.ones_like(z), z))
    return z * ratio.detach()


@defines("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(case: Case, c: Tensor) -> Relevance:
    """The cell as the textbook has it, one step after the other, gates detached."""
    x0, states, weights, has_bias, layers, _, _, both, batch_first = case.args
    kind = case.name
    leaf = x0.detach().clone().requires_grad_()
    # biases take part as leaves of their own: what a bias adds at a step is its value times the ratio there
    taken: list[tuple[Tensor, Tensor]] = []

    def bias(value: Tensor | None, like: Tensor) -> Tensor:
        if value is None:
            return torch.zeros_like(like)
        spread = value.detach().expand_as(like).clone().requires_grad_()
        taken.append((spread, spread.detach()))
        return spread

    x = leaf if batch_first else leaf.transpose(0, 1)
    position, state_index = 0, 0
    ends_h, ends_c = [], []
    for _ in range(layers):
        outputs = []
        for direction in range(2 if both else 1):
            w, u = weights[position], weights[position + 1]
            b1, b2 = (weights[position + 2], weights[position + 3]) if has_bias else (None, None)
            size = len(weights) // (layers * (2 if both else 1))
            projection = weights[position + size - 1] if size % 2 else None
            position += size
            hs = states[0] if kind == "lstm" else states
            h = state(hs[state_index], taken)
            cell = state(states[1][state_index], taken) if kind == "lstm" else None
            state_index += 1
            n = len(w) // {"lstm": 4, "gru": 3}.get(kind, 1)
            order = range(x.shape[1] - 1, -1, -1) if direction else range(x.shape[1])
            steps_: dict[int, Tensor] = {}

            def gate(k: int, xt: Tensor, h: Tensor, w=w, u=u, b1=b1, b2=b2, n=n) -> Tensor:
                rows = slice(k * n, (k + 1) * n)
                z = xt @ w[rows].T + h @ u[rows].T
                return torch.sigmoid(z + (0 if b1 is None else b1[rows] + b2[rows])).detach()

            for t in order:
                xt = x[:, t]
                rows = {"lstm": slice(2 * n, 3 * n), "gru": slice(2 * n, 3 * n)}.get(kind, slice(0, n))
                from_x, from_h = xt @ w[rows].T, h @ u[rows].T
                first_bias = bias(None if b1 is None else b1[rows], from_x)
                second_bias = bias(None if b2 is None else b2[rows], from_h)
                if kind == "lstm":
                    i, f, o = gate(0, xt, h), gate(1, xt, h), gate(3, xt, h)
                    cell = f * cell + i * squashed(from_x + first_bias + from_h + second_bias)
                    h = o * squashed(cell)
                    h = h if projection is None else h @ projection.T
                elif kind == "gru":
                    r, z = gate(0, xt, h), gate(1, xt, h)
                    h = (1 - z) * squashed(from_x + first_bias + r * (from_h + second_bias)) + z * h
                else:
                    pre = from_x + first_bias + from_h + second_bias
                    h = squashed(pre) if kind == "rnn_tanh" else torch.relu(pre)
                steps_[t] = h
            outputs.append(torch.stack([steps_[t] for t in range(x.shape[1])], 1))
            ends_h.append(h)
            ends_c.append(cell)
        x = torch.cat(outputs, -1)
    out = x if batch_first else x.transpose(0, 1)
    values = [out, torch.stack(ends_h), *([torch.stack(ends_c)] if kind == "lstm" else [])]
    y = torch.cat([v.reshape(-1) for v in values])
    assert close(y.detach(), case())
    grads = torch.autograd.grad((y * c).sum(), [leaf, *(s for s, _ in taken)], allow_unused=True)
    constants = sum((v * g).sum() for (_, v), g in zip(taken, grads[1:], strict=True) if g is not None)
    return Relevance([x0 * grads[0]], constants)


@defines("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent_cell(case: Case, c: Tensor) -> Relevance:
    """A layer of one step: it gives its output beside the last state, and only the state is read."""
    x, states, *weights = case.args
    layer = getattr(torch.ops.aten, case.name.removesuffix("_cell")).input
    states = [s[None] for s in states] if case.name == "lstm_cell" else states[None]
    present = [w for w in weights if w is not None]
    steps = Case(layer, (x[:, None], states, present, len(present) == 4, 1, 0.0, False, False, True))
    found = recurrent(steps, torch.cat([c.new_zeros(len(x) * weights[1].shape[1]), c]))
    return Relevance([found.inputs[0][:, 0]], found.constants)


def state(value: Tensor, taken: list[tuple[Tensor, Tensor]]) -> Tensor:
    leaf = value.detach().clone().requires_grad_()
    taken.append((leaf, leaf.detach()))
    return leaf


# -- rules of the sets -------------------------------------------------------------------------------------------------


def softmax_constant(case: Case, c: Tensor) -> Relevance:
    return Relevance([torch.zeros_like(case.tensors[0])], (case() * c).sum())


def logarithmic_constant(case: Case, c: Tensor) -> Relevance:
    """CP-LRP: the relevance of the own derivative; what that loses is the entropy of the softmax, a constant."""
    found = DEFINITIONS[case.name](case, c)
    return Relevance(found.inputs, found.lost)


def own_derivative(case: Case, c: Tensor) -> Relevance:
    return derivative(1.0, conserves=False)(case, c)


def contributions(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """x_i w_ij as a matrix (outputs, inputs), b_j along the outputs, z = sum_i x_i w_ij + b_j."""
    position = 1 if case.name.startswith("addmm") else 0
    tensors = case.tensors
    zeros = [torch.zeros_like(t) if i in (position, 2 if position == 0 else 0) else t for i, t in enumerate(tensors)]
    columns = [case([*zeros[:position], e, *zeros[position + 1 :]]) for e in entries(tensors[position])]
    at_zero = case([*tensors[:position], torch.zeros_like(tensors[position]), *tensors[position + 1 :]])
    return torch.stack(columns, 1), at_zero, case()


def epsilon(size: float) -> Definition:
    """R_ij = x_i w_ij R_j / (z_j + eps sign z_j); any operation's own definition, with that in place of R_j / z_j."""

    def definition(case: Case, c: Tensor) -> Relevance:
        m, b, z = contributions(case)
        signs = torch.where(z < 0, -1.0, 1.0)
        r = z * c / (z + size * signs)
        return split(case, (m * r[:, None]).sum(0), (b * r).sum(), z, c)

    return definition


def damped(definition: Definition, size: float) -> Definition:
    """LRP-epsilon of any operation: its own definition of a smaller relevance."""

    def definition_(case: Case, c: Tensor) -> Relevance:
        y = case()
        found = definition(case, c * y.abs() / (y.abs() + size))
        return Relevance(found.inputs, found.constants, found.lost + (y * c * size / (y.abs() + size)).sum())

    return definition_


def gamma(size: float) -> Definition:
    """Contributions of the output's own sign count 1 + gamma, in numerator and denominator alike."""

    def definition(case: Case, c: Tensor) -> Relevance:
        m, b, z = contributions(case)
        found, constants = torch.zeros_like(m[0]), 0.0
        for j in range(len(z)):
            positive = z[j] >= 0
            weigh = lambda v, up=positive: v + size * (v.clamp_min(0) if up else v.clamp_max(0))
            den = (weigh(m[j]).sum() + weigh(b[j])).item()
            if den == 0:
                found += m[j] * c[j] * (1 + size / 2)
                constants += (b[j] * c[j]).item()
                continue
            found += weigh(m[j]) * (z[j] * c[j] / den)
            constants += (weigh(b[j]) * z[j] * c[j] / den).item()
        return split(case, found, constants, z, c, conserves=True)

    return definition


def zplus(case: Case, c: Tensor) -> Relevance:
    """Only positive contributions receive, and a positive bias."""
    m, b, z = contributions(case)
    found, constants = torch.zeros_like(m[0]), 0.0
    for j in range(len(z)):
        p, bias = m[j].clamp_min(0), b[j].clamp_min(0)
        den = (p.sum() + bias).item()
        if den > 4 * torch.finfo(m.dtype).eps * m[j].abs().sum().item() or bias > 0:
            found += p * (z[j] * c[j] / den)
            constants += (bias * z[j] * c[j] / den).item()
    return split(case, found, constants, z, c)


def split(case: Case, found: Tensor, constants: Any, z: Tensor, c: Tensor, *, conserves: bool = False) -> Relevance:
    position = 1 if case.name.startswith("addmm") else 0
    lost = 0.0 if conserves else (z * c).sum() - found.sum() - constants
    return Relevance([found.reshape(case.tensors[position].shape)], constants, lost)


Term = tuple[float, Callable[[Tensor, bool], Tensor]]
"""A share of the relevance, and what weighs a contribution (of an output of this sign, True for positive)."""

TERMS: dict[str, Callable[..., list[Term]]] = {
    "zero": lambda: [(1.0, lambda v, up: v)],
    "epsilon": lambda: [(1.0, lambda v, up: v)],
    "gamma": lambda g: [(1.0, lambda v, up: v + g * (v.clamp_min(0) if up else v.clamp_max(0)))],
    "z+": lambda: [(1.0, lambda v, up: v.clamp_min(0))],
    "alpha-beta": lambda a, b: [(a, lambda v, up: v.clamp_min(0)), (-b, lambda v, up: v.clamp_max(0))],
}
"""Rules for affine operations as they are published: each share in proportion to weighed contributions."""


def proportions(
    m: Tensor, b: Tensor, relevance: Tensor, terms: list[Term], stabilizer: float = 0.0, biases: str = "parts"
) -> tuple[Tensor, Tensor]:
    """Relevance of inputs and of the bias, of each output on its own: R_ij = share * w(m_ij) / (sum w(m_j) + w(b_j)) R_j."""
    found, owned = torch.zeros_like(m[0]), torch.zeros_like(b)
    for j in range(len(m)):
        offset = torch.zeros_like(b[j]) if biases == "zero" else b[j]
        up = bool(m[j].sum() + offset >= 0)
        mine = torch.zeros(())
        for share, weigh in terms:
            w, w_bias = weigh(m[j], up), weigh(offset, up)
            size = m[j].abs().sum() + offset.abs()
            den = w.sum() + w_bias
            if den.abs() <= 4 * torch.finfo(m.dtype).eps * size:  # nothing but rounding
                continue
            den = den + stabilizer * (1.0 if den >= 0 else -1.0)
            found += share * w / den * relevance[j]
            mine = mine + share * w_bias / den * relevance[j]
        if biases == "distribute":
            if m[j].abs().sum() > 0:
                found += mine * m[j].abs() / m[j].abs().sum()
        else:
            owned[j] = mine
    return found, owned


def affine_rule(terms: list[Term], stabilizer: float = 0.0, biases: str = "parts") -> Definition:
    """A rule of `TERMS`, or one like it."""

    def definition(case: Case, c: Tensor) -> Relevance:
        m, b, z = contributions(case)
        found, owned = proportions(m, b, z * c, terms, stabilizer, biases)
        return split(case, found, owned.sum(), z, c)

    return definition


def with_operands(case: Case, x: Tensor | None = None, weight: Tensor | None = None) -> Case:
    """The affine operation on another input or weight."""
    first = 1 if case.name.startswith("addmm") else 0
    given = {first: x, first + 1: weight}
    tensors = [t if given.get(i) is None else given[i] for i, t in enumerate(case.tensors)]
    args, kwargs = case.arguments(tensors)
    return Case(case.op, args, kwargs, case.active)


def operands(case: Case) -> tuple[Tensor, Tensor]:
    first = 1 if case.name.startswith("addmm") else 0
    return case.tensors[first], case.tensors[first + 1]


def region(kind: str, low: Tensor | float = 0.0, high: Tensor | float = 0.0, stabilizer: float = 0.0) -> Definition:
    """w^2, flat and z-box: contributions are those of squared weights, of ones, of distances to an end of the range."""

    def definition(case: Case, c: Tensor) -> Relevance:
        x, weight = operands(case)
        _, b, z = contributions(case)
        w, _, _ = contributions(with_operands(case, torch.ones_like(x)))  # w_ij; 0 where i is no input of j
        if kind == "w2":
            m, b = w.square(), b.square()
        elif kind == "flat":
            m, _, _ = contributions(with_operands(case, torch.ones_like(x), torch.ones_like(weight)))
            m, b = (m != 0).double(), torch.zeros_like(b)
        else:
            ends = [torch.as_tensor(e, dtype=x.dtype).expand_as(x).reshape(-1) for e in (low, high)]
            m = x.reshape(-1) * w - ends[0] * w.clamp_min(0) - ends[1] * w.clamp_max(0)
            b = torch.zeros_like(b)
        found, owned = proportions(m, b, z * c, TERMS["zero"](), stabilizer)
        return split(case, found, owned.sum(), z, c)

    return definition


def unchanged(case: Case, c: Tensor) -> Relevance:
    """R_x = R_y, entry by entry; what falls on a zero is lost."""
    x = case.tensors[0]
    r = (case() * c).reshape(x.shape).masked_fill(x == 0, 0)
    return Relevance([r], 0.0, (case() * c).sum() - r.sum())


def absolute(case: Case, c: Tensor) -> Relevance:
    """Summands share R by size. An entry's summand is what the sum makes of that entry alone."""
    z = case()
    summands = {}
    for i, t in enumerate(case.tensors):
        zeros = [torch.zeros_like(v) for v in case.tensors]
        at_zero = case(zeros)
        summands[i] = torch.stack([case([*zeros[:i], e, *zeros[i + 1 :]]) - at_zero for e in entries(t)]).abs()
    rest = case([torch.zeros_like(v) for v in case.tensors]).abs()  # a Python number
    total = sum(s.sum(0) for s in summands.values()) + rest
    r = torch.where(total == 0, 0, z * c / total)
    relevance = {i: (s * r).sum(1).reshape(case.tensors[i].shape) for i, s in summands.items()}
    constants = (rest * r).sum() + sum(v.sum() for i, v in relevance.items() if i not in case.active)
    return Relevance([relevance[i] for i in case.active], constants)


def rectified(case: Case, c: Tensor, *, guided: bool) -> Relevance:
    """DeconvNet and guided backpropagation at a ReLU: only positive ratios pass, in the latter where x was positive."""
    x = case.tensors[0]
    c = c.reshape(x.shape)
    r = x * c.clamp_min(0) * ((x > 0) if guided else 1)
    return Relevance([r], 0.0, (x.clamp_min(0) * c).sum() - r.sum())


def subsets(positions: Sequence[int]) -> list[tuple[int, ...]]:
    """Every choice of at least one position."""
    return list(chain.from_iterable(combinations(positions, n) for n in range(1, len(positions) + 1)))
