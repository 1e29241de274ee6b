"""Why one pass of relevance loses to twenty passes on a small vision transformer: one change at a time.

    python benchmarks/one_pass.py [--quick]

Digits that no table of `relevance_peers.py` reports (numbers 200 to 399 of those the network never saw); its network, patches
and score, ABPC. Every row differs from `attnlrp` by what its name says. Writes docs/data/one_pass.json.
"""

import argparse
import json
from pathlib import Path

import torch
from peers.vit import trained
from torch import Tensor

import termwise as tw
from termwise.predictions.perturbation_curves import perturbation_curves
from termwise.predictions.rules.sets import RULE_SETS
from termwise.predictions.rules.splitting import gamma
from termwise.zoo.assets import cache_folder

OUT = Path(__file__).parent.parent / "docs" / "data" / "one_pass.json"

CHANGES = {
    "attnlrp": "attnlrp",
    "attention held constant (cp-lrp)": "cp-lrp",
    "GELU by its own derivative": {"gelu": "gradient"},
    "attention by its own derivative": {"scaled_dot_product_attention": "gradient"},
    "layer norm by its own derivative": {"layer_norm": "gradient"},
    "gamma 0.25 in the patches' convolution": {"conv2d": gamma(0.25)},
    "gamma 0.05 in linear layers": {"linear": gamma(0.05)},
    "gamma 0.25 in linear layers": {"linear": gamma(0.25)},
    "gamma 1 in linear layers": {"linear": gamma(1)},
    "gamma 0.25 in the linear layers of block 0": {"blocks.0*": gamma(0.25)},
    "gamma 0.25 in the linear layers of block 3": {"blocks.3*": gamma(0.25)},
    "gamma 0.25 in linear layers, attention held constant": {**RULE_SETS["cp-lrp"], "linear": gamma(0.25)},
}


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="twenty digits, and nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    model, digits, _ = trained(cache_folder() / "peers")
    model.requires_grad_(False)
    x = digits[200 : 220 if quick else 400]
    target = model(x).argmax(1)
    rows: list[dict] = []

    def score(name: str, relevance: Tensor) -> None:
        found = perturbation_curves(model, x, relevance, target, baseline="blur", patch=4, steps=12, batch_size=64).abpc
        low, high = found.interval()
        rows.append({"change": name, "abpc": found.mean, "low": low, "high": high})
        print(f"{name:55s} {found.mean:.3f} [{low:.3f}, {high:.3f}]", flush=True)

    def relevance(rules, x: Tensor = x, **options) -> Tensor:  # type: ignore[no-untyped-def]
        (found,) = tw.explain(model, x, target=target, rules=rules, **options).inputs.values()
        return found

    for name, rules in CHANGES.items():
        score(name, relevance(rules))
    score("biases distributed", relevance("attnlrp", biases="distribute"))
    score("biases left out", relevance("attnlrp", biases="zero"))
    noisy = [x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    score("gamma 0.25, mean over five noisy copies", sum(relevance({"linear": gamma(0.25)}, n) for n in noisy))
    score("attnlrp, mean over five brightnesses", sum(relevance("attnlrp", x * a) for a in (0.2, 0.4, 0.6, 0.8, 1)))
    patches = torch.arange(49).view(7, 7).repeat_interleave(4, 0).repeat_interleave(4, 1)
    for method in ("occlusion", "integrated_gradients"):
        options = {"feature_mask": patches} if method == "occlusion" else {"steps": 20}
        (found,) = getattr(tw.predictions, method)(model, x, target=target, **options).inputs.values()
        score(method, found)
    if not quick:
        OUT.write_text(json.dumps({"digits": len(x), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
