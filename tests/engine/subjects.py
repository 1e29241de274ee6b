"""A tiny job, a tiny model and their data, for runs that take a moment; it is also imported by the processes of the tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from termwise.core.decomposition import Decomposition
from termwise.engine import Answers, Row, RowResult

OWN = """
import torch
from torch import nn
from termwise.zoo import Subject
from termwise.zoo.texts import TextPreparation

class Letters:
    def encode(self, text): return [min(ord(c), 255) for c in text]
    def decode(self, ids): return "".join(map(chr, ids))
    def name(self, token): return chr(token)
    def __len__(self): return 256

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(256, 8), nn.Linear(8, 2)
    def forward(self, input_ids, attention_mask):
        return self.head(self.table(input_ids).mean(1).relu())

def bag():
    torch.manual_seed(0)
    return Subject("bag", Bag().eval(), TextPreparation(Letters(), 32), ["no", "yes"], "own")

def pixels():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


@dataclass
class Lengths:
    """A text is its letters: whole = number of letters, each a part of one; sums of lengths and squares.

    A text that says "bad" raises, "kill" ends the process, "once" ends it the first time it is asked, "slow" takes a moment.
    """

    scale: float = 1.0
    marks: str = ""
    pause: float = 0.0

    verb: ClassVar[str] = "lengths"
    decomposes: ClassVar[bool] = True
    scalars: ClassVar[Mapping[str, type]] = {"length": int, "text": str, "long": bool}

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def start(self) -> dict[str, Any]:
        self.weights = torch.arange(1.0, 201.0, dtype=torch.float64) * self.scale
        return {"weights": "ones"}

    def run(self, rows: Sequence[Row]) -> Answers:
        time.sleep(self.pause)
        for row in rows:
            text = str(row.value)
            if "bad" in text:
                raise ValueError(f"{text!r} is bad")
            if "kill" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if "once" in text and not (mark := Path(self.marks) / text).exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        results, sums = [], torch.zeros(2, dtype=torch.float64)
        for row in rows:
            letters = (
                torch.tensor([[ord(c) / 7 for c in str(row.value)]], dtype=torch.float64) * self.weights[: len(str(row.value))]
            )
            whole = letters.sum(1)
            sums += torch.stack([whole[0], whole[0] ** 2])
            scalars = {"length": letters.shape[1], "text": str(row.value), "long": letters.shape[1] > 5}
            results.append(RowResult(scalars, Decomposition(whole, {"letters": letters})))
        return Answers(results, {"sum": sums[0], "squares": sums[1]})


def texts(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
