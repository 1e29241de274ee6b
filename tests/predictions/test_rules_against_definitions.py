"""Each rule in the table, and each rule of the sets, against its slow definition in `definitions.py`.

The arguments come from torch's own records of its operators (OpInfo) where there are some: the samples are traced, and
every operator in the trace that the table knows is taken with the arguments it was called with, exactly as a Program
has them. For every case: the value is the operator's, relevance and constants and losses are those of the definition,
and everything together is what arrived.
"""

from __future__ import annotations

import functools
import itertools
import json
import operator
import sys
import types
import unittest
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import definitions
import pytest
import torch
import torch.utils._pytree as pytree
from definitions import DEFINITIONS, Case, Definition, flat, is_float, subsets
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from termwise.core.composite import Composite
from termwise.predictions.ledger import Ledger, Site
from termwise.predictions.rules import LOSSY, RULE_SETS, RULES, epsilon, gamma, zplus
from termwise.predictions.rules.attention import attention_constant, softmax_constant
from termwise.predictions.rules.products import signal_takes_all
from termwise.predictions.rules.splitting import own_derivative

aten = torch.ops.aten
SAMPLES, ENTRIES = 5, 1200  # per OpInfo; floating numbers in the arguments of one case


# -- running a rule alone ----------------------------------------------------------------------------------------------


def run(rule: Any, case: Case, c: Tensor, *, measured: bool = True, **place: Any) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Value, relevance of the active operands, sum over constants, sum over losses; by the rule."""
    ledger = Ledger(1)
    leaves = [t.detach().clone().requires_grad_(i in case.active) for i, t in enumerate(case.tensors)]
    args, kwargs = case.arguments(leaves)
    y = Site(rule, case.op, name="op@here", path="here", measured=measured, **place)(ledger, *args, **kwargs)
    outputs, cs = [], []
    for value in (v for v in pytree.tree_leaves(y) if is_float(v)):
        part, c = c.split([definitions.real(value).numel(), c.numel() - definitions.real(value).numel()])
        if value.requires_grad:
            outputs.append(value)
            cs.append(definitions.unreal(part, value))
        else:
            assert not part.any(), "relevance arrives at a value that nothing leads back from"
    wanted = [leaves[i] for i in case.active]
    grads = torch.autograd.grad(outputs, [*wanted, *(leaf for leaf, _ in ledger.constants)], cs, allow_unused=True)
    for (_, book), g in zip(ledger.constants, grads[len(wanted) :], strict=True):
        if g is not None:
            book(g)
    found = [
        torch.zeros(x.shape, dtype=torch.float64) if g is None else definitions.finite((x.conj() * g).real if x.is_complex() else x * g)
        for x, g in zip((w.detach() for w in wanted), grads, strict=False)
    ]
    sums = {True: torch.zeros((), dtype=torch.float64), False: torch.zeros((), dtype=torch.float64)}
    for name, part in ledger.parts().items():
        assert part.shape[0] == 1, f"{name} has no sample axis"
        sums[name.startswith("rule:")] += part.sum()
    return flat(y), found, sums[False], sums[True]


def check(rule: Any, definition: Definition, case: Case, *, tolerance: float = 1e-9, **place: Any) -> None:
    """The four together: value, definition, conservation, and no loss where none is declared."""
    y = case()
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
    c = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    c[~y.isfinite()] = 0
    c[_unread(case, y) :] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = definition(case, c)
    arrived = definitions.finite(y) * c
    scale = 1 + arrived.abs().sum()
    value, found, constants, lost = run(rule, case, c, **place)
    finite = y.isfinite()
    assert torch.equal(value.isfinite(), finite)
    assert (value - y)[finite].abs().le(1e-12 * (1 + y[finite].abs().max() if finite.any() else 1)).all(), f"value of {case}"
    for i, ours, theirs in zip(case.active, found, wanted.inputs, strict=True):
        assert ours.shape == theirs.shape
        bound = tolerance * (scale + theirs.abs().max() if theirs.numel() else 1)
        assert (ours - theirs).abs().le(bound).all(), f"relevance of operand {i} of {case}:\n{ours}\nfor\n{theirs}"
    total = sum(r.sum() for r in found) + constants
    size = scale + sum(r.abs().sum() for r in found)
    assert (constants - wanted.constants).abs() <= tolerance * size, f"constants of {case}: {constants} for {wanted.constants}"
    assert (lost - wanted.lost).abs() <= tolerance * size, f"losses of {case}: {lost} for {wanted.lost}"
    assert (total + lost - arrived.sum()).abs() <= 1e-12 * size, f"{case}: {arrived.sum()} arrived, {total + lost} went on"
    if rule not in LOSSY:
        assert (total - arrived.sum()).abs() <= 1e-12 * size, f"{case} loses relevance, and its rule is not marked lossy"
        unmeasured = run(rule, case, c, measured=False, **place)
        assert unmeasured[3] == 0
        assert all(torch.equal(a, b) for a, b in zip(unmeasured[1], found, strict=True))


def _unread(case: Case, y: Tensor) -> int:
    """How many of the values are read: not the statistics that fused norms and samplers return beside theirs."""
    if case.name.startswith(("native_", "_native_", "_fused_rms", "_batch_norm", "log_sigmoid_f", "_embedding_bag")):
        args, kwargs = case.arguments(case.tensors)
        return definitions.real(case.op(*args, **kwargs)[0]).numel()
    return y.numel()


# -- where cases come from ---------------------------------------------------------------------------------------------

ELSEWHERE = {
    "upsample_nearest1d": "nn.functional.interpolate", "_upsample_nearest_exact1d": "nn.functional.interpolate",
    "upsample_linear1d": "nn.functional.interpolate", "upsample_bilinear2d": "nn.functional.interpolate",
    "upsample_bicubic2d": "nn.functional.interpolate", "upsample_trilinear3d": "nn.functional.interpolate",
    "upsample_nearest2d": "nn.functional.upsample_nearest", "index": "__getitem__", "index_put": "index_put",
    "feature_dropout": "nn.functional.dropout2d", "detach": "nn.functional.embedding", "im2col": "nn.functional.unfold",
    "max_pool1d_with_indices": "nn.functional.max_pool1d", "max_pool2d_with_indices": "nn.functional.max_pool2d",
    "max_pool3d_with_indices": "nn.functional.max_pool3d", "log_sigmoid": "nn.functional.logsigmoid", "numpy_T": "T",
    "_safe_softmax": "torch.ops.aten._safe_softmax.default", "lift_fresh_copy": "__getitem__", "to": "masked.var", "rsub": "rsub",
    "linalg_vector_norm": "linalg.vector_norm", "take": "take", "grid_sampler_2d": "nn.functional.grid_sample",
    "grid_sampler": "nn.functional.grid_sample", "embedding": "nn.functional.embedding", "mT": "svd_lowrank",
}  # fmt: skip
"""Operators that go by another name in torch's records."""


@functools.cache
def records() -> dict[str, list[Any]]:
    # torch's test utilities import this package for a base class of test cases, which is not needed here
    stand_in = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
    sys.modules.setdefault("expecttest", stand_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    found: dict[str, list[Any]] = {}
    for record in op_db:
        if torch.float64 not in record.supported_dtypes("cpu") or not record.supports_autograd:
            continue
        for name in {record.name, *(a.name for a in record.aliases), record.aten_name or record.name}:
            for spelled in {name, name.removeprefix("nn.functional.").replace(".", "_")}:
                found.setdefault(spelled, []).append(record)
    return found


def traced(name: str) -> Iterator[Case]:
    """The operator as it is called in torch's own samples, the smallest first."""
    found = {str(case): case for case in _all_traced(name)}
    yield from sorted(found.values(), key=lambda case: sum(t.numel() for t in case.tensors) + (case.kwargs == {}))


def _all_traced(name: str) -> Iterator[Case]:
    for record in {id(r): r for r in (*records().get(name, ()), *records().get(ELSEWHERE.get(name, ""), ()))}.values():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            samples = iter(record.sample_inputs("cpu", torch.float64, requires_grad=False))
            for sample in itertools.islice(samples, 3 * SAMPLES):
                yield from _nodes(record.op, sample, name)


def _nodes(op: Any, sample: Any, name: str) -> list[Case]:
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if sum(leaves[i].numel() for i in slots) > 2 * ENTRIES:
        return []

    def function(*tensors: Tensor) -> Any:
        full = list(leaves)
        for i, t in zip(slots, tensors, strict=True):
            full[i] = t
        x, args, kwargs = pytree.tree_unflatten(full, spec)
        return op(x, *args, **kwargs)

    tensors = [leaves[i] for i in slots]
    try:
        graph = make_fx(function, pre_dispatch=True)(*tensors)
    except Exception:  # samples that decide by a number cannot be traced; others of the same operator can
        return []
    found: list[Case] = []

    class Reader(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if isinstance(target, torch._ops.OpOverload) and target._schema.name == f"aten::{name}":
                found.append(Case(target, args, kwargs))
            return super().call_function(target, args, kwargs)

    with torch.no_grad():
        Reader(graph).run(*tensors)
    return [c for c in found if c.tensors and sum(t.numel() for t in c.tensors) <= ENTRIES]


G = torch.Generator()


def r(*shape: int, positive: bool = False, complex: bool = False) -> Tensor:
    x = torch.randn(*shape, generator=G, dtype=torch.complex128 if complex else torch.float64)
    return x.abs() + 0.1 if positive else x


def _lstm_weights(kind: int, n: int, hidden: int, *, layers: int, both: bool, bias: bool, scale: float = 0.5) -> list[Tensor]:
    found = []
    for layer in range(layers):
        for _ in range(1 + both):
            size = n if layer == 0 else hidden * (1 + both)
            found += [r(kind * hidden, size) * scale, r(kind * hidden, hidden) * scale]
            found += [r(kind * hidden) * scale, r(kind * hidden) * scale] if bias else []
    return found


def _recurrent(op: Any, kind: int) -> list[Case]:
    cases = []
    for layers, both, bias, batch_first in ((1, False, True, True), (2, True, True, False), (1, True, False, True)):
        shape = (1, 4, 3) if batch_first else (4, 1, 3)
        states = [r(layers * (1 + both), 1, 2) for _ in range(2 if op is aten.lstm.input else 1)]
        weights = _lstm_weights(kind, 3, 2, layers=layers, both=both, bias=bias)
        cases.append(Case(op, (r(*shape), states if len(states) > 1 else states[0], weights, bias, layers, 0.0, False, both, batch_first)))
    return cases


def _composite(kind: str, function: Any, *examples: Tensor, held: tuple[str, ...] = ()) -> Composite:
    graph = make_fx(function)(*examples).graph
    names = [n.name for n in graph.nodes if n.op == "call_function" and getattr(n.target, "_opname", "") in held]
    return Composite(kind, graph, names)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def _by_hand() -> dict[str, Any]:
    """Arguments for operators (or forms of them) that torch's records do not reach. One function per operator."""
    x234 = lambda: r(1, 2, 3, 4)
    norm = lambda x, weight: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
    quick = lambda x: x * torch.sigmoid(1.702 * x)
    plus_one = lambda x: torch.exp(x) * 2 + x
    mask = torch.tensor([[[[True, True, False], [True, False, True]]]])
    return {
        "_softmax": lambda: [Case(aten._softmax.default, (r(2, 3), d, False)) for d in (0, -1)],
        "special_softmax": lambda: [Case(aten.special_softmax.default, (r(2, 3), 1))],
        "_safe_softmax": lambda: [Case(aten._safe_softmax.default, (r(2, 3).masked_fill(torch.eye(2, 3).bool(), -torch.inf), -1))],
        "softmax": lambda: [Case(aten.softmax.int, (r(2, 3), -1)), Case(aten.softmax.int, (r(2, 3), 0, torch.float64))],
        "_log_softmax": lambda: [Case(aten._log_softmax.default, (r(2, 3), 1, False))],
        "special_log_softmax": lambda: [Case(aten.special_log_softmax.default, (r(2, 3), 1))],
        "_masked_softmax": lambda: [Case(aten._masked_softmax.default, (r(1, 1, 2, 3), ~mask, -1, 2))],
        "scaled_dot_product_attention": lambda: _attention_cases(),
        "clip": lambda: [Case(aten.clip.default, (r(9), 0.3, 0.8)), Case(aten.clip.default, (r(9), -0.5))],
        "clamp": lambda: [Case(aten.clamp.default, (r(9), 0.2)), Case(aten.clamp.Tensor, (r(9), r(9) - 2, r(9) + 1))],
        "pointwise": lambda: [Case(_composite("pointwise", f, r(5)), (r(5),)) for f in (quick, plus_one)],
        "special_i0": lambda: [Case(aten.special_i0.default, (r(5),))],
        "special_expit": lambda: [Case(aten.special_expit.default, (r(5),))],
        "special_xlogy": lambda: [Case(aten.special_xlogy.default, (r(5), r(5, positive=True)))],
        "heaviside": lambda: [Case(aten.heaviside.default, (r(5), r(5)))],
        "floor_divide": lambda: [Case(aten.floor_divide.default, (r(5), r(5)))],
        "_unsafe_view": lambda: [Case(aten._unsafe_view.default, (r(2, 6), [3, 4]))],
        "contiguous": lambda: [Case(aten.contiguous.default, (r(2, 3),))],
        "alias": lambda: [Case(aten.alias.default, (r(2, 3),))],
        "_to_copy": lambda: [Case(aten._to_copy.default, (r(2, 3),), {"dtype": torch.float64})],
        "type_as": lambda: [Case(aten.type_as.default, (r(2, 3), r(2).detach()), {}, (0,))],
        "lift_fresh": lambda: [Case(aten.lift_fresh.default, (r(2),))],
        "lift_fresh_copy": lambda: [Case(aten.lift_fresh_copy.default, (r(2),))],
        "to": lambda: [Case(aten.to.dtype, (r(2, 3), torch.float64))],
        "swapaxes": lambda: [Case(aten.swapaxes.default, (r(2, 3), 0, 1))],
        "col2im": lambda: [Case(aten.col2im.default, (r(1, 8, 4), [3, 3], [2, 2], [1, 1], [0, 0], [1, 1]))],
        "view_as_real": lambda: [Case(aten.view_as_real.default, (r(2, 3, complex=True),))],
        "_conj": lambda: [Case(aten._conj.default, (r(2, 3, complex=True),))],
        "conj": lambda: [Case(aten.conj.default, (r(2, 3, complex=True),))],
        "conj_physical": lambda: [Case(aten.conj_physical.default, (r(2, 3, complex=True),))],
        "_conj_physical": lambda: [Case(aten._conj_physical.default, (r(2, 3, complex=True),))],
        "resolve_conj": lambda: [Case(aten.resolve_conj.default, (r(2, 3, complex=True),))],
        "real": lambda: [Case(aten.real.default, (r(2, 3, complex=True),))],
        "imag": lambda: [Case(aten.imag.default, (r(2, 3, complex=True),))],
        "mul": lambda: [Case(aten.mul.Tensor, (r(2, 3, complex=True), r(3, complex=True))), Case(aten.mul.Tensor, (r(2, 3), r(1, 3))),
                        Case(aten.mul.Scalar, (r(3), 2.5))],
        "add": lambda: [Case(aten.add.Tensor, (r(2, 3), 2.5)), Case(aten.add.Tensor, (r(2, 3), r(3)), {"alpha": 3})],
        "sub": lambda: [Case(aten.sub.Tensor, (r(2, 3), 2.5)), Case(aten.sub.Tensor, (r(2, 3), r(3)), {"alpha": 3}),
                        Case(aten.sub.Scalar, (r(2, 3), 2.5, 2))],
        "rsub": lambda: [Case(aten.rsub.Scalar, (r(2, 3), 2.5)), Case(aten.rsub.Scalar, (r(2, 3), 2.5, 3)),
                         Case(aten.rsub.Tensor, (r(2, 3), r(3)), {"alpha": 3})],
        "getitem": lambda: [Case(operator.getitem, ((r(2, 3), r(2)), 0), {}, (0,))],
        "detach": lambda: [Case(aten.detach.default, (r(2),))],
        "_reshape_copy": lambda: [Case(aten._reshape_copy.default, (r(2, 3), [6]))],
        "squeeze_": lambda: [Case(lambda x: aten.squeeze(x), (r(2, 1),))],
        "copy": lambda: [Case(aten.copy.default, (r(2, 3), r(3)))],
        "reflection_pad1d": lambda: [Case(aten.reflection_pad1d.default, (r(1, 2, 4), [1, 2]))],
        "reflection_pad2d": lambda: [Case(aten.reflection_pad2d.default, (r(1, 2, 3, 4), [1, 2, 1, 0]))],
        "reflection_pad3d": lambda: [Case(aten.reflection_pad3d.default, (r(1, 1, 3, 3, 2), [1, 1, 1, 0, 0, 1]))],
        "replication_pad1d": lambda: [Case(aten.replication_pad1d.default, (r(1, 2, 4), [1, 2]))],
        "replication_pad2d": lambda: [Case(aten.replication_pad2d.default, (r(1, 2, 3, 4), [1, 2, 1, 0]))],
        "replication_pad3d": lambda: [Case(aten.replication_pad3d.default, (r(1, 1, 3, 3, 2), [1, 1, 1, 0, 0, 1]))],
        "_pad_circular": lambda: [Case(aten._pad_circular.default, (r(1, 2, 4), [1, 2]))],
        "pad": lambda: [Case(aten.pad.default, (r(2, 3), [1, 1])), Case(aten.pad.default, (r(2, 3), [1, 1], "constant", 2.5))],
        "constant_pad_nd": lambda: [Case(aten.constant_pad_nd.default, (r(2, 3), [1, 1], v)) for v in (0.0, 2.5, 3)],
        "native_dropout": lambda: [Case(aten.native_dropout.default, (r(2, 3), 0.5, False))],
        "nan_to_num": lambda: [Case(aten.nan_to_num.default, (r(2, 3), 1.0))],
        "_adaptive_avg_pool2d": lambda: [Case(aten._adaptive_avg_pool2d.default, (r(1, 2, 4, 5), [2, 3]))],
        "_adaptive_avg_pool3d": lambda: [Case(aten._adaptive_avg_pool3d.default, (r(1, 1, 4, 3, 4), [2, 3, 2]))],
        "upsample_nearest2d": lambda: [Case(aten.upsample_nearest2d.default, (x234(), [5, 5]))],
        "upsample_bilinear2d": lambda: [Case(aten.upsample_bilinear2d.default, (x234(), [5, 5], a)) for a in (False, True)],
        "upsample_nearest3d": lambda: [Case(aten.upsample_nearest3d.default, (r(1, 1, 2, 2, 3), [3, 4, 4]))],
        "_upsample_nearest_exact2d": lambda: [Case(aten._upsample_nearest_exact2d.default, (x234(), [5, 5]))],
        "_upsample_nearest_exact3d": lambda: [Case(aten._upsample_nearest_exact3d.default, (r(1, 1, 2, 2, 3), [3, 4, 4]))],
        "_upsample_bicubic2d_aa": lambda: [Case(aten._upsample_bicubic2d_aa.default, (x234(), [2, 2], False))],
        "_fft_r2c": lambda: [Case(aten._fft_r2c.default, (r(2, 5), [1], 0, o)) for o in (True, False)],
        "_fft_c2c": lambda: [Case(aten._fft_c2c.default, (r(2, 5, complex=True), [0, 1], 0, True))],
        "_fft_c2r": lambda: [Case(aten._fft_c2r.default, (r(2, 3, complex=True), [1], 2, n)) for n in (4, 5)],
        "rotary": lambda: [Case(_composite("rotary", _rotated, r(1, 2, 4), r(2, 4), r(2, 4)), (r(1, 2, 4), r(2, 4), r(2, 4)))],
        "rms_norm": lambda: [Case(_primitive_norm(norm), (r(2, 3), r(3))), Case(aten.rms_norm.default, (r(2, 3), [3])),
                             Case(aten.rms_norm.default, (r(2, 2, 3), [2, 3], r(2, 3), 1e-3))],
        "_fused_rms_norm": lambda: [Case(aten._fused_rms_norm.default, (r(2, 3), [3], r(3), 1e-3))],
        "norm": lambda: [Case(aten.norm.Scalar, (r(2, 3), 2)), Case(aten.norm.ScalarOpt_dim, (r(2, 3), 3, [1]))],
        "linalg_vector_norm": lambda: [Case(aten.linalg_vector_norm.default, (r(2, 3), p, [1])) for p in (1, 2, 3, 0)],
        "frobenius_norm": lambda: [Case(aten.frobenius_norm.dim, (r(2, 3), [1]))],
        "_prelu_kernel": lambda: [Case(aten._prelu_kernel.default, (r(2, 3), r(1, 3)))],
        "_unsafe_index_put": lambda: [Case(aten._unsafe_index_put.default, (r(4), [torch.tensor([1, 2])], r(2), a)) for a in (True, False)],
        "slice_scatter": lambda: [Case(aten.slice_scatter.default, (r(2, 4), r(2, 2), 1, 1, 3))],
        "concat": lambda: [Case(aten.concat.default, ([r(2, 3), r(2, 1)], 1))],
        "concatenate": lambda: [Case(aten.concatenate.default, ([r(2, 3), r(2, 1)], 1))],
        "convolution": lambda: [
            Case(aten.convolution.default, (r(1, 4, 5), r(4, 2, 3), r(4), [2], [1], [1], False, [0], 2)),
            Case(aten.convolution.default, (r(1, 4, 3), r(4, 2, 3), r(4), [2], [1], [1], True, [1], 2)),
            Case(aten.convolution.default, (r(1, 2, 3, 3), r(2, 2, 2, 2), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
        ],
        "conv2d": lambda: [Case(aten.conv2d.default, (r(1, 4, 4, 4), r(4, 2, 2, 2), r(4), [2, 2], [1, 1], [1, 1], 2))],
        "conv_tbc": lambda: [Case(aten.conv_tbc.default, (r(4, 1, 2), r(3, 2, 3), r(3), 1))],
        "linear": lambda: [Case(aten.linear.default, (r(2, 3), r(4, 3), r(4))), Case(aten.linear.default, (r(1, 2, 3), r(4, 3)))],
        "addmm": lambda: [Case(aten.addmm.default, (r(4), r(2, 3), r(3, 4)), k) for k in ({}, {"beta": 2, "alpha": 3})],
        "_embedding_bag": lambda: [Case(aten._embedding_bag.default, (r(5, 3), torch.tensor([1, 2, 4]), torch.tensor([0, 2])))],
        "embedding": lambda: [Case(aten.embedding.default, (r(5, 3), torch.tensor([[1, 2]])))],
        "batch_norm": lambda: [
            Case(aten.batch_norm.default, (r(1, 3, 2), r(3), r(3), r(3), r(3, positive=True), False, 0.1, 1e-5, False)),
            Case(aten.batch_norm.default, (r(1, 3), None, None, r(3), r(3, positive=True), False, 0.1, 1e-5, False)),
        ],
        "_native_batch_norm_legit_no_training": lambda: [
            Case(aten._native_batch_norm_legit_no_training.default, (r(1, 3, 2), r(3), r(3), r(3), r(3, positive=True), 0.1, 1e-5))
        ],
        "_native_batch_norm_legit": lambda: [
            Case(aten._native_batch_norm_legit.no_stats, (r(2, 3, 2), r(3), r(3), True, 0.1, 1e-5)),
        ],
        "_batch_norm_with_update_functional": lambda: [
            Case(aten._batch_norm_with_update_functional.default, (r(2, 3, 2), r(3), r(3), r(3), r(3, positive=True), 0.1, 1e-5))
        ],
        "native_group_norm": lambda: [Case(aten.native_group_norm.default, (r(2, 4, 3), r(4), r(4), 2, 4, 3, 2, 1e-5)),
                                      Case(aten.native_group_norm.default, (r(2, 4, 3), None, None, 2, 4, 3, 2, 1e-5))],
        "native_layer_norm": lambda: [Case(aten.native_layer_norm.default, (r(2, 3), [3], r(3), r(3), 1e-5))],
        "ger": lambda: [Case(aten.ger.default, (r(2), r(3)))],
        "chain_matmul": lambda: [Case(aten.chain_matmul.default, ([r(2, 3), r(3, 2), r(2, 2)],))],
        "_trilinear": lambda: [Case(aten._trilinear.default, (r(2, 3, 4), r(2, 3, 4), r(2, 3, 4), [], [], [], [2]))],
        "_euclidean_dist": lambda: [Case(aten._euclidean_dist.default, (r(2, 3), r(4, 3)))],
        "_cdist_forward": lambda: [Case(aten._cdist_forward.default, (r(2, 3), r(4, 3), p, None)) for p in (1.0, 2.0, 3.0)],
        "_pdist_forward": lambda: [Case(aten._pdist_forward.default, (r(4, 3), 2.0))],
        "pdist": lambda: [Case(aten.pdist.default, (r(4, 3),))],
        "renorm": lambda: [Case(aten.renorm.default, (r(2, 3), 2, 0, m)) for m in (0.5, 100.0)],
        "lstm": lambda: _recurrent(aten.lstm.input, 4),
        "gru": lambda: _recurrent(aten.gru.input, 3),
        "rnn_tanh": lambda: _recurrent(aten.rnn_tanh.input, 1),
        "rnn_relu": lambda: _recurrent(aten.rnn_relu.input, 1),
        "max": lambda: [Case(aten.max.other, (r(2, 3), r(3))), Case(aten.max.dim, (r(2, 3), 1))],
        "min": lambda: [Case(aten.min.other, (r(2, 3), r(3))), Case(aten.min.dim, (r(2, 3), 1))],
        "median": lambda: [Case(aten.median.dim, (r(2, 3), 1))],
        "mode": lambda: [Case(aten.mode.default, (r(2, 3), 1))],
        "hstack": lambda: [Case(aten.hstack.default, ([r(2, 3), r(2, 1)],))],
        "vstack": lambda: [Case(aten.vstack.default, ([r(2, 3), r(1, 3)],))],
        "block_diag": lambda: [Case(aten.block_diag.default, ([r(2, 3), r(1, 2)],))],
        "where": lambda: [Case(aten.where.self, (torch.eye(2, 3).bool(), r(2, 3), r(3))),
                          Case(aten.where.ScalarOther, (torch.eye(2, 3).bool(), r(2, 3), -torch.inf)),
                          Case(aten.where.ScalarSelf, (torch.eye(2, 3).bool(), 2.5, r(2, 3)))],
        "masked_fill": lambda: [Case(aten.masked_fill.Scalar, (r(2, 3), torch.eye(2, 3).bool(), v)) for v in (2.5, -torch.inf, 0)],
        "scatter_reduce": lambda: [
            Case(aten.scatter_reduce.two, (r(4), 0, torch.tensor([0, 1, 1]), r(3), how), {"include_self": own})
            for how in ("sum", "mean", "amax", "amin") for own in (True, False)
        ],
        "grid_sampler_2d": lambda: [Case(aten.grid_sampler_2d.default, (r(1, 2, 3, 3), r(1, 2, 2, 2) / 2, m, 0, False)) for m in (0, 1, 2)],
        "grid_sampler": lambda: [Case(aten.grid_sampler.default, (r(1, 2, 3, 3), r(1, 2, 2, 2) / 2, 0, 0, False))],
        "grid_sampler_3d": lambda: [Case(aten.grid_sampler_3d.default, (r(1, 1, 2, 3, 3), r(1, 2, 1, 2, 3) / 2, 0, 0, False))],
        "im2col": lambda: [Case(aten.im2col.default, (r(1, 2, 3, 3), [2, 2], [1, 1], [1, 0], [1, 1]))],
        "_upsample_bilinear2d_aa": lambda: [Case(aten._upsample_bilinear2d_aa.default, (x234(), [2, 2], False))],
        "cdist": lambda: [Case(aten.cdist.default, (r(2, 3), r(4, 3), p)) for p in (1.0, 2.0)],
        "special_entr": lambda: [Case(aten.special_entr.default, (r(5, positive=True),))],
        "log": lambda: [Case(aten.log.default, (r(5, positive=True),))],
        "erf": lambda: [Case(aten.erf.default, (torch.tensor([0.0, -0.0, 1e-12, -3e-9, 2.0]).double(),))],
        "sigmoid": lambda: [Case(aten.sigmoid.default, (torch.tensor([0.0, 1e-12, -3e-9, 3e-8, 2.0]).double(),))],
        "sin": lambda: [Case(aten.sin.default, (torch.tensor([0.0, -0.0, 1e-12, -3.0]).double(),))],
        "pow": lambda: [Case(aten.pow.Tensor_Scalar, (r(4), p)) for p in (2, 3, -1, 0)] + [
            Case(aten.pow.Scalar, (2.0, r(4))), Case(aten.pow.Tensor_Tensor, (r(4, positive=True), r(4)))],
        "div": lambda: [Case(aten.div.Tensor, (r(2, 3), r(3, positive=True))), Case(aten.div.Tensor, (r(2, 3), 2.5)),
                        Case(aten.div.Tensor_mode, (r(2, 3), r(3, positive=True)), {"rounding_mode": "floor"})],
        "prod": lambda: [Case(aten.prod.default, (r(3),)), Case(aten.prod.dim_int, (r(2, 3), 1))],
        "cumprod": lambda: [Case(aten.cumprod.default, (r(2, 3), d)) for d in (0, 1, -1)],
        "diff": lambda: [Case(aten.diff.default, (r(2, 3), 1, -1, r(2, 1)))],
        "complex": lambda: [Case(aten.complex.default, (r(2, 3), r(2, 3)))],
        "linalg_matrix_norm": lambda: [Case(aten.linalg_matrix_norm.str_ord, (r(2, 3), "fro"))],
    }  # fmt: skip


def _primitive_norm(function: Any) -> Composite:
    return _composite("rms_norm", function, r(2, 3), r(3), held=("rsqrt",))


def _attention_cases() -> list[Case]:
    op = aten.scaled_dot_product_attention.default
    q, k, v = lambda: r(1, 2, 3, 4), lambda: r(1, 2, 5, 4), lambda: r(1, 2, 5, 3)
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    mask[..., 1, 2:] = False
    return [
        Case(op, (q(), k(), v())), Case(op, (q(), k(), v(), mask)), Case(op, (q(), k(), v(), r(1, 2, 3, 5))),
        Case(op, (q(), k(), v(), None, 0.0, True)), Case(op, (q(), k(), v()), {"scale": 0.3}),
        Case(op, (r(1, 4, 3, 4), r(1, 2, 3, 4), r(1, 2, 3, 4)), {"enable_gqa": True}),
    ]  # fmt: skip


# which operands may be activations: positions among the floating tensors. By default every choice of one, and all.
OPERANDS: dict[str, list[tuple[int, ...]]] = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
                     "conv_transpose3d", "conv_tbc"), [(0,), (1,), (0, 1), (0, 2), (0, 1, 2), (2,)]),
    **dict.fromkeys(("addmm", "addmv", "addbmm", "baddbmm", "addr", "addcmul"), subsets((0, 1, 2))),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit", "native_batch_norm", "_batch_norm_with_update_functional", "instance_norm",
                     "group_norm", "native_group_norm", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "prelu",
                     "_prelu_kernel", "lstm", "gru", "rnn_tanh", "rnn_relu", "rotary", "fractional_max_pool2d", "_native_batch_norm_legit_no_training", "clamp", "clip", "clamp_min", "clamp_max",
                     "embedding_bag", "_embedding_bag", "type_as", "getitem", "embedding", "fmod", "remainder", "threshold"), [(0,)]),
    **dict.fromkeys(("lerp",), [(0,), (1,), (0, 1)]),
    "pow": [(0,), (1,)],
    "scaled_dot_product_attention": subsets((0, 1, 2)) + [(3,), (0, 1, 2, 3), (0, 3), (2, 3)],
}  # fmt: skip


def patterns(case: Case) -> list[tuple[int, ...]]:
    n = len(case.tensors)
    chosen = OPERANDS.get(case.name, [(i,) for i in range(n)] + ([tuple(range(n))] if n > 1 else []))
    return [p for p in dict.fromkeys(chosen) if max(p) < n]


@functools.cache
def cases(name: str) -> list[Case]:
    """Every case of an operator, with every choice of its operands as activations."""
    G.manual_seed(zlib.crc32(name.encode()))
    by_hand = _by_hand().get(name, list)()
    found = []
    for case in [*by_hand, *itertools.islice(filter(usable, traced(name)), SAMPLES)]:
        for active in patterns(case):
            try:
                one = Case(case.op, case.args, case.kwargs, active)
            except RuntimeError:
                continue
            if name == "squeeze_":
                one.op.__name__ = name
            found.append(one)
    return [_distinct(c) if DEFINITIONS.get(name) in (definitions.winners, definitions.degree_one) else c for c in found]


def _distinct(case: Case) -> Case:
    """Other values, all different, so that there are no ties and no zeros (where a norm has no derivative)."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in case.tensors]
    args, kwargs = case.arguments(tensors)
    return Case(case.op, args, kwargs, case.active)


def usable(case: Case) -> bool:
    """Whether the case says something: values, at points where the operator is finite (or infinite by a fill)."""
    options = [leaf for leaf in case.leaves if not isinstance(leaf, Tensor)]
    if case.name.endswith(("dropout", "rrelu")) and True in options:
        return False  # training
    if case.name == "scaled_dot_product_attention" and 0.5 in options:
        return False  # random
    if case.name in ("cdist", "pdist", "dist") and 0.0 in options or "prod" in options:
        return False  # a count; a form that is refused
    if case.name == "scatter" and "reduce" in case.op._overloadname or case.name == "embedding_bag" and 2 in case.args[4:5]:
        return False  # a form that torch cannot differentiate; the maximum of a bag
    try:
        y = case()
    except RuntimeError:
        return False
    enough = y.numel() and all(t.numel() and bool(t.isfinite().all()) for t in case.tensors) and (case.tensors[0].ndim or case.name not in SEQUENCES)
    element = DEFINITIONS.get(case.name) is definitions.element_by_element
    return bool(enough) and not bool(y.isnan().any()) and not (element and bool(y.isinf().any()))


SEQUENCES = ("as_strided_scatter", "logcumsumexp", "cumprod", "linalg_norm", "linalg_vector_norm")


# -- the tests ---------------------------------------------------------------------------------------------------------


@functools.cache
def verdict(name: str) -> str:
    """"" when the rule of an operator meets its definition in every case, else what went wrong."""
    if name not in DEFINITIONS:
        return f"{name} has a rule and no definition"
    found = cases(name)
    if not found:
        return f"no case of {name}"
    for case in found:
        try:
            check(RULES[name], DEFINITIONS[name], case, tolerance=TOLERANCE.get(name, 1e-9))
        except Exception as problem:
            return f"{case}: {type(problem).__name__}: {problem}"
    return ""


TOLERANCE = dict.fromkeys(("linalg_norm", "linalg_matrix_norm", "std", "var", "hypot", "cdist", "_cdist_forward", "dist", "pdist",
                           "_pdist_forward", "_euclidean_dist", "norm", "linalg_vector_norm", "frobenius_norm", "pairwise_distance",
                           "atan2", "logaddexp", "logaddexp2", "xlogy", "special_xlogy"), 1e-7)  # fmt: skip
"""Definitions by finite differences are only as exact as these."""


@pytest.mark.parametrize("name", sorted(RULES))
def test_rule_is_its_definition(name: str) -> None:
    problem = verdict(name)
    assert not problem, problem
