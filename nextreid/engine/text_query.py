"""Words as queries: captions find the images of their identity, in the space that a model's two towers share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from nextreid.data import ReIDDataset, Sample
from nextreid.data.image import OnError
from nextreid.models import as_reid_model
from nextreid.retrieval import METRICS, Identities, Protocol, RetrievalResult, get_protocol, rank

from .ablations import Condition
from .embedding import EmbedOptions, embed_samples, embedding_width, encode_words
from .evaluation import checked, identities

_DRAWS = 20  # of a random order


@dataclass(frozen=True)
class TextQueryReport:
    """How well captions find images.

    Attributes:
        result: Of the queries that have a caption.
        chance: Each metric of a random order of the same gallery, the mean of 20 draws.
        left_out: Queries without a caption.
        modality: Whose captions were asked.
        dataset: Name of the dataset.
    """

    result: RetrievalResult
    chance: dict[str, float | None]
    left_out: int
    modality: str
    dataset: str

    def to_dict(self) -> dict[str, object]:
        """Return one flat dict for JSON."""
        more = {"text_query": self.modality, "chance": self.chance, "left_out": self.left_out, "dataset": self.dataset}
        return {**self.result.to_dict(), **more}


def evaluate_text_query(
    model: nn.Module,
    dataset: ReIDDataset,
    *,
    modality: str | None = None,
    protocol: str | Protocol | None = None,
    on_error: OnError = "raise",
    allow_leak: bool = False,
    options: EmbedOptions = EmbedOptions(),
) -> TextQueryReport:
    """Rank the gallery's images for the caption of every query, as `Gallery.search` does for words.

    A gallery entry is the mean of its modalities' class tokens, a caption is what the text tower makes of it. The
    captions of the gallery are not read. The protocol ignores for a caption what it ignores for the image that the
    caption describes: where that is the same camera, no caption finds its own image.

    Args:
        model: With a text tower, see `joint_width`.
        dataset: With captions.
        modality: Whose captions are the queries; None for the first that has any.
        protocol: None takes the dataset's own.
        on_error: As for `evaluate`.
        allow_leak: As for `evaluate`.
        options: Batch size, device, loading processes.

    Raises:
        ValueError: The model has no space that images and words share, or no query has a caption.
    """
    model = as_reid_model(model)
    encode_words(model, ["a person"])  # says so by name, before the work, where the model has no such space
    dataset = checked(model, dataset, on_error, allow_leak)
    rule = get_protocol(protocol or dataset.protocol)
    name = modality or _captioned(dataset.query, dataset.modalities)
    if name not in dataset.modalities:
        raise ValueError(f"no query of {dataset.name} has a caption: there are no words to search with")
    place = dataset.modalities.index(name)
    queries = [sample for sample in dataset.query if sample.captions and sample.captions[place]]
    if not queries:
        raise ValueError(f"no query of {dataset.name} has a {name} caption")
    given = replace(options, words=True, embedding=None, after_neck=False)
    width = embedding_width(model, replace(given, words=False))
    images = embed_samples(model, dataset.gallery, Condition(text=False), given)[:, width:]
    words = encode_words(model, [" ".join(sample.captions[place]) for sample in queries])
    ids = identities(queries), identities(dataset.gallery)
    keys = [sample.key for sample in queries], [sample.key for sample in dataset.gallery]
    result = rank(words, images, *ids, rule, query_keys=keys[0], gallery_keys=keys[1])
    return TextQueryReport(result, _chance(ids, keys, rule), len(dataset.query) - len(queries), name, dataset.name)


def _captioned(samples: Sequence[Sample], modalities: Sequence[str]) -> str:
    found = (m for i, m in enumerate(modalities) if any(s.captions and s.captions[i] for s in samples))
    return next(found, "")


def _chance(
    ids: tuple[Identities, Identities], keys: tuple[list[str], list[str]], rule: Protocol
) -> dict[str, float | None]:
    generator, draws = torch.Generator().manual_seed(0), list[dict[str, float | None]]()
    for _ in range(_DRAWS):
        query, gallery = (torch.randn(len(some), 16, generator=generator) for some in ids)
        result = rank(query, gallery, *ids, rule, query_keys=keys[0], gallery_keys=keys[1])
        draws.append(result.metrics)
    if not result.num_valid:
        return dict.fromkeys(METRICS)
    return {name: float(np.mean([draw[name] for draw in draws if draw[name] is not None])) for name in METRICS}
