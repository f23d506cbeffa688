"""What captions are worth: coverage, length, damage, vocabulary, agreement, and what they reveal of identities."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..retrieval import Identities
from .agreement import cohen_kappa, identity_consistency
from .audit_report import Cell, Table
from .defects import DAMAGE, damage_of
from .lexical import TextRetrieval, text_retrieval, word_features
from .parse import Parsed, parse, readable
from .schema import Schema, get_schema, list_schemas
from .text import UNKNOWN, clip_token_counter, read_captions, split_sentences

WINDOW = 77
"""Tokens of CLIP's text encoder, start and end included."""

Captions = Mapping[str, str]
Row = tuple[Cell, ...]
_MODALITIES = {"rgb": "rgb", "vis": "rgb", "ni": "nir", "nir": "nir", "ti": "tir", "tir": "tir", "th": "tir"}


class Label(NamedTuple):
    """Whom an image shows, and from where.

    Attributes:
        pid: Identity.
        camid: Camera; -1: unknown.
        sceneid: Scene; -1: none.
    """

    pid: int
    camid: int = -1
    sceneid: int = -1


def label_of_name(item: str) -> Label | None:
    """Read the label from a file name such as ``000258_cam1_0_00.jpg`` or ``0002_s002_v0_000.jpg``.

    Returns:
        The label; None if the name does not begin with a number.
    """
    match = re.match(r"(\d+)(?=_)", Path(item).name)
    if not match:
        return None
    camera, scene = re.search(r"_(?:cam|v|c)(\d+)", item), re.search(r"_s(\d+)", item)
    return Label(int(match[1]), int(camera[1]) if camera else -1, int(scene[1]) if scene else -1)


@dataclass(frozen=True, slots=True)
class CaptionFile:
    """The captions of one split in one modality.

    Attributes:
        split: Such as ``"train"``.
        modality: Such as ``"rgb"``.
        captions: Caption by item.
    """

    split: str
    modality: str
    captions: Captions

    @property
    def name(self) -> str:
        """Split and modality, for tables."""
        return f"{self.split} {self.modality}".strip()


def open_caption_files(paths: Iterable[str | Path]) -> list[CaptionFile]:
    """Read published caption files.

    Args:
        paths: Files named ``{split}_{modality}.json`` (``train_RGB.json``, ``test_NI.json``), or folders of such files.

    Returns:
        The files, sorted by split (train first) and modality.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no such file.
        ValueError: If a file is not of the published form, or two have one split and modality.
    """
    files = []
    for path in map(Path, paths):
        found = sorted(path.glob("*_*.json")) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"no {{split}}_{{modality}}.json in {path}")
        for file in found:
            split, _, modality = file.stem.rpartition("_")
            files.append(CaptionFile(split, _MODALITIES.get(modality.lower(), modality.lower()), read_captions(file)))
    names = Counter(file.name for file in files)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two files hold the captions of {twice[0]!r}: audit one caption set at a time")
    order = ["train", "query", "test", "gallery"]
    return sorted(files, key=lambda f: ([*order, f.split].index(f.split), _place(f.modality), f.modality))


@dataclass(frozen=True)
class Audit:
    """The outcome: tables of plain rows, to print, save or look into.

    Attributes:
        schema: Name of the schema whose grammar reads the captions, None if none does.
        tables: By name: ``files``, ``damage``, ``cut``, ``vocabulary``, ``consistency``, ``modalities``, ``retrieval``;
            those that the captions allow.
        notes: What could not be done, and why.
    """

    schema: str | None
    tables: Mapping[str, Table]
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """Return all tables as text."""
        return "\n\n".join([table.text() for table in self.tables.values()] + list(self.notes))


def audit_captions(
    source: Sequence[str | Path] | Mapping[tuple[str, str], Captions] | str | Path,
    *,
    schema: str | Schema | None = None,
    labels: Callable[[str], Label | None] = label_of_name,
    protocol: str | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Audit:
    """Audit captions of one dataset.

    Args:
        source: Caption files or folders (see `open_caption_files`), or captions by (split, modality).
        schema: Whose grammar reads the captions back; None: the built-in one that reads most, if any reads a fifth.
        labels: Label of an item. Where an item has none, agreement and retrieval leave it out.
        protocol: What a query ignores in text-only retrieval; None: ``"scene"`` where items have scenes, else
            ``"camera"`` where they have cameras, else ``"none"``.
        count_tokens: Tokens of a text, start and end included; None: CLIP's tokenizer.

    Returns:
        The audit.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read, there is no caption at all, or the schema has no grammar to read.
    """
    if isinstance(source, Mapping):
        files = [CaptionFile(split, modality, captions) for (split, modality), captions in source.items()]
    else:
        files = open_caption_files([source] if isinstance(source, str | Path) else source)
    if not any(file.captions for file in files):
        raise ValueError("there is no caption to audit")
    chosen = get_schema(schema) if schema is not None else _guess_schema(files)
    labels, read = cache(labels), {file.name: _read(file, chosen) for file in files}
    sentence_tokens = cache(_sentence_counter(count_tokens or clip_token_counter()))
    tables = {
        "files": _files(files, read, labels, sentence_tokens, chosen),
        "damage": _damage(files),
        "cut": _cut(files, read, sentence_tokens),
    }
    notes = []
    if chosen is None:
        notes.append("No grammar reads these captions: vocabulary and agreement are left out.")
    else:
        values = {file.name: _normalised(read[file.name], chosen) for file in files}
        tables["vocabulary"] = _vocabulary(files, read, chosen)
        tables["consistency"] = _consistency(files, values, labels, chosen)
        tables["modalities"] = _modalities(files, values, chosen)
    try:
        tables["retrieval"] = _retrieval(files, read, labels, protocol, chosen)
    except ValueError as error:
        notes.append(f"Text-only retrieval is left out: {error}.")
    return Audit(chosen.name if chosen else None, {n: t for n, t in tables.items() if t.rows}, tuple(notes))


def _place(modality: str) -> int:
    return ["rgb", "nir", "tir", modality].index(modality)


def _guess_schema(files: Sequence[CaptionFile]) -> Schema | None:
    some = [text for file in files for text in list(file.captions.values())[:40]]
    shares = {
        name: sum(parse(text, name).complete for text in some) / len(some)
        for name in list_schemas()
        if readable(get_schema(name))
    }
    best = max(shares, key=lambda name: shares[name])
    return get_schema(best) if shares[best] >= 0.2 else None


def _read(file: CaptionFile, schema: Schema | None) -> dict[str, Parsed]:
    return {item: parse(text, schema) for item, text in file.captions.items()} if schema else {}


def _normalised(read: Mapping[str, Parsed], schema: Schema) -> dict[str, dict[str, str]]:
    @cache
    def value(name: str, raw: str) -> str | None:
        return schema.normalise(name, raw)[0]

    return {
        item: {name: v for name, raw in parsed.values.items() if (v := value(name, raw)) is not None}
        for item, parsed in read.items()
    }


def _sentence_counter(count: Callable[[str], int]) -> Callable[[str], int]:
    """Tokens of a sentence within a caption: byte-pair merges never cross a space, so sentences add up."""
    return lambda sentence: count(sentence) - 2


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _files(
    files: Sequence[CaptionFile],
    read: Mapping[str, Mapping[str, Parsed]],
    labels: Callable[[str], Label | None],
    tokens: Callable[[str], int],
    schema: Schema | None,
) -> Table:
    rows: list[Row] = []
    shared = {
        split: set.intersection(*(set(file.captions) for file in files if file.split == split))
        for split in {file.split for file in files}
    }
    for file in files:
        texts = list(file.captions.values())
        sentences = [split_sentences(text) for text in texts]
        lengths = [2 + sum(map(tokens, parts)) for parts in sentences]
        known = [label for item in file.captions if (label := labels(item))]
        low, p5, middle, p95, high = np.percentile(lengths, [0, 5, 50, 95, 100]) if lengths else [0] * 5
        counts = sorted(map(len, sentences)) or [0]
        rows.append(
            (
                file.name,
                len(texts),
                len({label.pid for label in known}),
                len({label.camid for label in known} - {-1}),
                len({label.sceneid for label in known} - {-1}),
                f"{counts[0]}/{counts[len(counts) // 2]}/{counts[-1]}",
                len(set(texts)),
                len({part for parts in sentences for part in parts}),
                f"{low:.0f}/{p5:.0f}/{middle:.0f}/{p95:.0f}/{high:.0f}",
                sum(item not in shared[file.split] for item in file.captions),
                _share(sum(n > WINDOW for n in lengths), len(texts)),
                _share(sum(bool(UNKNOWN.search(text)) for text in texts), len(texts)),
                _share(sum(p.complete for p in read[file.name].values()), len(texts)) if schema else float("nan"),
            )
        )
    columns = (
        *("file", "captions", "identities", "cameras", "scenes", "sentences min/mid/max"),
        *("distinct captions", "distinct sentences", "tokens min/5%/mid/95%/max", "lacking elsewhere"),
        *("over 77", "unknown", "read in full"),
    )
    note = (
        "Shares of captions; tokens as CLIP counts them, start and end included. "
        "Lacking elsewhere: items that another modality of the split does not have."
    )
    return Table("Files", columns, rows, note)


def _damage(files: Sequence[CaptionFile]) -> Table:
    found = {
        file.name: Counter(n for t in file.captions.values() for n in damage_of(t, file.modality)) for file in files
    }
    names = [name for name in (*DAMAGE, "color") if any(found[file.name][name] for file in files)]
    rows: list[Row] = [(name, *(found[file.name][name] for file in files)) for name in names]
    return Table("Damaged text (number of captions)", ("mark", *(file.name for file in files)), rows)


def _cut(files: Sequence[CaptionFile], read: Mapping[str, Mapping[str, Parsed]], tokens: Callable[[str], int]) -> Table:
    """How much of each kind of sentence is lost when captions are cut at the window."""
    uses: dict[str, Counter[str]] = defaultdict(Counter)
    lost: dict[str, Counter[str]] = defaultdict(Counter)
    for file in files:
        for item, text in file.captions.items():
            parts = split_sentences(text)
            parsed = read[file.name].get(item)
            kinds = parsed.sentences if parsed else ("",) * len(parts)
            used = 2
            for part, kind in zip(parts, kinds, strict=True):
                used += tokens(part)
                for name in (kind or "other", "all"):
                    uses[file.name][name] += 1
                    lost[file.name][name] += used > WINDOW
    names = list(dict.fromkeys(name for file in files for name in uses[file.name] if name not in ("all", "other")))
    rows: list[Row] = [
        (name, *(_share(lost[file.name][name], uses[file.name][name]) for file in files))
        for name in (*names, "other", "all")
        if any(lost[file.name][name] for file in files)
    ]
    note = "Share of the sentences of a kind that do not fit whole when a caption is cut at 77 tokens."
    return Table("Cut by the text window", ("sentence", *(file.name for file in files)), rows, note)


def _vocabulary(files: Sequence[CaptionFile], read: Mapping[str, Mapping[str, Parsed]], schema: Schema) -> Table:
    rows: list[Row] = []
    for modality in dict.fromkeys(file.modality for file in files):
        parsed = [p for file in files if file.modality == modality for p in read[file.name].values()]
        for entry in schema.fields:
            said = Counter(p.values[entry.name] for p in parsed if entry.name in p.values)
            values: Counter[str] = Counter()
            strange: Counter[str] = Counter()
            unknown = 0
            for raw, count in said.items():
                value, flag = schema.normalise(entry.name, raw)
                if value is not None:
                    values[value] += count
                elif flag == "unknown":
                    unknown += count
                else:
                    strange[raw] += count
            if said:
                shown = ", ".join(f"{v} {100 * c / said.total():.0f} %" for v, c in values.most_common(4))
                odd = ", ".join(f"{v} ({c})" for v, c in strange.most_common(3))
                covered, total = said.total() / len(parsed), said.total()
                rows.append((modality, entry.name, covered, len(values), shown, unknown / total,
                             strange.total() / total, odd))  # fmt: skip
    columns = ("modality", "field", "told", "values", "most frequent", "unknown", "out of menu", "such as")
    return Table("Vocabulary", columns, rows, "Told: share of the captions that say something of the field.")


def _consistency(
    files: Sequence[CaptionFile],
    values: Mapping[str, Mapping[str, Mapping[str, str]]],
    labels: Callable[[str], Label | None],
    schema: Schema,
) -> Table:
    rows: list[Row] = []
    modalities = list(dict.fromkeys(file.modality for file in files))
    for entry in schema.fields:
        row: list[str | float] = [entry.name]
        for modality in modalities:
            said = [
                (told.get(entry.name), label.pid)
                for file in files
                if file.modality == modality
                for item, told in values[file.name].items()
                if (label := labels(item))
            ]
            row += identity_consistency([v for v, _ in said], [pid for _, pid in said])
        if not all(np.isnan(x) for x in row[1:] if isinstance(x, float)):
            rows.append(tuple(row))
    columns = ("field", *(f"{m} {kind}" for m in modalities for kind in ("same", "other")))
    note = "Share of the pairs of images that agree: of the same identity, of two identities."
    return Table("Agreement within identities", columns, rows, note)


def _modalities(
    files: Sequence[CaptionFile], values: Mapping[str, Mapping[str, Mapping[str, str]]], schema: Schema
) -> Table:
    told: dict[str, dict[tuple[str, str], Mapping[str, str]]] = defaultdict(dict)
    for file in files:
        for item, said in values[file.name].items():
            told[file.modality][file.split, item] = said
    rows: list[Row] = []
    for entry in schema.fields:
        for first, second in combinations(told, 2):
            both = [key for key in told[first] if key in told[second]]
            found = cohen_kappa(*([told[m][key].get(entry.name) for key in both] for m in (first, second)))
            if found.pairs:
                rows.append((entry.name, f"{first} - {second}", *found))
    columns = ("field", "modalities", "images", "agreement", "kappa")
    note = "Kappa is agreement beyond chance (Cohen): 1 full, 0 none. A field near 1 was merged across modalities."
    return Table("Agreement between modalities", columns, rows, note)


def _retrieval(
    files: Sequence[CaptionFile],
    read: Mapping[str, Mapping[str, Parsed]],
    labels: Callable[[str], Label | None],
    protocol: str | None,
    schema: Schema | None,
) -> Table:
    splits = list(dict.fromkeys(file.split for file in files))
    split = "test" if "test" in splits else splits[-1]
    chosen = [file for file in files if file.split == split]
    items = sorted(set.intersection(*(set(file.captions) for file in chosen)))
    known = [(item, label) for item in items if (label := labels(item))]
    if not known:
        raise ValueError("no item has a label; pass labels=")
    ids = Identities(*(np.array(column, dtype=np.int64) for column in zip(*(label for _, label in known), strict=True)))
    scenes, cameras = (np.any(np.asarray(x) >= 0) for x in (ids.sceneid, ids.camid))
    rule = protocol or ("scene" if scenes else "camera" if cameras else "none")
    words = {f.modality: word_features([f.captions[item] for item, _ in known]) for f in chosen}
    found: dict[str, TextRetrieval] = {m: text_retrieval(x, ids, rule) for m, x in words.items()}
    if len(words) > 1:
        found["all modalities"] = text_retrieval(np.concatenate(list(words.values()), axis=1), ids, rule)
    if schema:
        told = [
            [f"{f.modality}.{n}.{v}" for f in chosen for n, v in read[f.name][item].values.items()] for item, _ in known
        ]
        for name, lasting in (("fields of the identity", True), ("fields of the moment", False)):
            lists = [[t for t in row if (schema[t.split(".")[1]].rank > 0) == lasting] for row in told]
            found[name] = text_retrieval(_one_hot(lists), ids, rule)
    rows: list[Row] = [(name, f.queries, f.mAP, f.rank1, f.chance_mAP, f.chance_rank1) for name, f in found.items()]
    columns = ("captions", "queries", "mAP", "rank-1", "chance mAP", "chance rank-1")
    note = f"Split {split!r}, every image against the others under the protocol {rule!r}; no image is looked at."
    return Table("Text-only retrieval", columns, rows, note)


def _one_hot(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Features ``(n, terms)`` of what is told, rare terms weighing more."""
    spread = Counter(term for row in rows for term in set(row))
    places = {term: i for i, term in enumerate(spread)}
    features = np.zeros((len(rows), max(1, len(places))), dtype=np.float32)
    for line, row in zip(features, rows, strict=True):
        for term in row:
            line[places[term]] = 1 + np.log((1 + len(rows)) / (1 + spread[term]))
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
