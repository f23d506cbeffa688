"""What a model gets to see: hidden modalities and captions of lower quality, as changes of the samples."""

from collections.abc import Sequence
from dataclasses import replace

from nextreid.data import ReIDDataset, Sample, seeded_rng
from nextreid.data.captions import keep_quality


def has_captions(samples: Sequence[Sample]) -> bool:
    """Whether any modality of any sample has a sentence."""
    return any(any(sample.captions) for sample in samples)


def hide_modalities(samples: Sequence[Sample], modalities: Sequence[str], missing: Sequence[str]) -> tuple[Sample, ...]:
    """Make modalities missing: neither their images nor their captions are left.

    Args:
        samples: Samples whose images are in the order of `modalities`.
        modalities: Names of the modalities.
        missing: Those to hide, none or some but not all.

    Returns:
        The samples, unchanged if nothing is hidden.

    Raises:
        ValueError: A name is unknown, all modalities are hidden, or a sample has no image left.
    """
    unknown = sorted(set(missing) - set(modalities))
    if unknown:
        raise ValueError(f"unknown modality {', '.join(map(repr, unknown))}; there are: {', '.join(modalities)}")
    if set(missing) == set(modalities):
        raise ValueError(f"all modalities ({', '.join(modalities)}) are to be missing; leave at least one")
    hidden = {index for index, modality in enumerate(modalities) if modality in missing}
    out = tuple(samples)
    if hidden:
        out = tuple(
            replace(
                sample,
                images=tuple(None if i in hidden else image for i, image in enumerate(sample.images)),
                captions=tuple(() if i in hidden else caption for i, caption in enumerate(sample.captions)),
            )
            for sample in samples
        )
    empty = [sample.key for sample in out if all(image is None for image in sample.images)]
    if empty:
        shown = ", ".join(map(repr, empty[:3])) + (" ..." if len(empty) > 3 else "")
        once = f" once {', '.join(missing)} is hidden" if missing else ""
        raise ValueError(f"{len(empty)} of {len(out)} samples have no image{once}: {shown}; leave them out")
    return out


def with_caption_quality(dataset: ReIDDataset, share: float, seed: int = 0) -> ReIDDataset:
    """Keep a share of the sentences of every caption in every split (Table 5: 35, 70 and 100 %).

    Args:
        dataset: Any dataset.
        share: More than 0 and at most 1; a caption keeps one sentence at least.
        seed: Which sentences stay depends on it, the sample's key and the modality, and on nothing else.

    Returns:
        The dataset with shorter captions; itself for a share of 1.

    Raises:
        ValueError: The share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a caption quality of {share} is not a share; it must be more than 0 and at most 1")
    if share == 1:
        return dataset

    def shorten(sample: Sample) -> Sample:
        rngs = (seeded_rng("quality", seed, sample.key, i) for i in range(len(sample.captions)))
        kept = tuple(
            keep_quality(caption, share, rng) if caption else ()
            for caption, rng in zip(sample.captions, rngs, strict=True)
        )
        return replace(sample, captions=kept)

    splits = {split: tuple(map(shorten, getattr(dataset, split))) for split in ("train", "query", "gallery")}
    return replace(dataset, **splits)  # type: ignore[arg-type]
