"""The result of a relevance method: a prediction taken apart into inputs, biases, constants and what rules lost."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from termwise.core.arguments import Samples, chosen_samples, whole_number
from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Picture, Pixels, Words

from .by_layer import NOTE, carried_by_patches, carried_by_tokens, passing, short
from .enlarge import enlarged

if TYPE_CHECKING:
    from .groups import Mask

__all__ = ["KINDS", "Explanation"]

KINDS = {"input": "inputs", "at": "at", "bias": "biases", "constant": "constants", "rule": "rules"}
"""First word of a part's name -> the group that `shares` reports; "at" only where there is one."""


@dataclass(frozen=True, eq=False, repr=False)  # repr: the base's one line, not every number
class Explanation(Decomposition):
    """One scalar per sample (`whole`, shape (batch,)), written as a sum over what made it.

    Of several targets at once the whole has shape (batch, targets), and so have the first axes of every part; `only` gives
    the explanation of one. The parts are named by kind:

    - ``"input:<argument>"``: shape of that input; (batch, tokens) for token ids;
    - ``"at:<module path>"``: of the shape of that module's output, where the explanation begins there;
    - ``"bias:<module path>"``: (batch, *bias shape);
    - ``"constant:<module path or name>"``: position embeddings, class tokens, Python numbers, values f(0);
    - ``"rule:<op>@<module path>"``: (batch,), what a rule that does not conserve lost at that node, measured there.

    Attributes:
        target: the class index per sample, where the whole is one entry of an output; None otherwise.
        rules: name of the rule set.
        names: the tokens of each sample, for pictures; None where there are none.
        classes: names of the classes `target` indexes; None where unknown.
        asked: what each target asks, in words, "{}" standing for the class; None where it is that class and no more.
        picture: height and width of the image that was explained from an inner module on.
        layers: relevance at the outputs of modules that it passed, by path, of their shapes; each is a cut of its own and no
            part of the sum (`explain(layers=)`).
        channels: of each of these, and of the module where the explanation begins, the axis of its channels, counted from the
            end: -1 of tokens, -3 of maps (batch, channels, height, width). Not of those where it is not known.
    """

    target: Tensor | None = None
    rules: str = "default"
    names: list[list[str]] | None = None
    classes: list[str] | None = None
    asked: list[str] | None = None
    picture: list[int] | None = None
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    channels: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, samples: Samples) -> Explanation:
        """Some of the samples (first axis). An int keeps the axis, with one sample."""
        rows = chosen_samples(samples, len(self))
        chosen = super().__getitem__(rows)
        layers = {name: value[rows] for name, value in self.layers.items()}
        # lists that do not count samples, whatever their length
        return replace(chosen, classes=self.classes, asked=self.asked, picture=self.picture, layers=layers)

    def only(self, target: int) -> Explanation:
        """The explanation of one of several targets, `whole` of shape (batch,).

        Args:
            target: its place in the list that was asked.

        Raises:
            ValueError: when one target was asked, or fewer than that.
        """
        if self.whole.ndim != 2:
            raise ValueError("this explains one target: there is nothing to choose")
        n = self.whole.shape[1]
        if not -n <= target < n:
            raise ValueError(f"target {target} is out of range: {n} were asked")
        return replace(
            self,
            whole=self.whole[:, target],
            parts={name: part[:, target] for name, part in self.parts.items()},
            target=None if self.target is None else self.target[:, target],
            asked=None if self.asked is None else [self.asked[target]],
            layers={name: value[:, target] for name, value in self.layers.items()},
        )

    def grouped(self, feature_mask: Mask) -> Explanation:
        """The same with the entries of an input summed by group: words, patches, superpixels.

        Args:
            feature_mask: for every entry the number of its group, counted from 0, as captum takes it: a tensor of integers
                of the shape of the input, with the batch or without, or one that broadcasts to it ((height, width) puts
                all channels of a pixel into one group); what `words` or `patches` give; or a mapping from argument
                names to these. A mask without a name is for the input it fits.

        Returns:
            An explanation whose part of that input has shape (batch, groups). Groups that a sample does not have are 0.
            Tokens that were grouped by `words` give the names of the words.

        Raises:
            ValueError: when the mask fits no input, or several.
            TypeError: when it does not hold integers.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
            >>> why = tw.explain(model, torch.randn(3, 1, 4, 4), target=0)
            >>> by_patch = why.grouped(tw.predictions.patches(4, 4, 2)).check()
            >>> by_patch.inputs["input"].shape
            torch.Size([3, 4])
        """
        from .groups import grouped

        return grouped(self, feature_mask)

    def _group(self, kind: str) -> dict[str, Tensor]:
        return {n.partition(":")[2]: p for n, p in self.parts.items() if n.startswith(kind + ":")}

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Relevance of every input by argument name, each of the shape of that input."""
        return self._group("input")

    @property
    def inside(self) -> dict[str, Tensor]:
        """Relevance at the module where the explanation begins, by path, of the shape of its output."""
        return self._group("at")

    def attributions(self) -> Tensor | tuple[Tensor, ...]:
        """The relevance of the inputs as plain tensors, as captum's `attribute` gives it.

        Returns:
            One tensor of the shape of the input where there is one, a tuple in the order of the arguments where there are
            several. Token ids get (batch, tokens).

        Example:
            >>> model, x = torch.nn.Linear(4, 2).eval(), torch.randn(3, 4)
            >>> tw.explain(model, x, target=0).attributions().shape == x.shape
            True
        """
        found = tuple(self.inputs.values())
        return found[0] if len(found) == 1 else found

    def ranking(self, name: str | None = None) -> Tensor:
        """The map that features of an input are ranked by, one number per entry: what `termwise.compare` measures.

        Of an explanation it is the relevance of that input. A method that has a map of its own beside what adds up
        (`termwise.chefer`), or nothing that adds up, gives that map; any result with this method can be compared.

        Args:
            name: of the input; the first when not given.

        Raises:
            ValueError: when there is no such input.
        """
        inputs = self.inputs
        if not inputs or (name is not None and name not in inputs):
            raise ValueError(f"no relevance of input {name or ''}: there is {', '.join(self.parts) or 'none at all'}")
        return inputs[name or next(iter(inputs))]

    @property
    def biases(self) -> dict[str, Tensor]:
        """Relevance of every bias by module path, (batch, *bias shape)."""
        return self._group("bias")

    @property
    def constants(self) -> dict[str, Tensor]:
        """Relevance of every other constant by name, (batch, ...)."""
        return self._group("constant")

    @property
    def losses(self) -> dict[str, Tensor]:
        """What rules lost, by ``op@module path``, (batch,)."""
        return self._group("rule")

    def shares(self) -> dict[str, Float[Tensor, " batch"]]:
        """The share of the whole that inputs, biases, constants and rules carry; each may be negative or above 1.

        They sum to 1 up to the remainder. Where the whole is 0 there are no shares, and the values are NaN.
        """
        begins_inside = any(name.startswith("at:") for name in self.parts)
        sums = {group: torch.zeros_like(self.whole) for group in KINDS.values() if group != "at" or begins_inside}
        for name, value in self.contributions().items():
            sums[KINDS[name.partition(":")[0]]] += value
        whole = torch.where(self.whole == 0, torch.full_like(self.whole, torch.nan), self.whole)
        return {group: value / whole for group, value in sums.items()}

    def passing(self) -> dict[str, Tensor]:
        """How much of the whole passes each of `layers`, of the whole's shape.

        What is missing of the whole belongs to biases and constants behind the layer, was lost by rules there, or went past it.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
            >>> why = tw.explain(model, torch.randn(2, 4), target=1, layers=["0"])
            >>> torch.allclose(why.passing()["0"] + why.contribution("bias:2"), why.whole)
            True
        """
        return {name: value.flatten(self.whole.ndim).sum(-1) for name, value in self.layers.items()}

    def by_module(self) -> dict[str, Float[Tensor, " batch"]]:
        """Contribution of every module: its biases, its constants and what was lost in it. Inputs stand under "input"."""
        modules: dict[str, Tensor] = {}
        for name, value in self.contributions().items():
            kind, _, rest = name.partition(":")
            path = "input" if kind == "input" else rest.rpartition("@")[2]
            modules[path] = modules[path] + value if path in modules else value
        return modules

    def top(self, k: int = 10, sample: int = 0) -> list[tuple[str, float]]:
        """The k largest parts of one sample by absolute value, as (name, contribution).

        An input of tokens counts token by token, as ``"input:input_ids[3] 'happy'"``; every other part as a whole.

        Raises:
            ValueError: when several targets are explained.
        """
        self._one_target("top")
        k = whole_number("k", k)
        found: list[tuple[str, float]] = []
        for name, part in self.parts.items():
            if name.startswith("input:") and part.ndim == 2 and self.names is not None:
                tokens = self.names[sample]
                values = part[sample].tolist()
                if part.shape[1] == max(map(len, self.names)):  # words: not every sample has as many
                    found += [(f"{name}[{i}] {t!r}", v) for i, (t, v) in enumerate(zip(tokens, values, strict=False))]
                    continue
            found.append((name, part[sample].sum().item()))
        return sorted(found, key=lambda item: -abs(item[1]))[:k]

    def label(self, sample: int = 0) -> str:
        """What is explained: the name or index of the target class, or "output"; and against what."""
        if self.whole.ndim == 2:
            return f"{self.whole.shape[1]} {'classes' if self.target is None and self.asked is None else 'targets'}"
        text = (self.asked or ["{}"])[0]
        if self.target is None:
            return text.replace("{}", "output")
        index = int(self.target.reshape(len(self.target), -1)[sample, -1])
        return re.sub(r"\bclass (\d+)", lambda found: self._class(int(found[1])), text.replace("{}", f"class {index}"))

    def _class(self, index: int) -> str:
        return self.classes[index] if self.classes is not None and 0 <= index < len(self.classes) else f"class {index}"

    def _one_target(self, what: str) -> None:
        if self.whole.ndim == 2:
            raise ValueError(f"{self.whole.shape[1]} targets are explained here: choose one, why.only(0).{what}()")

    def summary(self) -> str:
        """One honest line for the first sample: closing, shares, cancellation."""
        if self.whole.ndim == 2:
            return f"{self.label()}, each adds up to {self.error():.1e} (cancellation {self.cancellation():.3g}x)"
        shares = "no shares, the output is exactly 0"
        if len(self) and self.whole[0] != 0:
            shares = ", ".join(f"{group} {round(100 * s[0].item())} %" for group, s in self.shares().items())
        return f"adds up to {self.error():.1e} ({shares}, cancellation {self.cancellation():.3g}x)"

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The words or the image of one sample in colours, the waterfall, and what passes the layers, where it is known.

        Of several targets one after the other.

        Raises:
            ValueError: when there is no such sample.
        """
        if self.whole.ndim == 2:
            return [p for target in range(self.whole.shape[1]) for p in self.only(target).pictures(sample)]
        found = super().pictures(sample)
        if self.layers:
            found.append(passing(self.layers, self.whole, sample))
        if (words := self._words(sample)) is not None:
            return [words, *found]
        with contextlib.suppress(ValueError):  # no input is an image
            found.insert(0, self._pixels(sample))
        return found

    def _pixels(self, sample: int) -> Pixels:
        """The map of the image, and of each layer that has one."""
        pixels = Pixels("", self.heatmap(sample=sample).detach().double().cpu().numpy())
        carried = carried_by_patches(self.layers, self.channels, pixels.values.shape, sample)
        if not carried:
            return pixels
        grids = torch.stack(list(carried.values())).numpy()
        return replace(pixels, layers=short(list(carried)), by_layer=grids, note=f"By layer: {NOTE}")

    def _words(self, sample: int) -> Words | None:
        """The tokens of the input that has one relevance per name."""
        names = self.names or []
        for name, part in self.parts.items():
            if names and name.startswith("input:") and part.ndim == 2 and part.shape[1] == max(map(len, names)):
                tokens = names[sample]
                n = len(tokens)  # grouped by words, samples differ in length
                shown = Words("", tokens, part[sample, :n].tolist())
                layers = {} if self._two_texts(name) else self.layers
                carried = carried_by_tokens(layers, self.channels, part.shape[1], sample)
                if not carried:
                    return shown
                rows = [row[:n] for row in carried.values()]
                return replace(shown, layers=short(list(carried)), by_layer=rows, note=f"By layer: {NOTE}")
        return None

    def _two_texts(self, name: str) -> bool:
        """Whether a layer with as many positions as this text may belong to the other text, of an encoder and a decoder."""
        others = (n for n, p in self.parts.items() if n.startswith("input:") and p.shape == self.parts[name].shape)
        return len({n.startswith("input:decoder_") for n in others}) > 1

    def heatmap(self, name: str | None = None, sample: int = 0) -> Float[Tensor, "height width"]:
        """Relevance of one image summed over its channels.

        Relevance at an inner module of a convolutional network is spread over the image: every entry of the smaller map
        keeps its relevance, and gives it to the pixels by the weights of bilinear interpolation, so that the sum stays.

        Args:
            name: the image input (shape (batch, channels, height, width)) or module path; the first such when not given.
            sample: which sample.

        Raises:
            ValueError: when no input has the shape of images, or several targets are explained.
        """
        self._one_target("heatmap")
        images: dict[str, Any] = {n: p for n, p in {**self.inside, **self.inputs}.items() if p.ndim == 4}
        if not images or (name is not None and name not in images):
            shapes = ", ".join(f"{n} {tuple(p.shape)}" for n, p in self.inputs.items())
            wanted = "no input is" if name is None else f"{name!r} is no input that is"
            raise ValueError(f"{wanted} an image (batch, channels, height, width): there are {shapes or 'none'}")
        name = name or next(iter(images))
        small = images[name][sample].sum(self.channels.get(name, -3))
        return small if name not in self.inside or self.picture is None else enlarged(small, self.picture)
