"""TaylorShift in training: what a question has to look up is learned, which without attention it is not; in both forms alike."""

import pytest
import torch

from termwise.layers.claims.taylor_shift_training import ATTENTION, Reader, Task, _pools, train

TASK = Task(marks=8, width=32, depth=2, steps=150)


def test_lookups_are_learned_and_without_attention_they_are_not():
    shift, uniform = (train(name, 0, TASK, faster=20.0) for name in ("TaylorShift", "uniform"))
    first, last = (sum(run) / 10 for run in (shift.losses[:10], shift.losses[-10:]))
    assert first > 2.2 > 1.4 > last
    assert sum(uniform.losses[-10:]) / 10 > 1.9
    assert shift.accuracy > 0.5 > 0.35 > uniform.accuracy
    assert max(shift.temperatures) > 2  # they grow, from 1
    assert set(uniform.temperatures) == {1.0}  # and are not touched where they are not used


def test_both_forms_learn_alike():
    task = Task(marks=4, unmarked=140, width=32, batch=2, steps=4)  # more than a block of rows
    direct, efficient = (train("TaylorShift", 0, task, form=form) for form in ("direct", "efficient"))
    assert efficient.losses == pytest.approx(direct.losses, rel=1e-4)
    assert efficient.temperatures == pytest.approx(direct.temperatures, rel=1e-3)


def test_answers_are_those_of_the_marked_pictures():
    images, labels = _pools(0)[0]
    task = Task(marks=5, unmarked=3, batch=6)
    pictures, marks, asked, answers = task.questions((images, labels), torch.Generator().manual_seed(0))
    assert pictures.shape == (6, 8, 64)
    assert (marks[:, 5:] == 5).all()
    for b in range(6):
        assert sorted(asked[b].tolist()) == sorted(marks[b, :5].tolist()) == [0, 1, 2, 3, 4]
        for mark, answer in zip(asked[b], answers[b], strict=True):
            picture = pictures[b, marks[b] == mark]
            assert len(picture) == 1
            assert answer in labels[(images == picture).all(1)]


def test_nets_differ_in_attention_alone():
    states = []
    for attention in ATTENTION.values():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            states.append(Reader(attention, 4, 16).state_dict())
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(x, states[0][name]) for name, x in state.items())
