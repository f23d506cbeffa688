"""Caption text: files read and joined to samples, split into sentences, drawn at random in training."""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .._files import read_json, user_path
from .rng import seeded_rng
from .sample import Sample, as_sentences

QUALITY_UNITS = ("sentence", "word")
MODALITY_CODES = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
"""How the published files name a modality."""

TABLE_FORMAT = 1
"""Of the parquet tables that a captioning run writes."""

UNKNOWN = re.compile(
    r"(?<![a-z])(?:un(?:known|knowable|clear|determined|determinable|identifiable|identified|specified|certain|sure|"
    r"defined|distinguishable|discernible|recognizable|available|mentioned)|undiscernable|indiscernible|"
    r"indeterminate|indeterminable|indistinguishable|indistinct|n/a|not (?:specified|determined|identifiable|available|"
    r"applicable|clear|sure|known|discernible|determinable|mentioned|provided))(?![a-z])",
    re.IGNORECASE,
)
"""Words that stand where a value should be. They tell nothing about the image, so they never enter a caption."""

UNFILLED_SLOT = re.compile(r"\[\w+\]")
"""A slot of a template that was never filled, as in "[age]"."""

LISTED_CHOICES = re.compile(r"\|")
"""The mark between choices of which none was made, as in "short | medium"."""

# "(" does not open a sentence: in the published captions it carries on the one before
_BOUNDARY = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.) (?=[A-Z0-9\[\"*-])")


def read_captions(path: str | Path) -> dict[str, str]:
    """Read one published caption file: a JSON list of ``{"item": file name, "description": caption}``.

    Args:
        path: The file, as NEXT (``lsh-ahu/NEXT-ReID``) and IDEA (``924973292/IDEA``) publish it.

    Returns:
        Caption by file name, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a list, or names an item twice; names the file and the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no caption file {path}")
    entries = read_json(path, limit=2**30)
    if not isinstance(entries, list):
        raise ValueError(f'{path} holds a {type(entries).__name__}, expected a list of {{"item", "description"}}')
    captions: dict[str, str] = {}
    for number, entry in enumerate(entries):
        item, text = (entry.get("item"), entry.get("description")) if isinstance(entry, dict) else (None, None)
        if not isinstance(item, str) or not isinstance(text, str):
            shown = json.dumps(entry, ensure_ascii=False)[:120]
            raise ValueError(f'{path}: entry {number} needs strings "item" and "description", it is {shown}')
        if item in captions:
            raise ValueError(f"{path}: entry {number} names {item!r} a second time; keep one caption per image")
        captions[item] = text.encode("utf-8", "replace").decode()  # a lone surrogate could not be tokenised
    return captions


def portable_name(item: str) -> str:
    """Return a name that can be encoded: what is no Unicode in it, as in a file name of Latin-1, becomes escapes."""
    return item.encode("utf-8", "backslashreplace").decode()


def split_sentences(caption: str) -> tuple[str, ...]:
    """Split a caption into sentences; nothing is lost.

    A sentence ends at ``.``, ``!`` or ``?`` followed by white space and a capital, digit, ``[``, ``"`` or list mark
    (``*``, ``-``), but not after "e.g." or "i.e.". White space of any kind and length counts as one space.

    Args:
        caption: Any text.

    Returns:
        The sentences, with ``" ".join(split_sentences(c)) == " ".join(c.split())``; ``()`` for blank text.
    """
    text = " ".join(caption.split())
    return tuple(_BOUNDARY.split(text)) if text else ()


def read_caption_table(path: Path, columns: Sequence[str] | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read a parquet table that ``nextreid captions run`` wrote: rows as plain values by column, and its metadata.

    Args:
        path: The file.
        columns: Columns to read; None: all.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such table, or of another format.
        ImportError: If pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("tables of captions need pyarrow: pip install 'nextreid[data]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"no table {path}")
    try:
        table = pyarrow.parquet.read_table(path, columns=list(columns) if columns else None)
        metadata = json.loads((table.schema.metadata or {})[b"nextreid"])
    except (pyarrow.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no table of captions ({error})") from error
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != TABLE_FORMAT:
        raise ValueError(f"{path} has format {str(found)[:40]}, this nextreid reads {TABLE_FORMAT}: update it")
    return table.to_pylist(), metadata


def caption_file_name(split: str, modality: str) -> str:
    """Return the published name of a caption file, such as ``"train_NI.json"``."""
    return f"{split}_{MODALITY_CODES.get(modality, modality.upper())}.json"


def caption_home(
    folder: str | Path | None,
    names: Sequence[str],
    modalities: Sequence[str],
    splits: Sequence[str] = ("train", "test"),
) -> Path | None:
    """Return the folder that holds ``{train,test}_{RGB,NI,TI}.json``, None if `folder` is None.

    A file ``*.parquet``, as ``nextreid captions run`` writes, is returned unchanged. Otherwise it is `folder`, its
    subfolder ``text``, or a subfolder with one of the `names` of the dataset (NEXT publishes ``201/``, IDEA
    ``RGBNT201/text/``) or the ``text`` in it: the first that has at least one of the files.

    Raises:
        FileNotFoundError: If none of the files is in any of the folders.
    """
    if folder is None:
        return None
    folder = user_path(folder)
    if folder.suffix == ".parquet" and folder.is_file():
        return folder
    files = [caption_file_name(split, modality) for split in splits for modality in modalities]
    candidates = [home / text for home in (folder, *(folder / name for name in names)) for text in ("", "text")]
    for candidate in candidates:
        if any((candidate / file).is_file() for file in files):
            return candidate
    codes = ",".join(MODALITY_CODES.get(m, m.upper()) for m in modalities)
    raise FileNotFoundError(
        f"no caption file in captions={str(folder)!r}"
        + ("" if folder.is_dir() else " (there is no such folder)")
        + f": expected {{{','.join(splits)}}}_{{{codes}}}.json in it or in one of {', '.join(('text', *names))}"
    )


def add_captions(
    samples: Sequence[Sample], home: Path | None, split: str, modalities: Sequence[str], notes: list[str]
) -> list[Sample]:
    """Return the samples with the sentences of ``{split}_{RGB,NI,TI}.json`` or of a table in `home`, joined by key.

    A caption goes to the image of its own modality only. Without its file, a modality has no captions. `notes` is
    extended by the captions without an image and the images without a caption.

    Raises:
        ValueError: If a file cannot be read, or none of its items names an image.
    """
    if home is None:
        return list(samples)
    columns: list[dict[str, tuple[str, ...]]] = []
    for index, modality in enumerate(modalities):
        # a sample of query and gallery is one image
        names = list(dict.fromkeys(sample.key for sample in samples if sample.images[index] is not None))
        path = home if home.is_file() else home / caption_file_name(split, modality)
        columns.append(_read_column(path, names, split, modality, notes))
    if not any(columns):
        return list(samples)
    return [replace(s, captions=tuple(column.get(s.key, ()) for column in columns)) for s in samples]


def _read_column(
    path: Path, names: Sequence[str], split: str, modality: str, notes: list[str]
) -> dict[str, tuple[str, ...]]:
    """Return the sentences of the named images of one modality, and note captions and images without a match."""
    if not path.is_file():
        notes.append(f"{split}: no caption file {path.name}, so 0 of {len(names)} {modality} images have a caption")
        return {}
    if path.suffix == ".parquet":
        rows, _ = read_caption_table(path, ("split", "item", "modality", "description"))
        place = (split, modality)
        captions = {row["item"]: row["description"] for row in rows if (row["split"], row["modality"]) == place}
    else:
        captions = read_captions(path)
    stored = {name: name if name in captions else portable_name(name) for name in names}
    joined = {name: split_sentences(captions[item]) for name, item in stored.items() if item in captions}
    if captions and names and not joined:
        raise ValueError(
            f"{path}: none of its {len(captions)} items names a {modality} image of the {split} split; items "
            f"are {_examples(captions)}, images are {_examples(names)}: choose the caption folder of this dataset"
        )
    for count, what in (
        (len(captions) - len(joined), f"captions in {path.name} name no {modality} image"),
        (len(names) - len(joined), f"{modality} images have no caption in {path.name}"),
        (sum(not sentences for sentences in joined.values()), f"captions in {path.name} are blank"),
    ):
        if count:
            notes.append(f"{split}: {count} {what}")
    return joined


def _examples(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", …" if len(ordered) > 3 else "")


def draw_sentences(
    sentences: Sequence[str] | str, rng: np.random.Generator, keep_ratio: float | None = None
) -> tuple[str, ...]:
    """Draw a random non-empty subset of the sentences, in their order (NEXT, Eq. 4).

    Args:
        sentences: n sentences; a string is one.
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
    sentences = as_sentences(sentences)
    if not sentences:
        return ()
    n = len(sentences)
    if keep_ratio is None:
        return _subset(sentences, int(rng.integers(1, n + 1)), rng)
    kept = tuple(s for s, u in zip(sentences, rng.random(n), strict=True) if u < keep_ratio)
    return kept or _subset(sentences, 1, rng)


def keep_quality(
    sentences: Sequence[str], share: float, rng: np.random.Generator, unit: str = "sentence"
) -> tuple[str, ...]:
    """Keep a share of a caption, at random but in order (NEXT, Table 5: caption quality 35, 70, 100 %).

    Args:
        sentences: The caption's sentences.
        share: Share to keep, in (0, 1].
        rng: Source of the draw, such as ``seeded_rng("quality", seed, sample.key, modality)``.
        unit: What is kept or lost: a whole ``"sentence"``, or each ``"word"`` by itself.

    Returns:
        Of n units ``share * n``, rounded up or down at random so that the mean is ``share * n`` exactly; a short
        caption may lose all. Sentences without a word left are gone.

    Raises:
        ValueError: If `share` is not in (0, 1], or there is no such unit.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if unit not in QUALITY_UNITS:
        raise ValueError(f"the unit of caption quality must be one of {', '.join(QUALITY_UNITS)}; got {unit!r}")
    if unit == "sentence":
        return tuple(sentences[i] for i in _kept(len(sentences), share, rng))
    words = [sentence.split() for sentence in sentences]
    places = [(row, word) for row, of_row in enumerate(words) for word in of_row]
    kept = [places[i] for i in _kept(len(places), share, rng)]
    left = (" ".join(word for at, word in kept if at == row) for row in range(len(words)))
    return tuple(filter(None, left))


def _kept(count: int, share: float, rng: np.random.Generator) -> list[int]:
    """Draw places, in order: ``share * count`` of them in expectation."""
    whole = math.floor(share * count + 1e-9)  # 0.35 * 20 is a little less than 7 in floating point
    size = whole + bool(rng.random() < share * count - whole)
    return sorted(rng.permutation(count)[:size].tolist())


def caption_sampler(
    captions: Sequence[Sequence[Sequence[str] | str]],
    keys: Sequence[str],
    draws: Sequence[tuple[int, int]],
    seed: int,
    keep_ratio: float | None = None,
) -> Callable[[int, int, int], tuple[str, ...]]:
    """Return the draws of a batch's captions, one for every sample, modality and expert (NEXT, Eq. 4).

    Args:
        captions: ``[B][M]`` sentences, as in `Batch.captions`; a string is one sentence.
        keys: B sample keys.
        draws: B pairs (epoch, slot).
        seed: Seed of the run.
        keep_ratio: See `draw_sentences`.

    Returns:
        ``sample(row, modality, expert)``, a pure function of (seed, epoch, slot, sample key, expert, modality index):
        it does not depend on what else is in the batch, nor on the order.

    Raises:
        ValueError: If the lengths differ.
    """
    if not len(captions) == len(keys) == len(draws):
        raise ValueError(f"captions, keys and draws differ in length: {len(captions)}, {len(keys)}, {len(draws)}")

    def sample(row: int, modality: int, expert: int) -> tuple[str, ...]:
        rng = seeded_rng("caption", seed, *draws[row], keys[row], expert, modality)
        return draw_sentences(captions[row][modality], rng, keep_ratio)

    return sample


def _subset(sentences: Sequence[str], size: int, rng: np.random.Generator) -> tuple[str, ...]:
    chosen = sorted(rng.permutation(len(sentences))[:size].tolist())
    return tuple(sentences[i] for i in chosen)
