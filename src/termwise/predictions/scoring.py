"""Ask a model about many changed inputs, and read one score of the explained class from each answer.

    logit      z_t
    probability softmax(z)_t
    accuracy   1 where t is the largest of z, else 0

The class t is the one that the model gives to the whole input, or a given one, and stays what it is. Targets are those of
`termwise.explain`, read by the same `Start`; of a sequence of outputs the row of scores at its place. Every method that perturbs
goes through `Inquiry.scores`: one batched forward pass per chunk, whatever samples its rows belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import whole_number
from termwise.core.capture import explained

from .perturbation import Features
from .starts import Choice, Contrast, Entry, Seen, Start
from .targets import Target, asked

__all__ = ["SCORES", "Answers", "Inquiry"]

SCORES = ("probability", "logit", "accuracy")
"""What can be read of an answer; of what is no class of several (a function, a contrast) a logit only."""

Parts = tuple[Tensor, Tensor | None, Tensor | None]


class Answers:
    """Scores of some inputs: `logit`, and where there are classes `probability` and `accuracy`; None otherwise."""

    def __init__(self, logit: Tensor, probability: Tensor | None, accuracy: Tensor | None) -> None:
        """Hold them, each (rows,)."""
        self.logit, self.probability, self.accuracy = logit, probability, accuracy

    def of(self, kind: str) -> Tensor:
        """One of them by name.

        Raises:
            ValueError: an unknown kind, or one that needs classes where there are none.
        """
        if kind not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {kind!r}")
        found: Tensor | None = getattr(self, kind)
        if found is None:
            raise ValueError(f"score={kind!r} needs one class of several as its target: take score='logit'")
        return found


class Inquiry:
    """A model, what is asked of it, and the answer to the whole input (`whole`).

    Attributes:
        start: the question, what it left to the whole input named; see `Start.held`.
        index: the class or entry that is asked about, one per sample; None where there is none.
        whole: the answer to the whole input.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        features: Features,
        target: Target = None,
        *,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Ask about the whole input.

        Raises:
            ValueError: a model in training mode, a target that does not fit the output or is no single one.
        """
        if isinstance(model, nn.Module) and any(m.training for m in model.modules()):
            raise ValueError("the model is in training mode, where its answer is random: call model.eval() first")
        batch_size = whole_number("batch_size", batch_size)
        wanted = asked(target)
        self.start: Start = wanted.starts[0]
        if wanted.several or self.start.alone:
            raise ValueError("one number of every sample is scored: a list of targets or a node is for termwise.explain")
        self.model, self.features, self.batch_size = model, features, batch_size
        self.select = wanted.select or explained
        self.index: Tensor | None = None
        self._shape: torch.Size | None = None  # of one sample's output, once it is known
        self.progress: Callable[[int, int], None] | None = None
        self.whole = self._first()
        self.progress = progress

    def scores(self, samples: Tensor, replaced: Callable[[Tensor], Tensor]) -> Answers:
        """Scores of every row; arguments as of `Features.batches`."""
        return self.of(self.features.batches(samples, replaced, self.batch_size), samples)

    def of(self, batches: Iterable[tuple[Tensor, Any]], samples: Tensor) -> Answers:
        """Scores of inputs.

        Args:
            batches: (rows, the inputs of these rows).
            samples: the sample that each row is a form of, (rows,).
        """
        found: list[Tensor | None] = [None, None, None]
        done = 0
        for rows, given in batches:
            output, seen = self._answer(given, samples[rows])
            for i, part in enumerate(self._read(output, seen)):
                if part is not None:
                    kept = found[i] = part.new_empty(len(samples)) if done == 0 else found[i]
                    assert kept is not None
                    kept[rows.to(kept.device)] = part
            done += len(rows)
            if self.progress is not None:
                self.progress(done, len(samples))
        logit, probability, accuracy = found
        assert logit is not None
        return Answers(logit, probability, accuracy)

    # -- the whole input ----------------------------------------------------------------------------------------------

    def _first(self) -> Answers:
        """Ask about the whole input, and hold what the question left to it."""
        found: list[Parts] = []
        index: list[Tensor] = []
        chosen: list[tuple[Tensor, Tensor]] = []
        for rows in torch.arange(self.features.batch).split(self.batch_size):
            output, seen = self._answer(self.features.given(rows), rows)
            found.append(self._read(output, seen))
            index += [i for i in self.start.of(output, seen)[1:] if i is not None]
            chosen += [s for s in [self.start.scores(output, seen)] if s is not None]
        if chosen:
            row, place = zip(*chosen, strict=True)
            self.start = self.start.held(torch.cat(row), torch.cat(place))
        self.index = torch.cat(index) if index else None
        self.start = self._from_the_end(output, seen)
        self._shape = output.shape[1:]
        logit, probability, accuracy = (None if p[0] is None else torch.cat(p) for p in zip(*found, strict=True))  # type: ignore[arg-type]
        assert logit is not None
        return Answers(logit, probability, accuracy)

    def _from_the_end(self, output: Tensor, seen: Seen) -> Start:
        """The question, its place in a text that tokens are removed from counted from where none is.

        Raises:
            ValueError: when tokens from that place on are removed too.
        """
        entry, features = self._entry, self.features
        if features.fill is not None or entry is None or not isinstance(entry.target, tuple) or seen.ids is None:
            return self.start
        if output.ndim != 3 or seen.ids.shape[1] != output.shape[1] or not torch.equal(seen.ids, features.x[seen.rows]):
            return self.start
        n = output.shape[1]
        place = int(entry.target[0]) % n
        if bool((features.cells[:, place:] >= 0).any()):
            raise ValueError(
                f"the target is at place {place} of {n}, and tokens from there on are removed, so that it moves: keep them "
                "(keep=), or give the id of a mask token as baseline"
            )
        moved = Entry((place - n, *entry.target[1:]))
        return replace(self.start, entry=moved) if isinstance(self.start, Contrast) else moved

    @property
    def _entry(self) -> Entry | None:
        """The entry of the output that is asked about, alone or against others."""
        entry = self.start.entry if isinstance(self.start, Contrast) else self.start
        return entry if isinstance(entry, Entry) else None

    # -- one answer ---------------------------------------------------------------------------------------------------

    def _answer(self, given: Any, samples: Tensor) -> tuple[Tensor, Seen]:
        """The scored tensor of the model's output, and what belongs to it."""
        with torch.no_grad():
            try:
                output = self.select(self.model(**given) if isinstance(given, Mapping) else self.model(given))
            except (RuntimeError, IndexError) as problem:
                if isinstance(problem, torch.OutOfMemoryError):
                    raise
                said = (str(problem).strip().splitlines() or ["no message"])[0]
                raise ValueError(
                    f"{type(self.model).__name__} raises {type(problem).__name__} for inputs in which features are replaced "
                    f"({said}): give a baseline that it takes"
                ) from problem
        named = given if isinstance(given, Mapping) else {"input": given}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        return output, Seen.of(tensors, len(samples), samples, self.features.batch)

    def _read(self, output: Tensor, seen: Seen) -> Parts:
        if self._shape is not None and output.shape[1:] != self._shape:
            entry = self._entry  # a class at the last position, or a place counted from the end, is found again
            if entry is None or (isinstance(entry.target, tuple) and int(entry.target[0]) >= 0):
                raise ValueError(
                    f"of one sample the output became {tuple(output.shape[1:])} where it was {tuple(self._shape)}: replace what "
                    "changes its length by a token instead of removing it"
                )
        value, _ = self.start.of(output, seen)
        scores = self.start.scores(output, seen) if isinstance(self.start, Choice) else None
        if scores is None or scores[0].shape[1] == 1:
            return value, None, None
        row, index = scores
        rows = torch.arange(len(row), device=row.device)
        return value, row.softmax(1)[rows, index], (row.argmax(1) == index).to(row.dtype)
