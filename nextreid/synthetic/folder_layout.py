"""A dataset in memory to the folders of RGBNT201, images and captions."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from nextreid._files import write_json, write_whole

from ..data.captions import MODALITY_CODES
from ..data.sample import ReIDDataset


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
    if unknown := [modality for modality in dataset.modalities if modality not in MODALITY_CODES]:
        raise ValueError(f"the RGBNT201 layout has folders for {sorted(MODALITY_CODES)}, not for {unknown}")
    for folder in ("train_171", "test"):
        if (root / folder).exists():
            raise FileExistsError(f"{root / folder} exists already; choose an empty folder, old images would mix in")
    for split, folder, samples in (("train", "train_171", dataset.train), ("test", "test", dataset.gallery)):
        for m, modality in enumerate(dataset.modalities):
            code = MODALITY_CODES[modality]
            target = root / folder / code
            target.mkdir(parents=True)
            for sample in samples:
                image = sample.images[m]
                if isinstance(image, np.ndarray):
                    jpeg = target.joinpath(sample.key).suffix.lower() in (".jpg", ".jpeg")
                    options = {"format": "JPEG", "quality": 95, "subsampling": 0} if jpeg else {"format": "PNG"}
                    write_whole(target / sample.key, partial(Image.fromarray(image).save, **options))
                elif image is not None:
                    raise ValueError(
                        f"{modality} image of {sample.key!r} is no array; only images in memory are written"
                    )
            captions = {sample.key: " ".join(sample.captions[m]) for sample in samples if sample.captions}
            if captions:
                entries = [{"item": key, "description": text} for key, text in captions.items() if text]
                write_json(root / f"{split}_{code}.json", entries)
    return root
