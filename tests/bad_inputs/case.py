"""A row of the table: who was called, with what, and what must be said."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import termwise

__all__ = ["Case"]

OURS = Path(termwise.__file__).parent
LONGEST = 600
"""Characters of a message: what was wrong, where, and what to do, and no more."""


class Case(NamedTuple):
    """One verb, one cause.

    Attributes:
        verb: the public name.
        cause: what is bad, in a few words.
        call: does it; with an argument it is given an empty folder.
        error: the class that must be raised, exactly it or one of ours below it.
        says: the whole message; "..." stands for what differs by machine or by version of torch.
    """

    verb: str
    cause: str
    call: Callable[..., object]
    error: type[Exception]
    says: str

    def check(self, folder: Path) -> None:
        """Make the call and look at what it raises."""
        with pytest.raises(self.error) as caught:
            self.call(*[folder] * self.call.__code__.co_argcount)
        message = str(caught.value).replace(str(folder), "FOLDER")
        last = traceback.extract_tb(caught.value.__traceback__)[-1]
        ours = Path(last.filename).is_relative_to(OURS) and (last.line or "").startswith("raise ")
        assert ours, f"raised by {last.filename}:{last.lineno}, and not said by us: {message}"
        assert (
            type(caught.value) in (ValueError, TypeError)
            or type(caught.value).__module__.startswith("termwise")
            or (issubclass(self.error, OSError | IndexError | ImportError | ArithmeticError))
        ), type(caught.value)
        assert len(message) < LONGEST, message
        assert "Traceback" not in message
        pattern = ".*".join(map(re.escape, self.says.split("...")))
        assert re.fullmatch(pattern, message, re.DOTALL), f"\nsaid:     {message}\nexpected: {self.says}"
