"""Page faults and memory of a process of its own, since an allocator is the whole process's."""

import json
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource
import torch
from termwise.engine.allocator import give_back, keep_freed

def batch():
    parts = [torch.ones(6_000_000, dtype=torch.float64) for _ in range(4)]  # 48 MB each, and freed
    parts += [torch.ones(300_000, dtype=torch.float64) for _ in range(20)]
    return sum(p.sum() for p in parts)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        batch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def megabytes():
    return 4096 * int(open("/proc/self/statm").read().split()[1]) / 1e6

torch.set_num_threads(1)
batch()
found = {"plain": faults()}
keep_freed()
batch()
found |= {"kept": faults(), "held": megabytes()}
give_back()
after = megabytes()
print(json.dumps(found | {"after": after, "afterwards": faults()}))
"""


def watched(said):
    """What the program found, in an environment that says this and nothing else of allocators."""
    about = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(about)} | said
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_what_is_freed_is_kept_for_the_next_batch_and_given_back_at_the_end() -> None:
    found = watched({})
    assert found["plain"] > 5 * 200e6 / (1 << 21)  # one fault for a page, which may be a huge one
    assert found["kept"] < found["plain"] / 20
    assert found["after"] < found["held"] - 150


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_what_the_environment_says_of_the_allocator_stays() -> None:
    found = watched({"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1073741824"})
    batches = 5 * 200e6 / 4096
    assert max(found["plain"], found["kept"]) < batches / 20
    assert found["afterwards"] < batches / 4  # malloc_trim, once, and no more
