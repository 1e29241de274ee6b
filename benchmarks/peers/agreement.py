"""Do ours and zennit's agree where they state the same rules? In zennit's process, on a network without functional sums.

    python -m peers.agreement           prints, per composite, max |ours - theirs| / max |theirs|, float64 and float32

(zennit sees modules only: of a residual network's `x + y` it takes the gradient, which doubles relevance; there the rules
are not the same, and nothing is to be compared.)
"""

import json

import torch
from torch import nn

from .environments import stub_torchvision


def network(seed: int) -> nn.Sequential:
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
    return model.eval()


def main() -> None:
    """Five networks, two samples each."""
    stub_torchvision()
    from zennit import composites
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm

    import termwise as tw

    found: dict[str, dict[str, float]] = {}
    for dtype in (torch.float64, torch.float32):
        for name in ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1"):
            worst = 0.0
            for seed in range(5):
                model = network(seed).to(dtype)
                x = torch.randn(2, 3, 28, 28, dtype=dtype, generator=torch.Generator().manual_seed(seed))
                ours = tw.explain(model, x, target=3, rules=name).inputs["input"]
                composite = getattr(composites, name)(canonizers=[SequentialMergeBatchNorm()])
                with Gradient(model=model, composite=composite) as attributor:
                    leaf = x.clone().requires_grad_()
                    _, theirs = attributor(leaf, lambda z: torch.eye(10, dtype=z.dtype)[[3, 3]] * z)
                worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())
            found.setdefault(name, {})[str(dtype).removeprefix("torch.")] = worst
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
