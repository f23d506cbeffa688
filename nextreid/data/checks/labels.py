"""Labels: identities, cameras, keys, and the queries that can never match."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import groupby
from typing import Any, get_args

from ..sample import ReIDDataset
from ..split import Rule, count_matches
from .findings import Finding, Level, found, spread

_LABEL = {"camera": "camid", "scene": "sceneid"}

# by code: level, what is wrong, what to do
_FINDINGS: dict[str, tuple[Level, str, str]] = {
    "duplicate-key": ("error", "keys that name several samples of one split", "keys must be unique"),
    "key-conflict": ("error", "keys of different identities in query and gallery", "a key must name one sample"),
    "case-key": ("warning", "groups of keys that differ in case only", "rename them: on Windows they are one file"),
    "no-identity": ("error", "samples of train or query without identity (pid -1)", "label them or leave them out"),
    "identity-in-train-and-test": (
        "warning",
        "training identities that are in query or gallery too",
        "keep the identities of training and test apart, or the metrics do not measure unseen identities",
    ),
    "single-sample": ("warning", "training identities with one sample", "add samples: a batch holds copies of it"),
    "no-{rule}": (
        "warning",
        "test samples without {rule} ({label} -1)",
        "they count as one {rule} under protocol {protocol}: label them",
    ),
    "one-camera": ("note", "query identities known under one camera only", "protocol {protocol} lets them match in it"),
}


def label_facts(dataset: ReIDDataset, rule: Rule) -> dict[str, dict[str, Any]]:
    """Count what each split holds; see `Report.splits`."""
    facts: dict[str, dict[str, Any]] = {}
    for split, counts in dataset.summary().items():
        samples = dataset.splits()[split]
        seen = sorted({(s.camid, s.pid) for s in samples if s.pid >= 0 and s.camid >= 0})
        known = Counter(s.pid for s in samples if s.pid >= 0)
        facts[split] = {
            **counts,
            "ids": len(known),
            "samples_per_id": spread(known.values()),
            "cameras_per_id": spread(Counter(pid for _, pid in seen).values()),
            "ids_per_camera": dict(Counter(dataset.label_name("camid", camid) for camid, _ in seen)),
        }
    matches = {rule: count_matches(dataset.query, dataset.gallery, rule) for rule in get_args(Rule)}
    facts["query"]["positives_per_query"] = spread(matches[rule])
    valid = {rule: sum(count > 0 for count in counts) for rule, counts in matches.items()}
    facts["query"]["valid_queries"] = valid if dataset.query else {}
    return facts


def check_labels(dataset: ReIDDataset, protocol: str, rule: Rule, num_ids: int) -> list[Finding]:
    """Return the findings about keys and labels, for a protocol with this rule."""
    if not any(s.pid >= 0 for samples in dataset.splits().values() for s in samples):
        message = "no sample has an identity, so identities, cameras and queries were not checked"
        return [*_keys(dataset), Finding("note", "unlabelled", message, "label pid to train or to evaluate", 0)]
    return [
        *_keys(dataset),
        *_splits(dataset),
        *_identities(dataset, num_ids),
        *_places(dataset, protocol, rule),
        *_queries(dataset, protocol, rule),
    ]


def _listed(
    code: str, names: Iterable[object], of: int | None = None, *, rule: str = "", protocol: str = ""
) -> list[Finding]:
    """Return the finding of `_FINDINGS` that counts names, of how many; none where there are no names."""
    every = list(map(str, names))
    level, what, hint = _FINDINGS[code]
    what, hint = (text.format(rule=rule, label=_LABEL.get(rule), protocol=protocol) for text in (what, hint))
    message = f"{what}: {len(every):,}" + ("" if of is None else f" of {of:,}")
    return [found(level, code.format(rule=rule), message, hint, every)] if every else []


def _names(dataset: ReIDDataset, pids: Iterable[int]) -> list[str]:
    return [dataset.label_name("pid", pid) for pid in pids]


def _keys(dataset: ReIDDataset) -> list[Finding]:
    repeated: list[str] = []
    alike: set[str] = set()  # without the split: query and gallery may hold the same samples
    for split, samples in dataset.splits().items():
        keys = Counter(s.key for s in samples)
        repeated += [f"{split} {key}" for key, count in keys.items() if count > 1]
        folded = [list(same) for _, same in groupby(sorted(keys, key=str.casefold), key=str.casefold)]
        alike |= {" and ".join(same) for same in folded if len(same) > 1}
    owner = {s.key: s.pid for s in dataset.gallery}
    conflicts = [s.key for s in dataset.query if owner.get(s.key, s.pid) != s.pid]
    return _listed("duplicate-key", repeated) + _listed("key-conflict", conflicts) + _listed("case-key", sorted(alike))


def _splits(dataset: ReIDDataset) -> list[Finding]:
    empty = [split for split, samples in dataset.splits().items() if not samples]
    if not empty:
        return []
    half = ("query" in empty) != ("gallery" in empty)
    message = f"there are no samples in {' and '.join(empty)}"
    hint = "a query needs a gallery, and a gallery queries" if half else "fine unless you want to use this split"
    return [Finding("error" if half else "note", "empty-split", message, hint, len(empty))]


def _identities(dataset: ReIDDataset, num_ids: int) -> list[Finding]:
    unknown = [f"train {s.key}" for s in dataset.train if s.pid < 0]
    unknown += [f"query {s.key}" for s in dataset.query if s.pid < 0]
    train = Counter(s.pid for s in dataset.train if s.pid >= 0)
    test = {s.pid for s in (*dataset.query, *dataset.gallery) if s.pid >= 0}
    findings = _listed("no-identity", unknown)
    single = sorted(pid for pid, count in train.items() if count == 1)
    findings += _listed("identity-in-train-and-test", _names(dataset, sorted(train.keys() & test)), len(train))
    findings += _listed("single-sample", _names(dataset, single), len(train))
    if 0 < len(train) < num_ids:
        message = f"training identities: {len(train)}, a batch takes {num_ids}"
        hint = f"train with num_ids={len(train)} or less" if len(train) > 1 else "two identities are the least"
        level: Level = "warning" if len(train) > 1 else "error"
        findings.append(Finding(level, "few-identities", message, hint, len(train)))
    return findings


def _places(dataset: ReIDDataset, protocol: str, rule: Rule) -> list[Finding]:
    test = {s.key: s for s in (*dataset.gallery, *dataset.query)}.values()
    findings: list[Finding] = []
    if label := _LABEL.get(rule):
        blank = [s.key for s in test if getattr(s, label) < 0]
        if len(blank) < len(test):  # where all are blank, the queries without a match report it
            findings += _listed("no-{rule}", blank, len(test), rule=rule, protocol=protocol)
    seen = {(s.pid, s.camid) for s in test if s.pid >= 0 and s.camid >= 0}
    if rule != "camera" and len({camid for _, camid in seen}) > 1:
        cameras = Counter(pid for pid, _ in seen)
        lonely = sorted({s.pid for s in dataset.query if cameras[s.pid] == 1})
        findings += _listed("one-camera", _names(dataset, lonely), protocol=protocol)
    return findings


def _queries(dataset: ReIDDataset, protocol: str, rule: Rule) -> list[Finding]:
    if not dataset.gallery:
        return []
    shown = {s.pid for s in dataset.gallery}
    counts = count_matches(dataset.query, dataset.gallery, rule)
    others = count_matches(dataset.query, dataset.gallery, "none")
    lost: dict[str, list[str]] = defaultdict(list)
    for query, count, count_others in zip(dataset.query, counts, others, strict=True):
        if not count and query.pid >= 0:
            why: str = "identity" if query.pid not in shown else rule if count_others else "itself"
            lost[why].append(query.key)
    every = sum(map(len, lost.values())) == len(dataset.query)
    findings = []
    for why, keys in lost.items():
        message, hint = _why(why, dataset, protocol, every)
        message = f"queries that can never match: {len(keys):,} of {len(dataset.query):,}; {message}"
        findings.append(found("error" if every else "warning", f"no-match-{why}", message, hint, keys))
    return findings


def _why(why: str, dataset: ReIDDataset, protocol: str, every: bool) -> tuple[str, str]:
    if why == "identity":
        return "the gallery does not show their identity", "check pid and which samples are query and gallery"
    if why == "itself":
        return "the gallery shows their identity only in the query itself", "add samples of them to the gallery"
    label = _LABEL[why]
    message = f"their identity's gallery entries are all in the query's own {why}, ignored by protocol {protocol}"
    none = "evaluate with protocol 'none', which ignores only the query itself"
    values = {getattr(s, label) for s in (*dataset.query, *dataset.gallery)}
    if len(values) == 1:
        value = values.pop()
        what = (
            f"no sample has a {label}" if value < 0 else f"every sample has {label} {dataset.label_name(label, value)}"
        )
        return message, f"{what}: label the {why}s, or {none}"
    if every:
        return message, f"check the {label} labels, or {none}"
    return message, "they are counted and left out of the averages; with protocol 'none' they would match"
