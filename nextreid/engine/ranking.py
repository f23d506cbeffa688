"""Which queries to look at and what stands nearest to them: what figures and the browser show of a ranking."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from nextreid._names import show, unknown
from nextreid.data import ReIDDataset, Sample, seeded_rng
from nextreid.models import ReIDModel
from nextreid.retrieval import Protocol, RetrievalResult, rank, top_k
from nextreid.retrieval.protocol import SameIdentity

from .ablations import Condition
from .embedding import EmbedOptions, check_visible, embed_conditions
from .evaluation import identities, unique_samples

CHOICES = ("worst", "typical", "best", "differ", "random")
"""Words that choose queries: by the average precision over the models, by how far they differ in it, or at random."""


class Ranked(NamedTuple):
    """What one model makes of a dataset: embeddings of query and gallery, and the metrics of each query."""

    query: Tensor
    gallery: Tensor
    result: RetrievalResult

    @property
    def ap(self) -> np.ndarray:
        """Each query's average precision, nan where it has no match."""
        return self.result.ap


class Nearest(NamedTuple):
    """The K gallery entries nearest to one query, each ``(K,)``: places (-1 where there are fewer), matches, cosines
    and which the protocol ignores.
    """

    places: np.ndarray
    matches: np.ndarray
    scores: np.ndarray
    ignored: np.ndarray


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


def rank_queries(
    model: ReIDModel, dataset: ReIDDataset, rule: Protocol, conditions: Sequence[Condition], options: EmbedOptions
) -> Ranked:
    """Embed query and gallery and rank.

    Args:
        model: The model.
        dataset: What it ranks, as `checked` returns it.
        rule: The protocol.
        conditions: Of query and gallery, as `of_query_and_gallery` returns them.
        options: How samples are embedded.

    Raises:
        ValueError: If a sample shows no modality under its condition.
    """
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
    return Ranked(query, gallery, rank(query, gallery, *ids, rule, query_keys=keys[0], gallery_keys=keys[1]))


def nearest(
    ranked: Ranked, dataset: ReIDDataset, rule: Protocol, at: int, top: int, with_ignored: bool = False
) -> Nearest:
    """Find what stands nearest to one query.

    Args:
        ranked: What `rank_queries` returned.
        dataset: What was ranked.
        rule: The protocol.
        at: The query's place.
        top: Gallery entries.
        with_ignored: Whether those that the protocol ignores stay in the list.
    """
    ids = identities([dataset.query[at]]), identities(dataset.gallery)
    keys = [dataset.query[at].key], [sample.key for sample in dataset.gallery]
    asked, of_asked = (replace(rule, exclude="none"), (None, None)) if with_ignored else (rule, keys)
    vectors = ranked.query[at : at + 1], ranked.gallery
    indices, matches = top_k(*vectors, *ids, asked, top, query_keys=of_asked[0], gallery_keys=of_asked[1])
    index, _, is_ignored = SameIdentity(*ids, rule, *keys).entries(0, 1)
    ignored = np.isin(indices, index[is_ignored]) & (indices >= 0)
    pair = F.normalize(ranked.query[at], dim=0), F.normalize(ranked.gallery[indices[0].clip(min=0)], dim=1)
    return Nearest(indices[0], matches[0] & ~ignored[0], (pair[1] @ pair[0]).numpy(), ignored[0])


def _first_of_each(samples: Sequence[Sample], places: Sequence[int]) -> list[int]:
    """The first place of each identity."""
    firsts: dict[int, int] = {}
    for place in places:
        firsts.setdefault(samples[place].pid, place)
    return list(firsts.values())
