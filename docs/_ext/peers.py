"""Tables of benchmarks, and how each stands beside its peers, from `docs/data/*.json`: no figure of them is typed by hand.

A benchmark is a list of cases, each a ratio of ours to a peer's where less is better: above 1 we are behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

__all__ = ["clicks", "compress", "low_rank", "standing", "tangent"]

SUBJECTS = {
    "smollm2-python": "SmolLM2, Python sources", "smollm2-brown": "SmolLM2, Brown corpus", "mobilenet-v2": "MobileNetV2, crops",
    "efficientnet-lite0": "EfficientNet-Lite0, crops", "nanoguard": "NanoGuard, film sentences",
    "minilm": "MiniLM, film sentences",
}  # fmt: skip
CLICKS = {"afm": "`compress_ctr`", "svd": "SVD, least sum of relative errors", "zeros": "zeros", "uniform svd": "SVD, uniform"}


class Standing(NamedTuple):
    """How a benchmark stands beside one peer."""

    what: str
    less: str
    peer: str
    page: str
    cases: dict[str, float]


# -- compression ------------------------------------------------------------------------------------------------------


def compress(data: Path) -> Iterator[str]:
    """Change of the output by subject, budget and method; where there is one method alone, a table has nothing to compare."""
    rows = [row for row in _read(data, "compress") if not row["subject"].startswith("clicks")]
    yield "| subject and budget | method | change of the output | task (dense) | operations | time |"
    yield "|---|---|---|---|---|---|"
    for subject, title in SUBJECTS.items():
        for budget in sorted({row["budget"] for row in rows if row["subject"] == subject}, reverse=True):
            chosen = [row for row in rows if (row["subject"], row["budget"]) == (subject, budget)]
            if len(chosen) < 3:
                continue
            first = f"{title}, {budget:.0%}".replace("%", " %")
            for row in sorted(chosen, key=lambda row: row["change"]):
                flops = f"{row['flops']:.2f}" if "flops" in row else ""
                cells = [first, f"`{row['method']}`", f"{row['change']:.3g}", _task(row), flops, f"{row['time']:.2f}"]
                yield f"| {' | '.join(cells)} |"
                first = ""


def _task(row: dict[str, Any]) -> str:
    if "perplexity" in row:
        return f"perplexity {row['perplexity']:.4g} ({row['dense']['perplexity']:.4g})"
    return f"cosine {row['cosine']:.3f}" if "cosine" in row else f"first class kept {row['agreement']:.1%}".replace("%", " %")


def clicks(data: Path) -> Iterator[str]:
    """Means over the seeds of the models of clicks, and the range of what AUC changes by."""
    rows = [row for row in _read(data, "compress") if row["subject"].startswith("clicks")]
    yield "| numbers | method | change of the output | AUC, against the dense model's | time |"
    yield "|---|---|---|---|---|"
    for budget in sorted({row["budget"] for row in rows}, reverse=True):
        first, found = f"{budget:.0%}".replace("%", " %"), []
        for method, title in CLICKS.items():
            chosen = [row for row in rows if (row["method"], row["budget"]) == (method, budget)]
            gains = [row["auc"] - row["dense"]["auc"] for row in chosen]
            auc = f"{mean(gains):+.4f} ({min(gains):+.4f} to {max(gains):+.4f})"
            change, time = (mean(row[k] for row in chosen) for k in ("change", "time"))
            found.append((change, f"{title} | {change:.3f} | {auc} | {time:.2f} |"))
        for _, line in sorted(found):
            yield f"| {first} | {line}"
            first = ""


def low_rank(data: Path) -> Iterator[str]:
    """Speed-up over the dense layer, and what it is worth: medians over the shapes, and the range of the worth."""
    found, ways = _read(data, "low_rank_speed")["rows"], ("two layers", "two layers, rank of 16", "LowRankLinear", "Pivoted")
    yield f"| rows | numbers kept | {' | '.join(ways)} |"
    yield "|---" * (2 + len(ways)) + "|"
    for rows in sorted({row["rows"] for row in found}):
        first = str(rows)
        for share in sorted({row["share"] for row in found}):
            chosen = [row for row in found if (row["rows"], row["share"]) == (rows, share)]
            cells = []
            for way in ways:
                worth = [row[way]["worth"] for row in chosen if way in row]
                if worth:
                    speed = median(row[way]["speed_up"] for row in chosen if way in row)
                    cells.append(f"{speed:.2f} ({median(worth):.2f}, {min(worth):.2f} to {max(worth):.2f})")
                else:
                    cells.append("")
            yield f"| {first} | {share:.0%} | {' | '.join(cells)} |".replace("%", " %")
            first = ""


def tangent(data: Path) -> Iterator[str]:
    """Passes of a tangent model over the plain one's."""
    found = _read(data, "tangent")
    ways = ("all", "last third", "jvp", "jvp, last third", "all, backward")
    yield f"| model | plain, ms | {' | '.join(ways)} |"
    yield "|---" * (2 + len(ways)) + "|"
    for row in found["tangent"]:
        yield f"| {row['subject']} | {row['plain ms']:.0f} | {' | '.join(f'{row[way]:.2f}' for way in ways)} |"
    yield f"\nTimes the plain pass. {_measured(found)}"


# -- beside peers -----------------------------------------------------------------------------------------------------


def standing(data: Path) -> Iterator[str]:
    """One row per benchmark and peer: the ratios, and where we are behind."""
    yield "| what | less is better | peer | cases | ours / theirs: least, median, most | we are behind in |"
    yield "|---|---|---|---|---|---|"
    for one in _standings(data):
        ratios = sorted(one.cases.values())
        behind = [name for name, ratio in sorted(one.cases.items(), key=lambda case: -case[1]) if ratio > 1]
        named = "; ".join(behind[:3]) + (f"; and {len(behind) - 3} more" if len(behind) > 3 else "")
        lost = f"**{len(behind)}**: {named}" if behind else "none"
        figures = ", ".join(f"{ratio:.2g}" for ratio in (ratios[0], median(ratios), ratios[-1]))
        yield f"| {{doc}}`{one.what} <{one.page}>` | {one.less} | {one.peer} | {len(ratios)} | {figures} | {lost} |"
    yield "\n| benchmark | measured with |"
    yield "|---|---|"
    for name in (
        "relevance_peers",
        "jets",
        "tangent",
        "highway",
        "accelerate",
        "depth_decay",
        "toeplitz_ssm",
        "taylor_shift",
        "pldr",
    ):
        yield f"| {name.replace('_', ' ')} | {_measured(_read(data, name))} |"


def _standings(data: Path) -> Iterator[Standing]:
    yield from _relevance(_read(data, "relevance_peers"))
    jets, laplacians = _read(data, "jets")["jets"], _read(data, "jets")["laplacians"]
    case = "{subject}, order {order}".format_map
    yield Standing("Taylor jets", "time", "jax.jet, compiled", "functions", {case(r): r["ours"] / r["jax"] for r in jets})
    nested = {case(r): r["ours"] / r["nested"] for r in jets if r.get("nested")}
    yield Standing("Taylor jets", "time", "nested jvp of torch", "functions", nested)
    forward = {f"{r['n']} variables": r["ms"]["collapsed"] / r["ms"]["forward over forward"] for r in laplacians}
    yield Standing("Laplacians", "time", "forward over forward", "functions", forward)
    rows = _read(data, "tangent")["tangent"]
    yield Standing("tangent models", "time", "torch.func.jvp", "functions", {r["subject"]: r["all"] / r["jvp"] for r in rows})
    yield from _compression(_read(data, "compress"))
    yield from _forecasts(_read(data, "accelerate")["rows"])
    tokens, sequences = (_read(data, "toeplitz_ssm")[k] for k in ("tokens", "sequences"))
    ring = {f"n = {r['n']}": r["microseconds"]["compressed"] / r["microseconds"]["ring buffer"] for r in tokens}
    yield Standing("Toeplitz kernels, a token", "time", "a ring buffer", "computation", ring)
    fft = {f"n = {r['n']}": r["microseconds"]["exact, ends"] / r["microseconds"]["FFT"] for r in sequences}
    yield Standing("Toeplitz kernels, a sequence", "time", "FFT", "computation", fft)
    heads = _read(data, "taylor_shift")["rows"]
    shift = {}
    for r in heads:
        times = r["seconds"]
        if "sdpa" in times:
            ours = min(times[way] for way in ("efficient", "direct") if way in times)
            shift[f"d = {r['d']}, {r['length']} tokens"] = ours / times["sdpa"]
    yield Standing("TaylorShift", "time", "torch's attention", "layers", shift)
    pldr = {f"{r['subject']}, {r['way']}": r["of sdpa"] for r in _read(data, "pldr")["pldr"] if "sdpa" not in r["way"]}
    yield Standing("PLDR-LLM", "time of generation", "torch's attention", "layers", pldr)
    steps = {f"{r['subject']}, K = {r['K']}": r["step"] for r in _read(data, "highway")["highway"]}
    yield Standing("highway backward", "time of a training step", "autograd", "optimizers", steps)


def _relevance(found: dict[str, Any]) -> Iterator[Standing]:
    """The best map of ours beside the best of each library, by subject; 1 / ABPC, as more is better there."""
    rows = [r for r in found["rows"] if "abpc" in r and not r["method"].endswith("random")]
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        library = row["method"].partition(":")[0]
        best[library, row["subject"]] = max(row["abpc"], best.get((library, row["subject"]), 0.0))
    for library in dict.fromkeys(name for name, _ in best if name != "ours"):
        cases = {s: best[library, s] / best["ours", s] for name, s in best if name == library}
        yield Standing("explanations", "1 / ABPC of the best map", library, "which-method", cases)


def _compression(rows: list[dict[str, Any]]) -> Iterator[Standing]:
    """`auto` beside what else there is at the same budget."""
    changes = {(r["subject"], r["budget"], r["method"]): r["change"] for r in rows}
    ours = {(s, b): change for (s, b, m), change in changes.items() if m == "auto"}
    groups = {
        "the best other method here": {
            "aware",
            "asvd",
            "svd",
            "welore",
            "welore-aware",
            "afm",
            "alds",
            "uniform aware",
            "curing",
        },
        "magnitude pruning, which saves nothing": {"zeros"},
        "torch-pruning, untrained": {"torch-pruning", "torch-pruning with statistics"},
    }
    for peer, methods in groups.items():
        cases = {}
        for (subject, budget), change in ours.items():
            theirs = [c for (s, b, m), c in changes.items() if (s, b) == (subject, budget) and m in methods]
            if theirs:
                cases[f"{SUBJECTS[subject].partition(',')[0]} at {budget:.0%}".replace("%", " %")] = change / min(theirs)
        yield Standing("smaller models, auto", "change of the output", peer, "weights", cases)


def _forecasts(rows: list[dict[str, Any]]) -> Iterator[Standing]:
    """`auto` beside diffusers' caches and the same solver without forecasts, each the best at as many passes."""
    rows = [r for r in rows if "off" in r and abs(r.get("passes", 1e9) - r["budget"]) <= 2]
    ours = {r["budget"]: r["off"] for r in rows if r["method"] == "auto"}
    groups = {"diffusers' caches": lambda m: m.startswith("diffusers"), "solvers without forecasts": lambda m: m == "plain",
              "the best of all other rows": lambda m: m not in ("auto", "all computed")}  # fmt: skip
    for peer, belongs in groups.items():
        cases = {}
        for budget, off in ours.items():
            theirs = [r["off"] for r in rows if r["budget"] == budget and belongs(r["method"])]
            if theirs:
                cases[f"{budget} evaluations"] = off / min(theirs)
        yield Standing("forecasts, auto", "distance from the truth", peer, "computation", cases)


def _read(data: Path, name: str) -> Any:
    return json.loads((data / f"{name}.json").read_text("utf-8"))


def _measured(found: dict[str, Any]) -> str:
    facts = [f"{name} {value}" for name, value in found["environment"].items() if isinstance(value, (str, int))]
    peers = found["environment"].get("peers", {})
    return ", ".join([*facts, *dict.fromkeys(pin.replace("==", " ") for pins in peers.values() for pin in pins)])
