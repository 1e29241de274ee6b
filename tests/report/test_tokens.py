"""Sub-words merged into words: every convention, sums kept, nothing that moves a cursor."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from termwise.report.tokens import merge, printable, rich_text, words

from .examples import matrix, sentence


def shown(tokens):
    return [w.text for w in merge(tokens, [1.0] * len(tokens))]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (
            ["[CLS]", "un", "##believ", "##able", ",", "i", "'", "s", "[SEP]"],
            ["[CLS]", "unbelievable", ",", "i", "'", "s", "[SEP]"],
        ),
        (["▁The", "▁qu", "ick", ".", "</s>"], ["The", "quick", ".", "</s>"]),
        (["The", "Ġqu", "ick", "!", "<|endoftext|>"], ["The", "quick", "!", "<|endoftext|>"]),
        (["<|reserved_0|>", "i", "gno", "re", " pre", "vio", "us", "."], ["<|reserved_0|>", "ignore", "previous", "."]),
        (["caf", "Ã©", "Ġna", "Ã", "¯", "ve"], ["café", "naïve"]),
        (["##"], ["##"]),
        (["one", "two"], ["one", "two"]),
        ([" ", "a"], ["␣", "a"]),
    ],
)
def test_words(tokens, expected):
    assert shown(tokens) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "##b", "Ġc", "▁d", " e", ".", "[CLS]", "<s>", "", "é", "\n", "好"]), st.integers(-9, 9))
    )
)
def test_sums_and_tokens_are_kept(pairs):
    tokens, values = [t for t, _ in pairs], [v for _, v in pairs]
    found = merge(tokens, values)
    assert sum(w.value for w in found) == sum(values)
    assert [p for w in found for p in w.pieces] == tokens


def test_a_word_is_coloured_by_the_sum_of_its_tokens():
    word = merge(["un", "##happy"], [3.0, -5.0])[0]
    assert (word.text, word.value, word.pieces) == ("unhappy", -2.0, ("un", "##happy"))


def test_one_relevance_per_token():
    with pytest.raises(ValueError, match="2 tokens and 1 relevances"):
        merge(["a", "b"], [1.0])


def test_words_come_from_the_names_and_the_input_that_fits():
    assert [w.value for w in words(sentence(["a", "b"], [1.0, -2.0]))] == [1.0, -2.0]
    assert words(matrix()) == []


def test_no_character_moves_the_cursor():
    assert printable("a\x1b[2Jb\u202ec\n") == "a·[2Jb·c·"
    console = Console(record=True, width=60, file=io.StringIO())
    console.print(rich_text(merge(["\x1b[2J", "[red]x"], [1.0, -1.0])))
    text = console.export_text()
    assert "\x1b" not in text
    assert "[red]x" in text
