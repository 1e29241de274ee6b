"""Code of others in the package is what its table says, and has its licence beside it."""

import hashlib
import tomllib
from importlib import resources

STATIC = resources.files("termwise.report").joinpath("static")


def test_bundled_files_are_what_the_table_says():
    table = tomllib.loads(STATIC.joinpath("bundled.toml").read_text("utf-8"))["file"]
    told = {"bundled.toml"}
    for entry in table:
        assert hashlib.sha256(STATIC.joinpath(entry["name"]).read_bytes()).hexdigest() == entry["sha256"], entry["name"]
        assert entry["texts"]
        told |= {entry["name"], *entry["texts"]}
    assert {file.name for file in STATIC.iterdir()} == told
    assert all(STATIC.joinpath(name).read_text("utf-8").strip() for name in told)
