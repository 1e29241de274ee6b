"""Expansions of a network as a function: Taylor jets, and what is made of them."""

from . import higher_order
from .activation_spectrum import Spectrum, activation_spectrum, relu_spectrum
from .adapters import adapter
from .channel_slopes import PartlyLinear, attach_slopes
from .composition import Composition, compose
from .compositional_loss import CompositionalLoss, quadratic
from .dc_component import dc_component
from .dc_report import DCReport, dc_report
from .differential import biharmonic, derivatives, laplacian, linear_operator, partial
from .dominant_frequency import dominant_frequency
from .expansion import Expansion, expand
from .fisher import diagonal_fisher
from .harmonics import harmonics, relu_harmonics
from .incremental import IEL, ITA
from .jet import jet
from .jet_rules import JET_RULES, Jet, jet_rule
from .linear_channels import LinearizedChannels, linearize_channels
from .linear_stretches import collapse
from .linearity import LinearityScores, linearity_scores
from .multistage import MultiStage
from .multistage_pinn import Derivatives, MultiStagePINN
from .path_length import average_path_length
from .private import privacy_spent, private_gradient
from .radius import Radius, radius
from .remove_dc import RemoveDC
from .residual_paths import ResidualExpansion, residual_expansion
from .scale_residuals import ScaledResiduals, scale_residuals
from .shallow import ShallowNet, shallow
from .subset_expansion import SubsetExpansion, subset_expansion
from .tangent import TangentModel, tangent

__all__ = [
    "IEL", "ITA", "JET_RULES", "Composition", "CompositionalLoss", "DCReport", "Derivatives", "Expansion", "Jet",
    "LinearityScores", "LinearizedChannels", "MultiStage", "MultiStagePINN", "PartlyLinear", "Radius", "RemoveDC",
    "ResidualExpansion", "ScaledResiduals", "ShallowNet", "Spectrum", "SubsetExpansion", "TangentModel",
    "activation_spectrum", "adapter", "attach_slopes", "average_path_length", "biharmonic", "collapse", "compose",
    "dc_component", "dc_report", "derivatives", "diagonal_fisher", "dominant_frequency", "expand", "harmonics",
    "higher_order", "jet", "jet_rule", "laplacian", "linear_operator", "linearity_scores", "linearize_channels", "partial",
    "privacy_spent", "private_gradient", "quadratic", "radius", "relu_harmonics", "relu_spectrum", "residual_expansion",
    "scale_residuals", "shallow", "subset_expansion", "tangent",
]  # fmt: skip
