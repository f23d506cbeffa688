"""Sentences to as few windows of text as the encoder needs, nothing cut."""

from collections.abc import Callable, Sequence


def pack_sentences(sentences: Sequence[str], count_tokens: Callable[[str], int], limit: int = 77) -> list[str]:
    """Join sentences, in order, into as few windows as possible of at most ``limit`` tokens.

    Filling each window before the next one begins is optimal, since the order is kept. A single sentence that is too
    long is cut between words; a single word that is too long is a window of its own and cut between characters.

    Args:
        sentences: The sentences of one caption.
        count_tokens: Token count of a text, start and end tokens included.
        limit: Tokens that a window may have.

    Returns:
        Windows of text. Joined by spaces they give the sentences joined by spaces (words that had to be cut apart).

    Raises:
        ValueError: If not even one character fits.
    """
    windows: list[str] = []
    for sentence in sentences:
        if not sentence.strip():
            continue
        if windows and count_tokens(joined := f"{windows[-1]} {sentence}") <= limit:
            windows[-1] = joined
        elif count_tokens(sentence) <= limit:
            windows.append(sentence)
        else:
            pieces = sentence.split()
            for piece in pieces if len(pieces) > 1 else _halves(sentence):
                _append(windows, piece, count_tokens, limit)
    return windows


def _append(windows: list[str], word: str, count_tokens: Callable[[str], int], limit: int) -> None:
    if windows and count_tokens(joined := f"{windows[-1]} {word}") <= limit:
        windows[-1] = joined
    elif count_tokens(word) <= limit:
        windows.append(word)
    else:
        for half in _halves(word):
            _append(windows, half, count_tokens, limit)


def _halves(word: str) -> tuple[str, str]:
    if len(word) < 2:
        raise ValueError(f"the character {word!r} alone has more tokens than a window may have")
    middle = len(word) // 2
    return word[:middle], word[middle:]
