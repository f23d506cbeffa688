"""Sentences to as few windows of text as the encoder needs, nothing cut off."""

from collections.abc import Callable, Iterable, Iterator


def pack_sentences(sentences: Iterable[str], count_tokens: Callable[[str], int], limit: int = 77) -> list[str]:
    """Join sentences, in order, into as few windows of at most `limit` tokens as possible; nothing is cut off.

    A sentence that is too long alone is spread over several windows, cut between words, and a single word that is
    too long (or text without spaces) between characters. As long as no word is, joining the windows with single
    spaces gives the sentences back, white space aside. Whole sentences take the fewest windows possible if longer
    text never has fewer tokens.

    Args:
        sentences: Any number of sentences.
        count_tokens: Number of tokens of a text with the start and end marks; 77 is CLIP's window.
        limit: Most tokens in a window.

    Returns:
        The windows; ``[]`` if there is no text.

    Raises:
        ValueError: If a single character has more than `limit` tokens.
    """
    return _pack(sentences, count_tokens, limit, " ")


def _pack(pieces: Iterable[str], count_tokens: Callable[[str], int], limit: int, joint: str) -> list[str]:
    windows: list[str] = []
    for piece in _fitting(pieces, count_tokens, limit):
        longer = windows[-1] + joint + piece if windows else piece
        if windows and count_tokens(longer) <= limit:
            windows[-1] = longer
        else:
            windows.append(piece)
    return windows


def _fitting(pieces: Iterable[str], count_tokens: Callable[[str], int], limit: int) -> Iterator[str]:
    for words in map(str.split, pieces):
        text = " ".join(words)
        if text and count_tokens(text) <= limit:
            yield text
        elif len(words) > 1:
            yield from _pack(words, count_tokens, limit, " ")
        elif len(text) > 1:
            yield from _pack(text, count_tokens, limit, "")
        elif text:
            raise ValueError(f"the character {text!r} alone has {count_tokens(text)} tokens, the limit is {limit}")
