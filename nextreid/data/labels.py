"""Labels as files write them, numbered: whole numbers stay, words are counted in their order."""

import re
from collections.abc import Sequence
from unicodedata import normalize

from .._names import clip

LABELS = ("pid", "camid", "sceneid")

# empty, or what pandas and R write where nothing is known
_UNKNOWN = frozenset(("", "-1", "-1.0", "nan", "na", "<na>", "none", "null"))
_WHOLE = re.compile(r"\d+(\.0*)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_MOST = 2**63 - 1  # what a tensor of int64 holds


def number_labels(column: str, cells: Sequence[tuple[str, str]]) -> tuple[list[int], dict[int, str]]:
    """Number one column of labels.

    Where all labels are whole numbers (``12`` or ``12.0``) of at most 63 bits they keep their values. Else each
    distinct word, in its composed Unicode form, gets its place in sorted order, and so do longer numbers.

    Args:
        column: Name of the column, for messages.
        cells: For each row where it is, for messages, and its cell.

    Returns:
        The numbers, -1 where nothing is known, and the words by their numbers: empty where the numbers say it all.

    Raises:
        ValueError: If all are numbers and one is neither -1 nor whole; names the line.
    """
    words = [normalize("NFC", cell) for _, cell in cells]
    known = sorted({word for word in words if word.casefold() not in _UNKNOWN})
    if not all(map(_NUMBER.fullmatch, known)):
        numbers = {word: number for number, word in enumerate(known)}
        return [numbers.get(word, -1) for word in words], {number: word for word, number in numbers.items()}
    wrong = {word for word in known if not _WHOLE.fullmatch(word)}
    for (where, cell), word in zip(cells, words, strict=True):
        if word in wrong:
            hint = "; a spreadsheet has rounded it: save the column as text" if "e" in word.casefold() else ""
            raise ValueError(f"{where}: {column} must be a whole number, -1 or a word, got {clip(cell)!r}{hint}")
    whole = {word: word.partition(".")[0] for word in known}
    if all(len(digits.lstrip("0")) < 20 and int(digits) <= _MOST for digits in whole.values()):
        return [int(whole.get(word, -1)) for word in words], {}
    ranks = {digits: rank for rank, digits in enumerate(sorted(set(whole.values())))}
    return [ranks.get(whole.get(word, ""), -1) for word in words], {rank: digits for digits, rank in ranks.items()}
