"""Capture: awkward models come back to the bit, every node knows its role, and the user's module is only read."""

import gc
import math
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.core import CaptureError, Program, capture
from termwise.core import capture as capture_function
from termwise.core.capture import KEPT, Call, explained
from termwise.core.composite import Composite
from termwise.core.interpret import evaluate, interpret
from termwise.core.meaning import meaning
from termwise.core.program import DERIVED, describe, info, op_name
from termwise.core.rewrite import rewrite
from termwise.core.samples import SampleAxis, per_sample


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def ops(program: Program) -> list[str]:
    return [op_name(n) for n in program.nodes]


def node(program: Program, name: str):
    (found,) = [n for n in program.nodes if op_name(n) == name]
    return found


def same_bits(program: Program, model, *inputs, kwargs=None) -> None:
    with torch.no_grad():
        wanted = explained(model(*inputs, **(kwargs or {})))
    assert torch.equal(program(*inputs, kwargs=kwargs), wanted)


# -- awkward models, to the bit ----------------------------------------------------------------------------------------


class Lambda(nn.Module):
    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


@dataclass
class Cache:
    keys: list


class ModelOutput(OrderedDict):
    """As of transformers: a mapping with attributes, one of whose values is no tensor."""

    def __getattr__(self, name):
        return self[name]


def twice_used(m, x):
    return m.lin(torch.tanh(m.lin(x)))


def in_place(m, x):
    y = x * 2
    y[:, 1] = m.lin(x)[:, 0]
    y += 1
    y[0:1].mul_(3)
    y.relu_()
    return y.masked_fill_(x > 1, -2.0)


def fourier(m, x):
    spectrum = torch.fft.rfft(x, dim=-1)
    filtered = torch.view_as_complex(torch.view_as_real(spectrum) * m.gain)
    return torch.fft.irfft(filtered * (1 + 2j), n=x.shape[-1], dim=-1)


def tied(m, ids):
    return m.table(ids) @ m.table.weight.T


def masked(m, x, mask):
    return F.softmax(m.lin(x).masked_fill(~mask, -torch.inf), -1)


LIN = lambda: nn.Linear(4, 4)
X = lambda n=3: torch.randn(n, 4)
IDS = torch.tensor([[1, 2, 0], [3, 4, 4], [5, 5, 1]])
MASK = torch.tensor([[True, True, False, True], [True, False, False, True], [True] * 4])
MODELS = {
    "a dict": (lambda: Lambda(lambda m, x: {"scores": x.long(), "logits": m.lin(x), "hidden": x}, lin=LIN()), lambda: (X(),)),
    "a tuple": (lambda: Lambda(lambda m, x: (x.long(), m.lin(x), x), lin=LIN()), lambda: (X(),)),
    "nested": (lambda: Lambda(lambda m, x: [{"a": None, "b": (3, m.lin(x))}], lin=LIN()), lambda: (X(),)),
    "an object with a cache": (
        lambda: Lambda(lambda m, x: ModelOutput(loss=None, logits=m.lin(x), past=Cache([x])), lin=LIN()), lambda: (X(),)),
    "nested inputs": (lambda: Lambda(lambda m, d, pair: m.lin(d["x"]) + pair[0] * pair[1], lin=LIN()), lambda: ({"x": X()}, (X(), X()))),
    "several inputs": (lambda: Lambda(lambda m, a, b: m.lin(a) * b, lin=LIN()), lambda: (X(), X())),
    "a boolean mask": (lambda: Lambda(masked, lin=LIN()), lambda: (X(), MASK)),
    "tied weights": (lambda: Lambda(tied, table=nn.Embedding(6, 4)), lambda: (IDS,)),
    "a module used twice": (lambda: Lambda(twice_used, lin=LIN()), lambda: (X(),)),
    "in place": (lambda: Lambda(in_place, lin=LIN()), lambda: (X(),)),
    "complex": (lambda: Lambda(fourier), lambda: (X(),)),
    "integers": (lambda: nn.EmbeddingBag(6, 4), lambda: (IDS,)),
    "a transformer's fast path": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1), lambda: (torch.randn(2, 3, 4),)),
    "a recurrent layer": (lambda: nn.LSTM(4, 3, batch_first=True), lambda: (torch.randn(2, 5, 4),)),
    "batch norm and dropout": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)), lambda: (X(),)),
    "an argument that is no tensor": (lambda: Lambda(lambda m, x, n, flip: m.lin(x) * (-n if flip else n), lin=LIN()), lambda: (X(), 3, True)),
    "constants made in forward": (lambda: Lambda(lambda m, x: m.lin(x) + torch.arange(4) + torch.tensor([1.0, 2, 3, 4])), lambda: (X(),)),
    "a detached value": (lambda: Lambda(lambda m, x: m.lin(x).detach() + x, lin=LIN()), lambda: (X(),)),
    "a checkpointed block": (lambda: Lambda(lambda m, x: torch.utils.checkpoint.checkpoint(m.lin, x, use_reentrant=False), lin=LIN()), lambda: (X(),)),
    "its own input": (lambda: nn.Identity(), lambda: (X(),)),
    "float64": (lambda: nn.Linear(4, 2).double(), lambda: (X().double(),)),
    "bfloat16": (lambda: nn.Linear(4, 2).bfloat16(), lambda: (X().bfloat16(),)),
}  # fmt: skip


def build(name: str):
    make, inputs = MODELS[name]
    model = make()
    if name == "complex":
        model.gain = nn.Parameter(torch.randn(3, 2))
    if name == "constants made in forward":
        model.lin = LIN()
    return model.eval(), inputs()


@pytest.mark.parametrize("name", MODELS)
def test_the_identity_interpreter_gives_the_model_to_the_bit(name):
    model, inputs = build(name)
    program = capture(model, *inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a kernel that rounds otherwise, in eager mode only
    try:
        same_bits(program, model, *inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert program.check() is program
    assert program.how == "export"
    rewritten = rewrite(program, {})
    with torch.no_grad():
        assert torch.equal(rewritten(None, *program.bind(program.tensors(*inputs), detached=False).values()), program(*inputs))


def test_a_function_is_as_good_as_a_module():
    def function(x, *, scale):
        return torch.sin(x) * scale

    x, scale = X(), torch.tensor(2.0)
    program = capture(function, x, kwargs={"scale": scale})
    assert torch.equal(program(x, kwargs={"scale": scale}), function(x, scale=scale))
    assert [p.name for p in program.placeholders.values()] == ["x", "scale"]


def test_a_lone_mapping_is_keywords():
    model = Lambda(
        lambda m, input_ids, attention_mask: m.table(input_ids) * attention_mask[..., None], table=nn.Embedding(6, 4)
    ).eval()
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    program = capture(model, batch)
    assert torch.equal(program(batch), model(**batch))
    assert torch.equal(program(kwargs=batch), model(**batch))


def test_logits_are_found_and_can_be_overruled():
    model = Lambda(lambda m, x: {"hidden": x * 2, "logits": m.lin(x)}, lin=LIN()).eval()
    x = X()
    assert torch.equal(capture(model, x)(x), model(x)["logits"])
    hidden = lambda output: output["hidden"]
    assert torch.equal(capture(model, x, select=hidden)(x), x * 2)


# -- control flow on data ----------------------------------------------------------------------------------------------


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = LIN(), LIN()

    def forward(self, x):
        return self.up(x) if x.sum() > 0 else self.down(x)


def test_a_branch_on_data_is_traced_and_says_so():
    model = Branch().eval()
    x = torch.ones(2, 4)
    program = capture(model, x)
    assert program.how.startswith("trace: ")
    assert {info(n).path for n in program.nodes if op_name(n) == "linear"} == {"up"}
    assert program.dynamic == {"x": ()}
    same_bits(program, model, x)
    same_bits(program, model, x + 1)


def test_another_decision_is_an_error_and_never_a_wrong_value():
    model = Branch().eval()
    program = capture(model, torch.ones(2, 4))
    with pytest.raises(CaptureError, match=r"decided by a number read from a tensor .* it was True .* and is False now"):
        program(-torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"recorded for \{'x': \[2, 4\]\} \(trace.*got \{'x': \[3, 4\]\}: capture it anew"):
        program(torch.ones(3, 4))


def test_the_decision_is_kept_by_every_way_to_run():
    model = Branch().eval()
    x = -torch.ones(2, 4)
    program = capture(model, torch.ones(2, 4))
    bound = program.bind([x])
    with pytest.raises(CaptureError), torch.no_grad():
        evaluate(program.graph, bound)
    with pytest.raises(CaptureError), torch.no_grad():
        rewrite(program, {})(None, *bound.values())


def test_a_number_read_in_a_module_names_it():
    class Inner(nn.Module):
        def forward(self, x):
            return x * 2 if x.max().item() > 0.5 else x

    model = nn.Sequential(nn.Linear(4, 4), Inner()).eval()
    model[0].weight.data.fill_(1.0)
    program = capture(model, torch.ones(1, 4))
    with pytest.raises(CaptureError, match=r"at 1: it was"):
        program(torch.ones(1, 4) * 3)


def test_a_number_that_is_used_as_a_value_cannot_be_taken_apart():
    """x.sum().item() * x would hide that the factor depends on x: refused, or recorded as a tensor."""
    model = Lambda(lambda m, x: x * x.sum().item()).eval()
    try:
        program = capture(model, torch.ones(1, 4))
    except CaptureError as problem:
        assert "could not be recorded" in str(problem)
        return
    x = 2 * torch.ones(1, 4)
    try:
        value = program(x)
    except CaptureError as problem:
        assert "number read from a tensor" in str(problem)
    else:
        assert torch.equal(value, model(x))


def test_numpy_inside_is_an_error_that_names_the_model():
    model = Lambda(lambda m, x: torch.from_numpy(x.numpy() * 2)).eval()
    with pytest.raises(CaptureError, match=r"Lambda could not be recorded"):
        capture(model, X())


def test_a_loop_that_ends_by_data():
    def halve(m, x):
        while x.abs().max() > 1:
            x = m.lin(x) / 8
        return x

    model = Lambda(halve, lin=LIN()).eval()
    x = 9 * torch.ones(2, 4)
    program = capture(model, x)
    assert ops(program).count("linear") == ops(program).count("decision") - 1 > 0
    same_bits(program, model, x)


def test_views_and_writes_in_the_fallback():
    def write(m, x):
        y = m.lin(x)
        row = y[0]
        row[1:3] = 5.0
        if y.sum() > -1e9:  # read after the write
            y.view(-1)[::2].mul_(2)
        return row + y

    model = Lambda(write, lin=LIN()).eval()
    x = X(2)
    program = capture(model, x)
    assert program.how.startswith("trace")
    same_bits(program, model, x)
    same_bits(program, model, x * 0.5)


def test_the_fallback_keeps_roles_paths_and_weights():
    model = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), second=Branch())).eval()
    x = torch.ones(2, 4)
    model.first.bias.data.fill_(100.0)
    program = capture(model, x)
    assert {info(n).path for n in program.nodes if op_name(n) == "linear"} <= {"first", "second.up", "second.down"}
    kinds = {p.name: p.kind for p in program.placeholders.values()}
    assert kinds["first.weight"] == "parameter"
    assert kinds["input"] == "input"


def test_the_private_switch_of_the_tracer_is_still_there():
    """Without it every number read from a tensor would be refused; a new torch must not take it away unnoticed."""
    from torch.fx.experimental.proxy_tensor import make_fx

    traced = make_fx(lambda x: x * 2 if x.sum().item() > 0 else x, pre_dispatch=True, _error_on_data_dependent_ops=False)(
        torch.ones(2)
    )
    assert any("item" in str(n.target) or "_local_scalar_dense" in str(n.target) for n in traced.graph.nodes)


# -- the model stays the user's ----------------------------------------------------------------------------------------


def test_weights_edited_in_place_stay_visible():
    model, x = nn.Linear(4, 2).eval(), X()
    program = capture(model, x)
    model.weight.data.mul_(2)
    same_bits(program, model, x)


def test_a_replaced_parameter_stays_visible():
    model, x = nn.Linear(4, 2).eval(), X()
    program = capture(model, x)
    model.weight = nn.Parameter(torch.randn(2, 4))
    same_bits(program, model, x)
    model.load_state_dict({"weight": torch.zeros(2, 4), "bias": torch.ones(2)})
    assert torch.equal(program(x), torch.ones(3, 2))
    model.weight = None
    with pytest.raises(CaptureError, match=r"weight of Linear is no tensor any more: capture the model anew"):
        program(x)


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), Branch])
def test_the_module_is_untouched(make):
    model = make().eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    frozen = next(model.parameters()).requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = [sorted(vars(m)) for m in model.modules()]
    identities = [id(p) for p in model.parameters()]
    x = torch.ones(2, 4, requires_grad=True)
    program = capture(model, x)
    program(x)
    _ = program.axes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all((p.grad == 0.5).all() for p in model.parameters())
    assert not frozen.requires_grad
    assert [id(p) for p in model.parameters()] == identities
    assert [sorted(vars(m)) for m in model.modules()] == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m.training for m in model.modules())
    assert x.grad is None


def test_hooks_of_the_user_are_part_of_the_model():
    model, x = nn.Linear(4, 2).eval(), X()
    handle = model.register_forward_hook(lambda module, args, output: output * 3)
    program = capture(model, x)
    same_bits(program, model, x)
    handle.remove()


def test_training_mode_names_eval_and_the_module():
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(ValueError, match=r"Sequential is in training mode \(at 1\), .*call model\.eval\(\) first"):
        capture(model, X())
    with pytest.raises(ValueError, match=r"Sequential is in training mode, .*call model\.eval\(\) first"):
        capture(model.train(), X())


def test_what_cannot_be_called():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module or a function of tensors, got int"):
        capture(3, X())
    with pytest.raises(CaptureError, match="no floating tensor to explain"):
        capture(Lambda(lambda m, x: x.long()).eval(), X())


def test_the_model_can_be_garbage_collected():
    model = nn.Linear(4, 2).eval()
    gone = weakref.ref(model)
    program = capture(model, X())
    _ = program.axes
    del model, program
    gc.collect()
    assert gone() is None


def test_global_chance_is_left_alone():
    model, x = Branch().eval(), torch.ones(2, 4)
    before = torch.get_rng_state()
    _ = capture(model, x).axes
    assert torch.equal(torch.get_rng_state(), before)


def test_a_compiled_model_is_unwrapped():
    model, x = nn.Linear(4, 2).eval(), X()
    compiled = torch.compile(model)
    assert capture(compiled, x).model is model
    same_bits(capture(compiled, x), model, x)


# -- the cache, and free sizes -----------------------------------------------------------------------------------------


def test_the_same_call_is_recorded_once(monkeypatch):
    import sys

    module = sys.modules["termwise.core.capture"]
    recordings = []
    record = module._record
    monkeypatch.setattr(module, "_record", lambda call: recordings.append(call) or record(call))
    model, x = nn.Linear(4, 2).eval(), X()
    first = capture(model, x)
    assert capture(model, torch.randn(7, 4)).graph is first.graph  # another batch
    assert len(recordings) == 1
    assert capture(model, x, select=lambda y: y).graph is not first.graph
    assert len(recordings) == 2
    model.double()
    assert capture(model, x.double()).graph is not first.graph
    assert len(recordings) == 3
    capture(nn.Linear(4, 2).eval(), x)
    assert len(recordings) == 4
    assert capture_function is capture


def test_recordings_and_what_is_made_of_them_are_bounded():
    model = Lambda(lambda m, x, n: m.lin(x) * n, lin=LIN()).eval()
    x = X()
    kept = [weakref.ref(capture(model, x, n).graph) for n in range(KEPT)]
    assert capture(model, x, 0).graph is kept[0]()  # read again, and so not the first to go
    capture(model, x, KEPT)
    gc.collect()
    assert [graph() is None for graph in kept] == [False, True, *[False] * (KEPT - 2)]
    assert capture(model, x, 0).graph is kept[0]()
    program = capture(model, x, 0)
    for i in range(3 * DERIVED):
        program.derived[i] = i
    assert len(program.derived) == DERIVED
    assert program.of(model).derived is program.derived


def test_one_tensor_given_twice_is_two_arguments():
    """Recorded as one, the program would be another for arguments that differ."""

    def difference(a, b):
        return (3 * a - b).sum(1)

    x = torch.randn(2, 4)
    program = capture(difference, x, x)
    assert [p.name for p in program.placeholders.values()] == ["a", "b"]
    same_bits(program, difference, x, x)
    same_bits(capture(difference, torch.randn(2, 4), x), difference, torch.randn(2, 4), x)
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    again = capture(difference, a, b)
    assert again.graph is program.graph
    assert torch.equal(again(a, b), difference(a, b))


LEVEL, TABLE = 1, [0, 1]


def inner(z):
    return z[:, LEVEL]


def test_functions_are_the_same_when_code_and_what_is_around_are(monkeypatch):
    def pick(k, c=0):
        return lambda z: z[:, k] + c

    assert meaning(pick(1)) == meaning(pick(1))
    assert hash(meaning(pick(1))) == hash(meaning(pick(1)))
    different = [
        pick(1),
        pick(2),
        pick(True),
        pick(1.0),
        pick(1, 1),
        lambda z: z[:, 1],
        lambda z: z[:, 2],
        lambda z, k=1: z[:, k],
    ]
    assert len({meaning(f) for f in different}) == len(different)
    reading = lambda: (lambda z: z[:, TABLE[0]], lambda z: (lambda: z[:, TABLE[0]])())
    for f, g in zip(reading(), reading(), strict=True):  # a list may change between two calls
        assert meaning(f) is f
        assert meaning(f) != meaning(g)

    def reads(of):
        return lambda z: of(z) + LEVEL

    before, through = meaning(lambda z: z[:, LEVEL]), meaning(reads(inner))
    assert meaning(reads(inner)) == through
    monkeypatch.setitem(globals(), "LEVEL", 2)
    assert meaning(lambda z: z[:, LEVEL]) != before
    assert meaning(reads(inner)) != through
    assert meaning(torch.relu) is torch.relu


def test_an_argument_that_is_no_tensor_is_part_of_the_key():
    model = Lambda(lambda m, x, n: m.lin(x) * n, lin=LIN()).eval()
    x = X()
    for n in (2, 3, 2):
        same_bits(capture(model, x, n), model, x, n)
    with pytest.raises(ValueError, match="capture it anew"):
        capture(model, x, 2)(x, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].register_forward_hook(lambda module, args, output: 2 * output),
        lambda m: m.__setitem__(1, nn.Tanh().eval()),
        lambda m: setattr(m[1], "negative_slope", 0.5),
    ],
    ids=["hook", "module", "attribute"],
)
def test_a_model_that_was_changed_is_recorded_anew(change):
    model = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3)
    capture(model, x)
    change(model)
    same_bits(capture(model, x), model, x)


def test_a_forward_pass_that_sets_an_attribute_changes_nothing():
    class Remembers(nn.Module):
        length = None

        def forward(self, x):
            self.length = len(x.shape)
            return 2 * x

    model, x = Remembers().eval(), torch.ones(2, 3)
    program = capture(model, x)
    assert torch.equal(program(x), 2 * x)
    assert capture(model, x).graph is program.graph


def test_the_tensor_to_explain_in_a_dataclass():
    @dataclass
    class Output:
        hidden: torch.Tensor
        logits: torch.Tensor

    @dataclass
    class Plain:
        step: int
        value: torch.Tensor

    x = torch.ones(2, 3)
    assert torch.equal(capture(lambda x: Output(x, 2 * x), x)(x), 2 * x)
    assert torch.equal(capture(lambda x: Plain(1, 3 * x), x)(x), 3 * x)


def test_the_cache_does_not_mix_programs_of_two_equal_models():
    a, b = nn.Linear(4, 2).eval(), nn.Linear(4, 2).eval()
    x = X()
    pa, pb = capture(a, x), capture(b, x)
    same_bits(pa, a, x)
    same_bits(pb, b, x)


@pytest.mark.parametrize("recorded", [1, 2, 3])
@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "attention"])
def test_one_recording_serves_every_batch(name, recorded):
    make, sample = {
        "mlp": (lambda: nn.Sequential(LIN(), nn.GELU(), LIN()), lambda n: torch.randn(n, 4)),
        "conv": (
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)),
            lambda n: torch.randn(n, 1, 4, 4),
        ),
        "tokens": (lambda: nn.Sequential(nn.Embedding(6, 4), LIN()), lambda n: torch.arange(4 * n).reshape(n, 4) % 6),
        "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), lambda n: torch.randn(n, 3, 4)),
    }[name]
    model = make().eval()
    program = capture(model, sample(recorded))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for n in (1, 2, 7):
            same_bits(program, model, sample(n))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert all(0 in free for free in program.dynamic.values())


def test_token_inputs_are_free_in_their_length():
    model = nn.Sequential(nn.Embedding(6, 4), LIN()).eval()
    program = capture(model, IDS)
    assert program.dynamic == {"input": (0, 1)}
    same_bits(program, model, torch.tensor([[1, 2, 3, 4, 5]]))


def test_a_shape_that_does_not_fit_is_named():
    program = capture(nn.Linear(4, 2).eval(), X())
    with pytest.raises(ValueError, match=r"recorded for \{'input': \['free', 4\]\} \(export\), got \{'input': \[3, 5\]\}"):
        program(torch.ones(3, 5))


# -- what is recognised ------------------------------------------------------------------------------------------------

SPELLINGS = {
    "gelu by erf": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "gelu by tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
    "gelu by x*x*x": lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * x * (1 + 0.044715 * x * x))),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "hard swish": lambda x: x * (F.relu6(x + 3) / 6),
    "square": lambda x: x * x,
    "relu squared": lambda x: F.relu(x) * F.relu(x),
    "snake": lambda x: x + torch.sin(x).pow(2),
    "by where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "with casts": lambda x: (x.double() * torch.sigmoid(x.double())).float(),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_function_of_one_variable_is_one_node(name):
    model = Lambda(lambda m, x: m.out(SPELLINGS[name](m.lin(x))), lin=LIN(), out=LIN()).eval()
    x = X()
    program = capture(model, x)
    inner = [n for n in program.nodes if op_name(n) not in ("linear", "_to_copy", "to")]
    assert [op_name(n) for n in inner] == ["pointwise"], str(program)
    assert isinstance(inner[0].target, Composite)
    assert "pointwise" in str(program)
    same_bits(program, model, x)


def test_a_product_of_two_values_is_no_function_of_one():
    model = Lambda(lambda m, x: m.a(x) * torch.sigmoid(m.b(x)), a=LIN(), b=LIN()).eval()
    program = capture(model, X())
    product = node(program, "mul")
    assert info(product).gates == (1,)
    assert "pointwise" not in ops(program)


def test_an_inner_value_that_is_used_elsewhere_is_not_hidden():
    def both(m, x):
        gate = torch.sigmoid(1.702 * x)
        return m.lin(x * gate) + gate

    model, x = Lambda(both, lin=LIN()).eval(), X()
    program = capture(model, x)
    assert "pointwise" not in ops(program)
    same_bits(program, model, x)


def rms(x, weight, cast=False, eps=1e-6):
    inner = x.double() if cast else x
    normed = inner * torch.rsqrt(inner.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (normed.to(x.dtype) if cast else normed)


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("square", ["pow", "mul"])
def test_rms_norm_in_primitives_is_one_node(cast, square):
    def forward(m, x):
        x = m.lin(x)
        if square == "mul":
            inner = x.double() if cast else x
            normed = inner * torch.rsqrt((inner * inner).mean(-1, keepdim=True) + 1e-6)
            return m.out(m.weight * normed.to(x.dtype))
        return m.out(rms(x, m.weight, cast))

    model = Lambda(forward, lin=LIN(), out=LIN()).eval()
    model.weight = nn.Parameter(torch.rand(4))
    x = X()
    program = capture(model, x)
    assert ops(program) == ["linear", "rms_norm", "linear"], str(program)
    same_bits(program, model, x)
    held = node(program, "rms_norm").target
    y = torch.randn(2, 4, requires_grad=True)
    value = held.constant(y, model.weight.detach()) if not cast else None
    if value is not None:  # the normaliser is held: the derivative is the gain alone
        (g,) = torch.autograd.grad(value.sum(), y)
        torch.testing.assert_close(g * y.detach(), value.detach())


def test_rotary_is_one_node():
    def turn(m, x, cos, sin):
        half = x.shape[-1] // 2
        return m.lin(x) * cos + torch.cat((-m.lin(x)[..., half:], m.lin(x)[..., :half]), -1) * sin

    def turn_once(m, x, cos, sin):
        x = m.lin(x)
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    model = Lambda(turn_once, lin=LIN()).eval()
    args = torch.randn(2, 3, 4), torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    program = capture(model, *args)
    assert ops(program) == ["linear", "rotary"], str(program)
    same_bits(program, model, *args)
    other = Lambda(turn, lin=LIN()).eval()
    same_bits(capture(other, *args), other, *args)


def test_a_normaliser_is_held():
    model = Lambda(lambda m, x: m.lin(x) / m.lin(x).norm(dim=-1, keepdim=True), lin=LIN()).eval()
    same = Lambda(lambda m, x: (y := m.lin(x)) / y.norm(dim=-1, keepdim=True), lin=LIN()).eval()
    assert info(node(capture(same, X()), "div")).held == (1,)
    assert info(node(capture(model, X()), "div")).held == ()  # two values that only happen to be equal


class Scan(nn.Module):
    """A selective scan: h = a h + delta B x, y = h C."""

    def __init__(self):
        super().__init__()
        self.delta, self.b, self.c, self.a = nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(2, 3), nn.Parameter(-torch.rand(2, 3))

    def forward(self, x):
        delta, b, c = F.softplus(self.delta(x)), self.b(x), self.c(x)
        gate, drive = torch.exp(delta[..., None] * self.a), delta[..., None] * b[:, :, None]
        u = drive * x[..., None]
        h, out = torch.zeros(x.shape[0], 2, 3, dtype=x.dtype), []
        for t in range(x.shape[1]):
            h = gate[:, t] * h + u[:, t]
            out.append(torch.matmul(h, c[:, t, :, None])[..., 0])
        return torch.stack(out, 1)


def test_the_gates_of_a_selective_scan_are_held():
    model, x = Scan().eval(), torch.randn(2, 4, 2)
    program = capture(model, x)
    same_bits(program, model, x)
    steps = [n for n in program.nodes if op_name(n) == "mul" and any(op_name(u) == "add" for u in n.users)]
    held = [n for n in steps if info(n).held]
    assert len(held) >= 3, str(program)  # every step but perhaps the first, whose state is zero
    for n in held:
        (position,) = info(n).held
        gate = n.args[position]
        while op_name(gate) in ("select", "slice", "view"):
            gate = gate.args[0]
        assert op_name(gate) == "exp"
    reads = [n for n in program.nodes if op_name(n) == "matmul"]
    assert reads
    assert all(info(n).held == (1,) for n in reads)


# -- where samples lie -------------------------------------------------------------------------------------------------


def axis(program: Program, op: str) -> SampleAxis | None:
    return program.axes[node(program, op).name]


def test_the_first_axis_by_default():
    program = capture(nn.Sequential(LIN(), nn.ReLU()).eval(), X())
    assert axis(program, "relu") == SampleAxis(0)


def test_a_batch_folded_into_windows():
    def windows(m, x):  # (batch, 4, 3) -> (batch * 2 windows, 2, 3)
        y = torch.tanh(m.lin(x.reshape(-1, 2, 3)))
        return y.reshape(x.shape)

    program = capture(Lambda(windows, lin=nn.Linear(3, 3)).eval(), torch.randn(3, 4, 3))
    found = axis(program, "tanh")
    assert (found.dim, found.inner) in ((0, None), (0, 2))
    _each_sample_is_found(program, "tanh", torch.randn(3, 4, 3))


def test_windows_that_are_not_sample_major():
    def windows(m, x):  # (batch, 4, 3) -> (2 windows, batch, 2, 3) -> (2 * batch, 2, 3)
        y = torch.tanh(m.lin(x.reshape(-1, 2, 2, 3).transpose(0, 1).reshape(-1, 2, 3)))
        return y.reshape(2, x.shape[0], 2, 3).transpose(0, 1).reshape(x.shape)

    x = torch.randn(3, 4, 3)
    program = capture(Lambda(windows, lin=nn.Linear(3, 3)).eval(), x)
    assert axis(program, "tanh") == SampleAxis(0, 1)
    _each_sample_is_found(program, "tanh", x)


def test_the_batch_second():
    x = torch.randn(3, 5, 4)
    program = capture(Lambda(lambda m, x: torch.tanh(m.lin(x).transpose(0, 1)).mean(0), lin=LIN()).eval(), x)
    assert axis(program, "tanh") == SampleAxis(1)
    _each_sample_is_found(program, "tanh", x)


def test_heads_folded_with_the_batch():
    def heads(m, x):  # (batch, tokens, 2 heads * 2) -> (batch * heads, tokens, 2)
        y = m.lin(x).unflatten(-1, (2, 2)).transpose(1, 2).flatten(0, 1)
        return torch.tanh(y).unflatten(0, (x.shape[0], 2)).transpose(1, 2).flatten(2)

    x = torch.randn(3, 5, 4)
    program = capture(Lambda(heads, lin=LIN()).eval(), x)
    _each_sample_is_found(program, "tanh", x)


def test_samples_that_influence_each_other_have_no_axis():
    program = capture(Lambda(lambda m, x: torch.tanh(m.lin(x) - m.lin(x).mean(0)), lin=LIN()).eval(), X())
    assert axis(program, "tanh") is None
    with pytest.raises(ValueError, match="the samples of this batch influence each other here"):
        per_sample(torch.ones(3, 4), None, 3)


def test_per_sample_is_a_rearrangement():
    value = torch.arange(24).reshape(12, 2)
    assert torch.equal(per_sample(value, SampleAxis(0), 3), value.reshape(3, 4, 2))
    assert torch.equal(per_sample(value, SampleAxis(0, 1), 3), value.reshape(4, 3, 2).transpose(0, 1))
    assert torch.equal(per_sample(value, SampleAxis(0, 2), 3), value.reshape(2, 3, 2, 2).transpose(0, 1).reshape(3, 4, 2))
    assert torch.equal(per_sample(value.T, SampleAxis(1), 3), value.T.reshape(2, 3, 4).transpose(0, 1))
    assert torch.equal(per_sample(value, None, 1), value[None])


def _each_sample_is_found(program: Program, op: str, x: Tensor) -> None:
    """What `per_sample` cuts out of the batch's value is the value of that sample alone, in some shape."""
    target = node(program, op)

    def value(x: Tensor) -> Tensor:
        kept = {}

        def visit(n, args, kwargs):
            kept[n.name] = n.target(*args, **kwargs)
            return kept[n.name]

        with torch.no_grad():
            interpret(program.graph, program.bind([x]), visit)
        return kept[target.name]

    together = per_sample(value(x), program.axes[target.name], len(x))
    for i in range(len(x)):
        torch.testing.assert_close(together[i].flatten().sort()[0], value(x[i : i + 1]).flatten().sort()[0])


# -- what a program tells ----------------------------------------------------------------------------------------------


def test_roles():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.places, self.lin = nn.Embedding(6, 4), nn.Embedding(9, 4), LIN()
            self.register_buffer("offset", torch.ones(4))

        def forward(self, ids, mask):
            places = self.places(torch.arange(ids.shape[1]))
            x = self.table(ids) + places + self.offset.exp()
            return self.lin(x) * mask[..., None] + self.lin.weight.T[0]

    model = Model().eval()
    program = capture(model, IDS, torch.ones(3, 3, dtype=torch.long))
    by_op = {}
    for n in program.nodes:
        by_op.setdefault(op_name(n), []).append(info(n).role)
    assert by_op["embedding"].count("cut") == 1
    assert sorted(by_op["embedding"])[0] in ("constant", "cut", "parameter")
    (cut,) = [n for n in program.nodes if info(n).role == "cut"]
    assert (info(cut).origin, info(cut).path) == ("ids", "table")
    assert info(node(program, "linear")).role == "activation"
    assert info(node(program, "exp")).role == "constant"
    assert all(r == "index" for r in by_op["unsqueeze"])
    assert set(by_op["select"]) == {"parameter"}


def test_every_node_has_a_path_and_a_line():
    model = nn.Sequential(
        OrderedDict(body=nn.Sequential(LIN(), nn.ReLU()), head=Lambda(lambda m, x: m.lin(x) * 2, lin=LIN()))
    ).eval()
    program = capture(model, X())
    assert [info(n).path for n in program.nodes] == ["body.0", "body.1", "head.lin", "head"]
    assert info(program.nodes[-1]).source.startswith("test_capture.py:")
    assert describe(program.nodes[-1]).startswith("aten.mul at head (test_capture.py:")
    assert info(program.nodes[0]).active


def test_a_table_that_can_be_read():
    program = capture(nn.Sequential(OrderedDict(first=LIN(), act=nn.ReLU())).eval(), X())
    lines = str(program).splitlines()
    assert lines[0] == "Program(Sequential: 2 nodes, 2 active, by export)" == repr(program)
    assert lines[1].split() == ["node", "op", "role", "shape", "module", "source"]
    assert lines[2].split()[1:] == ["linear", "activation", lines[2].split()[3], "first", info(program.nodes[0]).source]
    assert lines[2].split()[3].startswith("batchx")
    assert len(program) == 2
    assert max(map(len, lines)) < 160
    assert program.output.name == program.nodes[-1].name


def test_an_incomplete_program_is_refused():
    import torch.fx

    x = X()
    program = capture(nn.Sequential(LIN(), nn.ReLU()).eval(), x)
    del program.nodes[0].meta["info"]
    with pytest.raises(CaptureError, match="was given no role"):
        program.check()
    program = capture(nn.Sequential(LIN(), nn.ReLU()).eval(), x)
    with program.graph.inserting_after(program.nodes[0]):
        dead = program.graph.call_function(torch.ops.aten.sin.default, (program.nodes[0],))
    dead.meta["info"] = info(program.nodes[0])
    with pytest.raises(CaptureError, match=r"aten\.sin at 0 .*is used by nothing"):
        program.check()
    program = capture(nn.Sequential(LIN(), nn.ReLU()).eval(), x)
    program.nodes[1].target = torch.ops.aten.relu_.default
    with pytest.raises(CaptureError, match="writes into its argument"):
        program.check()


def test_the_names_of_arguments():
    model = Lambda(lambda m, a, *rest, b=None: a, lin=LIN()).eval()

    class Named(nn.Module):
        def forward(self, pixels, extra, *, scale):
            return pixels * extra["k"][0] + scale

    call = Call(Named().eval(), (X(), {"k": [X()]}), {"scale": X()}, None)
    assert call.names == ["pixels", "extra.k.0", "scale"]
    assert Call(model, (X(), X()), {"b": X()}, None).names[-1] == "b"


def test_samples_are_told_apart_in_a_strided_batch():
    """Its layout chooses other kernels, and what these round otherwise is no influence of one sample on another."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x = torch.zeros(8, 6, dtype=torch.float64).T[::2, ::2][:2].copy_(torch.randn(2, 4, dtype=torch.float64))
    assert not x.is_contiguous()
    assert set(capture(model, x).axes.values()) == {SampleAxis(0)}


def test_a_view_is_the_reshape_that_it_is():
    """What it views may have other strides in another batch, in a rewrite, or where a pooled map comes out of another kernel."""
    torch.manual_seed(0)
    up = nn.ConvTranspose1d(3, 2, 2).eval()
    model = Lambda(
        lambda m, a: m.up(F.avg_pool1d(torch.rot90(a, 1, (1, 2)), 1) + m.shift.weight).flatten(1),
        up=up,
        shift=nn.Linear(1, 1, bias=False),
    ).eval()
    x = torch.randn(2, 4, 3)
    program = capture(model, x)
    assert not {"view", "_unsafe_view"} & {op_name(n) for n in program.nodes}
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, 3)
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=0)
    strided = torch.randn(2, 3, 4).transpose(1, 2)
    torch.testing.assert_close(program(strided), model(strided))
