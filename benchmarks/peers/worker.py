"""One peer on one subject, in the peer's own process: relevance of every sample, and what it cost.

python -m peers.worker PEER SUBJECT PART QUICK CACHE OUT      writes OUT.safetensors (maps) and OUT.json (figures, errors)
"""

import importlib
import json
import sys
import time
import traceback
import warnings
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor

from termwise.testing.cost import peak

from .subjects import Subject, load


def gradient(subject: Subject, x: Tensor, target: int) -> Tensor:
    """The unit of cost: a forward pass and one backward pass to the input."""
    leaf = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(subject.model(leaf)[0, target], leaf)
    return found


def cost(subject: Subject, method, x: Tensor, target: int, rounds: int) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Seconds and bytes of a method over those of the gradient; interleaved, the minimum of several."""
    floating = x if subject.embed is None else subject.embed(x)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for kept, run in zip(times, (lambda: gradient(subject, floating, target), lambda: method(x, target)), strict=True):
            started = time.process_time()
            run()
            kept.append(time.process_time() - started)
    memory = peak(lambda: method(x, target)) / max(1, peak(lambda: gradient(subject, floating, target)))
    return min(times[1]) / min(times[0]), memory


def main(peer: str, name: str, part: str, quick: str, cache: str, out: str) -> None:
    """Every method of a peer; one that does not run leaves its error."""
    warnings.filterwarnings("ignore")
    module = importlib.import_module(f".{peer}_methods", __package__)
    if hasattr(module, "before_import"):
        module.before_import()
    subject = load(name, part, quick == "1", Path(cache))
    tensors, figures = {}, {}
    for method, function in module.methods(subject, Path(cache)).items():
        started = time.time()
        try:
            maps, closing, fighting = [], [], []
            count = None if method in subject.on_all else subject.few
            for x, target in zip(subject.samples[:count], subject.targets[:count], strict=True):
                found = function(x, target)  # relevance of every pixel or token; the sum it claims, if it claims one
                relevance, parts, whole = found if isinstance(found, tuple) else (found, found, None)
                if whole is None:
                    with torch.no_grad():
                        z = subject.model(x if subject.embed is None else subject.embed(x))
                    whole = z[0, target].item()
                    parts = relevance
                if not relevance.isfinite().all():
                    raise FloatingPointError("the relevance has NaN or infinite entries")
                maps.append(relevance.detach().float().squeeze(0))
                closing.append(abs(parts.double().sum().item() - whole) / abs(whole))
                fighting.append((parts.abs().double().sum() / abs(whole)).item())
            ratio, memory = cost(subject, function, subject.samples[0], subject.targets[0], 2)
            figures[method] = {
                "closing error": median(closing), "worst closing error": max(closing), "cancellation": median(fighting),
                "cost": ratio, "memory": memory, "samples": len(maps),
            }  # fmt: skip
            print(f"  {name} {peer} {method}: {time.time() - started:.0f} s", flush=True)
            tensors |= {f"{method}/{i}": m.contiguous() for i, m in enumerate(maps)}
        except Exception as error:  # whatever a peer raises is the result
            figures[method] = {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}
            traceback.print_exc(limit=-2)
    save_file(tensors or {"none": torch.zeros(1)}, f"{out}.safetensors")
    Path(f"{out}.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
