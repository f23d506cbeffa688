"""Images to a file of embeddings and a table of what they belong to."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import nn

from nextreid._files import check_out_folder, user_path, write_csv, write_tensors
from nextreid.data import Sample, drop_unreadable
from nextreid.data.image import OnError
from nextreid.data.manifest import read_manifest
from nextreid.data.pattern import read_folder
from nextreid.data.sample import repeated_keys
from nextreid.models import as_reid_model

from .ablations import Condition
from .distributed import on_main
from .embedding import EmbedOptions, embed_samples, reads_text

_logger = logging.getLogger(__name__)

EMBEDDINGS = "embeddings.safetensors"
INDEX = "index.csv"


@dataclass(frozen=True)
class Extraction:
    """Where embeddings lie.

    Attributes:
        embeddings: Safetensors file with ``embedding`` ``(n, F)`` float32; its header says how it was made.
        index: CSV file with one line for each row of it: row, key, pid, camid, sceneid, present.
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
) -> Extraction:
    """Embed images and write the embeddings with an index.

    Several processes (``torchrun``) share the embedding, and the first writes.

    Args:
        model: A model of the zoo, or a module that `nextreid.adapt` takes.
        source: Samples, a manifest (CSV), or a folder with one folder of images for each modality.
        out: Folder to write ``embeddings.safetensors`` and ``index.csv`` into; new, empty, or one of embeddings.
        text: Whether captions are read, where there are some and the model reads them.
        normalize: Whether each embedding has length 1; the header says so.
        overwrite: Whether embeddings that lie in `out` already may be replaced.
        on_error: What to do about images that cannot be read: ``"raise"`` at the first one, or look at all before
            and ``"skip"`` their samples or ``"mask"`` those modalities; what was done is logged.
        options: Batch size, device, loading processes, the model's embedding.

    Returns:
        The two files and the shape of what is in them.

    Raises:
        FileNotFoundError: The source does not exist.
        FileExistsError: `out` has embeddings already and `overwrite` is False, or other files.
        ValueError: There is no sample, a sample has no image, an image cannot be read, or two samples share a key.
    """
    model, folder = as_reid_model(model), user_path(out)
    on_main(lambda: check_extraction(folder, overwrite))
    samples = read_samples(source, tuple(model.modalities)) if isinstance(source, str | Path) else list(source)
    if on_error != "raise":
        kept, notes = drop_unreadable({"samples": samples}, model.modalities, on_error)
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
    metadata |= {"embedding": options.embedding} if options.embedding else {}
    tensors = {"embedding": F.normalize(embedding, dim=1) if normalize else embedding}

    def write() -> None:
        columns = ("row", "key", "pid", "camid", "sceneid", "present")
        write_csv(folder / INDEX, columns, _index_rows(samples, model.modalities))
        # The embeddings come last: where they are, the index is.
        write_tensors(folder / EMBEDDINGS, tensors, metadata)

    on_main(write)
    return Extraction(folder / EMBEDDINGS, folder / INDEX, *embedding.shape)


def check_extraction(folder: Path, overwrite: bool) -> None:
    """Raise OSError if embeddings cannot be written there, or there are some and `overwrite` is False."""
    check_out_folder(folder, (EMBEDDINGS, INDEX))
    if (folder / EMBEDDINGS).exists() and not overwrite:
        raise FileExistsError(
            f"{folder / EMBEDDINGS} exists; take another folder, or replace them (overwrite=True, --overwrite)"
        )


def read_samples(source: str | Path, modalities: tuple[str, ...]) -> Sequence[Sample]:
    """Read a folder or a manifest; raise FileNotFoundError if there is neither."""
    path = user_path(source)
    if path.is_dir():
        return read_folder(path, modalities)
    if not path.is_file():
        raise FileNotFoundError(f"no folder and no manifest at {path}")
    return read_manifest(path, modalities)


def _index_rows(samples: Sequence[Sample], modalities: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for row, sample in enumerate(samples):
        present = "+".join(m for m, image in zip(modalities, sample.images, strict=True) if image is not None)
        yield row, sample.key, sample.pid, sample.camid, sample.sceneid, present
