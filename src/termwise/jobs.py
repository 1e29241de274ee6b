"""The verbs of the house as jobs over a data set: explain every row, test every explanation by deletion."""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from termwise.engine import Answers, Results, Row, RowResult
from termwise.own_model import is_own, named_or_own, sources
from termwise.predictions.explain import explain
from termwise.predictions.rules.selection import nearest
from termwise.predictions.rules.sets import IN_ITS_FORM, RULE_SETS
from termwise.showcase import deleted
from termwise.zoo.pictures import PicturePreparation

if TYPE_CHECKING:
    from termwise.predictions.explanation import Explanation
    from termwise.zoo import Subject

__all__ = ["ExplainJob", "FaithfulnessJob", "OfModel", "alike", "identity", "means", "together", "weights_digest"]


class OfModel:
    """A job that asks one model, named or one's own, which it holds once it was started."""

    model: str
    _subject: Subject | None = None

    @property
    def named(self) -> str:
        """The model as settings tell it. Files may move: what is in them is told by `start`."""
        return Path(self.model).name if is_own(self.model) else self.model

    @property
    def subject(self) -> Subject:
        """The model, once started."""
        if self._subject is None:
            raise RuntimeError("the job was not started: call start() first")
        return self._subject


@dataclass
class ExplainJob(OfModel):
    """Explain the model's answer to every row.

    Inputs of a batch that have the same shape are explained together. Texts are never padded: those of one length share a
    pass, the others have their own, so that a text's neighbours do not change its explanation but in the last bits.

    Args:
        model: a name of the zoo, or path/to/file.py:factory.
        takes: what the data set holds, "text" or "image".
        target: class index or name; the model's own answer to each row when not given.
        rules: name of the rule set.
        float32: compute in float32 instead of float64.
        weights: as of `own_model.load`.
        classes: a file of names.
        size: side of the picture that your model takes.
    """

    model: str
    takes: Literal["text", "image"] = "text"
    target: int | str | None = None
    rules: str = "default"
    float32: bool = False
    weights: Path | None = None
    classes: Path | None = None
    size: int | None = None

    verb: ClassVar[str] = "explain"
    decomposes: ClassVar[bool] = True
    scalars: ClassVar[Mapping[str, type]] = {
        "target": int, "class": str, "inputs": float, "biases": float, "constants": float, "rules": float, "text": str,
    }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What was asked."""
        return {
            "model": self.named, "target": self.target, "rules": self.rules,
            "dtype": "float32" if self.float32 else "float64", "size": self.size,
        }  # fmt: skip

    def start(self) -> dict[str, Any]:
        """Load the model.

        Raises:
            ValueError: a model that takes something else, no such class or rules; else as `own_model.load` and `zoo.load`.
        """
        subject = named_or_own(self.model, self.weights, self.classes, self.size)
        if subject.kind != self.takes:
            raise ValueError(f"{self.model} takes {_several(subject.kind)}, the data set holds {_several(self.takes)}")
        loaded = identity(self.model, subject)
        subject.model.to(torch.float32 if self.float32 else torch.float64)
        self._subject, self._index = subject, subject.index(self.target) if isinstance(self.target, str) else self.target
        if self._index is not None and not -len(subject.classes) <= self._index < len(subject.classes):
            raise ValueError(f"{self.model} has {len(subject.classes)} classes: there is no target {self._index}")
        if self.rules not in (known := ["default", "EpsilonGammaBox", *RULE_SETS, *IN_ITS_FORM]):
            raise ValueError(f"unknown rules {self.rules!r}{nearest(self.rules, known)}")
        self._rules: Any = self.rules
        if self.rules == "EpsilonGammaBox":  # the one set that has to know the range of the input
            from termwise.predictions.rules import EpsilonGammaBox

            if not isinstance(subject.preparation, PicturePreparation):
                raise ValueError("EpsilonGammaBox is for pictures: its first layer takes the range of pixels")
            self._rules = EpsilonGammaBox(*subject.preparation.box)
        return loaded

    def run(self, rows: Sequence[Row]) -> Answers:
        """Explain a batch."""
        failed, groups = alike(self.subject.prepare, rows)
        found: dict[int, RowResult | Exception] = {**failed}
        for group in groups:
            for i, (row, why) in enumerate(zip((row for row, _ in group), self._explained([x for _, x in group]), strict=True)):
                found[row.index] = self._result(row, group[i][1], why)
        return Answers([found[row.index] for row in rows])

    def _explained(self, inputs: Sequence[Any]) -> Explanation:
        x = together(inputs)
        names = [self.subject.names(one) for one in inputs] if self.takes == "text" else None
        return explain(self.subject.model, x, target=self._index, rules=self._rules, names=names, classes=self.subject.classes)

    def _result(self, row: Row, x: Any, why: Explanation) -> RowResult:
        return RowResult(self._scalars(row, why), why)

    def _scalars(self, row: Row, why: Explanation) -> dict[str, Any]:
        shares = {name: share.item() for name, share in why.shares().items()}
        target = int(why.target[0]) if why.target is not None and why.target.ndim == 1 else None
        text = row.value if isinstance(row.value, str) else None
        return {"target": target, "class": why.label(), "text": text, **shares}


@dataclass
class FaithfulnessJob(ExplainJob):
    """Explain every row, and remove what the explanation calls important: does the answer fall faster than by chance?

    `area` is the area under the probability as the most relevant features go first, `random_area` that of random orders (their
    mean), `gain` the difference, positive where the explanation knows more than chance.

    Args:
        random_orders: per row; the others are those of `ExplainJob`.
        seed: of the orders; those of row i are drawn with seed + i.
    """

    random_orders: int = 8
    seed: int = 0

    verb: ClassVar[str] = "faithfulness"
    decomposes: ClassVar[bool] = False
    scalars: ClassVar[Mapping[str, type]] = {
        "target": int, "class": str, "area": float, "random_area": float, "gain": float, "text": str,
    }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What was asked."""
        return super().settings() | {"random_orders": self.random_orders, "seed": self.seed}

    def start(self) -> dict[str, Any]:
        """Load the model, and a copy in float32 for the test."""
        loaded = super().start()
        self._single = copy.deepcopy(self.subject.model).float()
        return loaded

    def run(self, rows: Sequence[Row]) -> Answers:
        """Explain and test a batch; the sums are those of areas and of their squares."""
        answers = super().run(rows)
        sums: dict[str, Tensor] = {}
        values = [a.scalars for a in answers.rows if isinstance(a, RowResult)]
        for name in ("area", "random_area", "gain"):
            column = torch.tensor([v[name] for v in values], dtype=torch.float64)
            sums |= {f"{name}/rows": torch.tensor(len(column)), f"{name}/sum": column.sum(), f"{name}/squares": (column**2).sum()}
        return Answers(answers.rows, sums)

    def _result(self, row: Row, x: Any, why: Explanation) -> RowResult:
        drawn = torch.Generator().manual_seed(self.seed + row.index)
        curve = deleted(self.subject, x, why, model=self._single, random_orders=self.random_orders, generator=drawn)
        area, chance = float(curve.area.values[0]), float(curve.random_area[0][0])
        known = {k: v for k, v in self._scalars(row, why).items() if k in self.scalars}
        return RowResult(known | {"area": area, "random_area": chance, "gain": chance - area})


def means(results: Results) -> dict[str, tuple[float, float, float]]:
    """Mean and interval (95 %, normal) of what `FaithfulnessJob` measured, from its sums.

    Returns:
        Name -> (mean, low, high); the bounds are NaN for a single row.
    """
    found = {}
    sums = results.statistics
    for name in sorted({key.partition("/")[0] for key in sums}):
        n, total, squares = (float(sums[f"{name}/{what}"]) for what in ("rows", "sum", "squares"))
        mean = total / n if n else math.nan
        variance = max(0.0, squares / n - mean**2) * n / (n - 1) if n > 1 else math.nan
        half = 1.96 * math.sqrt(variance / n) if n > 1 else math.nan
        found[name] = (mean, mean - half, mean + half)
    return found


def identity(name: str, subject: Subject) -> dict[str, Any]:
    """What decides a model's numbers, as JSON: hashes of its weights, modules, class names and own code; versions of packages.

    Args:
        name: as it was asked for, of which the code is hashed where it is one's own.
        subject: the model.
    """
    model = subject.model
    used = {type(part).__module__.partition(".")[0] for part in (*model.modules(), *vars(subject.preparation).values())}
    used |= {"PIL"} if subject.kind == "image" else set()
    known = metadata.packages_distributions()
    packages = {p: metadata.version(p) for module in used - {"torch", "termwise"} for p in known.get(module, ())}
    modules = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))  # where a function lies in memory
    return {
        "weights": weights_digest(model), "modules": _digest(modules.encode()),
        "classes": _digest(repr(list(subject.classes)).encode()),
        "code": {place: _digest(file.read_bytes()) for place, file in sources(name).items()} if is_own(name) else {},
        "packages": dict(sorted(packages.items())),
    }  # fmt: skip


def weights_digest(model: nn.Module) -> str:
    """A sha256 of every parameter and buffer with its name, dtype and shape."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _several(kind: str) -> str:
    return {"text": "texts", "image": "pictures"}[kind]


def _shape(x: Any) -> Any:
    return tuple((name, v.shape) for name, v in x.items()) if isinstance(x, Mapping) else x.shape


def alike(prepare: Callable[[Any], Any], rows: Sequence[Row]) -> tuple[dict[int, Exception], list[list[tuple[Row, Any]]]]:
    """Rows that cannot be prepared, with the reason, and the others with what the model takes, grouped by its shape."""
    failed: dict[int, Exception] = {}
    groups: dict[Any, list[tuple[Row, Any]]] = {}
    for row in rows:
        try:
            x = prepare(row.value)
        except Exception as problem:  # this row's, and no reason to lose the others
            failed[row.index] = problem
        else:
            groups.setdefault(_shape(x), []).append((row, x))
    return failed, [*groups.values()]


def together(inputs: Sequence[Any]) -> Any:
    """Inputs of one shape as a batch."""
    if isinstance(inputs[0], Mapping):
        return {name: torch.cat([x[name] for x in inputs]) for name in inputs[0]}
    return torch.cat(list(inputs))
