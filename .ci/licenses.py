"""Licences of everything that constraints.txt pins, as a table; GPL and AGPL are refused, and a package that names none.

A package of the GPL would bind whoever passes Termwise on together with it. The LGPL and the MPL do not bind those who only
import a library. Where a package lets one choose ("MIT OR GPL-3.0"), the choice is not the GPL. Of a list of classifiers nobody
knows whether it is a choice: all of it counts, until somebody has looked (`JUDGED`).
"""

import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFUSED = re.compile(r"\bA?GPL|\bAffero\b|\bGeneral Public\b", re.IGNORECASE)
HARMLESS = re.compile(r"\bLGPL[\w.+-]*|\bLesser General Public\b", re.IGNORECASE)

JUDGED = {
    "axe-playwright-python": "MIT, by the file LICENSE in its wheel; its metadata say nothing",
    "codespell": "GPL-2.0, a tool that reads the documentation in CI: nothing of it is imported, and none of it passed on",
    "docutils": "public domain and BSD; its one file of the GPL, a mode for Emacs, is not in the wheel",
}
"""Packages that were looked at by hand, and what was found."""


def licence(package: metadata.PackageMetadata) -> str:
    """What was found by hand, else what a package says of itself: expression, classifiers, first line of the text."""
    classifiers = [c.rpartition(" :: ")[2] for c in package.get_all("Classifier", []) if c.startswith("License :: ")]
    named = ", ".join(c for c in classifiers if c != "OSI Approved")
    text = (package.get("License") or "").strip().partition("\n")[0]
    return JUDGED.get(package["Name"]) or package.get("License-Expression") or named or text or "unknown"


def refused(licence: str) -> bool:
    """Whether every choice that it leaves is of the GPL, also with an exception to it; or nothing is said."""
    choices = re.split(r"\bOR\b", HARMLESS.sub("", licence))
    return licence == "unknown" or all(REFUSED.search(choice) for choice in choices)


def rows(packages: Iterable[metadata.Distribution]) -> list[tuple[str, str, str]]:
    """Name, version and licence, by name."""
    found = {d.metadata["Name"].lower(): (d.metadata["Name"], d.version, licence(d.metadata)) for d in packages}
    return [found[name] for name in sorted(found)]


def pinned() -> list[metadata.Distribution]:
    """What of it is installed here; not what else somebody has installed."""
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    return [d for d in metadata.distributions() if _plain(d.metadata["Name"]) in set(map(_plain, pins))]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Print the table; 1 when something is refused."""
    table = rows(pinned())
    width = max(len(name) + len(version) for name, version, _ in table) + 2
    for name, version, text in table:
        sys.stdout.write(f"{name + ' ' + version:<{width}} {text}\n")
    wrong = [f"{name} ({text})" for name, _, text in table if name not in JUDGED and refused(text)]
    if wrong:
        sys.stderr.write(f"refused: {', '.join(wrong)}. Do without, or look for yourself and add to JUDGED in .ci/licenses.py\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
