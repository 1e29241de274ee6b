"""Capture a model once, rewrite or interpret its graph, and the contract that every method keeps."""

from .capture import capture
from .claims import claim
from .decomposition import Decomposition, DoesNotAddUp
from .program import CaptureError, Program

__all__ = ["CaptureError", "Decomposition", "DoesNotAddUp", "Program", "capture", "claim"]
