"""A model's scores on identities of a dataset to what they mean, for every set of modalities."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextreid._names import unknown
from nextreid.data import ReIDDataset, Sample, seeded_rng
from nextreid.data.image import OnError
from nextreid.models import ReIDModel, as_reid_model
from nextreid.retrieval import Calibration, Protocol, get_protocol
from nextreid.retrieval.calibration import fit_curve, shown_name
from nextreid.retrieval.calibration_fit import Pairs
from nextreid.retrieval.protocol import SameIdentity

from .ablations import Condition
from .embedding import EmbedOptions, embed_conditions, is_visible
from .evaluation import checked, identities, subsets
from .provenance import trained_sets, weights_digest

SPLITS = ("train", "test")
_logger = logging.getLogger(__name__)


def calibrate(
    model: nn.Module,
    dataset: ReIDDataset,
    *,
    split: str = "train",
    allow_test: bool = False,
    protocol: str | Protocol | None = None,
    cross: bool = False,
    text: bool = True,
    limit: int = 4000,
    seed: int = 0,
    on_error: OnError = "raise",
    options: EmbedOptions = EmbedOptions(),
) -> Calibration:
    """Find what a model's scores mean: probabilities, thresholds and open-set rates, for every subset of modalities.

    Scores are cosines. Every sample of the split is a query against all others that the protocol does not ignore. Where
    the model was trained on these very identities it knows them too well, and a warning says so: take others.

    Args:
        model: A model of the zoo, or a module that `nextreid.adapt` takes.
        dataset: Its samples of known identity.
        split: ``"train"``, or ``"test"`` for query and gallery.
        allow_test: Whether the test split may be calibrated on: its metrics are then no longer those of unseen data.
        protocol: Says which pairs are ignored; None takes the dataset's own.
        cross: Also every subset against every other one, compared by the mean of the modalities' parts.
        text: Whether captions are read.
        limit: Samples at most; whole identities are left out at random.
        seed: Of what is left out, of the halves that are held out, and of the bootstrap.
        on_error: What to do about images that cannot be read, see `evaluate`.
        options: How samples are embedded.

    Returns:
        A curve for each subset under which at least four identities have pairs; the first is that of all modalities.

    Raises:
        ValueError: If the split is unknown, is the test split without `allow_test`, or has too few identities.
    """
    model = as_reid_model(model)
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    if split == "test" and not allow_test:
        raise ValueError(
            "calibrating on the test split makes its metrics those of seen data: take the split train of a dataset "
            "that the model was not trained on, or allow it (allow_test=True, --allow-test)"
        )
    dataset = checked(model, dataset, on_error, allow_leak=True)
    rule = get_protocol(protocol or dataset.protocol)
    if split == "train" and dataset.name in trained_sets(model):
        _logger.warning(
            "the model was trained on %s: it tells these identities apart better than others, and the probabilities "
            "will be too sure; calibrate on identities that it has not seen",
            dataset.name,
        )
    given = dataset.train if split == "train" else (*dataset.query, *dataset.gallery)
    samples = _limited([sample for sample in given if sample.pid >= 0], limit, seed)
    if not samples:
        raise ValueError(f"split {split} of {dataset.name} has no sample of known identity")
    shown = subsets(dataset.modalities)[::-1]  # all modalities first
    conditions = [Condition(text, subset) for subset in shown]
    embedded = dict(zip(shown, embed_conditions(model, samples, conditions, options), strict=True))
    visible = {
        subset: np.array([is_visible(sample, condition.shows(dataset.modalities)) for sample in samples], bool)
        for subset, condition in zip(shown, conditions, strict=True)
    }
    counts = _counts(samples, rule)
    pids = np.array([sample.pid for sample in samples], np.int64)
    sets = [(one, one) for one in shown]
    if cross:
        sets += [(one, two) for one in shown for two in shown if one != two]
    curves = {}
    for query, gallery in sets:
        rows, columns = np.flatnonzero(visible[query]), np.flatnonzero(visible[gallery])
        similar = _cosines(model, embedded[query][rows], embedded[gallery][columns], query != gallery)
        pairs = Pairs(similar, pids[rows], pids[columns], counts[np.ix_(rows, columns)])
        name = shown_name(query, gallery)
        try:
            curves[name] = fit_curve(pairs, seed=seed)
        except ValueError as error:
            if query == gallery == shown[0]:
                raise ValueError(f"split {split} of {dataset.name}: {error}") from error
            _logger.warning("%s is left out: %s", name, error)
    about = {
        "model": model.pretrained_cfg.architecture,
        "digest": weights_digest(model),
        "dataset": dataset.name,
        "split": split,
        "protocol": rule.name,
        "embedding": options.embedding,
        "captions": "yes" if text and model.uses_text else "no",
    }
    return Calibration(curves, about)


def _limited(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """Whole identities at random, `limit` samples at most; samples that are given twice count once."""
    if limit < 8:
        raise ValueError(f"limit must be at least 8 samples, got {limit}")
    once = list({sample.key: sample for sample in samples}.values())
    if len(once) <= limit:
        return once
    of: dict[int, list[Sample]] = {}
    for sample in once:
        of.setdefault(sample.pid, []).append(sample)
    kept: list[Sample] = []
    for pid in seeded_rng("calibration", seed).permutation(sorted(of)).tolist():
        if len(kept) + len(of[pid]) <= limit:
            kept += of[pid]
    return kept


def _counts(samples: Sequence[Sample], rule: Protocol) -> np.ndarray:
    """Which pairs count under a protocol, ``(n, n)`` bool: not a sample with itself, nor what is ignored."""
    ids, keys = identities(samples), [sample.key for sample in samples]
    counts = np.ones((len(samples), len(samples)), bool)
    index, _, ignored = SameIdentity(ids, ids, rule, keys, keys).entries(0, len(samples))
    row, place = np.nonzero(ignored)
    counts[row, index[row, place]] = False
    return counts


def _cosines(model: ReIDModel, query: Tensor, gallery: Tensor, average: bool) -> np.ndarray:
    if average:
        query, gallery = model.average_modalities(query), model.average_modalities(gallery)
    with torch.no_grad():
        return (F.normalize(query, dim=1) @ F.normalize(gallery, dim=1).T).numpy()
