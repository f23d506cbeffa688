"""Test-time training: a copy of a model learns on the unlabelled images of query and gallery before it is evaluated."""

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextreid._names import unknown
from nextreid._progress import progress_bar
from nextreid._schema import number, whole
from nextreid.data import Batch, ReIDDataset, Sample, augment_batch, seeded_rng
from nextreid.data.loader import make_loader
from nextreid.losses import identity_margin, modality_margin
from nextreid.models import Head, ReIDModel, as_reid_model

from .ablations import Condition
from .distributed import broadcast_parameters, is_main
from .embedding import EmbedOptions, eval_transform, known_cameras, move_to_device, reads_text

_logger = logging.getLogger(__name__)


_KINDS = {
    "epochs": whole(1, 10_000),
    "batch_size": whole(1, 100_000),
    "lr": number(1e-12, 1e3),
    "margin": number(0, 1e3),
    "confident": number(0, 1),
    "temperature": number(1e-6, 1e3),
    "seed": whole(0, 2**63 - 1),
}


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How a model is trained on at test; `get_adaptation` gives those of the papers.

    Attributes:
        method: ``"htt"``: `modality_margin` and `identity_margin` of the modalities' parts of the embedding, with the
            classes that the model's classifiers take the images for as identities, by SGD (Wang et al., AAAI 2024).
            ``"proxyttt"``: `confident_loss` against the rows of the classifiers, by Adam (ProxyTTT, AAAI 2026, whose
            proxies are vectors of their own).
        epochs: Passes over the images of query and gallery.
        batch_size: Samples of a step.
        lr: Learning rate.
        margin: Of both margins of ``"htt"``.
        confident: Share of a batch that counts as confident in ``"proxyttt"``.
        temperature: Divisor of the cosines where ``"proxyttt"`` takes the entropy.
        seed: Of the order of the images.

    Raises:
        ValueError: If the method is unknown or a number is not allowed.
    """

    method: str
    epochs: int
    batch_size: int
    lr: float
    margin: float = 1.0
    confident: float = 0.45
    temperature: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in _LOSSES:
            raise ValueError(unknown("method of test-time training", str(self.method), sorted(_LOSSES)))
        for name, kind in _KINDS.items():
            kind(f"test-time training: {name}", getattr(self, name))

    def __str__(self) -> str:
        return f"adapted to the unlabelled test images ({self.method}, epochs={self.epochs})"


def get_adaptation(method: str = "htt", /, **changes: Any) -> Adaptation:
    """The test-time training of a paper, as its code does it on RGBNT201, with some settings changed.

    Args:
        method: ``"htt"`` or ``"proxyttt"``.
        **changes: Fields of `Adaptation`.

    Raises:
        KeyError: If the method is unknown.
        ValueError: If a field is unknown or its value is not allowed.
    """
    if method not in ADAPTATIONS:
        raise KeyError(unknown("method of test-time training", method, sorted(ADAPTATIONS)))
    if wrong := changes.keys() - _KINDS.keys():
        raise ValueError(unknown("setting of test-time training", wrong, sorted(_KINDS)))
    return replace(ADAPTATIONS[method], **changes)


def adapt_at_test(
    model: nn.Module,
    dataset: ReIDDataset,
    adaptation: Adaptation,
    condition: Condition = Condition(),
    options: EmbedOptions = EmbedOptions(),
) -> ReIDModel:
    """Train a copy of a model on the images of query and gallery, without their identities.

    The copy says in the protocol of every evaluation that it was adapted; neither the model nor its checkpoint changes.
    Images are as in evaluation, and dropout and batch norms too, so that batches may be small. What of the model learns
    in training learns here, but for its classifiers. Several processes compute the same; that of the first counts.

    Args:
        model: A model of the zoo with its classifiers, or a module that `nextreid.adapt` takes.
        dataset: Its query and gallery are learned from. Their identities are removed before anything reads them.
        adaptation: Method and settings.
        condition: What is shown of the samples.
        options: Device, image cache, loading processes.

    Returns:
        The adapted copy, in evaluation mode.

    Raises:
        ValueError: If the model has no classifiers, ``"htt"`` finds no parts of modalities in its embedding, or there
            is no image.
        FloatingPointError: If a loss is not finite.

    Example:
        >>> adapted = adapt_at_test(model, dataset, get_adaptation("proxyttt"))  # doctest: +SKIP
        >>> evaluate(adapted, dataset)  # doctest: +SKIP
    """
    model = as_reid_model(model)
    if not model.num_classes:
        raise ValueError("test-time training takes images for training identities: the model has no classifier")
    if adaptation.method == "htt" and (model.modality_width is None or len(model.modalities) < 2):
        raise ValueError(
            f"'htt' compares the modalities' parts of an embedding, and that of {type(model).__name__} has none; "
            "take method='proxyttt'"
        )
    samples = _unlabelled(dataset, condition.shows(model.modalities))
    device = move_to_device(model, options.device)
    model = copy.deepcopy(model).eval()
    text = reads_text(model, samples, condition)
    fixed = {id(p) for name in model.of_identities for p in model.get_submodule(name).parameters()}
    learning = [p for p in model.parameters() if p.requires_grad and id(p) not in fixed]
    if not learning:
        raise ValueError("no parameter to train: requires_grad is False for all of them")
    optimizer = (
        torch.optim.SGD(learning, adaptation.lr, momentum=0.9)
        if adaptation.method == "htt"
        else torch.optim.Adam(learning, adaptation.lr)
    )
    for epoch in range(1, adaptation.epochs + 1):
        order = seeded_rng("adapt", adaptation.seed, epoch).permutation(len(samples))
        _epoch(model, [samples[i] for i in order], text, device, options, optimizer, adaptation, epoch)
    broadcast_parameters(model)
    model.requires_grad_(False)
    model.adapted = str(adaptation)
    cfg = model.pretrained_cfg
    notes = f"{cfg.notes} " if cfg.notes else ""
    model.pretrained_cfg = cfg.replace(notes=f"{notes}The weights are {adaptation}: {dataset.name}.")
    return model


def _epoch(
    model: ReIDModel,
    samples: list[Sample],
    text: bool,
    device: torch.device,
    options: EmbedOptions,
    optimizer: torch.optim.Optimizer,
    adaptation: Adaptation,
    epoch: int,
) -> None:
    transform = eval_transform(model)
    loader = make_loader(
        samples,
        transform,
        model.modalities,
        batch_size=adaptation.batch_size,
        workers=options.workers,
        pin_memory=device.type == "cuda",
        store=options.cache,
        augment=options.augment,
    )
    bar = progress_bar(loader, f"adapt {epoch}/{adaptation.epochs}", "step", shown=options.progress and is_main())
    total, steps = 0.0, 0
    with bar, torch.enable_grad():
        for batch in bar:
            batch = batch.to(device)
            if options.augment == "device":
                batch = augment_batch(batch, transform)
            features = _features(model, batch, text)
            heads = model.classify(model.pool_heads(features))
            loss = _LOSSES[adaptation.method](model, model.pool(features), heads, batch.present, adaptation)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss of the test-time training is not finite in epoch {epoch}; lower lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total, steps = total + loss.item(), steps + 1
    _logger.info("%s, epoch %d: loss %.4f", adaptation, epoch, total / max(steps, 1))


def _features(model: ReIDModel, batch: Batch, text: bool) -> dict[str, Tensor]:
    encoded = model.encode_images(batch.images, batch.present, known_cameras(model, batch.camid))
    prepared = model.prepare_text(batch.captions) if text else None
    return model.forward_tokens(encoded, prepared, batch.present)


def _unlabelled(dataset: ReIDDataset, shows: list[bool]) -> list[Sample]:
    """Each sample of query and gallery once, without its identity and without what is not shown."""
    found: dict[str, Sample] = {}
    for sample in (*dataset.query, *dataset.gallery):
        images = tuple(image if show else None for image, show in zip(sample.images, shows, strict=True))
        captions = tuple(c if show else () for c, show in zip(sample.captions, shows, strict=False))
        if any(image is not None for image in images):
            found.setdefault(sample.key, replace(sample, pid=-1, images=images, captions=captions))
    if not found:
        raise ValueError(f"dataset {dataset.name!r} shows no image to adapt to")
    return list(found.values())


def _htt(
    model: ReIDModel, embedding: Tensor, heads: tuple[Head, ...], present: Tensor, adaptation: Adaptation
) -> Tensor:
    """Margins between modalities and between identities, those that the classifiers see."""
    parts = embedding.unflatten(1, (-1, len(model.modalities), model.modality_width or 1))  # (B, G, M, D)
    parts = parts.transpose(1, 2).flatten(2)  # (B, M, G*D)
    seen = torch.stack([head.logits.float().log_softmax(1) for head in heads]).mean(0).argmax(1)
    loss = modality_margin(parts, seen, adaptation.margin, present)
    return loss + identity_margin(parts, seen, adaptation.margin, present)


def _proxyttt(
    model: ReIDModel, embedding: Tensor, heads: tuple[Head, ...], present: Tensor, adaptation: Adaptation
) -> Tensor:
    """Cross entropy and contrast of the confident samples, the mean over heads; of none, a tenth of the entropy."""
    losses = []
    for i, head in zip(model.neck_of, heads, strict=True):
        neck, rows = model.necks.get_submodule(str(i)), head.present
        vectors = head.feature if rows is None else head.feature[rows]
        if not len(vectors):
            continue
        behind = F.normalize(neck.get_submodule("norm")(vectors).float(), dim=1)
        proxies = F.normalize(neck.get_submodule("classifier").get_parameter("weight").float(), dim=1)
        losses.append(confident_loss(behind, behind @ proxies.T, adaptation.confident, adaptation.temperature))
    return torch.stack(losses).mean() if losses else embedding.sum() * 0


def confident_loss(vectors: Tensor, cosines: Tensor, share: float = 0.45, temperature: float = 0.1) -> Tensor:
    """ProxyTTT's loss of unlabelled samples.

    Args:
        vectors: Unit vectors ``(B, F)``.
        cosines: With the proxies of the classes, ``(B, C)``.
        share: Samples whose entropy is below this quantile of the batch's count as confident.
        temperature: Divisor of the cosines where the entropy is taken.

    Returns:
        Scalar: over the confident samples the cross entropy of the cosines with the nearest class, and the mean over
        pairs of one nearest class of ``-log softmax`` of their cosines, where there are two classes. Without a
        confident sample, a tenth of the mean entropy.
    """
    logs = (cosines / temperature).log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1)
    confident = entropy < entropy.detach().quantile(share)
    if not confident.any():
        return 0.1 * entropy.mean()
    nearest = cosines.argmax(1)[confident]
    loss = F.cross_entropy(cosines[confident], nearest)
    if len(nearest.unique()) < 2:
        return loss
    same = nearest[:, None] == nearest
    return loss - (vectors[confident] @ vectors[confident].T).log_softmax(1)[same].mean()


_LOSSES = {"htt": _htt, "proxyttt": _proxyttt}
ADAPTATIONS = {
    "htt": Adaptation(method="htt", epochs=6, batch_size=2, lr=1e-3),
    "proxyttt": Adaptation(method="proxyttt", epochs=1, batch_size=64, lr=3.5e-5),
}
"""Test-time training by the paper's name."""
