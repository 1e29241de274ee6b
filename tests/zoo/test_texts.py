"""Tokenizers, prepared texts, and words out of tokens."""

import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assets import subject
from termwise.zoo import AssetCorrupt, merge
from termwise.zoo.bytepair import BytePairs, read_pickle
from termwise.zoo.texts import TextPreparation, Vocabulary

BYTES = {bytes([i]): i for i in range(256)}
PIECES = r"\s?\S+|\s+"


def byte_pairs():
    return BytePairs(PIECES, BYTES | {b"th": 256, b"the": 257, b" the": 258, b"he": 259}, {"<|begin|>": 260})


def prepare(limit=8, **settings):
    return TextPreparation(byte_pairs(), limit=limit, prefix=(260,), **settings)


def test_lowest_rank_merges_first():
    assert byte_pairs().encode("the the") == [257, 258]
    assert byte_pairs().encode("thhe") == [256, 259]
    assert byte_pairs().encode("t he") == [116, 32, 259]


def merged_rank_by_rank(ranks, piece):
    """The slow definition: for each row of the table in order, merge that pair wherever it stands."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    for token in sorted(ranks, key=ranks.__getitem__):
        i = 0
        while i < len(parts) - 1:
            if parts[i] + parts[i + 1] == token:
                parts[i : i + 2] = [token]
            else:
                i += 1
    return [ranks[part] for part in parts]


@pytest.mark.parametrize("word", [" unbelievable", "instructions", " mississippi", "aaaaaaaa", " déjà", "日本", "😀", "x"])
def test_byte_pairs_are_their_slow_definition(word):
    tokenizer = subject("nanoguard").preparation.tokenizer
    assert tokenizer._merge(word.encode()) == merged_rank_by_rank(tokenizer._ranks, word.encode())


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_texts_survive_the_round_trip_and_words_partition_them(text):
    preparation = subject("nanoguard").preparation
    assert preparation.tokenizer.decode(preparation.tokenizer.encode(text)) == text
    if text.strip():
        prepared = preparation(text, truncate=True)
        indices = [k for _, members in preparation.words(prepared) for k in members]
        assert indices == list(range(prepared["input_ids"].shape[1]))


def test_a_prepared_text():
    prepared = prepare()("the cat")
    assert prepared["input_ids"].tolist() == [[260, 257, *b" cat"]]
    assert prepared["attention_mask"].tolist() == [[1] * 6]
    assert prepare().names(prepared) == ["<|begin|>", "the", " ", "c", "a", "t"]
    assert prepare().special(prepared) == [0]


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_texts(text):
    with pytest.raises(ValueError, match="the text is empty"):
        prepare()(text)


def test_long_texts_say_how_long():
    with pytest.raises(ValueError, match=r"has 11 tokens and the model takes 8.*truncate=True"):
        prepare()("x" * 10)
    assert prepare()("x" * 10, truncate=True)["input_ids"].tolist() == [[260, *b"xxxxxxx"]]
    assert prepare(suffix=(3,))("x" * 10, truncate=True)["input_ids"].tolist() == [[260, *b"xxxxxx", 3]]
    assert prepare()("x" * 7)["input_ids"].shape == (1, 8)


@pytest.mark.parametrize("text", [None, b"bytes", ["a", "list"], 3])
def test_other_types(text):
    with pytest.raises(TypeError, match="one str"):
        prepare()(text)


def test_lone_surrogates():
    with pytest.raises(ValueError, match="not valid Unicode at character 2"):
        prepare()("ab\ud800")


def test_names_are_those_of_one_text():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        prepare().names(torch.zeros(2, 3, dtype=torch.int64))


def test_characters_split_over_tokens_are_put_together():
    preparation = prepare(limit=40)
    prepared = preparation("déjà 日本😀!")
    assert [word for word, _ in preparation.words(prepared)] == ["<|begin|>", "déjà", " ", "日", "本", "😀", "!"]


def test_vocabularies_are_read_one_at_a_time():
    vocabulary = Vocabulary(byte_pairs(), 300)
    assert len(vocabulary) == 300
    assert vocabulary[257] == "the"
    assert vocabulary[-1] == "<unused 299>"
    assert vocabulary[97:100] == ["a", "b", "c"]
    assert "the" in vocabulary
    assert vocabulary.index("the") == 257
    with pytest.raises(IndexError, match="300"):
        vocabulary[300]


class Evil:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("content", [Evil(), re.compile("a"), torch.zeros(1)])
def test_a_pickle_that_asks_for_more_than_data_is_refused(tmp_path, content, capsys):
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(AssetCorrupt, match=r"the pickle asks for .*refused"):
        read_pickle(tmp_path / "t.pkl")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"pat_str": "a"}), pickle.dumps([1])])
def test_other_files_are_no_tokenizer(tmp_path, content):
    (tmp_path / "t.pkl").write_bytes(content)
    with pytest.raises(AssetCorrupt, match="no pickled tokenizer"):
        read_pickle(tmp_path / "t.pkl")


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["ign", "ore", " all", ",", " now", "!", "!"], ["ignore", "all", ",", "now", "!", "!"]),
        (["The", "Ġcat", "Ġsat", "ĊĊ", "on"], ["The", "cat", "sat", "\n\n", "on"]),
        (["▁Hel", "lo", "▁world"], ["Hello", "world"]),
        (["[CLS]", "token", "##ization", ".", "[SEP]"], ["[CLS]", "tokenization", ".", "[SEP]"]),
        (["<|im_start|>", "user", "<|im_end|>", "x"], ["<|im_start|>", "user", "<|im_end|>", "x"]),
        ([" don", "'t", " it", "’s"], ["don't", "it’s"]),
        (["日", "本", "go"], ["日", "本", "go"]),
        (["snake", "_", "case", "2"], ["snake_case2"]),
        ([], []),
    ],
)
def test_words(tokens, words):
    merged = merge(tokens)
    assert [word for word, _ in merged] == words
    assert [k for _, members in merged for k in members] == list(range(len(tokens)))


def test_wordpiece_without_a_continuation_must_be_told():
    assert len(merge(["happy", "dog"], "wordpiece")) == 2
    assert len(merge(["happy", "dog"])) == 1
