"""The quality of captions: coverage, length, defects, vocabulary, agreement, and what they reveal of identities."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.captions import LISTED_CHOICES, UNFILLED_SLOT, UNKNOWN, read_captions, split_sentences
from ..retrieval import Identities
from .grammar import parsable, parse
from .schema import Schema, get_schema, list_schemas
from .statistics import cohen_kappa, identity_consistency, term_features, text_retrieval, word_features
from .text import AN, DOUBLED, clip_token_counter

WINDOW = 77
"""Tokens of CLIP's text encoder, start and end included."""

Captions = Mapping[str, str]
Cell = str | int | float
_MODALITIES = {"rgb": "rgb", "vis": "rgb", "ni": "nir", "nir": "nir", "ti": "tir", "tir": "tir", "th": "tir"}

_COLOR = re.compile(r"\b(?:black|white|gr[ae]y|red|blue|green|yellow|orange|brown|purple|pink|beige|silver)\b")

DEFECTS: dict[str, re.Pattern[str]] = {
    "empty": re.compile(r"\A\s*\Z"),
    "unknown": UNKNOWN,
    "carrying none": re.compile(r"\b(?:carrying|holding) (?:a )?none\b"),
    "none visible": re.compile(r"\bnone[ _]visible\b", re.IGNORECASE),
    "(possibly": re.compile(r"\((?:possibly|likely)\b", re.IGNORECASE),
    "unfilled slot": UNFILLED_SLOT,
    "choices left in": LISTED_CHOICES,
    "e.g. left in": re.compile(r"\be\.g\."),
    "words doubled": DOUBLED,
    "a before a vowel": re.compile(rf"\ba (?=[aeiou])(?:{AN.pattern})", re.IGNORECASE),
    "carrying handbag": re.compile(r"\bcarrying handbag\b"),
    "dress with dress": re.compile(r"\bdress with (?:a )?(?:\w+ )*dress\b"),
    "bright night": re.compile(r"\bnighttime in bright\b|\bbright nighttime\b"),
    "N/A": re.compile(r"\bn/a\b", re.IGNORECASE),
    "not ASCII": re.compile(r"[^\x00-\x7f]"),
}
"""What a composer that follows rules never writes: patterns by name, in the order of the report."""


class Label(NamedTuple):
    """Identity, camera (-1: unknown) and scene (-1: none) of an image."""

    pid: int
    camid: int = -1
    sceneid: int = -1


def label_of_name(item: str) -> Label | None:
    """Read the label from a name such as ``0258_cam1_0.jpg`` or ``0002_s002_v0_0.jpg``; None without a number first.

    ``s999`` is what WMVEID863 writes where the scene is unknown.
    """
    match = re.match(r"(\d+)(?=_)", Path(item).name)
    if not match:
        return None
    camera, scene = re.search(r"_(?:cam|v|c)(\d+)", item), re.search(r"_s(\d+)", item)
    known = scene and scene[1] != "999"
    return Label(int(match[1]), int(camera[1]) if camera else -1, int(scene[1]) if scene and known else -1)


def open_caption_files(paths: Iterable[str | Path]) -> dict[tuple[str, str], Captions]:
    """Read caption files named ``{split}_{modality}.json`` (``test_NI.json``), or the folders of such files.

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
        protocol: What a query ignores in text-only retrieval; None: ``"scene"`` if the scene of every item is known,
            else ``"camera"`` if the camera of any is, else ``"none"``; the table's note says which, and why.
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
    files = [_File(key, captions, labels, chosen) for key, captions in source.items()]
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


def find_defects(caption: str, modality: str) -> tuple[str, ...]:
    """Return the names of a caption's defects: those of `DEFECTS`, and ``"color"`` where the modality shows none."""
    names = tuple(name for name, pattern in DEFECTS.items() if pattern.search(caption))
    return (*names, "color") if modality in ("nir", "tir") and _COLOR.search(caption) else names


def printed_cell(value: Cell, column: str) -> str | int | None:
    """Return a cell of an audit for people: shares in percent, kappa with two digits, None for nan."""
    if not isinstance(value, float):
        return value
    if np.isnan(value):
        return None
    return f"{value:.2f}" if column == "kappa" else f"{100 * value:.1f} %"


class _File:
    """Captions of one split and modality, and what the tables derive from them, by item."""

    def __init__(
        self, key: tuple[str, str], captions: Captions, label_of: Callable[[str], Label | None], schema: Schema | None
    ) -> None:
        self.split, self.modality = key
        self.captions, self.name = captions, " ".join(key).strip()
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


def _table(title: str, rows: Iterable[Mapping[str, Cell]], note: str = "") -> AuditTable:
    """Return a table from its rows, each of which names the columns."""
    listed = list(rows)
    return AuditTable(title, tuple(listed[0]) if listed else (), [tuple(row.values()) for row in listed], note)


def _files(files: Sequence[_File], tokens: Callable[[str], int], schema: Schema | None) -> AuditTable:
    def row(file: _File) -> dict[str, Cell]:
        texts, labels = list(file.captions.values()), file.labels.values()
        common = set.intersection(*(set(other.captions) for other in files if other.split == file.split))
        sentences = [split_sentences(text) for text in texts]
        lengths = [2 + sum(map(tokens, parts)) for parts in sentences]
        counts = sorted(map(len, sentences)) or [0]
        quantiles = np.percentile(lengths or [0], [0, 5, 50, 95, 100])
        parsed = sum(p.complete for p in file.parsed.values())
        return {
            "file": file.name,
            "captions": len(texts),
            "identities": len({label.pid for label in labels}),
            "cameras": len({label.camid for label in labels} - {-1}),
            "scenes": len({label.sceneid for label in labels} - {-1}),
            "sentences min/mid/max": f"{counts[0]}/{counts[len(counts) // 2]}/{counts[-1]}",
            "distinct captions": len(set(texts)),
            "distinct sentences": len({part for parts in sentences for part in parts}),
            "tokens min/5%/mid/95%/max": "/".join(f"{length:.0f}" for length in quantiles),
            "missing elsewhere": sum(item not in common for item in file.captions),
            "over 77": _share(sum(n > WINDOW for n in lengths), len(texts)),
            "unknown": _share(sum(bool(UNKNOWN.search(text)) for text in texts), len(texts)),
            "parsed in full": _share(parsed, len(texts)) if schema else float("nan"),
        }

    note = (
        "Shares of captions; tokens as CLIP counts them, start and end included. "
        "Missing elsewhere: items that another modality of the split does not have."
    )
    return _table("Files", map(row, files), note)


def _defects(files: Sequence[_File]) -> AuditTable:
    found = {f.name: Counter(n for t in f.captions.values() for n in find_defects(t, f.modality)) for f in files}
    rows = ({"defect": n} | {name: counts[n] for name, counts in found.items()} for n in (*DEFECTS, "color"))
    return _table("Defects (number of captions)", (row for row in rows if any(list(row.values())[1:])))


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
    rows = (
        {"sentence": key} | {file.name: _share(lost[key][file.name], uses[key][file.name]) for file in files}
        for key in sorted(uses, key=("other", "all").count)
        if lost[key].total()
    )
    note = "Share of the sentences that do not fit whole when a caption is cut at 77 tokens."
    return _table("Cut by the text window", rows, note)


def _vocabulary(files: Sequence[_File], schema: Schema) -> AuditTable:
    def rows() -> Iterator[dict[str, Cell]]:
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
                    yield {
                        "modality": modality,
                        "field": entry.name,
                        "coverage": total / len(parsed),
                        "values": len(values),
                        "most frequent": ", ".join(f"{v} {100 * c / total:.0f} %" for v, c in values.most_common(4)),
                        "unknown": (total - values.total() - outside.total()) / total,
                        "out of vocabulary": outside.total() / total,
                        "such as": ", ".join(f"{v} ({c})" for v, c in outside.most_common(3)),
                    }

    return _table("Vocabulary", rows(), "Coverage: share of the captions that mention the field.")


def _consistency(files: Sequence[_File], schema: Schema) -> AuditTable:
    rows: list[dict[str, Cell]] = []
    for entry in schema.fields:
        shares: dict[str, float] = {}
        for modality in dict.fromkeys(file.modality for file in files):
            of_modality = [file for file in files if file.modality == modality]
            values = [file.values[item].get(entry.name) for file in of_modality for item in file.labels]
            found = identity_consistency(values, [label.pid for f in of_modality for label in f.labels.values()])
            shares |= {f"{modality} {pair}": share for pair, share in found._asdict().items()}
        if not np.isnan(list(shares.values())).all():
            rows.append({"field": entry.name, **shares})
    note = "Share of the pairs of images that agree: of the same identity, of two identities."
    return _table("Agreement within identities", rows, note)


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
    note = "Kappa is agreement beyond chance (Cohen): 1 full, 0 none. A field near 1 was merged across modalities."
    columns = ("field", "modalities", "images", "agreement", "kappa")
    return AuditTable("Agreement between modalities", columns, rows, note)


def _choose_protocol(ids: Identities) -> tuple[str, str]:
    """Return the strictest rule that the labels allow, and why it was chosen."""
    scenes, cameras = (int(np.sum(np.asarray(labels) >= 0)) for labels in (ids.sceneid, ids.camid))
    if scenes == len(ids):
        return "scene", "chosen because every image has a scene"
    known = f"the scene of {scenes} of {len(ids)} images is known" if scenes else "no scene is known"
    if cameras:
        return "camera", f"chosen because {known}, and the camera of {cameras}"
    return "none", f"chosen because {known} and no camera"


def _retrieval(files: Sequence[_File], protocol: str | None, schema: Schema | None) -> AuditTable:
    splits = [file.split for file in files]
    split = "test" if "test" in splits else splits[-1]
    chosen = [file for file in files if file.split == split]
    items = sorted(set.intersection(*(set(file.labels) for file in chosen)))
    if not items:
        raise ValueError("no image has an identity (labels)")
    ids = Identities(*np.array([chosen[0].labels[item] for item in items], dtype=np.int64).T)
    rule, why = (protocol, "as asked") if protocol else _choose_protocol(ids)
    features = {file.modality: word_features([file.captions[item] for item in items]) for file in chosen}
    if len(features) > 1:
        features["all modalities"] = np.concatenate(list(features.values()), axis=1)
    for name, lasting in (("fields of the identity", True), ("fields of the moment", False)):
        if schema is None:
            break
        kept = {entry.name for entry in schema.fields if (entry.rank > 0) == lasting}
        terms = (
            Counter(f"{f.modality}.{n}.{v}" for f in chosen for n, v in f.parsed[item].values.items() if n in kept)
            for item in items
        )
        features[name] = term_features(list(terms))
    columns = ("captions", "queries", "mAP", "rank-1", "chance mAP", "chance rank-1")
    rows = [(name, *text_retrieval(feature, ids, rule)) for name, feature in features.items()]
    note = (
        f"Split {split!r}, every image against the others under the protocol {rule!r} ({why}); no image is looked at."
    )
    return AuditTable("Text-only retrieval", columns, rows, note)
