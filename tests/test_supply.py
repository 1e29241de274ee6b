"""`make licenses`, `make audit`, `make sbom`: what they refuse, and that an audit which did not happen is not called fine."""

import importlib.util
import json
import os
import subprocess
import sys
from email.message import Message
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


licenses, audit = script("licenses"), script("audit")


@pytest.mark.parametrize(
    "text",
    [
        "GPL-3.0-only", "GPLv2", "GNU General Public License v3 (GPLv3)", "AGPL-3.0-or-later", "GNU Affero General Public License v3",
        "MIT AND GPL-2.0-only", "GPL-2.0-only WITH Classpath-exception-2.0", "Public Domain, GNU General Public License (GPL)", "unknown",
        "GPL-2.0-only OR AGPL-3.0-only",
    ],
)  # fmt: skip
def test_the_gpl_is_refused(text):
    assert licenses.refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "MIT", "Apache-2.0 WITH LLVM-exception", "MIT OR GPL-3.0-or-later", "LGPL-2.1-or-later", "Mozilla Public License 2.0 (MPL 2.0)",
        "GNU Lesser General Public License v2 (LGPLv2)", "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0",
    ],
)  # fmt: skip
def test_others_are_not(text):
    assert not licenses.refused(text)


class Package:
    """As much of a distribution as is looked at."""

    version = "1.0"

    def __init__(self, name: str, *fields: tuple[str, str]) -> None:
        self.metadata = Message()
        for key, value in (("Name", name), *fields):
            self.metadata[key] = value


def test_where_a_licence_is_read(monkeypatch):
    several = [("Classifier", "License :: OSI Approved"), ("Classifier", "License :: OSI Approved :: MIT License")]
    packages = [
        Package("b", ("License", "3-clause BSD\n\nCopyright ..."), ("License-Expression", "MIT")),
        Package("A", ("License", "a long text\nof many lines"), *several),
        Package("c", ("License", "3-clause BSD\n\nCopyright ...")),
        Package("d"),
    ]
    told = ["MIT License", "MIT", "3-clause BSD", "unknown"]
    assert licenses.rows(packages) == [(n, "1.0", t) for n, t in zip("Abcd", told, strict=True)]


def test_one_package_of_the_gpl_ends_with_1(monkeypatch, capsys):
    assert licenses.main() == 0
    assert "torch" in capsys.readouterr().out
    here, viral = list(metadata.distributions()), Package("viral", ("License-Expression", "GPL-3.0-only"))
    monkeypatch.setattr(metadata, "distributions", lambda: [*here, viral])
    assert licenses.main() == 0  # on this machine, and nothing that we ask for
    monkeypatch.setattr(licenses, "pinned", lambda: [*here, viral])
    capsys.readouterr()
    assert licenses.main() == 1
    told = capsys.readouterr()
    assert "refused: viral (GPL-3.0-only)." in told.err
    assert "torch" not in told.err


def test_what_was_judged_by_hand_is_still_there():
    docutils = metadata.distribution("docutils")
    assert not [f for f in docutils.files if f.suffix == ".el"]
    assert (docutils.locate_file("docutils") / "__init__.py").exists()


FINE = {"name": "numpy", "version": "1", "vulns": []}
KNOWN = {"name": "jinja2", "version": "3", "vulns": [{"id": "PYSEC-1", "fix_versions": ["4"]}]}
SKIPPED = {"name": "torch", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "text"),
    [
        ([FINE], 0, "1 packages looked up, 0 known faults"),
        ([FINE, KNOWN], 1, "jinja2 3: PYSEC-1, mended in 4"),
        ([KNOWN, SKIPPED], 1, "PYSEC-1"),
        ([FINE, SKIPPED], 75, "NOT AUDITED: the service does not know torch."),
        ([], 75, "NOT AUDITED: the service does not know any package."),
        (None, 75, "NOT AUDITED: pip-audit could not ask (ProxyError: no way out)."),
    ],
)
def test_an_audit_says_what_it_is_worth(monkeypatch, capsys, packages, code, text):
    said = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    done = subprocess.CompletedProcess([], 1, said, "Traceback ...\nProxyError: no way out\n")
    monkeypatch.setattr(audit, "ask", lambda: done)
    assert audit.main() == code
    told = capsys.readouterr()
    assert text in told.out + told.err
    assert ("NOT AUDITED" in told.err) is (code == 75)


def test_everything_that_is_installed_is_audited():
    lines = audit.pins().splitlines()
    assert len(lines) == len([line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line])
    assert lines[0].startswith("torch==")


def test_without_a_network_nothing_is_called_fine():
    """The real pip-audit, and a proxy that nobody answers at."""
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
    own = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    command = [sys.executable, ROOT / ".ci" / "audit.py"]
    done = subprocess.run(command, env={**own, **nowhere}, capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert done.stderr.startswith("NOT AUDITED: pip-audit could not ask")


def test_the_bill_of_materials_is_whole_and_the_same_twice(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for out in (first, second):
        command = [sys.executable, "-m", "cyclonedx_py", "environment", sys.executable, "--pyproject", "pyproject.toml"]
        subprocess.run(
            [*command, "--no-validate", "--output-reproducible", "--of", "JSON", "-o", out],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
    assert first.read_bytes() == second.read_bytes()
    bill = json.loads(first.read_text("utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    assert {c["name"].lower() for c in bill["components"]} >= {"torch", "numpy", "safetensors"}
    assert all(c["version"] for c in bill["components"])
