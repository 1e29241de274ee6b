"""Rule sets by name: what each changes in the table, and how a user's mapping is read.

- ``"zero"``: LRP-0. Own derivatives, identity rule for element-wise functions, products half each, softmax constant.
  Nothing is lost anywhere. On networks of linear layers, convolutions, batch norm, ReLU and pooling it is gradient x input.
- ``"cp-lrp"``: as zero, and the gate of a gated product is constant too.
- ``"attnlrp"``: relevance goes through softmax by its own derivative; loses there, and says how much.
- ``"epsilon"``: attnlrp, with LRP-epsilon (1e-6) in every affine operation.
- ``"gamma"``, ``"z+"``: attnlrp, with that rule in every affine operation; batch norm is folded.
- ``"default"``: attnlrp where the network has a softmax or fused attention; otherwise gamma (0.25) in convolutions,
  which is far less noisy than LRP-0 on image networks, and LRP-0 in linear layers.

A mapping overrides the default set: keys are operators (``"linear"``, ``"aten.linear"``, ``torch.ops.aten.linear``),
module classes (``nn.Conv2d``) or globs on the module path (``"encoder.layer.0.*"``); values are rule functions, or the
name of a rule for affine operations. Later entries win.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from termwise.core.program import Program, describe, info, op_name

from .attention import FUSED, SOFTMAX, attention_constant, softmax_constant
from .products import signal_takes_all
from .splitting import AFFINE, epsilon, gamma, own_derivative, zplus
from .table import RULES, Rule

__all__ = ["AFFINE_RULES", "RULE_SETS", "Rules", "rules_of"]

Rules = str | Mapping[Any, Rule | str]

CONVOLUTIONS = tuple(op for op in AFFINE if op.startswith("conv"))

AFFINE_RULES: dict[str, Rule | None] = {
    "zero": None,
    "epsilon": epsilon(),
    "gamma": gamma(),
    "z+": zplus(),
    "gradient": own_derivative,
}
"""Rules for affine operations by name; None is the table's own."""

_CONSTANT_ATTENTION: dict[str, Rule] = {**dict.fromkeys(SOFTMAX, softmax_constant), **dict.fromkeys(FUSED, attention_constant)}


def _affine(rule: Rule | None) -> dict[str, Rule]:
    return {} if rule is None else dict.fromkeys(AFFINE, rule)


RULE_SETS: dict[str, Mapping[str, Rule]] = {
    "zero": _CONSTANT_ATTENTION,
    "cp-lrp": {**_CONSTANT_ATTENTION, "mul": signal_takes_all},
    "attnlrp": {},
    "epsilon": _affine(AFFINE_RULES["epsilon"]),
    "gamma": _affine(AFFINE_RULES["gamma"]),
    "z+": _affine(AFFINE_RULES["z+"]),
}
"""Name -> what the set changes in `RULES`."""


def rules_of(program: Program, rules: Rules) -> dict[str, Rule]:
    """The rule of every active node of a program, by node name.

    Raises:
        ValueError: for an unknown set or rule (the nearest name is suggested), or a node that no rule covers (with
            operator, module path and line, and how to add one).
    """
    if isinstance(rules, str):
        if rules != "default" and rules not in RULE_SETS:
            raise ValueError(f"unknown rules {rules!r}{_nearest(rules, ['default', *RULE_SETS])}")
        overrides, entries = _default(program) if rules == "default" else RULE_SETS[rules], {}
    else:
        overrides, entries = _default(program), dict(rules)
    matchers = [(_matcher(program, key), _named(value)) for key, value in entries.items()]
    found: dict[str, Rule] = {}
    for node in program.nodes:
        if not info(node).active or info(node).role == "cut":
            continue
        rule = overrides.get(op_name(node)) or RULES.get(op_name(node))
        for matches, (given, only_affine) in matchers:
            if matches(node) and (not only_affine or op_name(node) in AFFINE):
                rule = given or RULES.get(op_name(node))
        if rule is None:
            raise ValueError(
                f"no rule for {describe(node)}. Add one with @termwise.predictions.rule({op_name(node)!r}), or pass "
                f"rules={{{op_name(node)!r}: 'gradient'}} to take its own derivative and have its loss measured"
            )
        found[node.name] = rule
    return found


def _default(program: Program) -> Mapping[str, Rule]:
    if any(op_name(n) in (*SOFTMAX, *FUSED) for n in program.nodes if info(n).active):
        return RULE_SETS["attnlrp"]
    return dict.fromkeys(CONVOLUTIONS, RULE_SETS["gamma"]["conv2d"])


def _matcher(program: Program, key: Any) -> Any:
    """A predicate on nodes for one key of a mapping."""
    if isinstance(key, type) and issubclass(key, nn.Module):
        modules = dict(program.model.named_modules()) if isinstance(program.model, nn.Module) else {}
        return lambda node: isinstance(modules.get(info(node).path), key)
    if isinstance(key, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        name = str(key).removeprefix("aten.")
        return lambda node: op_name(node) == name or str(node.target) == str(key)
    if not isinstance(key, str):
        raise TypeError(f"a key of `rules` is an operator, a module class or a glob on module paths, got {key!r}")
    name = key.removeprefix("aten.")
    ops = {op_name(n) for n in program.nodes}
    paths = {info(n).path for n in program.nodes}
    if name in RULES or name in ops:
        return lambda node: op_name(node) == name
    if any(fnmatch.fnmatch(path, key) for path in paths):
        return lambda node: fnmatch.fnmatch(info(node).path, key)
    raise ValueError(
        f"{key!r} in `rules` is no operator and matches no module of {type(program.model).__name__}"
        f"{_nearest(key, [*ops, *paths, *RULES])}"
    )


def _named(value: Any) -> tuple[Rule | None, bool]:
    """A rule and whether it is for affine operations only; a name means one of `AFFINE_RULES`."""
    if callable(value):
        return value, False
    if value == "gradient":  # any operation has one
        return own_derivative, False
    if value not in AFFINE_RULES:
        raise ValueError(f"unknown rule {value!r}{_nearest(str(value), list(AFFINE_RULES))}")
    return AFFINE_RULES[value], True


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else f": known are {', '.join(known[:8])}"
