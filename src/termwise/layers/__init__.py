"""Layers: modules to train with, each with the terms it is made of."""

__all__: list[str] = []
