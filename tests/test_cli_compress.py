"""`termwise compress` as a user meets it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

import termwise as tw
from termwise.cli import app

FACTORY = """
import torch
def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 24, 5, stride=4), torch.nn.ReLU(), torch.nn.Conv2d(24, 24, 3, stride=2),
                               torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(24, 5))
"""


@pytest.fixture
def own(tmp_path):
    from PIL import Image

    (tmp_path / "net.py").write_text(FACTORY)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    g = torch.Generator().manual_seed(0)
    for i in range(8):
        pixels = torch.randint(256, (40, 40, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(pictures / f"{i}.png")
    return [f"--model={tmp_path / 'net.py'}:build", "--data", str(pictures), "--size", "40", "--out", str(tmp_path / "small")]


@pytest.mark.filterwarnings("ignore:the output changes")  # weights are random, and errors large
def test_a_folder_comes_out_that_can_be_read(own, tmp_path):
    done = CliRunner().invoke(app, ["--no-progress", "compress", *own, "--budget", "0.6"])
    assert done.exit_code == 0, done.output
    assert "output changed by" in done.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.py", "pictures", "small"]  # the work is gone
    space: dict = {}
    exec(FACTORY, space)
    small = tw.load_compressed(tmp_path / "small", space["build"]())
    assert small(torch.zeros(1, 3, 40, 40)).shape == (1, 5)
    again = CliRunner().invoke(app, ["--no-progress", "compress", *own, "--budget", "0.6", "--json"])  # over itself
    facts = json.loads(again.output[again.output.index("{") :])
    assert facts["kept"] <= 0.6
    assert facts["after"] == sum(p.numel() for p in small.parameters()) < facts["before"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--budget", "2"], "write budget=0.5"),
        (["--method", "autp"], "did you mean 'auto'"),
        (["--data", "nowhere"], "does not exist"),
        (["--keep", "zzz"], "fits no module"),
        (["--unit", "mb"], "unit is one of"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(own, more, text):
    done = CliRunner().invoke(app, ["--no-progress", "compress", *own, *more])
    assert done.exit_code == 2
    assert text in " ".join(done.output.split())


def test_other_peoples_folders_are_left_alone(own, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.tex").write_text("x")
    done = CliRunner().invoke(app, ["compress", *own])
    assert done.exit_code == 2
    assert "something else" in " ".join(done.output.split())


@pytest.mark.filterwarnings("ignore:the output changes")
def test_what_was_done_is_kept_when_a_run_ends_early(own, tmp_path, monkeypatch):
    from termwise.weights import METHODS

    calls = []
    fit = METHODS["aware"].fit

    def ends(evidence):
        calls.append(evidence.layer.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(evidence)

    monkeypatch.setitem(METHODS, "aware", dataclasses.replace(METHODS["aware"], fit=ends))
    asked = ["--no-progress", "compress", *own, "--budget", "0.9", "--method", "aware"]
    early = CliRunner().invoke(app, asked)
    assert early.exit_code != 0
    assert "2 finished layers are kept" in early.output
    assert "the same command goes on there" in early.output
    assert len(list((tmp_path / "small.work").glob("*.safetensors"))) == 2
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert len(calls) == 4  # the third again, and not the first two
    assert not (tmp_path / "small.work").exists()
    small = CliRunner().invoke(app, [*asked[:-3], "0.00001", *asked[-2:]])
    assert small.exit_code == 2
    assert "3 finished layers are kept" in small.output  # a larger budget has use for them
