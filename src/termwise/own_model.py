"""A user's own model as a subject: `path/to/file.py:factory`, with its weights from safetensors.

The file is Python and is run. Weights are data and are never unpickled.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from termwise import zoo
from termwise.zoo import Subject
from termwise.zoo.errors import no_file
from termwise.zoo.pictures import PicturePreparation

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["is_own", "load", "load_weights", "named_or_own", "read_names", "sources"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, on a scale of 0..1: what most image models were trained with."""


def is_own(model: str) -> bool:
    """Whether "path/to/file.py:factory" is meant and no model of the zoo."""
    return ":" in model or model.endswith(".py")


def named_or_own(model: str, weights: Path | None, classes: Path | None, size: int | None) -> Subject:
    """A model of the zoo by its name, or the user's own by its file and factory.

    Args:
        model: a key of `zoo.subjects`, or "path/to/file.py:factory", which is run.
        weights: as of `load`.
        classes: a file of names, one per line.
        size: as of `load`; 224 when not given.

    Raises:
        ValueError: what is for one's own model was given for one of the zoo; else as `load` and `zoo.load`.
    """
    if is_own(model):
        names = None if classes is None else read_names(classes)
        return load(model, weights, classes=names, size=224 if size is None else size)
    if weights is not None or classes is not None or size is not None:
        raise ValueError(
            f"--weights, --classes and --size are for a model of your own (path/to/file.py:factory); {model} has its own"
        )
    return zoo.load(model)


def load(spec: str, weights: str | Path | None = None, *, classes: Sequence[str] | None = None, size: int = 224) -> Subject:
    """The subject that a factory in a file makes. Runs the file.

    Args:
        spec: "path/to/file.py:factory". The factory takes no arguments and returns a module that takes pictures
            (1, 3, size, size) and gives (1, classes), or a `termwise.zoo.Subject` with a preparation of its own (texts,
            another normalisation).
        weights: a safetensors file with exactly the model's keys.
        classes: names of the outputs; "class 0", "class 1", ... when not given.
        size: side of the picture; pictures are resized, cut from the centre and normalised as usual for ImageNet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such factory, a file or factory that raises, weights that do not fit, outputs that are no classes.
        TypeError: the factory gives something else.
    """
    path, _, name = spec.rpartition(":")
    if not path or not path.endswith(".py"):
        raise ValueError(f"a model of your own is given as path/to/file.py:factory, got {spec!r}")
    with _neighbours(Path(path)):
        factory = _factory(Path(path), name)
        try:
            made = factory()
        except Exception as problem:  # whatever it is, it comes from the user's file
            raise ValueError(f"{spec} raised {_told(problem)}") from problem
    model = made.model if isinstance(made, Subject) else made
    if not isinstance(model, nn.Module):
        raise TypeError(f"{spec} gave a {type(made).__name__}: it must return a torch.nn.Module or a termwise.zoo.Subject")
    if weights is not None:
        load_weights(model, Path(weights))
    model.eval()
    if isinstance(made, Subject):
        return made
    preparation = PicturePreparation(resize=round(size * 8 / 7), crop=size, mean=MEAN, std=STD)
    count = _outputs(model, size)
    if classes is not None and len(classes) != count:
        raise ValueError(f"there are {len(classes)} class names for {count} outputs")
    names = list(classes) if classes is not None else [f"class {i}" for i in range(count)]
    return Subject(name, model, preparation, names, "your own")


def sources(spec: str) -> dict[str, Path]:
    """The file of a model of one's own, and the modules beside it that it imports, and those that these import.

    They are found by reading, not by running: not those whose names are put together, nor what is loaded in other ways.

    Args:
        spec: "path/to/file.py:factory".

    Returns:
        Path, relative to the file's folder -> file; the one that was named first.
    """
    path = Path(spec.rpartition(":")[0]).resolve()
    finder = ModuleFinder(path=[str(path.parent)])
    finder.run_script(str(path))
    beside = sorted(Path(module.__file__) for module in finder.modules.values() if module.__file__)
    return {file.relative_to(path.parent).as_posix(): file for file in (path, *beside)}


def read_names(path: Path) -> list[str]:
    """Names of classes, one per line; empty lines do not count.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no text in UTF-8.
    """
    if not path.is_file():
        raise no_file("class names", path)
    try:
        text = path.read_text("utf-8-sig")  # some editors begin a file with a mark, which is no part of the first name
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is no UTF-8 text ({problem.reason} at byte {problem.start}): save it as UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file whose keys are exactly the model's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a pickle or another format (with what to do); missing, extra or misshapen keys, or whole numbers where
            the model has floating ones (named).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise no_file("weights", path)
    try:
        state = load_file(path)
    except SafetensorError as problem:
        with path.open("rb") as file:
            start = file.read(4)
        pickled = start[:2] == b"PK" or start[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".bin", ".pkl")
        if not pickled:
            raise ValueError(f"{path} is no safetensors file, or a damaged one: {problem}") from None
        raise ValueError(
            f"{path} is a pickle, which can run code when it is opened: refused. If you trust it, convert it once:\n"
            f"  from safetensors.torch import save_file\n"
            f"  save_file(torch.load({path.name!r}, weights_only=True), {path.stem + '.safetensors'!r})"
        ) from None
    own = model.state_dict()
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    # a tied weight is stored once; it counts as there when the tensor it shares is
    missing = [
        k for k in missing if not any(own[k].data_ptr() == own[s].data_ptr() and own[k].numel() for s in state if s in own)
    ]
    both = [(k, state[k], own[k]) for k in own if k in state]
    wrong = [f"{k} {tuple(a.shape)} for {tuple(b.shape)}" for k, a, b in both if a.shape != b.shape]
    # another precision is rounded, which is meant; the integers of a quantised file would be taken at face value
    kind = [f"{k} {a.dtype} for {b.dtype}" for k, a, b in both if a.is_floating_point() != b.is_floating_point()]
    if missing or extra or wrong or kind:
        problems = [("missing", missing), ("not in the model", extra), ("of another shape", wrong), ("of another kind", kind)]
        text = "; ".join(f"{what}: {_few(keys)}" for what, keys in problems if keys)
        raise ValueError(f"the weights in {path} do not fit {type(model).__name__}: {text}")
    model.load_state_dict(state, strict=False)  # strict but for tied keys, checked above


def _told(problem: Exception) -> str:
    """An error of the user's own code, with the line it came from."""
    frames = traceback.extract_tb(problem.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(problem).__name__}: {problem}{where}"


def _few(keys: Sequence[str], k: int = 6) -> str:
    return ", ".join(keys[:k]) + (f" and {len(keys) - k} more" if len(keys) > k else "")


@contextmanager
def _neighbours(path: Path) -> Iterator[None]:
    """The file, and its factory, may import what lies beside it."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _factory(path: Path, name: str) -> Any:
    """The function of that name in a file, which is run as a module of its own."""
    if not path.is_file():
        raise no_file("model", path)
    spec = importlib.util.spec_from_file_location(f"termwise_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be read as Python")
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as problem:
        raise ValueError(f"{problem.filename or path}, line {problem.lineno}: {problem.msg}") from problem
    except Exception as problem:  # whatever it is, it comes from the user's file
        raise ValueError(f"{path} cannot be run: {_told(problem)}") from problem
    found = {n: v for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == spec.name}
    if name not in found:
        raise ValueError(f"{path} has no function {name!r}; it has {_few(list(found)) or 'none'}")
    return found[name]


def _outputs(model: nn.Module, size: int) -> int:
    """How many classes the model gives."""
    first = next(model.parameters(), torch.zeros(()))
    picture = torch.zeros(1, 3, size, size, dtype=first.dtype, device=first.device)
    try:
        with torch.no_grad():
            output = model(picture)
    except Exception as problem:  # whatever it is, it comes from the user's model
        raise ValueError(
            f"{type(model).__name__} does not take a picture (1, 3, {size}, {size}): {_told(problem)}. Choose another --size, "
            "or let the factory return a termwise.zoo.Subject with its own preparation"
        ) from problem
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"{type(model).__name__} gives {shape}, not scores (1, classes): wrap it so that it does")
    return output.shape[1]
