"""The quality of captions: coverage, length, defects, vocabulary, agreement, and what they reveal of identities."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.captions import UNKNOWN, read_captions, split_sentences
from ..retrieval import Identities
from .agreement import cohen_kappa, identity_consistency
from .defects import DEFECTS, find_defects
from .lexical import TextRetrieval, term_features, text_retrieval, word_features
from .parser import parsable, parse
from .schema import Schema, get_schema, list_schemas
from .text import clip_token_counter

WINDOW = 77
"""Tokens of CLIP's text encoder, start and end included."""

Captions = Mapping[str, str]
Cell = str | int | float
_MODALITIES = {"rgb": "rgb", "vis": "rgb", "ni": "nir", "nir": "nir", "ti": "tir", "tir": "tir", "th": "tir"}


class Label(NamedTuple):
    """Identity, camera (-1: unknown) and scene (-1: none) of an image."""

    pid: int
    camid: int = -1
    sceneid: int = -1


def label_of_name(item: str) -> Label | None:
    """Read the label from a name such as ``0258_cam1_0.jpg`` or ``0002_s002_v0_0.jpg``; None without a number first."""
    match = re.match(r"(\d+)(?=_)", Path(item).name)
    if not match:
        return None
    camera, scene = re.search(r"_(?:cam|v|c)(\d+)", item), re.search(r"_s(\d+)", item)
    return Label(int(match[1]), int(camera[1]) if camera else -1, int(scene[1]) if scene else -1)


def open_caption_files(paths: Iterable[str | Path]) -> dict[tuple[str, str], Captions]:
    """Read published caption files.

    Args:
        paths: Files named ``{split}_{modality}.json`` (``train_RGB.json``, ``test_NI.json``), or folders of such files.

    Returns:
        Captions by (split, modality), sorted by split (train first) and modality.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no such file.
        ValueError: If a file is not of the published form, or two have one split and modality.
    """
    files: dict[tuple[str, str], Captions] = {}
    for path in map(Path, paths):
        found = sorted(path.glob("*_*.json")) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"no {{split}}_{{modality}}.json in {path}")
        for file in found:
            split, _, code = file.stem.rpartition("_")
            key = (split, _MODALITIES.get(code.lower(), code.lower()))
            if key in files:
                raise ValueError(f"two files hold the captions of {' '.join(key)!r}: audit one caption set at a time")
            files[key] = read_captions(file)
    splits, modalities = ("train", "query", "test", "gallery"), ("rgb", "nir", "tir")
    keys = sorted(files, key=lambda key: ((*splits, key[0]).index(key[0]), (*modalities, key[1]).index(key[1]), key))
    return {key: files[key] for key in keys}


class AuditTable(NamedTuple):
    """One table of an audit.

    Attributes:
        title: Heading.
        columns: Names of the columns.
        rows: Cells: texts, counts as int, shares in [0, 1] as float (nan: not defined).
        note: A sentence of explanation, or ``""``.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


class Audit(NamedTuple):
    """The outcome of an audit.

    Attributes:
        schema: Name of the schema whose grammar parses the captions, None if none does.
        tables: By name: ``files``, ``defects``, ``cut``, ``vocabulary``, ``consistency``, ``modalities``,
            ``retrieval``; those that the captions allow.
        notes: What could not be done, and why.
    """

    schema: str | None
    tables: Mapping[str, AuditTable]
    notes: tuple[str, ...] = ()


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
        schema: Whose grammar parses the captions; None: the built-in one that parses most, if any parses a fifth.
        labels: Label of an item. Agreement and retrieval leave out items without one.
        protocol: What a query ignores in text-only retrieval; None: ``"scene"`` if items have scenes, else
            ``"camera"`` if they have cameras, else ``"none"``.
        count_tokens: Tokens of a text, start and end included; None: CLIP's tokenizer.

    Returns:
        The audit.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read, there is no caption at all, or the schema has no grammar.
    """
    if not isinstance(source, Mapping):
        source = open_caption_files([source] if isinstance(source, str | Path) else source)
    if not any(source.values()):
        raise ValueError("there is no caption to audit")
    chosen = get_schema(schema) if schema is not None else _guess_schema(source.values())
    files = [_File(*key, captions, labels, chosen) for key, captions in source.items()]
    count = count_tokens or clip_token_counter()
    # byte-pair merges never cross a space, so the tokens of sentences add up
    tokens = cache(lambda sentence: count(sentence) - 2)
    tables = {"files": _files(files, tokens, chosen), "defects": _defects(files), "cut": _cut(files, tokens)}
    notes = []
    if chosen is None:
        notes.append("No grammar parses these captions: vocabulary and agreement are left out.")
    else:
        tables["vocabulary"] = _vocabulary(files, chosen)
        tables["consistency"] = _consistency(files, chosen)
        tables["modalities"] = _modalities(files, chosen)
    try:
        tables["retrieval"] = _retrieval(files, protocol, chosen)
    except ValueError as error:
        notes.append(f"Text-only retrieval is left out: {error}.")
    return Audit(chosen.name if chosen else None, {n: t for n, t in tables.items() if t.rows}, tuple(notes))


class _File:
    """Captions of one split and modality, and what the tables derive from them, by item."""

    def __init__(
        self,
        split: str,
        modality: str,
        captions: Captions,
        label_of: Callable[[str], Label | None],
        schema: Schema | None,
    ) -> None:
        self.split, self.modality, self.captions = split, modality, captions
        self.name = f"{split} {modality}".strip()
        self.labels = {item: label for item in captions if (label := label_of(item))}
        self.parsed = {item: parse(text, schema) for item, text in captions.items()} if schema else {}
        self.values: dict[str, dict[str, str]] = {}
        if schema:
            value_of = cache(lambda name, raw: schema.normalise(name, raw)[0])
            for item, one in self.parsed.items():
                found = {name: value_of(name, raw) for name, raw in one.values.items()}
                self.values[item] = {name: value for name, value in found.items() if value is not None}


def _guess_schema(files: Iterable[Captions]) -> Schema | None:
    some = [text for captions in files for text in list(captions.values())[:40]]
    shares = {
        name: sum(parse(text, name).complete for text in some) / len(some)
        for name in list_schemas()
        if parsable(get_schema(name))
    }
    best = max(shares, key=lambda name: shares[name])
    return get_schema(best) if shares[best] >= 0.2 else None


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _files(files: Sequence[_File], tokens: Callable[[str], int], schema: Schema | None) -> AuditTable:
    rows: list[tuple[Cell, ...]] = []
    for file in files:
        texts = list(file.captions.values())
        common = set.intersection(*(set(other.captions) for other in files if other.split == file.split))
        sentences = [split_sentences(text) for text in texts]
        lengths = [2 + sum(map(tokens, parts)) for parts in sentences]
        labels = file.labels.values()
        counts = sorted(map(len, sentences)) or [0]
        quantiles = np.percentile(lengths, [0, 5, 50, 95, 100]) if lengths else [0] * 5
        rows.append(
            (
                file.name,
                len(texts),
                len({label.pid for label in labels}),
                len({label.camid for label in labels} - {-1}),
                len({label.sceneid for label in labels} - {-1}),
                f"{counts[0]}/{counts[len(counts) // 2]}/{counts[-1]}",
                len(set(texts)),
                len({part for parts in sentences for part in parts}),
                "/".join(f"{length:.0f}" for length in quantiles),
                sum(item not in common for item in file.captions),
                _share(sum(n > WINDOW for n in lengths), len(texts)),
                _share(sum(bool(UNKNOWN.search(text)) for text in texts), len(texts)),
                _share(sum(p.complete for p in file.parsed.values()), len(texts)) if schema else float("nan"),
            )
        )
    columns = (
        *("file", "captions", "identities", "cameras", "scenes", "sentences min/mid/max"),
        *("distinct captions", "distinct sentences", "tokens min/5%/mid/95%/max", "missing elsewhere"),
        *("over 77", "unknown", "parsed in full"),
    )
    note = (
        "Shares of captions; tokens as CLIP counts them, start and end included. "
        "Missing elsewhere: items that another modality of the split does not have."
    )
    return AuditTable("Files", columns, rows, note)


def _defects(files: Sequence[_File]) -> AuditTable:
    found = [Counter(n for t in file.captions.values() for n in find_defects(t, file.modality)) for file in files]
    rows: list[tuple[Cell, ...]] = [
        (n, *(counts[n] for counts in found)) for n in (*DEFECTS, "color") if any(counts[n] for counts in found)
    ]
    return AuditTable("Defects (number of captions)", ("defect", *(file.name for file in files)), rows)


def _cut(files: Sequence[_File], tokens: Callable[[str], int]) -> AuditTable:
    """Return how much of each sentence of the grammar is lost when captions are cut at the window."""
    uses: defaultdict[str, Counter[str]] = defaultdict(Counter)
    lost: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for file in files:
        for item, text in file.captions.items():
            parts = split_sentences(text)
            names = file.parsed[item].sentences if item in file.parsed else ("",) * len(parts)
            used = 2
            for part, name in zip(parts, names, strict=True):
                used += tokens(part)
                for key in (name or "other", "all"):
                    uses[key][file.name] += 1
                    lost[key][file.name] += used > WINDOW
    rows: list[tuple[Cell, ...]] = [
        (key, *(_share(lost[key][file.name], uses[key][file.name]) for file in files))
        for key in sorted(uses, key=lambda key: ("other", "all").index(key) + 1 if key in ("other", "all") else 0)
        if lost[key].total()
    ]
    note = "Share of the sentences that do not fit whole when a caption is cut at 77 tokens."
    return AuditTable("Cut by the text window", ("sentence", *(file.name for file in files)), rows, note)


def _vocabulary(files: Sequence[_File], schema: Schema) -> AuditTable:
    rows: list[tuple[Cell, ...]] = []
    for modality in dict.fromkeys(file.modality for file in files):
        parsed = [p for file in files if file.modality == modality for p in file.parsed.values()]
        for entry in schema.fields:
            raw_values = Counter(p.values[entry.name] for p in parsed if entry.name in p.values)
            values: Counter[str] = Counter()
            outside: Counter[str] = Counter()
            for raw, count in raw_values.items():
                value, flag = schema.normalise(entry.name, raw)
                if value is not None:
                    values[value] += count
                elif flag != "unknown":
                    outside[raw] += count
            if total := raw_values.total():
                unknown = total - values.total() - outside.total()
                frequent = ", ".join(f"{v} {100 * c / total:.0f} %" for v, c in values.most_common(4))
                examples = ", ".join(f"{v} ({c})" for v, c in outside.most_common(3))
                shares = (unknown / total, outside.total() / total)
                rows.append((modality, entry.name, total / len(parsed), len(values), frequent, *shares, examples))
    columns = (
        *("modality", "field", "coverage", "values", "most frequent"),
        *("unknown", "out of vocabulary", "such as"),
    )
    return AuditTable("Vocabulary", columns, rows, "Coverage: share of the captions that mention the field.")


def _consistency(files: Sequence[_File], schema: Schema) -> AuditTable:
    rows: list[tuple[Cell, ...]] = []
    modalities = list(dict.fromkeys(file.modality for file in files))
    for entry in schema.fields:
        shares: list[float] = []
        for modality in modalities:
            pairs = [
                (file.values[item].get(entry.name), label.pid)
                for file in files
                if file.modality == modality
                for item, label in file.labels.items()
            ]
            shares += identity_consistency([value for value, _ in pairs], [pid for _, pid in pairs])
        if not np.isnan(shares).all():
            rows.append((entry.name, *shares))
    columns = ("field", *(f"{m} {pair}" for m in modalities for pair in ("same", "other")))
    note = "Share of the pairs of images that agree: of the same identity, of two identities."
    return AuditTable("Agreement within identities", columns, rows, note)


def _modalities(files: Sequence[_File], schema: Schema) -> AuditTable:
    values: defaultdict[str, dict[tuple[str, str], Mapping[str, str]]] = defaultdict(dict)
    for file in files:
        values[file.modality].update({(file.split, item): found for item, found in file.values.items()})
    rows: list[tuple[Cell, ...]] = []
    for entry in schema.fields:
        for first, second in combinations(values, 2):
            both = [key for key in values[first] if key in values[second]]
            found = cohen_kappa(*([values[m][key].get(entry.name) for key in both] for m in (first, second)))
            if found.pairs:
                rows.append((entry.name, f"{first} - {second}", *found))
    columns = ("field", "modalities", "images", "agreement", "kappa")
    note = "Kappa is agreement beyond chance (Cohen): 1 full, 0 none. A field near 1 was merged across modalities."
    return AuditTable("Agreement between modalities", columns, rows, note)


def _retrieval(files: Sequence[_File], protocol: str | None, schema: Schema | None) -> AuditTable:
    splits = list(dict.fromkeys(file.split for file in files))
    split = "test" if "test" in splits else splits[-1]
    chosen = [file for file in files if file.split == split]
    items = sorted(set.intersection(*(set(file.labels) for file in chosen)))
    if not items:
        raise ValueError("no item has a label; pass labels=")
    labels = (chosen[0].labels[item] for item in items)
    ids = Identities(*(np.array(column, dtype=np.int64) for column in zip(*labels, strict=True)))
    scenes, cameras = (np.any(np.asarray(x) >= 0) for x in (ids.sceneid, ids.camid))
    rule = protocol or ("scene" if scenes else "camera" if cameras else "none")
    features = {file.modality: word_features([file.captions[item] for item in items]) for file in chosen}
    if len(features) > 1:
        features["all modalities"] = np.concatenate(list(features.values()), axis=1)
    if schema:
        for name, lasting in (("fields of the identity", True), ("fields of the moment", False)):
            kept = {entry.name for entry in schema.fields if (entry.rank > 0) == lasting}
            features[name] = term_features(
                [
                    Counter(f"{f.modality}.{n}.{v}" for f in chosen for n, v in f.parsed[i].values.items() if n in kept)
                    for i in items
                ]
            )
    found: dict[str, TextRetrieval] = {name: text_retrieval(x, ids, rule) for name, x in features.items()}
    rows = [(name, f.queries, f.mAP, f.rank1, f.chance_mAP, f.chance_rank1) for name, f in found.items()]
    columns = ("captions", "queries", "mAP", "rank-1", "chance mAP", "chance rank-1")
    note = f"Split {split!r}, every image against the others under the protocol {rule!r}; no image is looked at."
    return AuditTable("Text-only retrieval", columns, rows, note)
