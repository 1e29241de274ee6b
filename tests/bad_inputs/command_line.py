"""What the command line refuses: one line, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = ["COMMANDS", "Command"]

FACTORY = """
from torch import nn
def factory():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
def forgetful():
    nn.Linear(3, 4)
def broken():
    return nn.Linear(3, "four")
def vector():
    return nn.Linear(3, 4)
def map():
    return nn.Conv2d(3, 4, 1)
"""


class Command(NamedTuple):
    """One command, one cause.

    Attributes:
        verb: the command.
        cause: what is bad.
        arguments: the words after the command, from an empty folder.
        says: what must be said; "..." stands for what differs.
    """

    verb: str
    cause: str
    arguments: Callable[[Path], list[str]]
    says: str


def own(folder: Path, factory: str = "factory") -> list[str]:
    """A model of one's own."""
    (folder / "own.py").write_text(FACTORY)
    return ["--model", f"{folder / 'own.py'}:{factory}"]


def picture(folder: Path, name: str = "a.png") -> str:
    """A picture that can be read."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
    return str(folder / name)


def text(folder: Path, content: str = "no picture", name: str = "a.txt") -> str:
    """A file of text."""
    (folder / name).write_text(content)
    return str(folder / name)


# fmt: off
COMMANDS = [
    Command("explain", "neither picture nor text", lambda f: own(f),
            "error: give either --image or --text"),
    Command("explain", "picture and text", lambda f: [*own(f), "--image", picture(f), "--text", "a"],
            "error: give either --image or --text"),
    Command("explain", "a text for a model of pictures", lambda f: [*own(f), "--text", "a"],
            "error: FOLDER/own.py:factory takes a picture: give --image"),
    Command("explain", "an unknown model", lambda f: ["--model", "mobilenet-v3", "--image", picture(f)],
            "error: unknown model 'mobilenet-v3': did you mean 'mobilenet-v2'? There are: mobilenet-v2, "
            "efficientnet-lite0, nanoguard, minilm, minilm-sentiment, smollm2-135m"),
    Command("explain", "a path for a name", lambda f: ["--model", "../../etc/passwd", "--image", picture(f)],
            "error: unknown model '../../etc/passwd': There are: mobilenet-v2, efficientnet-lite0, nanoguard, minilm, "
            "minilm-sentiment, smollm2-135m"),
    Command("explain", "no model file", lambda f: ["--model", f"{f}/none.py:factory", "--image", picture(f)],
            "error: no model file 'FOLDER/none.py'"),
    Command("explain", "no such factory", lambda f: [*own(f, "factori"), "--image", picture(f)],
            "error: FOLDER/own.py has no function 'factori'; it has factory, forgetful, broken, vector, map"),
    Command("explain", "a model file without a factory", lambda f: [own(f)[0], f"{f}/own.py", "--image", picture(f)],
            "error: a model of your own is given as path/to/file.py:factory, got 'FOLDER/own.py'"),
    Command("explain", "a factory that returns nothing", lambda f: [*own(f, "forgetful"), "--image", picture(f)],
            "error: FOLDER/own.py:forgetful gave a NoneType: it must return a torch.nn.Module or a termwise.zoo.Subject"),
    Command("explain", "a factory that raises", lambda f: [*own(f, "broken"), "--image", picture(f)],
            "error: FOLDER/own.py:broken raised TypeError: ..."),
    Command("explain", "a model that takes no pictures", lambda f: [*own(f, "vector"), "--image", picture(f), "--size", "8"],
            "error: Linear does not take a picture (1, 3, 8, 8): RuntimeError: .... Choose another --size, or let the "
            "factory return a termwise.zoo.Subject with its own preparation"),
    Command("explain", "a model without classes", lambda f: [*own(f, "map"), "--image", picture(f), "--size", "8"],
            "error: Conv2d gives (1, 4, 8, 8), not scores (1, classes): wrap it so that it does"),
    Command("explain", "no picture file", lambda f: [*own(f), "--image", f"{f}/none.jpg"],
            "error: no picture file 'FOLDER/none.jpg'"),
    Command("explain", "text in place of a picture", lambda f: [*own(f), "--image", text(f)],
            "error: 'FOLDER/a.txt' cannot be read as a picture (JPEG, ...): ..."),
    Command("explain", "a class that is not there", lambda f: [*own(f), "--image", picture(f), "--target", "cat"],
            "error: factory has no class 'cat' among 4: none is near"),
    Command("explain", "a number of no class", lambda f: [*own(f), "--image", picture(f), "--target", "9"],
            "error: target 9 is out of range: the output has 4 classes, 0 to 3"),
    Command("explain", "an unknown rule set", lambda f: [*own(f), "--image", picture(f), "--rules", "epsilonn"],
            "error: unknown rules 'epsilonn': did you mean 'epsilon'?"),
    Command("explain", "no weights file", lambda f: [*own(f), "--image", picture(f), "--weights", f"{f}/none.safetensors"],
            "error: no weights file 'FOLDER/none.safetensors'"),
    Command("explain", "weights that are text", lambda f: [*own(f), "--image", picture(f), "--weights", text(f)],
            "error: FOLDER/a.txt is no safetensors file, or a damaged one: ..."),
    Command("explain", "weights for a model of the zoo",
            lambda f: ["--model", "mobilenet-v2", "--image", picture(f), "--weights", text(f)],
            "error: --weights, --classes and --size are for a model of your own (path/to/file.py:factory); mobilenet-v2 "
            "has its own"),
    Command("explain", "classes for other outputs", lambda f: [*own(f), "--image", picture(f), "--classes", text(f)],
            "error: there are 1 class names for 4 outputs"),
    Command("explain", "a size of nothing", lambda f: [*own(f), "--image", picture(f), "--size", "0"],
            "Usage: ...Invalid value for '--size'..."),
    Command("explain", "a page in a folder's place", lambda f: [*own(f), "--image", picture(f), "--out", str(f)],
            "error: cannot write FOLDER: it is a folder; name a file in it, as FOLDER/why.html"),
    Command("explain", "a page below a file", lambda f: [*own(f), "--image", picture(f), "--out", text(f) + "/a.html"],
            "error: cannot write FOLDER/a.txt/a.html: ...; choose another place with --out"),
    Command("explain", "an unknown option", lambda f: [*own(f), "--picture", picture(f)],
            "Usage: ...No such option: --picture..."),
    Command("compare", "an unknown method", lambda f: [*own(f), "--image", picture(f), "--methods", "smoothgrat"],
            "error: unknown method 'smoothgrat': did you mean 'smoothgrad'?"),
    Command("compare", "no method", lambda f: [*own(f), "--image", picture(f), "--methods", ","],
            "error: methods is empty: there is nothing to compare"),
    Command("compare", "a patch of nothing", lambda f: [*own(f), "--image", picture(f), "--patch", "0"],
            "Usage: ...Invalid value for '--patch'..."),
    Command("compare", "neither picture nor text", lambda f: own(f),
            "error: give either --image or --text"),
    Command("coverage", "an unknown model", lambda f: ["--model", "smollm"],
            "error: unknown model 'smollm': did you mean 'smollm2-135m'? There are: mobilenet-v2, efficientnet-lite0, "
            "nanoguard, minilm, minilm-sentiment, smollm2-135m"),
    Command("coverage", "no model", lambda f: [],
            "Usage: ...Missing option '--model'..."),
    Command("expand", "a negative order", lambda f: [*own(f), "--image", picture(f), "--order", "-1"],
            "Usage: ...Invalid value for '--order'..."),
    Command("expand", "a word for the order", lambda f: [*own(f), "--image", picture(f), "--order", "four"],
            "Usage: ...Invalid value for '--order'..."),
    Command("expand", "at 0", lambda f: [*own(f), "--image", picture(f), "--at", "0"],
            "error: at says how far to go along the direction, and is finite and not 0; got 0.0"),
    Command("expand", "at NaN", lambda f: [*own(f), "--image", picture(f), "--at", "nan"],
            "error: at says how far to go along the direction, and is finite and not 0; got nan"),
    Command("expand", "to a picture from a text", lambda f: [*own(f), "--text", "a", "--to", picture(f)],
            "error: --to goes from one picture to another: give --image"),
    Command("expand", "a number of no class", lambda f: [*own(f), "--image", picture(f), "--target", "9"],
            "error: target 9 is none of (4,) scores"),
    Command("expand", "a drawing of no kind", lambda f: [*own(f), "--image", picture(f), "--size", "8", "--out", f"{f}/a.docx"],
            "error: --out FOLDER/a.docx is drawn by its suffix, one of .png, .svg, .pdf, .jpg"),
    Command("expand", "a seed beyond 64 bits", lambda f: [*own(f), "--image", picture(f), "--seed", str(2**70)],
            "Usage: ...Invalid value for '--seed'..."),
    Command("compress", "no data", lambda f: [*own(f), "--data", f"{f}/none", "--out", f"{f}/small"],
            "error: --data FOLDER/none does not exist"),
    Command("compress", "a folder without pictures", lambda f: [*own(f), "--data", str(f), "--out", f"{f}/small"],
            "error: --data FOLDER has no pictures (.jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff, .avif, .jp2)"),
    Command("compress", "a folder of something else", lambda f: [*own(f), "--data", picture(f), "--out", str(f)],
            "error: --out FOLDER exists and holds something else than a compressed model: choose another folder"),
    Command("compress", "a budget above 1", lambda f: [*own(f), "--data", picture(f), "--out", f"{f}/small", "--budget", "2"],
            "error: budget is the share of the params to keep, up to 1, got 2.0: for one half write budget=0.5"),
    Command("compress", "a budget of NaN", lambda f: [*own(f), "--data", picture(f), "--out", f"{f}/small", "--budget", "nan"],
            "error: budget is a positive number, got nan"),
    Command("compress", "an unknown unit", lambda f: [*own(f), "--data", picture(f), "--out", f"{f}/small", "--unit", "param"],
            "error: unit is one of params, flops, bytes, latency, error, got 'param'"),
    Command("compress", "an unknown method",
            lambda f: [*own(f), "--data", picture(f), "--out", f"{f}/small", "--method", "svdd"],
            "error: unknown method 'svdd': did you mean 'svd'? There are: auto, alds, aware, afm, asvd, cp, cur, lord, "
            "prune, rom, svd, tucker, welore, welore-aware"),
    Command("compress", "no sample", lambda f: [*own(f), "--data", picture(f), "--out", f"{f}/small", "--samples", "0"],
            "Usage: ...Invalid value for '--samples'..."),
    Command("papers", "an unknown room", lambda f: ["--room", "wieghts"],
            "error: no paper in a room 'wieghts': rooms are computation, functions, layers, optimizers, predictions, "
            "weights"),
    Command("verify", "an unknown paper", lambda f: ["multistagee"],
            "error: no paper 'multistagee': did you mean 'multistage'?"),
    Command("verify", "nothing said", lambda f: [],
            "error: say what to verify: keys of papers, --room ROOM or --all"),
    Command("verify", "an unknown room", lambda f: ["--room", "wieghts"],
            "error: no room 'wieghts' with claims: known are computation, functions, layers, optimizers, predictions, "
            "weights"),
    Command("models", "an unknown option", lambda f: ["--jsn"],
            "Usage: ...No such option: --jsn..."),
    Command("demo", "a file in place of a folder", lambda f: ["--out", text(f)],
            "error: cannot write FOLDER/a.txt/index.html: ...; choose another place with --out"),
    Command("demo", "a folder below a file", lambda f: ["--out", text(f) + "/demo"],
            "error: cannot write FOLDER/a.txt/demo/index.html: ...; choose another place with --out"),
]
# fmt: on
