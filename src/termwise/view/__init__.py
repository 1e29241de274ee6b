"""A local page to browse the results of a run over a data set: filter, sort, open one. For this machine's own browser."""

from .app import application
from .server import serve

__all__ = ["application", "serve"]
