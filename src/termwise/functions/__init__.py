"""Expansions of a network as a function: Taylor jets, and what is made of them."""

from . import higher_order
from .differential import biharmonic, derivatives, laplacian, linear_operator, partial
from .expansion import Expansion, expand
from .jet import jet
from .jet_rules import JET_RULES, Jet, jet_rule
from .private import privacy_spent, private_gradient
from .radius import Radius, radius
from .residual_paths import ResidualExpansion, residual_expansion
from .scale_residuals import ScaledResiduals, scale_residuals
from .shallow import ShallowNet, shallow
from .subset_expansion import SubsetExpansion, subset_expansion
from .tangent import TangentModel, tangent

__all__ = [
    "JET_RULES", "Expansion", "Jet", "Radius", "ResidualExpansion", "ScaledResiduals", "ShallowNet", "SubsetExpansion",
    "TangentModel", "biharmonic", "derivatives", "expand", "higher_order", "jet", "jet_rule", "laplacian",
    "linear_operator", "partial", "privacy_spent", "private_gradient", "radius", "residual_expansion",
    "scale_residuals", "shallow", "subset_expansion", "tangent",
]  # fmt: skip
