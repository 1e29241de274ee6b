"""Rule sets by name: what each changes in the table, and how a user's mapping is read.

- ``"zero"``: LRP-0. Own derivatives, identity rule for element-wise functions, products half each, softmax constant.
  Nothing is lost anywhere. On networks of linear layers, convolutions, batch norm, ReLU and pooling it is gradient x input.
- ``"cp-lrp"``: as zero, and the gate of a gated product is constant too.
- ``"attnlrp"``: relevance goes through softmax by its own derivative; loses there, and says how much.
- ``"epsilon"``: attnlrp, with LRP-epsilon (1e-6) in every affine operation.
- ``"gamma"``, ``"z+"``, ``"alpha-beta"``: attnlrp, with that rule in every affine operation; batch norm is folded.
- ``"gamma-vit"``: attention constant, gamma 100 in convolutions (a vision transformer's patches) and 0.05 in linear layers.
- ``"mambalrp"``: attnlrp, in which the gates of a selective scan are held constant as MambaLRP does.
- ``"deep-taylor"``: z+, and w^2 in the first layer; with the range of the input known, `deep_taylor(low, high)`.
- ``"EpsilonPlus"`` and the other composites of zennit that need no range of the input: see `composites`.
- ``"default"``: attnlrp where the network has a softmax or fused attention; otherwise gamma (0.25) in convolutions,
  which is far less noisy than LRP-0 on image networks, and LRP-0 in linear layers.

A mapping overrides the default set. Its keys say where (`selection`); values are rule functions, factories' results
(``gamma(0.1)``), or the name of a rule: one of `AFFINE_RULES`, for affine operations only, or of `ANY_RULES`. Later entries win.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from termwise.core.program import Program, describe, info, op_name

from .anywhere import absolute, deconvolution, epsilon, guided, own_derivative, unchanged
from .attention import FUSED, LOGARITHMIC, SOFTMAX, attention_constant, logarithmic_constant, softmax_constant
from .composites import (
    DeconvNet,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonPlus,
    EpsilonPlusFlat,
    GuidedBackprop,
    RuleSet,
    deep_taylor,
)
from .maps import AFFINE
from .products import gated_by_constant, signal_takes_all
from .region import flat, wsquare
from .selection import matcher, nearest, operators
from .splitting import alpha_beta, gamma, zplus
from .table import AFFINE_ONLY, RULES, Rule

__all__ = ["AFFINE_RULES", "ANY_RULES", "IN_ITS_FORM", "RULE_SETS", "Rules", "name_of", "rules_of"]

Rules = str | Mapping[Any, Rule | str]

AFFINE_RULES: dict[str, Rule | None] = {
    "zero": None,
    "epsilon": epsilon(),
    "gamma": gamma(),
    "z+": zplus(),
    "alpha-beta": alpha_beta(2, 1),
    "w2": wsquare(),
    "flat": flat(),
}
"""Rules for affine operations by name; None is the table's own."""

ANY_RULES: dict[str, Rule] = {
    "gradient": own_derivative,
    "pass": unchanged,
    "norm": epsilon(),
    "abs": absolute,
    "deconvnet": deconvolution,
    "guided": guided,
}
"""Rules for operations of any kind by name: "norm" and "abs" for sums, "deconvnet" and "guided" for ReLU."""

_CONSTANT_ATTENTION: dict[Any, Rule] = {
    **dict.fromkeys(SOFTMAX, softmax_constant),
    **dict.fromkeys(LOGARITHMIC, logarithmic_constant),
    **dict.fromkeys(FUSED, attention_constant),
}
_AFFINE = operators(*AFFINE)
_CONVOLUTIONS = operators("conv*")

IN_ITS_FORM = ("dynamiclrp",)
"""Sets that exist for relevance itself and for no ratio, with tables of their own (`termwise.predictions.relevance_form`)."""

RULE_SETS: dict[str, Mapping[Any, Rule | str]] = {
    "zero": _CONSTANT_ATTENTION,
    "cp-lrp": {**_CONSTANT_ATTENTION, "mul": signal_takes_all, "glu": gated_by_constant},
    "attnlrp": {},
    "epsilon": {_AFFINE: epsilon()},
    "gamma": {_AFFINE: gamma()},
    "z+": {_AFFINE: zplus()},
    "alpha-beta": {_AFFINE: alpha_beta(2, 1)},
    "gamma-vit": {**_CONSTANT_ATTENTION, _AFFINE: gamma(0.05), _CONVOLUTIONS: gamma(100)},
    "mambalrp": {},
    "deep-taylor": deep_taylor(),
    "EpsilonPlus": EpsilonPlus,
    "EpsilonPlusFlat": EpsilonPlusFlat,
    "EpsilonAlpha2Beta1": EpsilonAlpha2Beta1,
    "EpsilonAlpha2Beta1Flat": EpsilonAlpha2Beta1Flat,
    "DeconvNet": DeconvNet,
    "GuidedBackprop": GuidedBackprop,
}
"""Name -> what the set changes in `RULES`."""


def name_of(rules: Rules) -> str:
    """What a result says of the rules that made it: the name of a set, "custom" for a mapping of the user's own."""
    return rules if isinstance(rules, str) else rules.name if isinstance(rules, RuleSet) else "custom"


def rules_of(program: Program, rules: Rules, otherwise: Rule | None = None) -> dict[str, Rule]:
    """The rule of every active node of a program, by node name; `otherwise` that of a node which none covers.

    Raises:
        ValueError: for an unknown set or rule (the nearest name is suggested), or a node that no rule covers (with
            operator, module path and line, and how to add one).
    """
    if not isinstance(rules, (str, Mapping)):
        raise TypeError(f"rules is the name of a set ({', '.join(['default', *RULE_SETS])}) or a mapping, got {rules!r}")
    entries = [*_default(program).items()] if rules == "default" or not isinstance(rules, str) else [*_named_set(rules).items()]
    entries += [] if isinstance(rules, str) else rules.items()
    matchers = [(matcher(program, key), _named(value)) for key, value in entries]
    found: dict[str, Rule] = {}
    for node in program.nodes:
        if not info(node).active or info(node).role == "cut":
            continue
        rule = RULES.get(op_name(node))
        for matches, (given, only_affine) in matchers:
            if matches(node) and (not only_affine or op_name(node) in AFFINE):
                rule = given or RULES.get(op_name(node))
        rule = rule or otherwise
        if rule is None:
            raise ValueError(
                f"no rule for {describe(node)}. Add one with @termwise.predictions.rule({op_name(node)!r}), or pass "
                f"rules={{{op_name(node)!r}: 'gradient'}} to take its own derivative and have its loss measured"
            )
        found[node.name] = rule
    return found


def _default(program: Program) -> Mapping[Any, Rule | str]:
    if any(op_name(n) in (*SOFTMAX, *FUSED) for n in program.nodes if info(n).active):
        return RULE_SETS["attnlrp"]
    return {_CONVOLUTIONS: "gamma"}


def _named_set(name: str) -> Mapping[Any, Rule | str]:
    if name == "EpsilonGammaBox":
        raise ValueError("EpsilonGammaBox needs the range of the input: rules=EpsilonGammaBox(low, high)")
    if name not in RULE_SETS:
        raise ValueError(f"unknown rules {name!r}{nearest(name, ['default', *RULE_SETS, *IN_ITS_FORM])}")
    return RULE_SETS[name]


def _named(value: Any) -> tuple[Rule | None, bool]:
    """A rule and whether it is for affine operations only, as all but epsilon are that `AFFINE_RULES` names."""
    if callable(value):
        return value, value in AFFINE_ONLY
    if value in ANY_RULES:
        return ANY_RULES[value], False
    if value not in AFFINE_RULES:
        raise ValueError(f"unknown rule {value!r}{nearest(str(value), [*AFFINE_RULES, *ANY_RULES])}")
    return AFFINE_RULES[value], True
