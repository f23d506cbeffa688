"""Anybody's own images as a dataset by name: from a manifest, or from a pattern of their paths."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...retrieval import get_protocol
from ..captions import add_captions, caption_home
from ..image import Window
from ..manifest import manifest_splits
from ..pattern import PATTERN, pattern_splits
from ..sample import ReIDDataset, Sample
from ..split import Rule, split_identities
from .folder_layout import note_shared_identities
from .registry import register_dataset

# "test" is query and gallery alike; the others are what Market-1501 and its followers call their folders
_SPLITS = {
    "train": ("train",),
    "query": ("query",),
    "gallery": ("gallery",),
    "test": ("query", "gallery"),
    "bounding_box_train": ("train",),
    "bounding_box_test": ("gallery",),
}


@register_dataset("manifest")
def load_manifest(
    root: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    protocol: str | None = None,
    object_type: str = "object",
    window: Mapping[str, Window] | None = None,
    anywhere: bool = False,
    train: float | None = None,
    seed: int = 0,
    captions: str | Path | None = None,
) -> ReIDDataset:
    """Read a dataset from a manifest, see `read_manifest`; its column ``split`` says which rows are what.

    Args:
        root: The CSV or parquet file. Its column ``split`` has "train", "query", "gallery" or "test" (query and
            gallery alike); rows with another value are left out.
        modalities: Order of the images; None takes those of ``("rgb", "nir", "tir")`` that have a column.
        protocol: Name of the evaluation protocol; None takes "camera" where query and gallery have cameras, else
            "none".
        object_type: What is re-identified.
        window: Windows for images of more than 8 bits, by modality; see `ImageFile`.
        anywhere: Allow paths that leave the manifest's folder.
        train: Where there is no column ``split``: the share of identities to train on, see `split_identities`.
        seed: Seed of that split.
        captions: What ``nextreid captions run`` wrote for these images, its folder or ``attributes.parquet``.

    Returns:
        The dataset, named by the file's stem, each split sorted by key.

    Raises:
        FileNotFoundError: If the manifest or images are missing.
        ValueError: If the manifest is wrong, or names no split.
    """
    path = Path(root).expanduser()
    chosen, splits = manifest_splits(path, modalities, window, anywhere)
    call = f"read_manifest({str(root)!r}, {chosen!r})"
    notes = _join_captions(splits, captions, chosen)
    found = _Found(path.stem, chosen, splits, notes, f"{path} has no column 'split'", call)
    return _dataset(found, protocol, object_type, train, seed)


@register_dataset("pattern")
def load_pattern(
    root: str | Path,
    *,
    pattern: str = PATTERN,
    modalities: Sequence[str] | None = None,
    protocol: str | None = None,
    object_type: str = "object",
    window: Mapping[str, Window] | None = None,
    train: float | None = None,
    seed: int = 0,
    captions: str | Path | None = None,
) -> ReIDDataset:
    """Read a dataset from images whose labels stand in their paths, see `read_pattern`.

    Args:
        root: Folder in which the pattern starts.
        pattern: Form of the paths; its ``{split}`` has "train", "query", "gallery" or "test" (query and gallery
            alike), or Market-1501's folder names; samples with another value are left out.
        modalities: Order of the images; None takes those of ``("rgb", "nir", "tir")`` that are found.
        protocol: Name of the evaluation protocol; None takes "camera" where query and gallery have cameras, else
            "none".
        object_type: What is re-identified.
        window: Windows for images of more than 8 bits, by modality; see `ImageFile`.
        train: Where the pattern has no ``{split}``: the share of identities to train on, see `split_identities`.
        seed: Seed of that split.
        captions: What ``nextreid captions run`` wrote for these images, its folder or ``attributes.parquet``.

    Returns:
        The dataset, named by the folder, each split sorted by key.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the pattern is wrong, nothing fits it, or it names no split.
    """
    path = Path(root).expanduser()
    chosen, splits, notes = pattern_splits(path, pattern, modalities, window)
    call = f"read_pattern({str(root)!r}, {pattern!r}, {chosen!r})"
    notes = [*notes, *_join_captions(splits, captions, chosen)]
    found = _Found(path.resolve().name, chosen, splits, notes, f"pattern {pattern!r} has no {{split}}", call)
    return _dataset(found, protocol, object_type, train, seed)


def _join_captions(
    splits: dict[str, list[Sample]], captions: str | Path | None, modalities: Sequence[str]
) -> list[str]:
    """Give the samples of all splits the captions of a run, in the place of their own; return what does not meet."""
    notes: list[str] = []
    home = caption_home(captions, (), modalities, splits=("all",))
    if home is not None:
        every = [(word, sample) for word, samples in splits.items() for sample in samples]
        joined = add_captions([sample for _, sample in every], home, "all", modalities, notes)
        for word in splits:
            splits[word] = [new for (own, _), new in zip(every, joined, strict=True) if own == word]
    return notes


class _Found(NamedTuple):
    """What a reader found: the samples by the word for their split, ``""`` where nothing names it."""

    name: str
    modalities: tuple[str, ...]
    splits: Mapping[str, list[Sample]]
    notes: Sequence[str]
    # how to say that nothing names the split, and the call that reads the samples
    no_split: str
    call: str


def _dataset(found: _Found, protocol: str | None, object_type: str, train: float | None, seed: int) -> ReIDDataset:
    rule = None if protocol is None else get_protocol(protocol).exclude
    if set(found.splits) == {""}:
        return _split(found, protocol, rule, object_type, train, seed)
    if train is not None:
        raise ValueError(f"train={train} splits by identity, but the splits are named: {', '.join(found.splits)}")
    notes = list(found.notes)
    splits: dict[str, list[Sample]] = {"train": [], "query": [], "gallery": []}
    for word, samples in found.splits.items():
        for split in _SPLITS.get(word, ()):
            splits[split] += samples
        if word not in _SPLITS:
            notes.append(f"{len(samples)} samples with split {word!r} left out; known are {', '.join(_SPLITS)}")
    if bool(splits["query"]) != bool(splits["gallery"]):
        lacking = "gallery" if splits["query"] else "query"
        raise ValueError(
            f"{found.name}: no sample has split {lacking!r}, there are {', '.join(found.splits)}; "
            "samples that are query and gallery alike have split 'test'"
        )
    if not any(splits.values()):
        raise ValueError(f"{found.name}: no sample has a known split; " + "; ".join(notes))
    for samples in splits.values():
        samples.sort(key=lambda sample: sample.key)
    protocol = protocol or _rule([*splits["query"], *splits["gallery"]])
    train_, query, gallery = (tuple(samples) for samples in splits.values())
    note_shared_identities(train_, (*query, *gallery), notes)
    return ReIDDataset(found.name, found.modalities, object_type, protocol, train_, query, gallery, tuple(notes))


def _split(
    found: _Found, protocol: str | None, rule: Rule | None, object_type: str, train: float | None, seed: int
) -> ReIDDataset:
    """Split by identity what has no splits."""
    if train is None:
        raise ValueError(
            f"{found.no_split}: name the split of each sample (train, query, gallery or test), or split by identity "
            f"with train=0.5 (--dataset-arg train=0.5), as split_identities({found.call}, "
            f"modalities={found.modalities!r}) does"
        )
    samples = found.splits[""]
    rule = rule or _rule(samples)
    made = split_identities(
        samples,
        modalities=found.modalities,
        train=train,
        rule=rule,
        seed=seed,
        name=found.name,
        object_type=object_type,
    )
    return replace(made, protocol=protocol or rule, notes=(*found.notes, *made.notes))


def _rule(samples: Sequence[Sample]) -> Rule:
    return "camera" if any(sample.camid >= 0 for sample in samples) else "none"
