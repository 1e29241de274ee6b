"""Faithfulness: is a map right about the model, and not only tidy in its books? The face of every metric.

| mechanism                 | asks                                                                    | module                |
|---------------------------|-------------------------------------------------------------------------|-----------------------|
| perturbation curves       | does the answer fall when what the map names first is taken away?       | `perturbation_curves` |
| deletion and insertion    | the same along one order, beside random orders                          | `deletion`            |
| rationales                | ERASER's and DecompX's forms of it, for texts                           | `rationales`          |
| infidelity                | does the map predict what a small change does?                          | `infidelity`          |
| sensitivity               | does the map jump when the input hardly moves?                          | `sensitivity`         |
| localisation              | does the map name evidence whose place is known?                        | `localisation`        |
| segmentation              | does the map cover the object?                                          | `segmentation`        |
| randomisation             | does the map change when the model forgets what it learned?             | `randomisation`       |

Each gives one value per sample as a `Metric`, with the bootstrap interval of its mean, paired differences and clusters.
A map that adds up may fail all of them, and one that passes need not add up: ask both.
"""

from .deletion import DeletionCurve, abpc, deletion, insertion
from .fill_ins import blurred, sampled
from .infidelity import infidelity
from .localisation import mass_inside, planted, pointing_game, span_identification, token_f1, top_token_in_answer
from .metric import Metric
from .perturbation_curves import PerturbationCurves, perturbation_curves, pixel_flipping
from .randomisation import Randomisation, randomisation
from .rationales import MaskedText, comprehensiveness_eraser, masked_text, sufficiency_eraser
from .segmentation import Segmentation, segmentation
from .sensitivity import sensitivity_max

__all__ = [
    "DeletionCurve",
    "MaskedText",
    "Metric",
    "PerturbationCurves",
    "Randomisation",
    "Segmentation",
    "abpc",
    "blurred",
    "comprehensiveness_eraser",
    "deletion",
    "infidelity",
    "insertion",
    "masked_text",
    "mass_inside",
    "perturbation_curves",
    "pixel_flipping",
    "planted",
    "pointing_game",
    "randomisation",
    "sampled",
    "segmentation",
    "sensitivity_max",
    "span_identification",
    "sufficiency_eraser",
    "token_f1",
    "top_token_in_answer",
]  # fmt: skip
