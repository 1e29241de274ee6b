"""`import termwise` costs next to nothing, and the eager switch shows CI what is broken behind it."""

import json
import os
import subprocess
import sys

BUDGET = 0.2
"""Seconds that `import termwise` may add to `import torch`."""


def fresh(code: str, **environment: str):
    """What the code prints (JSON) in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_adds_little_to_torch():
    code = """
import json, time
import torch
started = time.perf_counter()
import termwise
print(json.dumps(time.perf_counter() - started))
"""
    # the least of three: other tests run beside this one, and we measure the import and not them
    assert min(fresh(code) for _ in range(3)) < BUDGET


def test_nothing_heavy_is_imported_before_it_is_used():
    code = """
import json, sys
import termwise
first = sorted({name.partition(".")[0] for name in sys.modules})
termwise.explain
print(json.dumps([first, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
    at_import, at_first_use = fresh(code)
    assert not {"torch", "numpy", "rich", "typer"} & set(at_import)
    assert "torch" in at_first_use  # the control: the list does see what is imported
    assert not {"transformers", "matplotlib", "pandas", "sklearn", "skimage", "xarray"} & set(at_first_use)


def test_the_eager_switch_imports_every_room():
    code = """
import json, sys
import termwise
print(json.dumps([[name in vars(termwise) for name in termwise.__all__], sorted(termwise.__all__)]))
"""
    there, names = fresh(code, TERMWISE_EAGER="1")
    assert all(there), [name for name, here in zip(names, there, strict=True) if not here]
    lazily, _ = fresh(code, TERMWISE_EAGER="")
    assert not all(lazily)
