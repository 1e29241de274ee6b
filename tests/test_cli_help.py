"""The command line as a newcomer meets it: the map, the help of each command, completion, and what a command ends with."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import termwise as tw
from termwise import cli, cli_words
from termwise.cli_map import BAD_INPUT, EXIT_CODES, FAULT, FOUND_WANTING, HEADINGS

GROUP = typer.main.get_command(cli.app)
COMMANDS = GROUP.commands
START = "import sys; sys.argv[0] = 'termwise'; from termwise.cli import main; main()"


def shown(*arguments: str, width: int = 100) -> str:
    result = CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": str(width), "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.stdout


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own, as a shell starts it."""
    own = {name: v for name, v in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")}
    command = [sys.executable, "-c", START, *arguments]
    return subprocess.run(command, env={**own, **environment}, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------------------------------------------------------- the map


def test_every_command_stands_under_a_heading():
    page = shown()
    places = [page.index(f" {heading} ") for heading in HEADINGS]
    assert places == sorted(places)
    for name, command in COMMANDS.items():
        assert command.rich_help_panel in HEADINGS, f"{name} has no heading: see termwise.cli_map"
        following = [p for p in places if p > page.index(f" {command.rich_help_panel} ")] + [page.index("Examples:")]
        assert page.index(f" {command.rich_help_panel} ") < page.index(f"│ {name} ") < following[0]


def test_a_command_is_one_line_of_the_map():
    page = shown(width=80)
    rows = [line.strip("│ ") for line in page[page.index(HEADINGS[0]) :].splitlines() if line.startswith("│ ")]
    assert sorted(row.split()[0] for row in rows) == sorted(COMMANDS), "shorten its first sentence"


def test_no_command_prints_the_map():
    bare, short, long = process(), process("-h"), process("--help")
    assert bare.stdout == short.stdout == long.stdout
    assert bare.returncode == short.returncode == long.returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_understood_from_its_help(name):
    command, page = COMMANDS[name], shown(name, "-h")
    assert page == shown(name, "--help")
    for option in command.params:
        assert option.help, f"{name} {option.name} says nothing of itself"
        flag = getattr(option, "is_flag", False) or getattr(option, "count", False)
        assert option.metavar is not None, f"{name} {option.name}: say what it takes (metavar), nothing for a switch"
        assert (option.metavar == "") is flag
        assert option.name in ("help", "keys") or any(text in page for text in option.opts)
    examples = re.findall(r"^  (termwise .*)$", command.epilog, re.MULTILINE)
    assert examples
    for example in examples:
        assert len(example) <= 76, f"{example!r} breaks in a terminal of 80 columns"
        assert example in page
        _, called, *rest = shlex.split(example)
        assert called == name
        command.make_context(name, rest, parent=typer.Context(GROUP, info_name="termwise"))  # its options exist and take this


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_nothing_is_cut_in_a_narrow_terminal(name, width):
    page = shown(*filter(None, [name]), "-h", width=width)
    assert "…" not in page
    assert max(map(len, page.splitlines())) <= width


def test_colours_are_left_out_where_none_are_wanted():
    coloured = re.compile(r"\x1b\[[\d;]*(?:3[0-7]|9[0-7])[\d;]*m")
    assert coloured.search(process("-h", FORCE_COLOR="1", TERM="xterm-256color").stdout)
    assert not coloured.search(process("-h", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1").stdout)
    assert "\x1b" not in process("-h").stdout


# ------------------------------------------------------------------------------------------------------------- completion


def completed(line: str) -> list[str]:
    words = line.split(" ")
    done = process(_TERMWISE_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("termwise com", ["compare", "compress"]),
        ("termwise explain --model m", ["mobilenet-v2", "minilm", "minilm-sentiment"]),
        ("termwise explain --rules gam", ["gamma", "gamma-vit"]),
        ("termwise explain --flo", ["--float32"]),
        ("termwise compare --methods default,attention_r", ["default,attention_rollout"]),
        ("termwise compress --unit f", ["flops"]),
        ("termwise compress --method weloR", []),
        ("termwise verify dyn", ["dynamiclrp"]),
        ("termwise verify --room w", ["weights"]),
        ("termwise papers --room f", ["functions"]),
    ],
)
def test_a_shell_completes(line, words):
    assert completed(line) == words


def test_words_of_the_shell_are_those_of_the_tables():
    from termwise.core import claims
    from termwise.predictions.rules.sets import IN_ITS_FORM, RULE_SETS

    assert list(cli_words.MODELS) == list(tw.zoo.subjects)
    assert set(cli_words.RULE_SETS) == {"default", *RULE_SETS, *IN_ITS_FORM, "EpsilonGammaBox"}
    assert set(cli_words.COMPARED) == set(import_module("termwise.predictions.compare").METHODS)
    assert set(cli_words.COMPRESSED) == set(import_module("termwise.weights.methods").METHODS)
    assert cli_words.UNITS == import_module("termwise.weights.compress").UNITS
    assert set(cli_words.papers("")) == set(claims.papers())
    assert set(cli_words.rooms("")) == {row["room"] for row in claims.papers().values()}


def test_completion_is_quick():
    """In seconds of the processor, which other tests beside this one do not lengthen."""

    def spent(line: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        completed(line)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for line in ("termwise explain --model m", "termwise verify a"):
        assert min(spent(line) for _ in range(3)) < 0.3
    code = (
        "import sys, termwise.cli, termwise.cli_words as w; w.papers(''); assert not {'torch', 'numpy', 'rich'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_completion_is_installed_where_a_shell_looks(tmp_path):
    line = f'"{sys.executable}" -c "{START}" --install-completion; true'  # `; true` keeps bash there to be found
    done = subprocess.run(
        ["bash", "-c", line], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert "bash completion installed" in done.stdout, done.stderr
    script = (tmp_path / ".bash_completions" / "termwise.sh").read_text()
    assert "_TERMWISE_COMPLETE=complete_bash" in script
    assert "termwise.sh" in (tmp_path / ".bashrc").read_text()


# ------------------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["exlain"], "Did you mean 'explain'"),
        (["explain", "--modle", "x"], "Possible options: --model"),
        (["explain"], "Missing option '--model'"),
        (["expand", "--model", "nanoguard", "--text", "x", "--order", "-1"], "greater than or equal to 0"),
        (["explain", "--model", "nanoguard"], "give either --image or --text"),
        (["verify", "dynamiclrb"], "did you mean 'dynamiclrp'"),
        (["papers", "--room", "cellar"], "no paper in a room 'cellar'"),
    ],
)
def test_bad_input_ends_with_2(arguments, text):
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "100"})
    assert result.exit_code == BAD_INPUT
    assert text in result.stderr


def test_a_check_that_failed_ends_with_1(monkeypatch):
    def wanting(*_: object, **__: object) -> None:
        tw.Decomposition(tw.core.decomposition.torch.ones(1), {}).check()

    monkeypatch.setattr("termwise.cli.chosen_subject", wanting)
    result = CliRunner().invoke(cli.app, ["coverage", "--model", "nanoguard"])
    assert result.exit_code == FOUND_WANTING
    assert result.stderr.startswith("error: ")


def test_an_interrupt_ends_with_130(monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("termwise.cli.chosen_subject", interrupted)
    assert CliRunner().invoke(cli.app, ["coverage", "--model", "nanoguard"]).exit_code == 130


def test_a_fault_of_ours_ends_with_3_and_says_so(monkeypatch, capsys):
    def faulty(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("termwise.cli.chosen_subject", faulty)
    monkeypatch.setattr(sys, "argv", ["termwise", "coverage", "--model", "nanoguard"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == FAULT
    told = capsys.readouterr().err
    assert "KeyError: 'lost'" in told
    assert "fault of termwise" in told


def test_a_reader_who_has_seen_enough_gets_no_error():
    """As `termwise models --json | head -1`, where head has gone."""
    command = [sys.executable, "-c", START, "models", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        told = running.stderr.read()
    assert running.returncode == 141
    assert not told


def test_the_codes_are_told_in_the_documentation():
    page = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text("utf-8")
    rows = {int(code): meaning for code, meaning in re.findall(r"^\| `(\d+)` \| ([^:|]+)(?::[^|]*)?\|$", page, re.MULTILINE)}
    assert {code: rows[code].strip() for code in EXIT_CODES} == EXIT_CODES
    assert all(f"`termwise {name}`" in page for name in COMMANDS)


def test_json_goes_to_other_programs():
    """Nothing but JSON, whatever else is said."""
    assert json.loads(process("papers", "--json", FORCE_COLOR="1").stdout)
