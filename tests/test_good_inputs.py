"""What must be accepted: numbers, names, masks and data in the forms that numpy, torch and data sets have them in.

Every call is made twice, once as the documentation writes it, and both must say the same.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import termwise as tw
from bad_inputs.awkward import X, attention_net, ids, mlp, net, text_net
from termwise.computation import DepthDecay, TaylorSeer
from termwise.computation.ab_cache import adams_bashforth_weights
from termwise.core.arguments import chosen_samples, integer, number, strings
from termwise.gathering import StatisticsJob
from termwise.optimizers import HighwayRecurrent
from termwise.predictions import (
    continuation,
    explain_dataset,
    infidelity,
    integrated_gradients,
    mass_inside,
    node,
    perturbation_curves,
    pointing_game,
    smoothgrad,
    token_f1,
    words,
)
from termwise.weights import distortion_curves


@pytest.fixture(autouse=True)
def _as_users_run_it():
    """Without the checks of types that the tests put into some modules."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Data(Dataset):
    """Batches by number, and no __iter__."""

    def __getitem__(self, place: int) -> Tensor:
        return X.split(1)[place]

    def __len__(self) -> int:
        return len(X)


class Tower(nn.Module):
    """A stream with a branch of sines."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.branch.weight)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x).sin()


class Counting(int):
    """A subclass of int."""


class Good(NamedTuple):
    """A verb, what is given to it, and what it must say the same for."""

    verb: str
    what: str
    call: Callable[[Any], Any]
    given: Any
    plain: Any


R = torch.tensor([[3.0, 1.0, -5.0, 0.5], [0.0, 2.0, 1.0, 4.0]])
HERE = torch.tensor([[True, False, False, True], [False, False, True, False]])
CUBE = torch.arange(24.0).sin().reshape(2, 3, 4)
TWOS = {
    "numpy": np.int64(2),
    "numpy int8": np.int8(2),
    "a tensor": torch.tensor(2),
    "an array": np.array(2),
    "a subclass": Counting(2),
}
HALVES = {"float32": np.float32(0.5), "half": np.float16(0.5), "a tensor": torch.tensor(0.5), "a fraction": Fraction(1, 2)}
SAMPLES = {
    "numpy": (np.int64(1), 1),
    "a tensor of no axis": (torch.tensor(-1), -1),
    "a list": ([1, 0, -1], torch.tensor([1, 0, 1])),
    "an empty list": ([], slice(0, 0)),
    "a range": (range(1, 2), [1]),
    "an array": (np.array([1, 1]), torch.tensor([1, 1])),
    "an int32 tensor": (torch.tensor([1], dtype=torch.int32), [1]),
    "a mask as a list": ([False, True], 1),
    "a mask as an array": (np.array([True, False]), 0),
    "a mask": (torch.tensor([False, True]), 1),
}


def why(samples: Any) -> Any:
    return tw.explain(net(), X, target=1, names=[list("abcd"), list("efgh")], layers="0")[samples]


def named(names: Any) -> Any:
    return tw.explain(net(), X, target=1, names=names).names


def classes(names: Any) -> Any:
    return tw.explain(net(), X, target=1, classes=names).classes


def tangent(params: Any) -> Any:
    return [*tw.tangent(mlp(), params).state_dict()]


def shrunk(model: Any) -> dict[str, Tensor]:
    return dict(tw.compress(model, 0.8, data=[X, X + 1, X - 1, X * 2], method="svd", progress=False).model.state_dict())


def linearized(**sizes: Any) -> Any:
    data = (X.repeat(70, 1) + torch.arange(140.0)[:, None] / 70, torch.arange(140) % 3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    found = tw.linearize_channels(model, data, omega=0.01, progress=False, generator=torch.Generator().manual_seed(0), **sizes)
    return dict(found.model.state_dict())


def recurrent(iterations: Any) -> Any:
    return json.dumps(HighwayRecurrent(nn.GRUCell(4, 3), iterations=iterations).iterations)


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "expand": lambda n: tw.expand(mlp(), X, X / 8, order=n),
    "residual_expansion": lambda n: tw.residual_expansion(Tower(), X, order=n),
    "integrated_gradients": lambda n: integrated_gradients(net(), X, target=1, steps=n, batch_size=n),
    "smoothgrad": lambda n: smoothgrad(net(), X, target=1, n=n),
    "infidelity": lambda n: infidelity(net(), X, R, target=1, samples=n, batch_size=n).values,
    "compare": lambda n: tw.compare(net(), X, "zero", steps=n, batch_size=n)["zero"].metrics["abpc"].values,
    "perturbation_curves": lambda n: perturbation_curves(net(), X, R, 1, baseline=0.0, steps=n).most_first,
    "token_f1": lambda n: token_f1(R, HERE, n).values,
    "Explanation.top": lambda n: tw.explain(net(), X, target=1)[0].top(n),
    "explain": lambda n: tw.explain(net(), X, target=n),
    "contrast": lambda n: tw.explain(net(), X, target=tw.contrast(n, 0)),
    "contrast against": lambda n: tw.explain(net(), X, target=tw.contrast(0, n)),
    "next_token": lambda n: vars(tw.next_token(n)),
    "node": lambda n: vars(node(n)),
    "continuation": lambda n: [vars(start) for start in continuation(1, n)],
    "cur": lambda n: tw.weights.cur(CUBE[0], n),
    "highway_gradients": lambda n: tw.optimizers.highway_gradients(Tower(), nn.functional.mse_loss, (X, X), iterations=n),
    "crossover": lambda n: tw.layers.crossover(n),
    "taylor_shift_attention": lambda n: tw.layers.taylor_shift_attention(CUBE, CUBE, CUBE, order=n),
    "relu_spectrum": lambda n: tw.relu_spectrum(CUBE.flatten(), 24.0, n=n),
    "MultiStage": lambda n: json.dumps(tw.MultiStage(stages=n, hidden=(n, n), iterations=n)._options()),
    "TaylorSeer": lambda n: json.dumps(asdict(TaylorSeer(interval=n, order=n, first_steps=n))),
    "DepthDecay": lambda n: json.dumps(asdict(DepthDecay(0.9, start=n, min_layers=n))),
    "adams_bashforth_weights": lambda n: adams_bashforth_weights(n),
    "linearize_channels": lambda n: linearized(epochs=n, start=n - n, batch_size=n),
    "highway_recurrent": lambda n: recurrent(n),
    "baseline": lambda n: integrated_gradients(text_net(), ids(), target=1, baseline=n, steps=4),
    "StatisticsJob": lambda n: StatisticsJob("nanoguard", window=n).window,
    "distortion_curves": lambda n: [ladder.params.tolist() for ladder in distortion_curves(mlp(), [X] * 4, grid=n).values()],
    "cp": lambda n: tw.weights.cp(CUBE, n),
    "chefer": lambda n: tw.chefer(attention_net(), CUBE.repeat(1, 1, 2), start_layer=n - n, target=(0, 0)).token_relevance,
}

HUNDREDS = {"int8": np.int8(100), "uint8": np.uint8(100), "a tensor of uint8": torch.tensor(100, dtype=torch.uint8)}
LARGE: dict[str, Callable[[Any], Any]] = {
    "DepthDecay.speedup": lambda n: DepthDecay(0.99, 2, 3).speedup(n, n),
    "DepthDecay.for_speedup": lambda n: DepthDecay.for_speedup(1.2, max_new_tokens=n, num_layers=n),
    "DepthDecay.layers": lambda n: DepthDecay(0.99, n, n).layers(5, 200),
    "crossover": lambda n: tw.layers.crossover(n),
    "linearize_channels": lambda n: linearized(epochs=1, batch_size=n),
}
"""Where numbers of so few bits would overflow."""

CASES = [
    *(Good(verb, what, call, given, 100) for verb, call in LARGE.items() for what, given in HUNDREDS.items()),
    *(Good(verb, what, call, given, 2) for verb, call in NUMBERS.items() for what, given in TWOS.items()),
    *(Good("Decomposition[]", what, why, *pair) for what, pair in SAMPLES.items()),
    *(Good("expand at", what, lambda at: tw.expand(mlp(), X, X / 8, at=at), given, 0.5) for what, given in HALVES.items()),
    *(Good("relu_harmonics", what, tw.functions.relu_harmonics, HALVES[what], 0.5) for what in ("float32", "half")),
    *(Good("check", what, lambda rtol: tw.explain(net(), X).check(rtol), given, 0.5) for what, given in HALVES.items()),
    Good("check", "an integer of numpy", lambda rtol: tw.explain(net(), X).check(rtol), np.int64(1), 1),
    Good("classes", "an array", classes, np.array(["a", "b", "c"]), ["a", "b", "c"]),
    Good("classes", "the values of a dict", classes, {0: "a", 1: "b", 2: "c"}.values(), ["a", "b", "c"]),
    Good("classes", "the keys of a dict", classes, {"a": 0, "b": 1, "c": 2}, ["a", "b", "c"]),
    Good("classes", "a generator", classes, (c for c in "abc"), ["a", "b", "c"]),
    Good("classes", "numbers", classes, [10, 11, 12], ["10", "11", "12"]),
    Good("names", "arrays in a list", named, [np.array(list("abcd"))] * 2, [list("abcd")] * 2),
    Good("names", "an array", named, np.array([list("abcd"), list("efgh")]), [list("abcd"), list("efgh")]),
    Good("names", "tuples", named, (tuple("abcd"), tuple("efgh")), [list("abcd"), list("efgh")]),
    Good("words", "an array", lambda n: words(n).names, np.array(["un", "##do"]), ["un", "##do"]),
    Good("words", "arrays in a list", lambda n: words(n).names, [np.array(["un", "##do"])], ["un", "##do"]),
    Good("tangent", "a generator", tangent, (n for n, _ in mlp().named_parameters()), [n for n, _ in mlp().named_parameters()]),
    Good("tangent", "the names in a dict", tangent, dict(mlp().named_parameters()), [n for n, _ in mlp().named_parameters()]),
    Good("explain layers", "an array", lambda n: [*tw.explain(mlp(), X, layers=n).layers], np.array(["0", "2"]), ["0", "2"]),
    Good("contrast against", "an array", lambda b: tw.explain(net(), X, target=tw.contrast(0, b)), np.array([1, 2]), torch.tensor([1, 2])),
    Good("contrast against", "a list", lambda b: tw.explain(net(), X, target=tw.contrast(0, b)), [1, 2], torch.tensor([1, 2])),
    *(
        Good(verb.__name__, f"a mask of {kind}", lambda m, verb=verb: verb(R, m).values, HERE.to(kind), HERE)
        for verb in (mass_inside, pointing_game, lambda r, m: token_f1(r, m, 2))
        for kind in (torch.int64, torch.uint8, torch.float32, torch.bfloat16)
    ),
    Good("token_f1", "padding at -inf", lambda r: token_f1(r, HERE, 2).values, R.masked_fill(R == -5, -torch.inf), R),
    Good("mass_inside", "padding at -inf", lambda r: mass_inside(r, HERE).values, R.masked_fill(R == -5, -torch.inf), R),
    Good("explain_dataset", "a data set without __iter__", lambda d: explain_dataset(net(), d, target=1), Data(), X.split(1)),
    Good("explain_dataset", "a generator", lambda d: explain_dataset(net(), d, target=1), (x for x in X.split(1)), X.split(1)),
    Good("explain_dataset", "a DataLoader", lambda d: explain_dataset(net(), d, target=1), DataLoader(Data(), batch_size=None), X.split(1)),
    Good("explain", "DataParallel", lambda m: tw.explain(m, X, target=1).whole, nn.DataParallel(net()).eval(), net()),
    Good("explain", "a compiled model", lambda m: tw.explain(m, X, target=1).whole, torch.compile(net()), net()),
    Good("compress", "a compiled model", shrunk, torch.compile(mlp()), mlp()),
    Good("explain", "an int32 of ids", lambda i: tw.explain(text_net(), i, target=1), ids().int(), ids()),
    Good("explain", "a Parameter", lambda x: tw.explain(net(), x, target=1), nn.Parameter(X), X),
]  # fmt: skip


def same(ours: Any, theirs: Any) -> None:
    """To the last bit where they are numbers."""
    assert type(ours) is type(theirs)
    if isinstance(ours, tw.Decomposition):
        torch.testing.assert_close(ours.whole, theirs.whole, rtol=0, atol=0)
        assert [*ours.parts] == [*theirs.parts]
        for name in ours.parts:
            torch.testing.assert_close(ours.parts[name], theirs.parts[name], rtol=0, atol=0)
        for name in ("names", "target", "layers"):
            same(getattr(ours, name, None), getattr(theirs, name, None))
    elif isinstance(ours, dict) and all(isinstance(v, Tensor) for v in ours.values()):
        assert [*ours] == [*theirs]
        for name in ours:
            same(ours[name], theirs[name])
    elif isinstance(ours, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    else:
        assert ours == theirs


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.verb}: {case.what}")
def test_it_is_accepted(case):
    same(case.call(case.given), case.call(case.plain))


@pytest.mark.parametrize(
    "given", [True, np.True_, torch.tensor(True), 2.0, np.float32(2), torch.tensor(2.0), "2", None, int, [2]]
)
def test_what_is_no_integer(given):
    assert integer(given) is None


@pytest.mark.parametrize("given", [True, np.True_, torch.tensor(True), "2", None, float, [2.0], 1j, torch.tensor([2.0])])
def test_what_is_no_number(given):
    assert number(given) is None


def test_a_number_is_one_of_python():
    assert {type(integer(n)) for n in TWOS.values()} == {int}
    assert {type(number(n)) for n in (*TWOS.values(), *HALVES.values())} == {float}
    assert {type(s) for s in strings(np.array(["a", "b"]))} == {str}


@pytest.mark.parametrize("samples", [(0, 1), "ab", {0: 1}, 0.5, [0.5], [[0]], [True, 0.5], None, torch.tensor([[0]]), ["a"]])
def test_what_chooses_no_samples(samples):
    with pytest.raises(TypeError, match="samples are chosen by number"):
        chosen_samples(samples, 2)


@pytest.mark.parametrize("samples", [2, -3, [0, 2], np.array([-3]), [True], torch.tensor([True, False, True])])
def test_samples_that_there_are_not(samples):
    with pytest.raises(IndexError, match=r"sample -?\d is out of range: there are 2|a mask of \d samples is given: there are 2"):
        chosen_samples(samples, 2)


@pytest.mark.parametrize("verb", [mass_inside, pointing_game])
def test_a_sample_without_evidence_costs_no_batch(verb):
    with pytest.warns(UserWarning, match=r"False everywhere in 1 samples, which count as 0: \[1\]"):
        found = verb(R, HERE & torch.tensor([[True], [False]])).values
    assert found.tolist() == [verb(R[:1], HERE[:1]).values.item(), 0.0]


class Drawing(nn.Module):
    """Ids to classes; draws, counts its calls and its samples, and keeps what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 6), nn.Linear(6, 2)
        self.register_buffer("count", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        h = nn.functional.dropout(self.table(ids), 0.5, training=True)
        self.count += 1
        self.seen.append(1)
        return self.head(h + torch.rand_like(h))


def test_a_first_capture_leaves_no_trace():
    """It is tried on the values of ids: that draws no random number of the user's, and the model does not notice."""
    model, before = Drawing().eval(), torch.manual_seed(3).get_state()
    weights = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tw.capture(model, ids())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, weights[n]) for n, v in model.state_dict().items())
    assert model.seen == []
