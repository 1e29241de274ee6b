"""Ray: real workers of its own give the same bytes as local ones, and their deaths are noticed."""

import builtins
import importlib.util
import json
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from engine.subjects import OWN, Lengths, texts
from engine.test_runs import HERE, LINES, same, until_batches
from termwise import cli
from termwise.engine import Dataset, Results, run

installed = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@installed
def test_two_actors_give_the_same_bytes(tmp_path):
    data = Dataset.open(texts(tmp_path / "a.txt", [*LINES[:20], "bad", *LINES[21:30]]))
    run(Lengths(), data, tmp_path / "local", workers=1, batch_size=4)
    try:
        results = run(Lengths(), data, tmp_path / "ray", engine="ray", workers=2, batch_size=4)
    except ConnectionError as problem:
        if "timed out during startup" in str(problem):
            pytest.skip("Ray did not start in the half minute that it gives itself: this machine is busy")
        raise
    assert same(tmp_path / "local", tmp_path / "ray")
    assert results.errors.to_pylist() == [{"row": 20, "key": "line 21", "reason": "ValueError: 'bad' is bad"}]


@installed
@pytest.mark.slow
def test_a_row_that_kills_its_actor_is_found(tmp_path):
    """ "kill" always does; "once" the first time, as an accident does: that batch is whole."""
    data = Dataset.open(texts(tmp_path / "a.txt", [*LINES[:6], "kill", *LINES[7:12], "once", *LINES[13:16]]))
    results = run(Lengths(marks=str(tmp_path)), data, tmp_path / "out", engine="ray", workers=2, batch_size=4)
    (dead,) = results.errors.to_pylist()
    assert dead["row"] == 6
    assert dead["reason"] == "ChildProcessError: its worker died (Ray: ActorDiedError), of memory as a rule"
    assert results.scalars("text")["text"].to_pylist() == [*LINES[:6], *LINES[7:12], "once", *LINES[13:16]]


@installed
@pytest.mark.slow
def test_the_command_line_on_a_model_of_ones_own(tmp_path, monkeypatch):
    """Relative paths mean on the workers what they mean here."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "films.jsonl").write_text("".join(json.dumps({"text": "x" * (1 + i % 5)}) + "\n" for i in range(9)))
    monkeypatch.chdir(tmp_path)
    for engine, workers in (("local", 1), ("ray", 2)):
        command = f"explain --model own.py:bag --dataset films.jsonl --out {engine} --engine {engine} --workers {workers}"
        done = CliRunner().invoke(cli.app, [*command.split(), "--batch-size", "4"])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "ray" / "table.parquet").read_bytes() == (tmp_path / "local" / "table.parquet").read_bytes()
    assert Results(tmp_path / "ray")[3].check().names == [list("xxxx")]
    (tmp_path / "own.py").unlink()
    done = CliRunner().invoke(cli.app, [*command.split(), "--batch-size", "4", "--out", "other"])
    assert done.exit_code != 0
    assert "own.py" in done.output, done.output


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from engine.subjects import Lengths
from termwise.engine import Dataset, run
if __name__ == "__main__":
    run(Lengths(pause=0.05), Dataset.open({data!r}), {out!r}, engine="ray", workers=2, batch_size=4)
"""


@installed
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_keeps_what_is_done_and_leaves_nobody_behind(tmp_path, how):
    import psutil

    data = texts(tmp_path / "a.txt", LINES * 20)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(HERE), data=str(data), out=str(tmp_path / "out")))
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)
    until_batches(tmp_path / "out", 2, process)
    others = psutil.Process(process.pid).children(recursive=True)
    assert len(others) > 3
    process.send_signal(how)
    said = process.communicate(timeout=120)[1]
    assert how == signal.SIGKILL or "rows are done and kept" in said
    assert len(Results(tmp_path / "out")) >= 8
    assert not psutil.wait_procs(others, timeout=120)[1]  # two small helpers of Ray's take a minute to notice


def test_without_ray(tmp_path, monkeypatch):
    found = builtins.__import__

    def imported(name, *arguments):
        if name == "ray":
            raise ImportError(name)
        return found(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", imported)
    with pytest.raises(ImportError, match=r'pip install "termwise\[ray\]"'):
        run(Lengths(), Dataset.open(texts(tmp_path / "a.txt", LINES)), tmp_path / "out", engine="ray")
