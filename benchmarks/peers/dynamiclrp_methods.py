"""DynamicLRP, from its repository: one engine over autograd's nodes."""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .environments import clone
from .subjects import Subject


def methods(subject: Subject, cache: Path) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """As its README shows: run the model, then the engine on the output."""

    def engine(**options):  # type: ignore[no-untyped-def]
        def run(x: Tensor, target: int) -> Tensor:
            home = clone(cache)
            for folder in (home, home / "src"):
                if str(folder) not in sys.path:
                    sys.path.insert(0, str(folder))
            from lrp_engine import LRPEngine

            subject.model.requires_grad_(True)  # it reads weights that autograd saved
            leaf = (subject.embed(x) if subject.embed is not None else x).detach().requires_grad_()
            z = subject.model(leaf)
            start = torch.zeros_like(z)
            start[0, target] = z[0, target].detach()
            lrp = LRPEngine(params_to_interpret=[leaf], starting_relevance=start, **options)
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                found = lrp.run(z)
            if not isinstance(found[1][0], Tensor):  # it prints what it lacks, and returns
                raise NotImplementedError(said.getvalue().strip() or "the engine returned no relevance")
            relevance = found[1][0].detach()
            return relevance.sum(-1) if subject.kind == "text" else relevance

        return run

    return {"default": engine(), "gamma": engine(use_gamma=True)}
