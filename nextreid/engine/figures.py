"""Figures of a model on a dataset: rank lists of one model or several, and what its experts sample."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from nextreid._names import show, unknown
from nextreid.data import ReIDDataset, Sample, SampleDataset, collate, seeded_rng
from nextreid.data.image import OnError
from nextreid.models import ReIDModel, as_reid_model
from nextreid.retrieval import Protocol, get_protocol, rank, top_k
from nextreid.retrieval.protocol import SameIdentity
from nextreid.viz import mask_image, rank_list_image

from .ablations import Condition, hide_modalities
from .embedding import EmbedOptions, check_visible, embed_conditions, eval_transform
from .evaluation import checked, identities, of_query_and_gallery, unique_samples

CHOICES = ("worst", "typical", "best", "differ", "random")
"""Words that choose queries: by the average precision over the models, by how far they differ in it, or at random."""


class _Ranked(NamedTuple):
    """What one model makes of a dataset: embeddings of query and gallery, and each query's average precision."""

    query: Tensor
    gallery: Tensor
    ap: np.ndarray


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
        queries: Words of `CHOICES`, or keys of queries.
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
    ranked = {name: _rank(as_reid_model(m), dataset, rule, conditions, options) for name, m in models.items()}
    chosen = choose_queries(dataset.query, np.stack([each.ap for each in ranked.values()]), queries, count, seed)
    shown = [
        [_only(sample, of_split.shows(dataset.modalities)) for sample in split]
        for split, of_split in zip((dataset.query, dataset.gallery), conditions, strict=True)
    ]
    rows, titles = [], []
    for at, word in chosen:
        for name, each in ranked.items():
            rows.append((at, *_nearest(each, dataset, rule, at, top, ignored)))
            of_model = f"{name}: " if len(ranked) > 1 else ""
            found = f"average precision {100 * each.ap[at]:.1f} %"
            titles.append(word + of_model + ("no match in the gallery" if np.isnan(each.ap[at]) else found))
    return rank_list_image(
        [shown[0][row[0]] for row in rows],
        shown[1],
        np.stack([row[1] for row in rows]),
        np.stack([row[2] for row in rows]),
        dataset.modalities,
        scores=np.stack([row[3] for row in rows]),
        ignored=np.stack([row[4] for row in rows]) if ignored else None,
        titles=titles,
        label_names=dataset.label_names,
        image_size=image_size,
    )


def choose_queries(
    samples: Sequence[Sample], ap: np.ndarray, queries: Sequence[str], count: int, seed: int = 0
) -> list[tuple[int, str]]:
    """Choose queries by words or keys.

    Args:
        samples: Q queries.
        ap: Their average precision ``(models, Q)``, nan where a query has no match.
        queries: Words of `CHOICES`, or keys.
        count: Queries for each word.
        seed: Of the random ones.

    Returns:
        Places in `samples`, each once, with a beginning for its title, such as ``"worst query; "``.

    Raises:
        ValueError: If a word or key is unknown, or a word that compares is given and no query has a match.
    """
    by_key = {sample.key: place for place, sample in enumerate(samples)}
    valid = np.flatnonzero(~np.isnan(ap).any(axis=0))
    mean = ap.mean(axis=0)
    chosen: dict[int, str] = {}
    seen: set[int] = set()
    for word in queries:
        if word in by_key and word not in CHOICES:
            chosen[by_key[word]] = f"query {word}; "
            continue
        if word not in CHOICES:
            raise ValueError(
                f"{unknown('choice of queries', word, CHOICES)}, or the key of a query, such as {show(samples[0].key)}"
            )
        if word != "random" and not len(valid):
            raise ValueError(f"no query has a match to find, so that none is {word}; choose 'random' or keys")
        order: np.ndarray
        if word == "random":
            order = seeded_rng("queries", seed).permutation(len(samples))
        elif word == "typical":
            order = valid[np.argsort(np.abs(mean[valid] - mean[valid].mean()), kind="stable")]
        elif word == "differ":
            order = valid[np.argsort(-np.ptp(ap[:, valid], axis=0), kind="stable")]
        else:
            order = valid[np.argsort(mean[valid] if word == "worst" else -mean[valid], kind="stable")]
        left = [int(place) for place in order if int(place) not in chosen]
        fresh = [p for p in _first_of_each(samples, left) if samples[p].pid not in seen]
        for place in list(dict.fromkeys([*fresh, *left]))[:count]:
            seen.add(samples[place].pid)
            chosen[place] = f"{word} query; " if word != "differ" else "models differ; "
    return list(chosen.items())


def expert_masks(
    model: nn.Module, dataset: ReIDDataset, samples: Sequence[Sample], *, text: bool = True, image_size: int = 160
) -> Image.Image:
    """Draw what each semantic expert samples of some samples, and the captions it read (NEXT, Fig. 5 and 11).

    Args:
        model: A model whose ``forward_features`` gives ``mask`` and ``gamma``, ``(B, E_t, M, N)``.
        dataset: What the samples are of.
        samples: Those to draw.
        text: Whether captions are read.
        image_size: Longer side of one drawn image, in pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: If the model has no semantic experts.
    """
    model = as_reid_model(model)
    check_visible(samples, model.modalities, Condition(text))
    source = SampleDataset(samples, eval_transform(model), model.modalities)
    batch = collate([source[i] for i in range(len(samples))])
    was_training = model.training
    with torch.no_grad():
        captions = batch.captions if text and model.uses_text else None
        features = model.eval().forward_features(batch.images, captions, batch.present, batch.camid)
    model.train(was_training)
    if not {"mask", "gamma"} <= features.keys() or features["mask"].dim() != 4:
        raise ValueError(f"{type(model).__name__} has no semantic experts: it gives {', '.join(features)}, and no mask")
    mask, gamma = (features[name].unflatten(-1, model.image_tower.grid_size).numpy() for name in ("mask", "gamma"))
    drawn = samples if captions is not None else [replace(sample, captions=()) for sample in samples]
    return mask_image(drawn, mask, model.modalities, gamma, label_names=dataset.label_names, image_size=image_size)


def _rank(
    model: ReIDModel, dataset: ReIDDataset, rule: Protocol, conditions: Sequence[Condition], options: EmbedOptions
) -> _Ranked:
    samples, place_of = unique_samples(dataset)
    splits = (dataset.query, dataset.gallery)
    for split, condition in zip(splits, conditions, strict=True):
        check_visible(split, dataset.modalities, condition)
    options = replace(options, after_neck=rule.feature == "after_neck")
    different = list(dict.fromkeys(conditions))
    embedded = dict(zip(different, embed_conditions(model, samples, different, options), strict=True))
    parts = [
        embedded[condition][[place_of[sample.key, sample.captions] for sample in split]]
        for split, condition in zip(splits, conditions, strict=True)
    ]
    if rule.query_modalities != rule.gallery_modalities:
        parts = [model.average_modalities(part) for part in parts]
    query, gallery = parts
    keys = [[sample.key for sample in split] for split in splits]
    ids = identities(dataset.query), identities(dataset.gallery)
    return _Ranked(query, gallery, rank(query, gallery, *ids, rule, query_keys=keys[0], gallery_keys=keys[1]).ap)


def _nearest(
    ranked: _Ranked, dataset: ReIDDataset, rule: Protocol, at: int, top: int, with_ignored: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gallery indices, matches, scores and which are ignored, each ``(top,)``, of one query."""
    ids = identities([dataset.query[at]]), identities(dataset.gallery)
    keys = [dataset.query[at].key], [sample.key for sample in dataset.gallery]
    asked, of_asked = (replace(rule, exclude="none"), (None, None)) if with_ignored else (rule, keys)
    vectors = ranked.query[at : at + 1], ranked.gallery
    indices, matches = top_k(*vectors, *ids, asked, top, query_keys=of_asked[0], gallery_keys=of_asked[1])
    index, _, is_ignored = SameIdentity(*ids, rule, *keys).entries(0, 1)
    ignored = np.isin(indices, index[is_ignored]) & (indices >= 0)
    pair = F.normalize(ranked.query[at], dim=0), F.normalize(ranked.gallery[indices[0].clip(min=0)], dim=1)
    return indices[0], matches[0] & ~ignored[0], (pair[1] @ pair[0]).numpy(), ignored[0]


def _only(sample: Sample, shows: Sequence[bool]) -> Sample:
    """The sample with the images that are shown."""
    images = tuple(image if show else None for image, show in zip(sample.images, shows, strict=True))
    return replace(sample, images=images)


def _first_of_each(samples: Sequence[Sample], places: Sequence[int]) -> list[int]:
    """The first place of each identity."""
    firsts: dict[int, int] = {}
    for place in places:
        firsts.setdefault(samples[place].pid, place)
    return list(firsts.values())
