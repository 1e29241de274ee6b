"""Experts grouped: the same numbers as a batched product with a copy of the weights for every row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from termwise.core.capture import capture
from termwise.core.program import op_name
from termwise.predictions import explain
from termwise.predictions.experts import expert_product, group_experts
from termwise.testing.architectures import build


@given(st.integers(0, 9), st.integers(1, 5), st.integers(0, 100))
def test_the_grouped_product_is_the_picked_one(rows, experts, seed):
    g = torch.Generator().manual_seed(seed)
    stack = torch.randn(experts, 2, 3, generator=g, dtype=torch.float64)
    x = torch.randn(rows, 3, 1, generator=g, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(-experts, experts, (rows,), generator=g)
    c = torch.randn(rows, 2, 1, generator=g, dtype=torch.float64)
    for_us, plain = expert_product(x, stack, ids=ids), stack[ids] @ x
    torch.testing.assert_close(for_us, plain, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(y, x, c)[0] for y in (for_us, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rules", ["attnlrp", "gamma"])
def test_a_mixture_is_explained_as_if_it_was_not_grouped(rules, monkeypatch):
    s = build("mixtral", batch=2).to(torch.float64)
    grouped = group_experts(capture(s.model, *s.inputs, kwargs=s.kwargs))
    assert sum(op_name(n) == "expert_product" for n in grouped.nodes) == 4
    ours = explain(s.model, *s.inputs, kwargs=s.kwargs, target=s.target, rules=rules)
    if rules == "attnlrp":
        monkeypatch.setattr("termwise.predictions.propagate.group_experts", lambda program, keep: program)
        theirs = explain(s.model, *s.inputs, kwargs=s.kwargs, target=s.target, rules={"softmax": _own})
        torch.testing.assert_close(ours.inputs["input_ids"], theirs.inputs["input_ids"], rtol=1e-10, atol=1e-12)
    ours.check()


def _own(at, *args, **kwargs):
    return at.op(*args, **kwargs)


def test_what_is_no_mixture_stays_as_it_is():
    program = capture(nn.Linear(3, 2).eval(), torch.randn(2, 3))
    assert group_experts(program) is program
