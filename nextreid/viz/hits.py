"""What a gallery found, as a rank list."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nextreid.data.image import Window, check_windows, through_window
from nextreid.data.sample import Sample
from nextreid.retrieval import Entry, Hit

from .rank_list import rank_list_image


def hits_image(
    hits: Sequence[Sequence[Hit]],
    modalities: Sequence[str],
    *,
    queries: Sequence[Mapping[str, Any]] = (),
    titles: Sequence[str] = (),
    window: Mapping[str, Window] | None = None,
    image_size: int = 144,
) -> Image.Image:
    """Draw the answers to one or several searches of a gallery, with identity, camera and score below each.

    An image whose file is no longer where it was added from is drawn as missing.

    Args:
        hits: For each query its `Hit`, nearest first.
        modalities: Names, in the gallery's order.
        queries: The images of each query by modality, files or ``(H, W, 3)`` arrays; empty for searches by words.
        titles: A line above each query.
        window: For images of more than 8 bits, by modality; see `ImageFile`.
        image_size: Longer side of one drawn image, in pixels.

    Raises:
        ValueError: No image at all is there to be drawn, or nothing was found.
    """
    if not any(hits):
        raise ValueError("nothing was found that could be drawn")
    windows = check_windows(window, modalities)

    def images(files: Mapping[str, Any]) -> tuple[Any, ...]:
        found = []
        for modality in modalities:
            file = files.get(modality)
            if isinstance(file, str | Path):
                file = through_window(Path(file), windows.get(modality)) if Path(file).is_file() else None
            found.append(file)
        return tuple(found)

    entries = list({hit.entry.key: hit.entry for row in hits for hit in row}.values())
    names = {
        field: sorted({value for entry in entries if (value := getattr(entry, attribute)) is not None})
        for field, attribute in (("pid", "identity"), ("camid", "camera"))
    }

    def sample(entry: Entry) -> Sample:
        pid, camid = (
            names[field].index(value) if value is not None else -1
            for field, value in (("pid", entry.identity), ("camid", entry.camera))
        )
        return Sample(entry.key, pid, camid, -1, images(entry.source))

    place = {entry.key: i for i, entry in enumerate(entries)}
    width = max(map(len, hits))
    indices = np.full((len(hits), width), -1)
    scores = np.zeros((len(hits), width))
    for i, row in enumerate(hits):
        indices[i, : len(row)] = [place[hit.entry.key] for hit in row]
        scores[i, : len(row)] = [hit.score or 0 for hit in row]
    given = queries or [{}] * len(hits)
    return rank_list_image(
        [Sample("", -1, -1, -1, images(files)) for files in given],
        [sample(entry) for entry in entries],
        indices,
        np.zeros(indices.shape, bool),
        modalities,
        scores=scores if any(hit.score is not None for row in hits for hit in row) else None,
        titles=titles,
        label_names={field: dict(enumerate(called)) for field, called in names.items()},
        image_size=image_size,
    )
