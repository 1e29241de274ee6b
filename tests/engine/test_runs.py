"""Runs: the table does not depend on workers, interruptions and deaths; bad rows cost only themselves."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.subjects import Lengths, texts
from termwise.core.decomposition import Decomposition
from termwise.engine import Answers, Dataset, Results, RowResult, TooManyErrors, run
from termwise.engine.folder import Folder
from termwise.engine.job import total
from termwise.engine.merging import join
from termwise.engine.worker import Task, answer

LINES = [f"text {i} " + "x" * (i % 7) for i in range(41)]
HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    run(Lengths(), Dataset.open(texts(folder / "a.txt", LINES)), folder / "out", workers=1, batch_size=4)
    return folder / "out"


def same(one: Path, other: Path) -> bool:
    names = ("table.parquet", "errors.parquet", "statistics.safetensors")
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names)


def test_the_table_is_what_the_job_found(reference):
    results = Results(reference)
    assert results.finished
    assert len(results) == len(LINES)
    assert results.scalars("text")["text"].to_pylist() == LINES
    table = results.scalars()
    assert table.column_names == results.columns
    assert table["length"].to_pylist() == [len(t) for t in LINES]
    expected = [sum(ord(c) / 7 * (j + 1) for j, c in enumerate(t)) for t in LINES]
    assert table["whole"].to_pylist() == pytest.approx(expected)
    for i, d in enumerate(results):
        assert d.check().parts["letters"].shape == (1, len(LINES[i]))
        assert torch.equal(d.whole, results[i].whole)
        assert d.whole.item() == table["whole"][i].as_py()
    assert results[-1].whole.item() == pytest.approx(expected[-1])
    assert results.statistics["sum"].item() == pytest.approx(sum(expected))
    assert not (reference / "batches").exists()
    assert "unfinished" not in repr(results)


def test_two_workers_give_the_same_bytes(reference, tmp_path):
    data = Dataset.open(texts(tmp_path / "a.txt", LINES))
    run(Lengths(), data, tmp_path / "out", workers=2, batch_size=4)
    assert same(reference, tmp_path / "out")
    with pytest.raises(ValueError, match=r"batch_size: 4 there, 5 now"):
        run(Lengths(), data, tmp_path / "out", batch_size=5)


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
sys.path.insert(0, {tests!r})
from engine.subjects import Lengths
from termwise.engine import Dataset, run
if __name__ == "__main__":
    run(Lengths(pause=0.05), Dataset.open({data!r}), {out!r}, workers={workers}, batch_size=4)
"""


def started(tmp_path, workers=1):
    script = tmp_path / "script.py"
    data = texts(tmp_path / "a.txt", LINES)
    script.write_text(SCRIPT.format(tests=str(HERE), data=str(data), out=str(tmp_path / "out"), workers=workers))
    return subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)


def until_batches(out: Path, many: int, process) -> None:
    deadline = time.monotonic() + 60
    while len(list((out / "batches").glob("*.parquet"))) < many and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_loses_nothing_that_was_done(reference, tmp_path, workers):
    chance = random.Random(0)
    kept = 0
    for many in (2, 5) if workers == 2 else (3,):
        process = started(tmp_path, workers)
        until_batches(tmp_path / "out", many, process)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.wait()
        process.stderr.close()
        assert process.returncode == -signal.SIGKILL
        results = Results(tmp_path / "out")
        assert not results.finished
        assert len(results) >= max(kept, 4 * many)
        assert results[0].check().whole.item() == results.scalars("whole")["whole"][0].as_py()
        kept = len(results)
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "batches").glob("*.parquet")}
    with started(tmp_path, workers) as process:
        process.communicate()
    assert process.returncode == 0
    assert same(reference, tmp_path / "out")
    events = [json.loads(line) for line in (tmp_path / "out" / "run.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events[-2:]] == ["started", "finished"]
    assert events[-1]["rows"] == len(LINES) - min(len(LINES), 4 * len(stamps))  # only what was missing


def test_ctrl_c_says_how_to_go_on(reference, tmp_path):
    process = started(tmp_path)
    until_batches(tmp_path / "out", 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "rows are done and kept" in said
    data = Dataset.open(tmp_path / "a.txt")
    run(Lengths(), data, tmp_path / "out", workers=1, batch_size=4)
    assert same(reference, tmp_path / "out")


def test_bad_rows_go_to_the_error_table(tmp_path):
    lines = [*LINES[:9], "bad one", *LINES[10:20], "bad two"]
    results = run(Lengths(), Dataset.open(texts(tmp_path / "a.txt", lines)), tmp_path / "out", workers=1, batch_size=4)
    assert results.errors.to_pylist() == [
        {"row": 9, "key": "line 10", "reason": "ValueError: 'bad one' is bad"},
        {"row": 20, "key": "line 21", "reason": "ValueError: 'bad two' is bad"},
    ]
    assert results.scalars("text")["text"].to_pylist() == [t for t in lines if "bad" not in t]
    sums = sum(d.whole.item() for d in results)
    assert results.statistics["sum"].item() == pytest.approx(sums)  # those of the others in its batch are counted


def test_max_errors_stops_and_a_higher_limit_goes_on(tmp_path):
    data = Dataset.open(texts(tmp_path / "a.txt", ["bad 1", "a", "bad 2", "b", "bad 3", "c"]))
    for _ in range(2):  # the second time at once
        with pytest.raises(TooManyErrors, match="2 rows failed, 1 were allowed; what is done is kept"):
            run(Lengths(), data, tmp_path / "out", workers=1, batch_size=1, max_errors=1)
        assert len(Results(tmp_path / "out")) == 1
        assert Results(tmp_path / "out").errors["row"].to_pylist() == [0, 2]
    results = run(Lengths(), data, tmp_path / "out", workers=1, batch_size=1, max_errors=3)
    assert results.finished
    assert len(results) == 3


@pytest.mark.slow
def test_a_row_that_kills_its_worker_is_found(reference, tmp_path):
    """ "kill" always does; "once" the first time, as an accident does: that batch is whole."""
    lines = [*LINES[:6], "kill", *LINES[7:12], "once", *LINES[13:16]]
    data = Dataset.open(texts(tmp_path / "a.txt", lines))
    job = Lengths(marks=str(tmp_path))
    results = run(job, data, tmp_path / "out", workers=2, batch_size=4)
    (error,) = results.errors.to_pylist()
    assert error["row"] == 6
    assert "its worker died, exit code -9: probably out of memory" in error["reason"]
    assert results.scalars("text")["text"].to_pylist() == [t for t in lines if t != "kill"]
    assert (tmp_path / "once").exists()


class Troubled(Lengths):
    """Raises what is not a row's fault: the first `times` times, and for "large" texts always."""

    def __init__(self, problem, times, within=False):
        super().__init__()
        self.problem, self.times, self.within, self.asked = problem, times, within, 0

    def run(self, rows):
        self.asked += 1
        if any("large" in row.value for row in rows) or self.times:
            self.times = max(0, self.times - 1)
            if self.within:
                return Answers([self.problem for _ in rows])
            raise self.problem
        return super().run(rows)


NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("problem", [MemoryError(), NO_MEMORY, OSError(errno.EIO, "Input/output error")])
def test_what_passes_is_no_row_s_fault(reference, tmp_path, problem, within):
    data = Dataset.open(texts(tmp_path / "a.txt", LINES))
    job = Troubled(problem, 1, within)
    run(job, data, tmp_path / "out", workers=1, batch_size=4)
    assert same(reference, tmp_path / "out")
    assert job.asked == 12  # 11 batches, the first of them twice, and whole both times
    lines = [*LINES[:6], "large", *LINES[7:10]]
    data = Dataset.open(texts(tmp_path / "b.txt", lines))
    results = run(Troubled(problem, 0, within), data, tmp_path / "o2", workers=1, batch_size=4)
    (error,) = results.errors.to_pylist()
    assert (error["row"], type(problem).__name__ in error["reason"]) == (6, True)
    assert results.scalars("text")["text"].to_pylist() == [t for t in lines if t != "large"]


class Meddling(Lengths):
    """Changes the data while they are read."""

    def __init__(self, path, line):
        super().__init__()
        self.path, self.line = path, line

    def run(self, rows):
        if self.line is None:
            self.path.unlink(missing_ok=True)
        else:
            texts(self.path, [*LINES[:-1], self.line])
        return super().run(rows)


def test_data_that_change_meanwhile_are_refused(tmp_path):
    path = texts(tmp_path / "a.txt", LINES)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"was changed while it was read|dataset\.digest"):
            run(Meddling(path, "another"), Dataset.open(path), tmp_path / "out", workers=1, batch_size=4)
        assert not Results(tmp_path / "out").finished


def test_a_picture_that_is_gone_ends_the_run_and_is_no_bad_row(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(4):
        (pictures / f"{i}.png").write_bytes(b"picture")
    data = Dataset.open(pictures)
    with pytest.raises(FileNotFoundError, match=r"3\.png was there and is gone.*the same command goes on"):
        run(Meddling(pictures / "3.png", None), data, tmp_path / "out", workers=1, batch_size=2)
    (pictures / "3.png").write_bytes(b"picture")
    results = run(Lengths(), data, tmp_path / "out", workers=1, batch_size=2)
    assert (len(results), len(results.errors)) == (4, 0)


def test_what_was_made_with_other_settings_is_refused_with_the_difference(reference, tmp_path):
    data = Dataset.open(texts(tmp_path / "a.txt", LINES))
    with pytest.raises(ValueError, match=r"settings.scale: 1.0 there, 2.0 now\n") as refused:
        run(Lengths(scale=2.0), data, reference, workers=1, batch_size=4)
    assert "choose another folder" in str(refused.value)
    assert "batch_size" not in str(refused.value)
    other = Dataset.open(texts(tmp_path / "b.txt", [*LINES[:-1], "changed"]))
    with pytest.raises(ValueError, match=r"dataset.digest: '\w+' there"):
        run(Lengths(), other, reference, workers=1, batch_size=4)


def test_a_finished_folder_is_returned_as_it_is(reference, tmp_path, caplog):
    before = (reference / "table.parquet").stat().st_mtime_ns
    data = Dataset.open(texts(tmp_path / "a.txt", LINES))  # moved: no other data
    assert len(run(Lengths(), data, reference, workers=1, batch_size=4)) == len(LINES)
    assert (reference / "table.parquet").stat().st_mtime_ns == before
    assert "is finished" in caplog.text


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    data = Dataset.open(texts(tmp_path / "a.txt", LINES))
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match="another run is writing"):
        run(Lengths(), data, tmp_path / "out", workers=1)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    data = Dataset.open(texts(tmp_path / "a.txt", LINES))
    with pytest.raises(ValueError, match="holds something else than results"):
        run(Lengths(), data, tmp_path, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(FileNotFoundError, match="holds no results"):
        Results(tmp_path)


@pytest.mark.parametrize("at", [0, 3, 4, 23, 24, 25])
@pytest.mark.parametrize(("code", "says"), [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")])
def test_a_full_disk_leaves_nothing_half_written(reference, tmp_path, monkeypatch, at, code, says):
    """At the manifest, a batch's sums, a batch, the errors, the statistics, the table: the next run goes on."""
    replace, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) == at + 1:
            raise OSError(code, os.strerror(code))
        replace(source, target)

    data = Dataset.open(texts(tmp_path / "a.txt", LINES))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match=rf"cannot be written \({says}\).*the same command goes on"):
            run(Lengths(), data, tmp_path / "out", workers=1, batch_size=4)
    assert not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / "out" / "table.parquet").exists()
    run(Lengths(), data, tmp_path / "out", workers=1, batch_size=4)
    assert same(reference, tmp_path / "out")


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(-5, 5).map(torch.tensor)), max_size=6), st.integers(0, 6))
def test_sums_are_associative(sums, cut):
    """In whole numbers exactly: batches may be added in any grouping."""
    left, right = sums[:cut], sums[cut:]
    whole, halves = total(sums), total([total(left), total(right)])
    assert {n: int(v) for n, v in whole.items()} == {n: int(v) for n, v in halves.items()}
    assert {n: int(v) for n, v in whole.items()} == {n: sum(int(s[n]) for s in sums if n in s) for n in whole}
    assert set(whole) == {n for s in sums for n in s}


def test_scalars_that_are_not_declared_or_hide_a_column(tmp_path):
    data = Dataset.open(texts(tmp_path / "a.txt", LINES[:3]))
    job = Lengths()
    job.scalars = {"length": int}
    results = run(job, data, tmp_path / "out", workers=1)
    assert {e["reason"] for e in results.errors.to_pylist()} == {
        "TypeError: the job gave text, long, which are none of its scalars"
    }
    job.scalars = {"whole": float}
    with pytest.raises(ValueError, match="columns of its own called whole"):
        run(job, data, tmp_path / "o2", workers=1)


@dataclass(frozen=True, eq=False, repr=False)
class Vowels(Decomposition):
    chosen: torch.Tensor


class Odd(Lengths):
    """A scalar of another kind in the second row, and a tensor of yes and no in all."""

    def run(self, rows):
        answers = super().run(rows)
        found = []
        for row, one in zip(rows, answers.rows, strict=True):
            scalars = one.scalars | ({"length": "seven"} if row.index == 1 else {})
            chosen = torch.tensor([[c in "aeiou" for c in row.value]])
            found.append(RowResult(scalars, Vowels(one.terms.whole, one.terms.parts, chosen=chosen)))
        return Answers(found, answers.sums)


def test_a_scalar_of_another_kind_costs_its_row(tmp_path):
    results = run(Odd(), Dataset.open(texts(tmp_path / "a.txt", LINES[:4])), tmp_path / "out", workers=1)
    (error,) = results.errors.to_pylist()
    assert (error["row"], error["reason"]) == (1, "TypeError: column 'length' takes int64, the job gave 'seven'")
    assert results.scalars("row")["row"].to_pylist() == [0, 2, 3]
    assert results[1].chosen.tolist() == [[c in "aeiou" for c in LINES[2]]]


@pytest.mark.parametrize("out", ["results", "."])
def test_results_do_not_go_where_the_data_are(tmp_path, monkeypatch, out):
    (tmp_path / "1.png").write_bytes(b"picture")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"lies in the data set .*: choose a folder outside of it"):
        run(Lengths(), Dataset.open(tmp_path), out, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["1.png"]


def test_bad_arguments(tmp_path):
    data = Dataset.open(texts(tmp_path / "a.txt", LINES))
    with pytest.raises(ValueError, match="no engine 'spark': choose from local, ray"):
        run(Lengths(), data, tmp_path / "out", engine="spark")
    for name in ("workers", "threads", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            run(Lengths(), data, tmp_path / "out", **{name: 0})


def test_a_limit_of_the_file_system_leaves_nothing_half_written(reference, tmp_path):
    """Batches fit, the table does not: arrow's own writer meets the limit."""
    resource = pytest.importorskip("resource")
    data = Dataset.open(texts(tmp_path / "a.txt", LINES))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match=r"table.parquet cannot be written .*large.*the same command goes on"):
            run(Lengths(), data, tmp_path / "out", workers=1, batch_size=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.rglob("*.partial"))
    assert len(Results(tmp_path / "out")) == len(LINES)
    run(Lengths(), data, tmp_path / "out", workers=1, batch_size=4)
    assert same(reference, tmp_path / "out")


def test_a_note_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "out" / "run.jsonl").mkdir(parents=True)
    (tmp_path / "out" / "manifest.json").touch()
    with pytest.raises(OSError, match=r"run\.jsonl cannot be written \(Is a directory\).*the same command goes on"):
        Folder(tmp_path / "out").note("started")


def test_rows_that_came_in_any_order_are_joined_in_theirs(tmp_path):
    job, data = Lengths(), Dataset.open(texts(tmp_path / "a.txt", LINES[:4]))
    job.start()
    alone = [answer(job, data, Task(0, i, i + 1)) for i in (2, 0, 3, 1)]
    assert join(alone).table == join(alone[::-1]).table == join(sorted(alone, key=lambda done: done.task.start)).table
    table = pq.read_table(pa.BufferReader(join(alone).table))
    assert table["row"].to_pylist() == [0, 1, 2, 3]


def test_a_clock_that_jumps_changes_nothing(reference, tmp_path, monkeypatch):
    """Rates and durations are of a clock that nobody sets; times of day are only noted."""
    chance = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: chance.uniform(-1e9, 1e9))
    run(Lengths(), Dataset.open(texts(tmp_path / "a.txt", LINES)), tmp_path / "out", workers=1, batch_size=4)
    assert same(reference, tmp_path / "out")
    finished = json.loads((tmp_path / "out" / "run.jsonl").read_text().splitlines()[-1])
    assert 0 <= finished["seconds"] < 60


class Unwilling(Lengths):
    """Cannot be started; with scale 0 the process ends."""

    def start(self):
        if self.scale == 0:
            os._exit(7)
        raise ValueError("no such model")


@pytest.mark.slow
def test_a_job_that_cannot_start_says_why(tmp_path):
    data = Dataset.open(texts(tmp_path / "a.txt", LINES))
    for workers in (1, 2):
        with pytest.raises(ValueError, match="no such model"):
            run(Unwilling(), data, tmp_path / "out", workers=workers)
    with pytest.raises(ChildProcessError, match="died while it loaded the model, exit code 7"):
        run(Unwilling(scale=0.0), data, tmp_path / "out", workers=2)


PEAK = """
import resource, sys
sys.path.insert(0, {tests!r})
from engine.subjects import Lengths
from termwise.engine import Dataset, Results, run
results = run(Lengths(), Dataset.open({data!r}), {out!r}, workers=1, batch_size=32)
rows = sum(1 for d in results)
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Running and reading 20,000 rows of 100 numbers, 16 MB of results, against 2,000."""
    peaks = []
    for rows in (2_000, 20_000):
        data = texts(tmp_path / f"{rows}.txt", [f"{i:06d}" + "y" * 94 for i in range(rows)])
        code = PEAK.format(tests=str(HERE), data=str(data), out=str(tmp_path / f"out{rows}"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seen, peak = map(int, done.stdout.split())
        assert seen == rows
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 40, peaks
