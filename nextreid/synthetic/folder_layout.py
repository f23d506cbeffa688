"""A dataset in memory to the folders of RGBNT201, images and captions."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from nextreid._files import write_json, write_whole

from ..data.sample import ReIDDataset, Sample

_FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}


def write_folder_layout(dataset: ReIDDataset, root: str | Path) -> Path:
    """Write a dataset in the folder layout of RGBNT201, for any reader of it.

    Images go to ``root/{train_171,test}/{RGB,NI,TI}/KEY`` and captions to ``root/{train,test}_{RGB,NI,TI}.json``;
    ``load_dataset("rgbnt201", root, captions=root)`` reads both back. Images are JPEG of quality 95 where the key
    ends so, hence a little lossy.

    Args:
        dataset: Persons whose images are arrays and whose keys are file names, such as `synthetic_persons` renders.
        root: Folder to fill; created if missing.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder already holds images in that layout.
        ValueError: If a modality has no folder in that layout, or an image is no array.
    """
    root = Path(root)
    if unknown := [modality for modality in dataset.modalities if modality not in _FOLDERS]:
        raise ValueError(f"the RGBNT201 layout has folders for {sorted(_FOLDERS)}, not for {unknown}")
    for folder in ("train_171", "test"):
        if (root / folder).exists():
            raise FileExistsError(f"{root / folder} exists already; choose an empty folder, old images would mix in")
    for split, folder, samples in (("train", "train_171", dataset.train), ("test", "test", dataset.gallery)):
        for m, modality in enumerate(dataset.modalities):
            target = root / folder / _FOLDERS[modality]
            target.mkdir(parents=True)
            for sample in samples:
                _write_image(target / sample.key, sample, m)
            if any(sample.captions for sample in samples):
                entries = [
                    {"item": sample.key, "description": " ".join(sample.captions[m])}
                    for sample in samples
                    if sample.captions and sample.captions[m]
                ]
                write_json(root / f"{split}_{_FOLDERS[modality]}.json", entries)
    return root


def _write_image(path: Path, sample: Sample, m: int) -> None:
    array = sample.images[m]
    if array is None:
        return
    if not isinstance(array, np.ndarray):
        raise ValueError(f"image {m} of sample {sample.key!r} is no array; only a dataset in memory can be written")
    jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    options = {"format": "JPEG", "quality": 95, "subsampling": 0} if jpeg else {"format": "PNG"}
    write_whole(path, partial(Image.fromarray(array).save, **options))
