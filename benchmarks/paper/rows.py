"""The paper's tables as data: one file per row, and what the paper and the related methods published."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

PUBLISHED = "published.json"
MEASURES = ("mAP", "rank-1", "rank-5", "rank-10")
CAPTIONS = ("next", "idea", "shuffled")
TRACKS = ("", "visual", "captions", "test-time")


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One row of a table.

    Attributes:
        name: File name without its ending, such as ``"table3-a"``.
        table: ``"table1"`` … ``"table9"``, ``"fig4"`` or ``"controls"``.
        row: Its label in the paper.
        title: What it is.
        dataset: The paper's dataset; ``--data`` may put another in its place.
        captions: Whose captions: ``"next"``, ``"idea"``, or ``"shuffled"`` between samples (an ablation).
        caption_quality: Share of each caption that exists (Table 5).
        caption_unit: What it keeps or loses: a ``"sentence"`` or a ``"word"``.
        needs_captions: Whether the row is about captions, so that without them it would be another one.
        model: Name of the zoo.
        tiny: What stands in for it on synthetic data.
        track: What a method may use: ``"visual"``, ``"captions"`` too, or unlabelled images at ``"test-time"``; empty
            in tables of one method.
        arguments: Of ``create_model``.
        widen_to: Name of a row whose number of trainable parameters this one gets, by the head's ``ffn_ratio``.
        recipe: Our recipe's name.
        overrides: Fields of the recipe to change.
        reference: Name of the row that paired differences are taken to; empty for none.
        paper: Published figures in percent, by measure; empty where the paper has none that can be read. A related
            method's are those of `load_published`.
    """

    name: str
    table: str
    row: str
    title: str
    dataset: str
    captions: str = "next"
    caption_quality: float = 1.0
    caption_unit: str = "sentence"
    needs_captions: bool = False
    model: str = "next_clip_b16"
    tiny: str = "next_tiny"
    track: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    widen_to: str = ""
    recipe: str = "next"
    overrides: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    paper: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.captions not in CAPTIONS:
            raise ValueError(f"row {self.name!r}: captions is {self.captions!r}; allowed: {', '.join(CAPTIONS)}")
        if self.track not in TRACKS:
            raise ValueError(f"row {self.name!r}: track is {self.track!r}; allowed: {', '.join(TRACKS[1:])}")
        if not 0 < self.caption_quality <= 1:
            raise ValueError(f"row {self.name!r}: caption_quality is {self.caption_quality}, not a share in (0, 1]")

    @property
    def reads_text(self) -> bool:
        """Whether captions change what this row's model computes."""
        if not self.tiny.startswith("next"):
            return self.track == "captions"
        head = {
            "num_semantic_experts": 1,
            "text_modulation": True,
            "sampling": "dynamic",
            **self.arguments.get("head", {}),
        }
        routed = head["sampling"] not in ("all", "random")
        return bool(head["num_semantic_experts"] and head["text_modulation"] and routed)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON."""
        return asdict(self)


def recipes_folder() -> Path:
    """Folder of the rows' files."""
    return Path(__file__).with_name("recipes")


def load_rows(folder: Path | None = None) -> dict[str, BenchRow]:
    """Read every row by name, in the order of tables and rows.

    Raises:
        ValueError: A file is no row, or names a reference that does not exist; the message names the file.
    """
    folder = folder or recipes_folder()
    rows = {}
    figures = {(f["table"], f["method"], f["dataset"]): f for f in load_published(folder)}
    for path in sorted(folder.glob("*.json")):
        if path.name == PUBLISHED:
            continue
        try:
            row = BenchRow(name=path.stem, **json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no benchmark row: {error}") from error
        if figure := figures.get((row.table, row.row, row.dataset)):
            row = replace(row, paper={measure: figure[measure] for measure in MEASURES if measure in figure})
        rows[path.stem] = row
    for row in rows.values():
        for other in (row.reference, row.widen_to):
            if other and other not in rows:
                raise ValueError(f"row {row.name!r} refers to {other!r}, and there is no such row")
    return rows


def load_published(folder: Path | None = None) -> list[dict[str, Any]]:
    """Read the related methods' figures of Tables 1 and 2: table, method, venue, structure, dataset, percent."""
    path = (folder or recipes_folder()) / PUBLISHED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def select_rows(names: list[str], rows: dict[str, BenchRow]) -> list[BenchRow]:
    """Return the rows that tables' or rows' names ask for, once each, in the given order.

    Args:
        names: Names of tables (``"table3"``), of rows (``"table3-a"``), or ``"all"``.
        rows: Of `load_rows`.

    Raises:
        KeyError: A name is neither.
    """
    tables = {row.table for row in rows.values()}
    chosen: dict[str, BenchRow] = {}
    for name in names:
        found = [row for row in rows.values() if name in ("all", row.table, row.name)]
        if not found:
            raise KeyError(f"no table or row {name!r}; tables: {', '.join(sorted(tables))}; rows: {', '.join(rows)}")
        chosen |= {row.name: row for row in found}
    return list(chosen.values())
