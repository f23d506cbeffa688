"""Sentences to as few windows of text as the encoder needs, nothing cut off."""

from collections.abc import Callable, Iterable, Sequence


def pack_sentences(sentences: Sequence[str], count_tokens: Callable[[str], int], limit: int = 77) -> list[str]:
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
    return _fill(_fitting(sentences, count_tokens, limit), count_tokens, limit)


def _fitting(sentences: Iterable[str], count_tokens: Callable[[str], int], limit: int) -> list[str]:
    pieces: list[str] = []
    for sentence in sentences:
        words = sentence.split()
        text = " ".join(words)
        if not text:
            continue
        if count_tokens(text) <= limit:
            pieces.append(text)
        elif len(words) > 1:
            pieces += _fill(_fitting(words, count_tokens, limit), count_tokens, limit)
        elif len(text) > 1:
            pieces += _fill(_fitting(text, count_tokens, limit), count_tokens, limit, joint="")
        else:
            raise ValueError(f"the character {text!r} alone has {count_tokens(text)} tokens, the limit is {limit}")
    return pieces


def _fill(pieces: Iterable[str], count_tokens: Callable[[str], int], limit: int, joint: str = " ") -> list[str]:
    windows: list[str] = []
    for piece in pieces:
        longer = windows[-1] + joint + piece if windows else piece
        if windows and count_tokens(longer) <= limit:
            windows[-1] = longer
        else:
            windows.append(piece)
    return windows
