"""Files made to do harm: refused in words, or shown as the text they are. Nothing in them runs, and nothing is as large as it claims."""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import resource
import struct
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import termwise as tw
from bad_inputs.awkward import X, mlp
from termwise import cli, own_model, zoo
from termwise.core import one_file
from termwise.layers import PLDRConfig, PLDRForCausalLM
from termwise.report import Section, fragment, page
from termwise.weights import CalibrationStats
from termwise.zoo import assets, pictures
from termwise.zoo.assets import Asset
from termwise.zoo.bytepair import read_pickle
from termwise.zoo.errors import AssetCorrupt

EVIL = "</title><script>alert('x')</script><img src=x onerror=alert(1)>\"' onload=alert(1) x='"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\u202e"
ROOM = 2**29
"""Bytes that a refusal may take."""


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@contextlib.contextmanager
def little_memory():
    """What is claimed cannot be allocated: an attempt would raise another error than the one that is expected."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def refused(message: str, error: type[Exception] = ValueError):
    """An error of ours whose text is the message, within little memory."""
    with little_memory(), pytest.raises(error, match=message) as caught:
        yield caught
    said = str(caught.value)
    assert len(said) < 700, said
    assert "Traceback" not in said
    assert "alloc" not in said


def tree() -> tw.Decomposition:
    return tw.Decomposition(torch.tensor([3.0, 5.0]), {"left": torch.tensor([1.0, 2.0]), "right": torch.tensor([2.0, 3.0])})


def small(folder: Path) -> Path:
    """A compressed model in a folder."""
    return tw.compress(mlp(), 0.5, data=[X, X + 1, X - 1, X * 2], progress=False).save(folder / "small")


# -- safetensors ------------------------------------------------------------------------------------------------------

LOADERS = {
    "a decomposition": tw.Decomposition.load,
    "stages": tw.MultiStage.load,
    "a PLDR-LLM": PLDRForCausalLM.load,
    "statistics": CalibrationStats.load,
    "weights of one's own": lambda path: own_model.load_weights(mlp(), Path(path)),
}


def header(text: bytes | str, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file: eight bytes of length, JSON, numbers."""
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "a length of 2**60": header("{}", 2**60),
    "a length of 2**63": header("{}", 2**63),
    "a length of 90 MB": header("{}", 90_000_000),
    "no JSON": header("[not json"),
    "no object": header("[1, 2]"),
    "no text": header(b"\xff\xfe\x00"),
    "lists in lists": header("[" * 100_000),
    "objects in objects": header('{"a":' * 100_000),
    "offsets outside": header(json.dumps({"w": tensor(0, 4_000_000, [1_000_000])}), data=b"\0" * 8),
    "offsets that are negative": header(json.dumps({"w": tensor(-8, 8, [2])}), data=b"\0" * 8),
    "offsets that overlap": header(json.dumps({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}), data=b"\0" * 12),
    "a shape of another size": header(json.dumps({"w": tensor(0, 8, [2**62, 4])}), data=b"\0" * 8),
    "a dtype that is none": header(json.dumps({"w": tensor(0, 8, [2], "PICKLE")}), data=b"\0" * 8),
    "nothing": b"",
    "seven bytes": b"1234567",
    "a pickle": pickle.dumps({"w": [1.0]}),
    "a zip": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies(lie, loader, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(LIES[lie])
    with refused(r"is not? (a )?(safetensors file|pickle)|is a pickle"):
        LOADERS[loader](path)


def test_of_a_name_that_stands_twice_nothing_else_is_read(tmp_path):
    """A second tensor of the same name has no numbers of its own: it is refused, or takes the place of the first."""
    path = tmp_path / "twice.safetensors"
    row = json.dumps(tensor(0, 8, [2]))
    path.write_bytes(header('{"w":' + row + ',"w":' + row + "}", data=b"\0" * 8))
    with pytest.raises(ValueError, match=r"do not fit|no safetensors file"):
        own_model.load_weights(mlp(), path)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_place_of_weights_is_not_opened(loader, protocol, tmp_path):
    path, mark = tmp_path / "model.safetensors", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Bomb(mark), protocol))
    with refused("safetensors file|pickle"):
        LOADERS[loader](path)
    torch.save({"w": Bomb(mark)}, path)
    with refused("safetensors file|pickle"):
        LOADERS[loader](path)
    assert not mark.exists()


HEADERS = {
    "a number": "3",
    "a list": "[]",
    "nothing in it": "{}",
    "lists in lists": "[" * 100_000,
    "a number of 10,000 digits": "9" * 10_000,
    "a format of text": '{"format": "1"}',
    "a newer format": '{"format": 99}',
    "NaN for a format": '{"format": NaN}',
    "fields of numbers": '{"format": 1, "class": "x:y", "fields": {"whole": 3}, "options": 3, "config": 3, "history": [], "shared": 3}',
    "a claim of 10**9": json.dumps(
        {
            "format": 1, "class": "x:y", "fields": {"parts": {"tensors": ["a"] * 3}}, "shared": {"a": "b"}, "counts": {},
            "options": {"stages": 1, "hidden": [10**9, 10**9]}, "history": [{}],
            "config": {"vocab_size": 10**9, "d_model": 2**20, "n_layers": 10**9},
        }
    ),
}  # fmt: skip

KEYS = {"a decomposition": "termwise", "stages": "termwise.multistage", "a PLDR-LLM": "termwise.pldr", "statistics": "termwise"}


@pytest.mark.parametrize("loader", KEYS)
@pytest.mark.parametrize("text", HEADERS)
def test_a_header_that_lies(text, loader, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"whole": torch.zeros(2)}, path, {KEYS[loader]: HEADERS[text]})
    with refused(r"has a header that|has format 99|damaged"):
        LOADERS[loader](path)


CLASSES = (
    "os:system",
    "builtins:eval",
    "subprocess:Popen",
    "termwise.cli:main",
    "termwise.no_room:Thing",
    "termwise..x:y",
    "",
    ":",
    "..:..",
)


@pytest.mark.parametrize("name", CLASSES)
def test_a_decomposition_of_a_class_that_is_none(name, tmp_path):
    content = {"format": 1, "class": name, "fields": {"parts": {"json": {}}}, "complex": []}
    path = one_file.write(tmp_path / "d", {"whole": torch.zeros(2)}, "termwise", content)
    with refused("which is not defined here|has a header that cannot be read"):
        tw.Decomposition.load(path)


def test_widths_that_the_file_does_not_hold_are_not_made(tmp_path):
    line = torch.linspace(-1, 1, 40, dtype=torch.float64)
    path = tw.MultiStage(1, (4,), iterations=3).fit(line, line.sin(), progress=False).save(tmp_path / "m")

    def changed(header, tensors, path):
        header["options"]["hidden"] = [2**20, 2**20]
        return one_file.write(path, tensors, "termwise.multistage", header)

    one_file.read(path, "termwise.multistage", changed, holds="stages", saver="save")
    with refused(r"claims stages of the widths \[1048576, 1048576, 1\] and holds \[4, 1\]"):
        tw.MultiStage.load(path)


def test_a_config_that_claims_more_than_the_file_holds(tmp_path):
    path = PLDRForCausalLM(PLDRConfig(10, d_model=8, n_layers=1, n_heads=2)).save(tmp_path / "m")

    def claim(**sizes):
        def changed(header, tensors, path):
            header["config"] |= sizes
            return one_file.write(path.with_name("lie.safetensors"), tensors, "termwise.pldr", header)

        return one_file.read(path, "termwise.pldr", changed, holds="a model", saver="save")

    for sizes in ({"n_layers": 10**9}, {"d_model": 2**16, "vocab_size": 2**20}, {"d_ff": 2**40}, {"metric_layers": 10**9}):
        with refused("claims PLDRConfig.* and holds .* it is damaged"):
            PLDRForCausalLM.load(claim(**sizes))
    with refused("has a header that cannot be read .*size mismatch"):
        PLDRForCausalLM.load(claim(d_ff=9))
    assert PLDRForCausalLM.load(path).head.weight.device.type == "cpu"


def test_parts_are_named_as_they_like(tmp_path):
    """Names are keys in a file and never paths."""
    names = ["a/b", "..", "../../etc/passwd", "/abs", "parts/x", "", " ", EVIL, ESCAPES, "=cmd()", "\0", "名"]
    d = tw.Decomposition(torch.ones(2) * len(names), {name: torch.ones(2) for name in names})
    inside = tmp_path / "inside"
    inside.mkdir()
    again = tw.Decomposition.load(d.save(inside / "d"))
    assert list(again.parts) == names
    assert again.error() == 0
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["d.safetensors"]


# -- folders of compressed models --------------------------------------------------------------------------------------


def rewritten(folder: Path, change) -> Path:
    """The folder with another recipe."""
    recipe = json.loads((folder / "recipe.json").read_text())
    change(recipe["replaced"])
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def test_a_recipe_names_no_other_class(tmp_path):
    folder = small(tmp_path)
    for name in ("system", "Module", "os.system", "__import__", "eval", None, 3, ["Linear"], {}):
        rewritten(folder, lambda replaced, name=name: replaced.update({"0": {"class": name}}))
        with refused("a recipe is of Linear, Conv2d|cannot be read"):
            tw.load_compressed(folder, mlp())


def test_a_recipe_that_claims_too_much(tmp_path):
    folder = small(tmp_path)
    huge = {"class": "Linear", "in_features": 2**20, "out_features": 2**20, "bias": True, "dtype": "float32"}
    for plan in (
        huge,
        {"class": "Pivoted", "of": [huge, {**huge, "out_features": 2**40}]},
        {"class": "GroupedLinear", "shape": [2**20, 2**10, 2**10], "dtype": "float64"},
        {"class": "Embedding", "num_embeddings": 2**40, "embedding_dim": 64, "dtype": "float32"},
        {**huge, "in_features": 2**70},
        {**huge, "in_features": -4},
        {**huge, "in_features": "4"},
        {**huge, "dtype": "object"},
        {**huge, "forward": "print"},
        {"class": "Sequential", "of": 3},
    ):
        rewritten(folder, lambda replaced, plan=plan: replaced.update({"0": plan}))
        with refused("the weights in .* do not fit this model|the recipe of a .* cannot be read"):
            tw.load_compressed(folder, mlp())
    deep = '{"class": "Sequential", "of": [' * 50_000
    (folder / "recipe.json").write_text('{"format": 1, "replaced": {"0": ' + deep)
    with refused("is no recipe of a compressed model"):
        tw.load_compressed(folder, mlp())
    plan: dict[str, object] = {"class": "Linear"}
    for _ in range(300):
        plan = {"class": "Sequential", "of": [plan]}
    (folder / "recipe.json").write_text(json.dumps({"format": 1, "replaced": {"0": plan}}))
    with refused("the recipe of a .* cannot be read|a recipe is of"):
        tw.load_compressed(folder, mlp())
    with (folder / "recipe.json").open("wb") as file:
        file.truncate(2**30)  # a hole: no byte of it is on the disk
    with refused("is no recipe of a compressed model: it has 1,073,741,824 bytes"):
        tw.load_compressed(folder, mlp())


@pytest.mark.parametrize("name", ["..", "../0", "0/../2", "__class__", "forward", "/etc", "0.weight.data", "training"])
def test_a_recipe_for_places_that_are_none(name, tmp_path):
    folder = rewritten(small(tmp_path), lambda replaced: replaced.update({name: {"class": "Sequential", "of": []}}))
    with refused("which this model does not have"):
        tw.load_compressed(folder, mlp())


def test_nothing_in_a_folder_runs(tmp_path):
    """Not the Python that lies beside the weights, nor what a config of transformers asks for."""
    folder, mark = small(tmp_path), tmp_path / "ran"
    (folder / "low_rank_linear.py").write_text(f"open({str(mark)!r}, 'w')")
    (folder / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')")
    tw.load_compressed(folder, mlp())
    for config in (
        {"model_type": "evil", "auto_map": {"AutoConfig": "modeling_evil.Config"}, "architectures": ["Evil"]},
        {"model_type": "gpt2", "architectures": ["os.system"]},
        {"model_type": "gpt2", "architectures": ["pipeline"]},
        {"model_type": "gpt2", "architectures": 3},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 10**9},
        [],
    ):
        (folder / "config.json").write_text(json.dumps(config))
        with refused("config.json"):
            tw.load_compressed(folder)
    assert not mark.exists()


def test_links_out_of_a_folder(tmp_path):
    """They are followed, as the caches of models are made of links; what is behind them is data, and is not told."""
    folder, secret = small(tmp_path), tmp_path / "secret"
    secret.write_text("password=hunter2")
    for name, message in (("recipe.json", "is no recipe"), ("compressed.safetensors", "do not fit this model")):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
        with refused(message) as caught:
            tw.load_compressed(folder, mlp())
        assert "hunter2" not in str(caught.value)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    link = tmp_path / "link.safetensors"
    link.symlink_to(secret)
    tree().save(link)  # takes the place of the link
    assert not link.is_symlink()
    assert secret.read_text() == "password=hunter2"
    (folder / "recipe.json").unlink()
    (folder / "recipe.json").symlink_to(folder / "recipe.json")
    with refused("holds no compressed model", FileNotFoundError):
        tw.load_compressed(folder, mlp())


# -- the zoo ----------------------------------------------------------------------------------------------------------

GOOD = b"the right content" * 10


def asset(source: bool = False) -> Asset:
    return Asset("hostile", "1.0", "hostile/model.bin", hashlib.sha256(GOOD).hexdigest(), len(GOOD), "none", source)


def wheel(folder: Path, members: dict[str, bytes], pack: int = zipfile.ZIP_DEFLATED) -> Path:
    path = folder / "hostile-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", pack) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_wheel_whose_member_is_a_bomb(tmp_path):
    path = wheel(tmp_path, {"hostile/model.bin": b"\0" * 2**24})
    with refused("is not the file that was checked", AssetCorrupt):
        assets._unpack(asset(), path, tmp_path)
    # and one whose size is a lie: both records of it say what the table says
    data = bytearray(path.read_bytes())
    for at in (data.index(b"PK\x03\x04") + 22, data.index(b"PK\x01\x02") + 24):
        data[at : at + 4] = struct.pack("<I", len(GOOD))
    path.write_bytes(data)
    with refused("has no readable|is not the file that was checked", AssetCorrupt):
        assets._unpack(asset(), path, tmp_path)
    assert max((p.stat().st_size for p in tmp_path.iterdir() if p != path), default=0) <= len(GOOD)


def test_a_wheel_that_leads_out_of_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = wheel(tmp_path, {"../evil": b"x", "/tmp/evil-termwise": b"x", "hostile/../../evil": b"x", "hostile/model.bin": GOOD})
    assert assets._unpack(asset(), path, inside).read_bytes() == GOOD
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted([path.name, asset().sha256])
    assert not Path("/tmp/evil-termwise").exists()


@pytest.mark.parametrize("how", ["encrypted", "packed in a way that is none", "torn", "another content", "no archive"])
def test_a_wheel_that_cannot_be_unpacked(how, tmp_path):
    path = wheel(tmp_path, {"hostile/model.bin": GOOD if how != "another content" else GOOD[::-1]})
    data = bytearray(path.read_bytes())
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    if how == "encrypted":
        data[local + 6] |= 1
        data[central + 8] |= 1
    elif how == "packed in a way that is none":
        data[local + 8 : local + 10] = data[central + 10 : central + 12] = struct.pack("<H", 77)
    elif how == "torn":
        data[local + 47 : local + 60] = b"\xff" * 13
    elif how == "no archive":
        data = bytearray(b"<html>not found</html>")
    path.write_bytes(data)
    with refused("has no readable|is not the file that was checked", AssetCorrupt):
        assets._unpack(asset(), path, tmp_path)


def tarball(folder: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    path = folder / "hostile-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
            else:
                archive.addfile(member)
    return path


def test_a_source_archive_that_leads_elsewhere(tmp_path):
    link, device = tarfile.TarInfo("hostile/model.bin"), tarfile.TarInfo("hostile/model.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    for member in (link, device):
        with refused("is not the file that was checked", AssetCorrupt):
            assets._unpack(asset(source=True), tarball(tmp_path, member), tmp_path)
    inside = tmp_path / "inside"
    inside.mkdir()
    path = tarball(tmp_path, ("../evil", b"x"), ("hostile/model.bin", GOOD))
    assert assets._unpack(asset(source=True), path, inside).read_bytes() == GOOD
    assert not (tmp_path / "evil").exists()
    with refused("has no readable hostile/model.bin", AssetCorrupt):
        assets._unpack(asset(source=True), tarball(tmp_path, ("other", GOOD)), tmp_path)


def test_a_source_archive_that_is_a_bomb(tmp_path):
    """A first member of 20 MB, and a header whose own length is claimed to be 8 GB: a few kilobytes as files."""
    path = tarball(tmp_path, ("filler", bytes(2 * 10**7)), ("hostile/model.bin", GOOD))
    assert path.stat().st_size < 200_000
    with refused("unpacks to far more than it should", AssetCorrupt):
        assets._unpack(asset(source=True), path, tmp_path)
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 8 * 2**30 - 1
    with gzip.open(path, "wb", 1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(40):
            file.write(b"\0" * 2**20)
    with refused("unpacks to far more than it should", AssetCorrupt):
        assets._unpack(asset(source=True), path, tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with refused("has no readable", AssetCorrupt):
        assets._unpack(asset(source=True), path, tmp_path)


def test_a_tokenizer_that_is_a_bomb(tmp_path):
    path, mark = tmp_path / "tokenizer.pkl", tmp_path / "ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Bomb(mark), protocol))
        with refused("the pickle asks for", AssetCorrupt):
            read_pickle(path)
    for data in (
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",  # bytes of a claimed length
        b"\x80\x04\x8e" + struct.pack("<Q", 2**33) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b".",  # a frame
        b"\x80\x02r" + struct.pack("<I", 2**32 - 1) + b".",  # a memo index
        b"\x80\x04" + b"(" * 10**6 + b".",
        b"\x80\x02cbuiltins\neval\n(S'1'\ntR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02\x82\x01.",  # an extension
        b"Pevil\n.",  # a persistent id
        b"",
    ):
        path.write_bytes(data)
        with refused("is no pickled tokenizer|the pickle asks for", AssetCorrupt):
            read_pickle(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", "/etc/passwd", "mobilenet-v2/../x", "", "\0", "C:\\x", "file:///etc/passwd", ESCAPES]
)
def test_a_model_name_is_no_path(name):
    with refused("unknown model"):
        zoo.load(name)
    with refused("unknown photo"):
        zoo.photo(name)


# -- pictures ---------------------------------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes = b"", *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of grey pixels with whatever chunks."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = b"".join(chunk(kind, content) for kind, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + start + body + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/evil-termwise) (w) file closefile showpage\n"
PICTURES = {
    "svg": SVG,
    "svg after a declaration": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + SVG,
    "html": b"<html><script>alert(1)</script></html>",
    "eps, which is a program": EPS,
    "wmf": b"\xd7\xcd\xc6\x9a" + b"\0" * 60,
    "text": b"no picture",
    "nothing": b"",
    "a pickle": pickle.dumps([1]),
    "no width": png(0, 9),
    "no height": png(9, 0),
    "two billion pixels a side": png(2**31 - 1, 2**31 - 1),
    "a bomb of 1.6 billion pixels": png(40_000, 40_000, b"\0" * 10_000),
    "a bomb that Pillow only warns of": png(10_000, 10_000, b"\0" * 10_000),
    "a text that is a bomb": png(4, 4, b"\0" * 20, (b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**7))),
    "no end": png(64, 64, bytes(range(256)) * 17)[:60],
    "gif of no size": b"GIF89a\0\0\0\0\0\0\0;",
    "bmp of a claimed size": b"BM" + struct.pack("<IIIIiiHHI", 54, 0, 54, 40, 2**30, 2**30, 1, 24, 0) + b"\0" * 20,
    "tiff of a claimed size": b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 256, 4, 1, 2**31) + b"\0" * 4,
    "ppm of a claimed size": b"P6 100000 100000 255\n\0\0\0",
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_is_none(kind, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(PICTURES[kind])
    with refused("cannot be read as a picture|has no pixels"):
        pictures.read(path)
    assert not Path("/tmp/evil-termwise").exists()


def test_of_many_frames_the_first_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", *["blue"] * 200)]
    for suffix in ("gif", "webp", "png", "tiff"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        red, green, _ = pictures.read(tmp_path / f"a.{suffix}").getpixel((0, 0))
        assert (red > 250, green < 5) == (True, True)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tiff", "bmp", "webp"])
def test_a_damaged_picture_is_read_or_refused(suffix, tmp_path):
    """Sixty times a few bytes of a good file are changed, or its end is lost."""
    path, chance = tmp_path / f"a.{suffix}", random.Random(0)
    Image.effect_noise((24, 16), 60).convert("RGB").save(path)
    good = path.read_bytes()
    for _ in range(60):
        bad = bytearray(good[: chance.choice([len(good), chance.randrange(1, len(good))])])
        for _ in range(chance.randrange(1, 6)):
            bad[chance.randrange(min(len(bad), chance.choice([40, len(bad)])))] = chance.randrange(256)
        path.write_bytes(bad)
        try:
            assert min(pictures.read(path).size) > 0
        except ValueError as problem:
            assert "cannot be read as a picture" in str(problem) or "has no pixels" in str(problem)


# -- names and labels -------------------------------------------------------------------------------------------------


def explained(label: str) -> tw.Explanation:
    """An explanation whose every word is the label."""
    model = nn.Sequential()
    model.add_module(label.replace(".", ""), nn.Linear(4, 3))
    return tw.explain(model.eval(), X, target=1, classes=[label] * 3, names=[[label] * 4] * 2)


def test_labels_tokens_headings_and_module_names_are_text_in_a_page():
    why = explained(EVIL)
    whole = page([Section(why, EVIL, EVIL, scores=[(EVIL, 1.0)], note=EVIL)], title=EVIL, lead=EVIL, footer=EVIL)
    for html in (whole, fragment(why)):
        found = Elements()
        found.feed(html)
        assert "onerror=alert(1)" in html  # it is there to be read
        assert not [name for name in found.attributes if name.startswith("on")]
        for kind, code in found.scripts:
            if kind == "application/json":
                json.loads(code)
            else:
                digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
                assert f"'sha256-{digest}'" in html  # ours: another one the page's own policy does not let run
    assert not found.scripts  # a fragment for notebooks has none


class Elements(HTMLParser):
    """Scripts, by type, and the names of all attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[str, str]] = []
        self.attributes: list[str] = []
        self.open = False

    def handle_starttag(self, tag, attrs):
        self.attributes += [name for name, _ in attrs]
        self.open = tag == "script"
        if self.open:
            self.scripts.append((dict(attrs).get("type", ""), ""))

    def handle_data(self, data):
        if self.open:
            kind, code = self.scripts[-1]
            self.scripts[-1] = kind, code + data

    def handle_endtag(self, tag):
        self.open = False


def test_labels_are_text_in_a_drawing():
    """An SVG has no script of theirs, and a `$` begins no formula."""
    model = nn.Sequential()
    for label in (EVIL, "a$b$c", "$\\frac{"):
        model.add_module(label.replace(".", ""), nn.Linear(20, 20))
    found = tw.compress(model, 0.5, data=torch.randn(64, 20), progress=False)
    buffer = io.BytesIO()
    found.plot().savefig(buffer, format="svg")
    root = ElementTree.fromstring(buffer.getvalue())
    assert not [e for e in root.iter() if e.tag.rpartition("}")[2] in ("script", "foreignObject", "image")]


def test_names_move_no_cursor(tmp_path):
    model = nn.Sequential()
    model.add_module(ESCAPES + "[/]", nn.Linear(20, 20))
    report = tw.compress(model, 0.5, data=torch.randn(64, 20), progress=False).report()
    said = CliRunner().invoke(cli.app, ["explain", "--model", f"{ESCAPES}/x.py:f", "--image", "a.png"])
    assert said.exit_code == 2
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        explained(ESCAPES).show()
    for text in (report, said.stderr, shown.getvalue()):
        assert text
        assert not {"\x1b", "\x07", "\u202e"} & {*text}


def test_no_spreadsheet_computes_a_name(tmp_path):
    names = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "plain", 'quote"d, and', "a\nb"]
    d = tw.Decomposition(torch.ones(1) * len(names), {name: torch.ones(1) for name in names})
    with d.to_csv(tmp_path / "d").open(newline="", encoding="utf-8") as file:
        rows = [row["part"] for row in csv.DictReader(file)]
    assert rows == [f"'{n}" if n[0] in "=+-@\t\r" else n for n in [*names, "remainder"]]
    assert not [row for row in rows if row.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_a_model_file_beside_names_that_deceive(tmp_path, monkeypatch):
    """A file name is shown as text; one with a colon or two dots is read where it is, and nowhere else."""
    odd = tmp_path / f"a b{ESCAPES}.py"
    odd.write_text("def f():\n    raise ValueError('\\x1b[2J')\n")
    said = CliRunner().invoke(cli.app, ["explain", "--model", f"{odd}:f", "--image", str(odd)])
    assert said.exit_code == 2
    assert "\x1b" not in said.output
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(cli.app, ["explain", "--model", "../../x", "--image", "a.png"])
    assert "unknown model '../../x'" in said.stderr


def test_a_fifo_or_a_device_is_no_file(tmp_path):
    """Opening one would wait, or read, for ever."""
    fifo = tmp_path / "model.safetensors"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero")):
        for load in LOADERS.values():
            with refused("does not exist|no weights file|is no file", FileNotFoundError):
                load(path)
        with refused("no picture file", FileNotFoundError):
            pictures.read(path)
