"""What every test and every doctest runs under: no network, one thread per process, seeded.

It stands at the root, and not in `tests`, because the doctests of `src` need it too.
"""

from __future__ import annotations

import os
from typing import Any

# before torch and the tokenizers are imported (hence E402 below): they read these once
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(_name, _value)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import termwise  # noqa: E402

# Rooms first. pytest would import `predictions/explain.py` by its path, a second time, and put that module where the face
# has the function `explain`.
for _room in termwise._ROOMS:
    getattr(termwise, _room)

# derandomized: a red test is red again on the next run. No deadline: the first call of an operator is slow.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
# to look further than CI does: HYPOTHESIS_PROFILE=search make test
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace: dict[str, Any]) -> None:
    """Examples in docstrings begin where a user is after the two usual imports."""
    doctest_namespace.update(torch=torch, tw=termwise)
