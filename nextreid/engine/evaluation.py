"""A dataset to its numbers under a protocol."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextreid.data import ReIDDataset, Sample
from nextreid.data.image import OnError
from nextreid.models import ReIDModel
from nextreid.retrieval import Identities, Protocol, Rerank, RetrievalResult, get_protocol, rank

from . import distributed
from .ablations import has_captions, hide_modalities
from .embedding import embed_samples
from .provenance import refuse_trained_on


@dataclass(frozen=True)
class EvaluationReport:
    """A retrieval result together with what it was measured on.

    Attributes:
        result: The numbers of every query and the protocol.
        text: Whether captions were read; False when none exist or the model reads none.
        missing: Modalities that were hidden on both sides.
        samples: Embeddings that were ranked: a sample counts once for each set of modalities that it shows.
        seconds: Duration of embedding and ranking.
        dataset: Name of the dataset.
        digest: Its fingerprint; None if it was not taken.
        trained_on: What the weights were trained on, as their checkpoint tells; None if it does not.
        left_out: Queries and gallery entries that show none of the modalities and were not ranked; only in a matrix.
        averaged: Whether the modalities' parts of the embeddings were averaged (`average_modalities`): so where the
            protocol shows other modalities in the query than in the gallery.
    """

    result: RetrievalResult
    text: bool
    missing: tuple[str, ...]
    samples: int
    seconds: float
    dataset: str
    digest: str | None = None
    trained_on: dict[str, Any] | None = None
    left_out: int = 0
    averaged: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return one flat dict for JSON: the result's entries, then the conditions."""
        row = {
            **self.result.to_dict(),
            "text": self.text,
            "missing": list(self.missing),
            "samples": self.samples,
            "seconds": round(self.seconds, 3),
            "dataset": self.dataset,
        }
        told = {"digest": self.digest, "trained_on": self.trained_on, "left_out": self.left_out or None}
        told["averaged"] = self.averaged or None
        return {**row, **{name: value for name, value in told.items() if value is not None}}


def evaluate(
    model: ReIDModel,
    dataset: ReIDDataset,
    *,
    protocol: str | Protocol | None = None,
    text: bool = True,
    missing: Sequence[str] = (),
    rerank: Rerank | None = None,
    on_error: OnError = "raise",
    allow_leak: bool = False,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    workers: int = 0,
    progress: bool = False,
) -> EvaluationReport:
    """Rank the gallery for every query and measure it.

    Query and gallery show the modalities that the protocol gives to their side; where these differ, the modalities'
    parts of each embedding are averaged first. A sample that is in both splits is
    embedded once, or once for each set of modalities that it shows. Embeddings are float32 whatever the training used.
    Several processes (``torchrun``) share the work, and all return the same report.

    Args:
        model: A model of the zoo; its modalities must be the dataset's.
        dataset: Query and gallery come from here.
        protocol: A name, such as ``"camera"`` or ``"camera:tir>rgb"``, or a protocol; None takes the dataset's own.
        text: Whether captions are read, where the model reads captions and the dataset has some.
        missing: Modalities to hide on both sides, images and captions both.
        rerank: Rank by k-reciprocal neighbours; None by the distance itself.
        on_error: What to do about images that cannot be read: ``"raise"`` at the first one, or look at all before
            and ``"skip"`` their samples or ``"mask"`` those modalities.
        allow_leak: Whether to go on when the weights were trained on identities of this test set.
        batch_size: Samples of a forward pass.
        device: Where to compute; None stays where the model is, otherwise the model moves there.
        workers: Processes that load images.
        progress: Whether to show a progress bar.

    Returns:
        The result and its conditions.

    Raises:
        ValueError: A split is empty, no query has a valid match, a modality to hide or to show is unknown, a sample
            has none to show, the modalities differ, one key names two different samples, or the weights have seen the
            test identities.
    """
    refuse_trained_on(model, dataset, allow_leak)
    dataset = drop_unreadable(dataset, on_error)
    report = measure(
        model,
        dataset,
        protocol=protocol,
        text=text,
        missing=missing,
        rerank=rerank,
        batch_size=batch_size,
        device=device,
        workers=workers,
        progress=progress,
    )
    return replace(report, digest=distributed.on_main(dataset.digest), trained_on=model.pretrained_cfg.trained_on)


def measure(
    model: ReIDModel,
    dataset: ReIDDataset,
    *,
    protocol: str | Protocol | None = None,
    text: bool = True,
    missing: Sequence[str] = (),
    rerank: Rerank | None = None,
    **embedding: Any,
) -> EvaluationReport:
    """Do what `evaluate` does without looking at where the weights and the data come from; for training's own use."""
    rule = get_protocol(protocol or dataset.protocol)
    check_modalities(model, dataset)
    check_splits(dataset)
    start = time.perf_counter()
    query, gallery = (
        hide_modalities(split, dataset.modalities, hidden)
        for split, hidden in zip(
            (dataset.query, dataset.gallery), hidden_by_side(rule, dataset.modalities, missing), strict=True
        )
    )
    views, rows = _views(query, gallery)
    text = text and model.uses_text and has_captions(views)
    after_neck = rule.feature == "after_neck"
    embeddings, _ = embed_samples(model, views, text=text, after_neck=after_neck, **embedding)
    averaged = averages_modalities(rule)
    if averaged:
        embeddings = model.average_modalities(embeddings)
    result = rank_splits(embeddings[rows[0]], embeddings[rows[1]], query, gallery, rule, rerank)
    seconds = time.perf_counter() - start
    return EvaluationReport(result, text, tuple(missing), len(views), seconds, dataset.name, averaged=averaged)


def rank_splits(
    query_emb: Tensor,
    gallery_emb: Tensor,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    rule: Protocol,
    rerank: Rerank | None = None,
) -> RetrievalResult:
    """Rank, several processes a share of the queries each; see `nextreid.retrieval.rank`."""
    result = rank(
        query_emb,
        gallery_emb,
        identities(query),
        identities(gallery),
        rule,
        query_keys=[sample.key for sample in query],
        gallery_keys=[sample.key for sample in gallery],
        rerank=rerank,
        part=(distributed.rank(), distributed.world_size()) if distributed.world_size() > 1 else None,
    )
    return RetrievalResult.concat(distributed.all_gather_objects([result])) if distributed.world_size() > 1 else result


def averages_modalities(rule: Protocol) -> bool:
    """Whether the sides show different modalities, and so are compared by the mean of their modalities' parts.

    Raises:
        ValueError: The protocol compares such sides behind the neck, where absent parts are no longer zero.
    """
    if rule.query_modalities == rule.gallery_modalities:
        return False
    if rule.feature == "after_neck":
        raise ValueError(
            f"protocol {rule.name!r} compares different modalities behind the neck, where an absent modality leaves "
            'its mark; take feature="before_neck"'
        )
    return True


def identities(samples: Sequence[Sample]) -> Identities:
    """Return the samples' ids as the arrays that retrieval takes."""
    pid, camid, sceneid = (
        np.array([getattr(sample, field) for sample in samples], dtype=np.int64)
        for field in ("pid", "camid", "sceneid")
    )
    return Identities(pid, camid, sceneid)


def check_modalities(model: ReIDModel, dataset: ReIDDataset) -> None:
    """Raise ValueError unless model and dataset have the same modalities in the same order."""
    ours, theirs = tuple(model.modalities), tuple(dataset.modalities)
    if ours != theirs:
        raise ValueError(
            f"the model reads {', '.join(ours)} but dataset {dataset.name!r} has {', '.join(theirs)}; "
            f"load it with modalities={ours!r} or create the model with modalities={theirs!r}"
        )


def check_splits(dataset: ReIDDataset) -> None:
    """Raise ValueError if query or gallery is empty, or if one key names two different samples of them."""
    for split in ("query", "gallery"):
        if not getattr(dataset, split):
            raise ValueError(f"dataset {dataset.name!r} has no {split} samples; nothing can be ranked")
    by_key: dict[str, Sample] = {}
    for sample in (*dataset.query, *dataset.gallery):
        known = by_key.setdefault(sample.key, sample)
        if known is not sample and not _same(known, sample):
            raise ValueError(f"key {sample.key!r} names two different samples of query and gallery; make keys unique")


def drop_unreadable(dataset: ReIDDataset, on_error: OnError) -> ReIDDataset:
    """Apply a policy for unreadable images; ``"raise"`` looks at none, loading does."""
    return dataset if on_error == "raise" else dataset.drop_unreadable(on_error)


def hidden_by_side(rule: Protocol, modalities: Sequence[str], missing: Sequence[str]) -> list[list[str]]:
    """Return the modalities that are hidden in the query and in the gallery.

    Raises:
        ValueError: The protocol shows a modality that is none of `modalities`, or nothing is left to show.
    """
    sides = []
    for side, shown in (("query", rule.query_modalities), ("gallery", rule.gallery_modalities)):
        unknown = sorted(set(shown or ()) - set(modalities))
        if unknown:
            raise ValueError(
                f"protocol {rule.name!r} shows {', '.join(map(repr, unknown))} on its {side} side; the dataset has: "
                f"{', '.join(modalities)}"
            )
        outside = [m for m in modalities if shown is not None and m not in shown]
        hidden = [*missing, *(m for m in outside if m not in missing)]
        if outside and set(hidden) >= set(modalities):
            raise ValueError(
                f"protocol {rule.name!r} shows {', '.join(shown or ())} on its {side} side, and without "
                f"{', '.join(missing)} nothing is left of it"
            )
        sides.append(hidden)
    return sides


def _views(*sides: Sequence[Sample]) -> tuple[list[Sample], list[list[int]]]:
    """Return the distinct samples of the sides, told apart by key and by what they show, and each side's rows."""
    places: dict[tuple[Any, ...], int] = {}
    views: list[Sample] = []
    rows: list[list[int]] = []
    for side in sides:
        rows.append([])
        for sample in side:
            shows = (
                sample.key,
                tuple(image is not None for image in sample.images),
                tuple(map(bool, sample.captions)),
            )
            if shows not in places:
                places[shows] = len(views)
                views.append(sample)
            rows[-1].append(places[shows])
    return views, rows


def _same(a: Sample, b: Sample) -> bool:
    ids = (a.pid, a.camid, a.sceneid) == (b.pid, b.camid, b.sceneid)
    return ids and len(a.images) == len(b.images) and all(map(_same_image, a.images, b.images))


def _same_image(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and a == b
