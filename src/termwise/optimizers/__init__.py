"""Training: where an expansion takes the place of a step of it, beginning with the backward pass."""

from .highway import HighwayBackward, HighwayGradients, highway_gradients
from .recurrent import highway_recurrent

__all__ = ["HighwayBackward", "HighwayGradients", "highway_gradients", "highway_recurrent"]
