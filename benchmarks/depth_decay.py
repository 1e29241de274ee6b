"""Depth decay on SmolLM2-135M, beside other ways to run fewer layers: what is saved, how fast it is, what it costs.

    python benchmarks/depth_decay.py

Real text, from the Brown corpus and Python's own sources; 16 tokens of prompt, 48 new ones. Schedules that run equally many layers: the
decay that `tune_depth` finds, a gap of constant width from the same start, layers left out evenly, the last ones dropped. Perplexity
and KL (full model | layers skipped) of the next token on eight texts that nothing was tuned on, teacher-forced; then two of their
beginnings are continued, in turn with the full model. Ways that lose nothing: drafts of two schedules, early exit and prompt lookup of
transformers. One thread, seconds of processor time, layer calls counted by hooks: about four minutes.
Results are added to docs/data/depth_decay.json, row by row; what is in it is not measured again.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
import transformers
from compress import brown, sources
from torch import Tensor
from torch.nn import functional

from termwise import zoo
from termwise.computation import draft_decode, one_pass, skip_layers, tune_depth

OUT = Path(__file__).parent.parent / "docs" / "data" / "depth_decay.json"
PROMPT, NEW, LAYERS = 16, 48, 30
SPEEDUPS = (1.1, 1.25, 1.5)
STARTS = (4, 8, 12)
EXIT = 24
"""Of 30 layers, as many as at 1.25x."""


@dataclass(frozen=True)
class Schedule:
    """Generated token i goes through counts[i] layers; those that are skipped are the first ones in `order`."""

    order: list[int]
    counts: list[int]

    def layers(self, i: int, num_layers: int) -> list[int]:
        """Those that are left."""
        skipped = set(self.order[: num_layers - self.counts[i]])
        return [j for j in range(num_layers) if j not in skipped]


@cache
def subject():
    """The model, with nothing that ends a text."""
    found = zoo.load("smollm2-135m")
    found.model.language_model.generation_config.eos_token_id = None
    return found.model.language_model.eval(), found.preparation.tokenizer


def windows(texts: list[str], *places: int) -> Tensor:
    """PROMPT + NEW tokens from each place of each text."""
    ids = [torch.tensor(subject()[1].encode(text)) for text in texts]
    return torch.stack([i[place : place + PROMPT + NEW] for i in ids for place in places])


@cache
def report() -> Tensor:
    """Four windows of Brown, four of Python."""
    return torch.cat([windows(brown(["ca01", "cb01", "cg01", "cn01"]), 64), windows(sources("tarfile", "optparse"), 1024, 2048)])


@cache
def choice() -> list[Tensor]:
    """Prompts to choose on."""
    return [*torch.cat([windows(brown(["cn02"]), 64), windows(sources("argparse"), 2048)])[:, :PROMPT].split(1)]


# -- schedules ----------------------------------------------------------------------------------------------------------


def decay(speedup: float) -> Schedule:
    """What `tune_depth` finds."""
    method = tune_depth(subject()[0], choice(), speedup, max_new_tokens=NEW, starts=STARTS).method
    print(method, flush=True)
    return Schedule([*range(method.start, LAYERS)], [method.count(i, LAYERS) for i in range(NEW)])


def constant(decay: Schedule) -> list[int]:
    """The same number of calls, spread over the tokens evenly; the prompt takes all layers."""
    low, more = divmod(sum(decay.counts[1:]), NEW - 1)
    return [LAYERS] + [low + 1] * more + [low] * (NEW - 1 - more)


def gap(decay: Schedule) -> Schedule:
    """Constant depth, from the start that was tuned for the decay."""
    return Schedule(decay.order, constant(decay))


def even(decay: Schedule) -> Schedule:
    """Constant depth, layers left out at equal distances, half of one at either end."""
    counts = constant(decay)
    skipped = LAYERS - counts[-1]
    return Schedule([(2 * j + 1) * LAYERS // (2 * skipped) for j in range(skipped)], counts)


def last(decay: Schedule) -> Schedule:
    """Constant depth, the last layers dropped."""
    return Schedule([*range(LAYERS - 1, 0, -1)], constant(decay))


OTHERS = {"constant gap": gap, "evenly": even, "last dropped": last}


@torch.no_grad()
def quality(schedule: Schedule) -> dict:
    """Of the tokens behind the prompt that are predicted with layers skipped."""
    model, ids = subject()[0], report()
    logits = {"full": model(input_ids=ids[:, :-1], use_cache=False).logits}
    logits["less"] = one_pass(model, ids[:, :-1], schedule, prompt_length=PROMPT)
    full, less = (x[:, PROMPT:].double().log_softmax(-1) for x in logits.values())
    loss = [functional.nll_loss(x.flatten(0, 1), ids[:, PROMPT + 1 :].flatten()).item() for x in (full, less)]
    kl = functional.kl_div(less, full, reduction="none", log_target=True).sum(-1)
    return {"full perplexity": math.exp(loss[0]), "perplexity ratio": math.exp(loss[1] - loss[0]), "kl": kl.mean(1).tolist()}


# -- time ---------------------------------------------------------------------------------------------------------------


def generate(prompt: Tensor, **how) -> Tensor:
    """Greedily, by transformers."""
    mask = torch.ones_like(prompt)
    return subject()[0].generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **how)


def skipping(schedule: Schedule, prompt: Tensor) -> Tensor:
    with skip_layers(subject()[0], schedule):
        return generate(prompt)


@torch.no_grad()
def loop(prompt: Tensor) -> Tensor:
    """Plain decoding without `generate`, which our drafts do without."""
    model, ids, cache = subject()[0], [prompt], transformers.DynamicCache()
    for _ in range(NEW):
        ids.append(model(input_ids=ids[-1], past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1))
    return torch.cat(ids, 1)


def drafting(schedule: Schedule, count: int, found: list, prompt: Tensor) -> Tensor:
    found.append(draft_decode(subject()[0], prompt, schedule, max_new_tokens=NEW, drafts=count))
    return found[-1].sequences


def speed(way: Callable[[Tensor], Tensor]) -> dict:
    """Two continuations, in turn with the full model."""
    layers, calls = subject()[0].model.layers, [0] * LAYERS
    hooks = [x.register_forward_hook(lambda *_, j=j: calls.__setitem__(j, calls[j] + 1)) for j, x in enumerate(layers)]
    seconds, equal, counted = {"full": [], "way": []}, 0, []
    for prompt in report()[[0, -1], :PROMPT].split(1):
        texts = {}
        for name, run in (("full", generate), ("way", way)):
            calls[:] = [0] * LAYERS
            started = time.process_time()
            texts[name] = run(prompt)
            seconds[name].append(time.process_time() - started)
        counted.append([sum(calls), calls[-1]])
        equal += (texts["way"] == texts["full"])[:, PROMPT:].sum().item()
    for hook in hooks:
        hook.remove()
    made, whole = map(sum, zip(*counted, strict=True))
    count = len(counted)
    return {
        "layer calls": made, "fewer calls": LAYERS * NEW * count / made, "tokens per last layer": NEW * count / whole,
        "tokens per second": NEW * count / sum(seconds["way"]), "full tokens per second": NEW * count / sum(seconds["full"]),
        "speedups": [a / b for a, b in zip(seconds["full"], seconds["way"], strict=True)], "equal": equal / (NEW * count),
    }  # fmt: skip


# -- rows ---------------------------------------------------------------------------------------------------------------


def main() -> None:
    """What is missing in the file."""
    torch.set_num_threads(1)
    environment = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    rows = json.loads(OUT.read_text())["rows"] if OUT.exists() else []
    known = {(row["way"], row["budget"]): row for row in rows}

    def add(way: str, budget: float | None, found: dict) -> dict:
        row = known.get((way, budget))
        if row is None:
            row = known[way, budget] = {"way": way, "budget": budget}
            rows.append(row)
        row |= found
        lines = ",\n".join(json.dumps(r) for r in rows)
        head = json.dumps({"environment": environment, "prompt": PROMPT, "new": NEW})[:-1]
        OUT.write_text(f'{head}, "rows": [\n{lines}\n]}}\n')
        print({k: v for k, v in row.items() if k != "schedule"}, flush=True)
        return row

    for budget in SPEEDUPS:
        row = known.get(("decay", budget))
        if row is None:
            schedule = decay(budget)
            row = add("decay", budget, {"schedule": asdict(schedule), **quality(schedule)})
        for name, make in OTHERS.items():
            if (name, budget) not in known:
                schedule = make(Schedule(**row["schedule"]))
                add(name, budget, {"schedule": asdict(schedule), **quality(schedule)})
    ways = {(name, budget): partial(skipping, Schedule(**row["schedule"])) for (name, budget), row in known.items()
            if "schedule" in row}  # fmt: skip
    drafts = {}
    for name, budget, count in product(("decay", "constant gap"), (1.1, 1.25), (4, 1)):
        key, schedule = (f"drafts, {count} a round: {name}", budget), Schedule(**known[name, budget]["schedule"])
        ways[key] = partial(drafting, schedule, count, drafts.setdefault(key, []))
    ways |= {
        ("full, without generate", None): loop,
        (f"transformers: early exit at {EXIT}", None): partial(generate, assistant_early_exit=EXIT),
        ("transformers: prompt lookup", None): partial(generate, prompt_lookup_num_tokens=4),
    }
    for (name, budget), way in ways.items():
        if "speedups" in known.get((name, budget), {}):
            continue
        found = speed(way)
        if tries := drafts.get((name, budget)):
            found["acceptance"] = sum(sum(t.accepted) for t in tries) / sum(sum(t.drafted) for t in tries)
            found["tokens per last layer"] = NEW * len(tries) / sum(1 + len(t.drafted) for t in tries)  # drafts run it too
        add(name, budget, found)


if __name__ == "__main__":
    main()
