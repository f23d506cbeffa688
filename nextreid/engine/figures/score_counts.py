"""Scores of all pairs of query and gallery, however many."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from nextreid.data import ReIDDataset, Sample, seeded_rng
from nextreid.data.image import OnError
from nextreid.models import as_reid_model
from nextreid.retrieval import Calibration, Protocol, get_protocol
from nextreid.retrieval.protocol import SameIdentity
from nextreid.viz import Plot, ScoreCounts, scores_plot
from nextreid.viz.plot import get_style

from ..ablations import hide_modalities
from ..embedding import EmbedOptions, reads_text
from ..evaluation import checked, identities, of_query_and_gallery
from ..provenance import weights_digest
from ..ranking import rank_queries

STEP = 2e-4
_BLOCK = 2**24  # scores at a time


def scores(
    models: Mapping[str, nn.Module],
    dataset: ReIDDataset,
    *,
    calibrations: Mapping[str, Calibration] | None = None,
    queries: int = 2000,
    protocol: str | Protocol | None = None,
    text: bool = True,
    missing: Sequence[str] = (),
    seed: int = 0,
    style: str = "light",
    on_error: OnError = "raise",
    allow_leak: bool = False,
    options: EmbedOptions = EmbedOptions(),
) -> Plot:
    """Draw how far scores tell identities apart: histograms, DET curves, and what a calibration makes of them.

    Args:
        models: Models by the names to write beside them.
        dataset: Query and gallery come from here; samples of unknown identity are left out.
        calibrations: What `calibrate` found for models, by their names: thresholds and reliability curves.
        queries: Queries at most, of more some at random; each is compared with the whole gallery.
        protocol: As for `evaluate`; pairs that it ignores are not counted.
        text: Whether captions are read.
        missing: Modalities to hide.
        seed: Of the random queries.
        style: One of `nextreid.viz.STYLES`.
        on_error: What to do about images that cannot be read, see `evaluate`.
        allow_leak: Whether to go on when a model was trained on identities of this test set.
        options: How samples are embedded.

    Returns:
        The plot, whose caption says what was drawn.

    Raises:
        ValueError: If there is no model, no pair of one identity or of two, a calibration is of other weights or other
            conditions, or as `evaluate`.
        ImportError: matplotlib is not installed.

    Example:
        >>> calibration = Calibration.read("runs/x/last")  # doctest: +SKIP
        >>> scores({"next": model}, dataset, calibrations={"next": calibration})  # doctest: +SKIP
    """
    if not models:
        raise ValueError("there is no model to draw the scores of")
    if queries < 1:
        raise ValueError(f"queries must be at least 1, got {queries}")
    get_style(style)
    rule = get_protocol(protocol or dataset.protocol)
    condition = hide_modalities(dataset.modalities, missing, text)
    for model in models.values():
        dataset = checked(as_reid_model(model), dataset, on_error, allow_leak)
    conditions = of_query_and_gallery(rule, dataset.modalities, condition)
    shown = [
        [name for name, shows in zip(dataset.modalities, each.shows(dataset.modalities), strict=True) if shows]
        for each in conditions
    ]
    curves = {}
    for name, calibration in (calibrations or {}).items():
        model = as_reid_model(models[name])
        captions = any(
            reads_text(model, split, each)
            for split, each in zip((dataset.query, dataset.gallery), conditions, strict=True)
        )
        _check_calibration(name, calibration, weights_digest(model), captions, options)
        try:
            curves[name] = calibration.curve(*shown)
        except KeyError as error:
            raise ValueError(f"calibration of {name}: {error.args[0]}") from error
    known = [[place for place, each in enumerate(split) if each.pid >= 0] for split in (dataset.query, dataset.gallery)]
    asked, total = known[0], len(known[0])
    if total > queries:
        asked = sorted(seeded_rng("scores", seed).permutation(asked)[:queries].tolist())
    counts = {}
    for name, model in models.items():
        ranked = rank_queries(as_reid_model(model), dataset, rule, conditions, options)
        split = [dataset.query[place] for place in asked], [dataset.gallery[place] for place in known[1]]
        counts[name] = count_scores(ranked.query[asked], ranked.gallery[known[1]], *split, rule)
    first = next(iter(counts.values()))
    caption = (
        f"{dataset.name}: cosines of {int(first.same.sum()):,} pairs of the same identity and "
        f"{int(first.different.sum()):,} of two, {len(asked)} "
        f"{f'of {total} queries at random (seed {seed})' if len(asked) < total else 'queries'} with the gallery, "
        f"protocol {rule.name}. EER: where both errors are equal. "
    )
    if curves:
        caption += (
            "FMR: thresholds of false match rates, and calibrated probabilities, as 'nextreid calibrate' found; the "
            "discs grow with the number of their pairs."
        )
    else:
        caption += "No model is calibrated: 'nextreid calibrate' finds thresholds and probabilities."
    return scores_plot(counts, curves, caption, style=style)


def count_scores(
    query: Tensor, gallery: Tensor, queries: Sequence[Sample], entries: Sequence[Sample], rule: Protocol
) -> ScoreCounts:
    """Count the cosines of all pairs that count under a protocol, in steps of `STEP`.

    Args:
        query: ``(Q, F)``.
        gallery: ``(G, F)``.
        queries: Q samples of known identity.
        entries: G of them.
        rule: Says which pairs are ignored.
    """
    bins = round(2 / STEP) + 1
    keys = [sample.key for sample in queries], [sample.key for sample in entries]
    ids = SameIdentity(identities(queries), identities(entries), rule, *keys)
    query, gallery = F.normalize(query, dim=1), F.normalize(gallery, dim=1)
    same, every = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    rows = max(1, _BLOCK // max(1, len(gallery)))
    for start in range(0, len(query), rows):
        step = ((query[start : start + rows] @ gallery.T + 1) / STEP).long().clamp_(0, bins - 1).numpy()
        index, matches, ignored = ids.entries(start, start + rows)
        of_same = np.take_along_axis(step, index, axis=1)
        every += np.bincount(step.ravel(), minlength=bins)
        same += np.bincount(of_same[matches], minlength=bins)
        every -= np.bincount(of_same[matches | ignored], minlength=bins)
    return ScoreCounts(np.arange(bins + 1) * STEP - 1, same, every)


def _check_calibration(name: str, calibration: Calibration, digest: str, captions: bool, options: EmbedOptions) -> None:
    wanted = {"digest": digest, "captions": "yes" if captions else "no", "embedding": options.embedding}
    for what, ours in wanted.items():
        if what in calibration.about and calibration.about[what] != ours:
            raise ValueError(
                f"the calibration of {name} has {what} {calibration.about[what]!r}, here it is {ours!r}: calibrate "
                "the model as it is used here, or leave the calibration out"
            )
