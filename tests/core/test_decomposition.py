"""The class itself: what it says about sums, what it refuses, and its files."""

import copy
import json
import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from termwise.core import Decomposition, DoesNotAddUp
from termwise.core.decomposition import FORMAT


@dataclass(frozen=True, eq=False, repr=False)
class Labelled(Decomposition):
    """A subclass with fields of every kind."""

    score: Tensor | None = None  # one per sample
    table: Tensor | None = None  # not per sample
    by_name: dict[str, Tensor] = field(default_factory=dict)
    words: list[str] | None = None
    rank: int = 0


settings.register_profile("here", deadline=None)  # the first call of an operator is slow
settings.load_profile("here")
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128])


@st.composite
def exact(draw, dtypes=dtypes, sizes=sizes):
    """A whole that is the sum of its parts, some of which are parts of parts."""
    shape, n, dtype = draw(sizes), draw(st.integers(1, 5)), draw(dtypes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    parts = {}
    for i in range(n):
        own = draw(st.lists(st.integers(1, 3), max_size=2))
        parts[f"part {i}"] = torch.randn(*shape, *own, generator=generator, dtype=dtype)
    whole = sum(p.flatten(len(shape)).sum(-1) if p.ndim > len(shape) else p for p in parts.values())
    return Decomposition(whole, parts)


# -- the identity ------------------------------------------------------------------------------------------------------


@given(exact())
def test_parts_and_remainder_make_the_whole(d):
    torch.testing.assert_close(d.total() + d.remainder, d.whole)
    assert d.cancellation() >= 1 - 1e-4  # the triangle inequality
    assert d.error() <= 1e-4 or d.cancellation() > 10


@given(exact(), st.data())
def test_a_part_left_out_is_the_remainder(d, data):
    name = data.draw(st.sampled_from(list(d.parts)))
    rest = Decomposition(d.whole, {n: p for n, p in d.parts.items() if n != name})
    torch.testing.assert_close(rest.remainder, d.contribution(name), atol=1e-5, rtol=1e-4)


@given(exact(st.sampled_from([torch.float64])), st.floats(1e-3, 1e3))
def test_shares_do_not_depend_on_scale(d, scale):
    scaled = Decomposition(d.whole * scale, {n: p * scale for n, p in d.parts.items()})
    assert scaled.cancellation() == pytest.approx(d.cancellation(), rel=1e-9)
    assert scaled.error() == pytest.approx(d.error(), rel=1e-3, abs=1e-12)


@given(exact(st.sampled_from([torch.float64])), st.floats(1e-6, 1.0))
def test_error_is_the_worst_samples_relative_remainder(d, size):
    spoilt = d.whole.clone()
    spoilt[-1] = spoilt[-1] * (1 + size)
    norm = torch.linalg.vector_norm
    wanted = norm(spoilt[-1] - d.whole[-1]) / norm(spoilt[-1])
    found = Decomposition(spoilt, d.parts)
    assert found.error() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-9)
    with pytest.raises(DoesNotAddUp):
        found.check(wanted.item() * 0.9)
    assert found.check(wanted.item() * 1.1 + 1e-12) is found


def test_cancellation_counts_every_element():
    d = Decomposition(torch.tensor([1.0]), {"a": torch.tensor([[500.5, -500.0]]), "b": torch.tensor([0.5])})
    assert d.cancellation() == pytest.approx(1001.0)
    assert Decomposition(torch.tensor([3.0, 4.0]), {"a": torch.tensor([3.0, 4.0])}).cancellation() == 1.0


def test_a_whole_of_exactly_zero_is_measured_absolutely():
    d = Decomposition(torch.zeros(2), {"a": torch.tensor([0.0, 2e-3]), "b": torch.tensor([0.0, -1e-3])})
    assert d.error() == pytest.approx(1e-3)
    assert d.cancellation() == pytest.approx(3e-3)
    with pytest.raises(DoesNotAddUp, match=r"the remainder is 0\.001 of the whole"):
        d.check()
    d.check(1e-2)


def test_one_bad_sample_among_good_ones_is_not_averaged_away():
    whole = torch.ones(1000)
    part = whole.clone()
    part[7] = 0.5
    assert Decomposition(whole, {"a": part}).error() == pytest.approx(0.5)


def test_a_complex_whole():
    whole = torch.tensor([3 + 4j, 1j])
    d = Decomposition(whole, {"real": whole.real + 0j, "imaginary": whole.imag * 1j}).check()
    assert d.cancellation() == pytest.approx(7 / 5)
    assert Decomposition(whole, {"real": whole.real + 0j}).error() == pytest.approx(1.0)
    assert d.to(torch.complex128).whole.dtype == torch.complex128


def test_a_single_number_as_the_whole():
    d = Decomposition(torch.tensor(5.0), {"two": torch.tensor(2.0), "three": torch.tensor([1.0, 2.0])}).check()
    assert (d.error(), d.cancellation()) == (0.0, 1.0)
    for ask in (len, list, lambda d: d[0], lambda d: d[:1]):
        with pytest.raises(TypeError, match=r"no samples to count or select"):
            ask(d)
    assert d.to_frame()["contribution"].tolist() == [2.0, 3.0, 0.0]
    assert d.to_xarray()["contribution"].values.tolist() == [2.0, 3.0]
    assert Decomposition(torch.tensor(5.0), {"two": torch.tensor(2.0)}).error() == pytest.approx(0.6)


def test_no_samples():
    d = Decomposition(torch.zeros(0, 2), {"a": torch.zeros(0, 2, 3)}).check()
    assert (len(d), d.error(), d.cancellation(), list(d)) == (0, 0.0, 0.0, [])


def test_no_parts():
    assert Decomposition(torch.zeros(2), {}).check().cancellation() == 0.0
    with pytest.raises(DoesNotAddUp, match=r"0 parts make 0, 0 of 1, 1"):
        Decomposition(torch.ones(2), {}).check()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_fails(value):
    with pytest.raises(DoesNotAddUp):
        Decomposition(torch.ones(2), {"a": torch.tensor([1.0, value])}).check(1e9)
    with pytest.raises(DoesNotAddUp):
        Decomposition(torch.tensor([1.0, value]), {"a": torch.tensor([1.0, value])}).check(1e9)


def test_half_precision_does_not_overflow_its_norm():
    whole = torch.full((1, 100), 3e4, dtype=torch.float16)
    assert Decomposition(whole, {"a": whole}).check().cancellation() == 1.0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_what_counts_as_rounding_depends_on_the_dtype(dtype, tolerance):
    whole = torch.ones(1, dtype=torch.float64)
    for factor, passes in ((0.1, True), (10, False)):
        d = Decomposition(whole.to(dtype), {"a": whole.to(dtype)})
        object.__setattr__(d, "error", lambda f=factor: tolerance * f)
        assert passes == (not fails(d))


def fails(d: Decomposition) -> bool:
    try:
        d.check()
    except DoesNotAddUp:
        return True
    return False


def test_the_message_has_the_numbers():
    d = Decomposition(torch.tensor([2.0, 4.0]), {"a": torch.tensor([2.0, 3.0]), "b": torch.tensor([1.0, -1.0])})
    with pytest.raises(DoesNotAddUp, match=r"2 parts make 3, 2 of 2, 4: the remainder is 0\.5 .* allowed were 1e-05 .*1\.5x"):
        d.check()
    assert issubclass(DoesNotAddUp, ArithmeticError)


def test_a_part_of_another_shape_is_refused_and_named():
    with pytest.raises(ValueError, match=r"part 'a' has shape \(3,\), which does not begin with the whole's \(2,\)"):
        Decomposition(torch.ones(2), {"a": torch.ones(3)})
    with pytest.raises(ValueError, match="part 'a'"):
        Decomposition(torch.ones(2, 2), {"a": torch.ones(2)})


# -- samples -----------------------------------------------------------------------------------------------------------


def labelled(n: int = 3) -> Labelled:
    whole = torch.arange(1.0, n + 1)
    return Labelled(
        whole, {"half": whole / 2, "pixels": whole[:, None] * torch.tensor([0.25, 0.25])},
        score=whole * 10, table=torch.arange(7), by_name={"x": torch.ones(4)}, words=[f"w{i}" for i in range(n)], rank=2,
    )  # fmt: skip


@pytest.mark.parametrize("samples", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True]), -1, 0])
def test_selecting_samples_takes_their_fields_along(samples):
    d = labelled()
    index = torch.arange(3)[samples if not isinstance(samples, int) else [samples]]
    found = d[samples]
    assert type(found) is Labelled
    assert found.whole.tolist() == (index + 1.0).tolist()
    assert len(found) == len(index)
    assert found.score.tolist() == ((index + 1.0) * 10).tolist()
    assert found.words == [f"w{i}" for i in index.tolist()]
    assert found.table.tolist() == list(range(7))
    assert found.rank == 2
    assert found.parts["pixels"].shape == (len(index), 2)
    found.check()


@pytest.mark.parametrize("i", [3, -4])
def test_a_sample_beyond_the_batch(i):
    with pytest.raises(IndexError):
        labelled()[i]


def test_iterating():
    assert [d.whole.item() for d in labelled()] == [1.0, 2.0, 3.0]
    assert [d.words for d in labelled()] == [["w0"], ["w1"], ["w2"]]


# -- moving and showing ------------------------------------------------------------------------------------------------


def test_to_moves_floating_tensors_only_and_leaves_the_original():
    d = labelled()
    moved = d.to(torch.float64)
    assert {moved.whole.dtype, moved.score.dtype, moved.parts["half"].dtype, moved.by_name["x"].dtype} == {torch.float64}
    assert moved.table.dtype == torch.int64
    assert moved.rank == 2
    assert d.whole.dtype == torch.float32
    assert d.to("cpu").check().words == d.words


@given(exact(st.sampled_from([torch.float64])))
@settings(max_examples=25)
def test_frame_and_dataset_have_every_number(d):
    frame = d.to_frame()
    total = frame.groupby("sample")["contribution"].sum()
    wanted = d.whole.reshape(len(d), -1).sum(-1)
    assert total.tolist() == pytest.approx(wanted.tolist(), abs=1e-9)
    assert frame["part"].tolist()[: len(d.parts) + 1] == [*d.parts, "remainder"]
    table = d.to_xarray()
    assert (table["contribution"].sum("part") + table["remainder"]).values == pytest.approx(d.whole.numpy(), abs=1e-9)
    assert table["contribution"].dims[:2] == ("part", "sample")


def test_the_share_of_a_whole_that_is_zero_is_undefined():
    frame = Decomposition(torch.zeros(1), {"a": torch.ones(1), "b": -torch.ones(1)}).to_frame()
    assert frame["share"].isna().all()


def test_a_part_named_like_a_variable_of_the_dataset_is_not_lost():
    d = Decomposition(torch.tensor([3.0]), {"whole": torch.tensor([1.0]), "contribution": torch.tensor([2.0])})
    table = d.to_xarray()
    assert table["whole"].values.tolist() == [3.0]
    assert table["contribution"].sel(part="contribution").values.tolist() == [2.0]


def test_half_precision_and_grad_can_be_shown():
    d = Decomposition(torch.ones(2, dtype=torch.bfloat16, requires_grad=True), {"a": torch.ones(2, dtype=torch.bfloat16)})
    assert d.to_xarray()["whole"].values.tolist() == [1.0, 1.0]
    assert d.to_frame()["contribution"].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_repr_is_one_line():
    assert repr(labelled()) == "Labelled(whole (3,) torch.float32: 2 parts, adds up to 0.0e+00 (cancellation 1x))"


def test_no_truth_value_and_copies():
    d = labelled()
    assert d == d
    assert d != copy.copy(d)
    assert copy.deepcopy(d).check().words == d.words


# -- files -------------------------------------------------------------------------------------------------------------


@given(exact())
@settings(max_examples=20)
def test_a_file_gives_back_every_bit(d):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        again = Decomposition.load(d.save(f"{folder}/result"))
    assert type(again) is Decomposition
    assert list(again.parts) == list(d.parts)
    assert torch.equal(again.whole, d.whole)
    assert all(torch.equal(again.parts[n], d.parts[n]) for n in d.parts)
    assert again.whole.dtype == d.whole.dtype


def test_a_file_gives_back_the_class_and_its_fields(tmp_path):
    d = labelled()
    again = Decomposition.load(d.save(tmp_path / "result"))
    assert type(again) is Labelled
    assert (again.words, again.rank) == (d.words, d.rank)
    assert torch.equal(again.score, d.score)
    assert torch.equal(again.table, d.table)
    assert torch.equal(again.by_name["x"], d.by_name["x"])
    empty = Decomposition.load(Labelled(torch.ones(1), {}).save(tmp_path / "empty"))
    assert (empty.score, empty.by_name, dict(empty.parts)) == (None, {}, {})


def test_names_with_any_letter_survive(tmp_path):
    names = ["input:x", "bias:encoder.layer/0", "ünï ∑", "a/b/c", 'q"uote', ""]
    d = Decomposition(torch.ones(2), {n: torch.full((2,), i / 15) for i, n in enumerate(names)})
    assert list(Decomposition.load(d.save(tmp_path / "x")).parts) == names


def test_the_file_name(tmp_path):
    d = labelled()
    assert d.save(tmp_path / "plain").name == "plain.safetensors"
    assert d.save(str(tmp_path / "named.term")).name == "named.term"
    assert d.save(tmp_path / "v1.2").name == "v1.2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["named.term", "plain.safetensors", "v1.2"]


def test_what_save_was_told_load_understands(tmp_path):
    for path in (tmp_path / "plain", str(tmp_path / "again"), tmp_path / "named.term"):
        d = labelled()
        d.save(path)
        assert torch.equal(Decomposition.load(path).whole, d.whole)
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors"):
        Decomposition.load(tmp_path / "nowhere")


def test_no_pickle_and_readable_by_others(tmp_path):
    path = labelled().save(tmp_path / "x")
    assert b"pickle" not in path.read_bytes()
    assert not path.read_bytes().startswith(b"PK")
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"whole", "parts/half", "parts/pixels", "score", "table", "by_name/x"}
        assert json.loads(file.metadata()["termwise"])["format"] == FORMAT


def test_views_of_one_tensor_can_be_saved(tmp_path):
    base = torch.ones(2, 4)
    d = Decomposition(base[:, 0], {"a": base[:, 1:3].mT.mT / 2, "b": base[:, :1] * 0})
    assert torch.equal(Decomposition.load(d.save(tmp_path / "x")).parts["a"], d.parts["a"])


def test_an_existing_file_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    path = labelled().save(tmp_path / "x")
    before = path.read_bytes()

    def break_off(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", break_off)
    with pytest.raises(OSError, match="disk full"):
        labelled(5).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_field_that_is_neither_tensor_nor_json_is_refused(tmp_path):
    with pytest.raises(TypeError):
        Labelled(torch.ones(1), {"a": torch.ones(1)}, rank=object()).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def header(tmp_path, **changes):
    path = tmp_path / "x.safetensors"
    content = {
        "format": FORMAT,
        "class": "termwise.core.decomposition:Decomposition",
        "fields": {"parts": {"tensors": ["a"]}},
        **changes,
    }
    save_file({"whole": torch.ones(1), "parts/a": torch.ones(1)}, path, {"termwise": json.dumps(content)})
    return path


def test_a_header_made_by_hand_loads(tmp_path):
    assert Decomposition.load(header(tmp_path)).check().error() == 0.0


def test_files_that_are_refused(tmp_path):
    good = labelled().save(tmp_path / "good")
    corrupt, short, foreign, text = (tmp_path / n for n in ("corrupt", "short", "foreign", "text"))
    content = good.read_bytes()
    corrupt.write_bytes(b"\xff" * len(content))
    short.write_bytes(content[: len(content) - 3])
    save_file({"weight": torch.ones(2)}, foreign)
    text.write_text("not tensors")
    for path in (corrupt, short, text):
        with pytest.raises(ValueError, match=r"is not a safetensors file .*save with Decomposition\.save"):
            Decomposition.load(path)
    with pytest.raises(ValueError, match="foreign is a safetensors file without a decomposition in it"):
        Decomposition.load(foreign)
    with pytest.raises(FileNotFoundError):
        Decomposition.load(tmp_path / "missing")
    torch.save({"whole": torch.ones(1)}, tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        Decomposition.load(tmp_path / "pickle.pt")


def test_a_newer_format_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"has format 99, this version reads up to 1: update termwise"):
        Decomposition.load(header(tmp_path, format=99))


@pytest.mark.parametrize(
    "name", ["os:path", "mypackage.methods:Mine", "termwise.core.decomposition:Nothing", "termwise.nowhere:X"]
)
def test_a_class_that_is_not_defined_here_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"which is not defined here"):
        Decomposition.load(header(tmp_path, **{"class": name}))


def test_a_broken_header_is_a_value_error(tmp_path):
    path = tmp_path / "x.safetensors"
    for content in ("no json", "[]", "{}", json.dumps({"format": 1, "class": 3, "fields": {}})):
        save_file({"whole": torch.ones(1)}, path, {"termwise": content})
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            Decomposition.load(path)
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        Decomposition.load(header(tmp_path, fields={"parts": {"tensors": ["a", "lost"]}}))
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        Decomposition.load(header(tmp_path, fields={"parts": {"tensors": ["a"]}, "colour": {"json": "red"}}))
