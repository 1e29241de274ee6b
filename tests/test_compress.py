"""`tw.compress`: budgets are kept, the account is right, the model is plain, and what makes no sense is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import termwise as tw
from termwise.weights import METHODS
from termwise.weights.layers import find_layers
from termwise.weights.low_rank_linear import GroupedLinear, LowRankLinear, Pivoted
from termwise.weights.recipe import construct, describe

PLAIN = (nn.Linear, nn.Conv2d, nn.Sequential, GroupedLinear, Pivoted, LowRankLinear)


def mlp(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 6)).double()


def cnn() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
        ).double()  # fmt: skip


def rows(n: int = 400, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 24, generator=g, dtype=torch.float64) @ torch.randn(24, 24, generator=g, dtype=torch.float64) * 0.3


def off(small: nn.Module, model: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - model(x)).norm() / model(x).norm())


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("unit", ["params", "flops", "bytes"])
def test_a_budget_is_kept_and_the_model_is_not_touched(method, unit):
    model, x = mlp(), rows()
    if METHODS[method].zeros and unit != "params":
        with pytest.raises(ValueError, match=f"saves no {unit}"):
            tw.compress(model, 0.6, data=x, method=method, unit=unit, progress=False)
        return
    before, state = copy.deepcopy(model), torch.random.get_rng_state()
    small = tw.compress(model, 0.6, data=x, method=method, unit=unit, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True))
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert small.kept <= 0.6
    count = torch.count_nonzero if METHODS[method].zeros else torch.numel
    stored = sum(int(count(p)) for n, p in small.model.named_parameters() if "bias" not in n)
    assert stored == sum(row.params for row in small.layers) <= 0.6 * sum(row.dense for row in small.layers)
    assert small.after == sum(p.numel() for p in small.model.parameters())
    assert all(isinstance(small.model.get_submodule(name), PLAIN) for name in small.parts)
    assert small.measured == pytest.approx(off(small.model, model, x[-96:]), rel=0.2)  # the last quarter of 13 batches
    for name, part in small.parts.items():
        assert torch.allclose(part.whole, model.get_submodule(name).weight)
        product = small.model.get_submodule(name)
        eye = torch.eye(part.whole.shape[1], dtype=torch.float64)
        assert torch.allclose((product(eye) - product(0 * eye)).T, part.total(), atol=1e-9)


@pytest.mark.parametrize("method", list(METHODS))
def test_the_whole_budget_is_the_model(method):
    model, x = mlp(), rows()
    small = tw.compress(model, 1.0, data=x, method=method, progress=False)
    assert off(small.model, model, x) < 1e-12
    assert small.measured < 1e-12


def test_methods_are_in_the_order_of_what_they_know():
    """On inputs that are far from round: blind, by size, by the layer's output, by the model's."""
    changes = {m: [] for m in ("svd", "asvd", "aware", "auto")}
    for seed in range(5):
        model, x = mlp(seed), rows(seed=seed) * torch.logspace(0.7, -1.5, 24, dtype=torch.float64)
        for method, found in changes.items():
            found.append(tw.compress(model, 0.5, data=x, method=method, progress=False).measured)
    svd, asvd, aware, auto = (np.median(v) for v in changes.values())
    assert auto < aware < asvd < svd


def test_the_expected_change_is_near_the_measured_one():
    ratios = []
    for seed in range(5):
        small = tw.compress(mlp(seed), 0.6, data=rows(1200, seed), progress=False)
        ratios.append(small.measured / small.predicted)
    assert 1 / 1.5 < np.median(ratios) < 1.5


def test_an_error_is_a_ceiling_on_the_output():
    model, x = mlp(), rows(1200)
    sizes = []
    for ceiling in (0.3, 0.1, 0.03):
        small = tw.compress(model, ceiling, unit="error", data=x, progress=False)
        assert small.measured < 1.3 * ceiling  # other data than it was chosen on
        sizes.append(small.kept)
        assert off(small.model, model, x[600:900]) == pytest.approx(small.selected, rel=0.1)
        assert small.selected <= ceiling
        assert f"by {small.selected:.2%} on those that the ceiling of {ceiling:.2%} holds on" in small.summary()
    assert "ceiling" not in tw.compress(model, 0.5, data=x, progress=False).summary()
    assert sizes[0] < sizes[1] < sizes[2] <= 1


def test_latency_is_measured():
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    small = tw.compress(model, 0.7, unit="latency", data=torch.randn(2048, 512), progress=False)
    assert small.kept <= 0.7 + 1e-9
    assert small.parts


def test_convolutions_and_what_is_left_alone():
    model = cnn()
    x = torch.randn(64, 3, 12, 12, dtype=torch.float64)
    small = tw.compress(model, 0.5, data=x, progress=False)
    assert small.left == {"3": "a grouped convolution"}
    assert {row.layer for row in small.layers} == {"0", "4", "8"}
    assert small.model(x).shape == (64, 5)
    assert off(small.model, model.eval(), x) < 0.9
    kept = tw.compress(model, 0.8, data=x, keep=["0", "8"], progress=False)
    assert set(kept.parts) <= {"4"}
    assert kept.left["0"] == "kept on request"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.up, self.down, self.head = nn.Linear(16, 40), nn.Linear(40, 16), nn.Linear(16, 30, bias=False)
        self.spare = nn.Linear(16, 16)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        h = self.embed(ids)
        if self.up.in_features != 16:  # reads an attribute that a sequence does not have
            raise AssertionError
        return self.head(h + self.down(torch.relu(self.up(h))))


def test_tied_weights_stay_tied_and_attributes_are_answered(tmp_path):
    model = Tied()
    ids = [torch.randint(30, (4, 9), generator=torch.Generator().manual_seed(i)) for i in range(12)]
    with pytest.warns(UserWarning, match="have no part in the output"):
        small = tw.compress(model, 0.6, data=ids, method="aware", progress=False)
    assert small.model.head.weight is small.model.embed.weight
    assert "tied" in small.left["head"]
    assert small.left["spare"] == "never reached by the data"
    assert isinstance(small.model.up, LowRankLinear)
    assert small.model.up.weight.shape == (40, 16)
    again = tw.load_compressed(small.save(tmp_path / "small"), Tied())
    assert again.head.weight is again.embed.weight
    assert torch.equal(again(ids[0]), small.model.eval()(ids[0]))


def test_saved_and_loaded_is_the_same_to_the_last_bit(tmp_path):
    for model, x in ((mlp(), rows()), (cnn(), torch.randn(64, 3, 12, 12, dtype=torch.float64))):
        small = tw.compress(model, 0.5, data=x, progress=False)
        folder = small.save(tmp_path / "small")
        fresh = mlp(1) if model[1].__class__ is nn.Tanh else cnn()
        before = copy.deepcopy(fresh.state_dict())
        again = tw.load_compressed(folder, fresh)
        assert torch.equal(again(x), small.model.eval()(x))
        assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in before.items())  # the one given is not changed
        small.save(folder)  # over an older one of ours
        recipe = json.loads((folder / "recipe.json").read_text())
        assert set(recipe["replaced"]) == set(small.parts)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["small"]  # nothing half-written beside it


def test_the_file_of_modules_needs_torch_alone(tmp_path):
    folder = tw.compress(mlp(), 0.5, data=rows(), progress=False).save(tmp_path / "small")
    space: dict = {}
    exec((folder / "low_rank_linear.py").read_text(), space)
    assert {"LowRankLinear", "Pivoted"} <= set(space)
    assert "termwise" not in (folder / "low_rank_linear.py").read_text()


def test_hostile_folders_are_refused(tmp_path):
    folder = tw.compress(mlp(), 0.5, data=rows(), progress=False).save(tmp_path / "small")
    recipe = json.loads((folder / "recipe.json").read_text())
    name = next(iter(recipe["replaced"]))
    for change, text in (
        ({"class": "os.system"}, "got 'os.system'"),
        ({"class": "Linear", "in_features": "x", "out_features": 2, "bias": True, "dtype": "float32"}, "cannot be read"),
        ("import os", "got 'import os'"),
    ):
        (folder / "recipe.json").write_text(json.dumps({**recipe, "replaced": {name: change}}))
        with pytest.raises(ValueError, match=text):
            tw.load_compressed(folder, mlp())
    (folder / "recipe.json").write_text(json.dumps({**recipe, "replaced": {"no.such": recipe["replaced"][name]}}))
    with pytest.raises(ValueError, match="does not have"):
        tw.load_compressed(folder, mlp())
    (folder / "recipe.json").write_text(json.dumps({**recipe, "format": 99}))
    with pytest.raises(ValueError, match="update termwise"):
        tw.load_compressed(folder, mlp())
    (folder / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match="no recipe"):
        tw.load_compressed(folder, mlp())
    (folder / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"config\.json"):
        tw.load_compressed(folder)
    (folder / "compressed.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match="do not fit"):
        tw.load_compressed(folder, mlp())
    with pytest.raises(FileNotFoundError, match=r"no recipe\.json"):
        tw.load_compressed(tmp_path, mlp())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="something else"):
        tw.compress(mlp(), 0.5, data=rows(), progress=False).save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_recipes_are_read_as_they_were_written():
    for module in (
        nn.Linear(3, 4, bias=False).half(),
        nn.Conv2d(4, 6, (1, 3), 2, "valid", groups=2),
        nn.Sequential(nn.Linear(2, 3)),
    ):
        again = construct(json.loads(json.dumps(describe(module))))
        assert str(again) == str(module)
        assert [p.dtype for p in again.parameters()] == [p.dtype for p in module.parameters()]
    with pytest.raises(TypeError, match="LSTM is no module"):
        describe(nn.LSTM(2, 2))


@pytest.mark.parametrize("method", ["auto", "aware"])
def test_an_interrupted_run_goes_on_to_the_same_result(method, tmp_path, monkeypatch):
    model, x = mlp(), rows()
    whole = tw.compress(model, 0.5, data=x, method=method, work=tmp_path / "whole", progress=False)
    tmp_path = tmp_path / "again"
    fit, done = METHODS[method].fit, []

    def interrupted(evidence):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(evidence.layer.name)
        return fit(evidence)

    monkeypatch.setitem(METHODS, method, dataclasses.replace(METHODS[method], fit=interrupted))
    with pytest.raises(KeyboardInterrupt):
        tw.compress(model, 0.5, data=x, method=method, work=tmp_path, progress=False)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    done.clear()
    small = tw.compress(model, 0.5, data=x, method=method, work=tmp_path, progress=False)
    assert done == ["4"]  # the others were there
    assert torch.equal(small.model(x), whole.model(x))
    assert small.layers == whole.layers
    with pytest.raises(ValueError, match=r"shrinkage 0\.1 is now 0\.2"):
        tw.compress(model, 0.5, data=x, method=method, work=tmp_path, shrinkage=0.2, progress=False)
    with pytest.raises(ValueError, match="holds work for something else"):
        tw.compress(model[:4].append(nn.Sequential(model[4])), 0.5, data=x, method=method, work=tmp_path, progress=False)


def test_work_is_for_one_model_with_its_settings_and_data(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, scale, activation=torch.tanh):
            super().__init__()
            self.net, self.settings, self.activation = mlp(), {"scale": scale}, activation
            self.register_buffer("shift", torch.zeros(6), persistent=False)

        def forward(self, x, power=1):
            return self.activation(self.net(x) * self.settings["scale"]) ** power + self.shift

    x = [{"x": batch, "power": 1} for batch in rows().split(50)]
    run = lambda model, data=x: tw.compress(model, 0.5, data=data, work=tmp_path, progress=False)
    first = run(Scaled(1.0))
    assert torch.equal(run(Scaled(1.0).train()).model.net(rows()), first.model.net(rows()))
    moved = Scaled(1.0)
    moved.shift += 1
    for other in (Scaled(2.0), Scaled(1.0, torch.sigmoid), moved):
        with pytest.raises(ValueError, match=r"something else.*model .* is now"):
            run(other)
    with pytest.raises(ValueError, match=r"something else.*data .* is now"):
        run(Scaled(1.0), [{**batch, "power": 2} for batch in x])


def test_what_comes_next_may_work_in_place():
    """VGG and its kind: ReLU(inplace=True) behind the first layer, and h += x."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 4)

        def forward(self, x):
            h = self.a(x)
            h += x
            return self.out(torch.relu_(self.b(h)))

    for model in (nn.Sequential(nn.Linear(24, 40), nn.ReLU(inplace=True), nn.Linear(40, 4)).double(), Residual().double()):
        small = tw.compress(model, 0.7, data=rows(), progress=False)
        assert small.measured < 0.9
        assert np.isfinite(small.predicted)


def test_one_logit_has_no_softmax():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 1)).double()

        def forward(self, x):
            return {"aux": x.sum(), "logits": self.net(x)}

    small = tw.compress(One(), 0.6, data=rows(), progress=False)
    assert small.metric == "l2"
    assert small.measured > 0  # of the logits, and not of what comes first
    with pytest.raises(ValueError, match=r"logits of classes on the last axis.*\(\d+, 1\)"):
        tw.compress(One(), 0.6, data=rows(), metric="kl", progress=False)


def test_few_rows_held_out_are_not_an_error_of_zero():
    """The mean that the bias takes is that of the fit: on other data it is off, which is part of the error."""
    model = nn.Sequential(nn.Linear(24, 30), nn.Tanh(), nn.Linear(30, 6)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        small = tw.compress(model, 0.5, data=rows(5), progress=False)
    assert small.predicted > 0.01


def test_a_shared_block_is_no_trouble():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.out = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 4)

        def block(self, x, y):
            return torch.tanh(self.q(x) * self.k(y))

        def forward(self, x):
            h = self.block(x, x)  # they read one tensor here
            return self.out(self.block(h, x))  # and two here

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert tw.compress(Twice().double(), 0.7, data=rows(), progress=False).kept <= 0.7


def test_layers_without_a_part_in_the_output_count_in_no_budget():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.idle, self.aux = nn.Linear(24, 24), nn.Linear(24, 4), nn.Linear(200, 200), nn.Linear(24, 90)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(h), self.aux(h).argmax(-1)  # no number that could change a little

    with pytest.warns(UserWarning, match="2 layers"):
        small = tw.compress(Idle().double(), 0.6, data=rows(), progress=False)
    assert {row.layer for row in small.layers} == {"a", "b"}
    assert small.left == {"idle": "never reached by the data", "aux": "the output does not depend on it"}


def test_a_subclass_with_a_forward_of_its_own_is_left_alone():
    class SamePadded(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    class Named(nn.Linear):
        """Only called otherwise."""

    model = nn.Sequential(
        SamePadded(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), Named(32 * 9, 40), nn.Linear(40, 4)
    )
    x = torch.randn(64, 3, 10, 10)
    small = tw.compress(model, 0.6, data=x, progress=False)
    assert small.left == {"0": "SamePadded has a forward of its own"}
    assert {row.layer for row in small.layers} == {"2", "4", "5"}
    assert small.model(x).shape == (64, 4)


def test_what_lies_in_a_kept_module_is_kept():
    model = nn.Sequential(nn.Linear(24, 30), nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4))).double()
    small = tw.compress(model, 0.9, data=rows(), keep="1", progress=False)
    assert set(small.left) == {"1.0", "1.2"}
    assert {row.layer for row in small.layers} == {"0"}


def test_what_tokenizers_return_is_read():
    from collections import UserDict

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x, scale):
            return self.net(x) * scale

    batches = [UserDict(x=chunk, scale=torch.ones(())) for chunk in rows().split(50)]
    assert tw.compress(Named(), 0.6, data=batches, progress=False).kept <= 0.6


def test_in_place():
    model, x = mlp(), rows()
    small = tw.compress(model, 0.5, data=x, inplace=True, progress=False)
    assert small.model is model
    assert small.after < small.before
    assert any(isinstance(m, Pivoted) for m in model.modules())


def test_loaders_of_inputs_and_labels_will_do():
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(rows(), torch.zeros(400)), batch_size=50)
    a, b = (tw.compress(mlp(), 0.5, data=d, progress=False).measured for d in (loader, list(rows().split(50))))
    assert a == b


def test_few_batches_are_said():
    with pytest.warns(UserWarning, match="not held out"):
        small = tw.compress(mlp(), 0.5, data=[rows(1)], progress=False)
    assert "on the very data it was fitted to" in small.summary()
    assert "held-out" not in small.summary()
    assert "on held-out data" in tw.compress(mlp(), 0.5, data=rows(), progress=False).summary()


def test_the_report_says_all():
    small = tw.compress(mlp(), 0.5, data=rows(), keep=["4"], progress=True)
    text = small.report()
    assert "kept on request" in text
    assert f"{small.measured:.2%}" in text
    assert "expected" in small.summary()
    assert len(small.to_frame()) == 2
    assert "Compressed(auto" in repr(small)
    bars, table, left = small.pictures()
    assert bars.values["numbers kept"] == [row.params / row.dense for row in small.layers]
    assert sum(bars.values["of the expected error"]) == pytest.approx(1)
    assert [row[0] for row in table.rows] == [row.layer for row in sorted(small.layers, key=lambda row: -row.error)]
    assert left.rows == [["4", "kept on request"]]
    assert len(small.plot().axes) == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": 0}, "positive number"),
        ({"budget": -0.5}, "positive number"),
        ({"budget": float("nan")}, "positive number"),
        ({"budget": True}, "positive number"),
        ({"budget": 50}, "write budget=0.5"),
        ({"budget": 1e-4}, "below the least that 'auto' can make of these layers, 0.0"),
        ({"unit": "megabytes"}, "params, flops"),
        ({"method": "atuo"}, "did you mean 'auto'"),
        ({"method": "zzz"}, "There are: auto"),
        ({"metric": "mse"}, "'l2', 'kl' or 'auto'"),
        ({"shrinkage": 2}, "from 0 to 1"),
        ({"keep": ["nothing*"]}, "fits no module"),
        ({"keep": ["*"]}, "nothing in this model"),
        ({"data": torch.zeros(8, 3, dtype=torch.float64)}, r"does not take this batch of data, \(1, 3\)"),
        ({"data": torch.full((8, 24), torch.nan, dtype=torch.float64)}, "holds NaN"),
        ({"data": []}, "data is empty"),
        ({"data": torch.zeros(0, 24)}, "data is empty"),
    ],
)
def test_what_makes_no_sense_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        tw.compress(mlp(), **{"budget": 0.5, "data": rows(), "progress": False, **options})


def test_models_that_cannot_be_compressed():
    with pytest.raises(TypeError, match="tensor of samples or batches"):
        tw.compress(mlp(), 0.5, data=3, progress=False)
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        tw.compress(nn.ReLU(), 0.5, data=rows(), progress=False)
    broken = mlp()
    broken[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        tw.compress(broken, 0.5, data=rows(), progress=False)
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(24, 8)), nn.Linear(8, 8))
    assert "computed from other parameters" in find_layers(model)[1]["0"]


def test_a_layer_of_zeros_costs_nothing_to_drop():
    model = mlp()
    model[2].weight.data.zero_()
    small = tw.compress(model, 0.7, data=rows(), progress=False)
    row = next(row for row in small.layers if row.layer == "2")
    assert row.params < row.dense
    assert np.isfinite(small.measured)


def test_layers_may_be_called_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(24, 40), nn.Linear(40, 6)

        def forward(self, x):
            return self.b(input=torch.tanh(self.a(input=x)))

    for method in ("auto", "aware", "rom"):
        small = tw.compress(ByName().double(), 0.6, data=rows(), method=method, progress=False)
        assert small.parts
        assert small.measured < 1
    assert tw.compress(ByName().double(), 0.9, data=rows(), unit="latency", progress=False).kept <= 0.9


@pytest.mark.filterwarnings("ignore:the output changes")  # 40 pictures are few
def test_pictures_may_come_one_by_one():
    """Without an axis of samples, where convolutions stand in sequences and in pivoted layers."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 4)

        def forward(self, x):
            return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((-1, -2)))

    model, x = One().double(), torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = tw.compress(model, 0.85, data=list(x), progress=False)
    together = tw.compress(model, 0.85, data=list(x.split(1)), progress=False)
    assert alone.parts
    assert any(isinstance(m, Pivoted) for m in alone.model.modules())
    assert alone.measured == pytest.approx(together.measured, rel=0.2)


def test_labels_are_not_taken_for_an_optional_argument():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x, mask=None):
            return self.net(x if mask is None else x * mask)

    x, labels = rows(), torch.arange(400) % 2
    pairs = list(zip(x.split(50), labels[:, None].split(50), strict=True))
    with pytest.raises(ValueError, match=r"2 entries and forward requires 1.*'mask'.*labels, leave them out"):
        tw.compress(Masked(), 0.6, data=pairs, progress=False)
    named = [{"x": a, "mask": b} for a, b in pairs]
    assert tw.compress(Masked(), 0.6, data=named, progress=False).kept <= 0.6
    assert tw.compress(Masked(), 0.6, data=[(a,) for a, _ in pairs], progress=False).kept <= 0.6


def test_training_the_small_model_does_not_move_the_statistics_of_the_model():
    model, x = cnn(), torch.randn(64, 3, 12, 12, dtype=torch.float64)
    small = tw.compress(model, 0.5, data=x, progress=False)
    before = copy.deepcopy(dict(model.named_buffers()))
    small.model.train()(x)
    assert not torch.equal(small.model[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert small.model[1].weight is model[1].weight  # parameters that stay are shared, as it says


class Heads(nn.Module):
    """Two outputs, one a thousand times as large as the other, and what is none of either."""

    def __init__(self, size: float = 1e-3):
        super().__init__()
        self.size = size
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.a, self.b = nn.Linear(24, 30), nn.Linear(30, 8), nn.Linear(30, 8)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return {"a": self.a(h), "more": (self.size * self.b(h), h.sum(), h[:2])}


def test_every_tensor_of_the_output_counts():
    model = Heads().double()
    small = tw.compress(model, 0.5, data=rows(), progress=False)
    kept = {row.layer: row.params / row.dense for row in small.layers}
    assert 0.6 < kept["b"] / kept["a"] < 1.6  # neither is forgotten
    x = rows()[-96:]
    with torch.no_grad():
        pairs = [(f["a"], f["more"][0]) for f in (model(x), small.model(x))]
    far = [float((p - q).norm() / p.norm()) ** 2 for p, q in zip(*pairs, strict=True)]
    assert small.measured == pytest.approx(np.mean(far) ** 0.5, rel=0.1)
    assert 1 / 1.5 < small.measured / small.predicted < 1.5
    assert "counted of the output: a, more.0, each relative to its own size" in small.report()
    assert "not more.1 (one number for all samples)" in small.report()
    assert "not more.2 (shape (2, 30), and there are 32 samples)" in small.counted
    assert "counted" not in tw.compress(mlp(), 0.5, data=rows(), progress=False).report()
    with pytest.raises(ValueError, match=r"one tensor of logits.*a, more\.0"):
        tw.compress(model, 0.5, data=rows(), metric="kl", progress=False)


@pytest.mark.parametrize("method", ["svd", "aware"])
def test_several_outputs_count_for_every_method(method):
    """A layer behind the second output alone, made useless, shows in the change."""
    small = tw.compress(Heads(1.0).double(), 0.17, data=rows(), method=method, keep=["body", "a"], progress=False)
    assert small.measured > 0.3


class Unrolled(nn.Module):
    """One layer, run six times."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.step, self.head = nn.Linear(24, 24), nn.Linear(24, 6)

    def forward(self, x):
        for _ in range(6):
            x = x + 0.3 * torch.tanh(self.step(x))
        return self.head(x)


def test_errors_of_a_layer_that_is_called_again_add_up():
    small = tw.compress(Unrolled().double(), 0.8, data=rows(1200), keep=["head"], progress=False)
    assert 1 / 1.3 < small.measured / small.predicted < 1.3


class Reads(nn.Module):
    """Tokens, each on its own or pooled, whose padding is far from anything else."""

    def __init__(self, pooled: bool):
        super().__init__()
        self.pooled = pooled
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table, self.up, self.head = nn.Embedding(40, 24), nn.Linear(24, 40), nn.Linear(40, 8)
        self.table.weight.data[0] = 30

    def forward(self, input_ids, attention_mask=None):
        h = torch.tanh(self.up(self.table(input_ids)))
        if self.pooled:
            kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            h = (h * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        y = self.head(h)
        return {"logits": y} if not self.pooled else y


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("unit", ["params", "error"])
def test_padding_counts_nowhere(pooled, unit):
    """The same texts, once each as long as it is, and once padded."""
    g = torch.Generator().manual_seed(0)
    bare, padded = [], []
    for _ in range(24):
        ids = torch.randint(1, 40, (256, 6), generator=g)
        bare.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        more = torch.nn.functional.pad(ids, (0, 14))
        padded.append({"input_ids": more, "attention_mask": (more > 0).long()})
    a, b = (tw.compress(Reads(pooled).double(), 0.5, unit=unit, data=d, progress=False) for d in (bare, padded))
    assert a.metric == b.metric
    assert b.measured == pytest.approx(a.measured, rel=0.05)
    assert b.predicted == pytest.approx(a.predicted, rel=0.1)  # signs and labels are drawn for other shapes
    assert b.kept == pytest.approx(a.kept, rel=0.05)


class Sequences(nn.Module):
    def __init__(self, batch_first: bool):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.block = nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=batch_first)
            self.up, self.head = nn.Linear(24, 24), nn.Linear(24, 6)

    def forward(self, x):
        return self.head(self.block(torch.tanh(self.up(x))))


@pytest.mark.filterwarnings("ignore:.*TransformerEncoder.*", "ignore:1 layers")
def test_samples_along_another_axis():
    x = rows(16 * 120).reshape(120, 16, 24)
    with pytest.raises(ValueError, match=r"cut along their first axis.*batch_first=False.*list of batches"):
        tw.compress(Sequences(False).double(), 0.6, data=x.transpose(0, 1), progress=False)
    with pytest.raises(ValueError, match="list of batches"):
        tw.compress(Sequences(False).double(), 0.6, data=[x.transpose(0, 1)], progress=False)
    batches = x.split(10)
    first = tw.compress(Sequences(True).double(), 0.6, data=list(batches), progress=False)
    second = tw.compress(Sequences(False).double(), 0.6, data=[b.transpose(0, 1) for b in batches], progress=False)
    assert second.measured == pytest.approx(first.measured, rel=0.1)
    assert second.predicted == pytest.approx(first.predicted, rel=0.3)  # of a whole batch at once, which is noisier


def test_data_sorted_by_label_are_noticed():
    x, labels = rows(), torch.arange(400) // 40
    mixed = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    batches = lambda order, y: list(zip(x[order].split(50), y[order].split(50), strict=True))
    with pytest.warns(UserWarning, match="sorted by label"):
        tw.compress(mlp(), 0.5, data=batches(torch.arange(400), labels), progress=False)
    tw.compress(mlp(), 0.5, data=batches(mixed, labels), progress=False)
    tw.compress(mlp(), 0.5, data=batches(torch.arange(400), torch.arange(400)), progress=False)  # numbers of samples


@pytest.mark.filterwarnings("ignore:.*TransformerEncoder.*", "ignore:1 layers")
def test_an_output_may_have_several_rows_of_a_sample():
    class Flat(Sequences):
        def forward(self, x):
            return super().forward(x).flatten(0, 1)

    x = rows(16 * 120).reshape(120, 16, 24)
    first, flat = (tw.compress(make(True).double(), 0.6, data=x, progress=False) for make in (Sequences, Flat))
    assert flat.measured == pytest.approx(first.measured, rel=0.05)
    assert flat.predicted == pytest.approx(first.predicted, rel=0.3)  # of a whole batch at once, which is noisier


@pytest.mark.parametrize(
    ("method", "unit"), [("auto", "params"), ("auto", "error"), ("auto", "latency"), ("aware", "params"), ("aware", "error")]
)
def test_passes_are_stated_as_they_are(method, unit, capsys):
    from termwise.weights.judged import Judged

    class Counted(nn.Module):
        forwards = backwards = 0

        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            Counted.forwards += 1
            y = self.net(x)
            if y.requires_grad and torch.is_grad_enabled():
                y.register_hook(lambda gradient: setattr(Counted, "backwards", Counted.backwards + 1))
            return y

    batches = list(rows(1200).split(50))
    with torch.no_grad():
        Judged.of(Counted(), batches[0])  # which comes before anything is said
    before = Counted.forwards
    tw.compress(Counted(), 0.5, data=batches, method=method, unit=unit, progress=True)
    said = re.search(r"layers; (\d+) forward(?: and (\d+) backward)? passes", capsys.readouterr().out)
    assert int(said[1]) == Counted.forwards - 2 * before
    assert int(said[2] or 0) == Counted.backwards
