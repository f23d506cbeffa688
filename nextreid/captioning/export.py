"""Captions as files: the published JSON form, and a table that keeps what each word rests on."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .merge import Merged
from .run import ImageEntry, Sampling
from .schema import Answer, Answers, Schema

_CODES = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Description:
    """The caption of one image and what it rests on.

    Attributes:
        split: Such as ``"train"``.
        key: Name of the sample.
        modality: Such as ``"rgb"``.
        sentences: The caption.
        answers: Merged answers by field.
        trail: The decisions behind them, as plain data (see `Decision.to_dict`).
        image: Digest of the image.
        composed_by: ``"template"``, or the language model that wrote the caption.
    """

    split: str
    key: str
    modality: str
    sentences: tuple[str, ...]
    answers: Answers
    trail: tuple[Mapping[str, Any], ...] = ()
    image: str = ""
    composed_by: str = "template"

    @property
    def caption(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)


def describe(merged: Merged, sentences: Sequence[str], image: ImageEntry, composed_by: str = "template") -> Description:
    """Put together the description of one image."""
    trail = tuple(decision.to_dict() for decision in merged.trail)
    return Description(
        image.split,
        image.key,
        image.modality,
        tuple(sentences),
        merged.answers,
        trail,
        image.digest,
        composed_by,
    )


def caption_file(split: str, modality: str) -> str:
    """Return the published name of a caption file, such as ``"train_NI.json"``."""
    return f"{split}_{_CODES.get(modality, modality.upper())}.json"


def write_captions(folder: str | Path, descriptions: Iterable[Description]) -> list[Path]:
    """Write one JSON list of ``{"item", "description"}`` for each split and modality, as NEXT and IDEA read them.

    An image without a caption is left out. Each file is written whole or not at all.

    Args:
        folder: Made if there is none.
        descriptions: In the order in which they shall stand.

    Returns:
        The files.
    """
    tables: dict[str, list[dict[str, str]]] = {}
    for one in descriptions:
        entries = tables.setdefault(caption_file(one.split, one.modality), [])
        if one.sentences:
            entries.append({"item": one.key, "description": one.caption})
    written = []
    for name, entries in tables.items():
        path = Path(folder) / name
        _write_text(path, json.dumps(entries, indent=4, ensure_ascii=False) + "\n")
        written.append(path)
    return written


def write_table(path: str | Path, descriptions: Iterable[Description], schema: Schema) -> Path:
    """Write a parquet table, one row an image.

    Columns: split, item, modality, description, sentences, composed_by, image, attributes (a list of field, value,
    confidence, source, flags) and trail (JSON). The schema is in the file's metadata under ``nextreid``.

    Args:
        path: The file; written whole or not at all.
        descriptions: The rows.
        schema: What the answers answer.

    Raises:
        ImportError: If pyarrow is not installed.
    """
    arrow, parquet = _arrow()
    rows = [
        {
            "split": one.split,
            "item": one.key,
            "modality": one.modality,
            "description": one.caption,
            "sentences": list(one.sentences),
            "composed_by": one.composed_by,
            "image": one.image,
            "attributes": [{"field": name, **asdict(answer)} for name, answer in one.answers.items()],
            "trail": json.dumps(list(one.trail)),
        }
        for one in descriptions
    ]
    texts = arrow.list_(arrow.string())
    columns = dict.fromkeys(("split", "item", "modality", "description"), arrow.string())
    columns |= {"sentences": texts, "composed_by": arrow.string(), "image": arrow.string()}
    entry = {"field": arrow.string(), "value": arrow.string(), "confidence": arrow.float64()}
    entry |= {"source": arrow.string(), "flags": texts}
    columns |= {"attributes": arrow.list_(arrow.struct(list(entry.items()))), "trail": arrow.string()}
    metadata = {"nextreid": json.dumps({"format": _FORMAT, "schema": schema.to_dict()})}
    table = arrow.Table.from_pylist(rows, arrow.schema(list(columns.items()), metadata))
    path = Path(path)
    _write_whole(path, lambda temporary: parquet.write_table(table, temporary))
    return path


def read_table(path: str | Path) -> tuple[list[Description], Schema]:
    """Read what `write_table` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such table, or of a newer format.
        ImportError: If pyarrow is not installed.
    """
    arrow, parquet = _arrow()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table {path}")
    try:
        table = parquet.read_table(path)
        metadata = json.loads((table.schema.metadata or {})[b"nextreid"])
    except (arrow.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no table of captions ({error})") from error
    if metadata["format"] != _FORMAT:
        raise ValueError(f"{path} has format {metadata['format']}, this nextreid reads {_FORMAT}: update it")
    return [_description(row) for row in table.to_pylist()], Schema.from_dict(metadata["schema"])


def write_run(
    path: str | Path, schema: Schema, models: Sequence[str], sampling: Sampling, images: Sequence[ImageEntry]
) -> None:
    """Note what a run asks, so that its answers can be read again without the images."""
    run = {
        "format": _FORMAT,
        "schema": schema.to_dict(),
        "models": list(models),
        "sampling": asdict(sampling),
        "images": [[p.split, p.key, p.modality, p.digest] for p in images],
    }
    _write_text(Path(path), json.dumps(run) + "\n")


def read_run(path: str | Path) -> tuple[Schema, list[str], Sampling, list[ImageEntry]]:
    """Read what `write_run` noted.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no run in {path.parent} ({path.name} is missing); 'nextreid captions run' makes one")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["format"] != _FORMAT:
            raise ValueError(f"format {run['format']}, this nextreid reads {_FORMAT}")
        images = [ImageEntry(key, modality, split, digest) for split, key, modality, digest in run["images"]]
        return Schema.from_dict(run["schema"]), list(run["models"]), Sampling(**run["sampling"]), images
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a run ({error})") from error


def _description(row: Mapping[str, Any]) -> Description:
    answers = {
        entry["field"]: Answer(entry["value"], entry["confidence"], entry["source"], tuple(entry["flags"]))
        for entry in row["attributes"]
    }
    return Description(
        row["split"],
        row["item"],
        row["modality"],
        tuple(row["sentences"]),
        answers,
        tuple(json.loads(row["trail"])),
        row["image"],
        row["composed_by"],
    )


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("tables of captions need pyarrow: pip install 'nextreid[captions]'") from error
    return pyarrow, pyarrow.parquet


def _write_text(path: Path, text: str) -> None:
    _write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
