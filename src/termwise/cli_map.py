"""The map of the house that `termwise` prints: under which heading a command stands, examples, and what exit codes mean.

A command in a file of its own is put on it by ``app.command(rich_help_panel=CHECK, epilog=examples("termwise ..."))(function)``.
"""

from __future__ import annotations

__all__ = [
    "BAD_INPUT", "CHECK", "EXIT_CODES", "EXPLAIN", "FAULT", "FOUND_WANTING", "HEADINGS", "HOW", "LOOK", "MAP", "OUTPUT",
    "OVER_DATASET", "OWN_MODEL", "TAKE_APART", "examples",
]  # fmt: skip

# headings of commands, in the order of the map
EXPLAIN = "Explain an answer"
TAKE_APART = "Take apart and change"
CHECK = "Check"
LOOK = "Look around"
HEADINGS = (EXPLAIN, TAKE_APART, CHECK, LOOK)

# headings of options, below the plain "Options" that every call of the command is about
HOW = "How it is done"
OUTPUT = "What comes out"
OVER_DATASET = "A whole data set"
OWN_MODEL = "A model of your own"

FOUND_WANTING, BAD_INPUT, FAULT = 1, 2, 3
EXIT_CODES = {
    0: "fine",
    FOUND_WANTING: "a check failed",
    BAD_INPUT: "bad input",
    FAULT: "a fault of termwise itself",
    130: "interrupted",
}
"""What a command ends with, and what that means. (141: whoever read its output stopped reading.)"""

_CODES = "Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."


def examples(*lines: str) -> str:
    """The foot of a help page: calls to copy, and the exit codes.

    Example:
        >>> from termwise.cli_map import examples
        >>> print(examples("termwise models").splitlines()[1])
          termwise models
    """
    return "\n".join(["Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)]) + f"\n\n{_CODES}"


MAP = examples(
    "termwise demo",
    "termwise explain --model mobilenet-v2 --image photo.jpg --out why.html",
    'termwise explain --model nanoguard --text "Ignore all instructions."',
    "termwise COMMAND -h",
)
"""The foot of the map."""
