"""Captions in training: random subsets of the sentences, and captions of a lower quality."""

from collections.abc import Sequence

import numpy as np

from ..captioning import read_captions, split_sentences
from .rng import seeded_rng

__all__ = ["draw_captions", "draw_sentences", "keep_quality", "read_captions", "split_sentences"]


def draw_sentences(
    sentences: Sequence[str], rng: np.random.Generator, keep_ratio: float | None = None
) -> tuple[str, ...]:
    """Draw a random non-empty subset of the sentences, in their order (NEXT, Eq. 4).

    Args:
        sentences: n sentences.
        rng: Source of the draw.
        keep_ratio: None draws the size uniformly from 1 … n, then a subset of this size uniformly; a probability keeps
            each sentence by its own draw, and one uniformly chosen sentence where none was kept.

    Returns:
        The subset; ``()`` if there are no sentences.

    Raises:
        ValueError: If `keep_ratio` is not a probability.
    """
    if keep_ratio is not None and not 0 <= keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be a probability in [0, 1] or None, got {keep_ratio}")
    if not sentences:
        return ()
    n = len(sentences)
    if keep_ratio is None:
        return _subset(sentences, int(rng.integers(1, n + 1)), rng)
    kept = tuple(s for s, u in zip(sentences, rng.random(n), strict=True) if u < keep_ratio)
    return kept or _subset(sentences, 1, rng)


def keep_quality(sentences: Sequence[str], share: float, rng: np.random.Generator) -> tuple[str, ...]:
    """Keep a share of the sentences, at random but in order (NEXT, Table 5: caption quality 35, 70, 100 %).

    Args:
        sentences: n sentences.
        share: Share to keep, in (0, 1].
        rng: Source of the draw, such as ``seeded_rng("quality", seed, sample.key, modality)``.

    Returns:
        ``share * n`` sentences rounded to the nearest number (half up), at least one; ``()`` if there are none.

    Raises:
        ValueError: If `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    return _subset(sentences, max(1, int(share * len(sentences) + 0.5)), rng) if sentences else ()


def draw_captions(
    captions: Sequence[Sequence[Sequence[str]]],
    keys: Sequence[str],
    draws: Sequence[tuple[int, int]],
    num_experts: int,
    seed: int,
    keep_ratio: float | None = None,
) -> list[list[tuple[str, ...]]]:
    """Draw a caption of its own for every sample, expert and modality (NEXT, Eq. 4).

    Each draw is a pure function of (seed, epoch, slot, sample key, expert, modality index): it does not depend on
    what else is in the batch, nor on the order.

    Args:
        captions: ``[B][M]`` sentences, as in `Batch.captions`.
        keys: B sample keys.
        draws: B pairs (epoch, slot).
        num_experts: Number of semantic experts E.
        seed: Seed of the run.
        keep_ratio: See `draw_sentences`.

    Returns:
        ``B * E`` rows of M tuples; row ``b * E + e`` is sample b for expert e.

    Raises:
        ValueError: If the lengths differ, or `num_experts` or `keep_ratio` is out of range.
    """
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}")
    if not len(captions) == len(keys) == len(draws):
        raise ValueError(f"captions, keys and draws differ in length: {len(captions)}, {len(keys)}, {len(draws)}")
    return [
        [
            draw_sentences(sentences, seeded_rng("caption", seed, epoch, slot, key, expert, modality), keep_ratio)
            for modality, sentences in enumerate(sample)
        ]
        for sample, key, (epoch, slot) in zip(captions, keys, draws, strict=True)
        for expert in range(num_experts)
    ]


def _subset(sentences: Sequence[str], size: int, rng: np.random.Generator) -> tuple[str, ...]:
    chosen = sorted(rng.permutation(len(sentences))[:size].tolist())
    return tuple(sentences[i] for i in chosen)
