"""Layer-adaptive pruning: errors measured at the output, masks chosen together, and what is honest about zeros."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import termwise as tw
from termwise.testing import check_decomposition
from termwise.weights import METHODS, Masks, distortion_curves, find_layers, joint_distortion, prune
from termwise.weights.batches import read_batches
from termwise.weights.evidence import Evidence
from termwise.weights.measured_errors import measured


def seeded(make, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double().eval()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)))


class Writing(nn.Module):
    """Writes into what its modules put out, so that nothing of it can be kept from one run to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(6, 8), nn.Linear(8, 8), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h += 1.0
        y = self.second(torch.tanh(h))
        h.add_(y)
        return self.act(h)


class Twice(nn.Module):
    """One module at three places, before and after the others."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.inner, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.shared(torch.tanh(self.shared(x)))
        return {"logits": self.shared(x + self.inner(self.norm(x)))}


class Deep(nn.Module):
    """Blocks within a list, called with keywords, giving tuples."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

        def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> tuple[torch.Tensor, int]:
            return x + scale * self.down(torch.relu(self.up(x))), 0

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(self.Block() for _ in range(3)), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x, _ = block(x, scale=0.5)
        return self.head(x)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 2), nn.Flatten(), nn.Linear(6, 3)
    )


SUBJECTS = {
    "perceptron": (mlp, (6,)),
    "writing": (lambda: seeded(Writing), (6,)),
    "shared": (lambda: seeded(Twice), (6,)),
    "blocks": (lambda: seeded(Deep), (6,)),
    "convolutions": (lambda: seeded(convolutional), (1, 2, 2)),
}


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = model(x)
    return (y["logits"] if isinstance(y, dict) else y).detach()


# -- errors at the output ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("worst_case", [False, True])
def test_distortions_are_those_of_the_whole_model(subject, worst_case):
    """Slow twin: for each layer and share a copy of the model, its smallest weights set to zero, and one plain run."""
    make, shape = SUBJECTS[subject]
    model, x = make(), normal(64, *shape)
    before = copy.deepcopy(model.state_dict())
    curves = distortion_curves(model, x, grid=6, worst_case=worst_case)
    truth = output(model, x)
    for name, ladder in curves.items():
        assert ladder.labels[-1] == "dense"
        assert ladder.errors[-1] == 0
        for kept, error in zip(ladder.params[:-1], ladder.errors[:-1], strict=True):
            other = copy.deepcopy(model)
            weight = other.get_submodule(name).weight.data.view(-1)
            weight[weight.abs().argsort()[: len(weight) - kept]] = 0
            far = (output(other, x) - truth).square().flatten(1).sum(1)
            assert error == pytest.approx(float(far.max() if worst_case else far.mean()), rel=1e-9, abs=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any("forward" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_comes_before_a_layer_is_computed_once(monkeypatch):
    calls, linear = [], nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *args: calls.append(args) or linear(*args))

    model = seeded(lambda: nn.Sequential(*(nn.Linear(5, 5) for _ in range(4))))
    curves = distortion_curves(model, [normal(16, 5)], grid=11)
    choices = sum(len(ladder) - 1 for ladder in curves.values())
    # a batch is a run of four; each choice runs its layer and what follows; the layer as it is twice, to see that what was kept is right
    behind = sum((len(ladder) - 1) * (3 - i) for i, ladder in enumerate(curves.values()))
    checks = 2 * sum(4 - i for i in range(1, 4))
    judged = 2 * 4  # what counts of the output is looked at on one batch and on half of it
    assert len(calls) == judged + 4 * (4 + choices + behind + checks) < 4 * 4 * choices


def test_the_last_choice_of_a_ladder_and_the_ends_of_the_grid():
    curves = distortion_curves(mlp(), normal(32, 6), grid=11)
    for ladder in curves.values():
        assert ladder.params[-1] == ladder.layer.size
        assert ladder.params[0] >= 1
        assert (np.diff(ladder.params) > 0).all()
        assert ladder.params[0] == max(1, int(0.1 * ladder.layer.size + 1e-9))  # 90 % is the largest share up to 98 %
    capped = distortion_curves(mlp(), normal(32, 6), grid=11, most=0.5)
    assert min(ladder.params[0] / ladder.layer.size for ladder in capped.values()) >= 0.5


def test_every_batch_counts_once():
    """However few there are: nothing is held out."""
    x = normal(48, 6)
    for data in ([x], [x[:24], x[24:]], list(x.split(8)), x):
        assert sum(len(batch) for batch in read_batches(data).every) == 48
    one, other = (distortion_curves(mlp(), d, grid=5)["2"].errors for d in ([x], list(x.split(8))))
    assert np.allclose(one, other, rtol=1e-12)


def test_wanda_prunes_by_what_its_inputs_are():
    model, x = mlp(), normal(64, 6) * torch.logspace(0, -3, 6, dtype=torch.float64)
    curves = distortion_curves(model, x, score="wanda", grid=5)
    inputs = {"0": x, "2": torch.tanh(model[0](x)).detach()}
    for name, rows in inputs.items():
        scores = model.get_submodule(name).weight.detach().abs() * rows.square().mean(0).sqrt()
        mask = curves[name].build(0).weight.factors["kept"]
        assert torch.equal(mask != 0, scores >= scores.flatten().sort(descending=True).values[int(mask.sum()) - 1])


def test_methods_without_runs_can_be_measured_too():
    """The same evidence for low-rank choices: against one replaced at a time."""
    model, x = mlp(), normal(48, 6)
    layers = find_layers(model)[0]
    ladders = {n: METHODS["svd"].ladder(layer, METHODS["svd"].fit(Evidence(layer))) for n, layer in layers.items()}
    found = measured(model, [x], ladders)
    for name, ladder in found.items():
        for i in range(len(ladder)):
            other = copy.deepcopy(model)
            other.get_submodule(name).weight.data.copy_(
                ladder.layer.matrix if (part := ladders[name].build(i).weight) is None else part.total()
            )
            assert ladder.errors[i] == pytest.approx(
                float((output(other, x) - output(model, x)).square().sum(1).mean()), rel=1e-9, abs=1e-12
            )


# -- masks chosen together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_no_other_masks_of_the_grid_spoil_less(sparsity):
    model = mlp()
    curves = distortion_curves(model, normal(64, 6), grid=8)
    masks = prune(model, sparsity, curves)
    assert masks.sparsity >= sparsity
    size = sum(ladder.layer.size for ladder in curves.values())
    best = min(
        sum(float(ladder.errors[i]) for ladder, i in zip(curves.values(), chosen, strict=True))
        for chosen in itertools.product(*(range(len(ladder)) for ladder in curves.values()))
        if sum(int(ladder.params[i]) for ladder, i in zip(curves.values(), chosen, strict=True)) <= (1 - sparsity) * size
    )
    assert masks.expected == pytest.approx(best, rel=1e-9)
    for name, mask in masks.items():  # the largest weights stay
        w = model.get_submodule(name).weight.detach().abs()
        assert not mask.all() or masks[name].numel() == w.numel()
        if not mask.all():
            assert w[mask].min() >= w[~mask].max()


def test_a_later_round_keeps_no_more():
    model, x = mlp(), normal(64, 6)
    first = prune(model, 0.5, distortion_curves(model, x, grid=21))
    zeroed = first.apply(model)
    second = prune(zeroed, 0.7, distortion_curves(zeroed, x, grid=21), first)
    assert second.sparsity >= 0.7
    assert not any((second[name] & ~first[name]).any() for name in first)
    few = {name: mask.clone() for name, mask in first.items()}
    few["4"] = torch.zeros_like(first["4"])
    few["4"][0, 0] = True  # a layer that would rather keep all
    again = distortion_curves(model, x, grid=51)
    assert prune(model, 0.3, again)["4"].sum() > 1
    assert prune(model, 0.3, again, Masks(few))["4"].sum() == 1


def test_applying_masks_leaves_the_model():
    model, x = mlp(), normal(8, 6)
    masks = prune(model, 0.6, distortion_curves(model, x, grid=11))
    before = copy.deepcopy(model.state_dict())
    small = masks.apply(model)
    for name, mask in masks.items():
        assert torch.equal(small.get_submodule(name).weight, model.get_submodule(name).weight * mask)
        assert torch.equal(small.get_submodule(name).bias, model.get_submodule(name).bias)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert repr(small) == repr(model)


def test_the_joint_distortion_is_taken_apart():
    model, x = mlp(), normal(40, 6)
    masks = prune(model, 0.5, distortion_curves(model, x, grid=11))
    found = check_decomposition(lambda x: joint_distortion(model, masks, x), exact=False, inputs=(x,), models=(model,))

    def far(kept: dict[str, torch.Tensor]) -> torch.Tensor:
        other = copy.deepcopy(model)
        for name, mask in kept.items():
            other.get_submodule(name).weight.data.mul_(mask)
        return (other(x) - model(x)).square().sum(1).detach()

    assert torch.allclose(found.whole, far(masks), rtol=1e-10)
    for name in masks:
        assert torch.allclose(found.parts[name], far({name: masks[name]}), rtol=1e-10)
    assert float(found.total().mean()) == pytest.approx(masks.expected, rel=1e-9)  # on the data it was measured on
    single = joint_distortion(model, {"2": masks["2"]}, x)
    assert single.error() == 0


def test_small_distortions_add_up():
    """Of second order: with weights that are nearly zero, what two layers do together is what they do apart, on average."""
    model, x = mlp(), normal(4000, 6)
    for layer in (model[0], model[2]):
        layer.weight.data[:, ::2] *= 1e-4
    masks = {n: (model.get_submodule(n).weight.abs() > 1e-3) for n in ("0", "2")}
    found = joint_distortion(model, masks, x)
    assert 0.3 < float(found.whole.mean() / found.total().mean()) < 3


# -- in compress ------------------------------------------------------------------------------------------------------


def test_compress_says_zeros_and_no_more(tmp_path):
    model, x = mlp(), normal(256, 6)
    small = tw.compress(model, 0.4, data=x, method="prune", progress=False)
    assert small.kept <= 0.4
    assert small.zeros == sum(int((p == 0).sum()) for p in small.model.parameters())
    assert f"{small.zeros:,} of" in small.summary()
    assert "are zeros" in small.summary()
    assert "as large and as fast as it was" in small.report()
    assert small.after == small.before
    assert {part.form for part in small.parts.values()} == {"masked"}
    for name, part in small.parts.items():
        assert torch.equal(part.total(), small.model.get_submodule(name).weight)
        assert part.rank == int((part.total() != 0).sum())
        assert "weights kept, adds up to" in part.summary()
    assert small.measured == pytest.approx(small.predicted, rel=0.7)
    again = tw.load_compressed(small.save(tmp_path / "small"), mlp())
    assert torch.equal(again(x), small.model(x))
    assert tw.compress(model, 0.5, data=x, method="aware", progress=False).zeros == 0


def test_errors_at_the_output_choose_better_than_errors_in_the_weights():
    ahead = []
    for seed in range(5):
        model, x = (
            seeded(lambda: nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)), seed),
            normal(400, 6),
        )
        model[2].weight.data *= 0.2
        measured_there = tw.compress(model, 0.5, data=x, method="prune", progress=False).measured
        METHODS["by weight"] = dataclasses.replace(METHODS["prune"], measure=None)
        try:
            ahead.append(measured_there / tw.compress(model, 0.5, data=x, method="by weight", progress=False).measured)
        finally:
            del METHODS["by weight"]
    assert np.median(ahead) < 0.9


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda m, x: distortion_curves(m, x, score="oba"), "'magnitude' or 'wanda', got 'oba'"),
        (lambda m, x: distortion_curves(m, x, grid=1), "from 2 on"),
        (lambda m, x: distortion_curves(m, x, most=1.0), r"between 0 and 1, got 101 and 1\.0"),
        (lambda m, x: distortion_curves(m, x[:, :3]), "does not take this batch"),
        (lambda m, x: distortion_curves(m, []), "data is empty"),
        (lambda m, x: prune(m, 1.0, distortion_curves(m, x, grid=3)), r"below 1, got 1\.0"),
        (lambda m, x: prune(m, 0.95, distortion_curves(m, x, grid=3)), "below the cheapest choices"),
        (lambda m, x: prune(seeded(Deep), 0.5, distortion_curves(m, x, grid=3)), "no layer '0'"),
        (lambda m, x: joint_distortion(m, {"0": torch.ones(3, 3, dtype=torch.bool)}, x), r"no layer '0' of shape \(3, 3\)"),
        (lambda m, x: Masks({"9": torch.ones(3, 3, dtype=torch.bool)}).apply(m), "its layers are 0, 2, 4"),
        (lambda m, x: measured(m, [], {}), "no batches"),
        (lambda m, x: tw.compress(m, 0.5, data=x, method="prune", unit="latency", progress=False), "saves no latency"),
    ],
)
def test_what_makes_no_sense_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make(mlp(), normal(64, 6))
