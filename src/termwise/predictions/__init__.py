"""What in the input made the output: relevance propagation and the proof that it adds up."""

from .compare import METHODS, Comparison, compare
from .dataset import MeanExplanation, explain_dataset
from .decompx import TokenDecomposition, decompx
from .explain import explain
from .explanation import Explanation
from .faithfulness import (
    DeletionCurve,
    MaskedText,
    Metric,
    PerturbationCurves,
    Randomisation,
    Segmentation,
    abpc,
    blurred,
    comprehensiveness_eraser,
    deletion,
    infidelity,
    insertion,
    masked_text,
    mass_inside,
    perturbation_curves,
    pixel_flipping,
    planted,
    pointing_game,
    randomisation,
    sampled,
    segmentation,
    sensitivity_max,
    span_identification,
    sufficiency_eraser,
    token_f1,
    top_token_in_answer,
)
from .gradcam import gradcam
from .gradient_x_input import gradient_x_input
from .groups import Groups, patches, words
from .integrated_gradients import integrated_gradients
from .occlusion import occlusion
from .over_depth import over_depth, spread
from .rules import RULE_SETS, RULES, rule
from .smoothgrad import smoothgrad
from .targets import Start, continuation, contrast, next_token, node, weighting

__all__ = [
    "METHODS",
    "RULES",
    "RULE_SETS",
    "Comparison",
    "DeletionCurve",
    "Explanation",
    "Groups",
    "MaskedText",
    "MeanExplanation",
    "Metric",
    "PerturbationCurves",
    "Randomisation",
    "Segmentation",
    "Start",
    "TokenDecomposition",
    "abpc",
    "blurred",
    "compare",
    "comprehensiveness_eraser",
    "continuation",
    "contrast",
    "decompx",
    "deletion",
    "explain",
    "explain_dataset",
    "gradcam",
    "gradient_x_input",
    "infidelity",
    "insertion",
    "integrated_gradients",
    "masked_text",
    "mass_inside",
    "next_token",
    "node",
    "occlusion",
    "over_depth",
    "patches",
    "perturbation_curves",
    "pixel_flipping",
    "planted",
    "pointing_game",
    "randomisation",
    "rule",
    "sampled",
    "segmentation",
    "sensitivity_max",
    "smoothgrad",
    "span_identification",
    "spread",
    "sufficiency_eraser",
    "token_f1",
    "top_token_in_answer",
    "weighting",
    "words",
]  # fmt: skip
