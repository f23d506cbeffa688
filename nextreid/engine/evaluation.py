"""A dataset to its metrics under a protocol: with captions and without, with any of its modalities."""

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from nextreid._progress import progress_counter
from nextreid.data import Image, ReIDDataset, Sample
from nextreid.data.card import reject_leak
from nextreid.data.image import OnError
from nextreid.models import ReIDModel, as_reid_model
from nextreid.retrieval import Identities, Protocol, Rerank, RetrievalResult, get_protocol, rank

from . import distributed
from .ablations import Condition, hide_modalities
from .embedding import EmbedOptions, check_visible, embed_conditions, is_visible, reads_text
from .provenance import trained_sets, warn_domain

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class EvaluationReport:
    """A retrieval result together with what it was measured on.

    Attributes:
        result: The metrics of every query and the protocol.
        text: Whether captions were read; False when none exist or the model reads none.
        missing: Modalities that were hidden from query and gallery.
        samples: Embeddings that were ranked: a sample counts once for each set of modalities that it shows.
        seconds: Duration of ranking, and of embedding as far as it was for this report.
        dataset: Name of the dataset.
        digest: Its fingerprint; None if it was not taken.
        trained_on: What the weights were trained on, as their checkpoint records; None if it does not.
        left_out: Queries and gallery entries that show none of the modalities and were not ranked; only in a matrix.
        averaged: Whether the modalities' parts of the embeddings were averaged (`average_modalities`): so where the
            protocol shows other modalities in the query than in the gallery.
        embedding: Which of the model's named embeddings was ranked; None for the default.
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
    embedding: str | None = None

    def __repr__(self) -> str:
        row = self.to_dict()
        found = "no valid query" if self.result.mAP is None else f"mAP {row['mAP']:.4f}, rank-1 {row['rank-1']:.4f}"
        return (
            f"EvaluationReport({self.dataset}, protocol {row['protocol']}: {found}; "
            f"text={self.text}, missing={self.missing}, samples={self.samples})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return one flat dict for JSON: the result's entries, then the conditions."""
        row = {name: getattr(self, name) for name in ("text", "missing", "samples", "seconds", "dataset")}
        row |= {"missing": list(self.missing), "seconds": round(self.seconds, 3)}
        optional = ("digest", "trained_on", "left_out", "averaged", "embedding")
        row |= {name: getattr(self, name) for name in optional if getattr(self, name)}
        return {**self.result.to_dict(), **row}


def evaluate(
    model: nn.Module,
    dataset: ReIDDataset,
    *,
    protocol: str | Protocol | None = None,
    text: bool = True,
    missing: Sequence[str] = (),
    rerank: Rerank | None = None,
    on_error: OnError = "raise",
    allow_leak: bool = False,
    options: EmbedOptions = EmbedOptions(),
) -> EvaluationReport:
    """Rank the gallery for every query and compute the metrics.

    Query and gallery show the modalities that the protocol gives to them; where these differ, the modalities' parts of
    each embedding are averaged first. A sample that is in both splits passes the image tower once. Embeddings are
    float32 whatever the training used. Several processes (``torchrun``) share the work, and all return the same report.

    Args:
        model: A model of the zoo, or a module that `nextreid.adapt` takes; its modalities must be the dataset's.
        dataset: Query and gallery come from here.
        protocol: A name, such as ``"camera"`` or ``"camera:tir>rgb"``, or a protocol; None takes the dataset's own.
        text: Whether captions are read, where the model reads captions and the dataset has some.
        missing: Modalities to hide from query and gallery, images and captions both.
        rerank: Rank by k-reciprocal neighbours; None by the distance itself.
        on_error: What to do about images that cannot be read: ``"raise"`` at the first one, or look at all before
            and ``"skip"`` their samples or ``"mask"`` those modalities.
        allow_leak: Whether to go on when the weights were trained on identities of this test set.
        options: Batch size, device, loading processes, the model's embedding.

    Returns:
        The result and its conditions.

    Raises:
        ValueError: A split is empty, a modality to hide or to show is unknown, a sample
            has none to show, the modalities differ, one key names two different samples, or the weights have seen the
            test identities.
    """
    settings: dict[str, Any] = {"protocol": protocol, "rerank": rerank, "on_error": on_error, "allow_leak": allow_leak}
    condition = hide_modalities(dataset.modalities, missing, text)
    return evaluate_conditions(model, dataset, [condition], **settings, options=options)[0]


def evaluate_conditions(
    model: nn.Module,
    dataset: ReIDDataset,
    conditions: Sequence[Condition],
    *,
    protocol: str | Protocol | None = None,
    rerank: Rerank | None = None,
    on_error: OnError = "raise",
    allow_leak: bool = False,
    options: EmbedOptions = EmbedOptions(),
) -> list[EvaluationReport]:
    """Evaluate under several conditions, such as with captions and without; images are read and encoded once.

    Arguments and errors are those of `evaluate`, with ``conditions`` in the place of ``text`` and ``missing``.

    Returns:
        The report of each condition.
    """
    model = as_reid_model(model)
    dataset = checked(model, dataset, on_error, allow_leak, options)
    return _with_provenance(measure(model, dataset, conditions, options, protocol, rerank), model, dataset)


def modality_matrix(
    model: nn.Module,
    dataset: ReIDDataset,
    *,
    protocol: str | Protocol | None = None,
    cross: bool = False,
    text: bool | Sequence[bool] = True,
    rerank: Rerank | None = None,
    on_error: OnError = "raise",
    allow_leak: bool = False,
    options: EmbedOptions = EmbedOptions(),
) -> list[EvaluationReport]:
    """Evaluate with every non-empty subset of the modalities; images are read and encoded once.

    With ``cross``, every subset as query meets every subset as gallery (49 cells for three modalities); otherwise query
    and gallery show the same (7 cells). ``text=(True, False)`` gives the matrix with captions and then without. The
    protocol is one without modalities of its own. All else is as in `evaluate`.

    A sample that shows nothing under a subset is left out of that cell, which counts them in ``left_out``; a cell
    without queries or gallery is left out whole.

    Returns:
        One report a cell, query subsets outermost. A cell with equal subsets reports what `evaluate` does with
        ``missing``; with `cross`, every cell has its own protocol, such as ``"camera:tir>rgb+nir"``, and those with
        different subsets compare the mean of the modalities' parts.

    Raises:
        ValueError: As `evaluate`, or the protocol fixes already which modalities are shown.
    """
    model = as_reid_model(model)
    rule = _protocol_of(model, dataset, protocol)
    if rule.query_modalities is not None or rule.gallery_modalities is not None:
        raise ValueError(
            f"protocol {rule.name!r} fixes the modalities of query and gallery; a matrix of all subsets takes one "
            f"without, such as {rule.name.partition(':')[0]!r}"
        )
    dataset = checked(model, dataset, on_error, allow_leak, options)
    shown = subsets(dataset.modalities)
    cells = []
    for reads in [text] if isinstance(text, bool) else text:
        for of_query, of_gallery in itertools.product(shown, shown) if cross else zip(shown, shown, strict=True):
            name = f"{rule.name}:{'+'.join(of_query)}>{'+'.join(of_gallery)}"
            own = replace(rule, name=name, query_modalities=of_query, gallery_modalities=of_gallery) if cross else rule
            hidden = () if cross else Condition(reads, of_query).hidden(dataset.modalities)
            cells.append(_Cell(own, (Condition(reads, of_query), Condition(reads, of_gallery)), hidden, name))
    return _with_provenance(_measure_cells(model, dataset, cells, rerank, options), model, dataset)


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the non-empty subsets, small ones first: seven for three modalities."""
    return [subset for size in range(len(modalities)) for subset in itertools.combinations(modalities, size + 1)]


def measure(
    model: ReIDModel,
    dataset: ReIDDataset,
    conditions: Sequence[Condition],
    options: EmbedOptions,
    protocol: str | Protocol | None = None,
    rerank: Rerank | None = None,
) -> list[EvaluationReport]:
    """Do what `evaluate_conditions` does without a look at where weights and data come from; for training's own use."""
    rule = _protocol_of(model, dataset, protocol)
    check_modalities(model, dataset)
    cells = [
        _Cell(rule, of_query_and_gallery(rule, dataset.modalities, condition), condition.hidden(dataset.modalities))
        for condition in conditions
    ]
    return _measure_cells(model, dataset, cells, rerank, options)


def _protocol_of(model: ReIDModel, dataset: ReIDDataset, protocol: str | Protocol | None) -> Protocol:
    """The protocol; its name says so where the model has seen the images that it is evaluated on."""
    rule = get_protocol(protocol or dataset.protocol)
    return replace(rule, name=f"{rule.name}, {model.adapted}") if model.adapted else rule


def check_modalities(model: ReIDModel, dataset: ReIDDataset) -> None:
    """Raise ValueError unless model and dataset have the same modalities in the same order."""
    ours, theirs = tuple(model.modalities), tuple(dataset.modalities)
    if ours != theirs:
        raise ValueError(
            f"the model reads {', '.join(ours)} but dataset {dataset.name!r} has {', '.join(theirs)}; "
            f"load it with modalities={ours!r} (--dataset-arg modalities={','.join(ours)}) or create the model with "
            f"modalities={theirs!r}"
        )


def identities(samples: Sequence[Sample]) -> Identities:
    """Return the samples' ids as the arrays that retrieval takes."""
    fields = ("pid", "camid", "sceneid")
    return Identities(*(np.array([getattr(sample, field) for sample in samples], np.int64) for field in fields))


class _Cell(NamedTuple):
    """One report to be: a protocol and what query and gallery show; a name where samples may be left out."""

    rule: Protocol
    shown: Sequence[Condition]
    missing: tuple[str, ...]
    name: str | None = None


def _measure_cells(
    model: ReIDModel, dataset: ReIDDataset, cells: Sequence[_Cell], rerank: Rerank | None, options: EmbedOptions
) -> list[EvaluationReport]:
    start = time.perf_counter()
    for name in ("query", "gallery"):
        if not getattr(dataset, name):
            raise ValueError(f"dataset {dataset.name!r} has no {name} samples; nothing can be ranked")
    splits = (dataset.query, dataset.gallery)
    for cell in cells:
        if cell.name is None:
            for split, condition in zip(splits, cell.shown, strict=True):
                check_visible(split, dataset.modalities, condition)
    if cells[0].rule.feature == "after_neck":
        options = replace(options, after_neck=True)
    # Where query and gallery show different modalities, they are compared by the mean of their parts.
    averaged = [cell.rule.query_modalities != cell.rule.gallery_modalities for cell in cells]
    if options.after_neck and any(averaged):
        raise ValueError(
            f"protocol {cells[averaged.index(True)].rule.name!r} compares different modalities behind the neck, where "
            'an absent modality leaves its mark; take feature="before_neck"'
        )
    samples, place_of = unique_samples(dataset)
    conditions = list(dict.fromkeys(condition for cell in cells for condition in cell.shown))
    embedded = dict(zip(conditions, embed_conditions(model, samples, conditions, options), strict=True))
    text = {condition: reads_text(model, samples, condition) for condition in conditions}
    share = (time.perf_counter() - start) / len(cells)
    reports = []
    for cell, average in zip(cells, averaged, strict=True):
        start = time.perf_counter()
        ranked, embeddings, views = [], [], set()
        for split, condition in zip(splits, cell.shown, strict=True):
            shows = condition.shows(dataset.modalities)
            ranked.append([sample for sample in split if is_visible(sample, shows)])
            places = [place_of[sample.key, sample.captions] for sample in ranked[-1]]
            vectors = embedded[condition][places]
            embeddings.append(model.average_modalities(vectors) if average else vectors)
            views |= {(place, _view(sample, shows)) for place, sample in zip(places, ranked[-1], strict=True)}
        if not all(ranked):
            _logger.warning("%s is left out: no sample of query or gallery shows these modalities", cell.name)
            continue
        report = EvaluationReport(
            _rank(embeddings, ranked, cell.rule, rerank, options),
            any(text[condition] for condition in cell.shown),
            cell.missing,
            len(views),
            share + time.perf_counter() - start,
            dataset.name,
            left_out=len(dataset.query) + len(dataset.gallery) - sum(map(len, ranked)),
            averaged=average,
            embedding=options.embedding,
        )
        reports.append(report)
    return reports


def unique_samples(dataset: ReIDDataset) -> tuple[list[Sample], dict[tuple[str, tuple[tuple[str, ...], ...]], int]]:
    """Return the samples of query and gallery, those of both once, and their places by key and captions.

    Raises:
        ValueError: If a key names two different samples.
    """
    places: dict[tuple[str, tuple[tuple[str, ...], ...]], int] = {}
    samples: list[Sample] = []
    by_key: dict[str, Sample] = {}
    for sample in (*dataset.query, *dataset.gallery):
        known = by_key.setdefault(sample.key, sample)
        if known is not sample and not _same(known, sample):
            raise ValueError(f"key {sample.key!r} names two different samples of query and gallery; make keys unique")
        if places.setdefault((sample.key, sample.captions), len(samples)) == len(samples):
            samples.append(sample)
    return samples, places


def _view(sample: Sample, shows: Sequence[bool]) -> tuple[tuple[bool, bool], ...]:
    """Of each modality, whether an image and whether a caption is shown."""
    captions = sample.captions or ((),) * len(shows)
    return tuple(
        (show and image is not None, show and bool(caption))
        for show, image, caption in zip(shows, sample.images, captions, strict=True)
    )


def _rank(
    embeddings: Sequence[Tensor],
    samples: Sequence[Sequence[Sample]],
    rule: Protocol,
    rerank: Rerank | None,
    options: EmbedOptions,
) -> RetrievalResult:
    """Rank, several processes a share of the queries each; see `nextreid.retrieval.rank`."""
    query, gallery = samples
    several = distributed.world_size() > 1
    with progress_counter("rank", "query", shown=options.progress and distributed.is_main()) as count:
        result = rank(
            embeddings[0],
            embeddings[1],
            identities(query),
            identities(gallery),
            rule,
            query_keys=[sample.key for sample in query],
            gallery_keys=[sample.key for sample in gallery],
            rerank=rerank,
            progress=count,
            part=(distributed.rank(), distributed.world_size()) if several else None,
        )
    return RetrievalResult.concat(distributed.all_gather_objects([result])) if several else result


def of_query_and_gallery(rule: Protocol, modalities: Sequence[str], condition: Condition) -> list[Condition]:
    """What query and gallery show when the protocol and the condition are both kept; ValueError if that is nothing."""
    hidden = condition.hidden(modalities)
    conditions = []
    for split, shown in (("query", rule.query_modalities), ("gallery", rule.gallery_modalities)):
        if unknown := sorted(set(shown or ()) - set(modalities)):
            raise ValueError(
                f"protocol {rule.name!r} shows {', '.join(map(repr, unknown))} in the {split}; the dataset has: "
                f"{', '.join(modalities)}"
            )
        left = tuple(m for m in modalities if m not in hidden and (shown is None or m in shown))
        if not left:
            raise ValueError(
                f"protocol {rule.name!r} shows {', '.join(shown or ())} in the {split}, and without "
                f"{', '.join(hidden)} nothing is left of it"
            )
        conditions.append(replace(condition, modalities=left))
    return conditions


def checked(
    model: ReIDModel,
    dataset: ReIDDataset,
    on_error: OnError = "raise",
    allow_leak: bool = False,
    options: EmbedOptions = EmbedOptions(),
) -> ReIDDataset:
    """Return the dataset without what cannot be read; ValueError if it is not one to evaluate the model on."""
    reject_leak(trained_sets(model), dataset.name, allow_leak)
    check_modalities(model, dataset)
    if distributed.is_main():
        warn_domain(model, dataset)
    if on_error == "raise":
        return dataset
    with progress_counter("look at images", "sample", shown=options.progress and distributed.is_main()) as count:
        return dataset.drop_unreadable(on_error, count)


def _with_provenance(reports: list[EvaluationReport], model: ReIDModel, dataset: ReIDDataset) -> list[EvaluationReport]:
    digest = distributed.on_main(dataset.digest)
    return [replace(report, digest=digest, trained_on=model.pretrained_cfg.trained_on) for report in reports]


def _same(a: Sample, b: Sample) -> bool:
    def same_image(a: Image | None, b: Image | None) -> bool:
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return np.array_equal(a, b)
        return type(a) is type(b) and a == b

    ids = (a.pid, a.camid, a.sceneid) == (b.pid, b.camid, b.sceneid)
    return ids and len(a.images) == len(b.images) and all(map(same_image, a.images, b.images))
