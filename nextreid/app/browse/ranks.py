"""What models make of datasets: ranked once for each condition, then filtered, sorted and looked at."""

import io
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F

from nextreid._names import unknown
from nextreid.data import ReIDDataset, Sample
from nextreid.data.image import ImageError, OnError
from nextreid.engine.ablations import hide_modalities
from nextreid.engine.embedding import EmbedOptions
from nextreid.engine.evaluation import checked, identities, of_query_and_gallery
from nextreid.engine.figures import expert_masks
from nextreid.engine.ranking import Ranked, rank_queries
from nextreid.models import ReIDModel, create_model
from nextreid.retrieval import METRICS, Comparison, compare, get_protocol, top_k

from .jobs import Jobs, Progress
from .library import BrowsedDataset, Library, Model

TOP = 50  # gallery entries of a query that are kept
ORDERS = ("worst", "best", "key")
_MODELS = 3  # that stay loaded
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankOptions:
    """How models rank.

    Attributes:
        embed: How samples are embedded.
        on_error: As for `evaluate`.
        allow_leak: As for `evaluate`.
    """

    embed: EmbedOptions = EmbedOptions()
    on_error: OnError = "raise"
    allow_leak: bool = False


class Shown(NamedTuple):
    """Under which condition is ranked: the modalities that are hidden, and whether captions are read."""

    missing: tuple[str, ...] = ()
    text: bool = True


class Ranking(NamedTuple):
    """One model on one dataset under one condition.

    Attributes:
        dataset: What was ranked: without the samples that were to be left out.
        ranked: Embeddings and metrics.
        places: ``(Q, TOP)`` places in the gallery, -1 where there are fewer.
        matches: ``(Q, TOP)`` which of them show the query's identity.
        protocol: Its name.
    """

    dataset: ReIDDataset
    ranked: Ranked
    places: np.ndarray
    matches: np.ndarray
    protocol: str

    @property
    def bytes(self) -> int:
        """Of memory."""
        vectors = self.ranked.query.nbytes + self.ranked.gallery.nbytes
        return vectors + self.places.nbytes + self.matches.nbytes

    def metrics(self) -> list[tuple[str, float | None]]:
        """Names and values."""
        return [(name, self.ranked.result.metric(name)) for name in METRICS]

    def scores(self, at: int, top: int) -> list[float]:
        """Cosines of a query and its nearest entries."""
        places = self.places[at, :top]
        rows = F.normalize(self.ranked.gallery[places.clip(min=0)], dim=1)
        return (rows @ F.normalize(self.ranked.query[at], dim=0)).tolist()


class Ranker:
    """Ranks on demand, see `Jobs`.

    Args:
        library: Whose models and datasets.
        jobs: Makes the rankings and keeps them.
        options: How models rank.
    """

    def __init__(self, library: Library, jobs: Jobs, options: RankOptions = RankOptions()) -> None:
        self._library, self._jobs, self._options = library, jobs, options
        self._models: OrderedDict[tuple[str, int], ReIDModel] = OrderedDict()

    def rank(self, model: Model, number: int, shown: Shown) -> Ranking:
        """Return the ranking of a model on the dataset of a number.

        Raises:
            StillRunning: It is being made.
            ValueError: If a modality is unknown, or as `evaluate`.
        """
        browsed = self._library.browsed[number]
        dataset = browsed.dataset
        hide_modalities(dataset.modalities, shown.missing)  # says so by name, before the work, where nothing is left
        if not dataset.query or not dataset.gallery:
            raise ValueError(f"{browsed.name} has no query or no gallery, so that nothing can be ranked")
        what = f"{model.name} ranks {browsed.name}: {len(dataset.query):,} queries, {len(dataset.gallery):,} entries"
        key = ("rank", model.number, model.stamp, number, shown)
        return self._jobs.get(key, what, lambda progress: self._ranking(model, dataset, shown), lambda one: one.bytes)

    def compare(
        self, models: Sequence[Model], number: int, shown: Shown
    ) -> tuple[list[Ranking], Comparison | None, list[tuple[int, int]]]:
        """Return the rankings of two models on the dataset of a number, and what `differences` gives of them."""
        one, two = rankings = [self.rank(model, number, shown) for model in models]
        key = ("compare", *((model.number, model.stamp) for model in models), number, shown)
        what = f"compare {' and '.join(model.name for model in models)}"
        return rankings, *self._jobs.get(key, what, lambda progress: differences(one, two))

    def masks(self, model: Model, number: int, sample: Sample, shown: Shown) -> bytes:
        """What a model looks at in a sample, as a PNG; see `expert_masks`.

        Raises:
            StillRunning: It is being made.
            ValueError: The model has nothing to show, or an image cannot be read.
        """
        browsed = self._library.browsed[number]

        def draw(progress: Progress) -> bytes:
            hidden = set(shown.missing)
            shows = [modality not in hidden for modality in browsed.dataset.modalities]
            images = tuple(image if show else None for image, show in zip(sample.images, shows, strict=True))
            texts = tuple(text if show else () for text, show in zip(sample.captions, shows, strict=False))
            given = replace(sample, images=images, captions=texts)
            image = expert_masks(self._model(model), browsed.dataset, [given], text=shown.text)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            return buffer.getvalue()

        key = ("masks", model.number, model.stamp, number, sample.key, shown)
        return self._jobs.get(key, f"{model.name} looks at {sample.key}", draw, len)

    def _ranking(self, model: Model, dataset: ReIDDataset, shown: Shown) -> Ranking:
        loaded, options = self._model(model), self._options
        dataset = checked(loaded, dataset, options.on_error, options.allow_leak)
        rule = get_protocol(dataset.protocol)
        conditions = of_query_and_gallery(
            rule, dataset.modalities, hide_modalities(dataset.modalities, shown.missing, shown.text)
        )
        try:
            ranked = rank_queries(loaded, dataset, rule, conditions, options.embed)
        except ImageError as error:
            raise ValueError(f"{error}; start with --on-error skip or mask to rank without it") from error
        ids = identities(dataset.query), identities(dataset.gallery)
        keys = [sample.key for sample in dataset.query], [sample.key for sample in dataset.gallery]
        count = min(TOP, len(dataset.gallery))
        places, matches = top_k(
            ranked.query, ranked.gallery, *ids, rule, count, query_keys=keys[0], gallery_keys=keys[1]
        )
        return Ranking(dataset, ranked, places, matches, rule.name)

    def _model(self, model: Model) -> ReIDModel:
        """Load a model, or take it from those that stay; the jobs, which are one at a time, alone call this."""
        key = (model.checkpoint, model.stamp)
        if key not in self._models:
            self._models[key] = create_model(model.checkpoint, pretrained=True).eval()
            while len(self._models) > _MODELS:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        if self._options.embed.device is not None:
            self._models[key].to(self._options.embed.device)
        return self._models[key]


class Filter(NamedTuple):
    """Which queries to list, and in which order."""

    key: str = ""
    identity: str = ""
    camera: str = ""
    found: str = ""  # "right" or "wrong": whether the first entry is a match
    order: str = "worst"


def choose(ranking: Ranking, browsed: BrowsedDataset, wanted: Filter) -> list[int]:
    """Places of the queries that fit a filter, in its order; those without a match are last.

    Raises:
        ValueError: If a word of the filter is unknown.
    """
    for what, word, known in (("order", wanted.order, ORDERS), ("answer", wanted.found, ("", "right", "wrong"))):
        if word not in known:
            raise ValueError(unknown(what, word, [name for name in known if name]))
    result, queries = ranking.ranked.result, ranking.dataset.query
    kept = [
        place
        for place, sample in enumerate(queries)
        if wanted.key.casefold() in sample.key.casefold()
        and (not wanted.identity or browsed.label("pid", sample) == wanted.identity)
        and (not wanted.camera or browsed.label("camid", sample) == wanted.camera)
        and (not wanted.found or (result.first[place] > 0 and (result.first[place] == 1) == (wanted.found == "right")))
    ]
    if wanted.order == "key":
        return sorted(kept, key=lambda place: queries[place].key)
    sign = 1 if wanted.order == "worst" else -1
    return sorted(kept, key=lambda at: (np.isnan(result.ap[at]), sign * np.nan_to_num(result.ap[at]), queries[at].key))


def differences(one: Ranking, two: Ranking) -> tuple[Comparison | None, list[tuple[int, int]]]:
    """Compare two models on the queries that both ranked.

    Returns:
        The paired test of their mAP, None where the queries are not the same or none has a match; and the places of the
        queries in each, those that differ most in average precision first.
    """
    place = {sample.key: at for at, sample in enumerate(two.dataset.query)}
    pairs = [(at, place[s.key]) for at, s in enumerate(one.dataset.query) if s.key in place]
    gap = [two.ranked.ap[b] - one.ranked.ap[a] for a, b in pairs]
    order = sorted((i for i, value in enumerate(gap) if not np.isnan(value)), key=lambda i: -abs(gap[i]))
    test = None
    try:
        test = compare(one.ranked.result, two.ranked.result)
    except ValueError as error:
        _logger.info("no paired test: %s", error)
    return test, [pairs[i] for i in order]
