"""What an explanation costs, in units of the gradient: interleaved runs, ratios, minimum of several.

    python benchmarks/relevance.py [--quick] [NAME ...]

Base (1.00): the eager model's forward pass and one backward pass to pixels or embeddings, parameters frozen.
`alone` is relevance of the inputs only, `full` the whole ledger (biases, constants, losses). Peers from captum run on the
same inputs where they can: integrated gradients (50 steps), DeepLift, LRP, each with how far it is from adding up.
Writes benchmarks/results/relevance.json with versions and thread count.
"""

import argparse
import json
import platform
import time
import warnings
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from termwise.core.capture import Call, capture, explained
from termwise.predictions.propagate import propagate
from termwise.predictions.starts import Entry, Seen
from termwise.predictions.targets import Scored
from termwise.testing.architectures import ARCHITECTURES, Subject, build
from termwise.testing.cost import interleaved, peak

BATCH, SIZE = 4, 8
SPLIT = ("gamma", "z+", "alpha-beta")  # one more forward of each affine operation, two VJPs instead of one
RULES = ("zero", "cp-lrp", "attnlrp", *SPLIT)


def gradient(subject: Subject):
    """Forward and input-gradient pass of the model as it is."""
    model, leaves = subject.model, []

    def cut(module, args, output):
        leaf = output.detach().requires_grad_()
        leaves.append(leaf)
        return leaf

    embeddings = [m for n, m in model.named_modules() if isinstance(m, nn.Embedding) and "position" not in n and "type" not in n]
    hooks = [m.register_forward_hook(cut) for m in embeddings]

    def floating(x):
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            x = x.detach().requires_grad_()
            leaves.append(x)
        return x

    def run():
        leaves.clear()
        output = model(*map(floating, subject.inputs), **{k: floating(v) for k, v in (subject.kwargs or {}).items()})
        value = subject.target(output).sum() if callable(subject.target) else scalar(subject)(explained(output)).sum()
        return torch.autograd.grad(value, leaves, allow_unused=True)

    return run, lambda: [h.remove() for h in hooks]


def scalar(subject: Subject):
    kwargs = subject.kwargs or {}
    batch = len(next(iter([*subject.inputs, *kwargs.values()])))
    start = Entry(None if callable(subject.target) else subject.target)
    seen = Seen(batch, mask=kwargs.get("attention_mask"))
    return lambda output: start.of(output, seen)[0]


def prepared(subject: Subject):
    select = Scored(subject.target) if callable(subject.target) else None
    started = time.perf_counter()
    program = capture(subject.model, *subject.inputs, kwargs=subject.kwargs, select=select)
    return program, Call(subject.model, subject.inputs, subject.kwargs or {}, select).tensors, time.perf_counter() - started


def measure(name: str, rounds: int) -> dict:
    subject = build(name, batch=BATCH, size=SIZE)
    program, tensors, seconds = prepared(subject)
    base, restore = gradient(subject)
    start = scalar(subject)
    functions = {"base": base}
    for rules in RULES:
        ready = propagate(program, rules)
        functions[f"{rules} full"] = lambda ready=ready: ready.run(tensors, start)
        if rules in ("zero", "cp-lrp", "attnlrp"):
            functions[f"{rules} alone"] = lambda ready=ready: ready.run(tensors, start, complete=False)
    times = interleaved(functions, rounds)
    ratios = {k: v / times["base"] for k, v in times.items() if k != "base"}
    memory = peak(functions["attnlrp full"]) / max(1, peak(base))
    restore()

    exact = build(name, batch=2, size=1).to(torch.float64)
    found = {}
    for rules in ("zero", "cp-lrp", "attnlrp"):
        p, t, _ = prepared(exact)
        result = propagate(p, rules).run(t, scalar(exact))
        total = sum(v.reshape(2 if exact.batched else 1, -1).sum(1) for v in result.parts.values())
        lost = sum(v.abs() for k, v in result.parts.items() if k.startswith("rule:"))
        worst = 0.0 if isinstance(lost, int) else (lost / result.whole.abs()).max().item()
        inputs = sum(v.reshape(len(v), -1).sum(1) for k, v in result.parts.items() if k.startswith("input:"))
        found[rules] = {
            "closing": ((total - result.whole) / result.whole).abs().max().item(),
            "lost": worst,
            "inputs": (inputs / result.whole)[0].item(),
        }
    nodes = len(program.nodes)
    return {
        "name": name, "how": program.how.partition(":")[0], "nodes": nodes, "capture s": seconds, "base ms": 1e3 * times["base"],
        "ratios": ratios, "memory": memory, "exactness": found,
    }  # fmt: skip


def peers(rounds: int) -> list[dict]:
    """captum's methods on the image networks, on the same inputs: cost, and how far from adding up."""
    from captum.attr import LRP, DeepLift, IntegratedGradients

    rows = []
    for name in ("vgg", "resnet", "mobilenet-v2"):
        subject = build(name, batch=1, size=SIZE)
        (x,) = subject.inputs
        logits = subject.model(x)
        target = int(logits.argmax())
        zero = torch.zeros_like(x)
        gap = (logits[0, target] - subject.model(zero)[0, target]).item()
        base, restore = gradient(subject)
        restore()
        candidates = {
            "IntegratedGradients(50)": (
                lambda: IntegratedGradients(subject.model).attribute(x, zero, target=target, n_steps=50),
                gap,
            ),
            "DeepLift": (lambda: DeepLift(subject.model).attribute(x, zero, target=target), gap),
            "LRP": (lambda: LRP(subject.model).attribute(x, target=target), logits[0, target].item()),
        }
        for peer, (run, whole) in candidates.items():
            row = {"name": name, "peer": f"captum {peer}"}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    off = abs(run().sum().item() - whole) / abs(whole)
                    times = interleaved({"base": base, "peer": run}, rounds)
                row |= {"ratio": times["peer"] / times["base"], "off": off}
            except Exception as problem:  # a peer that does not run is a finding, not a failure
                row |= {"error": f"{type(problem).__name__}: {str(problem).splitlines()[0][:80]}"}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures (all when none is named)")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rounds = 3 if options.quick else 9
    names = options.names or list(ARCHITECTURES)
    rows = [measure(n, rounds) for n in track(names, "measuring", console=Console(stderr=True), transient=True)]
    console = Console(width=200)

    table = Table(
        "architecture",
        "how",
        "nodes",
        "record s",
        "base ms",
        *(f"{r}" for r in ("zero", "cp-lrp", "attnlrp")),
        *SPLIT,
        "memory",
    )
    for r in rows:
        cells = [f"{r['ratios'][f'{k} alone']:.2f} / {r['ratios'][f'{k} full']:.2f}" for k in ("zero", "cp-lrp", "attnlrp")]
        cells += [f"{r['ratios'][f'{k} full']:.2f}" for k in SPLIT]
        table.add_row(
            r["name"], r["how"], str(r["nodes"]), f"{r['capture s']:.1f}", f"{r['base ms']:.1f}", *cells, f"{r['memory']:.2f}"
        )
    console.print("cost in units of a forward and input-gradient pass (alone / full ledger)", table)

    table = Table("architecture", *(f"{k}: closing, lost, inputs" for k in ("zero", "cp-lrp", "attnlrp")))
    for r in rows:
        e = r["exactness"]
        table.add_row(r["name"], *(f"{e[k]['closing']:.0e}  {e[k]['lost']:.1e}  {100 * e[k]['inputs']:.0f} %" for k in e))
    console.print("exactness in float64 (lost: sum of |rule parts| / |output|; inputs: their share)", table)

    def over(kind: str) -> str:
        values = [r["ratios"][f"{k} {kind}"] for r in rows for k in ("zero", "cp-lrp", "attnlrp")]
        return f"{kind}: median {median(values):.2f}, worst {max(values):.2f}"

    split = [r["ratios"][f"{k} full"] for r in rows for k in SPLIT]
    summary = f"{over('alone')}; {over('full')}; sign-splitting: median {median(split):.2f}, worst {max(split):.2f}; memory: worst {max(r['memory'] for r in rows):.2f}"
    console.print(summary)

    found = peers(rounds) if not options.names else []
    if found:
        table = Table("architecture", "peer", "cost", "off from adding up by")
        for r in found:
            table.add_row(
                r["name"], r["peer"], *([f"{r['ratio']:.1f}", f"{100 * r['off']:.2g} %"] if "ratio" in r else ["-", r["error"]])
            )
        console.print(table)
    out = Path(__file__).parent / "results" / "relevance.json"
    out.parent.mkdir(exist_ok=True)
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor(),
    }
    out.write_text(json.dumps({"environment": environment, "summary": summary, "rows": rows, "peers": found}, indent=1))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
