"""Each rule in the table, and each rule of the sets, against its slow definition in `definitions.py`.

The arguments come from torch's own records of its operators (OpInfo) where there are some: the samples are traced, and
every operator in the trace that the table knows is taken with the arguments it was called with, exactly as a Program
has them. For every case: the value is the operator's, relevance and constants and losses are those of the definition,
and everything together is what arrived.
"""

from __future__ import annotations

import functools
import gc
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

import pytest
import torch
import torch.utils._pytree as pytree
from tests.predictions import definitions
from tests.predictions.definitions import DEFINITIONS, TERMS, Case, Definition, is_float, subsets
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from termwise.core.composite import Composite
from termwise.predictions.experts import expert_product
from termwise.predictions.ledger import Leaf, Ledger, Site
from termwise.predictions.rules import (
    ANY_RULES,
    LOSSY,
    RULE_SETS,
    RULES,
    absolute,
    alpha_beta,
    deconvolution,
    epsilon,
    flat,
    gamma,
    guided,
    lossy,
    own_derivative,
    unchanged,
    wsquare,
    zbox,
    zplus,
)
from termwise.predictions.rules.attention import LOGARITHMIC, attention_constant, logarithmic_constant, softmax_constant
from termwise.predictions.rules.products import gated_by_constant, signal_takes_all

aten = torch.ops.aten
SAMPLES, ENTRIES = 5, 1200  # per OpInfo; floating numbers in the arguments of one case


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Thousands of tiny operations: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- running a rule alone ----------------------------------------------------------------------------------------------


def run(
    rule: Any, case: Case, c: Tensor, *, measured: bool = True, biases: str = "parts", **place: Any
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Value, relevance of the active operands, sum over constants, sum over losses; by the rule."""
    ledger = Ledger(1, biases=biases)
    leaves = [t.detach().clone().requires_grad_(i in case.active) for i, t in enumerate(case.tensors)]
    ledger.leaves = [Leaf(f"input:{i}", leaf, leaf.ndim) for i, leaf in enumerate(leaves) if i in case.active]
    given = {id(leaf.value): leaf for leaf in ledger.leaves}
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
        torch.zeros(x.shape, dtype=torch.float64)
        if g is None
        else definitions.finite((x.conj() * g).real if x.is_complex() else x * g)
        + (0 if given[id(w)].given is None else given[id(w)].given)
        for w, x, g in zip(wanted, (w.detach() for w in wanted), grads, strict=False)
    ]
    sums = {True: torch.zeros((), dtype=torch.float64), False: torch.zeros((), dtype=torch.float64)}
    for name, part in ledger.parts().items():
        assert part.shape[0] == 1, f"{name} has no sample axis"
        sums[name.startswith("rule:")] += part.sum()
    return definitions.flat(y), found, sums[False], sums[True]


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
            # to the end: a generator that is closed while something is traced would touch the grad mode in the trace
            samples = [*record.sample_inputs("cpu", torch.float64, requires_grad=False)]
        for sample in samples[: 3 * SAMPLES]:
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
    gc.disable()  # as above: torch's generators are cycles, which any allocation may collect
    try:
        graph = make_fx(function, pre_dispatch=True)(*tensors)
    except Exception:  # samples that decide by a number cannot be traced; others of the same operator can
        return []
    finally:
        gc.enable()
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
        cases.append(
            Case(op, (r(*shape), states if len(states) > 1 else states[0], weights, bias, layers, 0.0, False, both, batch_first))
        )
    return cases


def _cell(op: Any, kind: int) -> list[Case]:
    states = [r(1, 2), r(1, 2)] if op is aten.lstm_cell.default else r(1, 2)
    return [
        Case(op, (r(1, 3), states, *_lstm_weights(kind, 3, 2, layers=1, both=False, bias=bias), *([] if bias else [None, None])))
        for bias in (True, False)
    ]


def _projected() -> list[Case]:
    """Hidden states of 2 made of cells of 4; two layers in both directions, with and without biases."""
    cases = []
    for bias in (True, False):
        weights = []
        for size in (3, 3, 4, 4):
            weights += [r(16, size) / 2, r(16, 2) / 2, *([r(16) / 2, r(16) / 2] if bias else []), r(2, 4)]
        cases.append(Case(aten.lstm.input, (r(1, 3, 3), [r(4, 1, 2), r(4, 1, 4)], weights, bias, 2, 0.0, False, True, True)))
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
        "expert_product": lambda: [Case(expert_product, (r(5, 3, 1), r(4, 2, 3)), {"ids": torch.tensor([2, 0, 2, 3, -1])})],
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
        "lstm": lambda: _recurrent(aten.lstm.input, 4) + _projected(),
        "lstm_cell": lambda: _cell(aten.lstm_cell.default, 4),
        "gru_cell": lambda: _cell(aten.gru_cell.default, 3),
        "rnn_tanh_cell": lambda: _cell(aten.rnn_tanh_cell.default, 1),
        "rnn_relu_cell": lambda: _cell(aten.rnn_relu_cell.default, 1),
        "glu": lambda: [Case(aten.glu.default, (r(2, 4),)), Case(aten.glu.default, (r(2, 4), 0))],
        "angle": lambda: [Case(aten.angle.default, (r(2, 3, complex=True),)), Case(aten.angle.default, (r(2, 3),))],
        "stft": lambda: [Case(aten.stft.center, (r(1, 12), 4, 2, 4, w, True, "reflect", False, one, True)) for w, one in ((r(4), True), (None, False))],
        "istft": lambda: [Case(aten.istft.default, (r(1, 3, 6, complex=True), 4, 1, 4, torch.hann_window(4).double()))],
        "linalg_solve": lambda: [Case(aten.linalg_solve.default, (r(3, 3) + 3 * torch.eye(3), b)) for b in (r(3), r(3, 2))],
        "var_mean": lambda: [Case(aten.var_mean.correction, (r(2, 3), [1]), {"correction": 0}), Case(aten.var_mean.default, (r(2, 3),))],
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
    "expert_product": [(0,)],  # a stack of weights is a constant
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
                     "conv_transpose3d", "conv_tbc"), [(0,), (1,), (0, 1), (0, 2), (0, 1, 2), (2,)]),
    **dict.fromkeys(("addmm", "addmv", "addbmm", "baddbmm", "addr", "addcmul"), subsets((0, 1, 2))),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit", "native_batch_norm", "_batch_norm_with_update_functional", "instance_norm",
                     "group_norm", "native_group_norm", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "prelu",
                     "_prelu_kernel", "stft", "istft", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "lstm", "gru", "rnn_tanh", "rnn_relu", "rotary", "fractional_max_pool2d", "_native_batch_norm_legit_no_training", "clamp", "clip", "clamp_min", "clamp_max",
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
    if (case.name in ("cdist", "pdist", "dist") and 0.0 in options) or "prod" in options:
        return False  # a count; a form that is refused
    if (case.name == "scatter" and "reduce" in case.op._overloadname) or (case.name == "embedding_bag" and 2 in case.args[4:5]):
        return False  # a form that torch cannot differentiate; the maximum of a bag
    try:
        y = case()
    except RuntimeError:
        return False
    enough = (
        y.numel()
        and all(t.numel() and bool(t.isfinite().all()) for t in case.tensors)
        and (case.tensors[0].ndim or case.name not in SEQUENCES)
    )
    element = DEFINITIONS.get(case.name) is definitions.element_by_element
    return bool(enough) and not bool(y.isnan().any()) and not (element and bool(y.isinf().any()))


SEQUENCES = ("logcumsumexp", "cumprod", "linalg_norm", "linalg_vector_norm")


# -- the tests ---------------------------------------------------------------------------------------------------------


def check_held(rule: Any, case: Case) -> None:
    """Of operands that are all held, as behind a softmax that a set of rules holds constant: the value, and where something
    leads back from it, to a table or a bias, all that arrives there is booked."""
    held = Case(case.op, case.args, case.kwargs, ())
    args, kwargs = held.arguments(held.tensors)
    value = Site(rule, held.op, name="op@here", path="here", measured=True)(Ledger(1), *args, **kwargs)
    y = definitions.flat(value)
    assert torch.allclose(y, held(), rtol=1e-12, atol=1e-12, equal_nan=True), f"value of {case}, held"
    if all(v.requires_grad for v in pytree.tree_leaves(value) if is_float(v)):
        c = y.isfinite().to(torch.float64)
        c[_unread(case, y) :] = 0
        _, _, constants, lost = run(rule, held, c, measured=rule in LOSSY)
        arrived = (definitions.finite(y) * c).sum()
        assert (constants + lost - arrived).abs() <= 1e-9 * (1 + arrived.abs()), f"books of {case}, held"
    else:
        assert not y.requires_grad, f"half of {case}, held, leads back"


@functools.cache
def verdict(name: str) -> str:
    """ "" when the rule of an operator meets its definition in every case, else what went wrong."""
    if name not in DEFINITIONS:
        return f"{name} has a rule and no definition"
    found = cases(name)
    if not found:
        return f"no case of {name}"
    for case in found:
        try:
            check(RULES[name], DEFINITIONS[name], case, tolerance=TOLERANCE.get(name, 1e-9))
            check_held(RULES[name], case)
        except Exception as problem:
            return f"{case}: {type(problem).__name__}: {problem}"
    return ""


TOLERANCE = dict.fromkeys(("linalg_norm", "linalg_matrix_norm", "std", "var", "hypot", "cdist", "_cdist_forward", "dist", "pdist",
                           "_pdist_forward", "_euclidean_dist", "norm", "linalg_vector_norm", "frobenius_norm", "pairwise_distance",
                           "atan2", "logaddexp", "logaddexp2", "xlogy", "special_xlogy", "std_mean", "var_mean", "linalg_solve"), 1e-7)  # fmt: skip
"""Definitions by finite differences are only as exact as these."""


@pytest.mark.parametrize("name", sorted(RULES))
def test_rule_is_its_definition(name: str) -> None:
    problem = verdict(name)
    assert not problem, problem


# -- the rules of the sets ---------------------------------------------------------------------------------------------

AFFINE_CASES = {
    "linear": lambda: [Case(aten.linear.default, (r(2, 3), r(4, 3), r(4))), Case(aten.linear.default, (r(1, 2, 3), r(4, 3)))],
    "addmm": lambda: [Case(aten.addmm.default, (r(4), r(2, 3), r(3, 4)), k, (1,)) for k in ({}, {"beta": 2, "alpha": 3})],
    "mm": lambda: [Case(aten.mm.default, (r(2, 3), r(3, 4)))],
    "bmm": lambda: [Case(aten.bmm.default, (r(2, 2, 3), r(2, 3, 4)))],
    "expert_product": lambda: [Case(expert_product, (r(5, 3, 1), r(4, 2, 3)), {"ids": torch.tensor([2, 0, 2, 3, -1])})],
    "matmul": lambda: [Case(aten.matmul.default, (r(2, 3), r(3, 4)))],
    "conv1d": lambda: [Case(aten.conv1d.default, (r(1, 4, 6), r(4, 2, 3), r(4), [2], [1], [2], 2))],
    "conv2d": lambda: [Case(aten.conv2d.default, (r(1, 4, 4, 3), r(6, 2, 2, 3), r(6), [2, 1], [1, 0], [1, 1], 2)),
                       Case(aten.conv2d.default, (r(2, 3, 3), r(2, 2, 2, 2)[:, :2], None))],
    "conv3d": lambda: [Case(aten.conv3d.default, (r(1, 2, 3, 2, 3), r(2, 1, 2, 2, 2), r(2), [1, 1, 1], [0, 1, 0], [1, 1, 1], 2))],
    "convolution": lambda: [Case(aten.convolution.default, (r(1, 4, 5), r(4, 2, 3), r(4), [2], [1], [1], False, [0], 2)),
                            Case(aten.convolution.default, (r(1, 4, 3), r(4, 2, 3), r(4), [2], [1], [1], True, [1], 2))],
    "conv_transpose1d": lambda: [Case(aten.conv_transpose1d.default, (r(1, 4, 3), r(4, 2, 3), r(4), [2], [1], [1], 2))],
    "conv_transpose2d": lambda: [Case(aten.conv_transpose2d.input, (r(1, 2, 3, 2), r(2, 3, 2, 2), r(3), [2, 1], [1, 0]))],
    "conv_transpose3d": lambda: [Case(aten.conv_transpose3d.input, (r(1, 2, 2, 2, 2), r(2, 1, 2, 2, 2), None, [2, 1, 1]))],
}  # fmt: skip
S = 0.1  # a stabilizer that is seen
SPLITTING_RULES = {
    "epsilon": [(epsilon(s), definitions.epsilon(s)) for s in (1e-6, 0.5)],
    "epsilon 0": [(epsilon(0), definitions.affine_rule(TERMS["zero"]()))],
    "gamma": [(gamma(s), definitions.gamma(s)) for s in (0.25, 1.0)]
    + [(gamma(0.25, stabilizer=S), definitions.affine_rule(TERMS["gamma"](0.25), S)), (gamma(0), definitions.affine_rule(TERMS["zero"]()))],
    "z+": [(zplus(), definitions.zplus), (zplus(stabilizer=S), definitions.affine_rule(TERMS["z+"](), S))],
    "alpha-beta": [(alpha_beta(a, b), definitions.affine_rule(TERMS["alpha-beta"](a, b))) for a, b in ((2, 1), (1.5, 0.5), (1, 0))]
    + [(alpha_beta(2, 1, stabilizer=S), definitions.affine_rule(TERMS["alpha-beta"](2, 1), S))],
}  # fmt: skip


def degenerate(case: Case) -> Iterator[Case]:
    """Nothing arrives, nothing positive arrives, every sign alike: where denominators vanish."""
    yield case
    x = case.active[0]
    for values in (torch.zeros_like(case.tensors[x]), -case.tensors[x].abs(), case.tensors[x].abs()):
        tensors = [values if i == x else t.abs() for i, t in enumerate(case.tensors)]
        args, kwargs = case.arguments(tensors)
        yield Case(case.op, args, kwargs, case.active)


@pytest.mark.parametrize("kind", SPLITTING_RULES)
@pytest.mark.parametrize("name", AFFINE_CASES)
def test_sign_splitting_rule_is_its_definition(name: str, kind: str) -> None:
    G.manual_seed(zlib.crc32((name + kind).encode()))
    for case, (rule, definition) in itertools.product(AFFINE_CASES[name](), SPLITTING_RULES[kind]):
        for each in degenerate(case):
            check(rule, definition, each)


POLICY_RULES = {
    "zero": (None, TERMS["zero"](), 0.0), "epsilon": (epsilon(0.5), TERMS["zero"](), 0.5),
    "gamma": (gamma(0.25), TERMS["gamma"](0.25), 0.0), "z+": (zplus(), TERMS["z+"](), 0.0),
    "alpha-beta": (alpha_beta(2, 1), TERMS["alpha-beta"](2, 1), 0.0),
}  # fmt: skip


@pytest.mark.parametrize("biases", ["zero", "distribute"])
@pytest.mark.parametrize("kind", POLICY_RULES)
@pytest.mark.parametrize("name", ["linear", "addmm", "conv2d", "conv_transpose2d", "convolution"])
def test_what_a_bias_owns_goes_to_the_inputs_of_its_operation(name: str, kind: str, biases: str) -> None:
    rule, terms, size = POLICY_RULES[kind]
    G.manual_seed(zlib.crc32((name + kind).encode()))
    for case in AFFINE_CASES[name]():
        for each in degenerate(case):
            # where no input contributes, a bias has nobody to give to
            check(
                lossy(functools.partial(rule or RULES[case.name])),
                definitions.affine_rule(terms, size, biases),
                each,
                biases=biases,
            )


REGION_RULES = {
    "w2": [(wsquare(stabilizer=s), definitions.region("w2", stabilizer=s)) for s in (0.0, S)],
    "flat": [(flat(stabilizer=s), definitions.region("flat", stabilizer=s)) for s in (0.0, S)],
    "z-box": [(zbox(-5, 6, stabilizer=s), definitions.region("z-box", -5, 6, s)) for s in (0.0, S)],
}


@pytest.mark.parametrize("kind", REGION_RULES)
@pytest.mark.parametrize("name", AFFINE_CASES)
def test_rule_of_a_first_layer_is_its_definition(name: str, kind: str) -> None:
    G.manual_seed(zlib.crc32((name + kind).encode()))
    for case, (rule, definition) in itertools.product(AFFINE_CASES[name](), REGION_RULES[kind]):
        for each in degenerate(case):
            check(rule, definition, each, source=f"input:{case.active[0]}")


@pytest.mark.parametrize("kind", REGION_RULES)
def test_deeper_in_a_network_what_falls_on_zeros_is_lost(kind: str) -> None:
    G.manual_seed(0)
    (case,) = AFFINE_CASES["conv1d"]()
    case.leaves[case.slots[0]].view(-1)[::3] = 0
    rule, definition = REGION_RULES[kind][0]

    def definition_(case: Case, c: Tensor) -> definitions.Relevance:
        whole = definition(case, c)
        kept = whole.inputs[0].masked_fill(case.tensors[0] == 0, 0)
        return definitions.Relevance([kept], whole.constants, whole.lost + whole.inputs[0].sum() - kept.sum())

    with pytest.warns(UserWarning, match=r"op@here is for a layer that sees the input"):
        check(rule, definition_, case)


def test_the_box_lies_along_the_channels() -> None:
    G.manual_seed(0)
    low, high = torch.tensor([-1.0, -2.0]).double(), torch.tensor([1.0, 0.5]).double()
    for op, shape, axis in (
        (aten.conv2d.default, (1, 2, 3, 3), 1),
        (aten.conv_transpose2d.input, (2, 3, 3), 0),
        (aten.linear.default, (4, 2), 1),
    ):
        weight = r(2, 2, 2, 2) if len(shape) > 2 else r(3, 2)
        case = Case(op, (r(*shape), weight, None))
        ends = [e.reshape(-1, *[1] * (len(shape) - 1 - axis)) for e in (low, high)]
        check(zbox(low, high), definitions.region("z-box", *ends), case, source="input:0")
        assert zbox(low[None, :, None, None], high) is zbox((-1, -2), [1, 0.5])
    with pytest.raises(ValueError, match=r"op@here has inputs of shape \(1, 2, 3, 3\), with 2 channels: the box has 3"):
        case = Case(aten.conv2d.default, (r(1, 2, 3, 3), r(2, 2, 2, 2)))
        run(zbox([0, 0, 0], [1, 1, 1]), case, torch.ones(8).double(), source="input:0")
    with pytest.raises(ValueError, match=r"zbox needs low < high, got 1\.0 and 0\.0"):
        zbox(1, 0)
    with pytest.raises(ValueError, match=r"one per channel, got a tensor of shape \(3, 2\)"):
        zbox(torch.zeros(3, 2), 1)


def test_rules_for_any_operation() -> None:
    G.manual_seed(0)
    norm = (r(1, 3, 2), r(3), r(3), r(3), r(3, positive=True), False, 0.1, 1e-5, False)
    for case in (Case(aten.batch_norm.default, norm), Case(aten.sigmoid.default, (torch.tensor([0.0, -1.0, 2.0]).double(),))):
        check(unchanged, definitions.unchanged, case)
    with pytest.raises(ValueError, match=r"op@here does not give one value for each entry"):
        run(unchanged, Case(aten.sum.default, (r(3),)), torch.ones(1).double())
    sums = [
        *(Case(c.op, c.args, c.kwargs, a) for op in ("add", "sub", "rsub") for c in _by_hand()[op]() for a in patterns(c)), Case(aten.sum.dim_IntList, (r(2, 3), [1])), Case(aten.mean.dim, (r(2, 3), [0])),
        Case(aten.add.Tensor, (r(3), torch.zeros(3).double()), {}, (0, 1)), Case(aten.sum.default, (torch.zeros(3).double(),)),
    ]  # fmt: skip
    for case in sums:
        check(absolute, definitions.absolute, case)
    with pytest.raises(ValueError, match=r"op@here is no sum"):
        run(absolute, Case(aten.mul.Tensor, (r(3), r(3))), torch.ones(3).double())
    for case in (
        Case(aten.add.Tensor, (r(2, 3), r(3)), {}, (0, 1)),
        Case(aten.mean.dim, (r(2, 3), [1])),
        Case(aten.add.Tensor, (r(3), 2.0)),
    ):
        check(epsilon(0.5), definitions.damped(DEFINITIONS[case.name], 0.5), case)
    for case in (Case(aten.relu.default, (r(9),)),):
        check(deconvolution, functools.partial(definitions.rectified, guided=False), case)
        check(guided, functools.partial(definitions.rectified, guided=True), case)


def test_sizes_are_checked_and_printed() -> None:
    assert repr(gamma()) == "gamma(0.25)"
    assert repr(alpha_beta(2, 1, stabilizer=1e-6)) == "alpha_beta(2, 1, stabilizer=1e-06)"
    assert repr(zplus()) == "zplus()"
    assert repr(zbox(0, 1)) == "zbox(0.0, 1.0)"
    assert gamma(0.5) is gamma(size=0.5)
    assert gamma(0.5) is not gamma(0.25)
    with pytest.raises(ValueError, match=r"alpha - beta = 1 and beta >= 0, got alpha=2, beta=0"):
        alpha_beta(2, 0)
    with pytest.raises(ValueError, match=r"beta >= 0, got alpha=0.5, beta=-0.5"):
        alpha_beta(0.5, -0.5)


@pytest.mark.parametrize("kind", SPLITTING_RULES)
def test_a_product_of_two_activations_keeps_its_own_rule(kind: str) -> None:
    G.manual_seed(0)
    for op, active in ((aten.mm.default, (0, 1)), (aten.mm.default, (1,)), (aten.matmul.default, (0, 1))):
        case = Case(op, (r(2, 3), r(3, 4)), {}, active)
        for rule, _ in SPLITTING_RULES[kind]:
            size = 0.5 if rule is epsilon(0.5) else 1e-6 if rule is epsilon(1e-6) else 0  # it damps this product too
            check(rule, definitions.damped(definitions.product, size), case)


def test_the_biases_of_splitting_rules_are_booked_per_channel() -> None:
    G.manual_seed(0)
    case = Case(aten.conv2d.default, (r(1, 2, 3, 3), r(3, 2, 2, 2), r(3)))
    for rule, size in ((gamma(0.25), 0.25), (zplus(), None), (epsilon(0.5), 0.5)):
        c = torch.randn(12, generator=G, dtype=torch.float64)
        part = parts_of(rule, case, c)["bias:here"]
        m, b, z = definitions.contributions(case)
        if rule is epsilon(0.5):
            shares = b * z * c / (z + size * z.sign())
        else:
            shares = torch.zeros_like(b)
            for j in range(12):
                up = z[j] >= 0
                weigh = (
                    (lambda v: v.clamp_min(0))
                    if size is None
                    else lambda v, up=up: v + size * (v.clamp_min(0) if up else v.clamp_max(0))
                )
                shares[j] = weigh(b[j]) * z[j] * c[j] / (weigh(m[j]).sum() + weigh(b[j]))
        assert torch.allclose(part, shares.reshape(3, 4).sum(1)[None])


def parts_of(rule: Any, case: Case, c: Tensor, batch: int = 1, **place: Any) -> dict[str, Tensor]:
    """Every part that one operator books, by name."""
    ledger = Ledger(batch)
    leaves = [t.detach().clone().requires_grad_(i in case.active) for i, t in enumerate(case.tensors)]
    args, kwargs = case.arguments(leaves)
    y = Site(rule, case.op, name="op@here", path="here", **place)(ledger, *args, **kwargs)
    y = next(v for v in pytree.tree_leaves(y) if is_float(v))
    grads = torch.autograd.grad(
        y, [leaf for leaf, _ in ledger.constants] + [leaves[i] for i in case.active], c.reshape(y.shape), allow_unused=True
    )
    for (_, book), g in zip(ledger.constants, grads, strict=False):
        if g is not None:
            book(g)
    return {
        **ledger.parts(),
        **{f"operand {i}": leaves[i].detach() * g for i, g in zip(case.active, grads[len(ledger.constants) :], strict=True)},
    }


BIASED = {
    "linear": (2, lambda: Case(aten.linear.default, (r(2, 3), r(4, 3), r(4)))),
    "conv1d": (2, lambda: Case(aten.conv1d.default, (r(1, 2, 4), r(3, 2, 2), r(3)))),
    "conv2d": (2, lambda: Case(aten.conv2d.default, (r(1, 2, 3, 3), r(3, 2, 2, 2), r(3)))),
    "conv2d, no batch": (2, lambda: Case(aten.conv2d.default, (r(2, 3, 3), r(3, 2, 2, 2), r(3)))),
    "conv3d": (2, lambda: Case(aten.conv3d.default, (r(1, 2, 2, 2, 2), r(3, 2, 1, 2, 1), r(3)))),
    "convolution": (2, lambda: Case(aten.convolution.default, (r(1, 2, 4), r(3, 2, 2), r(3), [1], [0], [1], False, [0], 1))),
    "conv_transpose2d": (2, lambda: Case(aten.conv_transpose2d.input, (r(1, 2, 2, 2), r(2, 3, 2, 2), r(3)))),
    "conv_tbc": (2, lambda: Case(aten.conv_tbc.default, (r(4, 1, 2), r(2, 2, 3), r(3)))),
    "addmm": (0, lambda: Case(aten.addmm.default, (r(4), r(2, 3), r(3, 4)), {"beta": 2}, (1,))),
    "bilinear": (3, lambda: Case(aten.bilinear.default, (r(2, 3), r(2, 2), r(4, 3, 2), r(4)), {}, (0, 1))),
    "layer_norm": (2, lambda: Case(aten.layer_norm.default, (r(2, 3), [3], r(3), r(3)))),
    "group_norm": (2, lambda: Case(aten.group_norm.default, (r(1, 4, 3), 2, r(4), r(4)))),
    "instance_norm": (2, lambda: Case(aten.instance_norm.default, (r(1, 4, 3), r(4), r(4), None, None, True, 0.1, 1e-5, False))),
    "batch_norm": (2, lambda: Case(aten.batch_norm.default, (r(2, 3, 2), r(3), r(3), torch.zeros(3).double(), r(3, positive=True), False, 0.1, 1e-5, False))),
}  # fmt: skip


@pytest.mark.parametrize("name", BIASED)
def test_every_entry_of_a_bias_gets_what_it_added(name: str) -> None:
    position, make = BIASED[name]
    G.manual_seed(3)
    case = make()
    c = torch.randn(case().shape, generator=G, dtype=torch.float64)
    bias = case.tensors[position]
    without = case([torch.zeros_like(t) if i == position else t for i, t in enumerate(case.tensors)])
    wanted = [
        ((case([e if i == position else t for i, t in enumerate(case.tensors)]) - without) * c).sum()
        for e in definitions.entries(bias)
    ]
    assert torch.allclose(parts_of(RULES[case.name], case, c)["bias:here"], torch.stack(wanted)[None])


BATCHED = {
    "bias": (0, None, lambda: Case(aten.linear.default, (r(3, 5, 2), r(4, 2), r(4)))),
    "batch in the second axis": (1, None, lambda: Case(aten.linear.default, (r(5, 3, 2), r(4, 2), r(4)))),
    "a batch folded into windows": (0, 2, lambda: Case(aten.linear.default, (r(12, 2), r(4, 2), r(4)))),
    "sample-major windows": (0, None, lambda: Case(aten.linear.default, (r(12, 2), r(4, 2), r(4)))),
    "one constant for all": (0, None, lambda: Case(aten.add.Tensor, (r(3, 5), r(5)))),
    "one constant for all, with an axis": (0, None, lambda: Case(aten.add.Tensor, (r(3, 5), r(1, 5)))),
    "a constant for each": (0, None, lambda: Case(aten.add.Tensor, (r(3, 5), r(3, 1)))),
    "a number": (0, None, lambda: Case(aten.add.Tensor, (r(3, 5), 2.5))),
    "a class token": (0, None, lambda: Case(aten.cat.default, ([r(3, 1, 2), r(3, 4, 2)], 1), {}, (1,))),
    "f(0)": (0, None, lambda: Case(aten.sigmoid.default, (r(3, 5),))),
    "channels": (0, None, lambda: Case(aten.conv1d.default, (r(3, 2, 4), r(3, 2, 2), r(3)))),
    "a lossy rule": (0, None, lambda: Case(aten.softmax.int, (r(3, 4), -1))),
    "lstm": (0, None, lambda: Case(aten.lstm.input, (r(3, 4, 2), [r(1, 3, 2), r(1, 3, 2)], _lstm_weights(4, 2, 2, layers=1, both=False, bias=True), True, 1, 0.0, False, False, True))),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHED)
def test_what_is_booked_for_a_sample_is_what_it_gets_alone(name: str) -> None:
    """Zeroing the ratios of all samples but one must leave the parts of that one as they are, and zero the others'."""
    from termwise.core.samples import SampleAxis

    dim, inner, make = BATCHED[name]
    G.manual_seed(5)
    case, axis = make(), SampleAxis(dim, inner)
    rule = RULES[case.name]
    place = {"axis": axis, "axes": (axis,) * 3, "measured": rule in LOSSY}
    y = first_value(case)
    c = torch.randn(y.shape, generator=G, dtype=torch.float64)
    every = parts_of(rule, case, c, batch=3, **place)
    position = torch.arange(y.shape[dim])
    sample = (position // (inner or y.shape[dim] // 3) % 3).reshape(-1, *[1] * (y.ndim - 1 - dim))
    for i in range(3):
        alone = parts_of(rule, case, c * (sample == i), batch=3, **place)
        for part in (n for n in every if not n.startswith("operand")):
            assert torch.allclose(alone[part][i], every[part][i]), part
            assert not alone[part][[j for j in range(3) if j != i]].any(), part
    total = sum(p.sum() for p in every.values())
    assert torch.allclose(total, (y * c).sum())


def first_value(case: Case) -> Tensor:
    args, kwargs = case.arguments(case.tensors)
    value = case.op(*args, **kwargs)
    return value[0] if isinstance(value, tuple) else value


def holding(definition: Definition, positions: tuple[int, ...]) -> Definition:
    """The definition with some operands constant: nothing goes to them."""

    def definition_(case: Case, c: Tensor) -> definitions.Relevance:
        rest = Case(case.op, case.args, case.kwargs, tuple(i for i in case.active if i not in positions))
        found = definition(rest, c)
        by_position = dict(zip(rest.active, found.inputs, strict=True))
        zeros = {i: torch.zeros_like(case.tensors[i]) for i in case.active}
        return definitions.Relevance([{**zeros, **by_position}[i] for i in case.active], found.constants, found.lost)

    return definition_


def test_gates_and_held_operands_get_nothing() -> None:
    G.manual_seed(0)
    mul, div = (
        Case(aten.mul.Tensor, (r(2, 3), r(3)), {}, (0, 1)),
        Case(aten.div.Tensor, (r(2, 3), r(3, positive=True)), {}, (0, 1)),
    )
    check(RULES["mul"], definitions.product, mul, gates=(1,))  # the table's own rule does not look at gates
    check(signal_takes_all, definitions.product, mul)
    for position in (0, 1):
        check(RULES["mul"], holding(definitions.product, (position,)), mul, held=(position,))
        check(signal_takes_all, holding(definitions.product, (position,)), mul, gates=(position,))
        check(signal_takes_all, holding(definitions.product, (1 - position,)), mul, gates=(position,), held=(1 - position,))
    check(RULES["div"], holding(definitions.quotient, (1,)), div, held=(1,))
    bmm = Case(aten.bmm.default, (r(1, 2, 3), r(1, 3, 2)), {}, (0, 1))
    check(RULES["bmm"], holding(definitions.product, (1,)), bmm, held=(1,))


def test_constant_attention() -> None:
    for case in cases("softmax") + cases("_softmax"):
        check(softmax_constant, definitions.softmax_constant, case)
    for case in cases("scaled_dot_product_attention"):
        if 3 not in case.active:
            check(attention_constant, definitions.attention_with_constant_weights, case)
    for case in (c for name in LOGARITHMIC for c in cases(name)):
        if not case.tensors[0].is_complex():
            check(logarithmic_constant, definitions.logarithmic_constant, case)
    for case in cases("glu"):
        check(gated_by_constant, definitions.gated_by_constant, case)


def test_own_derivative_measures_what_it_loses() -> None:
    for name in ("gelu", "mul", "logsumexp"):
        for case in cases(name):
            if all(t.numel() < 50 and not t.is_complex() for t in case.tensors) and case().abs().max() < 1e3:
                check(own_derivative, definitions.own_derivative, case, tolerance=1e-6)


def test_every_rule_of_the_sets_has_a_definition() -> None:
    used = {rule for rules in RULE_SETS.values() for rule in rules.values() if not isinstance(rule, str)} | set(
        ANY_RULES.values()
    )
    made = {rule.__name__.partition("(")[0] for rule in used if repr(rule).endswith(")")}
    assert made <= {"epsilon", "gamma", "zplus", "alpha_beta", "wsquare", "flat", "zbox"}
    tested = {
        softmax_constant,
        logarithmic_constant,
        attention_constant,
        signal_takes_all,
        gated_by_constant,
        own_derivative,
        unchanged,
        absolute,
        deconvolution,
        guided,
    }
    assert {rule for rule in used if not repr(rule).endswith(")")} <= tested
    assert set(RULES) == set(DEFINITIONS), set(RULES) ^ set(DEFINITIONS)


def test_an_activation_where_a_rule_does_not_expect_one_is_an_error() -> None:
    G.manual_seed(0)
    with pytest.raises(ValueError, match=r"op@here takes an activation beside its first argument"):
        run(RULES["fmod"], Case(aten.fmod.Tensor, (r(3), r(3)), {}, (0, 1)), torch.ones(3).double())
    with pytest.raises(ValueError, match=r"op@here multiplies what it scatters"):
        case = Case(aten.scatter_reduce.two, (r(3), 0, torch.tensor([0, 1]), r(2), "prod"))
        run(RULES["scatter_reduce"], case, torch.ones(3).double())


# -- how much of ATen that is ------------------------------------------------------------------------------------------

NO_RELEVANCE = {
    "compare or decide": "any argmax argmin eq ge gt isinf isnan le lt ne nonzero logical_and logical_not logical_or logical_xor "
    "bitwise_and bitwise_not bitwise_or bitwise_xor",
    "make a tensor": "arange empty empty_strided full full_like rand randn randperm scalar_tensor",
    "are derivatives": "_adaptive_avg_pool2d_backward avg_pool2d_backward convolution_backward embedding_dense_backward "
    "max_pool2d_with_indices_backward native_group_norm_backward native_layer_norm_backward",
    "read a number or a size": "_local_scalar_dense sym_is_contiguous sym_numel sym_size sym_storage_offset sym_stride",
    "write in place": "resize_",
}
"""Core operators of ATen through which no relevance can go, by reason."""


def core_operators() -> set[str]:
    found = set()
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        if space == "aten":
            overload = getattr(getattr(aten, name, None), schema.overload_name or "default", None)
            if overload is not None and torch.Tag.core in overload.tags:
                found.add(name)
    return found


def test_share_of_core_aten_with_a_tested_rule() -> None:
    excluded = {op for ops in NO_RELEVANCE.values() for op in ops.split()}
    wanted = core_operators() - excluded
    covered = {op for op in wanted if op in RULES and not verdict(op)}
    report = {
        "differentiable core operators": len(wanted), "with a tested rule": len(covered), "share": len(covered) / len(wanted),
        "without": sorted(wanted - covered), "rules in the table": len(RULES), "excluded": NO_RELEVANCE,
    }  # fmt: skip
    print(f"{len(covered)} of {len(wanted)} differentiable core ATen operators have a tested rule: {100 * report['share']:.1f} %")
    print(f"without: {', '.join(report['without']) or 'none'}; {len(RULES)} operators in the table")
    Path(__file__).with_name("operators.json").write_text(json.dumps(report, indent=1))
    assert report["share"] >= 0.95
