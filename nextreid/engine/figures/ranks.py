"""Rank lists of one model or several."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, compress

import numpy as np
from PIL import Image
from torch import nn

from nextreid.data import ReIDDataset, Sample
from nextreid.data.image import OnError
from nextreid.models import as_reid_model
from nextreid.retrieval import Protocol, get_protocol
from nextreid.viz import rank_list_image

from ..ablations import hide_modalities
from ..embedding import EmbedOptions
from ..evaluation import checked, of_query_and_gallery
from ..ranking import choose_queries, nearest, rank_queries


def rank_lists(
    models: Mapping[str, nn.Module],
    dataset: ReIDDataset,
    *,
    queries: Sequence[str] = ("worst", "typical", "best"),
    count: int = 2,
    top: int = 10,
    protocol: str | Protocol | None = None,
    text: bool = True,
    missing: Sequence[str] = (),
    ignored: bool = False,
    seed: int = 0,
    on_error: OnError = "raise",
    allow_leak: bool = False,
    image_size: int = 144,
    options: EmbedOptions = EmbedOptions(),
) -> Image.Image:
    """Draw queries with their nearest gallery entries, those of several models under each other (NEXT, Fig. 13 to 16).

    Args:
        models: Models by the names to write beside them.
        dataset: Query and gallery come from here.
        queries: Words of `ranking.CHOICES`, or keys of queries.
        count: Queries for each word, of different identities as far as there are.
        top: Gallery entries for each query.
        protocol: As for `evaluate`.
        text: Whether captions are read.
        missing: Modalities to hide.
        ignored: Whether entries that the protocol ignores are drawn too, without a rank.
        seed: Of the random queries.
        on_error: What to do about images that cannot be read, see `evaluate`.
        allow_leak: Whether to go on when a model was trained on identities of this test set.
        image_size: Longer side of one drawn image, in pixels.
        options: How samples are embedded.

    Returns:
        An RGB image.

    Raises:
        ValueError: If there is no model, a query is unknown, or as `evaluate`.
    """
    if not models:
        raise ValueError("there is no model to draw the rank lists of")
    if count < 1 or top < 1:
        raise ValueError(f"count and top must be at least 1, got {count} and {top}")
    rule = get_protocol(protocol or dataset.protocol)
    condition = hide_modalities(dataset.modalities, missing, text)
    for model in models.values():
        dataset = checked(as_reid_model(model), dataset, on_error, allow_leak)
    conditions = of_query_and_gallery(rule, dataset.modalities, condition)
    ranked = {name: rank_queries(as_reid_model(m), dataset, rule, conditions, options) for name, m in models.items()}
    chosen = choose_queries(dataset.query, np.stack([each.ap for each in ranked.values()]), queries, count, seed)
    both = (dataset.query, dataset.gallery)
    there = [any(s.images[i] is not None for s in chain(*both)) for i in range(len(dataset.modalities))]
    shown = [
        [_only(sample, of_split.shows(dataset.modalities), there) for sample in split]
        for split, of_split in zip(both, conditions, strict=True)
    ]
    rows, titles = [], []
    for at, word in chosen:
        for name, each in ranked.items():
            rows.append((at, *nearest(each, dataset, rule, at, top, ignored)))
            of_model = f"{name}: " if len(ranked) > 1 else ""
            found = f"average precision {100 * each.ap[at]:.1f} %"
            titles.append(word + of_model + ("no match in the gallery" if np.isnan(each.ap[at]) else found))
    return rank_list_image(
        [shown[0][row[0]] for row in rows],
        shown[1],
        np.stack([row[1] for row in rows]),
        np.stack([row[2] for row in rows]),
        tuple(compress(dataset.modalities, there)),
        scores=np.stack([row[3] for row in rows]),
        ignored=np.stack([row[4] for row in rows]) if ignored else None,
        titles=titles,
        label_names=dataset.label_names,
        image_size=image_size,
    )


def _only(sample: Sample, shows: Sequence[bool], there: Sequence[bool]) -> Sample:
    """The sample with the images that are shown, of modalities that some sample has."""
    images = (image if show else None for image, show in zip(sample.images, shows, strict=True))
    return replace(sample, images=tuple(compress(images, there)), captions=tuple(compress(sample.captions, there)))
