"""What the papers of this room claim, measured. Each has a control that must fail."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from termwise.core.capture import Call, capture
from termwise.core.claims import claim
from termwise.core.program import Program, info, op_name

from ..explain import explain
from ..propagate import Pass
from ..rules import LOSSY, RULES, share
from ..targets import Scored

# as diverse as the paper's fifteen: convolutional, recurrent, encoder, decoder, both, state-space, audio, multimodal
SUBJECTS = (
    "resnet", "efficientnet", "u-net", "lstm", "nn.Transformer", "bert", "deberta-v2", "gpt2", "llama", "mixtral", "mamba",
    "t5", "vit",
    "swin", "convnext", "whisper", "wav2vec2", "clip", "llava",
)  # fmt: skip


CONSERVED = (
    "resnet", "efficientnet", "lstm", "bert", "gpt2", "llama", "mamba", "t5", "vit", "convnext", "whisper", "wav2vec2",
)  # fmt: skip
"""Those of them that the conservation claim names; every one is in the tests."""


def _recorded(name: str, dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    from termwise.testing.architectures import build

    subject = build(name).to(dtype)
    select = Scored(subject.target) if callable(subject.target) else None
    program = capture(subject.model, *subject.inputs, kwargs=subject.kwargs, select=select)
    return program, Call(program.model, subject.inputs, subject.kwargs or {}, select).tensors


@claim(
    "dynamiclrp",
    statement="every node on a path from input to output has a rule, without a line of model-specific code",
    published="31,440 of 31,465 nodes (99.92 %) of 15 models",
    exact=True,
    note="19 architectures, small; nodes of the recorded program, where high-level operators count once",
)
def every_node_has_a_rule() -> tuple[str, bool]:
    return _covered(SUBJECTS)


@claim(
    "dynamiclrp",
    statement="every node has a rule in each of the architectures that the tests know",
    published="31,440 of 31,465 nodes (99.92 %) of 15 models",
    exact=True,
    slow=True,
    note="all of termwise.testing.architectures, small",
)
def every_node_of_every_architecture_has_a_rule() -> tuple[str, bool]:
    from termwise.testing.architectures import ARCHITECTURES

    return _covered(tuple(ARCHITECTURES))


def _covered(subjects: tuple[str, ...]) -> tuple[str, bool]:
    nodes = [n for name in subjects for n in _recorded(name, torch.float32)[0].nodes if info(n).active and info(n).role != "cut"]
    missing = {op_name(n) for n in nodes if op_name(n) not in RULES}
    covered = sum(op_name(n) in RULES for n in nodes)
    # the control: without one family of rules the count must see it
    control = sum(op_name(n) in RULES and op_name(n) != "layer_norm" for n in nodes)
    measured = f"{covered:,} of {len(nodes):,} nodes ({100 * covered / len(nodes):.2f} %) of {len(subjects)} models"
    return measured + (f"; missing {missing}" if missing else ""), covered == len(nodes) > control


@claim(
    "dynamiclrp",
    statement="relevance is conserved: what leaves every node is what arrived, but for softmax and attention",
    published="conservation guarantees of LRP, per operation",
    exact=True,
    note="12 architectures, rules attnlrp, float64, every node weighed; output: a random combination of all logits",
)
def every_node_conserves() -> tuple[str, bool]:
    worst, where, lost, closing = 0.0, "", 0.0, 0.0
    for name in CONSERVED:
        program, tensors = _recorded(name, torch.float64)
        result = _weighed(program, tensors, "attnlrp")
        scale, batch = result.whole.abs(), len(result.whole)
        closing = max(
            closing, ((sum(p.reshape(batch, -1).sum(1) for p in result.parts.values()) - result.whole) / scale).abs().max().item()
        )
        for part, value in result.parts.items():
            if part.startswith("rule:"):
                share_lost = (value.abs() / scale).max().item()
                if RULES.get(part.removeprefix("rule:").partition("@")[0]) in LOSSY:
                    lost = max(lost, share_lost)
                elif share_lost > worst:
                    worst, where = share_lost, part
    control = _unhalved_product()
    measured = (
        f"worst node {worst:.0e} of the output ({where}), softmax and attention up to {lost:.0e}, sums close to {closing:.0e}; "
        f"with products not halved {control:.1f}"
    )
    return measured, worst < 1e-12 and closing < 1e-9 and control > 0.1


def _weighed(program: Program, tensors: list[Tensor], rules: object):  # type: ignore[no-untyped-def]
    def some_scalar(output: Tensor) -> Tensor:
        weights = torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(0), dtype=output.dtype)
        return (output * weights).reshape(len(output), -1).sum(1)

    return Pass(program, rules, measure_all=True, lift=torch.float64).run(tensors, some_scalar)  # type: ignore[arg-type]


def _unhalved_product() -> float:
    """The largest loss at a product of two activations when each operand takes all: what the first claim must see."""

    def greedy(at, *operands, **kwargs):  # type: ignore[no-untyped-def]
        return share(at.op(*operands, **kwargs), 1.0)

    program, tensors = _recorded("efficientnet", torch.float64)
    result = _weighed(program, tensors, {"mul": greedy})
    return max((v.abs() / result.whole.abs()).max().item() for k, v in result.parts.items() if k.startswith("rule:mul"))


@claim(
    "dynamiclrp",
    statement="LRP-0 on a network of convolutions, batch norm, ReLU and pooling is gradient x input",
    published="LRP-epsilon with epsilon 0 reduces to gradient x input on ReLU networks",
    exact=True,
    note="five random networks; control: the same with GELU, where they must differ",
)
def zero_is_gradient_times_input() -> tuple[str, bool]:
    def difference(activation: type[nn.Module], seed: int) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), activation()]
            model = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)).double().eval()
            x = torch.randn(2, 3, 14, 14, dtype=torch.float64)
        ours = explain(model, x, rules="zero", target=1).inputs["input"]
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
        return ((ours - x * gradient).abs().max() / ours.abs().max()).item()

    worst = max(difference(nn.ReLU, seed) for seed in range(5))
    control = min(difference(nn.GELU, seed) for seed in range(5))
    return f"differ by {worst:.0e}; with GELU by {control:.1g}", worst < 1e-12 and control > 1e-3
