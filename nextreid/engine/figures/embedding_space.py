"""Where the embeddings of chosen identities lie, model beside model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nextreid._names import unknown
from nextreid.data import ReIDDataset, Sample, seeded_rng
from nextreid.data.image import OnError
from nextreid.data.sample import LabelNames
from nextreid.models import as_reid_model
from nextreid.retrieval import Protocol, get_protocol
from nextreid.viz import Plot, space_plot
from nextreid.viz.plot import get_style

from ..ablations import hide_modalities
from ..embedding import EmbedOptions
from ..evaluation import checked, of_query_and_gallery
from ..ranking import rank_queries

_WIDTH, _PERPLEXITY = 50, 30.0


def space(
    models: Mapping[str, nn.Module],
    dataset: ReIDDataset,
    *,
    identities: Sequence[str] = (),
    count: int = 12,
    limit: int = 1200,
    protocol: str | Protocol | None = None,
    text: bool = True,
    missing: Sequence[str] = (),
    seed: int = 0,
    style: str = "light",
    on_error: OnError = "raise",
    allow_leak: bool = False,
    options: EmbedOptions = EmbedOptions(),
) -> Plot:
    """Draw the embeddings of some identities on a plane by t-SNE, for several models side by side (NEXT, Fig. 10).

    Beside each model stand the mAP of the whole test set, and the mean silhouette of the drawn samples by cosine in the
    embedding space itself (Rousseeuw, 1987): 1 where each identity is a tight cluster of its own, 0 where they touch.

    Args:
        models: Models by the names to write above them.
        dataset: Query and gallery come from here.
        identities: Those to draw, as the dataset's files call them; empty draws `count` at random.
        count: Identities that are drawn at random, of those with more than one sample if there are any.
        limit: Samples to draw at most; of an identity that has more than its share, some at random.
        protocol: As for `evaluate`.
        text: Whether captions are read.
        missing: Modalities to hide.
        seed: Of all that is random.
        style: One of `nextreid.viz.STYLES`.
        on_error: What to do about images that cannot be read, see `evaluate`.
        allow_leak: Whether to go on when a model was trained on identities of this test set.
        options: How samples are embedded.

    Returns:
        The plot, whose caption says what was drawn.

    Raises:
        ValueError: If there is no model, an identity is unknown, or as `evaluate`.
        ImportError: scikit-learn or matplotlib is not installed.

    Example:
        >>> from nextreid.viz import save_image
        >>> save_image(space({"next_tiny": model}, dataset, count=8), "space.pdf")  # doctest: +SKIP
    """
    if not models:
        raise ValueError("there is no model to draw the embeddings of")
    if count < 1 or limit < 1:
        raise ValueError(f"count and limit must be at least 1, got {count} and {limit}")
    get_style(style)
    _sklearn()
    rule = get_protocol(protocol or dataset.protocol)
    condition = hide_modalities(dataset.modalities, missing, text)
    for model in models.values():
        dataset = checked(as_reid_model(model), dataset, on_error, allow_leak)
    conditions = of_query_and_gallery(rule, dataset.modalities, condition)
    seen = set() if conditions[0] != conditions[1] else {sample.key for sample in dataset.gallery}
    own = [place for place, sample in enumerate(dataset.query) if sample.key not in seen]
    samples = [*(dataset.query[place] for place in own), *dataset.gallery]
    chosen = choose_samples(samples, identities, count, limit, seed, dataset.label_names)
    pids = np.array([samples[place].pid for place in chosen])
    points, notes = {}, {}
    for name, model in models.items():
        ranked = rank_queries(as_reid_model(model), dataset, rule, conditions, options)
        vectors = F.normalize(torch.cat([ranked.query[own], ranked.gallery])[chosen], dim=1).double().numpy()
        points[name] = plane(vectors, seed)
        found, near = np.nanmean(ranked.ap) if not np.isnan(ranked.ap).all() else None, silhouette(vectors, pids)
        notes[name] = ", ".join(
            ([] if found is None else [f"mAP {100 * found:.1f} %"])
            + ([] if near is None else [f"silhouette {near:.2f}"])
        )
    names = dataset.label_names.get("pid", {})
    known = {sample.pid for sample in samples if sample.pid >= 0}
    of_all = sum(sample.pid in set(pids.tolist()) for sample in samples)
    shown = len(set(pids.tolist()))
    which = f"{shown} of {len(known)} identities" if shown < len(known) else f"all {shown} identities"
    which += f" at random (seed {seed})" if not identities and shown < len(known) else ""
    drawn = f"{len(chosen)} of their {of_all} samples" if len(chosen) < of_all else f"all their {of_all} samples"
    caption = (
        f"{dataset.name}, {which}, {drawn}; {_method(len(chosen), seed)} Silhouette of "
        f"these samples by cosine in the embedding space, mAP of the whole test set, protocol {rule.name}."
    )
    return space_plot(points, [names.get(pid, str(pid)) for pid in pids.tolist()], notes, caption, style=style)


def choose_samples(
    samples: Sequence[Sample],
    identities: Sequence[str],
    count: int,
    limit: int,
    seed: int,
    label_names: LabelNames,
) -> list[int]:
    """Choose samples of named or of random identities, each with as many as the others as far as it has them.

    Returns:
        Places in `samples`, identity by identity.

    Raises:
        ValueError: If an identity is unknown, or no sample has one.
    """
    of: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.pid >= 0:
            of.setdefault(sample.pid, []).append(place)
    if not of:
        raise ValueError(f"none of {len(samples)} samples has a known identity")
    names = label_names.get("pid", {})
    by_name = {names.get(pid, str(pid)): pid for pid in sorted(of)}
    if wrong := [name for name in identities if name not in by_name]:
        some = list(by_name)[:20]
        raise ValueError(unknown("identity", wrong, some) + (" and more" if len(by_name) > len(some) else ""))
    pids = list(dict.fromkeys(by_name[name] for name in identities))
    if not pids:
        candidates = sorted(pid for pid, places in of.items() if len(places) > 1) or sorted(of)
        pids = sorted(seeded_rng("identities", seed).permutation(candidates)[:count].tolist())
    pids = pids[:limit]
    share, left = {}, limit
    for number, pid in enumerate(sorted(pids, key=lambda pid: len(of[pid]))):  # what small ones leave, large ones get
        share[pid] = min(len(of[pid]), left // (len(pids) - number))
        left -= share[pid]
    chosen = []
    for pid in pids:
        places = seeded_rng("samples of", seed, pid).permutation(of[pid])[: share[pid]]
        chosen += sorted(places.tolist())
    return chosen


def plane(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bring n vectors to a plane: their 50 principal components, then t-SNE (van der Maaten and Hinton, 2008).

    Of fewer than four vectors, which t-SNE cannot arrange, or of equal ones, the principal components are taken.

    Args:
        vectors: ``(n, F)``.
        seed: Of the optimisation.

    Returns:
        ``(n, 2)``.
    """
    decomposition, manifold = _sklearn()
    if len(vectors) < 2 or np.ptp(vectors, axis=0).max() < 1e-9:
        return np.zeros((len(vectors), 2))
    width = min(_WIDTH, *vectors.shape)
    reduced = decomposition.PCA(width, svd_solver="full").fit_transform(vectors)
    if len(vectors) < 4 or width < 2:
        return np.pad(reduced, ((0, 0), (0, max(0, 2 - width))))[:, :2]
    return manifold.TSNE(
        2, perplexity=perplexity(len(vectors)), init="pca", learning_rate="auto", random_state=seed
    ).fit_transform(reduced)


def perplexity(count: int) -> float:
    """Neighbours that t-SNE keeps near: 30, or a third of a small number of samples."""
    return min(_PERPLEXITY, (count - 1) / 3)


def silhouette(vectors: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean silhouette by cosine; None unless there are at least two identities and one with two samples."""
    if not 1 < len(np.unique(labels)) < len(labels):
        return None
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(vectors, labels, metric="cosine"))


def _method(count: int, seed: int) -> str:
    if count < 4:
        return "too few for t-SNE, so that these are principal components."
    return f"t-SNE of {_WIDTH} principal components at perplexity {perplexity(count):.3g}, seed {seed}."


def _sklearn() -> tuple[Any, Any]:
    """scikit-learn's decomposition and manifold; ImportError names the extra."""
    try:
        from sklearn import decomposition, manifold
    except ImportError as error:
        raise ImportError('t-SNE needs scikit-learn: pip install "nextreid[figures]"') from error
    return decomposition, manifold
