"""Samples to embeddings, in one process or shared by several."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from nextreid.data import Batch, ImageCache, Sample, augment_batch
from nextreid.data.loader import Augment, make_loader
from nextreid.data.transforms import EvalTransform
from nextreid.models import ReIDModel

from .ablations import has_captions, hide_modalities
from .distributed import all_gather, is_main, rank, world_size


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
    store: ImageCache | None = None,
    augment: Augment = "cpu",
) -> tuple[Tensor, list[str]]:
    """Embed samples in their order; the model is left in the mode it was in.

    Several processes (``torchrun``) share the batches, whose composition stays, and each returns all embeddings, equal
    to the bit to those of one process that computes with as many threads.

    Args:
        model: A model of the zoo.
        samples: Any number of samples with images in the order of ``model.modalities``.
        text: Whether captions are read, where there are some.
        missing: Modalities to hide.
        after_neck: Whether the embedding is taken after the batch-norm neck.
        batch_size: Samples of a forward pass.
        device: Where to compute; None stays where the model is, otherwise the model moves there.
        workers: Processes that load images.
        progress: Whether to show a progress bar.
        store: Where the images are read from, instead of their files.
        augment: Where they are normalised, in the loading processes or on the device; the numbers are the same.

    Returns:
        Embeddings ``(n, F)``, float32, on the CPU, not normalised, and the samples' keys.

    Raises:
        ValueError: There is no sample, a sample has no image, or an image cannot be read.
    """
    if not samples:
        raise ValueError("there is no sample to embed")
    visible = hide_modalities(samples, model.modalities, missing)
    (embeddings,) = embed_subsets(
        model,
        visible,
        [model.modalities],
        text=text,
        after_neck=after_neck,
        batch_size=batch_size,
        device=device,
        workers=workers,
        progress=progress,
        store=store,
        augment=augment,
    )
    return embeddings, [sample.key for sample in samples]


def embed_subsets(
    model: ReIDModel,
    samples: Sequence[Sample],
    subsets: Sequence[Sequence[str]],
    *,
    text: bool = True,
    after_neck: bool = False,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    workers: int = 0,
    progress: bool = False,
    store: ImageCache | None = None,
    augment: Augment = "cpu",
) -> list[Tensor]:
    """Embed samples once for each subset of the modalities; every image is decoded once.

    A sample that has nothing to show under a subset gets a row that means nothing.

    Args:
        model: See `embed_samples`.
        samples: See `embed_samples`.
        subsets: For each result the names of the modalities that are shown.
        text: See `embed_samples`.
        after_neck: See `embed_samples`.
        batch_size: See `embed_samples`.
        device: See `embed_samples`.
        workers: See `embed_samples`.
        progress: See `embed_samples`.
        store: See `embed_samples`.
        augment: See `embed_samples`.

    Returns:
        For each subset the embeddings ``(n, F)``, float32, on the CPU, not normalised.
    """
    text = text and model.uses_text and has_captions(samples)
    device = move_to_device(model, device)
    transform = eval_transform(model)
    own = _own_rows(len(samples), batch_size, rank())
    parts: list[list[Tensor]] = [[torch.empty(0, model.num_features)] for _ in subsets]
    if own:
        loader = make_loader(
            [samples[row] for row in own],
            transform,
            model.modalities,
            batch_size=batch_size,
            workers=workers,
            pin_memory=device.type == "cuda",
            store=store,
            augment=augment,
        )
        bar = tqdm(loader, desc="embed", unit="batch", leave=False, disable=not (progress and is_main()))
        with torch.no_grad(), _evaluating(model), bar:
            for batch in bar:
                batch = batch.to(device)
                if augment == "device":
                    batch = augment_batch(batch, transform)
                for part, subset in zip(parts, subsets, strict=True):
                    part.append(_forward(model, batch, subset, text, after_neck).float().cpu())
    keep_texts(model)
    return [_joined(torch.cat(part), len(samples), batch_size) for part in parts]


def keep_texts(model: ReIDModel) -> None:
    """Write the text table of a model to the file that was opened for it, if one was."""
    if model.text_tower is not None:
        model.text_tower.save_cache()


def eval_transform(model: ReIDModel) -> EvalTransform:
    """Return what turns images into the model's input."""
    config = model.pretrained_cfg
    return EvalTransform(model.img_size, config.mean, config.std, config.interpolation)


def move_to_device(model: ReIDModel, device: torch.device | str | None) -> torch.device:
    """AugmentParams the model to `device`, or find out where it is; return the device."""
    if device is None:
        return next(model.parameters()).device
    model.to(device)
    return torch.device(device)


def _forward(model: ReIDModel, batch: Batch, subset: Sequence[str], text: bool, after_neck: bool) -> Tensor:
    shown = [modality in subset for modality in model.modalities]
    captions = [[said if show else () for said, show in zip(row, shown, strict=True)] for row in batch.captions]
    return model.embed(
        batch.images,
        text=captions if text else None,
        present=batch.present & torch.tensor(shown, device=batch.present.device),
        camid=batch.camid,
        after_neck=after_neck,
    )


def _own_rows(count: int, batch_size: int, which: int) -> list[int]:
    """Return the rows that a process embeds: every so manieth batch, cut as one process would cut them."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    starts = range(which * batch_size, count, world_size() * batch_size)
    return [row for start in starts for row in range(start, min(start + batch_size, count))]


def _joined(rows: Tensor, count: int, batch_size: int) -> Tensor:
    if world_size() == 1:
        return rows
    places = [_own_rows(count, batch_size, which) for which in range(world_size())]
    padded = rows.new_zeros(len(places[0]), rows.shape[1])  # the first has the most
    padded[: len(rows)] = rows
    everything = all_gather(padded).view(len(places), *padded.shape)
    out = rows.new_empty(count, rows.shape[1])
    for theirs, part in zip(places, everything, strict=True):
        out[theirs] = part[: len(theirs)]
    return out


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
