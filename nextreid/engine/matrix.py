"""Every subset of the modalities, on both sides or each against each."""

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nextreid.data import ReIDDataset, Sample
from nextreid.data.image import OnError
from nextreid.models import ReIDModel
from nextreid.retrieval import Protocol, Rerank, get_protocol

from .ablations import has_captions
from .distributed import on_main
from .embedding import embed_subsets
from .evaluation import (
    EvaluationReport,
    averages_modalities,
    check_modalities,
    check_splits,
    drop_unreadable,
    rank_splits,
)
from .provenance import refuse_trained_on

_logger = logging.getLogger(__name__)


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the non-empty subsets, small ones first: seven for three modalities."""
    sizes = range(1, len(modalities) + 1)
    return [subset for size in sizes for subset in itertools.combinations(modalities, size)]


def modality_matrix(
    model: ReIDModel,
    dataset: ReIDDataset,
    *,
    protocol: str | Protocol | None = None,
    cross: bool = False,
    text: bool = True,
    rerank: Rerank | None = None,
    on_error: OnError = "raise",
    allow_leak: bool = False,
    **embedding: Any,
) -> list[EvaluationReport]:
    """Evaluate with every non-empty subset of the modalities.

    Each image is decoded once and each sample embedded once for each subset. A sample that shows nothing under a
    subset is left out of that cell, which says how many were; a cell without queries or gallery is left out whole.

    Args:
        model: See `evaluate`.
        dataset: See `evaluate`.
        protocol: See `evaluate`; one without modalities of its own.
        cross: Whether every subset as query meets every subset as gallery (49 cells for three modalities), instead of
            both sides showing the same (7 cells).
        text: See `evaluate`.
        rerank: See `evaluate`.
        on_error: See `evaluate`.
        allow_leak: See `evaluate`.
        **embedding: ``batch_size``, ``device``, ``workers`` and ``progress`` of `evaluate`.

    Returns:
        One report a cell, query subsets outermost. A cell with equal sides reports what `evaluate` does with
        ``missing``; with `cross`, every cell has its own protocol, such as ``"camera:tir>rgb+nir"``, and those with
        different sides compare the mean of the modalities' parts.

    Raises:
        ValueError: As `evaluate`, or the protocol says already which modalities are shown.
    """
    rule = get_protocol(protocol or dataset.protocol)
    if rule.query_modalities is not None or rule.gallery_modalities is not None:
        raise ValueError(
            f"protocol {rule.name!r} says already what its sides show; a matrix of all subsets takes one without, "
            f"such as {rule.name.partition(':')[0]!r}"
        )
    refuse_trained_on(model, dataset, allow_leak)
    check_modalities(model, dataset)
    dataset = drop_unreadable(dataset, on_error)
    check_splits(dataset)
    start = time.perf_counter()
    samples = list({sample.key: sample for sample in (*dataset.query, *dataset.gallery)}.values())
    rows = {sample.key: row for row, sample in enumerate(samples)}
    shown = subsets(dataset.modalities)
    text = text and model.uses_text and has_captions(samples)
    after_neck = rule.feature == "after_neck"
    embedded = dict(
        zip(shown, embed_subsets(model, samples, shown, text=text, after_neck=after_neck, **embedding), strict=True)
    )
    share = (time.perf_counter() - start) / len(shown)
    digest = on_main(dataset.digest)
    reports = []
    for of_query, of_gallery in itertools.product(shown, shown) if cross else zip(shown, shown, strict=True):
        start = time.perf_counter()
        query, gallery = (
            [sample for sample in split if _shows(sample, subset, dataset.modalities)]
            for split, subset in ((dataset.query, of_query), (dataset.gallery, of_gallery))
        )
        left_out = len(dataset.query) + len(dataset.gallery) - len(query) - len(gallery)
        name = f"{rule.name}:{'+'.join(of_query)}>{'+'.join(of_gallery)}"
        if not query or not gallery:
            _logger.warning("%s is left out: no sample of one side shows these modalities", name)
            continue
        cell = replace(rule, name=name, query_modalities=of_query, gallery_modalities=of_gallery) if cross else rule
        averaged = averages_modalities(cell)
        sides = (
            embedded[of_query][[rows[sample.key] for sample in query]],
            embedded[of_gallery][[rows[sample.key] for sample in gallery]],
        )
        if averaged:
            sides = model.average_modalities(sides[0]), model.average_modalities(sides[1])
        result = rank_splits(*sides, query, gallery, cell, rerank)
        missing = () if cross else tuple(m for m in dataset.modalities if m not in of_query)
        reports.append(
            EvaluationReport(
                result,
                text,
                missing,
                len({s.key for s in query} | {s.key for s in gallery}),
                share + time.perf_counter() - start,
                dataset.name,
                digest,
                model.pretrained_cfg.trained_on,
                left_out,
                averaged,
            )
        )
    return reports


def _shows(sample: Sample, subset: Sequence[str], modalities: Sequence[str]) -> bool:
    return any(image is not None for image, m in zip(sample.images, modalities, strict=True) if m in subset)
