"""The engine over a data set, against a plain loop over the same batches; what it costs, and what it needs.

    python benchmarks/engine.py [--rows 1] [--repeats 2]     # 11 minutes on two free cores

Subjects: NanoGuard on texts of one length (some 45 ms a row), and a convolutional network on pictures of 64 x 64.
The loop does what one would write: prepare 16 rows, `tw.explain`, look at the error; it writes nothing. "loop 1 keeping" is the same
where freed memory stays with the process, which the engine's workers do (`engine/allocator.py`). The engine is what `termwise explain
--dataset` runs, with every tensor written. Each run has a process of its own, in turn; rows per second are counted from when the first
worker has loaded its model and explained one batch, until the table is there. What came before is `start`. Ratios are of medians.
Then: what a batch costs by itself (a job that does nothing), what merging costs, bytes per row, and the peak of memory over 1,000 and
10,000 pictures of 32 x 32. `--rows` multiplies the rows. Results go to docs/data/engine.json.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

import termwise as tw
from termwise.engine import Answers, Dataset, Row, RowResult, run
from termwise.engine.allocator import keep_freed
from termwise.jobs import ExplainJob

OUT = Path(__file__).parent.parent / "docs" / "data" / "engine.json"
BATCH = 16
ROWS = {"nanoguard": 320, "convnet": 768}
HOW = ("loop 1", "loop 1 keeping", "local 1", "local 2", "ray 2", "loop 2")
"""And how many threads of the loop, workers of the engine."""
EMPTY = 200 * BATCH
MEMORY = (1_000, 10_000)
SIDE = {"convnet": 64, "small": 32}


@dataclass
class Warm(ExplainJob):
    """Has explained a batch when it is ready."""

    first: Sequence[Row] = field(default=(), repr=False)

    def start(self) -> dict[str, Any]:
        loaded = super().start()
        self.run(self.first)
        return loaded


class Nothing:
    """What is left is the engine."""

    verb: ClassVar[str] = "nothing"
    decomposes: ClassVar[bool] = False
    scalars: ClassVar[Mapping[str, type]] = {"length": int}

    def settings(self) -> dict[str, Any]:
        return {}

    def start(self) -> dict[str, Any]:
        return {}

    def run(self, rows: Sequence[Row]) -> Answers:
        return Answers([RowResult({"length": len(str(row.value))}) for row in rows])


def convnet() -> nn.Module:
    """Six convolutions of 32 channels, as a model of one's own."""
    return _network(32, 6)


def small() -> nn.Module:
    """Two of 8 channels, of which 10,000 rows take a moment."""
    return _network(8, 2)


def _network(width: int, depth: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def pictures(folder: Path, rows: int, size: int) -> Path:
    """Random pictures, a hundred different ones."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    draws = np.random.default_rng(0)
    for i in range(rows):
        file = folder / f"{i:06d}.png"
        if i < 100:
            Image.fromarray(draws.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file)
        else:
            os.link(folder / f"{i % 100:06d}.png", file)
    return folder


def texts(file: Path, rows: int) -> Path:
    """Texts of one length."""
    lines = [f"Film {i % 10} was good, and I would see it again with {i // 10 % 10} of my friends." for i in range(rows)]
    file.write_text("\n".join(lines), "utf-8")
    return file


# -- one run, in a process of its own -------------------------------------------------------------------------------------


def one(how: str, subject: str, path: Path, out: Path) -> dict[str, Any]:
    """Seconds without the start, and the peak of memory in MB."""
    engine, count, *keeping = how.split()
    data = Dataset.open(path)
    first = data.rows(0, BATCH)
    own = subject if subject == "nanoguard" else f"{Path(__file__)}:{subject}"
    job = Nothing() if subject == "nothing" else Warm(own, data.kind, size=SIDE.get(subject), first=first)
    if engine == "loop":
        torch.set_num_threads(int(count))
        if keeping:
            keep_freed()
        job.start()
        seconds = loop(job.subject, data)
    else:
        run(job, data, out, engine=engine, workers=int(count), batch_size=BATCH)
        finished = json.loads((out / "run.jsonl").read_text().splitlines()[-1])
        seconds = finished["seconds"]
    found = {"seconds": seconds, "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    return found | ({"merging": finished["merging"]} if engine != "loop" else {})


def loop(subject: Any, data: Dataset) -> float:
    """What one would write."""
    begun = time.perf_counter()
    for start in range(0, len(data), BATCH):
        rows = data.rows(start, start + BATCH)
        inputs = [subject.prepare(row.value) for row in rows]
        if data.kind == "text":
            batch = {name: torch.cat([x[name] for x in inputs]) for name in inputs[0]}
            why = tw.explain(subject.model, batch, names=[subject.names(x) for x in inputs], classes=subject.classes)
        else:
            why = tw.explain(subject.model, torch.cat(inputs), classes=subject.classes)
        assert why.error() < 1e-6
    return time.perf_counter() - begun


def child(how: str, subject: str, path: Path, out: Path) -> dict[str, Any]:
    """`one`, as another process; with the seconds before it."""
    threads = how.split()[1] if how.startswith("loop") else "1"
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    begun = time.perf_counter()
    command = [sys.executable, __file__, "--one", how, subject, str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{how} on {subject} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"start": time.perf_counter() - begun - found["seconds"]}


# -- all of them ------------------------------------------------------------------------------------------------------------


def rates(folder: Path, factor: float, repeats: int) -> list[dict[str, Any]]:
    """Rows per second of every way and subject, in turn."""
    rows = {name: max(BATCH, int(factor * n)) for name, n in ROWS.items()}
    paths = {"nanoguard": texts(folder / "texts.txt", rows["nanoguard"])}
    paths["convnet"] = pictures(folder / "pictures", rows["convnet"], SIDE["convnet"])
    found = {(s, how): {"subject": s, "how": how, "rows": rows[s], "rates": [], "starts": []} for s in rows for how in HOW}
    for turn in range(repeats):
        for (subject, how), row in found.items():
            out = folder / "out"
            one = child(how, subject, paths[subject], out)
            row["rates"].append(round(rows[subject] / one["seconds"], 3))
            row["starts"].append(round(one["start"], 2))
            if how == "local 1":
                row["bytes"] = round((out / "table.parquet").stat().st_size / rows[subject])
            if not how.startswith("loop"):
                shutil.rmtree(out)
            print(f"{turn} {subject:<10} {how:<14} {row['rates'][-1]:8.2f} rows/s after {row['starts'][-1]:.1f} s", flush=True)
    return list(found.values())


def empty(folder: Path) -> list[dict[str, Any]]:
    """Milliseconds of a batch that is nothing to do, and of its part in merging."""
    path, found = texts(folder / "empty.txt", EMPTY), []
    for how in ("local 1", "local 2", "ray 2"):
        one = child(how, "nothing", path, folder / f"empty {how}")
        merging = 1000 * one["merging"] / (EMPTY / BATCH)
        all_in_all = 1000 * one["seconds"] / (EMPTY / BATCH)
        size = (folder / f"empty {how}" / "table.parquet").stat().st_size / EMPTY
        found.append(
            {"how": how, "batch_ms": round(all_in_all - merging, 3), "merging_ms": round(merging, 3), "bytes": round(size, 1)}
        )
        print(found[-1], flush=True)
    return found


def memory(folder: Path) -> list[dict[str, Any]]:
    """The peak of one process that explains so many pictures."""
    found = []
    for rows in MEMORY:
        path = pictures(folder / f"{rows}", rows, SIDE["small"])
        one = child("local 1", "small", path, folder / f"out {rows}")
        size = (folder / f"out {rows}" / "table.parquet").stat().st_size
        merging = round(one["merging"], 3)
        found.append({"rows": rows, "MB": round(one["MB"], 1), "table_MB": round(size / 1e6, 1), "merging": merging})
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        how, subject, path, out = asked.one
        print(json.dumps(one(how, subject, Path(path), Path(out))))
        return
    load = os.getloadavg()[0]  # of others, before this begins
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {"rates": rates(folder, asked.rows, asked.repeats), "empty": empty(folder), "memory": memory(folder)}
    machine = {
        "python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count(), "load_before": round(load, 1),
        "batch": BATCH, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    OUT.write_text(json.dumps({"environment": machine} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
