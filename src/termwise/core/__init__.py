"""Capture a model once, rewrite or interpret its graph, and the contract that every method keeps."""

from .capture import capture
from .cite import Citation, Cited, cite
from .claims import claim
from .decomposition import Decomposition, DoesNotAddUp
from .program import CaptureError, Program

__all__ = ["CaptureError", "Citation", "Cited", "Decomposition", "DoesNotAddUp", "Program", "capture", "cite", "claim"]
