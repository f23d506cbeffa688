"""What a model gets to see: captions or none, some of the modalities, captions of lower quality."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nextreid._names import unknown
from nextreid.data import Batch, ReIDDataset, Sample, seeded_rng
from nextreid.data.captions import keep_quality


@dataclass(frozen=True)
class Condition:
    """What is shown of each sample.

    Attributes:
        text: Whether captions are read, where the model reads captions and there are some.
        modalities: Those that are shown, one or several; None for all. Of the others neither image nor caption is seen.
    """

    text: bool = True
    modalities: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.modalities, str):
            object.__setattr__(self, "modalities", (self.modalities,))

    def shows(self, modalities: Sequence[str]) -> list[bool]:
        """Whether each modality is shown, in their order.

        Raises:
            ValueError: If a modality is unknown or none is shown.
        """
        shown = modalities if self.modalities is None else self.modalities
        _check_known(shown, modalities)
        if not shown:
            raise ValueError(f"all modalities ({', '.join(modalities)}) are hidden; leave at least one")
        return [modality in shown for modality in modalities]

    def hidden(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """The modalities that are not shown, in their order."""
        return tuple(m for m, shown in zip(modalities, self.shows(modalities), strict=True) if not shown)


def hide_modalities(modalities: Sequence[str], missing: Sequence[str], text: bool = True) -> Condition:
    """The condition under which some modalities are missing; ValueError if a name is unknown or nothing is left."""
    missing = (missing,) if isinstance(missing, str) else missing  # one modality, not its letters
    _check_known(missing, modalities)
    condition = Condition(text, tuple(m for m in modalities if m not in missing) if missing else None)
    condition.shows(modalities)
    return condition


def _check_known(names: Sequence[str], modalities: Sequence[str]) -> None:
    if wrong := sorted(set(names) - set(modalities)):
        raise ValueError(unknown("modality", wrong, modalities))


def has_captions(samples: Sequence[Sample], shows: Sequence[bool] | None = None) -> bool:
    """Whether any modality of any sample has a sentence; of the modalities that are shown, where that is given."""
    return any(any(itertools.compress(sample.captions, shows or itertools.repeat(True))) for sample in samples)


def with_caption_quality(dataset: ReIDDataset, share: float, seed: int = 0, unit: str = "sentence") -> ReIDDataset:
    """Keep a share of every caption in every split (Table 5: 35, 70 and 100 %).

    Args:
        dataset: Any dataset.
        share: More than 0 and at most 1: exactly this share of the units in expectation, so that short captions may
            lose all of them.
        seed: What stays depends on it, the sample's key and the modality, and on nothing else.
        unit: What is kept or lost: a ``"sentence"`` or a ``"word"``.

    Returns:
        The dataset with shorter captions; itself for a share of 1.

    Raises:
        ValueError: The share is out of range, or there is no such unit.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a caption quality of {share} is not a share; it must be more than 0 and at most 1")
    if share == 1:
        return dataset

    def shorten(sample: Sample) -> Sample:
        rngs = (seeded_rng("quality", seed, sample.key, i) for i in range(len(sample.captions)))
        kept = tuple(
            keep_quality(caption, share, rng, unit) for caption, rng in zip(sample.captions, rngs, strict=True)
        )
        return replace(sample, captions=kept)

    splits = {split: tuple(map(shorten, samples)) for split, samples in dataset.splits().items()}
    return replace(dataset, **splits)  # type: ignore[arg-type]


def drop_modalities(batch: Batch, probability: float, seed: int) -> Batch:
    """Hide modalities of a training batch at random, images and captions both; each sample keeps one at least.

    Args:
        batch: The batch.
        probability: That a modality is hidden. Where chance hides all of a sample, one of them, any, comes back.
        seed: What is hidden depends on it, the epoch, the slot and the sample's key, and on nothing else.

    Returns:
        The batch with fewer modalities present.
    """
    present = batch.present.cpu().clone()
    captions = [list(row) for row in batch.captions]
    for row, (key, draw) in enumerate(zip(batch.keys, batch.draws, strict=True)):
        there = present[row].nonzero().flatten().tolist()
        rng = seeded_rng("drop modality", seed, *draw, key)
        hidden = {m for m, u in zip(there, rng.random(len(there)), strict=True) if u < probability}
        if there and len(hidden) == len(there):
            hidden.remove(there[int(rng.integers(len(there)))])
        for modality in hidden:
            present[row, modality] = False
            if captions[row]:
                captions[row][modality] = ()
    present = present.to(batch.present.device)
    images = batch.images.masked_fill(~present[:, :, None, None, None], 0)
    return replace(batch, images=images, present=present, captions=captions)
