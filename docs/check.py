"""What `make docs-check` asks of the documentation that was built: links and spelling. Exit code 1 where something is wrong.

    python docs/check.py docs/_build/html

Every link, anchor and picture within the site exists; those that lead out are well formed (nothing is fetched). Spelling is
codespell's, which knows words that are commonly mistyped, and so is silent about names and symbols; `docs/spelling.txt` has the
words of ours that it takes for mistakes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
TEXTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CITATION.cff",
    "docs",
    "src",
    "benchmarks",
)  # tests mistype on purpose
BUILT = "docs/_build,docs/gallery,docs/learn,docs/_generated,docs/data,*.json,*.svg,*.css,*.js,*.lock,*.safetensors"
POINTS = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page points at, and what in it can be pointed at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {name for name in (found.get("id"), found.get("name") if tag == "a" else None) if name}
        if target := found.get(POINTS.get(tag, "")):
            self.targets.append(target)


def links(site: Path) -> Iterator[str]:
    """Every link that leads nowhere, as a line that says where it stands."""
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} holds no page: build it first (make docs)"
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        for target in dict.fromkeys(page.targets):
            parts = urlsplit(target)
            if parts.scheme in ("data", "mailto", "javascript"):
                continue
            if parts.scheme or parts.netloc:
                if parts.scheme not in ("http", "https", "") or "." not in parts.netloc or " " in target:
                    yield f"{here}: {target} is no address"
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.exists():
                yield f"{here}: {target} does not exist"
            elif parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].anchors:
                yield f"{here}: {target} has no such place"


def spelling() -> Iterator[str]:
    """Every word that is commonly mistyped so."""
    call = [sys.executable, "-m", "codespell_lib", "--ignore-words", "docs/spelling.txt", "--skip", BUILT, "--quiet-level", "2"]
    done = subprocess.run([*call, *(text for text in TEXTS if (ROOT / text).exists())], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 64, 65) and done.stderr.strip():
        yield f"codespell: {done.stderr.strip()}"
    yield from done.stdout.splitlines()


if __name__ == "__main__":
    wrong = [*links(Path(sys.argv[1])), *spelling()]
    print("\n".join(wrong) or "every link leads somewhere, and no word is misspelt")
    sys.exit(bool(wrong))
