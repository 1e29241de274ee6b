"""Do ours and zennit's agree where they state the same rules? In zennit's process, on a network without functional sums.

    python -m peers.agreement           prints max |ours - theirs| / max |theirs| by composite, dtype and eps of batch norm

Measured with batch norm's eps as it is (1e-5) and with 0. Where it is 0 the two agree to rounding; otherwise they differ in
proportion to it, whatever the stabilisers are: the network that zennit has folded answers without eps, ours as before. How
far the folded answers are from the network's own is printed too.

(zennit sees modules only: of a residual network's `x + y` it takes the gradient, which doubles relevance; there the rules
are not the same, and nothing is to be compared.)
"""

import json
from itertools import product

import torch
from torch import nn

from .environments import stub_torchvision


def network(seed: int, eps: float) -> nn.Sequential:
    """Convolutions, batch norm with statistics of its own, ReLU, both poolings."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2), nn.ReLU(),
            nn.AvgPool2d(3), nn.Flatten(), nn.Linear(32 * 4, 10),
        )  # fmt: skip
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
                module.eps = eps
    return model.eval()


def main() -> None:
    """Five networks, two samples each."""
    stub_torchvision()
    from zennit import composites
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm

    import termwise as tw

    found: dict[str, dict[str, float]] = {}
    for dtype, eps in product((torch.float64, torch.float32), (1e-5, 0.0)):
        case = f"{str(dtype).removeprefix('torch.')}, batch norm's eps {eps:g}"
        for name in ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1"):
            relevance = answer = 0.0
            for seed in range(5):
                model = network(seed, eps).to(dtype)
                x = torch.randn(2, 3, 28, 28, dtype=dtype, generator=torch.Generator().manual_seed(seed))
                why = tw.explain(model, x, target=3, rules=name)
                whole = model(x).detach()
                composite = getattr(composites, name)(canonizers=[SequentialMergeBatchNorm()])
                with Gradient(model=model, composite=composite) as attributor:
                    leaf = x.clone().requires_grad_()
                    z, theirs = attributor(leaf, lambda z: torch.eye(10, dtype=z.dtype)[[3, 3]] * z)
                relevance = max(relevance, ((why.inputs["input"] - theirs).abs().max() / theirs.abs().max()).item())
                answer = max(answer, ((whole - z).abs().max() / whole.abs().max()).item())
            found.setdefault(name, {})[case] = relevance
            found.setdefault("answer of the folded network, zennit", {})[case] = answer
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
