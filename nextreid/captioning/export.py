"""Captions as files: the published JSON form, and a table that keeps the answers and decisions behind each caption."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from .. import _schema as kinds
from .._files import read_json, write_text, write_whole
from ..data.captions import TABLE_FORMAT, caption_file_name, portable_name, read_caption_table
from .decisions import Api
from .distribution import priors_of
from .grammar import compose
from .merge import Absence, Merged, Rule
from .pipeline import CaptionRequest, Sampling, collect, merge_sample
from .runner import Source
from .schema import Answer, Answers, Schema
from .store import Store

_RUN_FORMAT = 1
_SOURCE = kinds.table(
    {
        "model": kinds.text(1000),
        "api": kinds.choice(*get_args(Api)),
        "digest": kinds.text(200),
        "modalities": kinds.listed(kinds.text(200), 0, 100, "a list of names"),
    },
    "entry",
    required=("model",),
)
_PLAIN = ("split", "modality", "sentences", "image", "composed_by")  # columns that are attributes of a `Description`


@dataclass(frozen=True, slots=True)
class Description:
    """The caption of one image and what it is based on.

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


def describe(merged: Merged, sentences: Sequence[str], image: CaptionRequest) -> Description:
    """Combine image, merged answers and caption into the description of one image."""
    trail = tuple(decision.to_dict() for decision in merged.trail)
    return Description(image.split, image.key, image.modality, tuple(sentences), merged.answers, trail, image.digest)


def describe_images(
    images: Sequence[CaptionRequest],
    schema: Schema,
    models: Sequence[str | Source],
    store: Store,
    sampling: Sampling | None = None,
    *,
    rule: Rule = "confidence",
    fields: Sequence[str] | None = None,
    absence: Absence | None = None,
    min_confidence: float = 0.0,
    compact: bool = False,
) -> tuple[list[Description], dict[str, int]]:
    """Merge the stored answers about the images, and compose a caption for each; nothing is asked.

    Args:
        images: As `index_images` returns them.
        schema: The schema they were asked about with.
        models: Names of the models, or their sources.
        store: The answers.
        sampling: How the models were sampled.
        rule: Which answer is kept, see `best_of`.
        fields: Fields that the modalities complement, see `complement`.
        absence: Whether "none" yields to a modality that sees something, see `complement`.
        min_confidence: Confidence below which an answer is left out of the caption; it stays in `Description.answers`.
        compact: Whether captions fit CLIP's window, see `compose`.

    Returns:
        Descriptions in the order of the images, without those about which nothing is known, and the counts of
        `Collected` with the number of these under ``"without"``.
    """
    found = collect(images, schema, models, store, sampling)
    merging: dict[str, Any] = {"rule": rule, "fields": fields, "absence": absence, "min_confidence": min_confidence}
    if rule == "probability":
        every = (
            one for sample in found.answers.values() for annotators in sample.values() for one in annotators.values()
        )
        merging["priors"] = priors_of(every)
    merged = {sample: merge_sample(annotations, schema, **merging) for sample, annotations in found.answers.items()}
    composing: dict[str, Any] = {"min_confidence": min_confidence, "compact": compact}
    descriptions = [
        describe(best, compose(best.answers, schema, image.modality, **composing), image)
        for image in images
        if (best := merged[image.split, image.key].get(image.modality))
    ]
    return descriptions, {**found.counts, "without": len(images) - len(descriptions)}


def write_captions(folder: str | Path, descriptions: Iterable[Description]) -> list[Path]:
    """Write one JSON list of ``{"item", "description"}`` for each split and modality, as NEXT and IDEA read them.

    An image without a caption is left out. A name that is no Unicode, as a file may have on Linux, is written with
    escapes (`portable_name`), and joined to its file again when it is read. Each file is written whole or not at all;
    the files are returned.
    """
    files: defaultdict[Path, list[dict[str, str]]] = defaultdict(list)
    for one in descriptions:
        entries = files[Path(folder) / caption_file_name(one.split, one.modality)]
        if one.sentences:
            entries.append({"item": portable_name(one.key), "description": one.caption})
    for path, entries in files.items():
        write_text(path, json.dumps(entries, indent=4, ensure_ascii=False) + "\n")
    return list(files)


def write_table(path: str | Path, descriptions: Iterable[Description], schema: Schema) -> Path:
    """Write a parquet table, one row an image.

    Columns: split, item, modality, description, sentences, composed_by, image, attributes (a list of field, value,
    confidence, source, flags, probabilities) and trail (JSON). The schema is in the file's metadata under ``nextreid``.

    Raises:
        ImportError: If pyarrow is not installed.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("tables of captions need pyarrow: pip install 'nextreid[captions]'") from error
    rows = [
        {name: getattr(one, name) for name in _PLAIN}
        | {
            "item": portable_name(one.key),
            "description": one.caption,
            "attributes": [
                {"field": name, **asdict(answer), "probabilities": list(answer.probabilities.items())}
                for name, answer in one.answers.items()
            ],
            "trail": json.dumps(one.trail),
        }
        for one in descriptions
    ]
    text, texts = arrow.string(), arrow.list_(arrow.string())
    attribute = {"field": text, "value": text, "confidence": arrow.float64(), "source": text, "flags": texts}
    attribute["probabilities"] = arrow.map_(text, arrow.float64())
    columns = dict.fromkeys(("split", "item", "modality", "description"), text)
    columns |= {"sentences": texts, "composed_by": text, "image": text}
    columns |= {"attributes": arrow.list_(arrow.struct(list(attribute.items()))), "trail": text}
    metadata = {"nextreid": json.dumps({"format": TABLE_FORMAT, "schema": schema.to_dict()})}
    table = arrow.Table.from_pylist(rows, arrow.schema(list(columns.items()), metadata))
    write_whole(Path(path), lambda temporary: pyarrow.parquet.write_table(table, temporary))
    return Path(path)


def read_table(path: str | Path) -> tuple[list[Description], Schema]:
    """Read what `write_table` wrote.

    Raises:
        FileNotFoundError, ValueError, ImportError: As `read_caption_table`.
    """
    rows, metadata = read_caption_table(Path(path))
    try:
        descriptions = [
            Description(
                key=row["item"],
                answers={a.pop("field"): _answer(a) for a in row["attributes"]},
                trail=tuple(json.loads(row["trail"])),
                **{name: row[name] for name in _PLAIN if name != "sentences"},
                sentences=tuple(row["sentences"]),
            )
            for row in rows
        ]
        return descriptions, Schema.from_dict(metadata["schema"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no table of captions ({error})") from error


def _answer(stored: Mapping[str, Any]) -> Answer:
    """Read an answer of a table; one written before there were probabilities has none."""
    probabilities = dict(stored.get("probabilities") or ())
    return Answer(**{**stored, "flags": tuple(stored["flags"]), "probabilities": probabilities})


def write_run(
    path: str | Path,
    schema: Schema,
    models: Sequence[str | Source],
    sampling: Sampling,
    images: Sequence[CaptionRequest],
) -> None:
    """Record what a run asks, so that its answers can be read again without the images."""
    run = {
        "format": _RUN_FORMAT,
        "schema": schema.to_dict(),
        "models": [_recorded(model) for model in models],
        "sampling": asdict(sampling),
        "images": [[image.split, image.key, image.modality, image.digest] for image in images],
    }
    write_text(Path(path), json.dumps(run) + "\n")


def _recorded(model: str | Source) -> str | dict[str, Any]:
    """Return a model as it is recorded: its name alone where it was asked for a text."""
    source = Source(model) if isinstance(model, str) else model
    return source.model if source == Source(source.model) else asdict(source)


def read_run(path: str | Path) -> tuple[Schema, list[Source], Sampling, list[CaptionRequest]]:
    """Read what `write_run` recorded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no run in {path.parent} ({path.name} is missing); create one: nextreid captions run")
    run = read_json(path, limit=2**30)
    try:
        if run["format"] != _RUN_FORMAT:
            raise ValueError(f"format {run['format']}, this nextreid reads {_RUN_FORMAT}")
        places = [(key, modality, split, digest) for split, key, modality, digest in run["images"]]
        if not all(isinstance(text, str) for texts in places for text in texts):
            raise ValueError("images must be lists of texts")
        if not isinstance(run["models"], list):
            raise ValueError("models must be a list")
        named = ({"model": model} if isinstance(model, str) else model for model in run["models"])
        sources = [Source(**_SOURCE("models", model)) for model in named]
        images = [CaptionRequest(key, modality, None, split, digest) for key, modality, split, digest in places]
        return Schema.from_dict(run["schema"]), sources, Sampling(**run["sampling"]), images
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a run ({error})") from error
