"""Claims of papers as rows of a data set: measured in parallel, resumed where they were, and read and browsed as results are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from termwise.core import claims
from termwise.engine import Answers, Dataset, Results, Row, RowResult

__all__ = ["ClaimRows", "VerifyJob", "measured"]


class ClaimRows(Dataset):
    """One claim a row; its label is its paper. What a run is held to is the source of this package."""

    def __init__(self, chosen: Sequence[claims.Claim]) -> None:
        self.path, self.kind, self.column = Path(claims.__file__).parents[1], "text", None
        self._rows = [(claim.name, claim.paper) for claim in chosen]

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, start: int, stop: int) -> list[Row]:
        """Names of claims."""
        return [Row(start + i, name, name, paper) for i, (name, paper) in enumerate(self._rows[start:stop])]

    def files(self) -> Sequence[Path]:
        """The modules of the package."""
        return sorted(self.path.rglob("*.py"))

    def describe(self) -> dict[str, Any]:
        """Whose digest is that of the source and of the names of the claims."""
        found = super().describe()
        return found | {"digest": hashlib.sha256(repr((found["digest"], self._rows)).encode()).hexdigest()}


class VerifyJob:
    """Measure claims. A table of these has times in it, so that two runs differ there."""

    verb: ClassVar[str] = "verify"
    decomposes: ClassVar[bool] = False
    scalars: ClassVar[Mapping[str, type]] = {
        "paper": str, "statement": str, "published": str, "measured": str, "outcome": str, "exact": bool, "seconds": float,
        "note": str, "details": str,
    }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """Nothing but the claims, which are the data."""
        return {}

    def start(self) -> dict[str, Any]:
        """Load every room."""
        claims.load_claims()
        return {}

    def run(self, rows: Sequence[Row]) -> Answers:
        """Measure; what a claim raises is its result."""
        found = [asdict(claims.run(claims.CLAIMS[row.key])) for row in rows]
        return Answers([RowResult({k: v for k, v in one.items() if k != "name"}) for one in found])


def measured(results: Results) -> list[claims.Result]:
    """The results of claims; one whose process died with it has failed."""
    found = [
        claims.Result(name=row["key"], **{k: row[k] for k in VerifyJob.scalars})
        for row in results.scalars("key", *VerifyJob.scalars).to_pylist()
    ]
    for row in results.errors.to_pylist():
        claim = claims.CLAIMS[row["key"]]
        found.append(
            claims.Result(
                claim.name, claim.paper, claim.statement, claim.published, row["reason"], "failed", claim.exact, 0.0, claim.note
            )
        )
    return found
