"""The contract of every method that returns a Decomposition, as one list of checks.

    whole = sum of parts + remainder;    `check()` passes where the method is exact, and can fail

A method's own tests run the same list as ours: in one call,

    check_decomposition(lambda x: explain(model, x), exact=True, inputs=(x,), models=(model,))

or, for one test per check, in a class that is parametrised with examples:

    @pytest.mark.parametrize("example", ROWS.values(), ids=ROWS)
    class TestContract(DecompositionContract): ...

A check that a method cannot keep is named in `Example.exceptions`, with the reason.
"""

from __future__ import annotations

import copy
import math
import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from termwise.core.decomposition import Decomposition, DoesNotAddUp

__all__ = ["CHECKS", "DecompositionContract", "Example", "check_decomposition"]


@dataclass(frozen=True)
class Example:
    """A method and one call of it.

    Attributes:
        make: called as ``make(*inputs)``, returns the Decomposition. What it needs of chance it seeds itself.
        exact: whether the parts make the whole up to rounding.
        inputs: tensors, or nested containers of tensors.
        models: the modules that it looks into; they must be left as they are.
        rtol: what counts as rounding; by dtype when not given.
        batched: whether the first axis of every input is the sample, and samples are independent.
        exceptions: name of a check -> why this method does not keep it.
    """

    make: Callable[..., Decomposition]
    exact: bool
    inputs: tuple[Any, ...] = ()
    models: tuple[nn.Module, ...] = ()
    rtol: float | None = None
    batched: bool = True
    exceptions: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> Decomposition:
        """The decomposition, from fresh copies of the inputs."""
        return self.make(*copies(self.inputs))


def check_decomposition(
    make: Callable[..., Decomposition],
    *,
    exact: bool,
    inputs: tuple[Any, ...] = (),
    models: tuple[nn.Module, ...] = (),
    rtol: float | None = None,
    batched: bool = True,
    exceptions: Mapping[str, str] | None = None,
) -> Decomposition:
    """Run every check of the contract on one method.

    Args:
        make: called as ``make(*inputs)``, returns a Decomposition.
        exact: whether its parts make the whole up to rounding.
        inputs: what it is called with.
        models: modules that must come out unchanged.
        rtol: largest relative remainder that counts as rounding; by dtype when not given.
        batched: whether inputs have independent samples along their first axis.
        exceptions: name of a check (see `CHECKS`) -> why this method does not keep it.

    Returns:
        What ``make(*inputs)`` gave.

    Raises:
        AssertionError: naming the check that failed, and how.

    Example:
        >>> def halves(x):
        ...     return Decomposition(x.detach().clone(), {"one": x.detach() / 2, "other": x.detach() / 2})
        >>> check_decomposition(halves, exact=True, inputs=(torch.ones(3, 2),)).error()
        0.0
    """
    example = Example(make, exact, inputs, models, rtol, batched, dict(exceptions or {}))
    if unknown := set(example.exceptions) - set(CHECKS):
        raise ValueError(f"no check of the contract is called {', '.join(sorted(unknown))}: there are {', '.join(CHECKS)}")
    for name, check in CHECKS.items():
        if name not in example.exceptions:
            try:
                check(example)
            except AssertionError as problem:
                raise AssertionError(f"{name}: {problem}") from None
    return example()


class DecompositionContract:
    """One test per check, for a test class parametrised with `example`; see the module's docstring."""


CHECKS: dict[str, Callable[[Example], None]] = {}
"""Name -> check. Each takes an Example and raises AssertionError."""


def _check(function: Callable[[Example], None]) -> Callable[[Example], None]:
    """Enter into the list, and into the test class."""
    name = function.__name__

    def test(self: DecompositionContract, example: Example) -> None:
        if name in example.exceptions:
            import pytest

            pytest.skip(example.exceptions[name])
        function(example)

    test.__doc__ = function.__doc__
    CHECKS[name] = function
    setattr(DecompositionContract, f"test_{name}", test)
    return function


# -- the identity ------------------------------------------------------------------------------------------------------


@_check
def adds_up(example: Example) -> None:
    """Parts and remainder make the whole, and `total` is what the contributions sum to."""
    d = example()
    _require(bool(d.parts), "there are no parts")
    _require(bool(d.whole.isfinite().all()), f"the whole is {d.whole}")
    size = d.whole.abs() + sum(c.abs() for c in d.contributions().values())
    gap = (d.total() + d.remainder - d.whole).abs()
    _require(bool((gap <= 1e-6 * size).all()), f"parts and remainder miss the whole by {gap.max().item():.2g}")
    rest = d.whole - d.total()
    _require(torch.equal(d.remainder, rest), "the remainder is not whole - total()")


@_check
def check_passes_where_exact_and_can_fail(example: Example) -> None:
    """`check()` says the truth: exact or not, and never of a decomposition with a wrong part."""
    d = example()
    if example.exact:
        _require(d.check(example.rtol) is d, "check() does not return the decomposition")
    else:
        _require(_fails(d, example.rtol), f"check() passes at {d.error():.2g}, and the method is said not to be exact")
        d.check(1.01 * d.error())
    for name in d.parts:
        wrong = _with_part(d, name, d.parts[name] + (1 + d.whole.abs().max()))
        _require(_fails(wrong, example.rtol), f"check() passes though part {name!r} is wrong: something subtracts the parts")


@_check
def a_missing_number_fails(example: Example) -> None:
    """NaN or infinity in a part is no decomposition."""
    d = example()
    for value in (math.nan, math.inf):
        for name, part in d.parts.items():
            broken = part.clone()
            broken.view(-1)[:1] = value
            if broken.numel():
                _require(_fails(_with_part(d, name, broken), None), f"check() passes with {value} in part {name!r}")


@_check
def names_are_unique_words(example: Example) -> None:
    """Every part has a name of its own."""
    d = example()
    names = list(d.parts)
    _require(all(isinstance(n, str) and n.strip() for n in names), f"a name is no text, or empty: {names}")
    _require(len(set(names)) == len(names) == len(d.parts), "two parts have one name")
    _require(list(d.contributions()) == names, "contributions come in another order than parts")


# -- what it may not touch ---------------------------------------------------------------------------------------------


@_check
def inputs_and_models_are_left_alone(example: Example) -> None:
    """Inputs, weights, buffers, gradients, hooks and flags are bit for bit what they were."""
    inputs = copies(example.inputs)
    before = _tensors(copies(inputs)), [_fingerprint(m) for m in example.models]
    grads = [[p.grad for p in m.parameters()] for m in example.models]
    example.make(*inputs)
    _require(_same(_tensors(inputs), before[0]), "an input was written to")
    for model, state, held in zip(example.models, before[1], grads, strict=True):
        now = _fingerprint(model)
        for key in state:
            _require(_same_value(state[key], now[key]), f"{key} of {type(model).__name__} was changed")
        _require(all(p.grad is g for p, g in zip(model.parameters(), held, strict=True)), "a gradient of the model was written")


@_check
def gradients_of_models_are_left_alone(example: Example) -> None:
    """A `.grad` that stands there from training is neither added to nor dropped."""
    marks = []
    for model in example.models:
        for p in model.parameters():
            if p.requires_grad:
                marks.append((p, p.grad, torch.full_like(p, 0.5)))
                p.grad = marks[-1][2]
    try:
        example()
        for p, _, mark in marks:
            _require(p.grad is mark and bool((mark == 0.5).all()), "a gradient of the model was written")
    finally:
        for p, before, _ in marks:
            p.grad = before


@_check
def chance_is_its_own(example: Example) -> None:
    """Two calls give the same bits whatever the global generators hold, which stay where they were."""
    numpy = sys.modules.get("numpy")
    before = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
    first = example()
    _require(torch.equal(torch.get_rng_state(), before[0]), "torch's global generator was used")
    if "beartype" not in sys.modules:  # which draws from it, to look into containers
        _require(random.getstate() == before[1], "Python's global generator was used")
    if numpy:
        _require(repr(numpy.random.get_state()) == repr(before[2]), "numpy's global generator was used")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(987654321)
        second = example()
    _require(_equal(first, second), "two calls differ")


# -- what it must take -------------------------------------------------------------------------------------------------


@_check
def dtype_and_device_are_kept(example: Example) -> None:
    """Every part has the dtype and device of the whole, and the whole those of the inputs."""
    d = example()
    for name, part in d.parts.items():
        _require(part.device == d.whole.device, f"part {name!r} is on {part.device}, the whole on {d.whole.device}")
        _require(part.dtype == d.whole.dtype, f"part {name!r} has dtype {part.dtype}, the whole {d.whole.dtype}")
    given = next((t for t in _tensors(example.inputs) if t.is_floating_point() or t.is_complex()), None)
    if given is not None:
        _require(d.whole.device == given.device, f"the whole is on {d.whole.device}, the input on {given.device}")
        kept = torch.empty((), dtype=given.dtype).real.dtype if not d.whole.is_complex() else given.dtype
        _require(d.whole.dtype == kept, f"the whole has dtype {d.whole.dtype}, the input {given.dtype}")


@_check
def nothing_hangs_on_the_result(example: Example) -> None:
    """The result is data: no part drags a gradient's graph along."""
    d = example()
    _require(not any(t.requires_grad for t in (d.whole, *d.parts.values())), "the result requires grad")


@_check
def inputs_that_require_grad_are_taken(example: Example) -> None:
    """An input under autograd gives the same, and gets no gradient."""
    inputs = _map(lambda t: t.requires_grad_() if t.is_floating_point() or t.is_complex() else t, copies(example.inputs))
    found = example.make(*inputs)
    _require(_close(found, example()), "with inputs that require grad the result is another one")
    _require(all(t.grad is None for t in _tensors(inputs)), "an input got a gradient")
    _require(not any(t.requires_grad for t in (found.whole, *found.parts.values())), "the result requires grad")


@_check
def inputs_with_strides_are_taken(example: Example) -> None:
    """An input that is a view with other strides gives the same."""
    found = example.make(*_map(_strided, copies(example.inputs)))
    _require(_close(found, example()), "with inputs that are not contiguous the result is another one")


# -- what can be done with it ------------------------------------------------------------------------------------------


@_check
def save_and_load_are_a_round_trip(example: Example) -> None:
    """The file gives back the same class and bits, and holds no pickle."""
    d = example()
    with tempfile.TemporaryDirectory() as folder:
        path = d.save(Path(folder) / "result")
        content = path.read_bytes()
        again = Decomposition.load(path)
        _require([p.name for p in Path(folder).iterdir()] == [path.name], "saving left something beside the file")
    _require(path.suffix == ".safetensors", f"a name without suffix became {path.name}")
    _require(content[8:9] == b"{", "the file is no safetensors file")
    _require(type(again) is type(d), f"loaded a {type(again).__name__}, saved a {type(d).__name__}")
    _require(_equal(again, d), "loaded other numbers than were saved")
    for f in fields(d):
        if f.name != "parts":
            _require(_same_value(getattr(d, f.name), getattr(again, f.name)), f"field {f.name} did not come back")


@_check
def slices_are_decompositions(example: Example) -> None:
    """One sample, a range or a mask of samples; of a batched method the same as explaining that slice."""
    d = example()
    if not d.whole.ndim:
        return
    n = len(d)
    _require(len(list(d)) == n, "iterating gives another number of samples")
    _require(torch.equal(d[-1].whole, d.whole[-1:]), "d[-1] is not the last sample")
    _require(len(d[:0]) == 0 and d[:0].error() == 0.0, "an empty slice does not add up")
    for beyond in (n, -n - 1):
        try:
            d[beyond]
        except IndexError:
            continue
        raise AssertionError(f"sample {beyond} of {n} exists")
    mask = torch.arange(n, device=d.whole.device) % 2 == 0
    for chosen in (slice(0, 1), slice(1, None), mask, mask.nonzero()[:, 0]):
        part = d[chosen]
        _require(type(part) is type(d), "a slice is of another class")
        _require(torch.equal(part.remainder, d.remainder[chosen]), f"{chosen} has another remainder")
        _require(all(torch.equal(part.parts[k], d.parts[k][chosen]) for k in d.parts), f"{chosen} has other parts")
        if example.batched and len(part):
            alone = example.make(*_map(lambda t, c=chosen: t[c], copies(example.inputs)))
            _require(_close(alone, part), f"explaining samples {chosen} alone gives something else")


@_check
def tables_agree_with_the_parts(example: Example) -> None:
    """`to_frame` and `to_xarray` show the same numbers, and lose none."""
    d = example()
    if (not d.whole.is_complex() and "pandas" in sys.modules) or _there("pandas"):
        frame = d.to_frame()
        wanted = {**d.contributions(), "remainder": d.remainder}
        n = len(d) if d.whole.ndim else 1
        _require(len(frame) == n * len(wanted), f"the frame has {len(frame)} rows for {n} samples and {len(wanted)} names")
        for name, value in wanted.items():
            rows = frame[frame["part"] == name].sort_values("sample")["contribution"].tolist()
            sums = value.reshape(n, -1).sum(-1).tolist()
            _require(all(_near(a, b) for a, b in zip(rows, sums, strict=True)), f"the frame has other numbers for {name!r}")
    if _there("xarray"):
        table = d.to_xarray()
        _require(bool((table["whole"].values == d.whole.cpu().numpy()).all()), "the Dataset has another whole")
        for name, part in d.parts.items():
            shown = table["contribution"].sel(part=name).values
            _require(
                bool((shown == d.contribution(name).cpu().numpy()).all()), f"the Dataset has another contribution of {name!r}"
            )
            _require(table[name].shape == tuple(part.shape), f"the Dataset has another shape for {name!r}")


@_check
def it_prints(example: Example) -> None:
    """`repr` is one line that says how well it adds up."""
    d = example()
    _require("\n" not in repr(d) and type(d).__name__ in repr(d), f"repr is {d!r}")
    _require("adds up" in d.summary(), f"the summary is {d.summary()!r}")


@_check
def to_another_dtype(example: Example) -> None:
    """`to` moves every floating tensor, and leaves the decomposition it was called on."""
    d = example()
    wide = torch.complex128 if d.whole.is_complex() else torch.float64
    moved = d.to(wide)
    _require(moved.whole.dtype == wide and all(p.dtype == wide for p in moved.parts.values()), "to() left a part behind")
    _require(type(moved) is type(d) and list(moved.parts) == list(d.parts), "to() gives another class or other names")


# -- helpers -----------------------------------------------------------------------------------------------------------


def copies(inputs: Any) -> Any:
    """Nested inputs with every tensor copied."""
    return _map(lambda t: t.detach().clone(), inputs)


def _map(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    return pytree.tree_map(lambda v: function(v) if isinstance(v, Tensor) else copy.copy(v), inputs)


def _tensors(inputs: Any) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(inputs) if isinstance(v, Tensor)]


def _strided(t: Tensor) -> Tensor:
    """The same values as every second of a larger tensor, last axis first in memory."""
    if not t.ndim:
        return t
    wide = torch.zeros(*(2 * n for n in reversed(t.shape)), dtype=t.dtype, device=t.device)
    view = wide.permute(*reversed(range(t.ndim)))[tuple(slice(None, None, 2) for _ in t.shape)]
    return view.copy_(t)


def _fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a method could have touched."""
    found: dict[str, Any] = {f"tensor {k}": v.detach().clone() for k, v in model.state_dict().items()}
    for name, module in model.named_modules():
        found[f"the training flag of {name!r}"] = module.training
        found[f"the class of {name!r}"] = type(module)
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            found[f"the hooks of {name!r} ({kind})"] = tuple(getattr(module, kind))
        found[f"the attributes of {name!r}"] = tuple(sorted(vars(module)))
    for name, p in model.named_parameters():
        found[f"requires_grad of {name}"] = p.requires_grad
        found[f"the identity of {name}"] = id(p)
    return found


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _same([a], [b])
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(_same_value(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same_value, a, b))
    return bool(a == b)


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit, NaN included."""
    return len(a) == len(b) and all(
        x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | ((x != x) & (y != y))).all())
        for x, y in zip(a, b, strict=True)
    )


def _equal(a: Decomposition, b: Decomposition) -> bool:
    return _same_value(a.whole, b.whole) and list(a.parts) == list(b.parts) and _same_value(dict(a.parts), dict(b.parts))


def _close(a: Decomposition, b: Decomposition) -> bool:
    """The same to rounding, measured on the size of everything together."""
    if list(a.parts) != list(b.parts) or a.whole.shape != b.whole.shape:
        return False
    size = sum((p.abs().sum().item() for p in b.parts.values()), b.whole.abs().sum().item())
    bound = size * 1e3 * torch.finfo(b.whole.dtype).eps
    pairs = [(a.whole, b.whole), *((a.parts[n], b.parts[n]) for n in b.parts)]
    return all(x.shape == y.shape and bool(((x - y).abs() <= bound).all()) for x, y in pairs)


def _with_part(d: Decomposition, name: str, part: Tensor) -> Decomposition:
    return replace(d, parts={**d.parts, name: part})


def _fails(d: Decomposition, rtol: float | None) -> bool:
    try:
        d.check(rtol)
    except DoesNotAddUp:
        return True
    return False


def _near(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= 1e-9 * (1 + abs(b)))


def _there(package: str) -> bool:
    import importlib.util

    return package in sys.modules or importlib.util.find_spec(package) is not None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
