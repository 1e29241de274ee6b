"""A tangent model beside the plain one, and beside torch.func: process time, one thread, interleaved, the least of several rounds.

    python benchmarks/tangent.py [--quick]

Subjects, from config with random weights, float32: ViT (6 layers of width 384, 8 pictures of 112 x 112), BERT and GPT-2 (6 layers of
width 384, 4 x 128 tokens), ResNet (basic blocks of 64 to 256 channels, 8 pictures of 96 x 96).
Forward: all weights tangent; the last third of the network tangent; torch.func.jvp of functional_call, all and the last third
(attention by its math kernels: the fused one has no forward derivative); torch.func.linearize, which records this input and gives
a map of v. Forward and backward: the loss differentiated in v, and in the plain model's weights. Floor: 3 products for each of the
plain pass's behind the first tangent weight. Writes docs/data/tangent.json.
"""

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import termwise as tw

OUT = Path(__file__).parent.parent / "docs" / "data" / "tangent.json"
LAST = {
    "vit": ["*layer*.4.*", "*layer*.5.*", "vit.layernorm.*", "classifier.*"],
    "bert": ["*layer.4.*", "*layer.5.*", "bert.pooler.*", "classifier.*"],
    "gpt2": ["*h.4.*", "*h.5.*", "*ln_f.*"],
    "resnet": ["*stages.2.*", "classifier.*"],
}


def subjects() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Name -> model in eval mode, its input."""
    torch.manual_seed(0)
    wide = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
    vit = transformers.ViTConfig(**wide, image_size=112, patch_size=16, num_labels=10)
    bert = transformers.BertConfig(**wide, vocab_size=1000, num_labels=10)
    gpt2 = transformers.GPT2Config(n_embd=384, n_layer=6, n_head=6, vocab_size=1000)
    resnet = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256], depths=[2, 2, 2], layer_type="basic", num_labels=10
    )
    ids, pictures = torch.randint(1000, (4, 128)), torch.randn(8, 3, 112, 112)
    return {
        "vit": (transformers.ViTForImageClassification(vit).eval(), pictures),
        "bert": (transformers.BertForSequenceClassification(bert).eval(), ids),
        "gpt2": (transformers.GPT2LMHeadModel(gpt2).eval(), ids),
        "resnet": (transformers.ResNetForImageClassification(resnet).eval(), pictures[..., :96, :96].contiguous()),
    }


def peer(model: nn.Module, x: torch.Tensor, names: list[str], *, linearize: bool = False) -> Callable[[], torch.Tensor]:
    """f + D_w f v by torch.func."""
    all_of_them = {n: p.detach() for n, p in model.named_parameters()}
    moving = {n: all_of_them[n] for n in names}
    v = {n: torch.full_like(p, 1e-3) for n, p in moving.items()}

    def f(w: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, {**all_of_them, **w}, (x,)).logits

    def run() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            if linearize:
                value, along = torch.func.linearize(f, moving)
                return value + along(v)
            value, slope = torch.func.jvp(f, (moving,), (v,))
            return value + slope

    return run


def turn(f: Callable[[], object]) -> float:
    """Process seconds of one call."""
    started = time.process_time()
    f()
    return time.process_time() - started


def backward(f: Callable[[], torch.Tensor], parameters: list[nn.Parameter]) -> Callable[[], object]:
    """Forward, a loss, and its gradient."""

    def run() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(f().square().mean(), parameters, allow_unused=True)

    return run


def main() -> None:
    """Print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, and nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")  # torch.func.linearize, of itself
    transformers.logging.set_verbosity_error()
    rows = []
    for name, (model, x) in subjects().items():
        every, last = tw.tangent(model), tw.tangent(model, LAST[name])
        for v in (*every.parameters(), *last.parameters()):
            v.fill_(1e-3)
        runs: dict[str, Callable[[], object]] = {
            "plain": lambda model=model, x=x: model(x).logits,
            "all": lambda every=every, x=x: every(x),
            "last third": lambda last=last, x=x: last(x),
            "jvp": peer(model, x, list(every.tangent)),
            "jvp, last third": peer(model, x, list(last.tangent)),
            "plain, backward": backward(lambda model=model, x=x: model(x).logits, list(model.parameters())),
            "all, backward": backward(lambda every=every, x=x: every(x), list(every.parameters())),
        }
        difference = ((every(x) - runs["jvp"]()).norm() / every(x).norm()).item()
        try:
            (traced := peer(model, x, list(every.tangent), linearize=True))()
            runs["linearize"] = traced
            problem = ""
        except Exception as found:  # some operations it cannot record
            problem = f"{type(found).__name__}: {str(found).splitlines()[0]}"
        best = dict.fromkeys(runs, math.inf)
        for _ in range(3 if quick else 15):
            for key, f in runs.items():
                if key != "linearize" or best[key] == math.inf:  # once is enough of what takes seconds
                    best[key] = min(best[key], turn(f))
        ratios = {
            key: t / best["plain, backward" if "backward" in key else "plain"] for key, t in best.items() if "plain" not in key
        }
        share = sum(v.numel() for v in last.parameters()) / sum(v.numel() for v in every.parameters())
        rows.append({"subject": name, "plain ms": best["plain"] * 1e3, **ratios, "difference to jvp": difference})
        rows[-1] |= {"share of weights in the last third": share} | ({"linearize refused": problem} if problem else {})
        print({k: round(v, 3) if isinstance(v, float) and v > 1e-3 else v for k, v in rows[-1].items()}, flush=True)
    if not quick:
        environment = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
        OUT.write_text(json.dumps({"environment": {**environment, "threads": 1}, "tangent": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
