"""Relevance beside its peers: same weights, same inputs, one run.

    python benchmarks/relevance_peers.py [--quick] [--part report] [SUBJECT ...]

Every peer runs in a process, and where it has packages of its own in a virtual environment, under the cache folder; maps
come back as safetensors and are tested here by one code: features (16 x 16 pixels of a photograph, turned blurred; 4 x 4 of a
digit; tokens, taken out of the sequence) go in the order of their relevance, from either end,

    ABPC = area under p(class), least relevant first - area under p(class), most relevant first,    in [-1, 1]

with 95 % bootstrap intervals in which crops of one photograph are one cluster, and paired differences to our chosen row.
Columns: ABPC; ours minus theirs; closing error |sum - explained| / |explained| and cancellation sum |parts| / |explained|
(median over samples; of a method that claims no sum, against the logit); cost and peak memory over those of a gradient pass.
A method that does not run has its error. On texts, methods of many passes explain the first few, and are compared on these.
Our row is chosen by `--part choose --peer ours`, on other inputs; its figures are written down beside the table.

Writes docs/data/relevance_peers.json with the environment (--quick: a few samples, minutes, and nothing is written).
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from peers.environments import OURS, PINS, python
from peers.subjects import DIGITS, PHOTOS, SUBJECTS, Subject, load
from peers.texts import FIFTHS
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from termwise.predictions.metric import Metric
from termwise.predictions.perturbation_curves import perturbation_curves
from termwise.zoo.assets import cache_folder

SAME = {f"zennit: {c}": f"ours: {c}" for c in ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1", "EpsilonGammaBox")}
SAME |= {f"lxt: {row}": "ours: attnlrp" for row in ("AttnLRP", "AttnLRP, length held")}
"""Rows that state the same rules: how far apart they are, over the largest entry, is measured."""

CHOSEN = {
    "mobilenet-v2": "over depth", "efficientnet-lite0": "over depth", "vit-mnist": "shapley", "nanoguard": "attnlrp, against the rest",
    "minilm-sentiment": "attnlrp", "smollm2-135m": "attnlrp, against the rest",
}  # fmt: skip
"""Our row that the others are compared with: on the part `choose`, of other inputs than the table's, the best of those that
add up in one pass; or one of many passes where it was beyond that by more than the paired interval."""

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "data" / "relevance_peers.json"


def run(peer: str, subject: str, part: str, quick: bool, cache: Path) -> tuple[dict[str, dict], dict[str, Tensor]]:
    """Figures and maps of every method of a peer; one entry with the error when the peer cannot even start."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/{peer}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parent / 'src'}", "HF_HUB_OFFLINE": "1"}
        try:
            command = [str(python(peer, cache)), "-m", "peers.worker", peer, subject, part, str(int(quick)), str(cache), out]
            done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=3600)
        except (subprocess.SubprocessError, OSError) as error:
            said = str(getattr(error, "stderr", None) or error)
            return {"environment": {"error": f"not available: {said.strip()[-300:]}"}}, {}
        if done.returncode:
            return {"process": {"error": done.stderr.strip().splitlines()[-1][:300]}}, {}
        return json.loads(Path(f"{out}.json").read_text()), load_file(f"{out}.safetensors")


def abpc(subject: Subject, maps: list[Tensor]) -> Metric:
    """The area of every sample that has a map: all, or the first few. Those of one shape share their passes."""
    areas = torch.empty(len(maps))
    for shape in {x.shape for x in subject.samples[: len(maps)]}:
        alike = [i for i in range(len(maps)) if subject.samples[i].shape == shape]
        for rows in torch.tensor(alike).split(50):
            x, relevance = (torch.cat([of[i] for i in rows]) for of in (subject.samples, [m[None] for m in maps]))
            options = dict(subject.perturb)
            if subject.keep is not None:
                options["keep"] = torch.stack([subject.keep(subject.samples[i]) for i in rows])
            relevance = relevance.sum(1) if subject.kind == "image" else relevance
            targets = torch.tensor([subject.targets[i] for i in rows])
            curves = perturbation_curves(subject.ask, x, relevance, targets, batch_size=28, **options)
            areas[rows] = curves.abpc.values
    return Metric("ABPC", areas)


def measure(
    name: str, part: str, quick: bool, cache: Path, say: Console, peers: list[str], before: dict[str, dict]
) -> dict[str, dict]:
    """All rows of one subject, ours first; those of other peers are as they were before."""
    subject = load(name, part, quick, cache)
    clusters = torch.tensor(subject.clusters)
    rows = {key: row for key, row in before.items() if key.partition(":")[0] not in peers}
    found = {key: Metric("ABPC", torch.tensor(row["ABPC per sample"])) for key, row in rows.items() if "error" not in row}
    maps: dict[str, Tensor] = {}
    for peer in peers:
        figures, tensors = run(peer, name, part, quick, cache)
        maps |= {f"{peer}: {key}": value for key, value in tensors.items()}
        for method, row in figures.items():
            key = f"{peer}: {method}"
            rows[key] = row
            if "error" in row:
                continue
            found[key] = abpc(subject, [tensors[f"{method}/{i}"] for i in range(row["samples"])])
            row["ABPC"], row["ABPC interval"] = found[key].mean, found[key].interval(clusters=clusters[: len(found[key])])
            row["ABPC per sample"] = [round(v, 4) for v in found[key].values.tolist()]
            say.print(f"{name:20s} {key:45s} {row['ABPC']:.3f}", highlight=False)
    for theirs, ours in SAME.items():
        if f"{theirs}/0" in maps and f"{ours}/0" in maps:
            pairs = [(maps[f"{theirs}/{i}"], maps[f"{ours}/{i}"]) for i in range(rows[theirs]["samples"])]
            rows[theirs]["largest difference to ours"] = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
    reference = f"{OURS}: {CHOSEN[name]}"
    for key, metric in found.items():
        if reference in found and key != reference:
            both = min(len(found[reference]), len(metric))
            difference = found[reference].values[:both] - metric.values[:both]
            rows[key]["ours minus this"] = Metric("ABPC", difference).mean
            rows[key]["ours minus this interval"] = Metric("ABPC", difference).interval(clusters=clusters[:both])
    return rows


def agreement(cache: Path) -> dict[str, dict[str, float]]:
    """How far zennit's composites and ours are apart on networks where they state the same rules (see `peers.agreement`)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parent / 'src'}"}
    command = [str(python("zennit", cache)), "-W", "ignore", "-m", "peers.agreement"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    return json.loads(done.stdout)


def table(name: str, rows: dict[str, dict], samples: str) -> Table:
    """As a person reads it: best first, errors last."""
    shown = Table(title=f"{name}, {samples}", title_justify="left", padding=(0, 1))
    columns = ("method", "n", "ABPC", "95 %", "ours - this", "95 %", "closing", "cancels", "cost", "memory")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i else "left", no_wrap=i > 0)
    for key, row in sorted(rows.items(), key=lambda item: -item[1].get("ABPC", -9)):
        if "error" in row:
            shown.add_row(key, "error")
            continue
        difference = row.get("ours minus this")
        shown.add_row(
            key, str(len(row["ABPC per sample"])), f"{row['ABPC']:.3f}", "{:.3f} {:.3f}".format(*row["ABPC interval"]),
            "" if difference is None else f"{difference:+.3f}",
            "" if difference is None else "{:+.3f} {:+.3f}".format(*row["ours minus this interval"]),
            f"{row['closing error']:.0e}", f"{row['cancellation']:.3g}", f"{row['cost']:.1f}", f"{row['memory']:.1f}",
        )  # fmt: skip
    return shown


def flat(subjects: dict[str, dict[str, dict]]) -> list[dict]:
    """One row per subject and method, as the documentation reads them."""
    rows = []
    for subject in (name for name in SUBJECTS if name in subjects):
        for key, row in sorted(subjects[subject].items(), key=lambda item: -item[1].get("ABPC", -9)):
            if "error" in row:
                rows.append({"subject": subject, "method": key, "problem": row["error"]})
                continue
            low, high = row["ABPC interval"]
            rows.append({
                "subject": subject, "method": key, "samples": len(row["ABPC per sample"]),
                "abpc": row["ABPC"], "abpc_low": low, "abpc_high": high,
                "error": row["closing error"], "cancellation": row["cancellation"], "passes": row["cost"], "memory": row["memory"],
            })  # fmt: skip
            if "ours minus this" in row:
                rows[-1] |= {"behind": row["ours minus this"], "behind_interval": row["ours minus this interval"]}
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", default=list(SUBJECTS), metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--quick", action="store_true", help="a few samples of each")
    parser.add_argument("--part", choices=list(PHOTOS), default="report", help="of the inputs")
    parser.add_argument(
        "--peer", action="append", choices=list(PINS), help="only this one; the others stay as they are in the file"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = cache_folder() / "peers"
    cache.mkdir(parents=True, exist_ok=True)
    say = Console(width=170)
    compared = agreement(cache) if options.part == "report" and not options.peer else None
    for name in options.subjects:
        known = json.loads(OUT.read_text()) if OUT.exists() else {"subjects": {}}
        peers = options.peer or list(PINS)
        before = known["subjects"].get(name, {}) if options.peer and options.part == "report" else {}
        rows = measure(name, options.part, options.quick, cache, say, peers, before)
        say.print(table(name, rows, f"part {options.part!r}"))
        known = json.loads(OUT.read_text()) if OUT.exists() else {"subjects": {}}
        if options.part == "choose":
            known.setdefault("choose", {})[name] = flat({name: rows})
        elif options.part == "report":
            known["subjects"][name] = rows
        if compared:
            known["agreement"] = compared
        known["rows"] = flat(known["subjects"])
        known["environment"] = {
            "python": platform.python_version(), "machine": platform.machine(), "threads": torch.get_num_threads(),
            "photographs": PHOTOS, "digits": {part: [s.start or 0, s.stop] for part, s in DIGITS.items()},
            "fifths of Brown": FIFTHS, "peers": PINS,
            **{p: version(p) for p in ("torch", "captum", "transformers", "numpy", "scikit-image", "scikit-learn")},
        }  # fmt: skip
        if not options.quick and options.part != "look":
            OUT.parent.mkdir(parents=True, exist_ok=True)
            OUT.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
