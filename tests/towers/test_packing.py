import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextreid.towers import pack_sentences


def words(text: str) -> int:
    """A synthetic tokenizer: a token per four characters of a word, and two for start and end."""
    return 2 + sum(math.ceil(len(word) / 4) for word in text.split())


def fewest_windows(sentences: tuple[str, ...], limit: int) -> int:
    """The fewest windows of whole sentences in order, by trying every cut."""
    best = len(sentences)
    for cuts in product((False, True), repeat=max(len(sentences) - 1, 0)):
        windows, start = [], 0
        for i, cut in enumerate((*cuts, True)):
            if cut:
                windows.append(" ".join(sentences[start : i + 1]))
                start = i + 1
        if all(words(w) <= limit for w in windows):
            best = min(best, len(windows))
    return best


SENTENCES = st.lists(st.text("ab c", min_size=1, max_size=20), max_size=7).map(tuple)


@given(SENTENCES, st.integers(7, 20))
def test_packing_loses_nothing_and_no_window_is_too_long(sentences: tuple[str, ...], limit: int) -> None:
    # no word of 20 characters has more than 5 + 2 tokens
    windows = pack_sentences(sentences, words, limit)
    assert " ".join(windows) == " ".join(" ".join(sentences).split())
    assert all(window and words(window) <= limit for window in windows)


@given(SENTENCES)
def test_packing_whole_sentences_takes_the_fewest_windows(sentences: tuple[str, ...]) -> None:
    clean = tuple(" ".join(s.split()) for s in sentences if s.split())
    limit = max([12, *map(words, clean)])
    windows = pack_sentences(clean, words, limit)
    assert len(windows) == (fewest_windows(clean, limit) if clean else 0)


@given(st.lists(st.text("ab ", max_size=60), max_size=4), st.integers(3, 6))
def test_even_a_word_that_is_too_long_loses_no_character(sentences: list[str], limit: int) -> None:
    windows = pack_sentences(sentences, words, limit)
    assert "".join("".join(windows).split()) == "".join("".join(sentences).split())
    assert all(words(window) <= limit for window in windows)


def test_a_word_that_is_too_long_is_cut_between_characters() -> None:
    assert pack_sentences(["A man. " + "b" * 11 + " c."], words, 4) == ["A man.", "b" * 8, "bbb c."]


def test_a_character_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="'a' alone has 3 tokens, the limit is 2"):
        pack_sentences(["aaa"], words, 2)
