"""Compressed models as files: weights as safetensors, what became of which layer as JSON, and no code to run.

A folder holds `compressed.safetensors` (every tensor of the model), `buffers.safetensors` (what it keeps beside them, which a
config would make in another precision), `recipe.json` (what each layer became, and the account of it), `low_rank_linear.py`
(the modules that are not torch's, needing torch alone), `README.md` (how it is read), and `config.json` where transformers wrote
one. The weights do not have the name that `from_pretrained` of transformers looks for: it knows nothing of the recipe, and would
fill the replaced layers with random numbers.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from termwise.core import one_file

from . import low_rank_linear
from .layers import put, sharing_copy
from .recipe import construct, describe

if TYPE_CHECKING:
    from .compressed import Compressed

__all__ = ["load_compressed", "rebuild", "save", "with_recipe"]

FORMAT = 1
LONGEST = 64 * 2**20
"""Bytes of a recipe that are read; one of ten thousand layers has a few million."""

WEIGHTS, BUFFERS = "compressed.safetensors", "buffers.safetensors"
README = """# A compressed model

Layers of it were replaced by products of smaller ones, as `recipe.json` has it. It is read with

    import termwise as tw

    model = tw.load_compressed("this folder")  # of a model that is none of transformers: load_compressed(folder, model)

`from_pretrained` does not know the replaced layers, and finds no weights here.
"""


def save(compressed: Compressed, folder: str | Path) -> Path:
    """Write a compressed model. The folder appears when it is complete, and an older one of ours is replaced then.

    Args:
        compressed: what to write.
        folder: where to.

    Raises:
        FileExistsError: when the folder exists and is none that was written so.
        OSError: when it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "recipe.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and holds something else than a compressed model: choose another folder")
    account = {
        name: getattr(compressed, name)
        for name in ("method", "unit", "budget", "kept", "predicted", "measured", "selected", "gap", "metric", "before")
    }
    account = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in account.items()}
    recipe = {
        "format": FORMAT,
        "replaced": _replaced(compressed.model, compressed.parts),
        "account": account | {"layers": [asdict(row) for row in compressed.layers], "left": dict(compressed.left)},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        _write(compressed.model, recipe, made)
        config = getattr(compressed.model, "config", None)
        if hasattr(config, "to_dict"):
            named = config.to_dict() | {"architectures": [type(compressed.model).__name__]}
            (made / "config.json").write_text(json.dumps(named, indent=1, default=str), encoding="utf-8")
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        made.rename(folder)
    return folder


def _replaced(model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """What became of layers, by path."""
    replaced: dict[str, Any] = {}
    first: dict[int, str] = {}
    for name in names:
        module = model.get_submodule(name)
        same = first.setdefault(id(module), name)
        replaced[name] = describe(module) if same == name else {"same": same}
    return replaced


def _write(model: nn.Module, recipe: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file, save_model

    save_model(model, str(folder / WEIGHTS))
    stored = model.state_dict()
    beside = {name: buffer.detach().clone().contiguous() for name, buffer in model.named_buffers() if name not in stored}
    if beside:
        save_file(beside, str(folder / BUFFERS))
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    shutil.copy(low_rank_linear.__file__, folder / "low_rank_linear.py")
    if not (folder / "README.md").exists():
        (folder / "README.md").write_text(README, encoding="utf-8")


def with_recipe(model: nn.Module, names: Iterable[str]) -> None:
    """Have `save_pretrained` of a model of transformers write what became of these layers too; other models have none."""
    names = tuple(names)
    if names and hasattr(type(model), "save_pretrained"):
        model.save_pretrained = functools.partial(_save_pretrained, model, names)


def _save_pretrained(model: nn.Module, names: tuple[str, ...], save_directory: str | Path, **options: Any) -> None:
    """What the host writes, its weights in our file, and the recipe.

    Raises:
        ValueError: for what would go to the hub without the recipe.
    """
    if options.get("push_to_hub"):
        raise ValueError("push_to_hub would go without the recipe of the replaced layers: save first, and upload the folder")
    folder = Path(save_directory)
    type(model).save_pretrained(model, folder, **options)  # type: ignore[operator]
    for path in [*folder.glob("model*.safetensors"), *folder.glob("model*.safetensors.index.json")]:
        path.unlink()
    _write(model, {"format": FORMAT, "replaced": _replaced(model, names), "account": {}}, folder)


def load_compressed(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a compressed model. Runs no code from the folder.

    Args:
        folder: as it was given to `save`, or to `save_pretrained` of a compressed model of transformers.
        model: of the architecture that was compressed, with any weights; it is not changed. Left out for a model of transformers,
            which is made from the folder's config.json.

    Returns:
        The model in evaluation mode, equal to the one that was saved to the last bit.

    Raises:
        FileNotFoundError: when there is no compressed model.
        ValueError: when the folder cannot be read, is newer than this version, or the model does not fit it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be a path, got {type(folder).__name__}")
    folder = Path(folder)
    if model is None:
        model = _from_config(folder)
    recipe = _read(folder)
    small = _rebuilt(model, recipe)
    try:
        stored = load_file(_weights(folder))
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"the weights in {folder} do not fit this model: {problem}") from None
    kept = {name for names in _ties(small).values() for name in names} | set(small.state_dict())
    if strange := sorted(set(stored) - kept):
        raise ValueError(f"the weights in {folder} do not fit this model: it has no {', '.join(strange[:3])}")
    for name, places in _ties(small).items():  # the weights of `model` stay its own
        parameter = small.get_parameter(name)
        tensor = next((stored[place] for place in places if place in stored), None)
        if tensor is None or tensor.shape != parameter.shape:
            found = "nothing" if tensor is None else tuple(tensor.shape)
            raise ValueError(f"the weights in {folder} do not fit this model: {name} is {tuple(parameter.shape)}, found {found}")
        own = nn.Parameter(tensor, parameter.requires_grad)  # of the dtype that was saved
        for place in places:
            parent, _, leaf = place.rpartition(".")
            setattr(small.get_submodule(parent), leaf, own)
    beside = load_file(folder / BUFFERS) if (folder / BUFFERS).is_file() else {}
    for name, buffer in list(small.named_buffers()):
        parent, _, leaf = name.rpartition(".")
        found = (stored | beside).get(name, buffer)
        if found.shape != buffer.shape or found.is_meta:
            raise ValueError(
                f"the weights in {folder} do not fit this model: {name} is {tuple(buffer.shape)}, found {tuple(found.shape)}"
            )
        small.get_submodule(parent)._buffers[leaf] = found.detach().clone()
    with_recipe(small, recipe["replaced"])
    return small.eval()


def rebuild(model: nn.Module, folder: str | Path) -> nn.Module:
    """The small architecture of a recipe, over the tensors of a model where layers stayed, empty where they were replaced.

    Raises:
        FileNotFoundError: when there is no recipe.
        ValueError: when it cannot be read, or names layers that the model does not have.
    """
    recipe = _read(Path(folder))
    small = _rebuilt(model, recipe)
    for name in recipe["replaced"]:
        module = small.get_submodule(name)
        if any(tensor.is_meta for tensor in module.parameters()):
            module.to_empty(device="cpu")
    return small


def _rebuilt(model: nn.Module, recipe: Any) -> nn.Module:
    """The small architecture, on the meta device where layers were replaced."""
    small = sharing_copy(model)
    for name, plan in recipe["replaced"].items():
        same = plan.get("same") if isinstance(plan, dict) else None
        try:
            small.get_submodule(name)
            made = small.get_submodule(same) if isinstance(same, str) else construct(plan)
        except AttributeError:
            raise ValueError(
                f"the recipe replaces {name!r}, which this model does not have: give the model it was made of"
            ) from None
        put(small, name, made)
    return small


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no compressed model (no recipe.json)")
    if path.stat().st_size > LONGEST:
        raise ValueError(f"{path} is no recipe of a compressed model: it has {path.stat().st_size:,} bytes")
    try:
        recipe = json.loads(path.read_text("utf-8"))
        found = recipe["format"] + 0  # a number
        recipe["replaced"].items()
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"{path} is no recipe of a compressed model ({type(problem).__name__}: {problem})") from None
    one_file.refuse_newer(path, found, FORMAT)
    return recipe  # type: ignore[no-any-return]


def _weights(folder: Path) -> Path:
    """Their file, which had another name once."""
    return folder / (WEIGHTS if (folder / WEIGHTS).is_file() else "model.safetensors")


def _ties(model: nn.Module) -> dict[str, list[str]]:
    """Every name of each parameter, under its first."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(first.setdefault(id(parameter), name), []).append(name)
    return names


def _from_config(folder: Path) -> nn.Module:
    """An empty model of transformers, of its own classes alone."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give the model that was compressed, load_compressed(folder, model)")
    import transformers
    from safetensors import SafetensorError, safe_open

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as problem:  # transformers raises what it likes for a config that is none
        said = (str(problem).strip().splitlines() or [""])[0][:200]
        raise ValueError(
            f"{folder}/config.json is no config of a model of transformers ({type(problem).__name__}: {said})"
        ) from None
    names = config.architectures
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    made = getattr(transformers, name, None)
    if not (isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)):
        raise ValueError(
            f"{folder}/config.json names the architecture {name!r}, which transformers does not have: give the model"
        )
    try:
        with safe_open(_weights(folder), framework="pt") as file:
            held = len(file.keys())
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"the weights in {folder} cannot be read: {problem}") from None
    layers = getattr(config, "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > held:
        raise ValueError(f"{folder}/config.json claims {layers} layers and the weights are {held} tensors: it is damaged")
    with torch.random.fork_rng(devices=[]):
        return made(config)  # type: ignore[no-any-return]
