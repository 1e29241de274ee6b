"""Parts run forwards against relevance run backwards, and captum: interleaved runs, ratios, minimum of several; memory.

    python benchmarks/decompx.py [--quick]

A BERT of width 256 with four layers, one sample, s tokens. Base (1.00): forward pass and one input-gradient pass of the
eager model (captum's InputXGradient does this and nothing else). Forwards: all classes at once, with biases apart and shared.
Backwards: `explain` by CP-LRP, one class, inputs only. Break-even: the number of classes from which forwards is cheaper.
Memory: peak of the allocator above the start, without a limit and under a quarter of that. Writes
benchmarks/results/decompx.json.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from captum.attr import InputXGradient
from rich.console import Console
from rich.table import Table

import termwise as tw
from termwise.core.capture import capture
from termwise.predictions.propagate import propagate
from termwise.predictions.starts import Entry, Seen
from termwise.testing.architectures import build
from termwise.testing.cost import interleaved, peak


def measure(tokens: int, rounds: int) -> dict:
    s = build("bert", batch=1, size=8)
    model = s.model
    ids = s.kwargs["input_ids"].repeat(1, 2)[:, :tokens]
    embedded = model.bert.embeddings.word_embeddings(ids).detach()

    def logits(x: torch.Tensor) -> torch.Tensor:
        return model(inputs_embeds=x).logits

    captum = InputXGradient(logits)
    program = capture(model, input_ids := ids)
    tensors, ready, start = program.tensors(input_ids), propagate(program, "cp-lrp"), Entry(0)

    def backwards() -> None:
        ready.run(tensors, lambda out: start.of(out, Seen(1))[0], complete=False)

    limit = peak(lambda: tw.decompx(model, ids, biases="parts")) // 4
    functions = {
        "captum": lambda: captum.attribute(embedded.clone().requires_grad_(), target=0),
        "backwards": backwards,
        "apart": lambda: tw.decompx(model, ids, biases="parts"),
        "shared": lambda: tw.decompx(model, ids),
        "apart, 1/4 memory": lambda: tw.decompx(model, ids, biases="parts", max_memory=limit),
    }
    seconds = interleaved(functions, rounds)
    return {
        "tokens": tokens,
        "base ms": 1e3 * seconds["captum"],
        "ratios": {name: t / seconds["captum"] for name, t in seconds.items() if name != "captum"},
        "break-even": seconds["apart"] / seconds["backwards"],
        "memory MB": {name: peak(f) / 1e6 for name, f in functions.items()},
        "limit MB": limit / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds instead of seven, and no long input")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(n, 2 if options.quick else 7) for n in ((32, 64) if options.quick else (32, 64, 128))]
    table = Table("tokens", "base ms", *rows[0]["ratios"], "break-even", *(f"MB {name}" for name in rows[0]["memory MB"]))
    for r in rows:
        cells = [f"{v:.2f}" for v in r["ratios"].values()]
        table.add_row(
            str(r["tokens"]),
            f"{r['base ms']:.1f}",
            *cells,
            f"{r['break-even']:.1f}",
            *(f"{v:.1f}" for v in r["memory MB"].values()),
        )
    Console(width=200).print("cost in units of captum's InputXGradient (a forward and an input-gradient pass)", table)
    out = Path(__file__).parent / "results" / "decompx.json"
    out.parent.mkdir(exist_ok=True)
    environment = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
