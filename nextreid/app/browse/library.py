"""What is browsed: runs, models, galleries and datasets, and what the words of a command line name of them."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nextreid._files import parse_json, read_json, user_path
from nextreid._names import unknown
from nextreid.data import ReIDDataset, Sample, list_datasets
from nextreid.engine.checkpoint import BEST, LAST, METRICS, RECIPE, read_description
from nextreid.engine.logs import LOG
from nextreid.models import is_model, list_models
from nextreid.retrieval.gallery_store import DATABASE

_DEPTH = 3  # folders below a given one in which runs and galleries are looked for: runs/name/seed0
_MOST_LINES = 100_000  # of metrics that are read
_MOST_BYTES = 2**27  # of either
_LOG_LINES = 2000  # of a log that are read: every n-th, and the last
_OWN = ("manifest", "pattern", "folder")  # readers of files and folders, which have no name of their own


class Sources(NamedTuple):
    """Words of a command line by what they name."""

    runs: list[Path]
    models: list[str]
    galleries: list[str]
    datasets: list[str]


def sort_sources(names: Sequence[str], *, pattern: bool = False) -> Sources:
    """Find out what words name: a run, a model, a gallery, a dataset, or a folder that holds runs and galleries.

    Args:
        names: Paths, names of models and datasets, ``lancedb:URI``, ``hf-hub:NAME``.
        pattern: Whether folders that are nothing else are datasets without a look at what they hold.

    Raises:
        FileNotFoundError: There is nothing of a name.

    Example:
        >>> sort_sources(["next_tiny", "synthetic-persons"])
        Sources(runs=[], models=['next_tiny'], galleries=[], datasets=['synthetic-persons'])
    """
    found = Sources([], [], [], [])
    datasets = [name for name in list_datasets() if name not in _OWN]
    for name in dict.fromkeys(names):
        path = user_path(name)
        if name in datasets:
            found.datasets.append(name)
        elif name.startswith("lancedb:"):
            found.galleries.append(name)
        elif name.startswith(("hf-hub:", "local-dir:")) or (is_model(name) and not path.exists()):
            found.models.append(name)
        elif path.is_dir():
            inside = list(_below(path, 0 if pattern else _DEPTH))
            found.runs.extend(place for kind, place in inside if kind == "run")
            # from its root, as a model may have the name of a folder
            found.models.extend(os.path.abspath(place) for kind, place in inside if kind == "model")
            found.galleries.extend(str(place) for kind, place in inside if kind == "gallery")
            if not inside:
                found.datasets.append(name)
        elif path.is_file():
            found.datasets.append(name)
        else:
            known = unknown("run, model, gallery or dataset", name, [*datasets, *list_models()][:40])
            raise FileNotFoundError(f"there is no file and no folder {path}, and {known}")
    return Sources(list(dict.fromkeys(found.runs)), *(list(dict.fromkeys(kind)) for kind in found[1:]))


def _below(folder: Path, depth: int) -> Iterator[tuple[str, Path]]:
    """Runs, galleries and models in a folder, itself among them."""
    kind = _kind(folder)
    if kind is not None:
        yield kind, folder
    elif depth:
        with os.scandir(folder) as entries:
            inner = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        for name in inner:
            try:
                yield from _below(folder / name, depth - 1)
            except PermissionError:
                continue


def _kind(folder: Path) -> str | None:
    if (folder / RECIPE).is_file() or (folder / METRICS).is_file():
        return "run"
    if (folder / DATABASE).is_file():
        return "gallery"
    return "model" if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file() else None


@dataclass(frozen=True)
class Run:
    """What a run folder says now.

    Attributes:
        described: Content of ``recipe.json``; empty where it cannot be read.
        history: Rows of ``metrics.jsonl``.
        log: Rows of ``log.jsonl``, evenly spaced where there are many.
        problems: What cannot be read, for people.
    """

    described: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    log: Sequence[Mapping[str, Any]]
    problems: Sequence[str]

    @cached_property
    def last(self) -> Mapping[str, Any]:
        """The last row that has metrics; empty where there is none."""
        return next((row for row in reversed(self.history) if _evaluation(row)), {})

    @cached_property
    def best(self) -> Mapping[str, Any]:
        """The row of the highest mAP; empty where there is none."""
        return max((row for row in self.history if _evaluation(row)), key=lambda r: r["evaluation"]["mAP"], default={})

    def part(self, name: str) -> Mapping[str, Any]:
        """A table of ``recipe.json``, such as ``"dataset"``; empty where there is none."""
        found = self.described.get(name)
        return found if isinstance(found, Mapping) else {}

    def share(self, row: Mapping[str, Any], metric: str) -> float | None:
        """A metric of a row."""
        value = row["evaluation"].get(metric) if row else None
        return float(value) if isinstance(value, int | float) else None

    def series(self, *path: str) -> list[tuple[float, float]]:
        """Points (epoch, value) of a number in the rows, such as ``("loss", "total")``."""
        points = []
        for row in self.history:
            value: Any = row
            for name in path:
                value = value.get(name) if isinstance(value, Mapping) else None
            if isinstance(value, int | float) and isinstance(row.get("epoch"), int):
                points.append((float(row["epoch"]), float(value)))
        return points

    def logged(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """Points (step, value) of the log, by the first part of a name, such as ``"loss"``, and by its rest."""
        found: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for row in self.log:
            if isinstance(step := row.get("step"), int) and "epoch" not in row:
                for name, value in row.items():
                    if name != "step" and isinstance(value, int | float):
                        group, _, rest = name.partition("/")
                        found.setdefault(group, {}).setdefault(rest or group, []).append((float(step), float(value)))
        return found

    def names(self, part: str) -> list[str]:
        """Names of the numbers in a part of the rows, such as ``"loss"``."""
        parts = [row[part] for row in self.history if isinstance(row.get(part), Mapping)]
        return list(dict.fromkeys(str(name) for row in parts for name in row))


def read_run(folder: Path) -> Run:
    """Read a run folder, as far as it can be read."""
    problems, described = list[str](), dict[str, Any]()
    history, log = list[dict[str, Any]](), list[dict[str, Any]]()
    try:
        read = read_json(folder / RECIPE)
        if not isinstance(read, dict):
            raise ValueError(f"{folder / RECIPE} is no table of fields")
        described = read
        read_description(folder / RECIPE)
    except (OSError, ValueError) as error:
        problems.append(str(error))
    for name, rows, most in ((METRICS, history, _MOST_LINES), (LOG, log, _LOG_LINES)):
        try:
            _read_rows(folder / name, most, rows)
        except FileNotFoundError:
            if name == METRICS and not problems:
                problems.append(f"no epoch is done yet: there is no file {folder / name}")
        except (OSError, ValueError) as error:
            problems.append(str(error))
    return Run(described, history, log, problems)


def _read_rows(path: Path, most: int, rows: list[dict[str, Any]]) -> None:
    """Add the rows of a file of JSON lines up to the first that is none; of more than `most` every n-th, and the last.

    A last line without an end is being written.
    """
    with path.open("rb") as file:
        lines = file.read(_MOST_BYTES).splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    step = -(-len(lines) // most) or 1
    for number in dict.fromkeys((*range(0, len(lines), step), len(lines) - 1) if lines else ()):
        row = parse_json(lines[number], f"{path}, line {number + 1},")
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number + 1}, is no row of values")
        rows.append(row)


def _evaluation(row: Mapping[str, Any]) -> bool:
    found = row.get("evaluation")
    return isinstance(found, Mapping) and isinstance(found.get("mAP"), int | float)


class Model(NamedTuple):
    """A model that ranks: its number in addresses, what people call it, where it is."""

    number: int
    name: str
    checkpoint: str

    @property
    def stamp(self) -> int:
        """Changes when the weights of a checkpoint folder do."""
        weights = user_path(self.checkpoint) / "model.safetensors"
        return weights.stat().st_mtime_ns if weights.is_file() else 0


@dataclass(frozen=True, eq=False)
class BrowsedDataset:
    """A dataset and the numbers of its samples: those of train, then of query, then of gallery.

    Attributes:
        name: What people call it.
        dataset: The dataset.
    """

    name: str
    dataset: ReIDDataset

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """All samples by their number."""
        return (*self.dataset.train, *self.dataset.query, *self.dataset.gallery)

    @cached_property
    def numbers(self) -> dict[str, dict[str, int]]:
        """Numbers by split and key."""
        found, start = dict[str, dict[str, int]](), 0
        for split, samples in self.dataset.splits().items():
            found[split] = {sample.key: start + place for place, sample in enumerate(samples)}
            start += len(samples)
        return found

    def split(self, number: int) -> str:
        """The split of a sample."""
        for split, samples in self.dataset.splits().items():
            if number < len(samples):
                return split
            number -= len(samples)
        raise KeyError(f"{self.name} has {len(self.samples)} samples, none of number {number}")

    def label(self, field: str, sample: Sample) -> str:
        """What the files call a label of a sample."""
        return self.dataset.label_name(field, getattr(sample, field))


@dataclass(frozen=True)
class Library:
    """All that is browsed; its places are the numbers in addresses.

    Attributes:
        runs: Run folders by what people call them.
        models: Checkpoints and names of models likewise; the last and the best of each run follow them.
        galleries: Folders of galleries, or ``lancedb:URI``, likewise.
        datasets: Datasets likewise.
        folders: Whose images may be shown.
    """

    runs: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    galleries: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, ReIDDataset] = field(default_factory=dict)
    folders: Sequence[str | Path] = ()

    @cached_property
    def browsed(self) -> tuple[BrowsedDataset, ...]:
        """The datasets with numbered samples."""
        return tuple(BrowsedDataset(name, dataset) for name, dataset in self.datasets.items())

    def all_models(self) -> list[Model]:
        """The models that are there now; a number stays that of its model."""
        places = list(self.models.items())
        for name, folder in self.runs.items():
            places += [(f"{name}/{which}", str(folder / which)) for which in (LAST, BEST)]
        given = [Model(number, name, place) for number, (name, place) in enumerate(places)]
        return [m for m in given if m.number < len(self.models) or (Path(m.checkpoint) / "config.json").is_file()]


def as_text(value: Any) -> str:
    """A value of a recipe or of provenance as a line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
