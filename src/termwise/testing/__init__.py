"""What holds methods to their word: the contract of every decomposition, and small architectures to run it on."""

from .contract import CHECKS, DecompositionContract, Example, check_decomposition

__all__ = ["CHECKS", "DecompositionContract", "Example", "check_decomposition"]
