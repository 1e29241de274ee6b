"""Tables in the terminal."""

import io

import pytest
import torch
from rich.console import Console

from termwise.core.decomposition import Decomposition
from termwise.report import show
from termwise.report.terminal import classes_table

from .examples import EVIL, image, matrix, sentence


def printed(thing, width=100, **options) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    show(thing, console=console, **options)
    return console.file.getvalue()


def test_an_explanation_shows_its_parts_and_the_honest_line():
    why = image(classes=["a", "espresso"])
    text = printed(why)
    assert text.startswith("espresso = ")
    assert "features." in text
    assert "bias" in text
    assert "100.0 %" in text
    assert why.summary() in " ".join(text.split())


def test_a_sentence_is_shown_in_words():
    assert "hello you" in printed(sentence(["<s>", " hel", "lo", " you"]))


def test_markup_and_control_characters_are_text():
    text = printed(sentence(["[bold red]x[/]", "\x1b[2J", EVIL], classes=["a", "[link=x]y[/link]"]))
    assert "[bold red]x[/]" in text
    assert "\x1b" not in text
    assert "[link=x]y[/link]" in text
    assert EVIL in text


def test_one_sample_of_a_batch():
    why = image(batch=3)
    assert "sample 2 of 3" in printed(why, sample=1)
    assert why[1].summary() in " ".join(printed(why, sample=1).split())
    with pytest.raises(ValueError, match="sample 3 is out of range: there are 3"):
        printed(why, sample=3)


def test_other_decompositions():
    text = printed(matrix())
    assert "rank 1" in text
    assert "75.0 %" in text
    assert "remainder" in text
    assert "Decomposition = 3" in printed(Decomposition(torch.tensor(3.0), {"a": torch.tensor(3.0)}))
    assert "smaller parts" in printed(matrix(), k=1)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_figures_are_never_cut(width):
    """Names fold and bars shrink instead."""
    name = "encoder.layer.11.attention.output.LayerNorm"
    parts = {f"bias:{name}": torch.tensor([-12345.67]), "rule:mul@head": torch.tensor([0.001])}
    text = printed(Decomposition(torch.tensor([-12345.669]), parts), width)
    assert "…" not in text
    assert {"-12346", "+0.001", "100.0", "lost", "█"} <= set(text.replace("█", " █ ").split())
    assert name in "".join(line[: line.find("  ", 1)].strip() for line in text.splitlines() if line[:1] == " ")


def test_show_is_the_method(capsys):
    image().show()
    assert "adds up to" in capsys.readouterr().out


def test_classes():
    console = Console(file=io.StringIO(), width=80)
    console.print(classes_table([("[x]", 0.5), ("b", 0.25)], "b"))
    assert "[x]" in console.file.getvalue()
    assert "50.0 %" in console.file.getvalue()
