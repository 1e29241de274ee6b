"""Training: where an expansion takes the place of a step of it, beginning with the backward pass."""

from .highway import HighwayBackward, HighwayGradients, highway_gradients
from .recurrent import HighwayRecurrent, highway_recurrent

__all__ = ["HighwayBackward", "HighwayGradients", "HighwayRecurrent", "highway_gradients", "highway_recurrent"]
