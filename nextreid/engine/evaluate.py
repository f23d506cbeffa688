"""Samples to embeddings, and a data set to its numbers under a protocol."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nextreid.data import ReIDDataset, Sample
from nextreid.data.loader import make_loader
from nextreid.data.transforms import EvalTransform
from nextreid.models import ReIDModel
from nextreid.retrieval import Identities, Protocol, RetrievalResult, get_protocol, rank

from .conditions import has_captions, hide_modalities


@dataclass(frozen=True)
class EvaluationReport:
    """A retrieval result together with what it was measured on.

    Attributes:
        result: The numbers and the protocol.
        text: Whether captions were read; False when none exist or the model reads none.
        missing: Modalities that were hidden.
        samples: Distinct samples that were embedded.
        seconds: Duration of embedding and ranking.
    """

    result: RetrievalResult
    text: bool
    missing: tuple[str, ...]
    samples: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return one flat dict for JSON: the result's entries, then the conditions."""
        return {
            **self.result.to_dict(),
            "text": self.text,
            "missing": list(self.missing),
            "samples": self.samples,
            "seconds": round(self.seconds, 3),
        }


def evaluate(
    model: ReIDModel,
    dataset: ReIDDataset,
    *,
    protocol: str | Protocol | None = None,
    text: bool = True,
    missing: Sequence[str] = (),
    batch_size: int = 64,
    device: torch.device | str | None = None,
    workers: int = 0,
    progress: bool = False,
) -> EvaluationReport:
    """Rank the gallery for every query and measure it.

    A sample that is in both splits is embedded once. Embeddings are float32 whatever the training used.

    Args:
        model: A model of the zoo; its modalities must be the data set's.
        dataset: Query and gallery come from here.
        protocol: A name or a protocol; None takes the data set's own.
        text: Whether captions are read, where the model reads captions and the data set has some.
        missing: Modalities to hide, pictures and captions both.
        batch_size: Samples of a forward pass.
        device: Where to compute; None stays where the model is, otherwise the model moves there.
        workers: Processes that load pictures.
        progress: Whether to show a progress bar.

    Returns:
        The result and its conditions.

    Raises:
        ValueError: A split is empty, no query has a valid match, a modality to hide is unknown or the last one, the
            modalities differ, or one key names two different samples.
    """
    rule = get_protocol(protocol or dataset.protocol)
    check_modalities(model, dataset)
    for split in ("query", "gallery"):
        if not getattr(dataset, split):
            raise ValueError(f"data set {dataset.name!r} has no {split} samples; nothing can be ranked")
    start = time.perf_counter()
    samples = _distinct((*dataset.query, *dataset.gallery))
    text = text and model.uses_text and has_captions(samples)
    embeddings, keys = embed_samples(
        model,
        samples,
        text=text,
        missing=missing,
        after_neck=rule.feature == "after_neck",
        batch_size=batch_size,
        device=device,
        workers=workers,
        progress=progress,
    )
    rows = {key: row for row, key in enumerate(keys)}
    query_keys, gallery_keys = ([sample.key for sample in split] for split in (dataset.query, dataset.gallery))
    result = rank(
        embeddings[[rows[key] for key in query_keys]],
        embeddings[[rows[key] for key in gallery_keys]],
        identities(dataset.query),
        identities(dataset.gallery),
        rule,
        query_keys=query_keys,
        gallery_keys=gallery_keys,
    )
    return EvaluationReport(result, text, tuple(missing), len(samples), time.perf_counter() - start)


def embed_samples(
    model: ReIDModel,
    samples: Sequence[Sample],
    *,
    text: bool = True,
    missing: Sequence[str] = (),
    after_neck: bool = False,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    workers: int = 0,
    progress: bool = False,
) -> tuple[Tensor, list[str]]:
    """Embed samples in their order; the model is left in the mode it was in.

    Args:
        model: A model of the zoo.
        samples: Any number of samples with pictures in the order of ``model.modalities``.
        text: Whether captions are read, where there are some.
        missing: Modalities to hide.
        after_neck: Whether the embedding is taken after the batch-norm neck.
        batch_size: Samples of a forward pass.
        device: Where to compute; None stays where the model is, otherwise the model moves there.
        workers: Processes that load pictures.
        progress: Whether to show a progress bar.

    Returns:
        Embeddings ``(n, F)``, float32, on the CPU, not normalised, and the samples' keys.

    Raises:
        ValueError: There is no sample, a sample has no picture, or a picture cannot be read.
    """
    if not samples:
        raise ValueError("there is no sample to embed")
    visible = hide_modalities(samples, model.modalities, missing)
    text = text and model.uses_text and has_captions(visible)
    device = place(model, device)
    config = model.pretrained_cfg
    loader = make_loader(
        visible,
        EvalTransform(model.img_size, config.mean, config.std, config.interpolation),
        model.modalities,
        batch_size=batch_size,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    parts, keys = [], []
    with torch.no_grad(), _evaluating(model):
        for batch in tqdm(loader, desc="embed", unit="batch", leave=False, disable=not progress):
            batch = batch.to(device)
            embedding = model.embed(
                batch.images,
                text=batch.captions if text else None,
                present=batch.present,
                camid=batch.camid,
                after_neck=after_neck,
            )
            parts.append(embedding.float().cpu())
            keys.extend(batch.keys)
    return torch.cat(parts), keys


def identities(samples: Sequence[Sample]) -> Identities:
    """Return the samples' ids as the arrays that retrieval takes."""
    pid, camid, sceneid = (
        np.array([getattr(sample, field) for sample in samples], dtype=np.int64)
        for field in ("pid", "camid", "sceneid")
    )
    return Identities(pid, camid, sceneid)


def check_modalities(model: ReIDModel, dataset: ReIDDataset) -> None:
    """Raise ValueError unless model and data set have the same modalities in the same order."""
    ours, theirs = tuple(model.modalities), tuple(dataset.modalities)
    if ours != theirs:
        raise ValueError(
            f"the model reads {', '.join(ours)} but data set {dataset.name!r} has {', '.join(theirs)}; "
            f"load it with modalities={ours!r} or create the model with modalities={theirs!r}"
        )


def place(model: ReIDModel, device: torch.device | str | None) -> torch.device:
    """Move the model to `device`, or find out where it is; return the device."""
    if device is None:
        return next(model.parameters()).device
    model.to(device)
    return torch.device(device)


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    by_key: dict[str, Sample] = {}
    for sample in samples:
        known = by_key.setdefault(sample.key, sample)
        if known is not sample and not _same(known, sample):
            raise ValueError(f"key {sample.key!r} names two different samples of query and gallery; make keys unique")
    return list(by_key.values())


def _same(a: Sample, b: Sample) -> bool:
    ids = (a.pid, a.camid, a.sceneid) == (b.pid, b.camid, b.sceneid)
    return ids and len(a.images) == len(b.images) and all(map(_same_image, a.images, b.images))


def _same_image(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and a == b


@contextmanager
def _evaluating(model: ReIDModel) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Not model.train(): a part that the user keeps in evaluation mode stays there.
        for module, mode in modes:
            module.training = mode
