"""How good a set of captions is, in three figures for each modality: unknown rate, length, agreement."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data import ReIDDataset
from ..data.captions import UNKNOWN, split_sentences
from .audit import label_of_name, open_caption_files
from .statistics import WORD, Consistency
from .text import clip_token_counter


class Quality(NamedTuple):
    """The captions of one modality.

    Attributes:
        captions: Their number.
        unknown: Share of them that say "unknown", "unclear" or the like.
        tokens: Length of each as CLIP counts it, start and end included, ``(captions,)``.
        agreement: How alike two captions of one identity are, and two of two; see `word_agreement`.
    """

    captions: int
    unknown: float
    tokens: np.ndarray
    agreement: Consistency


def caption_quality(
    texts: Sequence[str], identities: Sequence[int], count_tokens: Callable[[str], int] | None = None
) -> Quality:
    """Measure captions of one modality.

    Args:
        texts: The captions, at least one.
        identities: Of each image the identity, negative where it is unknown.
        count_tokens: Tokens of a text, start and end included; None: CLIP's tokenizer.

    Raises:
        ValueError: If there is no caption.

    Example:
        >>> caption_quality(["A tall man.", "An unknown person."], [1, 2], len).unknown
        0.5
    """
    if not texts:
        raise ValueError("there is no caption to measure")
    count = count_tokens or clip_token_counter()
    # byte-pair merges never cross a space, so the tokens of sentences add up
    within = cache(lambda sentence: count(sentence) - 2)
    tokens = np.array([2 + sum(map(within, split_sentences(text))) for text in texts])
    unknown = sum(bool(UNKNOWN.search(text)) for text in texts) / len(texts)
    return Quality(len(texts), unknown, tokens, word_agreement(texts, identities))


def word_agreement(texts: Sequence[str], identities: Sequence[int]) -> Consistency:
    """Compare captions of one identity with captions of two, without a grammar: the mean cosine of their words.

    Words and word pairs weigh as in `term_features`; texts of unknown (negative) identity count only for how frequent
    words are. The sum over all pairs follows from the sums of the vectors, so that time grows with the number of texts.

    Args:
        texts: n captions.
        identities: Of their images, ``(n,)``.

    Returns:
        Mean cosine of the pairs of one identity and of two; nan if there is no such pair.
    """
    words = [WORD.findall(text.lower()) for text in texts]
    counted = [Counter([*w, *map(" ".join, pairwise(w))]) for w in words]
    n, spread = len(texts), Counter(chain.from_iterable(counted))
    rarity = {term: 1 + np.log((1 + n) / (1 + d)) for term, d in spread.items()}
    sums: dict[int, Counter[str]] = {}
    rows: Counter[int] = Counter()
    squares = Counter[int]()
    for terms, pid in zip(counted, identities, strict=True):
        if pid < 0:
            continue
        weights = {term: (1 + np.log(c)) * rarity[term] for term, c in terms.items()}
        norm = sum(w * w for w in weights.values()) ** 0.5
        of = sums.setdefault(pid, Counter())
        for term, weight in weights.items():
            of[term] += weight / norm
        rows[pid] += 1
        squares[pid] += norm > 0
    every: Counter[str] = Counter()
    for of in sums.values():
        every.update(of)
    total = sum(w * w for w in every.values())
    inside = sum(w * w for of in sums.values() for w in of.values())
    pairs = sum(c * (c - 1) for c in rows.values())
    others = rows.total() ** 2 - sum(c * c for c in rows.values())
    same = (inside - squares.total()) / pairs if pairs else float("nan")
    return Consistency(float(same), float((total - inside) / others) if others else float("nan"))


def quality_of_files(path: str | Path) -> dict[str, Quality]:
    """Measure the caption files of a folder, or one file, by modality; see `open_caption_files`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a file cannot be read, or holds no caption.
    """
    texts: dict[str, list[str]] = {}
    labels: dict[str, list[int]] = {}
    for (_, modality), captions in open_caption_files([path]).items():
        texts.setdefault(modality, []).extend(captions.values())
        found = (label_of_name(item) for item in captions)
        labels.setdefault(modality, []).extend(-1 if label is None else label.pid for label in found)
    return _measured(texts, labels)


def quality_of_dataset(dataset: ReIDDataset) -> dict[str, Quality]:
    """Measure the captions of a dataset's samples by modality, each sample once.

    Raises:
        ValueError: If no sample has a caption.
    """
    once = {sample.key: sample for split in dataset.splits().values() for sample in split}
    texts: dict[str, list[str]] = {}
    labels: dict[str, list[int]] = {}
    for sample in once.values():
        for modality, caption in zip(dataset.modalities, sample.captions or (), strict=False):
            if caption:
                texts.setdefault(modality, []).append(" ".join(caption))
                labels.setdefault(modality, []).append(sample.pid)
    if not texts:
        raise ValueError(f"no sample of {dataset.name} has a caption: give a folder of captions (--captions)")
    return _measured(texts, labels)


def _measured(texts: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[int]]) -> dict[str, Quality]:
    return {modality: caption_quality(found, labels[modality]) for modality, found in texts.items()}
