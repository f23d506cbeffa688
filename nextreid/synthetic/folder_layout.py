"""A set in memory to the folder tree of RGBNT201, images and captions."""

import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.sample import ReIDDataset, Sample

_FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}


def write_tree(dataset: ReIDDataset, root: str | Path) -> Path:
    """Write a set as RGBNT201 is published, for any reader of that tree.

    Images go to ``root/{train_171,test}/{RGB,NI,TI}/KEY`` and captions to ``root/{train,test}_{RGB,NI,TI}.json``;
    ``load_dataset("rgbnt201", root, captions=root)`` reads both back. Images are JPEG of quality 95 where the key
    ends so, hence a little lossy.

    Args:
        dataset: Persons whose images are arrays and whose keys are file names, such as `synthetic_persons` builds.
        root: Folder to fill; made if missing.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder already holds such a tree.
        ValueError: If a modality has no folder in that tree, or an image is no array.
    """
    root = Path(root)
    if unknown := [modality for modality in dataset.modalities if modality not in _FOLDERS]:
        raise ValueError(f"the RGBNT201 tree has folders for {sorted(_FOLDERS)}, not for {unknown}")
    for folder in ("train_171", "test"):
        if (root / folder).exists():
            raise FileExistsError(f"{root / folder} exists already; choose an empty folder, old images would mix in")
    splits = (("train", "train_171", dataset.train), ("test", "test", dataset.gallery))
    for split, folder, samples in splits:
        for position, modality in enumerate(dataset.modalities):
            target = root / folder / _FOLDERS[modality]
            target.mkdir(parents=True)
            for sample in samples:
                _write_image(target / sample.key, sample, position)
            if any(sample.captions for sample in samples):
                _write_captions(root / f"{split}_{_FOLDERS[modality]}.json", samples, position)
    return root


def _write_image(path: Path, sample: Sample, position: int) -> None:
    image = sample.images[position]
    if image is None:
        return
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image {position} of sample {sample.key!r} is no array; only a set in memory can be written")
    encoded = BytesIO()
    if path.suffix.lower() in (".jpg", ".jpeg"):
        Image.fromarray(image).save(encoded, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(image).save(encoded, "PNG")
    _write(path, encoded.getvalue())


def _write_captions(path: Path, samples: Sequence[Sample], position: int) -> None:
    entries = [
        {"item": sample.key, "description": " ".join(sample.captions[position])}
        for sample in samples
        if sample.captions and sample.captions[position]
    ]
    _write(path, json.dumps(entries, indent=1).encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
