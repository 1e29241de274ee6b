"""The command line, with a small model in place of the zoo: results, files, and one clear line for every mistake."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from termwise import __version__, cli, zoo
from termwise.zoo.pictures import PicturePreparation
from termwise.zoo.texts import TextPreparation

EVIL = "<script>alert('x')</script>"
MODEL = """
import torch
from torch import nn
def factory():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
def nothing():
    return "no model"
def flat():
    return nn.Flatten(0)
number = 3
def late():
    import beside  # found as long as the factory runs
    return beside.factory()
def raising():
    return {}["layers"]
def asking(depth):
    return factory()
def half():
    return factory().half()
def plain():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
class Faulty(nn.Module):
    def forward(self, x):
        raise KeyError("deep")
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


class Letters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text: str) -> list[int]:
        return [min(ord(c), 255) for c in text]

    def decode(self, ids) -> str:
        return "".join(map(chr, ids))

    def name(self, token: int) -> str:
        return chr(token)

    def __len__(self) -> int:
        return 256


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(256, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        return self.head(self.table(input_ids).mean(1).relu())


@pytest.fixture(autouse=True)
def small_zoo(monkeypatch):
    """`load` gives small models; real names are still checked."""

    def load(name):
        if name == "mobilenet-v2":
            square = PicturePreparation(resize=36, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
            return zoo.Subject(name, network(), square, ["cat, house cat", "dog", EVIL], "MIT")
        if name == "nanoguard":
            torch.manual_seed(1)
            return zoo.Subject(
                name, Bag().eval(), TextPreparation(Letters(), limit=40, baseline=32), ["safe", "injection"], "MIT"
            )
        raise zoo.errors.unknown("model", name, zoo.subjects)

    monkeypatch.setattr(zoo, "load", load)
    yield
    logging.captureWarnings(False)


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "my <b>photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def own(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODEL)
    return path


def run(*arguments, code: int = 0):
    result = CliRunner().invoke(cli.app, ["--no-progress", *map(str, arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def complaint(*arguments) -> str:
    """The error of a call that must fail: one line, exit code 2, no traceback."""
    result = run(*arguments, code=2)
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    return " ".join(result.stderr.split())


def test_explains_a_picture_and_writes_a_page(photo, tmp_path):
    out = tmp_path / "new" / "why.html"
    result = run("explain", "--model", "mobilenet-v2", "--image", photo, "--target", "cat, house cat", "--out", out)
    assert "adds up to" in result.stdout
    assert "Removing the most relevant" in result.stdout
    assert str(out.name) in result.stdout
    html = out.read_text()
    assert "Why cat?" in html
    assert "adds up to" in html
    assert "data:image/png;base64," in html
    assert EVIL not in html
    assert "<b>photo" not in html
    assert "&lt;b&gt;photo" in html


def test_explains_a_text(tmp_path):
    out = tmp_path / "why.html"
    text = f"hello {EVIL}"
    result = run("explain", "--model", "nanoguard", "--text", text, "--out", out, "--no-check")
    assert "input_ids" in result.stdout
    assert "Removing" not in result.stdout
    assert EVIL not in out.read_text()
    assert EVIL not in out.read_text()  # what is typed is no markup


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "mobilnet-v2", "--text", "x"], "did you mean 'mobilenet-v2'"),
        (["--model", "nanoguard"], "give either --image or --text"),
        (["--model", "nanoguard", "--text", "x", "--image", "y.png"], "give either --image or --text"),
        (["--model", "nanoguard", "--text", "  "], "the text is empty"),
        (["--model", "nanoguard", "--text", "x" * 41], "41 tokens and the model takes 40"),
        (["--model", "nanoguard", "--image", "y.png"], "takes a text: give --text"),
        (["--model", "mobilenet-v2", "--text", "x"], "takes a picture: give --image"),
        (["--model", "nanoguard", "--text", "x", "--target", "7"], "out of range: the output has 2 classes"),
        (["--model", "nanoguard", "--text", "x", "--target", "injektion"], "did you mean 'injection'"),
        (["--model", "nanoguard", "--text", "x", "--rules", "attlrp"], "did you mean 'attnlrp'"),
        (["--model", "nanoguard", "--text", "x", "--weights", "w.safetensors"], "are for a model of your own"),
        (["--model", "mobilenet-v2", "--image", "y.png", "--size", "64"], "are for a model of your own"),
        (["--model", "mobilenet-v2", "--image", "."], "no picture file '.': it is a folder"),
        (["--model", "mobilenet-v2", "--image", "none.png"], "no picture file 'none.png'"),
        (["--model", "none.py:factory", "--image", "y.png"], "no model file 'none.py'"),
        (["--model", "mine.py", "--image", "y.png"], "path/to/file.py:factory"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, text):
    assert text in complaint("explain", *arguments)


def test_a_corrupt_picture_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no picture")
    assert "bad.png" in complaint("explain", "--model", "mobilenet-v2", "--image", tmp_path / "bad.png")


def test_compares_methods_on_a_picture_and_a_text(photo, tmp_path):
    out = tmp_path / "compare.html"
    result = run(
        "compare", "--model", "mobilenet-v2", "--image", photo, "--methods", "default, gradcam", "--patch", 8, "--out", out
    )
    assert all(word in result.stdout for word in ("default", "gradcam", "abpc", "cancels", "passes"))
    assert "data:image/png;base64," in out.read_text()
    assert "<b>photo" not in out.read_text()
    rows = json.loads(run("compare", "--model", "nanoguard", "--text", "hello", "--json").stdout)
    assert [r["method"] for r in rows] == ["default", "gradient_x_input", "smoothgrad", "occlusion"]
    assert all(r["problem"] == "" and r["abpc_low"] is None for r in rows)
    assert "did you mean 'gradcam'" in complaint("compare", "--model", "nanoguard", "--text", "x", "--methods", "grad-cam")
    assert "give either" in complaint("compare", "--model", "nanoguard")
    assert "takes a text" in complaint("compare", "--model", "nanoguard", "--image", photo)


def test_counts_the_operations_of_a_model(own):
    assert run("coverage", "--model", "mobilenet-v2").stdout.startswith("Sequential: 5 of 5 nodes have a rule (100.00 %)")
    found = json.loads(run("coverage", "--model", f"{own}:factory", "--size", 32, "--json").stdout)
    assert (found["nodes"], found["covered"], found["missing"]) == (5, 5, [])
    assert found["operators"]["linear"] == 1
    assert json.loads(run("coverage", "--model", "nanoguard", "--json").stdout)["nodes"] > 0


def test_expands_by_order(photo, own, tmp_path):
    shown = run("expand", "--model", "mobilenet-v2", "--image", photo, "--order", 2, "--out", tmp_path / "terms.png").stdout
    assert all(word in shown for word in ("order_0", "order_2", "remainder", "value"))
    assert (tmp_path / "terms.png").stat().st_size > 1000
    found = json.loads(run("expand", "--model", "nanoguard", "--text", "hello", "--target", 1, "--json").stdout)
    assert found["class"] == 1
    assert abs(sum(found["terms"].values()) + found["remainder"] - found["value"]) < 1e-12
    towards = json.loads(run("expand", "--model", f"{own}:factory", "--image", photo, "--to", photo, "--json").stdout)
    assert towards["terms"]["order_1"] == 0
    assert "give either" in complaint("expand", "--model", "nanoguard")
    assert "is none of" in complaint("expand", "--model", "nanoguard", "--text", "x", "--target", 7)


def test_the_box_of_a_picture_is_known(photo):
    named = run("explain", "--model", "mobilenet-v2", "--image", photo, "--rules", "EpsilonGammaBox", "--no-check")
    assert "adds up to" in named.stdout
    assert "is for pictures" in complaint("explain", "--model", "nanoguard", "--text", "x", "--rules", "EpsilonGammaBox")


def test_an_unwritable_place_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "load", lambda name: pytest.fail("the work had begun"))
    (tmp_path / "file").touch()
    assert "cannot write" in complaint("explain", "--model", "nanoguard", "--text", "x", "--out", tmp_path / "file" / "why.html")
    assert "it is a folder" in complaint("explain", "--model", "nanoguard", "--text", "x", "--out", tmp_path)
    assert "cannot write" in complaint("demo", "--out", tmp_path / "file")


def test_traceback_on_request():
    result = run("-v", "explain", "--model", "nanoguard", "--text", " ", code=2)
    assert "Traceback" in result.stderr
    assert "error: the text is empty" in result.stderr


def test_what_is_done_is_told_on_request():
    start = ("explain", "--model", "nanoguard", "--text", "x", "--no-check")
    assert "nanoguard: explaining" in run("-v", *start).stderr
    assert not run(*start).stderr


def test_a_model_of_ones_own(own, photo, tmp_path):
    weights = tmp_path / "w.safetensors"
    model = network()
    save_file({k: v * 0 + 1 for k, v in model.state_dict().items()}, weights)
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    result = run(
        "explain", "--model", f"{own}:factory", "--image", photo, "--weights", weights, "--classes", tmp_path / "names.txt", "--size", 32,
        "--target", "two", "--no-check",
    )  # fmt: skip
    assert "two" in result.stdout
    assert "33.3 %" in result.stdout


def test_weights_must_fit_and_be_no_pickle(own, photo, tmp_path):
    state = network().state_dict()
    start = ["explain", "--model", f"{own}:factory", "--image", photo, "--size", 32, "--weights"]
    save_file(
        {"4.weight": state["4.weight"].t().contiguous(), "4.bias": state["4.bias"], "extra.weight": state["0.bias"]},
        tmp_path / "w.safetensors",
    )
    text = complaint(*start, tmp_path / "w.safetensors")
    assert "missing: 0.weight, 0.bias" in text
    assert "not in the model: extra.weight" in text
    assert "4.weight (4, 3) for (3, 4)" in text
    for name in ("w.pt", "renamed.safetensors"):
        torch.save(state, tmp_path / name)
        text = complaint(*start, tmp_path / name)
        assert "is a pickle" in text
        assert "refused" in text
        assert "save_file" in text
    save_file({k: v.to(torch.int8) for k, v in state.items()}, tmp_path / "w8.safetensors")
    assert "of another kind: 0.weight torch.int8 for torch.float32" in complaint(*start, tmp_path / "w8.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:100])
    assert "no safetensors file" in complaint(*start, tmp_path / "cut.safetensors")
    assert "no weights file" in complaint(*start, tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("factori", "no function 'factori'; it has factory, nothing, flat"),
        ("number", "no function 'number'"),
        ("nothing", "gave a str: it must return a torch.nn.Module"),
        ("flat", "not scores (1, classes)"),
        ("raising", "mine.py:raising raised KeyError: 'layers' (mine.py, line"),
        ("asking", "mine.py:asking raised TypeError: asking() missing 1 required positional argument: 'depth'"),
        ("Faulty", "Faulty does not take a picture (1, 3, 32, 32): KeyError: 'deep' (mine.py, line"),
    ],
)
def test_factories_that_do_not_do(own, photo, factory, text):
    assert text in complaint("explain", "--model", f"{own}:{factory}", "--image", photo, "--size", 32)


def test_a_model_file_with_a_mistake_is_named(tmp_path, photo):
    (tmp_path / "bad.py").write_text("def factory(:\n")
    assert "bad.py, line 1" in complaint("explain", "--model", f"{tmp_path / 'bad.py'}:factory", "--image", photo)


def test_a_model_file_that_cannot_be_run_is_named(tmp_path, photo):
    for text, problem in [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all' (bad.py, line 1)"),
        ("x = 1\nx / 0", "ZeroDivisionError: division by zero (bad.py, line 2)"),
    ]:
        (tmp_path / "bad.py").write_text(text)
        told = complaint("explain", "--model", f"{tmp_path / 'bad.py'}:factory", "--image", photo)
        assert "bad.py cannot be run: " + problem in told


def test_a_factory_may_import_its_neighbours(own, photo):
    (own.parent / "beside.py").write_text(MODEL)
    run("explain", "--model", f"{own}:late", "--image", photo, "--size", 32, "--no-check")
    assert str(own.parent) not in sys.path


def test_every_precision_is_computed_in_the_one_asked_for(own, photo):
    start = ["explain", "--model", f"{own}:half", "--image", photo, "--size", 32, "--no-check"]
    assert "float64" in run(*start).stdout
    assert "float32" in run(*start, "--float32").stdout


def test_a_model_without_parameters(own, photo):
    result = run("explain", "--model", f"{own}:plain", "--image", photo, "--size", 32, "--no-check")
    assert "inputs 100 %" in result.stdout


def test_names_of_classes_are_utf_8(own, photo, tmp_path):
    names = tmp_path / "names.txt"
    start = ["explain", "--model", f"{own}:factory", "--image", photo, "--size", 32, "--no-check", "--classes", names]
    names.write_bytes("\ufeffcafé\r\n\r\nb\nc\n".encode())
    assert "café = " in run(*start, "--target", "café").stdout
    names.write_bytes("a\ncafé\nc\n".encode("latin-1"))
    assert "names.txt is no UTF-8 text (invalid continuation byte at byte 5): save it as UTF-8" in complaint(*start)
    names.unlink()
    assert "no class names file" in complaint(*start)


def test_models_and_info():
    rows = json.loads(run("models", "--json").stdout)
    assert {r["name"] for r in rows} == set(zoo.subjects)
    assert all({"licence", "bytes", "present", "install"} <= set(r) for r in rows)
    assert "nanoguard" in run("models").stdout
    facts = json.loads(run("info", "--json").stdout)
    assert facts["torch"].startswith(torch.__version__.partition("+")[0])
    assert facts["threads"] >= 1
    assert facts["python"]
    assert "platform" in run("info").stdout


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_list_of_models_is_never_cut(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert "…" not in run("models").stdout


def test_a_terminal_without_unicode_gets_the_figures(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "names.txt").write_text("café\nb\nc\n", "utf-8")
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "x.png")
    command = [sys.executable, "-m", "termwise.cli", "explain", "--model", "mine.py:factory", "--image", "x.png", "--size", "32"]
    done = subprocess.run(
        [*command, "--no-check", "--classes", "names.txt", "--target", "0"],
        cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "caf? = " in done.stdout
    assert "adds up to" in done.stdout


def test_the_version():
    assert run("--version").stdout.strip() == __version__


def test_help_warns_and_is_quick():
    assert "WARNING" in run("explain", "--help").stdout
    code = "import sys, termwise.cli; assert 'torch' not in sys.modules, 'torch is imported for --help'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_demo_writes_its_page(tmp_path, monkeypatch):
    from termwise import demo

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    monkeypatch.setattr(zoo, "photo", lambda name: picture)
    monkeypatch.setattr(demo, "PHOTOS", (("mobilenet-v2", "china", "noise"),))
    monkeypatch.setattr(demo, "SENTENCE", "hello you")
    first = run("demo", "--out", tmp_path / "a")
    run("-q", "demo", "--out", tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["1-deletion.png", "1-map.png", "1-waterfall.png", "2-deletion.png", "2-waterfall.png", "index.html"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    assert first.stdout.count("adds up to") == 2
    assert first.stdout.startswith("\nWhy")  # no trace of a progress bar
    assert "float64" in first.stdout
