"""Termwise: take any neural network apart, term by term, and check that the terms add up.

    whole = sum of named parts + remainder          (the remainder is measured, shown, and never hidden)

`import termwise as tw`; verbs and rooms load when first used, so that the import itself costs next to nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import computation, core, engine, functions, layers, optimizers, predictions, report, testing, view, weights, zoo
    from .computation import Accelerated, DiagonalSSM, accelerate, toeplitz_to_ssm
    from .core import Decomposition, DoesNotAddUp, capture, cite
    from .functions import (
        Expansion,
        MultiStage,
        TangentModel,
        expand,
        jet,
        linearize_channels,
        relu_spectrum,
        residual_expansion,
        shallow,
        tangent,
    )
    from .predictions import (
        Explanation,
        chefer,
        compare,
        continuation,
        contrast,
        coverage,
        decompx,
        explain,
        next_token,
        weighting,
    )
    from .weights import Compressed, Factorization, compress, load_compressed

__version__ = "0.1.0"

__all__ = [
    "Accelerated", "Compressed", "Decomposition", "DiagonalSSM", "DoesNotAddUp", "Expansion", "Explanation", "Factorization",
    "MultiStage", "TangentModel", "__version__", "accelerate", "capture", "chefer", "cite", "compare", "compress", "computation",
    "continuation", "contrast", "core", "coverage", "decompx", "engine", "expand", "explain", "functions", "jet", "layers",
    "linearize_channels", "load_compressed", "next_token", "optimizers", "predictions", "relu_spectrum", "report",
    "residual_expansion", "shallow", "tangent", "testing", "toeplitz_to_ssm", "view", "weighting", "weights", "zoo",
]  # fmt: skip

_ROOMS = (
    "computation",
    "core",
    "engine",
    "functions",
    "layers",
    "optimizers",
    "predictions",
    "report",
    "testing",
    "view",
    "weights",
    "zoo",
)
_VERBS = {
    "accelerate": "computation", "Accelerated": "computation",
    "capture": "core", "cite": "core", "Decomposition": "core", "DoesNotAddUp": "core", "explain": "predictions",
    "Explanation": "predictions", "compare": "predictions", "decompx": "predictions",
    "chefer": "predictions", "coverage": "predictions", "continuation": "predictions", "contrast": "predictions",
    "next_token": "predictions", "weighting": "predictions", "expand": "functions", "Expansion": "functions", "jet": "functions",
    "relu_spectrum": "functions", "residual_expansion": "functions", "shallow": "functions", "linearize_channels": "functions",
    "tangent": "functions", "TangentModel": "functions", "MultiStage": "functions",
    "compress": "weights", "Compressed": "weights", "Factorization": "weights", "load_compressed": "weights",
    "toeplitz_to_ssm": "computation", "DiagonalSSM": "computation",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a room, or the room of a verb, when it is first asked for (PEP 562)."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _VERBS:
        value = getattr(importlib.import_module(f"{__name__}.{_VERBS[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if os.environ.get("TERMWISE_EAGER"):  # CI: a broken import is seen at once
    for _name in (*_ROOMS, *_VERBS):
        __getattr__(_name)
