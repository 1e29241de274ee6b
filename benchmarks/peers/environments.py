"""One virtual environment per peer, under a cache folder: what is pinned there never meets ours.

A peer's environment sees our packages (torch, numpy) behind its own, by a .pth file, so that it holds the peer alone.
torchvision is in none: zennit and LXT import it, and get a stub in their own process.
"""

import subprocess
import sys
import sysconfig
import types
import venv
from importlib.machinery import ModuleSpec
from pathlib import Path

from torch import nn

OURS = "ours"
PINS = {
    OURS: [],
    "captum": [],  # a development dependency of ours
    "zennit": ["zennit==0.5.1"],
    "lxt": ["lxt==2.1", "zennit==0.5.1", "transformers==4.51.3", "tokenizers==0.21.4", "huggingface_hub==0.36.0"],
    "inseq": ["inseq==0.7.1", "treescope==0.1.10"],
    "dynamiclrp": ["einops==0.8.1"],  # beside its repository
}
DYNAMICLRP = ("https://github.com/keeinlev/dynamicLRP", "0535f39e24c9b0a7e29c8d391dc2c8b490e95b22")


def python(peer: str, folder: Path, pins: list[str] | None = None) -> Path:
    """The interpreter of a peer's environment, made when it is not there yet; ours where nothing is pinned."""
    pins = PINS[peer] if pins is None else pins
    if not pins:
        return Path(sys.executable)
    home = folder / peer
    interpreter = home / "bin" / "python"
    done = home / "installed.txt"
    if done.exists() and done.read_text().split() == pins:
        return interpreter
    venv.create(home, clear=True, with_pip=False)
    packages = next(home.glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), *pins]
    subprocess.run(install, check=True, capture_output=True, text=True)
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done.write_text(" ".join(pins))
    return interpreter


def clone(folder: Path) -> Path:
    """The repository of DynamicLRP at a fixed commit; raises where there is no network."""
    url, commit = DYNAMICLRP
    home = folder / "dynamiclrp-repository"
    if not (home / ".git").exists():
        subprocess.run(
            ["git", "clone", "-q", "--no-checkout", url, str(home)], check=True, capture_output=True, text=True, timeout=120
        )
    subprocess.run(
        ["git", "-C", str(home), "checkout", "-q", commit, "--", "src/lrp_engine"], check=True, capture_output=True, text=True
    )
    return home


def stub_torchvision() -> None:
    """Empty modules under the names that zennit and LXT import. Only ever in their own process."""
    classes = {
        "torchvision": (),
        "torchvision.models": (),
        "torchvision.models.resnet": ("ResNet", "BasicBlock", "Bottleneck"),
        "torchvision.models.vgg": ("VGG",),
        "torchvision.models.vision_transformer": ("VisionTransformer", "EncoderBlock", "Encoder", "MLPBlock", "MLP"),
    }
    for name, members in classes.items():
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []  # type: ignore[attr-defined]
        for member in members:
            setattr(module, member, type(member, (), {}))
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        module.nn = nn  # type: ignore[attr-defined]
        if parent:
            setattr(sys.modules[parent], last, module)
