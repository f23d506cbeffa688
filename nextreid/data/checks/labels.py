"""Who is where: identities, cameras, keys, and the queries that can never match."""

from collections import Counter, defaultdict
from typing import Any

from ...retrieval import Protocol
from ..sample import ReIDDataset, Sample
from .findings import Finding, Level, found, splits_of, spread

_RULES = ("camera", "scene", "none")
_LABEL = {"camera": "camid", "scene": "sceneid"}


def label_facts(dataset: ReIDDataset, protocol: Protocol) -> dict[str, dict[str, Any]]:
    """Count what each split holds; see `Report.splits`."""
    facts: dict[str, dict[str, Any]] = {}
    for split, counts in dataset.summary().items():
        samples = splits_of(dataset)[split]
        cameras: dict[int, set[int]] = defaultdict(set)
        where: dict[int, set[int]] = defaultdict(set)
        for s in samples:
            if s.pid >= 0 and s.camid >= 0:
                cameras[s.camid].add(s.pid)
                where[s.pid].add(s.camid)
        known = Counter(s.pid for s in samples if s.pid >= 0)
        facts[split] = {
            **counts,
            "ids": len(known),
            "samples_per_id": spread(list(known.values())),
            "cameras_per_id": spread([len(seen) for seen in where.values()]),
            "ids_per_camera": {str(camera): len(ids) for camera, ids in sorted(cameras.items())},
        }
    query = facts["query"]
    query["positives_per_query"] = spread([m for m, _ in matches(dataset, protocol.exclude)])
    query["valid_queries"] = {rule: sum(m > 0 for m, _ in matches(dataset, rule)) for rule in _RULES if dataset.query}
    return facts


def matches(dataset: ReIDDataset, exclude: str) -> list[tuple[int, str]]:
    """Count the gallery entries that each query can match, and say which rule takes away the last of them.

    Args:
        dataset: Its query and gallery are compared.
        exclude: ``"camera"``, ``"scene"`` or ``"none"``: entries of the query's identity that share this label are
            ignored, and always the query itself. Entries labelled -1 share it with each other.

    Returns:
        For each query the number of matches and, where it is 0, ``"identity"`` (the gallery does not show it),
        ``"itself"`` (the gallery shows it only in the query's own sample) or `exclude`; else ``""``.
    """

    def label(sample: Sample) -> int:
        return {"camera": sample.camid, "scene": sample.sceneid}.get(exclude, -1)

    identity = Counter(s.pid for s in dataset.gallery)
    ignored = Counter((s.pid, label(s)) for s in dataset.gallery) if exclude != "none" else Counter()
    entries = {s.key: s for s in dataset.gallery}
    counted = []
    for query in dataset.query:
        itself = entries.get(query.key)
        if itself is not None and itself.pid != query.pid:
            itself = None
        others = identity[query.pid] - (itself is not None)
        count = identity[query.pid] - ignored[query.pid, label(query)]
        # itself is among the ignored ones unless nothing is, or the gallery labels it otherwise than the query
        if itself is not None and (exclude == "none" or label(itself) != label(query)):
            count -= 1
        why = "" if count else "identity" if not identity[query.pid] else "itself" if not others else exclude
        counted.append((count, why))
    return counted


def check_labels(dataset: ReIDDataset, protocol: Protocol, num_ids: int) -> list[Finding]:
    """Return the findings about keys and labels."""
    if not any(s.pid >= 0 for samples in splits_of(dataset).values() for s in samples):
        message = "no sample has an identity, so identities, cameras and queries were not checked"
        return [*_keys(dataset), Finding("note", "unlabelled", message, "label pid to train or to score", 0)]
    return [
        *_keys(dataset),
        *_splits(dataset),
        *_identities(dataset, num_ids),
        *_places(dataset, protocol),
        *_queries(dataset, protocol),
    ]


def _keys(dataset: ReIDDataset) -> list[Finding]:
    findings = []
    double: list[str] = []
    # without the split: query and gallery may hold the same samples
    alike: set[str] = set()
    for split, samples in splits_of(dataset).items():
        keys = Counter(s.key for s in samples)
        double += [f"{split} {key}" for key, count in keys.items() if count > 1]
        folded: dict[str, list[str]] = defaultdict(list)
        for key in keys:
            folded[key.casefold()].append(key)
        alike |= {" and ".join(names) for names in folded.values() if len(names) > 1}
    if double:
        message = f"keys that name several samples of one split: {len(double):,}"
        findings.append(found("error", "double-key", message, "give each sample a key of its own", double))
    owner = {s.key: s.pid for s in dataset.gallery}
    torn = [s.key for s in dataset.query if owner.get(s.key, s.pid) != s.pid]
    if torn:
        message = f"keys that name different identities in query and gallery: {len(torn):,}"
        findings.append(found("error", "key-conflict", message, "one key must stand for one sample", torn))
    if alike:
        message = f"groups of keys that differ in upper and lower case only: {len(alike):,}"
        remedy = "rename them: on Windows and macOS such files are one file, and captions may join the wrong one"
        findings.append(found("warning", "case-key", message, remedy, sorted(alike)))
    return findings


def _splits(dataset: ReIDDataset) -> list[Finding]:
    empty = [split for split, samples in splits_of(dataset).items() if not samples]
    if not empty:
        return []
    half = ("query" in empty) != ("gallery" in empty)
    message = f"there are no samples in {' and '.join(empty)}"
    remedy = "a query needs a gallery, and a gallery queries" if half else "fine unless you want to use this split"
    return [Finding("error" if half else "note", "empty-split", message, remedy, len(empty))]


def _identities(dataset: ReIDDataset, num_ids: int) -> list[Finding]:
    findings = []
    unknown = [f"train {s.key}" for s in dataset.train if s.pid < 0]
    unknown += [f"query {s.key}" for s in dataset.query if s.pid < 0]
    if unknown:
        message = f"samples of train or query without identity (pid -1): {len(unknown):,}"
        remedy = "label them or leave them out; only a gallery may hold strangers"
        findings.append(found("error", "no-identity", message, remedy, unknown))
    train = Counter(s.pid for s in dataset.train if s.pid >= 0)
    test = {s.pid for s in (*dataset.query, *dataset.gallery) if s.pid >= 0}
    both = sorted(train.keys() & test)
    if both:
        message = f"training identities that are in query or gallery too: {len(both):,} of {len(train):,}"
        remedy = "keep the identities of training and test apart, or the numbers say nothing about strangers"
        findings.append(found("warning", "identity-in-train-and-test", message, remedy, map(str, both)))
    single = sorted(pid for pid, count in train.items() if count == 1)
    if single:
        message = f"training identities with one sample: {len(single):,} of {len(train):,}"
        remedy = "their instances in a batch are copies of it, which teach little: add samples or leave them out"
        findings.append(found("warning", "single-sample", message, remedy, map(str, single)))
    if 0 < len(train) < num_ids:
        message = f"training identities: {len(train)}, a batch takes {num_ids}"
        remedy = f"train with num_ids={len(train)} or less" if len(train) > 1 else "two identities are the least"
        level: Level = "warning" if len(train) > 1 else "error"
        findings.append(Finding(level, "few-identities", message, remedy, len(train)))
    return findings


def _places(dataset: ReIDDataset, protocol: Protocol) -> list[Finding]:
    test = {s.key: s for s in (*dataset.gallery, *dataset.query)}.values()
    findings = []
    if label := _LABEL.get(protocol.exclude):
        blank = [s.key for s in test if getattr(s, label) < 0]
        # where all are blank, the queries without a match say it
        if 0 < len(blank) < len(test):
            message = f"test samples without {protocol.exclude} ({label} -1): {len(blank):,} of {len(test):,}"
            remedy = f"they count as one {protocol.exclude} under protocol {protocol.name}: label them"
            findings.append(found("warning", f"no-{protocol.exclude}", message, remedy, blank))
    cameras: dict[int, set[int]] = defaultdict(set)
    for s in test:
        if s.pid >= 0 and s.camid >= 0:
            cameras[s.pid].add(s.camid)
    lonely = sorted({s.pid for s in dataset.query if len(cameras.get(s.pid, ())) == 1})
    if lonely and protocol.exclude != "camera" and len(set().union(*cameras.values())) > 1:
        message = f"query identities known under one camera only: {len(lonely):,}"
        remedy = f"protocol {protocol.name} lets them match in their own camera, which is easier than across cameras"
        findings.append(found("note", "one-camera", message, remedy, map(str, lonely)))
    return findings


def _queries(dataset: ReIDDataset, protocol: Protocol) -> list[Finding]:
    if not dataset.gallery:
        return []
    lost: dict[str, list[str]] = defaultdict(list)
    for query, (_, why) in zip(dataset.query, matches(dataset, protocol.exclude), strict=True):
        if why and query.pid >= 0:
            lost[why].append(query.key)
    every = sum(map(len, lost.values())) == len(dataset.query)
    findings = []
    for why, keys in lost.items():
        message, remedy = _why(why, dataset, protocol, every)
        message = f"queries that can never match: {len(keys):,} of {len(dataset.query):,}; {message}"
        findings.append(found("error" if every else "warning", f"no-match-{why}", message, remedy, keys))
    return findings


def _why(why: str, dataset: ReIDDataset, protocol: Protocol, every: bool) -> tuple[str, str]:
    if why == "identity":
        return "the gallery does not show their identity", "check pid and which samples are query and gallery"
    if why == "itself":
        return "the gallery shows their identity only in the query itself", "add samples of them to the gallery"
    label = _LABEL[why]
    message = f"their identity's gallery entries are all in the query's own {why}, ignored by protocol {protocol.name}"
    values = {getattr(s, label) for s in (*dataset.query, *dataset.gallery)}
    if len(values) == 1:
        value = values.pop()
        what = f"no sample has a {label}" if value < 0 else f"every sample has {label} {value}"
        return message, f"{what}: label the {why}s, or score with protocol 'none', which ignores only the query itself"
    if every:
        return message, f"check the {label} labels, or score with protocol 'none', which ignores only the query itself"
    return message, "they are counted and left out of the averages; with protocol 'none' they would match"
