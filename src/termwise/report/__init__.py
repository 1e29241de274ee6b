"""Pictures and pages of a Decomposition: terminal, HTML, PNG. No maths, and no knowledge of methods."""

from .output import check_writable, write
from .page import Section, fragment, page
from .terminal import show

__all__ = ["Section", "check_writable", "fragment", "page", "show", "write"]
