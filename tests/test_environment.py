"""What must not be installed: torchvision, and the packages of CUDA builds. Also run by `make`, after installing.

torchvision breaks transformers beside a CPU build of torch, and some package always wants to bring it along.
"""

import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

UNWANTED = re.compile(r"torchvision|triton|pytorch[-_]triton.*|nvidia[-_].*|cuda[-_].*", re.IGNORECASE)

REMEDY = (
    "These packages do not belong here: {found}. Remove .venv and install again, with a CPU build of torch:\n"
    "    make test TORCH_INDEX=https://download.pytorch.org/whl/cpu"
)


def unwanted(names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if UNWANTED.fullmatch(name)})


def installed() -> list[str]:
    return [d.name for d in metadata.distributions()]


def test_nothing_unwanted_is_installed():
    found = unwanted(installed())
    assert not found, REMEDY.format(found=", ".join(found))


def test_the_check_sees_what_it_is_for():
    assert {"torch", "termwise"} <= {name.lower() for name in installed()}
    assert unwanted(["torch", "torchvision", "numpy", "nvidia-cublas-cu12", "nvidia_nccl_cu13", "triton", "cuda-bindings"]) == [
        "cuda-bindings", "nvidia-cublas-cu12", "nvidia_nccl_cu13", "torchvision", "triton",
    ]  # fmt: skip


def test_the_constraints_pin_what_runs():
    """`make` and CI install what is written down; a drift between the two is found here."""
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    pins = dict(line.strip().lower().split("==") for line in lines if "==" in line)
    torch = metadata.version("torch").partition("+")[0]
    assert pins["torch"] == torch
    assert not [name for name in pins if UNWANTED.fullmatch(name)]


if __name__ == "__main__":
    if found := unwanted(installed()):
        sys.exit(REMEDY.format(found=", ".join(found)))
