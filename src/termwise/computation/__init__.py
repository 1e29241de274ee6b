"""Computation: what need not be computed again, and by how much the result changes if it is not."""

__all__: list[str] = []
