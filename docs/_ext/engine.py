"""What the engine costs, from `docs/data/engine.json`: measured rates and constants, and what follows for many rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["costs", "rates"]

WAYS = {
    "loop 1": "plain loop, 1 thread", "loop 1 keeping": "the same, freed memory kept", "local 1": "local, 1 worker",
    "local 2": "local, 2 workers", "ray 2": "Ray, 2 workers", "loop 2": "plain loop, 2 threads",
}  # fmt: skip
SUBJECTS = {"nanoguard": "NanoGuard, a text", "convnet": "6 convolutions, a picture of 64 x 64"}
WORKERS = (2, 64, 1000)


def rates(data: Path) -> Iterator[str]:
    """Rows per second by way and subject, and how many times those of the plain loop on one thread."""
    found = _read(data)
    if found is None:
        yield "*Not measured in this build.*"
        return
    rows = {(row["subject"], row["how"]): median(row["rates"]) for row in found["rates"]}
    yield "| | " + " | ".join(f"{title}: rows/s | of the loop" for title in SUBJECTS.values()) + " |"
    yield "|---" * (1 + 2 * len(SUBJECTS)) + "|"
    for how, title in WAYS.items():
        cells = [f"{rows[s, how]:.3g} | {rows[s, how] / rows[s, 'loop 1']:.2f}" for s in SUBJECTS]
        yield f"| {title} | {' | '.join(cells)} |"
    first, last = found["memory"][0], found["memory"][-1]
    yield (
        f"\nThe peak of memory was {first['MB']:.0f} MB over {first['rows']:,} rows and {last['MB']:.0f} MB over "
        f"{last['rows']:,} (table of {last['table_MB']:.0f} MB)."
    )
    about = found["environment"]
    turns = len(found["rates"][0]["rates"])
    yield (
        f"\n{'Means' if turns == 2 else 'Medians'} of {turns}, interleaved, on {about['cores']} cores with a load of "
        f"{about['load_before']} by others before it began (below 0.3 the machine was free); torch {about['torch']}, "
        f"batches of {about['batch']}, {about['date']}."
    )


def costs(data: Path) -> Iterator[str]:
    """The constants of the model, then what it says for 10^6 to 10^9 rows."""
    found = _read(data)
    if found is None:
        yield "*Not measured in this build.*"
        return
    batch = found["environment"]["batch"]
    empty = {row["how"]: row for row in found["empty"]}
    yield "| constant | local | Ray |"
    yield "|---|---|---|"
    starts = [[median(_row(found, s, how)["starts"]) for how in ("local 2", "ray 2")] for s in SUBJECTS]
    for title, pair in zip(SUBJECTS.values(), starts, strict=True):
        yield f"| start, s: {title} | {pair[0]:.1f} | {pair[1]:.1f} |"
    yield f"| a batch besides its rows, ms | {empty['local 2']['batch_ms']:.1f} | {empty['ray 2']['batch_ms']:.1f} |"
    each, large = empty["local 1"]["merging_ms"], found["memory"][-1]
    merging = max(0.0, large["merging"] - large["rows"] / batch * each / 1000) / large["table_MB"] * 1000
    yield f"| merging: a batch, ms; a GB, s | {each:.1f}; {merging:.1f} | the same |"
    for subject, title in SUBJECTS.items():
        row = _row(found, subject, "local 1")
        size = row["bytes"]
        yield f"| a row, ms; KB in the table: {title} | {1000 / median(row['rates']):.1f}; {size / 1000:.1f} | the same |"
    yield f"| bytes of a row of one number | {empty['local 1']['bytes']:.1f} | the same |"
    columns = " | ".join(f"{w:,} workers" for w in WORKERS)
    yield f"\n| rows | subject | batches | {columns} | writing at the least | merging | table |"
    yield "|---" * (6 + len(WORKERS)) + "|"
    for power in range(6, 10):
        for (subject, title), (start, _) in zip(SUBJECTS.items(), starts, strict=True):
            rows, row = 10**power, _row(found, subject, "local 1")
            gigabytes, batches = rows * row["bytes"] / 1e9, rows / batch
            writing = batches * empty["ray 2"]["batch_ms"] / 1000
            merged = batches * each / 1000 + gigabytes * merging
            times = [start + max(rows / median(row["rates"]) / w, writing) + merged for w in WORKERS]
            cells = [*map(_time, times), _time(writing), _time(merged), f"{gigabytes:,.0f} GB"]
            yield f"| 10^{power} | {title} | {batches:,.0f} | {' | '.join(cells)} |"


def _read(data: Path) -> Any:
    file = data / "engine.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _row(found: Any, subject: str, how: str) -> Any:
    return next(row for row in found["rates"] if (row["subject"], row["how"]) == (subject, how))


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"
