"""`compare`: every row alike, what each says, what cannot run, tables and pictures."""

import math
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import termwise as tw
from termwise import predictions
from termwise.predictions import contrast, gradient_x_input, next_token, occlusion, perturbation_curves, shapley

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


def test_no_method_pays_for_recording_the_model():
    def first(model, x, target=None):
        known.append(model in sys.modules["termwise.core.capture"]._cache)
        return gradient_x_input(model, x, target=target)

    known: list[bool] = []
    assert tw.compare(*dense(), first)["first"].problem == ""
    assert all(known)


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
    failed, ran = found.table()
    assert failed.keys() == ran.keys()
    assert all(math.isnan(failed[k]) for k in failed if k not in ("method", "problem"))
    assert list(found.to_frame()["abpc"].isna()) == [True, False]
    with pytest.raises(KeyError, match="'abpc' of 'gradcam' is not there: ValueError: gradcam needs"):
        found.difference("gradcam", "zero")
    found.show()
    out = capsys.readouterr().out
    assert "gradcam does not run: ValueError: gradcam needs one image" in " ".join(out.split())
    assert "does not run" in found.html()
    only = tw.compare(model, x, ["gradcam"])
    with pytest.raises(ValueError, match="nothing to draw"):
        only.figure()
    assert [type(p).__name__ for p in only.pictures()] == ["Table"]


def test_a_map_of_another_shape_cannot_be_measured():
    def narrow(model, x, target=None):
        why = gradient_x_input(model, x, target=target)
        return replace(why, parts={"input:input": why.attributions()[:, :3]})

    model, x = dense()
    found = tw.compare(model, x, [narrow, "zero", "decompx"])
    assert found["narrow"].problem == "ValueError: relevance has shape (6, 3) for an input (6, 6): expected (6, 6)"
    assert found["zero"].problem == ""


def test_pictures_and_rows_are_drawn(tmp_path):
    model, x = pictures()
    seen = torch.randint(0, 255, (12, 12, 3)).numpy()
    found = tw.compare(model, x, ["z+", "gradcam", "occlusion"], patch=4, steps=4, picture=seen)
    assert found.figure(sample=1, title="$5")[:4] == b"\x89PNG"
    html = found.html(title="<b>")
    assert "&lt;b&gt;" in html
    assert "data:image/png;base64," in html
    slider, table = found.pictures(1)
    assert slider.names == ["z+", "gradcam", "occlusion"]
    assert [p.values.sum() for p in slider.pictures] == pytest.approx([float(row.map[1].sum()) for row in found.rows])
    assert [row[0] for row in table.rows] == slider.names
    assert list(table.heads) == ["method", "abpc", "95 % interval", "error", "cancels", "passes", "seconds"]
    assert "95 % interval" not in tw.compare(model, x[:1], ["z+"], patch=4, steps=2).pictures()[-1].heads
    assert [row[1] for row in table.rows] == [row["abpc"] for row in found.table()]
    assert found.plot(1).axes
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


def test_any_error_is_the_row_of_its_method():
    def broken(model, x, target=None):
        raise KeyError("layer")

    def out_of_memory(model, x, target=None):
        raise MemoryError

    def undefined(model, x, target=None):
        why = gradient_x_input(model, x, target=target)
        return replace(why, parts={"input:input": why.attributions() * torch.nan})

    found = tw.compare(*dense(), [broken, out_of_memory, undefined, "zero"])
    assert found["broken"].problem == "KeyError: 'layer'"
    assert found["out_of_memory"].problem == "MemoryError: no message"
    assert found["undefined"].problem.startswith("ValueError: relevance has 36 values that are NaN")
    assert found["zero"].metrics["abpc"].mean > 0


def test_one_name_is_a_list_of_one():
    model, x = dense()
    found = tw.compare(model, x, "zero", metrics="deletion")
    assert [row.name for row in found.rows] == ["zero"]
    assert list(found["zero"].metrics) == ["deletion"]
    assert [row.name for row in tw.compare(model, x, mine).rows] == ["mine"]


def test_methods_that_replace_features_replace_what_the_curves_do():
    model, x = pictures()
    mask = torch.arange(12)[:, None] // 6 * 2 + torch.arange(12) // 4 % 2

    def own(model, x, target=None, baseline=None, patch=None, feature_mask=None, keep=None):
        given.update(baseline=baseline, patch=patch, feature_mask=feature_mask, keep=keep)
        return gradient_x_input(model, x, target=target)

    given: dict = {}
    options = {"baseline": "mean", "patch": 4}
    found = tw.compare(model, x, ["shapley", "occlusion", own, partial(shapley, patch=6)], target=1, steps=4, **options)
    assert given == {**options, "feature_mask": None, "keep": None}
    for row, method in zip(found.rows, (shapley, occlusion), strict=False):
        torch.testing.assert_close(row.explanation.attributions(), method(model, x, target=1, **options).attributions())
    bound = shapley(model, x, target=1, baseline="mean", patch=6).attributions()  # what was said is kept
    torch.testing.assert_close(found.rows[3].explanation.attributions(), bound)
    assert found.rows[3].name == "shapley"
    grouped = tw.compare(model, x, "shapley", target=1, steps=4, feature_mask=mask)["shapley"].explanation
    expected = shapley(model, x, target=1, feature_mask=mask, baseline="blur")
    torch.testing.assert_close(grouped.attributions(), expected.attributions())


class Attending(nn.Module):
    """A convolution, and one attention over the patches that it makes."""

    def __init__(self):
        super().__init__()
        self.conv, self.qkv, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x).tanh().flatten(2).mT
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((x + nn.functional.scaled_dot_product_attention(q, k, v)).tanh().mean(1))


OWN = ["decompx", "chefer", "gradient_rollout", "attention_rollout", "raw_attention", "attention_gradcam", "partial_lrp"]


def test_a_method_with_a_map_of_its_own_is_ranked_by_that():
    torch.manual_seed(1)
    model, x = Attending().double().eval(), torch.randn(2, 3, 16, 16, dtype=DOUBLE)
    found = tw.compare(model, x, [*OWN, "default"], target=0, patch=4, steps=4)
    assert not any(row.problem for row in found.rows)
    for name in OWN:
        why = getattr(predictions, name)(model, x, target=0)
        heat = torch.stack([why.heatmap(sample=i) for i in range(2)])
        curves = perturbation_curves(model, x, heat, 0, baseline="blur", patch=4, steps=4)
        assert torch.equal(found[name].metrics["abpc"].values, curves.abpc.values)
    whole = tw.chefer(model, x, target=0).inputs["x"]
    assert not torch.equal(found["chefer"].map, whole.sum(1))
    table = {row["method"]: row for row in found.table()}
    assert math.isnan(table["attention_rollout"]["error"])
    assert table["chefer"]["error"] < 1e-9
    assert found.figure()[:4] == b"\x89PNG"
    found.show()


# -- what explain covers -----------------------------------------------------------------------------------------------


class Language(nn.Module):
    """Scores of the next token at each, from what came before; with a decoder where its ids are given."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, input_ids, decoder_input_ids=None, attention_mask=None, use_cache=False):
        hidden = self.table(input_ids)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        if decoder_input_ids is not None:
            hidden = hidden.cumsum(1)[:, -1:].tanh() + self.table(decoder_input_ids)
        return {"logits": self.head((hidden.cumsum(1) * 0.3).tanh())}


def language() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(2)
    return Language().double().eval(), torch.randint(1, 20, (2, 9))


EVERY = ["default", "gradient_x_input", "occlusion", "shapley"]


@pytest.mark.parametrize(
    ("target", "baseline"),
    [(None, None), (None, 0), ((4, 7), None), (next_token(6), None), (next_token(6), 0), (contrast((5, 3)), None)],
)
def test_language_models_are_asked_as_explain_is(target, baseline):
    model, ids = language()
    score = "logit" if hasattr(target, "against") else "probability"
    found = tw.compare(model, {"input_ids": ids}, EVERY, target=target, baseline=baseline, score=score, steps=4)
    assert [row.problem for row in found.rows] == [""] * len(EVERY)
    why = tw.explain(model, ids, target=target)
    for row in found.rows:
        torch.testing.assert_close(row.explanation.whole, why.whole)
    assert all(row.explanation.error() < 1e-9 for row in found.rows if row.name in ("default", "shapley"))


def test_a_place_in_a_text_is_found_again_when_tokens_before_it_are_gone():
    model, ids = language()
    keep = torch.tensor([True, False, False, False, True, True, True, True, True])
    curves = perturbation_curves(model, ids, ids.double(), (4, 7), baseline="remove", keep=keep, score="logit", fractions=[1.0])
    left = ids[:, [0, 4, 5, 6, 7, 8]]
    torch.testing.assert_close(curves.most_first[:, -1], model(left)["logits"][:, 1, 7])
    why = occlusion(model, ids, target=(4, 7), keep=keep)
    gone = model(ids)["logits"][:, 4, 7] - model(ids[:, [0, 2, 3, 4, 5, 6, 7, 8]])["logits"][:, 3, 7]
    torch.testing.assert_close(why.attributions()[:, 1], gone)
    with pytest.raises(ValueError, match=r"the target is at place 4 of 9, and tokens from there on are removed.*keep="):
        perturbation_curves(model, ids, ids.double(), (4, 7), baseline="remove", keep=keep & False)


def test_the_token_that_was_asked_about_stays_the_question_when_it_is_replaced():
    model, ids = language()
    curves = perturbation_curves(model, ids, ids.double(), next_token(5), baseline=0, fractions=[1.0])
    rows = torch.arange(2)
    probabilities = model(torch.zeros_like(ids))["logits"][:, 4].softmax(1)
    torch.testing.assert_close(curves.most_first[:, -1], probabilities[rows, ids[:, 5]])


def test_the_probabilities_of_a_contrast_are_held():
    model, x = dense()
    margin = contrast(1, "probabilities")
    curves = perturbation_curves(model, x, x, margin, baseline=0.0, score="logit", steps=1)
    changed, p = model(torch.zeros_like(x)), model(x).softmax(1)
    torch.testing.assert_close(curves.most_first[:, -1], changed[:, 1] - (p * changed).sum(1))
    with pytest.raises(ValueError, match="one class of several as its target: take score='logit'"):
        perturbation_curves(model, x, x, margin, baseline=0.0)


@pytest.mark.parametrize("target", [None, next_token(2)])
def test_an_encoder_and_a_decoder(target):
    model, ids = language()
    x = {"input_ids": ids, "decoder_input_ids": ids[:, :9].flip(1), "attention_mask": torch.ones_like(ids), "use_cache": False}
    found = tw.compare(model, x, EVERY, target=target, steps=4)
    assert [row.problem for row in found.rows] == [""] * len(EVERY)
    assert found["occlusion"].explanation.inputs.keys() == {"input_ids"}  # the decoder's text stays as it is
    shorter = {**x, "input_ids": ids[:, [0, 2, 3, 4, 5, 6, 7, 8]], "attention_mask": x["attention_mask"][:, 1:]}
    why = occlusion(model, {k: v for k, v in x.items() if k != "use_cache"}, target=(1, 4))
    gone = model(**x)["logits"][:, 1, 4] - model(**shorter)["logits"][:, 1, 4]
    torch.testing.assert_close(why.attributions()[:, 1], gone)
    part = shapley(model, x, target=(1, 4), name="decoder_input_ids", baseline=0).check(1e-9).inputs
    assert part.keys() == {"decoder_input_ids"}


def test_a_sequence_is_never_emptied():
    model, ids = language()
    found = tw.compare(model, ids, "default", steps=4)
    assert found["default"].problem == ""
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padding on the left
    x = {"input_ids": ids, "attention_mask": mask}
    keep = mask == 0
    keep[0, 3] = keep[1, 0] = True
    found, said = (tw.compare(model, x, "default", steps=4, keep=k)["default"] for k in (None, keep))
    assert torch.equal(found.metrics["abpc"].values, said.metrics["abpc"].values)


def test_sequences_of_numbers_have_tokens_as_features():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)).double().eval()
    x = torch.randn(2, 5, 4, dtype=DOUBLE)
    found = tw.compare(model, x, EVERY, target=1, steps=5)
    assert [row.problem for row in found.rows] == [""] * len(EVERY)
    part = found["occlusion"].explanation.attributions()
    without = x.clone()
    without[:, 2] = 0
    torch.testing.assert_close(part[:, 2].sum(1), model(x)[:, 1] - model(without)[:, 1])
    by_token = perturbation_curves(model, x, part, 1, baseline=0.0, steps=5)
    assert torch.equal(by_token.most_first, perturbation_curves(model, x, part.sum(2), 1, baseline=0.0, steps=5).most_first)
    assert by_token.what == "tokens"
    assert found.figure()[:4] == b"\x89PNG"


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
