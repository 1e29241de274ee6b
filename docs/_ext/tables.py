"""Pages and tables that are written from the code when the documentation is built.

The rules and rule sets come from their table, the reproduction page from the claims. Measuring takes minutes, so results are
read from `docs/reproduction.json` where it is (`termwise verify --all --slow --json > docs/reproduction.json`); a claim that is
not in it stands there with what was published, and is marked as not measured.

The comparison of methods is read from `docs/data/relevance_peers.json` where it is: {"environment": {...}, "rows":
[{"subject", "method", "samples", "abpc", "abpc_low", "abpc_high", "behind", "behind_interval", "error", "cancellation",
"passes", "memory", "problem"}]}, of which all but the first two may be missing; beside them "choose": {subject: such rows},
and "agreement": {composite: {case: largest relative difference}}.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers

import engine
import termwise


def setup(app: Any) -> dict[str, bool]:
    """Write the tables before the sources are read."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}


def write(app: Any) -> None:
    """Every generated table, into `docs/_generated`."""
    docs = Path(app.srcdir)
    folder = docs / "_generated"
    folder.mkdir(exist_ok=True)
    tables = {
        "rules": rules(), "named": named_rules(), "sets": rule_sets(), "reproduction": reproduction(docs / "reproduction.json"),
        "methods": methods(docs / "data" / "relevance_peers.json"), "one_pass": one_pass(docs / "data" / "one_pass.json"),
        "jets": jets(docs / "data" / "jets.json"), "jet_rules": jet_rules(),
        "highway": highway(docs / "data" / "highway.json"),
        "taylor_shift": taylor_shift(docs / "data" / "taylor_shift.json"),
        "pldr": pldr(docs / "data" / "pldr.json"),
        "depth_decay": depth_decay(docs / "data" / "depth_decay.json"),
        "toeplitz_ssm": toeplitz_ssm(docs / "data" / "toeplitz_ssm.json"),
        "accelerate": accelerate(docs / "data" / "accelerate.json"),
        "standing": peers.standing(docs / "data"), "compress": peers.compress(docs / "data"),
        "clicks": peers.clicks(docs / "data"), "low_rank": peers.low_rank(docs / "data"), "tangent": peers.tangent(docs / "data"),
        "engine_rates": engine.rates(docs / "data"), "engine_costs": engine.costs(docs / "data"),
    }  # fmt: skip
    tables |= {f"names_{room}": names(room) for room in termwise._ROOMS}
    for name, lines in tables.items():
        text = "\n".join(lines) + "\n"
        file = folder / f"{name}.txt"  # not .md: included by a page, and no page itself
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")


def names(room: str) -> Iterator[str]:
    """Every public name of a room, and what it is in a line."""
    face = importlib.import_module(f"termwise.{room}")
    yield "| name | |"
    yield "|---|---|"
    for name in sorted(face.__all__, key=str.lower):
        value = getattr(face, name)
        kind = (
            "class"
            if inspect.isclass(value)
            else "func"
            if inspect.isfunction(value)
            else "mod"
            if inspect.ismodule(value)
            else "data"
        )
        kind = "exc" if kind == "class" and issubclass(value, Exception) else kind
        about = _first_line(value) if kind != "data" else ""
        yield f"| {{py:{kind}}}`{name} <termwise.{room}.{name}>` | {about} |"


def rules() -> Iterator[str]:
    """One row per rule: family, operators, first line of the docstring, whether it may lose relevance."""
    from termwise.predictions.rules import LOSSY, RULES

    operators: dict[Any, list[str]] = {}
    for op, function in RULES.items():
        operators.setdefault(function, []).append(op)
    yield f"{len(RULES)} operators have a rule; the rules are {len(operators)} functions.\n"
    family = ""
    for function, ops in sorted(operators.items(), key=lambda item: item[0].__module__):
        module = function.__module__.rpartition(".")[2]
        if module != family:
            family = module
            yield f"\n### {family}\n"
            yield "| operators | rule | loses |"
            yield "|---|---|---|"
        shown = ", ".join(f"`{op}`" for op in sorted(ops))
        yield f"| {shown} | {_first_line(function)} | {'yes' if function in LOSSY else ''} |"


def rule_sets() -> Iterator[str]:
    """One row per rule set: what it changes in the table."""
    from termwise.predictions.rules import RULE_SETS, EpsilonGammaBox

    yield "| set | where: which rule; later ones win |"
    yield "|---|---|"
    yield "| `default` | as `attnlrp` where the network has softmax or attention; otherwise `gamma` in convolutions only |"
    for name, changes in {**RULE_SETS, "EpsilonGammaBox(low, high)": EpsilonGammaBox(0, 1)}.items():
        by_rule: dict[str, list[str]] = {}
        for key, rule in changes.items():
            where = (key if isinstance(key, str) else repr(key)).replace("'", "")
            where = where.removeprefix("operators(").removesuffix(")") if where.startswith("operators(") else where
            by_rule.setdefault(shown(rule), []).append(f"`{where}`")
        rows = "; ".join(f"{', '.join(where)}: {rule}" for rule, where in by_rule.items())
        text = rows.replace("zbox(0.0, 1.0", "zbox(low, high") or "nothing: it is the table as it stands"
        yield f"| `{name}` | {text} |"


def named_rules() -> Iterator[str]:
    """One row per rule that a name or a factory stands for: what it does, whether it may lose relevance."""
    from termwise.predictions import rules

    yield "| name | call | rule | loses |"
    yield "|---|---|---|---|"
    calls: dict[str, tuple[str, Any]] = {n: ("", rule) for n, rule in {**rules.AFFINE_RULES, **rules.ANY_RULES}.items() if rule}
    calls["z-box"] = ("zbox(low, high)", rules.zbox(0, 1))
    for name, (call, rule) in calls.items():
        call = call or (repr(rule) if repr(rule).endswith(")") else rule.__name__)
        factory = getattr(rules, call.partition("(")[0])
        loses = "yes" if rule in rules.LOSSY else ""
        label = "" if name == "z-box" else f'`"{name}"`'
        yield f"| {label} | `{call}` | {_first_line(factory)} | {loses} |"


def shown(rule: Any) -> str:
    """A rule as one writes it."""
    return f'`"{rule}"`' if isinstance(rule, str) else f"`{rule.__name__}`"


def reproduction(results: Path) -> Iterator[str]:
    """Counts by room; then rooms, their papers, and of each its claims, published beside measured, to be opened."""
    from termwise.core.claims import load_claims, papers

    rows = json.loads(results.read_text("utf-8")) if results.exists() else []
    measured = {(row["paper"], row["statement"]): row for row in rows}
    claims = [(claim, measured.get((claim.paper, claim.statement), {})) for claim in load_claims()]
    rooms = sorted({paper["room"] for paper in papers().values()})
    yield f"| room | papers | claims | {' | '.join(OUTCOMES)} | of them exact |"
    yield "|---" * (4 + len(OUTCOMES)) + "|"
    for room in [*rooms, ""]:
        inside = [key for key, paper in papers().items() if room in (paper["room"], "")]
        found = [(claim, row) for claim, row in claims if claim.paper in inside]
        counts = [str(sum(row.get("outcome", "not measured") == outcome for _, row in found)) for outcome in OUTCOMES]
        exact = sum(claim.exact for claim, _ in found)
        name = f"[{room}](#room-{room})" if room else "**all**"
        yield f"| {name} | {len(inside)} | {len(found)} | {' | '.join(counts)} | {exact} |"
    for room in rooms:
        yield f"\n(room-{room})=\n## {room}\n"
        for key, paper in papers().items():
            if paper["room"] == room:
                yield from _paper(key, paper, [(claim, row) for claim, row in claims if claim.paper == key])


OUTCOMES = {"holds": "✓", "contradicted": "✗", "failed": "!", "not measured": "?"}
"""What can come out of a claim, and its sign."""


def _paper(key: str, paper: dict[str, Any], claims: list[tuple[Any, dict[str, Any]]]) -> Iterator[str]:
    """Whose it is, what to call, what differs here, and its claims."""
    where = f"https://arxiv.org/abs/{paper['arxiv']}" if "arxiv" in paper else f"https://doi.org/{paper.get('doi', '')}"
    yield f"\n(paper-{key})=\n### {paper['title']}\n"
    yield f"{', '.join(paper['authors'])}, {paper['year']}. [{where.partition('//')[2]}]({where})\n"
    yield f"Call {', '.join(_called(name) for name in paper['api'])}. Here: {paper['scale']}.\n"
    outcomes = [row.get("outcome", "not measured") for _, row in claims]
    told = [f"{outcomes.count(o)} {'hold' if o == 'holds' and outcomes.count(o) > 1 else o}" for o in OUTCOMES if o in outcomes]
    yield f'<details class="claims"><summary>{len(claims)} claims: {", ".join(told)}</summary>\n'
    yield f"`termwise verify {key}` measures them.\n"
    yield "| | claim | published | measured |"
    yield "|---|---|---|---|"
    for claim, row in claims:
        outcome = row.get("outcome", "not measured")
        exact = " (exact)" if claim.exact else ""
        notes = "; ".join(n for n in (claim.note, claim.contradicted) if n)
        note = f" *{_cell(notes)}*" if notes else ""
        sign = f"{OUTCOMES[outcome]} {outcome}{exact}"
        yield f"| {sign} | {_cell(claim.statement)}.{note} | {_cell(claim.published)} | {_cell(row.get('measured', ''))} |"
    yield "\n</details>\n"


def _called(name: str) -> str:
    """A name that leads to the reference; verbs are described in their room."""
    short = name.removeprefix("termwise.")
    full = f"termwise.{termwise._VERBS[short]}.{short}" if short in termwise._VERBS else name
    kind = "mod" if short == "functions.higher_order" else "class" if short.rpartition(".")[2][0].isupper() else "func"
    return f"{{{kind}}}`tw.{short} <{full}>`"


def methods(results: Path) -> Iterator[str]:
    """One table per subject: faithfulness with its interval, closing error, cancellation, cost; then agreement of rules."""
    if not results.exists():
        yield "*Not measured in this build.* The table appears here with `docs/data/relevance_peers.json`."
        return
    found = json.loads(results.read_text("utf-8"))
    rows = found["rows"]
    for subject in dict.fromkeys(row["subject"] for row in rows):
        yield f"\n### {_cell(subject)}\n"
        tried = [row for row in found.get("choose", {}).get(subject, []) if "abpc" in row]
        if tried:
            figures = ", ".join(f"{row['method'].removeprefix('ours: ')} {row['abpc']:.2f}" for row in tried)
            yield f"Chosen on {max(row['samples'] for row in tried)} other inputs: {_cell(figures)}.\n"
        columns = ("method", "n", "ABPC", "chosen minus this", "closing error", "cancellation", "cost", "memory")
        yield f"| {' | '.join(columns)} |"
        yield "|---|" + "---|" * (len(columns) - 1)
        chosen = [row for row in rows if row["subject"] == subject]
        for row in sorted(chosen, key=lambda row: -row.get("abpc", float("-inf"))):
            if row.get("problem"):
                problem = row["problem"]
                ours = problem.startswith("NotTried: ")  # our words; otherwise what the peer says
                problem = f"not tried: {problem[10:]}" if ours else f"does not run: {problem}"
                yield f"| {_cell(row['method'])} | | {_cell(problem)} | | | | | |"
                continue
            area = f"{row['abpc']:.2f}" if "abpc" in row else ""
            area += f" ({row['abpc_low']:.2f} to {row['abpc_high']:.2f})" if "abpc_low" in row else ""
            numbers = [
                "{:+.3f} ({:+.3f} to {:+.3f})".format(row["behind"], *row["behind_interval"]) if "behind" in row else "",
                f"{row['error']:.0e}" if "error" in row else "",
                f"{row['cancellation']:.3g}" if "cancellation" in row else "",
                f"{row['passes']:.1f}" if "passes" in row else "",
                f"{row['memory']:.1f}" if "memory" in row else "",
            ]
            yield f"| {_cell(row['method'])} | {row.get('samples', '')} | {area} | {' | '.join(numbers)} |"
    if found.get("agreement"):
        cases = next(iter(found["agreement"].values()))
        yield "\n### the same rules, twice\n"
        yield "Largest difference over largest entry, between zennit and ours, on networks in which both state the same rules.\n"
        yield f"| | {' | '.join(map(_cell, cases))} |"
        yield "|---|" + "---|" * len(cases)
        for name, by_case in found["agreement"].items():
            yield f"| {_cell(name)} | {' | '.join(f'{by_case[case]:.0e}' for case in cases)} |"
    environment = ", ".join(
        f"{name} {value}" for name, value in found.get("environment", {}).items() if isinstance(value, (str, int))
    )
    if environment:
        yield f"\nMeasured with {_cell(environment)}."


def one_pass(results: Path) -> Iterator[str]:
    """What each change to a rule set does to ABPC."""
    found = json.loads(results.read_text("utf-8"))
    yield f"{found['digits']} digits, 95 % intervals.\n"
    yield "| change | ABPC |"
    yield "|---|---|"
    for row in found["rows"]:
        yield f"| {_cell(row['change'])} | {row['abpc']:.3f} ({row['low']:.3f} to {row['high']:.3f}) |"


def jets(results: Path) -> Iterator[str]:
    """Milliseconds of jets beside their peers, and of Laplacians."""
    if not results.exists():
        yield "*Not measured in this build.*"
        return
    found = json.loads(results.read_text("utf-8"))
    yield "| subject | order | forward | ours | jax.jet | nested jvp | ours / jax | memory / forward |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found["jets"]:
        ms = [f"{row[k]:.{1 if k != 'forward' else 2}f} ms" if k in row else "" for k in ("forward", "ours", "jax", "nested")]
        cells = [row["subject"], row["order"], *ms, f"{row['ours'] / row['jax']:.2f}", f"{row['memory']:.0f}"]
        yield f"| {' | '.join(map(str, cells))} |"
    yield "\n| Laplacian in n variables | collapsed | Taylor, uncollapsed | forward over forward | first / last |"
    yield "|---|---|---|---|---|"
    for row in found["laplacians"]:
        ms, mib = row["ms"], row["MiB"]
        cells = [f"{ms[k]:.1f} ms, {mib[k]:.0f} MiB" for k in ("collapsed", "standard", "forward over forward")]
        yield f"| {row['n']} | {' | '.join(cells)} | {ms['collapsed'] / ms['forward over forward']:.2f} |"
    environment = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    yield f"\nMeasured with {_cell(environment)}; interleaved, least of several."


def highway(results: Path) -> Iterator[str]:
    """A training step and its backward pass, as a share of autograd's."""
    if not results.exists():
        yield "*Not measured in this build.*"
        return
    found = json.loads(results.read_text("utf-8"))
    yield "| subject | autograd: step, backward | K | step / autograd's | backward / autograd's | rounds, layers | cosine |"
    yield "|---|---|---|---|---|---|---|"
    for row in found["highway"]:
        ms = f"{row['autograd step ms']:.0f} ms, {row['autograd backward ms']:.0f} ms"
        ratios = f"{row['step']:.2f} | {row['backward']:.2f}"
        yield f"| {row['subject']} | {ms} | {row['K']} | {ratios} | {row['rounds']}, {row['layers']} | {row['cosine']:.3f} |"
    environment = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    yield f"\nMeasured with {_cell(environment)}; wall time, interleaved, least of 25."


def toeplitz_ssm(results: Path) -> Iterator[str]:
    """A token and a whole sequence of a long convolution, by every way."""
    if not results.exists():
        yield "*Not measured in this build.*"
        return
    found = json.loads(results.read_text("utf-8"))
    for title, rows in (("One token at position 4 n", found["tokens"]), ("A sequence of 4 n tokens", found["sequences"])):
        ways = list(rows[0]["microseconds"])
        yield f"| {title}: microseconds per token | {' | '.join(ways)} |"
        yield "|---" * (1 + len(ways)) + "|"
        for row in rows:
            order = f", compressed to order {row['order']}" if "order" in row else ""
            cells = []
            for way in ways:
                kilobytes = f", {row['bytes'][way] / 1024:.0f} KiB" if way in row.get("bytes", ()) else ""
                error = f", off by {row['off'][way]:.0e}" if "off" in row else ""
                cells.append(f"{row['microseconds'][way]:.3g}{kilobytes}{error}")
            yield f"| n = {row['n']}{order} | {' | '.join(cells)} |"
        yield ""
    environment = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    yield f"\n64 channels, float32. Measured with {_cell(environment)}; wall time, interleaved, the least of several rounds."


def accelerate(results: Path) -> Iterator[str]:
    """One table per budget, least error first; what does not run and what caches nothing stand last."""
    if not results.exists():
        yield "*Not measured in this build.*"
        return
    found = json.loads(results.read_text("utf-8"))
    columns = ("method", "grid", "passes", "time", "off", "at most", "changed", "digits right", "Frechet", "n", "KiB")
    for budget in sorted({row["budget"] for row in found["rows"]}, reverse=True):
        rows = [row for row in found["rows"] if row["budget"] == budget]
        full = rows[0]["method"] == "all computed"
        yield f"\n**{budget} {'steps, all computed' if full else 'evaluations'}**\n"
        yield f"| {' | '.join(columns)} |"
        yield "|---" * len(columns) + "|"
        for row in sorted(rows, key=lambda row: (abs(row.get("passes", 1e9) - budget) > 2, row.get("off", 0.0))):
            note = f" ({_cell(row['note'])})" if row.get("note") else ""
            if "failed" in row:
                yield f"| {_cell(row['method'])}{note} | {row['solver']} | {_cell(row['failed'])} |" + " |" * (len(columns) - 3)
                continue
            cells = [
                f"{row['passes']:.3g}", f"{row['time']:.2f}" if "time" in row else "", f"{row['off']:.4f}",
                f"{row['off_max']:.3f}",
                f"{row['change']:.4f}" if "change" in row else "", f"{row['accuracy']:.1%}", f"{row['frechet']:.2f}",
                str(row["samples"]), f"{row['KiB']:.1f}" if "KiB" in row else "",
            ]  # fmt: skip
            yield f"| {_cell(row['method'])}{note} | {row['solver']}, {row['steps']} | {' | '.join(cells)} |"
    if found["steps"]:
        yield "\n| a step of | pictures | full, ms | computed / full | forecast / full | KiB a picture |"
        yield "|---|---|---|---|---|---|"
        for row in found["steps"]:
            shares = " | ".join(f"{row[k]:.3f}" for k in ("computed", "forecast"))
            yield f"| {row['what']} | {row['batch']} | {row['full_ms']:.1f} | {shares} | {row['KiB']:.1f} |"
    environment = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    yield f"\nMeasured with {_cell(environment)}."


def taylor_shift(results: Path) -> Iterator[str]:
    """Where the efficient form overtakes the direct one and torch's softmax, beside the counts."""
    if not results.exists():
        yield "*Not measured in this build.*"
        return
    found = json.loads(results.read_text("utf-8"))
    yield "| d | time: counted | direct form | torch's softmax | memory: counted | direct form | torch's softmax |"
    yield "|---|---|---|---|---|---|---|"
    for row in found["crossovers"]:
        cells = [f"{row['d']}"]
        for counted, kind in (("time", "seconds"), ("memory", "bytes")):
            cells += [f"{row[f'analytic {counted}']:.0f}", *(str(n or "never") for n in row[kind].values())]
        yield f"| {' | '.join(cells)} |"
    environment = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    yield f"\nTokens, from 64 to 8,192. Measured with {_cell(environment)}; one head, forward, processor time, least of 3."


def pldr(results: Path) -> Iterator[str]:
    """Generation by what is cached, beside scaled dot-product attention."""
    if not results.exists():
        yield "*Not measured in this build.*"
        return
    found = json.loads(results.read_text("utf-8"))
    yield "| model | cached | ms | of sdpa |"
    yield "|---|---|---|---|"
    for row in found["pldr"]:
        yield f"| {row['subject']} | {row['way']} | {row['ms']:.3g} | {row['of sdpa']:.2f} |"
    environment = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    yield f"\nMeasured with {_cell(environment)}; processor time, interleaved, least of several rounds."


def depth_decay(results: Path) -> Iterator[str]:
    """Layers skipped: what is saved, how fast, at what cost; then what costs nothing but time."""
    if not results.exists():
        yield "*Not measured in this build.*"
        return
    found = json.loads(results.read_text("utf-8"))
    rows = sorted(found["rows"], key=lambda row: (row["budget"] or 0, row.get("perplexity ratio", 0)))
    lossy = [row for row in rows if "kl" in row]
    shared = "fewer layer calls | tokens per second, speed-up"
    yield f"| skipped | {shared} | perplexity, times the full model's | KL in nats | equal tokens |"
    yield "|---|---|---|---|---|---|"
    for row in lossy:
        kl = row["kl"]
        changed = f"{sum(kl) / len(kl):.2f} ({min(kl):.2f} to {max(kl):.2f})"
        cells = [*_skipping(row), f"{row['perplexity ratio']:.3g}", changed, f"{row['equal']:.0%}"]
        yield f"| {' | '.join(cells)} |"
    yield f"\n| lossless | {shared} | tokens per pass of all layers | drafts accepted | equal tokens |"
    yield "|---|---|---|---|---|---|"
    for row in (r for r in rows if "kl" not in r):
        accepted = f"{row['acceptance']:.0%}" if "acceptance" in row else ""
        cells = [*_skipping(row), f"{row['tokens per last layer']:.2f}", accepted, f"{row['equal']:.0%}"]
        yield f"| {' | '.join(cells)} |"
    environment = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    whole, texts = f"{lossy[0]['full perplexity']:.1f}", len(lossy[0]["kl"])
    yield (
        f"\nPerplexity of the full model {whole}, on {texts} texts with {found['prompt']} tokens of prompt and "
        f"{found['new']} behind; KL is the mean (least to largest of a text); two texts continued in turn with the full "
        f"model, each with its speed-up. Measured with {_cell(environment)}; one thread, processor time."
    )


def _skipping(row: dict[str, Any]) -> list[str]:
    """Cells that all ways share."""
    name = _cell(row["way"]) + (f", {row['budget']}x" if row["budget"] else "")
    times = ", ".join(f"{ratio:.2f}x" for ratio in row["speedups"])
    return [name, f"{row['fewer calls']:.2f}x", f"{row['tokens per second']:.1f}, {times}"]


def jet_rules() -> Iterator[str]:
    """One row per jet rule: operators, first line of the docstring."""
    from termwise.functions import JET_RULES

    operators: dict[Any, list[str]] = {}
    for op, function in JET_RULES.items():
        operators.setdefault(function, []).append(op)
    yield f"{len(JET_RULES)} operators have a rule; the rules are {len(operators)} functions.\n"
    yield "| operators | rule |"
    yield "|---|---|"
    for function, ops in operators.items():
        yield f"| {', '.join(f'`{op}`' for op in sorted(ops))} | {_first_line(function)} |"


def _first_line(function: Any) -> str:
    text = (function.__doc__ or "").strip().split("\n\n")[0]
    return _cell(" ".join(text.split()))


def _cell(text: str) -> str:
    """Text that means itself inside a table."""
    for mark in "\\|*_<[":
        text = text.replace(mark, "\\" + mark)
    return text
