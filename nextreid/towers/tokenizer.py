"""Texts to token ids: CLIP's byte pairs, and tokenizers that the hub keeps beside a model."""

from functools import cache, lru_cache
from itertools import chain, islice
from typing import Any

import open_clip

VOCABULARY = 49_408
SMALLEST = 2 * 256 + 2  # a byte inside and at the end of a word, the start and the end of a text
_MEMO = 100_000


class ClipTokenizer:
    """CLIP's byte pairs, with a mark at the start and at the end of a text.

    Args:
        vocab_size: Below CLIP's 49,408 a text is cut into the pieces of CLIP's first merges.
    """

    pad = 0

    def __init__(self, vocab_size: int = VOCABULARY) -> None:
        self.vocab_size = vocab_size

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, marks included, uncut."""
        tokenizer = _byte_pairs(self.vocab_size)
        return [tokenizer.sot_token_id, *chain.from_iterable(self._pieces(text)), tokenizer.eot_token_id]

    def count(self, text: str) -> int:
        """Number of tokens of a text, marks included, uncut."""
        return 2 + sum(map(len, self._pieces(text)))

    def _pieces(self, text: str) -> list[list[int]]:
        # No token spans white space, so that the words of a text are tokenised alone, each once. What the tokenizer
        # repairs first (broken Unicode, HTML entities, control characters) may span words and is not plain ASCII.
        if not (text.isascii() and text.isprintable() and "&" not in text):
            return [_byte_pairs(self.vocab_size).encode(text)]
        return [_encode_word(self.vocab_size, word) for word in text.split()]


class HubTokenizer:
    """The tokenizer that open_clip names for a model, such as SigLIP2's; fetched when the first text comes.

    Args:
        name: open_clip name of the model.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def pad(self) -> int:
        """What stands behind the end of a text."""
        return int(_from_hub(self.name).tokenizer.pad_token_id)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, marks included, uncut.

        Raises:
            ImportError: If transformers is not installed.
            ConnectionError: If the hub cannot be reached and the cache has not got the tokenizer.
        """
        return _from_hub_ids(self.name, text)

    def count(self, text: str) -> int:
        """Number of tokens of a text, marks included, uncut."""
        return len(self.ids(text))


@cache
def _byte_pairs(vocab_size: int) -> open_clip.SimpleTokenizer:
    """CLIP's tokenizer; a smaller vocabulary is the bytes, the merges that were learned first, and the two ends.

    The marks of start and end are letters like others in a text: as tokens they would cut off what follows.
    """
    tokenizer = open_clip.SimpleTokenizer()
    tokenizer.cache = {}
    if vocab_size < VOCABULARY:
        pieces = list(tokenizer.encoder)
        tokenizer.encoder = {piece: i for i, piece in enumerate(pieces[: vocab_size - 2] + pieces[-2:])}
        tokenizer.decoder = {i: piece for piece, i in tokenizer.encoder.items()}
        tokenizer.bpe_ranks = dict(islice(tokenizer.bpe_ranks.items(), vocab_size - SMALLEST))
        tokenizer.vocab_size = vocab_size
        tokenizer.sot_token_id, tokenizer.eot_token_id = vocab_size - 2, vocab_size - 1
        tokenizer.all_special_ids = [vocab_size - 2, vocab_size - 1]
    return tokenizer


@lru_cache(_MEMO)
def _encode_word(vocab_size: int, word: str) -> list[int]:
    return _byte_pairs(vocab_size).encode(word)


@cache
def _from_hub(name: str) -> Any:
    try:
        return open_clip.get_tokenizer(name)
    except ImportError as error:
        raise ImportError(
            f"the tokenizer of {name!r} needs transformers: pip install 'nextreid[tokenizers]'"
        ) from error
    except OSError as error:
        raise ConnectionError(
            f"the tokenizer of {name!r} is not in the hub's cache, and not fetched: {error}"
        ) from error


@lru_cache(_MEMO)
def _from_hub_ids(name: str, text: str) -> list[int]:
    tokenizer = _from_hub(name)
    return list(tokenizer.tokenizer(tokenizer.clean_fn(text))["input_ids"])
