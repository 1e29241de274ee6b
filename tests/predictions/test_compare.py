"""`compare`: every row alike, what each says, what cannot run, tables and pictures."""

import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import termwise as tw
from termwise.predictions import gradient_x_input, occlusion, perturbation_curves

DOUBLE = torch.float64


def dense(batch: int = 6) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    return model, torch.randn(batch, 6, dtype=DOUBLE)


def pictures() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    ).double()
    return model.eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE)


def mine(model, x, target=None):
    return gradient_x_input(model, x, target=target)


def test_each_row_is_what_the_method_says_and_the_curves_of_it():
    model, x = dense()
    found = tw.compare(model, x, ["zero", "Gradient x Input", "occlusion", mine], target=1, metrics=["abpc", "deletion"], steps=6)
    assert [row.name for row in found.rows] == ["zero", "gradient_x_input", "occlusion", "mine"]
    twins = {"zero": tw.explain(model, x, target=1, rules="zero"), "occlusion": occlusion(model, x, target=1, patch=16)}
    for name, why in twins.items():
        torch.testing.assert_close(found[name].explanation.attributions(), why.attributions())
        curves = perturbation_curves(model, x, why.attributions(), 1, baseline=0.0, steps=6)
        assert torch.equal(found[name].metrics["abpc"].values, curves.abpc.values)
        assert torch.equal(found[name].metrics["deletion"].values, curves.deletion.values)
    assert torch.equal(found["mine"].metrics["abpc"].values, found["gradient_x_input"].metrics["abpc"].values)
    table = {row["method"]: row for row in found.table()}
    assert table["zero"]["error"] == twins["zero"].error() < 1e-12 < table["gradient_x_input"]["error"]
    assert table["zero"]["abpc_low"] <= table["zero"]["abpc"] <= table["zero"]["abpc_high"]
    assert all(row["passes"] > 0 and row["seconds"] > 0 for row in table.values())
    assert list(found.to_frame()["method"]) == list(table)
    assert found.difference("mine", "gradient_x_input") == (0.0, 0.0)


def test_all_are_asked_about_the_class_of_the_whole_input():
    model, x = dense()
    found = tw.compare(model, x, ["zero", "gradient_x_input"])
    own = model(x).argmax(1)
    assert all(torch.equal(row.explanation.target, own) for row in found.rows)


def test_a_slow_method_costs_more_passes():
    def slow(model, x, target=None):
        time.sleep(0.3)
        return gradient_x_input(model, x, target=target)

    row = tw.compare(*dense(), [slow])["slow"]
    assert row.seconds > 0.3
    assert row.passes > 2  # a pass of this model takes milliseconds


def test_clusters_widen_the_intervals():
    model, x = dense(4)
    many = x.repeat_interleave(8, 0)
    alone = tw.compare(model, many, ["zero"]).table()[0]
    grouped = tw.compare(model, many, ["zero"], clusters=torch.arange(4).repeat_interleave(8)).table()[0]
    assert grouped["abpc_high"] - grouped["abpc_low"] > 1.5 * (alone["abpc_high"] - alone["abpc_low"])


def test_what_cannot_run_says_so_and_the_others_do(capsys):
    model, x = dense()
    found = tw.compare(model, x, ["gradcam", "zero"])
    assert "needs one image" in found["gradcam"].problem
    assert found["gradcam"].explanation is None
    assert math.isnan(found.table()[0]["error"])
    found.show()
    out = capsys.readouterr().out
    assert "gradcam does not run: gradcam needs one image" in " ".join(out.split())
    assert "does not run" in found.html()
    only = tw.compare(model, x, ["gradcam"])
    with pytest.raises(ValueError, match="nothing to draw"):
        only.figure()
    assert "<img" not in only.html()


def test_a_map_of_another_shape_cannot_be_measured():
    def narrow(model, x, target=None):
        why = gradient_x_input(model, x, target=target)
        return replace(why, parts={"input:input": why.attributions()[:, :3]})

    model, x = dense()
    found = tw.compare(model, x, [narrow, "zero", "decompx"])
    assert found["narrow"].problem == "its map has shape (6, 3), and the input (6, 6)"
    assert found["zero"].problem == ""


def test_pictures_and_rows_are_drawn(tmp_path):
    model, x = pictures()
    seen = torch.randint(0, 255, (12, 12, 3)).numpy()
    found = tw.compare(model, x, ["z+", "gradcam", "occlusion"], patch=4, steps=4, picture=seen)
    assert found.figure(sample=1, title="$5")[:4] == b"\x89PNG"
    html = found.html(title="<b>")
    assert "&lt;b&gt;" in html
    assert "data:image/png;base64," in html
    assert "<script" not in html
    model, x = dense()
    assert tw.compare(model, x, ["zero"]).figure()[:4] == b"\x89PNG"
    assert repr(found) == "Comparison(z+, gradcam, occlusion)"


def test_progress_and_functions_as_targets():
    model, x = dense()
    told = []
    margin = lambda y: y[:, 0] - y[:, 1]
    found = tw.compare(model, x, ["zero"], target=margin, score="logit", progress=lambda what, done: told.append((what, done)))
    torch.testing.assert_close(found["zero"].explanation.whole, margin(model(x)))
    assert told == [("zero", 0.0), ("done", 1.0)]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"methods": ["smothgrad"]}, "did you mean 'smoothgrad'"),
        ({"methods": []}, "nothing to compare"),
        ({"metrics": ["abcp"]}, "did you mean 'abpc'"),
        ({"target": 7}, "out of range"),
        ({"baseline": "blur"}, "is for images"),
        ({"target": (1, 2)}, "has 2 indices|2 indices"),
    ],
)
def test_bad_input_says_what_is_allowed(change, text):
    model, x = dense()
    with pytest.raises(ValueError, match=text):
        tw.compare(model, x, **{"methods": ["zero"], **change})
    with pytest.raises(KeyError, match="was not compared"):
        tw.compare(model, x, ["zero"])["one"]
