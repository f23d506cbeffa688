"""What a check reports: findings with hints, and the table of counts above them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..sample import ReIDDataset, Sample
from ..split import Rule

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

_EXAMPLES = 5


@dataclass(frozen=True, slots=True, repr=False)
class Finding:
    """One thing that a check noticed.

    Attributes:
        level: ``"error"``: training or evaluation fails or gives wrong results; ``"warning"``: probably not what you
            want; ``"note"``: good to know.
        code: Short fixed name, such as ``"unreadable"``; `docs/checking.md` lists all.
        message: What was found.
        hint: What to do about it.
        count: How many samples, images, captions or identities it concerns.
        examples: The first few of them.
    """

    level: Level
    code: str
    message: str
    hint: str
    count: int
    examples: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Finding({self.level!r}, {self.code!r}, {self.count})"


@dataclass(frozen=True, repr=False)
class Report:
    """Outcome of `check_dataset`.

    Attributes:
        name: Name of the dataset.
        modalities: Its modalities, in order.
        protocol: Name of the protocol that the queries were checked against.
        exclude: What a query ignores under it: ``"camera"``, ``"scene"`` or ``"none"``.
        splits: For train, query and gallery: counts, and distributions as ``[lowest, median, highest]``.
        findings: Errors first, then warnings, then notes.
    """

    name: str
    modalities: tuple[str, ...]
    protocol: str
    exclude: Rule
    splits: Mapping[str, Mapping[str, Any]]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.of_level("error")

    def of_level(self, level: Level) -> tuple[Finding, ...]:
        """Return the findings of one level."""
        return tuple(finding for finding in self.findings if finding.level == level)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-able dictionary."""
        return {
            "dataset": self.name,
            "modalities": list(self.modalities),
            "protocol": self.protocol,
            "exclude": self.exclude,
            "ok": self.ok,
            "splits": {split: dict(facts) for split, facts in self.splits.items()},
            "findings": [asdict(finding) | {"examples": list(finding.examples)} for finding in self.findings],
        }

    def __str__(self) -> str:
        """Return the report as aligned text."""
        ignored = "only itself" if self.exclude == "none" else f"its own identity in its own {self.exclude}"
        head = f"{self.name}: {', '.join(self.modalities)}; protocol {self.protocol} (a query ignores {ignored})"
        parts = [head, "", *_table(self.splits, self.modalities), ""]
        for finding in self.findings:
            parts.append(f"{finding.level} [{finding.code}] {finding.message}")
            parts += [f"    {example}" for example in finding.examples]
            if finding.count > len(finding.examples) > 0:
                parts.append(f"    … {len(finding.examples)} of {finding.count:,} shown")
            if finding.hint:
                parts.append(f"    -> {finding.hint}")
        return "\n".join([*parts, self._verdict()])

    def __repr__(self) -> str:
        return f"Report({self.name!r}, {self._verdict()})"

    def _verdict(self) -> str:
        counts = [(len(self.of_level(level)), level) for level in LEVELS]
        verdict = "usable" if self.ok else "not usable as it is"
        return f"{verdict}: {', '.join(f'{count} {level}' + 's' * (count != 1) for count, level in counts)}"


def each_sample(dataset: ReIDDataset) -> list[tuple[str, Sample]]:
    """Return every sample once with the name of its split; those that query and gallery share are "test"."""
    gallery = {id(sample) for sample in dataset.gallery}
    shared = {id(sample) for sample in dataset.query} & gallery
    rows = [("train", sample) for sample in dataset.train]
    rows += [("test" if id(sample) in shared else "query", sample) for sample in dataset.query]
    return rows + [("gallery", sample) for sample in dataset.gallery if id(sample) not in shared]


def found(level: Level, code: str, message: str, hint: str, names: Iterable[str]) -> Finding:
    """Return a finding about all of `names`, with the first few as examples."""
    every = list(names)
    return Finding(level, code, message, hint, len(every), tuple(every[:_EXAMPLES]))


def found_in(level: Level, code: str, what: str, hint: str, pairs: Sequence[tuple[str, str]]) -> list[Finding]:
    """Return a finding about pairs of a place and a name, which counts the places; none where there are no pairs."""
    message = f"{what}: {len(pairs):,} ({tally(place for place, _ in pairs)})"
    return [found(level, code, message, hint, map(" ".join, pairs))] if pairs else []


def tally(places: Iterable[str]) -> str:
    """Return how often each place occurs, as ``"train tir 3, query rgb 1"``."""
    return ", ".join(f"{place} {count:,}" for place, count in Counter(places).items())


def spread(numbers: Iterable[int]) -> list[int] | None:
    """Return ``[lowest, median, highest]``, None of nothing; the median is the lower of the two in the middle."""
    ordered = sorted(numbers)
    return [ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]] if ordered else None


def _table(splits: Mapping[str, Mapping[str, Any]], modalities: Sequence[str]) -> list[str]:
    columns = list(splits.values())
    rows: list[list[str]] = [["", *splits]]

    def row(label: str, cells: Sequence[object], always: bool = True) -> None:
        if always or any(cells):
            rows.append([label, *(f"{c:,}" if isinstance(c, int) else str(c or "-") for c in cells)])

    def by_modality(label: str, cells: Mapping[str, Sequence[object]]) -> None:
        if len(cells) > 1 and all(line == cells[modalities[0]] for line in cells.values()):
            row(f"{label}, each modality", cells[modalities[0]])
        else:
            for modality, line in cells.items():
                row(f"{label}, {modality}", line)

    def slashed(numbers: Sequence[int] | None) -> str:
        return "/".join(map(str, numbers or ()))

    for key, label in (("samples", "samples"), ("ids", "identities"), ("cameras", "cameras"), ("scenes", "scenes")):
        row(label, [facts[key] for facts in columns], always=key in ("samples", "ids"))
    row("samples of an identity*", [slashed(facts["samples_per_id"]) for facts in columns])
    row("cameras of an identity*", [slashed(facts["cameras_per_id"]) for facts in columns], always=False)
    cameras = sorted(
        {name for facts in columns for name in facts["ids_per_camera"]}, key=lambda name: (len(name), name)
    )
    for camera in cameras if len(cameras) <= 12 else ():
        row(f"identities at camera {camera}", [facts["ids_per_camera"].get(camera, 0) for facts in columns])
    for what in ("images", "captions"):
        by_modality(what, {m: [facts[what][m] for facts in columns] for m in modalities})
    if any(facts["sizes"] for facts in columns):
        by_modality("width x height", {m: [_sizes(facts["sizes"].get(m, {})) for facts in columns] for m in modalities})
    query = splits["query"]
    row("matches of a query*", ("", slashed(query["positives_per_query"]), ""), always=False)
    for rule, valid in query["valid_queries"].items():
        if rule != "scene" or any(facts["scenes"] for facts in columns):
            row(f"queries with a match, rule {rule}", ("", f"{valid:,}", ""))
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in rows]
    return [*("  ".join(line).rstrip() for line in lines), "* lowest/median/highest"]


def _sizes(histogram: Mapping[str, int]) -> str:
    if len(histogram) < 2:
        return "".join(histogram)
    return f"{next(iter(histogram))} and {len(histogram) - 1:,} more"
