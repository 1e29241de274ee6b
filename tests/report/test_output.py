"""Files are written whole or not at all, and a bad place is told beforehand."""

import os
import stat

import pytest

from termwise.report import check_writable, write


def test_written_whole_in_folders_that_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "why.html"
    assert write(path, "é") == path
    assert path.read_bytes() == "é".encode()
    assert write(path, b"new").read_bytes() == b"new"
    assert os.listdir(path.parent) == ["why.html"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "why.html")
    assert not os.listdir(tmp_path)


def test_bad_places_are_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="it is a folder; name a file in it"):
        check_writable(tmp_path)
    with pytest.raises(ValueError, match=r"cannot write .*file.why\.html"):
        check_writable(tmp_path / "file" / "why.html")
    with pytest.raises(ValueError, match="cannot write"):
        write("/proc/why.html", "x")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "why.html", "old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["why.html"]
