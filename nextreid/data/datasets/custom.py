"""Custom images as a dataset by name: from a manifest, or from a pattern of their paths."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from ..._names import clip, first_few
from ..captions import add_captions, caption_home
from ..image import Window
from ..manifest import manifest_splits
from ..pattern import PATTERN, pattern_splits
from ..sample import ReIDDataset, Sample
from ..split import Rule, split_identities
from .published_tree import note_shared_identities
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

_ADVICE = (
    "{}: name the split of each sample (train, query, gallery or test), or split by identity with train=0.5 "
    "(--dataset-arg train=0.5), as split_identities({}, modalities={!r}) does"
)


@register_dataset("manifest")
def load_manifest(
    root: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    protocol: str | None = None,
    object_type: str = "object",
    window: Mapping[str, Window] | None = None,
    anywhere: bool = False,
    encoding: str | None = None,
    train: float | None = None,
    seed: int = 0,
    captions: str | Path | None = None,
) -> ReIDDataset:
    """Read a dataset from a manifest, see `read_manifest`; its column ``split`` assigns the rows.

    Args:
        root: The CSV or parquet file. Its column ``split`` has "train", "query", "gallery" or "test" (query and
            gallery alike); rows with another value are left out.
        modalities: Order of the images; None takes those of ``("rgb", "nir", "tir")`` that have a column.
        protocol: Name of the evaluation protocol, which is looked up where it is used; None takes "camera" where
            query and gallery have cameras, else "none".
        object_type: What is re-identified.
        window: Windows for images of more than 8 bits, by modality; see `ImageFile`.
        anywhere: Allow paths that leave the manifest's folder.
        encoding: Of a CSV file, see `read_manifest`.
        train: Where there is no column ``split``: the share of identities to train on, see `split_identities`. Its
            rule is the protocol if that is "camera", "scene" or "none", else the default protocol.
        seed: Seed of that split.
        captions: What ``nextreid captions run`` wrote for these images, its folder or ``attributes.parquet``.

    Returns:
        The dataset, named by the file's stem, each split sorted by key.

    Raises:
        FileNotFoundError: If the manifest or images are missing.
        ValueError: If the manifest is wrong, or names no split.
    """
    path = Path(root).expanduser()
    chosen, found, names = manifest_splits(path, modalities, window, anywhere, encoding)
    notes = [
        f"{field}: words, numbered in their order: {first_few(called.values(), 8)}" for field, called in names.items()
    ]
    advice = _ADVICE.format(f"{path} has no column 'split'", f"read_manifest({str(root)!r}, {chosen!r})", chosen)
    made = _dataset(path.stem, chosen, found, notes, captions, protocol, object_type, train, seed, advice)
    return replace(made, label_names=names)


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
    """Read a dataset from images whose labels are in their paths, see `read_pattern`.

    The pattern's ``{split}`` has "train", "query", "gallery" or "test" (query and gallery alike), or Market-1501's
    folder names; samples with another value are left out. A pattern without ``{split}`` needs `train`. The other
    arguments are those of `load_manifest`.

    Returns:
        The dataset, named by the folder, each split sorted by key.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the pattern is wrong, nothing fits it, or it names no split.
    """
    path = Path(root).expanduser()
    chosen, found, names, notes = pattern_splits(path, pattern, modalities, window)
    call = f"read_pattern({str(root)!r}, {pattern!r}, {chosen!r})"
    advice = _ADVICE.format(f"pattern {pattern!r} has no {{split}}", call, chosen)
    name = path.resolve().name
    made = _dataset(name, chosen, found, notes, captions, protocol, object_type, train, seed, advice)
    return replace(made, label_names=names)


def _dataset(
    name: str,
    modalities: tuple[str, ...],
    found: Mapping[str, list[Sample]],
    notes: list[str],
    captions: str | Path | None,
    protocol: str | None,
    object_type: str,
    train: float | None,
    seed: int,
    advice: str,
) -> ReIDDataset:
    """Join captions in place of the samples' own, and assign the samples by the word for their split.

    Where all are under ``""`` they are split by identity, or a ValueError gives the advice.
    """
    every = [sample for samples in found.values() for sample in samples]
    home = caption_home(captions, (), modalities, splits=("all",))
    joined = iter(add_captions(every, home, "all", modalities, notes))
    found = {word: [next(joined) for _ in samples] for word, samples in found.items()}
    if set(found) == {""}:
        if train is None:
            raise ValueError(advice)
        base = (protocol or "").partition(":")[0]
        rule = next((rule for rule in get_args(Rule) if rule == base), None) or _default_rule(found[""])
        made = split_identities(
            found[""], modalities=modalities, train=train, rule=rule, seed=seed, name=name, object_type=object_type
        )
        return replace(made, protocol=protocol or rule, notes=(*notes, *made.notes))
    if train is not None:
        raise ValueError(f"train={train} splits by identity, but the splits are named: {first_few(found, 8)}")
    splits: dict[str, list[Sample]] = {"train": [], "query": [], "gallery": []}
    for word, samples in found.items():
        for split in _SPLITS.get(word, ()):
            splits[split] += samples
        if word not in _SPLITS:
            notes.append(f"{len(samples)} samples with split {clip(word)!r} left out; known are {', '.join(_SPLITS)}")
    if bool(splits["query"]) != bool(splits["gallery"]):
        missing = "gallery" if splits["query"] else "query"
        raise ValueError(
            f"{name}: no sample has split {missing!r}, there are {first_few(found, 8)}; "
            "samples that are query and gallery alike have split 'test'"
        )
    if not any(splits.values()):
        raise ValueError(f"{name}: no sample has a known split; {first_few(notes, 8)}")
    labelled = [sample for sample in splits["train"] if sample.pid >= 0]
    if labelled and (unknown := len(splits["train"]) - len(labelled)):
        notes.append(f"train: {unknown} samples of unknown identity (pid -1) left out")
        splits["train"] = labelled
    training, query, gallery = (tuple(sorted(s, key=lambda sample: sample.key)) for s in splits.values())
    note_shared_identities(training, (*query, *gallery), notes)
    protocol = protocol or _default_rule([*query, *gallery])
    return ReIDDataset(name, modalities, object_type, protocol, training, query, gallery, tuple(notes))


def _default_rule(samples: Sequence[Sample]) -> Rule:
    return "camera" if any(sample.camid >= 0 for sample in samples) else "none"
