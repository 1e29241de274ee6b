"""Every architecture of the list: recorded to the bit, closed, conserved node by node, batch = single samples."""

import pytest
import torch
from tests.predictions import by_token

from termwise.core.capture import Call, capture, explained
from termwise.core.program import info
from termwise.predictions.explain import explain
from termwise.predictions.propagate import Pass
from termwise.testing.architectures import ARCHITECTURES, Subject, build

BATCH = 3
LOSSY = ("softmax", "scaled_dot_product_attention")  # what AttnLRP is known to lose at
RULES = ["default", "zero", "cp-lrp", "attnlrp", "epsilon", "gamma", "z+"]


@pytest.mark.filterwarnings("ignore:the output does not depend")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name):
    """One test per architecture, since recording it is what costs."""
    s = build(name, batch=BATCH).to(torch.float64)
    recorded_to_the_bit(name, s)
    for rules in RULES:
        adds_up(s, rules)
    for rules in ("zero", "cp-lrp", "attnlrp"):
        every_node_conserves(s, rules)
    if name in by_token.LAYERS:
        by_token.adds_up_by_token(s, by_token.LAYERS[name])
        by_token.is_relevance_run_forwards(s)
    if s.batched:
        a_batch_is_its_samples(s)
    single = build(name, batch=BATCH)
    adds_up_in_float32(single)
    if name != "fourier":  # torch has no bfloat16 FFT on the CPU
        half_precision_is_carried_in_float32(single.to(torch.bfloat16))


def why(s: Subject, rules: str, **changes):
    return explain(s.model, *s.inputs, **{"kwargs": s.kwargs, "target": s.target, "rules": rules, **changes})


def recorded_to_the_bit(name: str, s: Subject) -> None:
    program = capture(s.model, *s.inputs, kwargs=s.kwargs)
    value = program(*s.inputs, kwargs=s.kwargs)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused kernel that rounds otherwise, in eager mode only
    try:
        if name == "mixtral":  # its default experts refuse float64
            s.model.config._experts_implementation = "batched_mm"
        reference = explained(s.model(*s.inputs, **s.kwargs or {}))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    if name == "beit":  # torch.export itself moves the last bit here: its own module differs from eager as much
        torch.testing.assert_close(value, reference, rtol=1e-14, atol=1e-15)
    else:
        assert torch.equal(value, reference)
    assert all(info(n).role for n in program.nodes)


def adds_up(s: Subject, rules: str) -> None:
    found = why(s, rules)
    found.check(1e-9)
    assert sum(p.abs().sum() for p in found.inputs.values()) > 0  # a rule that returned zeros would close too


def adds_up_in_float32(s: Subject) -> None:
    for rules in ("zero", "attnlrp"):
        found = why(s, rules)
        assert found.whole.dtype == torch.float32
        # rounding grows with what cancels: 1e-5 up to a hundredfold
        found.check(1e-5 * max(1.0, found.cancellation() / 100))


def every_node_conserves(s: Subject, rules: str) -> None:
    call = Call(s.model, s.inputs, s.kwargs or {}, None)
    program = capture(s.model, *s.inputs, kwargs=s.kwargs)
    generator = torch.Generator()

    def some_scalar(output):
        """A fixed random combination of each sample's outputs: every output counts."""
        weights = torch.randn(output.shape[1:], generator=generator.manual_seed(0), dtype=output.dtype)
        return (output * weights).flatten(1).sum(1)

    # float32 casts inside a model round by 1e-8: computed in float64, conservation is seen to the last digit
    result = Pass(program, rules, measure_all=True, lift=torch.float64).run(call.tensors, some_scalar)
    scale = result.whole.abs()
    lost = {n: (p.abs() / scale).max().item() for n, p in result.parts.items() if n.startswith("rule:")}
    assert len(lost) > 3
    allowed = LOSSY if rules == "attnlrp" else ()
    broken = {n: v for n, v in lost.items() if not v < 1e-12 and n.removeprefix("rule:").partition("@")[0] not in allowed}
    assert not broken


def a_batch_is_its_samples(s: Subject) -> None:
    together = why(s, "attnlrp")
    for i in range(BATCH):
        inputs, kwargs = [x[i : i + 1] for x in s.inputs], {k: v[i : i + 1] for k, v in (s.kwargs or {}).items()}
        target = s.target if s.target is not None else together.target[i : i + 1]
        alone = explain(s.model, *inputs, kwargs=kwargs, target=target, rules="attnlrp")
        assert list(alone.parts) == list(together.parts)
        for part in alone.parts:
            ours = together[i].parts[part]
            assert ours.shape == alone.parts[part].shape
            torch.testing.assert_close(ours, alone.parts[part], rtol=0, atol=1e-11 * together.whole[i].abs().item())


def half_precision_is_carried_in_float32(s: Subject) -> None:
    found = why(s, "attnlrp")
    assert found.whole.dtype == torch.float32
    found.check(1e-5 * max(1.0, found.cancellation() / 100))
