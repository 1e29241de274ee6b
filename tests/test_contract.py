"""The contract, one row per method; and that the contract itself notices a method that breaks it."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from termwise.core import Decomposition
from termwise.functions import expand, linearity_scores, quadratic, residual_expansion, shallow, subset_expansion, tangent
from termwise.layers import TaylorShiftAttention, taylor_shift_expansion
from termwise.predictions import (
    chefer,
    contrast,
    decompx,
    explain,
    explain_dataset,
    gradcam,
    gradient_x_input,
    integrated_gradients,
    occlusion,
    over_depth,
    patches,
    shapley,
    smoothgrad,
)
from termwise.testing import CHECKS, DecompositionContract, Example, check_decomposition


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.table(input_ids) + self.place
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return {"logits": self.out(x.mean(1))}


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def convolutional() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    model[1].running_mean.normal_()
    return model


class Towers(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*(nn.Linear(4, 4) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = x + torch.tanh(layer(x))
        return torch.tanh(x)


def recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    return Last()


def row(make_model, inputs: tuple, dtype: torch.dtype = torch.float64, method=explain, exact: bool = True, **options) -> Example:
    model = seeded(make_model).to(dtype).eval()
    return Example(lambda *x: method(model, *x, **options), exact=exact, inputs=inputs, models=(model,))


def baseline(method, make_model=dense, inputs: tuple | None = None, dtype: torch.dtype = torch.float64, **options) -> Example:
    return row(
        make_model,
        (rand(3, 4, dtype=dtype),) if inputs is None else inputs,
        dtype,
        method,
        options.pop("exact", False),
        **options,
    )


def linear() -> nn.Module:
    return nn.Linear(4, 3)


def unbiased() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))


def tokens(make_model, inputs: tuple, dtype: torch.dtype = torch.float64, **options) -> Example:
    model = seeded(make_model).to(dtype).eval()
    return Example(lambda *x: decompx(model, *x, **options), exact=True, inputs=inputs, models=(model,))


def moved(model: nn.Module, *x: Tensor, params=None) -> Decomposition:
    linear = tangent(model, params)
    with torch.no_grad():
        for v in linear.parameters():
            v.add_(0.05)
    return linear.decompose(*x)


def towards(model: nn.Module, x: Tensor, **options) -> Decomposition:
    """An expansion along a direction that a sample has by itself."""
    h = x.sin() if x.is_floating_point() else 0.1 * (x.unsqueeze(-1) + torch.arange(8)).double().cos()
    return expand(model, x, h, **options)


def composed(x: Tensor) -> Decomposition:
    """The loss of two modules together, in the inputs' precision."""
    model = seeded(dense).to(x.dtype).eval()
    taus = [{n: 0.1 * k * torch.ones_like(p) for n, p in model.named_parameters()} for k in (1, -2)]
    return quadratic(model, nn.functional.mse_loss, x, torch.zeros(len(x), 3, dtype=x.dtype), taus)


IDS = (torch.tensor([[1, 2, 3, 4, 5], [3, 3, 9, 10, 0], [7, 1, 2, 2, 8]]),)
ROWS = {
    **{f"dense, {rules}": row(dense, (rand(3, 4),), rules=rules) for rules in ("zero", "epsilon", "gamma", "z+", "default")},
    **{f"convolutional, {rules}": row(convolutional, (rand(3, 2, 4, 4),), rules=rules) for rules in ("zero", "gamma", "z+", "default")},
    **{f"image composite {rules}": row(convolutional, (rand(3, 2, 4, 4),), rules=rules) for rules in ("EpsilonAlpha2Beta1Flat", "deep-taylor", "GuidedBackprop")},
    **{f"biases {b}": row(convolutional, (rand(3, 2, 4, 4),), rules="z+", biases=b) for b in ("distribute", "zero")},
    "biases absorbed": replace(row(dense, (rand(3, 4),), rules="gamma", biases="absorb"), exact=False),
    **{f"attention, {rules}": row(Attention, IDS, rules=rules) for rules in ("zero", "attnlrp", "cp-lrp", "epsilon")},
    "recurrent": row(recurrent, (rand(3, 5, 3),)),
    "recurrent, a chosen class": row(recurrent, (rand(3, 5, 3),), target=1),
    "dense in float32": row(dense, (rand(3, 4, dtype=torch.float32),), torch.float32),
    "attention in float32": row(Attention, IDS, torch.float32, rules="attnlrp"),
    "one sample": row(dense, (rand(1, 4),), rules="zero"),
    "a mapping of rules": row(dense, (rand(3, 4),), rules={"linear": "gamma", nn.GELU: "gradient"}),
    "a target of one's own": row(dense, (rand(3, 4),), target=_margin) if (_margin := lambda y: y[:, 0] - y[:, 1]) else None,
    "several targets": row(dense, (rand(3, 4),), target=[0, (2,), contrast(1), contrast(1, "probabilities")]),
    "a contrast, attention": row(Attention, IDS, target=contrast(1, 0), rules="attnlrp"),
    "from an inner module": row(convolutional, (rand(3, 2, 4, 4),), at="2"),
    "through a unit": row(Attention, IDS, through=("norm", 3), target=1, rules="attnlrp"),
    "grouped": row(convolutional, (rand(3, 2, 4, 4),), feature_mask=patches(4, 4, 2)),
    "in pieces": row(dense, (rand(3, 4),), max_memory="3KB", target=1),
    "shapley": baseline(shapley, exact=True),
    "shapley, pictures": baseline(shapley, convolutional, (rand(3, 2, 4, 4),), exact=True, patch=2, orders=4, batch_size=5),
    "shapley, tokens": baseline(shapley, Attention, IDS, exact=True, baseline=0),
    "over depth": baseline(over_depth, convolutional, (rand(3, 2, 4, 4),), exact=True),
    "over depth, moved copies": baseline(over_depth, convolutional, (rand(3, 2, 4, 4),), exact=True, shift=1, rules="z+"),
    "gradient x input": baseline(gradient_x_input),
    "gradient x input, no biases": baseline(gradient_x_input, unbiased, exact=True),
    "gradient x input, tokens": baseline(gradient_x_input, Attention, IDS),
    "integrated gradients": baseline(integrated_gradients, steps=3),
    "integrated gradients, linear": baseline(integrated_gradients, linear, exact=True, steps=1, rule="midpoint", baseline=0.3),
    "integrated gradients, tokens": baseline(integrated_gradients, Attention, IDS, steps=3, baseline=2),
    "integrated gradients in float32": baseline(integrated_gradients, dtype=torch.float32, steps=3),
    "smoothgrad": baseline(smoothgrad, n=3),
    "smoothgrad, tokens": baseline(smoothgrad, Attention, IDS, n=2, kind="squared"),
    "gradcam": baseline(gradcam, convolutional, (rand(3, 2, 4, 4),)),
    "occlusion": baseline(occlusion),
    "occlusion, linear": baseline(occlusion, linear, exact=True, baseline=0.3),
    "occlusion, pictures": baseline(occlusion, convolutional, (rand(3, 2, 4, 4),), patch=2, batch_size=5),
    "occlusion, tokens": baseline(occlusion, Attention, IDS, baseline=0),
    "a data set": Example(
        lambda x: explain_dataset(seeded(dense).double().eval(), x.split(2), target=1), exact=True, inputs=(rand(3, 4),), batched=False
    ),
    **{f"tokens, {rule}": tokens(Attention, IDS, biases=rule) for rule in ("absdot", "parts")},
    "tokens, one class": tokens(Attention, IDS, target=1),
    "tokens, in chunks": tokens(Attention, IDS, max_memory="55KB"),
    "features, by token": tokens(dense, (rand(3, 4),), biases="parts"),
    "tokens in float32": tokens(Attention, IDS, torch.float32),
    "attention, dynamiclrp": row(Attention, IDS, rules="dynamiclrp"),
    "convolutional, dynamiclrp": row(convolutional, (rand(3, 2, 4, 4),), rules="dynamiclrp"),
    "chefer": baseline(chefer, Attention, IDS, exact=True, target=1),
    "chefer, a contrast": baseline(chefer, Attention, IDS, exact=True, target=contrast(1, 0)),
    "dynamiclrp, several targets": row(Attention, IDS, rules="dynamiclrp", target=[0, contrast(1), contrast(1, "probabilities")]),
    "chefer in float32": baseline(chefer, Attention, IDS, dtype=torch.float32, exact=True),
    "expansion": baseline(towards, order=3, at=0.1),
    "expansion, of order ten": baseline(towards, lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (rand(3, 4),),
                                        exact=True, order=10, at=0.05),
    "expansion, tokens": baseline(towards, Attention, IDS, order=2),
    "residual paths": baseline(residual_expansion, Towers, (rand(3, 4),), order=3),
    "residual paths, weak branches": baseline(residual_expansion, Towers, (rand(3, 4),), exact=True, order=8, scale=0.02),
    "subsets of residual branches": baseline(subset_expansion, Towers, (rand(3, 4),), exact=True),
    "subsets of residual branches, tokens": baseline(subset_expansion, Attention, IDS, exact=True),
    "tangent": baseline(moved),
    "tangent, attention by groups": baseline(moved, Attention, IDS, params=["*norm*", "*"]),
    "tangent, the head alone": baseline(moved, exact=True, params="4.*"),
    "branches side by side": baseline(lambda m, x: shallow(m, x).decompose(x), Towers, (rand(3, 4),)),
    "branches side by side, with pairs": baseline(lambda m, x: shallow(m, x, order=2).decompose(x), Towers, (rand(3, 4),)),
    "lines through units": Example(
        lambda x: linearity_scores(seeded(dense).double().eval(), x)["1"], exact=False, inputs=(rand(3, 4),), batched=False
    ),
    "taylorshift": Example(taylor_shift_expansion, exact=False, inputs=tuple(rand(3, 2, 5, 4) for _ in "qkv")),
    "taylorshift, a causal layer": Example(
        lambda x: seeded(lambda: TaylorShiftAttention(4, 2).double()).expand(x, is_causal=True), exact=False, inputs=(rand(3, 5, 4),)
    ),
    "a composed loss": Example(composed, exact=False, inputs=(rand(3, 4),), batched=False),
    "two inputs": Example(lambda a, b: explain(lambda a, b: (a * b).sum(1), a, b), exact=True, inputs=(rand(3, 4), rand(3, 4) + 1)),
}  # fmt: skip


@pytest.mark.parametrize("example", ROWS.values(), ids=ROWS)
class TestContract(DecompositionContract):
    pass


# -- the contract can fail ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Halves(Decomposition):
    """A method of three lines, correct."""

    rank: int = 1


def halves(x: Tensor) -> Decomposition:
    x = x.detach()
    return Halves(x.clone(), {"one": x / 2, "other": torch.stack([x / 4, x / 4], -1)})


GOOD = Example(halves, exact=True, inputs=(rand(3, 2),))


def test_a_correct_method_passes_in_one_call():
    assert type(check_decomposition(halves, exact=True, inputs=(rand(3, 2),))) is Halves
    inexact = check_decomposition(
        lambda x: Decomposition(x.detach(), {"most": x.detach() * 0.9}), exact=False, inputs=(rand(3, 2),)
    )
    assert inexact.error() == pytest.approx(0.1)


class Leftover(Decomposition):
    """Its total is the whole whatever the parts are: it cannot fail."""

    def total(self) -> Tensor:
        return self.whole


class Pickled(Decomposition):
    def save(self, path):
        torch.save(self.whole, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")


MODEL = nn.Linear(2, 2).double().eval()


def writes_input(x):
    result = halves(x)
    x.mul_(2)
    return result


def trains(x):
    MODEL.weight.data.add_(1.0)
    return halves(x)


def backward(x):
    MODEL(x.detach()).sum().backward()
    return halves(x)


def hooks(x):
    MODEL.register_forward_hook(lambda *_: None)
    return halves(x)


BROKEN = {
    "a lost part": (lambda x: Decomposition(x.detach(), {"one": x.detach() / 2}), "check_passes_where_exact_and_can_fail"),
    "it cannot fail": (lambda x: Leftover(x.detach(), {"one": x.detach()}), "check_passes_where_exact_and_can_fail"),
    "no parts": (lambda x: Decomposition(x.detach() * 0, {}), "adds_up"),
    "an infinite whole": (lambda x: Decomposition(x.detach() / 0, {"one": x.detach() / 0}), "adds_up"),
    "a name that is no text": (lambda x: Decomposition(x.detach(), {0: x.detach()}), "names_are_unique_words"),
    "it writes to its input": (writes_input, "inputs_and_models_are_left_alone"),
    "it trains": (trains, "inputs_and_models_are_left_alone"),
    "it leaves gradients": (backward, "inputs_and_models_are_left_alone"),
    "it leaves hooks": (hooks, "inputs_and_models_are_left_alone"),
    "chance": (lambda x: Decomposition(x.detach(), {"a": x.detach() - (n := torch.randn(1)), "b": n.expand_as(x)}), "chance_is_its_own"),
    "another dtype": (lambda x: halves(x).to(torch.float32), "dtype_and_device_are_kept"),
    "parts of another dtype": (lambda x: Decomposition(x.detach(), {"one": x.detach().to(torch.complex128)}), "dtype_and_device_are_kept"),
    "a graph hangs on it": (lambda x: Decomposition(x, {"one": (x * nn.Parameter(torch.ones(1)))}), "nothing_hangs_on_the_result"),
    "it refuses grad": (lambda x: halves(x.numpy() is None or x), "inputs_that_require_grad_are_taken"),
    "it reads memory": (lambda x: Decomposition(d := torch.as_strided(x.detach(), x.shape, (2, 1)).clone(), {"one": d}), "inputs_with_strides_are_taken"),
    "it pickles": (lambda x: Pickled(x.detach(), {"one": x.detach()}), "save_and_load_are_a_round_trip"),
    "samples mix": (lambda x: halves(x - x.mean(0)), "slices_are_decompositions"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_the_contract_notices(name):
    global MODEL
    MODEL = nn.Linear(2, 2).double().eval()
    make, check = BROKEN[name]
    models = (MODEL,) if make in (trains, backward, hooks) else ()
    example = replace(GOOD, make=make, models=models)
    with pytest.raises(Exception) as problem:
        CHECKS[check](example)
    assert not isinstance(problem.value, (NameError, AttributeError))


def test_the_failing_check_is_named_and_can_be_excepted():
    with pytest.raises(AssertionError, match=r"chance_is_its_own: torch's global generator was used"):
        check_decomposition(BROKEN["chance"][0], exact=True, inputs=(rand(3, 2),))
    with pytest.raises(ValueError, match=r"no check of the contract is called chanse"):
        check_decomposition(halves, exact=True, inputs=(rand(3, 2),), exceptions={"chanse": "typo"})
    mixing = {"slices_are_decompositions": "it centres over the batch"}
    check_decomposition(BROKEN["samples mix"][0], exact=True, inputs=(rand(3, 2),), exceptions=mixing)


def test_every_check_is_a_test():
    tests = {name.removeprefix("test_") for name in vars(DecompositionContract) if name.startswith("test_")}
    assert tests == set(CHECKS)
