"""Images to a file of embeddings and a table of what they belong to."""

import csv
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nextreid._files import (
    check_out_folder,
    read_tensors,
    unescape_cell,
    user_path,
    write_csv,
    write_tensors,
    write_together,
)
from nextreid._progress import progress_counter
from nextreid.data import Sample, drop_unreadable
from nextreid.data.captions import add_captions, caption_home
from nextreid.data.image import OnError, Window
from nextreid.data.labels import LABELS
from nextreid.data.manifest import manifest_splits
from nextreid.data.pattern import pattern_splits, read_folder
from nextreid.data.sample import LabelNames, repeated_keys
from nextreid.models import as_reid_model

from .ablations import Condition
from .distributed import is_main, on_main
from .embedding import EmbedOptions, embed_samples, reads_text
from .provenance import warn_domain, weights_digest

_logger = logging.getLogger(__name__)

EMBEDDINGS = "embeddings.safetensors"
INDEX = "index.csv"


@dataclass(frozen=True)
class Extraction:
    r"""Where embeddings lie.

    Attributes:
        embeddings: Safetensors file with ``embedding`` ``(n, F)`` float32; its header says how it was made.
        index: CSV file with one line for each row of it: row, key, pid, camid, sceneid, present. Bytes of a key that
            are not UTF-8 stand there as ``\udce9``. Labels are as the files name them, unknown ones -1.
        samples: Number of rows n.
        dim: Width F.
    """

    embeddings: Path
    index: Path
    samples: int
    dim: int


def extract(
    model: nn.Module,
    source: Sequence[Sample] | str | Path,
    out: str | Path,
    *,
    text: bool = True,
    normalize: bool = True,
    overwrite: bool = False,
    on_error: OnError = "raise",
    options: EmbedOptions = EmbedOptions(),
    label_names: LabelNames | None = None,
) -> Extraction:
    """Embed images and write the embeddings with an index.

    Several processes (``torchrun``) share the embedding, and the first writes. The two files are replaced together:
    there is never the index of one extraction beside the embeddings of another. `load_embeddings` reads them.

    Args:
        model: A model of the zoo, or a module that `nextreid.adapt` takes.
        source: Samples, or a manifest or folder as `read_samples` takes them.
        out: Folder to write ``embeddings.safetensors`` and ``index.csv`` into; new, empty, or one of embeddings.
        text: Whether captions are read, where there are some and the model reads them.
        normalize: Whether each embedding has length 1; the header says so.
        overwrite: Whether embeddings that lie in `out` already may be replaced.
        on_error: What to do about images that cannot be read: ``"raise"`` at the first one, or look at all before
            and ``"skip"`` their samples or ``"mask"`` those modalities; what was done is logged.
        options: Batch size, device, loading processes, the model's embedding.
        label_names: What files call the labels of samples that are given, such as ``dataset.label_names``.

    Returns:
        The two files and the shape of what is in them.

    Raises:
        FileNotFoundError: The source does not exist.
        FileExistsError: `out` has embeddings already and `overwrite` is False, or other files.
        ValueError: There is no sample, a sample has no image, an image cannot be read, or two samples share a key.
    """
    model, folder = as_reid_model(model), user_path(out)
    on_main(lambda: check_extraction(folder, overwrite))
    if is_main():
        warn_domain(model)
    if isinstance(source, str | Path):
        samples, label_names = read_samples(source, tuple(model.modalities))
    else:
        samples = list(source)
    if on_error != "raise":
        with progress_counter("look at images", "sample", shown=options.progress and is_main()) as count:
            kept, notes = drop_unreadable({"samples": samples}, model.modalities, on_error, count)
        samples = list(kept["samples"])
        for note in notes:
            _logger.warning("%s", note)
    keys = [sample.key for sample in samples]
    if repeated := repeated_keys(keys):
        raise ValueError(f"key {repeated[0]!r} names more than one sample; make keys unique")
    text = reads_text(model, samples, Condition(text))
    embedding = embed_samples(model, samples, Condition(text), options)
    metadata = {"model": model.pretrained_cfg.architecture, "modalities": model.modalities, "samples": len(samples)}
    metadata |= {"text": text, "normalized": normalize, "after_neck": options.after_neck}
    metadata |= {"digest": weights_digest(model)}
    metadata |= {"embedding": options.embedding} if options.embedding else {}
    tensors = {"embedding": F.normalize(embedding, dim=1) if normalize else embedding}

    def write() -> None:
        with write_together(folder, (INDEX, EMBEDDINGS)) as fresh:
            columns = ("row", "key", *LABELS, "present")
            write_csv(fresh / INDEX, columns, _index_rows(samples, model.modalities, label_names or {}))
            write_tensors(fresh / EMBEDDINGS, tensors, {**metadata, "index_sha256": _sha256(fresh / INDEX)})

    on_main(write)
    return Extraction(folder / EMBEDDINGS, folder / INDEX, *embedding.shape)


def load_embeddings(folder: str | Path) -> tuple[Tensor, list[dict[str, str]], dict[str, Any]]:
    """Read what `extract` wrote.

    Returns:
        The embeddings ``(n, F)``, the n rows of the index, and how they were made.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or was edited, or they are not of the same extraction.

    Example:
        >>> embeddings, rows, made = load_embeddings("out")  # doctest: +SKIP
    """
    embeddings, rows, metadata = open_embeddings(folder)
    return embeddings, list(rows()), metadata


def open_embeddings(folder: str | Path) -> tuple[Tensor, Callable[[], Iterator[dict[str, str]]], dict[str, Any]]:
    """Read what `extract` wrote as `load_embeddings` does; the rows of the index come one by one, from a function."""
    embeddings, index = user_path(folder) / EMBEDDINGS, user_path(folder) / INDEX
    tensors, metadata = read_tensors(embeddings)
    if "index_sha256" not in metadata:
        raise ValueError(f"{embeddings} was not written by extract")
    if not index.is_file():
        raise FileNotFoundError(f"no file {index}: it belongs to {embeddings}")
    if metadata["index_sha256"] != _sha256(index):
        raise ValueError(f"{index} was edited or damaged, or belongs to another extraction than {embeddings}")

    def rows() -> Iterator[dict[str, str]]:
        with index.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield {name: unescape_cell(value) for name, value in row.items()}

    return tensors["embedding"], rows, metadata


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_extraction(folder: Path, overwrite: bool) -> None:
    """Raise OSError if embeddings cannot be written there, or there are some and `overwrite` is False."""
    check_out_folder(folder, (EMBEDDINGS, INDEX))
    if (folder / EMBEDDINGS).exists() and not overwrite:
        raise FileExistsError(
            f"{folder / EMBEDDINGS} exists; take another folder, or replace them (overwrite=True, --overwrite)"
        )


def read_samples(
    source: str | Path,
    modalities: Sequence[str],
    *,
    pattern: str | None = None,
    window: Mapping[str, Window] | None = None,
    captions: str | Path | None = None,
) -> tuple[list[Sample], LabelNames]:
    """Read images to embed, with labels and captions where there are some.

    Args:
        source: A manifest (see `read_manifest`); or a folder with a folder of images for each modality, at any depth;
            or any folder, with a `pattern`.
        modalities: Order of the images.
        pattern: How the files of the folder are named; see `read_pattern`.
        window: Windows for images of more than 8 bits, by modality; see `ImageFile`.
        captions: What ``nextreid captions run`` wrote for these images; takes the place of a manifest's own captions.

    Returns:
        The samples, and what the files call their labels.

    Raises:
        FileNotFoundError: If there is neither a folder nor a file, or no image or no caption file where it should be.
        ValueError: If a pattern is given for a file, nothing fits it, or the manifest or the captions are wrong.
    """
    path = user_path(source)
    if not path.exists():
        raise FileNotFoundError(f"no folder and no manifest at {path}")
    if pattern is not None and not path.is_dir():
        raise ValueError(f"a pattern is for a folder, and {path} is a file")
    home = caption_home(captions, (), modalities, splits=("all",))
    names: LabelNames = {}
    notes: list[str] = []
    if not path.is_dir():
        _, splits, names = manifest_splits(path, modalities, window, anywhere=False, whole=True)
        samples = splits[""]
    elif pattern is not None:
        _, splits, names, notes = pattern_splits(path, pattern, modalities, window)
        samples = sorted((sample for found in splits.values() for sample in found), key=lambda sample: sample.key)
    else:
        samples = read_folder(path, modalities, window, nested=True)
    samples = add_captions(samples, home, "all", modalities, notes)
    for note in notes:
        _logger.warning("%s: %s", path, note)
    return samples, names


def _index_rows(
    samples: Sequence[Sample], modalities: Sequence[str], label_names: LabelNames
) -> Iterator[tuple[Any, ...]]:
    for row, sample in enumerate(samples):
        present = "+".join(m for m, image in zip(modalities, sample.images, strict=True) if image is not None)
        labels = (label_names.get(field, {}).get(value := getattr(sample, field), value) for field in LABELS)
        yield row, sample.key, *labels, present
