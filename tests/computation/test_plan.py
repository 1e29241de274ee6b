"""The best steps to compute, against trying them all."""

import itertools

import pytest
import torch

from termwise.computation import plan


def line(outputs, nodes, before, anchor, at):
    s = (nodes[at] - nodes[anchor]) / (nodes[anchor] - nodes[before])
    return outputs[anchor] + s * (outputs[anchor] - outputs[before])


def cost(outputs, nodes, weights, anchors, first, last, longest):
    """By the definition; None where it is not allowed."""
    n, errors = len(nodes), []
    if not set(range(first)) | set(range(n - last, n)) <= set(anchors):
        return None
    for j in range(n):
        behind = [a for a in anchors if a <= j]
        if j in anchors:
            errors.append(0.0)
            continue
        before, anchor = behind[-2:]
        if j - anchor > longest or nodes[before] == nodes[anchor]:
            return None
        missed = (line(outputs, nodes, before, anchor, j) - outputs[j]).flatten(1).norm(dim=1)
        errors.append((missed * weights[j]).mean().item())
    return errors


def problem(n, seed):
    g = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, 2, 3, 2, generator=g, dtype=torch.float64).cumsum(0)
    nodes = (-torch.rand(n, generator=g, dtype=torch.float64) - 0.1).cumsum(0).tolist()
    return outputs, nodes, torch.rand(n, 2, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(("first", "last", "longest"), [(2, 0, 8), (3, 1, 8), (2, 2, 2), (2, 0, 1)])
@pytest.mark.parametrize("n", [5, 9])
def test_no_other_choice_is_better(n, first, last, longest):
    for seed in range(3):
        outputs, nodes, weights = problem(n, seed)
        plans = plan(outputs, nodes, weights, first_steps=first, last_steps=last, max_skip=longest)
        for computed in range(2, n + 1):
            found = [
                (sum(errors), anchors, errors)
                for anchors in itertools.combinations(range(n), computed)
                if (errors := cost(outputs, nodes, weights, anchors, first, last, longest)) is not None
            ]
            assert (computed in plans) == bool(found)
            if found:
                total, anchors, errors = min(found)
                assert plans[computed].anchors == anchors
                assert plans[computed].errors == pytest.approx(errors)
                assert plans[computed].total == pytest.approx(total)


def test_more_steps_are_never_worse():
    plans = plan(*problem(14, 0))
    assert list(plans) == sorted(plans)
    totals = [p.total for p in plans.values()]
    assert totals == sorted(totals, reverse=True)
    assert plans[14].total == 0


def test_steps_at_one_time_make_no_line():
    outputs, nodes, weights = problem(8, 1)
    nodes[3] = nodes[2]
    plans = plan(outputs, nodes, weights)
    for computed, found in plans.items():
        best = min(
            sum(errors)
            for anchors in itertools.combinations(range(8), computed)
            if (errors := cost(outputs, nodes, weights, anchors, 2, 0, 8)) is not None
        )
        assert found.total == pytest.approx(best)
        assert len(found.anchors) == computed


def test_lines_need_no_third_step():
    nodes = [1.0, 0.7, 0.65, 0.3, 0.0]
    outputs = torch.tensor(nodes, dtype=torch.float64)[:, None, None] * torch.ones(1, 2, 3, dtype=torch.float64)
    plans = plan(outputs, nodes, torch.ones(5, 2, dtype=torch.float64))
    assert plans[2].anchors == (0, 1)
    assert plans[2].total == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "change", [lambda o, u, w: (o[1:], u, w), lambda o, u, w: (o, u, w[:, :1]), lambda o, u, w: (o[:1], u[:1], w[:1])]
)
def test_numbers_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match="outputs at"):
        plan(*change(*problem(6, 0)))
