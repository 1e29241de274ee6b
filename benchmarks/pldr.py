"""Generation by a PLDR-LLM with and without its caches, beside the same network with scaled dot-product attention: seconds of CPU.

    python benchmarks/pldr.py [--quick] [--threads 1]

Subjects, random weights, float32, batch 1: a model of 2 layers of width 64 with 4 heads, and one of 4 layers of width 256 with 4 heads
of 64; prompts of 64 tokens, 128 new ones. Ways: nothing cached (every token from the whole text, G anew), G alone cached, keys,
values and G, the same with G frozen into the model, and scaled dot-product attention with keys and values. Prefill: the prompt alone,
with G computed and without. Interleaved, the least of several rounds. Writes docs/data/pldr.json.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from termwise.layers import PLDRConfig, PLDRForCausalLM, freeze_g

OUT = Path(__file__).parent.parent / "docs" / "data" / "pldr.json"
PROMPT, NEW = 64, 128
SUBJECTS = {
    "2 layers of width 64": {"d_model": 64, "n_layers": 2, "n_heads": 4},
    "4 layers of width 256": {"d_model": 256, "n_layers": 4, "n_heads": 4},
}


def ways(sizes: dict[str, int]) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """Name -> call, and parameters of the models."""
    torch.manual_seed(0)
    learned = PLDRForCausalLM(PLDRConfig(256, **sizes)).eval()
    plain = PLDRForCausalLM(PLDRConfig(256, curvature="identity", **sizes)).eval()
    prompt = torch.randint(256, (1, PROMPT))
    g, frozen = list(learned.curvatures(prompt)), freeze_g(learned, prompt)
    calls = {
        "nothing cached": lambda: learned.generate(prompt, NEW, use_cache=False),
        "G": lambda: learned.generate(prompt, NEW, use_cache=False, g_cache=g),
        "keys, values, G": lambda: learned.generate(prompt, NEW),
        "frozen": lambda: frozen.generate(prompt, NEW),
        "sdpa": lambda: plain.generate(prompt, NEW),
        "sdpa, nothing cached": lambda: plain.generate(prompt, NEW, use_cache=False),
        "prefill": lambda: learned.generate(prompt, 1),
        "prefill, frozen": lambda: frozen.generate(prompt, 1),
        "prefill, sdpa": lambda: plain.generate(prompt, 1),
    }
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in (("learned", learned), ("sdpa", plain))}
    assert torch.equal(calls["keys, values, G"](), calls["frozen"]())
    return calls, counts


def main() -> None:
    """Print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, and nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for name, sizes in SUBJECTS.items():
        calls, counts = ways(sizes)
        best = dict.fromkeys(calls, math.inf)
        for _ in range(2 if given.quick else 3):
            for key, call in calls.items():
                started = time.process_time()
                call()
                best[key] = min(best[key], time.process_time() - started)
        for key, seconds in best.items():
            base = best["prefill, sdpa" if key.startswith("prefill") else "sdpa"]
            rows.append({"subject": name, "way": key, "ms": seconds * 1e3, "of sdpa": seconds / base, **counts})
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
        print(f"{name}: {best['nothing cached'] / best['keys, values, G']:.2f} times as fast with both caches", flush=True)
    if not given.quick:
        environment = {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "threads": given.threads,
        }
        OUT.write_text(json.dumps({"environment": environment, "prompt": PROMPT, "new": NEW, "pldr": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
