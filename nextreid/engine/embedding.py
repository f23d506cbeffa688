"""Samples to embeddings, the one way: the towers run once for each batch, the rest once for each condition."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextreid._progress import progress_bar
from nextreid.data import Batch, ImageCache, Sample, augment_batch
from nextreid.data.loader import Augment, make_loader
from nextreid.data.transforms import EvalTransform
from nextreid.models import ReIDModel, as_reid_model
from nextreid.models._adapter import evaluating

from .ablations import Condition, has_captions
from .distributed import all_gather_objects, is_main, rank, world_size

_logger = logging.getLogger(__name__)
_TEXT_LOCK = threading.Lock()  # a text tower keeps what it encoded in a table that two threads must not fill at once


@dataclass(frozen=True)
class EmbedOptions:
    """How samples are embedded; evaluation, extraction and their like pass it on as one value.

    Attributes:
        batch_size: Samples of a forward pass.
        workers: Processes that load images.
        device: Where to compute; None stays where the model is, otherwise the model moves there.
        progress: Whether to show progress on stderr, where it takes more than two seconds.
        cache: Where the images are read from, instead of their files.
        augment: Where they are normalised, in the loading processes or on the device; the values are the same.
        embedding: Which of the vectors that ``model.embeddings`` names; None for the default.
        after_neck: Whether the classified vectors are taken behind their batch-norm necks. In an evaluation the
            protocol's ``feature`` may say so too.
        words: Whether the image's vector in the joint space with words follows each vector; see `joint_width`.

    Raises:
        ValueError: If ``batch_size`` is below 1 or ``workers`` below 0.
    """

    batch_size: int = 64
    workers: int = 0
    device: torch.device | str | None = None
    progress: bool = False
    cache: ImageCache | None = None
    augment: Augment = "cpu"
    embedding: str | None = None
    after_neck: bool = False
    words: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (load in this process) or more, got {self.workers}")


def embed_samples(
    model: nn.Module,
    samples: Sequence[Sample],
    condition: Condition = Condition(),
    options: EmbedOptions = EmbedOptions(),
) -> Tensor:
    """Embed samples in their order; the model is left in the mode it was in.

    Several processes (``torchrun``) share the batches, whose composition stays, and each returns all embeddings, equal
    to the bit to those of one process that computes with as many threads.

    Args:
        model: A model of the zoo, or a module that `nextreid.adapt` takes.
        samples: Any number of samples with images in the order of ``model.modalities``.
        condition: What is shown of them.
        options: How they are embedded.

    Returns:
        Embeddings ``(n, F)``, float32, on the CPU, not normalised.

    Raises:
        ValueError: There is no sample, a sample has no image, an image cannot be read, or an embedding is not finite.
    """
    if not samples:
        raise ValueError("there is no sample to embed")
    model = as_reid_model(model)
    check_visible(samples, model.modalities, condition)
    return embed_conditions(model, samples, [condition], options)[0]


def embed_conditions(
    model: nn.Module, samples: Sequence[Sample], conditions: Sequence[Condition], options: EmbedOptions = EmbedOptions()
) -> list[Tensor]:
    """Embed samples under several conditions; every image is decoded and passes the image tower once.

    A sample of which a condition shows no image gets a row that means nothing. For arguments see `embed_samples`.

    Returns:
        For each condition the embeddings ``(n, F)``, float32, on the CPU, not normalised.
    """
    model = as_reid_model(model)
    device = move_to_device(model, options.device)
    transform = eval_transform(model)
    resolved = [replace(c, text=reads_text(model, samples, c)) for c in conditions]
    # Every n-th batch of n processes, cut as one process would cut them.
    mine = [i for i in range(len(samples)) if i // options.batch_size % world_size() == rank()]
    parts: list[list[Tensor]] = [[torch.empty(0, embedding_width(model, options))] for _ in conditions]
    if mine:
        shown = [any(column) for column in zip(*(c.shows(model.modalities) for c in conditions), strict=True)]
        given = [samples[row] for row in mine]
        if not all(shown):  # do not decode what no condition shows
            given = [
                replace(s, images=tuple(i if show else None for i, show in zip(s.images, shown, strict=True)))
                for s in given
            ]
        loader = make_loader(
            given,
            transform,
            model.modalities,
            batch_size=options.batch_size,
            workers=options.workers,
            pin_memory=device.type == "cuda",
            store=options.cache,
            augment=options.augment,
        )
        bar = progress_bar(loader, "embed", "batch", shown=options.progress and is_main())
        with evaluating(model), bar:
            for batch in bar:
                batch = batch.to(device)
                if options.augment == "device":
                    batch = augment_batch(batch, transform)
                for part, rows in zip(parts, embed_batch(model, batch, resolved, options), strict=True):
                    part.append(rows)
    keep_texts(model)
    vectors = [torch.cat(part) for part in parts]
    return vectors if world_size() == 1 else [_joined(mine, rows) for rows in vectors]


@torch.no_grad()
def embed_batch(
    model: ReIDModel, batch: Batch, conditions: Sequence[Condition], options: EmbedOptions = EmbedOptions()
) -> list[Tensor]:
    """Embed one batch on the model's device: the image tower runs once, the rest once for each condition.

    Cameras beyond those that the model has learned are unknown to it. ValueError if an embedding is not finite.
    """
    encoded = model.encode_images(batch.images, batch.present, known_cameras(model, batch.camid))
    vectors = []
    for condition in conditions:
        shows = condition.shows(model.modalities)
        text = None
        if condition.text:
            captions = [[c if show else () for c, show in zip(row, shows, strict=True)] for row in batch.captions]
            with _TEXT_LOCK:
                text = model.prepare_text(captions)
        present = batch.present & torch.tensor(shows, device=batch.present.device)
        features = model.forward_tokens(encoded, text, present)
        rows = model.vector(features, options.embedding, options.after_neck).float().cpu()
        if options.words:
            rows = torch.cat([rows, _joint_vectors(encoded["cls"], present).float().cpu()], dim=1)
        _reject_not_finite(rows, batch.keys, present.any(1).cpu(), next(model.parameters()).dtype)
        vectors.append(rows)
    return vectors


def known_cameras(model: ReIDModel, camid: Tensor) -> Tensor:
    """The cameras ``(B,)``, -1 for those that the model has no embedding of."""
    count = getattr(getattr(model, "image_tower", None), "num_cameras", 0)
    if not count or not (beyond := camid >= count).any():
        return camid
    _warn_cameras(count)
    return camid.masked_fill(beyond, -1)


@cache
def _warn_cameras(count: int) -> None:
    _logger.warning("images of cameras beyond the %d that the model was trained on: they count as unknown", count)


def _reject_not_finite(rows: Tensor, keys: Sequence[str], shown: Tensor, dtype: torch.dtype) -> None:
    bad = (~rows.isfinite().all(1) & shown).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(
            f"the embeddings of {len(bad)} of {len(rows)} samples of a batch are not finite, first that of "
            f"{keys[bad[0]]!r}, in {dtype}: half precision may have overflowed, take bfloat16 or float32; else the "
            "weights are damaged"
        )


def reads_text(model: ReIDModel, samples: Sequence[Sample], condition: Condition) -> bool:
    """Whether captions reach the model: it reads them, the condition allows it, and it shows some."""
    return condition.text and model.uses_text and has_captions(samples, condition.shows(model.modalities))


def is_visible(sample: Sample, shows: Sequence[bool]) -> bool:
    """Whether any image of a sample is shown."""
    return any(show and image is not None for image, show in zip(sample.images, shows, strict=True))


def check_visible(samples: Sequence[Sample], modalities: Sequence[str], condition: Condition) -> None:
    """Raise ValueError if a condition shows no image of a sample."""
    shows = condition.shows(modalities)
    if empty := [sample.key for sample in samples if not is_visible(sample, shows)]:
        shown = ", ".join(map(repr, empty[:3])) + (" ..." if len(empty) > 3 else "")
        hidden = ", ".join(condition.hidden(modalities))
        once = f" once {hidden} is hidden" if hidden else ""
        raise ValueError(f"{len(empty)} of {len(samples)} samples have no image{once}: {shown}; leave them out")


def embedding_width(model: ReIDModel, options: EmbedOptions) -> int:
    """Width F of the vectors that `embed_batch` gives."""
    joint = joint_width(model) if options.words else 0
    if options.after_neck:
        return sum(model.head_widths) + joint
    return (model.num_features if options.embedding is None else model.embeddings.get(options.embedding, 0)) + joint


def joint_width(model: ReIDModel) -> int:
    """Width of the space that images and words share: that of CLIP's class tokens and texts; 0 where there is none."""
    tower = model.text_tower
    return tower.embed_dim if tower is not None and tower.embed_dim == model.modality_width else 0


def encode_words(model: ReIDModel, texts: Sequence[str]) -> Tensor:
    """Encode texts ``(n, D)``, on the CPU, into the space that images and words share.

    Raises:
        ValueError: The model has no such space, or a text is empty.
    """
    tower = model.text_tower
    if tower is None or not joint_width(model):
        name = model.pretrained_cfg.architecture
        raise ValueError(f"{name} has no space that images and words share: take a model with a text tower")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("an empty text finds nothing: say what is to be seen")
    with _TEXT_LOCK:
        return tower.encode([tower.windows(text) for text in texts]).float().cpu()


def _joint_vectors(cls: Tensor, present: Tensor) -> Tensor:
    """Mean of the present modalities' class tokens ``(B, M, D)``, each at unit length: ``(B, D)``."""
    weight = present[:, :, None].to(cls.dtype)
    return (F.normalize(cls, dim=-1) * weight).sum(1) / weight.sum(1).clamp_min(1)


def keep_texts(model: ReIDModel) -> None:
    """Write the text features of a model to the file that was opened for them, if one was."""
    if model.text_tower is not None:
        model.text_tower.save_cache()


def eval_transform(model: ReIDModel) -> EvalTransform:
    """Return what turns images into the model's input."""
    config = model.pretrained_cfg
    return EvalTransform(model.img_size, config.mean, config.std, config.interpolation)


def move_to_device(model: ReIDModel, device: torch.device | str | None) -> torch.device:
    """Move the model to `device`, or find out where it is; return the device."""
    if device is None:
        return next(model.parameters()).device
    model.to(device)
    return torch.device(device)


def _joined(mine: list[int], rows: Tensor) -> Tensor:
    """Return the rows of all processes at their places."""
    shares = all_gather_objects([(mine, rows)])
    places = torch.tensor([place for theirs, _ in shares for place in theirs], dtype=torch.int64)
    return torch.cat([part for _, part in shares])[places.argsort()]
