"""What in the input made the output: relevance propagation and the proof that it adds up."""

from .chefer import (
    AttentionExplanation,
    AttentionReadout,
    attention_gradcam,
    attention_rollout,
    chefer,
    gradient_rollout,
    partial_lrp,
    raw_attention,
)
from .compare import METHODS, Comparison, compare
from .coverage import Coverage, coverage
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
from .patch_maxima import published_abpc
from .rules import RULE_SETS, RULES, rule
from .shapley import shapley
from .smoothgrad import smoothgrad
from .starts import Start
from .targets import continuation, contrast, next_token, node, weighting

__all__ = [
    "METHODS",
    "RULES",
    "RULE_SETS",
    "AttentionExplanation",
    "AttentionReadout",
    "Comparison",
    "Coverage",
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
    "attention_gradcam",
    "attention_rollout",
    "blurred",
    "chefer",
    "compare",
    "comprehensiveness_eraser",
    "continuation",
    "contrast",
    "coverage",
    "decompx",
    "deletion",
    "explain",
    "explain_dataset",
    "gradcam",
    "gradient_rollout",
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
    "partial_lrp",
    "patches",
    "perturbation_curves",
    "pixel_flipping",
    "planted",
    "pointing_game",
    "published_abpc",
    "randomisation",
    "raw_attention",
    "rule",
    "sampled",
    "segmentation",
    "sensitivity_max",
    "shapley",
    "smoothgrad",
    "span_identification",
    "spread",
    "sufficiency_eraser",
    "token_f1",
    "top_token_in_answer",
    "weighting",
    "words",
]  # fmt: skip
