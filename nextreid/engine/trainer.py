"""The training loop."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader

from nextreid._disk import sync
from nextreid._files import user_path, write_jsonl
from nextreid._progress import duration, progress_bar, progress_counter, progress_line
from nextreid.data import Batch, ImageCache, ReIDDataset, augment_batch, caption_sampler, seeded_rng
from nextreid.data.card import reject_leak
from nextreid.data.image import OnError
from nextreid.data.loader import make_loader
from nextreid.data.sampler import PKSampler
from nextreid.data.transforms import TrainTransform
from nextreid.losses import Criterion
from nextreid.models import Head, ReIDModel, as_reid_model, save_model

from .ablations import Condition, drop_modalities, has_captions, with_caption_quality
from .checkpoint import (
    BEST,
    LAST,
    METRICS,
    STATE,
    TrainReport,
    best_row,
    check_run,
    describe,
    load_state,
    lock_run,
    open_run,
    save_state,
)
from .distributed import (
    all_gather,
    all_gather_objects,
    all_reduce_gradients,
    broadcast,
    broadcast_parameters,
    is_main,
    on_main,
    rank,
    world_size,
)
from .embedding import EmbedOptions, embed_samples, eval_transform, keep_texts, move_to_device
from .evaluation import check_modalities, measure
from .logs import LOG, Log, Throughput, check_loggers, epoch_values, memory_values, open_log
from .optimizer import build_optimizer, set_lr
from .provenance import record_metrics, record_training, trained_sets
from .recipe import Recipe

_logger = logging.getLogger(__name__)


@lock_run
def train(
    model: nn.Module,
    dataset: ReIDDataset,
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    on_error: OnError = "raise",
    allow_leak: bool = False,
    source: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> TrainReport:
    """Train a model and keep the run in a folder.

    Several processes that ``torchrun`` started share each batch and take the steps of one process: identities are
    spread over them, necks and losses see the whole batch. Losses of the model's own (`ReIDModel.own_losses`) are those
    of each process's share, averaged; those that need identities see the whole batch. The first process writes the
    folder, which all must see.

    After every epoch the folder holds ``metrics.jsonl`` (one row an epoch), ``log.jsonl`` (one row every ``log_every``
    steps and every epoch; the recipe's ``log`` names further loggers), ``last/`` and ``best/`` (model folders for
    ``create_model("local-dir:...")``) and ``state.safetensors``, which ``resume=True`` continues from. On the CPU an
    interrupted and resumed run ends with the same weights, to the last bit, as one that was not interrupted.

    Args:
        model: A model of the zoo, or a module that `nextreid.adapt` takes, changed in place. Without a classifier it
            gets one for the training identities.
        dataset: Its ``train`` split is learned from; ``query`` and ``gallery`` are evaluated on.
        recipe: How; see `get_recipe`.
        out: The run folder; new, empty, or a run's.
        resume: Continue the run in `out` after its last whole epoch, or start it if there is none yet. With
            ``schedule="constant"`` the recipe may have more epochs than before.
        on_error: What to do about images that cannot be read: ``"raise"`` at the first one, or look at all before
            and ``"skip"`` their samples or ``"mask"`` those modalities.
        allow_leak: Whether to start from weights that have seen identities of this test set.
        source: Where the data come from, such as root and captions; kept in ``recipe.json``.
        device: Where to compute; None stays where the model is, otherwise the model moves there.
        progress: Whether to show on stderr a bar within an epoch and a line after each.

    Returns:
        The rows of all epochs; the last and the best apart.

    Raises:
        BlockingIOError: Another process trains in `out`.
        FileExistsError: `out` has a run already and `resume` is False, or other files.
        ValueError: The dataset has too few identities, its modalities are not the model's, the classifier has another
            size, the identities of a batch cannot be shared by the processes, or the run to resume was made with
            something else.
        ImportError: The package of a logger is missing.
        FloatingPointError: A loss or gradient is not finite; the files of the epoch before stay.
    """
    model, folder = as_reid_model(model), user_path(out)
    check_loggers(recipe.log)
    _train_pids(dataset)
    check_modalities(model, dataset)
    if recipe.eval_every and not (dataset.query and dataset.gallery):
        raise ValueError(f"dataset {dataset.name!r} has no query or no gallery to evaluate on; set eval_every=0")
    reject_leak(trained_sets(model), dataset.name, allow_leak)
    on_main(lambda: check_run(folder, resume))
    if on_error != "raise":
        with progress_counter("look at images", "sample", shown=progress and is_main()) as count:
            dataset = dataset.drop_unreadable(on_error, count)
    images = dataset
    pids = _train_pids(dataset)
    labels = [sample.pid for sample in dataset.train]
    sampler = PKSampler(labels, recipe.num_ids, recipe.num_instances, recipe.seed, rank(), world_size())
    dataset = with_caption_quality(dataset, recipe.caption_quality, recipe.seed, recipe.caption_unit)
    text = recipe.text and model.uses_text and has_captions(dataset.train)
    if recipe.text and not text and is_main():
        _logger.info("training without text: the model reads none or dataset %r has no captions", dataset.name)
    if not model.num_classes:
        with _seeded(torch.device("cpu"), "classifier", recipe.seed):
            model.reset_classifier(len(pids))
    elif model.num_classes != len(pids):
        raise ValueError(
            f"the model has {model.num_classes} classes but dataset {dataset.name!r} has {len(pids)} training "
            "identities; create it with num_classes=0 and the classifier is made to fit"
        )
    if recipe.contrast_weight:
        model.modality_parts(torch.zeros(1, model.num_features))  # raises before the run starts, not in a step
    device = move_to_device(model, device)
    broadcast_parameters(model)
    optimizer = build_optimizer(model, recipe)
    described = on_main(lambda: open_run(folder, describe(model, images, recipe, source or {}, device), resume))
    history = load_state(folder / STATE, model, optimizer) if (folder / STATE).exists() else []
    if len(history) != broadcast(len(history)):
        raise ValueError(f"process {rank()} does not see the run of the first one in {folder}: put it on a shared disk")

    def record_epoch(epoch: int) -> None:
        record = {"dataset": dataset.name, **{name: described["dataset"][name] for name in ("digest", "protocol")}}
        record |= {"recipe": recipe.name, "seed": recipe.seed, "epoch": epoch, "epochs": recipe.epochs}
        record_training(model, record, described["start"]["trained_on"])

    if history:
        if is_main():
            _logger.info("continuing %s after epoch %d", folder, len(history))
        record_epoch(len(history))  # there may be no further one
        record_metrics(model, history[-1].get("evaluation"), "last")
    cache = _open_cache(model, dataset, recipe, progress)
    options = EmbedOptions(recipe.eval_batch_size, recipe.workers, None, progress, cache, recipe.augment)
    config = model.pretrained_cfg
    drawn = {name: getattr(recipe, name) for name in ("flip", "pad", "erase", "geometry")}
    resized = config.interpolation
    if recipe.eval_interpolation == "bilinear":
        resized = "bicubic"
        model.pretrained_cfg = config.replace(interpolation="bilinear")
    transform = TrainTransform(model.img_size, config.mean, config.std, **drawn, interpolation=resized)
    loader = make_loader(
        dataset.train,
        transform,
        dataset.modalities,
        sampler=sampler,
        seed=recipe.seed,
        workers=recipe.workers,
        pin_memory=device.type == "cuda",
        store=cache,
        augment=recipe.augment,
    )
    classes = {pid: i for i, pid in enumerate(pids)}
    forward: Callable[..., Any] = model if world_size() == 1 else partial(_forward_share, model)
    if recipe.compile:
        forward = torch.compile(forward)
    known = torch.tensor([classes[pid] for pid in labels])

    def embed_training(name: str | None) -> tuple[Tensor, Tensor]:
        return embed_samples(model, dataset.train, Condition(text), replace(options, embedding=name)), known

    started, seconds, step = len(history), 0.0, sum(row["steps"] for row in history)
    settings = {"dataset": dataset.name, **{name: described[name] for name in ("model", "recipe", "versions")}}
    with open_log(folder, recipe.log, settings, step) as log:
        loop = _Epoch(model, forward, optimizer, recipe, loader, transform, classes, text, device, progress, log)
        for epoch in range(started + 1, recipe.epochs + 1):
            start = time.perf_counter()
            sampler.set_epoch(epoch)
            model.start_epoch(epoch, embed_training)
            row = {"epoch": epoch, **loop.run(epoch, step)}
            row["train_seconds"] = round(time.perf_counter() - start, 3)
            row |= _evaluations(model, dataset, recipe, epoch, text, options)
            history.append(broadcast(row))
            step += row["steps"]
            record_epoch(epoch)
            log(step, epoch_values(row))
            on_main(lambda: _save(folder, model, optimizer, history))
            if progress and is_main():
                seconds += time.perf_counter() - start
                left = duration(seconds / (epoch - started) * (recipe.epochs - epoch))
                progress_line(f"epoch {epoch}/{recipe.epochs}: {_epoch_line(history[-1])}, {left} left")
    return TrainReport(folder, tuple(history))


def _open_cache(model: ReIDModel, dataset: ReIDDataset, recipe: Recipe, progress: bool) -> ImageCache | None:
    """Return the cache of all images that the run looks at; None if its recipe wants none."""
    if recipe.store == "off":
        return None
    samples = (*dataset.train, *((*dataset.query, *dataset.gallery) if recipe.eval_every else ()))
    file = None if recipe.store == "memory" else recipe.store

    def build() -> ImageCache:
        with progress_counter("decode", "image", shown=progress and is_main()) as count:
            return ImageCache.build(samples, dataset.modalities, eval_transform(model), file=file, progress=count)

    return build() if file is None else on_main(build)  # one process writes the file, and all read it


def _evaluations(
    model: ReIDModel, dataset: ReIDDataset, recipe: Recipe, epoch: int, text: bool, options: EmbedOptions
) -> dict[str, Any]:
    """Return the metrics of an epoch that is due; after the last one those without captions, too."""
    last = epoch == recipe.epochs
    if not recipe.eval_every or (epoch % recipe.eval_every and not last):
        return {}
    settings = {"evaluation": text, **({"evaluation_without_text": False} if last and text else {})}
    reports = measure(model, dataset, [Condition(reads) for reads in settings.values()], options)
    return {name: report.to_dict() for name, report in zip(settings, reports, strict=True)}


def _epoch_line(row: dict[str, Any]) -> str:
    words = [f"loss {row['loss']['total']:.3f}", f"lr {max(row['lr'].values()):.1e}"]
    found = row.get("evaluation", {})
    words += [f"{name} {100 * found[name]:.1f}" for name in ("mAP", "rank-1") if found.get(name) is not None]
    return ", ".join(words)


def _save(folder: Path, model: ReIDModel, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]]) -> None:
    _logger.info("%s: %s", folder.name, history[-1])
    evaluation = history[-1].get("evaluation")
    if best_row(history) is history[-1]:
        record_metrics(model, evaluation, "best mAP on the evaluated samples")
        save_model(model, folder / BEST)
    record_metrics(model, evaluation, "last")
    save_model(model, folder / LAST)
    keep_texts(model)
    write_jsonl(folder / METRICS, history)
    sync(folder / LOG)
    # The state comes last: a run that dies before it repeats the epoch and writes the same files again.
    save_state(folder / STATE, model, optimizer, history)


def _forward_share(
    model: ReIDModel, images: Tensor, **inputs: Tensor | None
) -> tuple[tuple[tuple[Tensor, Tensor | None], ...], dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What a process computes of its share of a batch: vectors to classify, own losses, all parts, the embedding."""
    features = model.forward_features(images, **inputs)
    return model.pool_heads(features), model.own_losses(features), features, model.pool(features)


@dataclass(frozen=True)
class _Epoch:
    """One pass over the training data."""

    model: ReIDModel
    forward: Callable[..., Any]
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    loader: DataLoader
    transform: TrainTransform
    classes: dict[int, int]
    text: bool
    device: torch.device
    progress: bool
    log: Log

    def run(self, epoch: int, done: int) -> dict[str, Any]:
        """Train for one epoch behind `done` steps; return the mean losses, the learning rates and the steps."""
        recipe = self.recipe
        criterion = Criterion(**{field.name: getattr(recipe, field.name) for field in fields(Criterion)})
        lrs = set_lr(self.optimizer, recipe, epoch)
        sums: dict[str, float] = {}
        steps, throughput = 0, Throughput()
        self.model.train()
        bar = progress_bar(self.loader, f"epoch {epoch}/{recipe.epochs}", "step", shown=self.progress and is_main())
        other = [rank()] if rank() else []  # processes drop other features; the first draws what a single one does
        with _seeded(self.device, "epoch", recipe.seed, epoch, *other), bar:
            for steps, batch in enumerate(bar, start=1):
                throughput.add(int(batch.present.sum()) * world_size())
                where = f"epoch {epoch}, step {steps}"
                losses, norm = self._step(self._on_device(batch, epoch, steps), criterion, where)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
                bar.set_postfix(loss=f"{losses['total']:.3f}", lr=f"{max(lrs.values()):.1e}", refresh=False)
                if is_main() and ((done + steps) % recipe.log_every == 0 or steps == len(self.loader)):
                    values = {f"loss/{name}": value for name, value in losses.items()}
                    values |= {f"lr/{name}": lr for name, lr in lrs.items()}
                    values |= {"gradient_norm": norm.item(), "images_per_second": throughput.read()}
                    self.log(done + steps, values | memory_values(self.device))
        if not steps:
            raise ValueError(f"the sampler gave no batch of {recipe.num_ids} identities in epoch {epoch}")
        return {"loss": {name: value / steps for name, value in sums.items()}, "lr": lrs, "steps": steps}

    def _on_device(self, batch: Batch, epoch: int, step: int) -> Batch:
        batch = batch.to(self.device)
        if self.recipe.drop_modality:
            batch = drop_modalities(batch, self.recipe.drop_modality, self.recipe.seed)
        if self.recipe.augment == "cpu":
            return batch
        seed = int(seeded_rng("erase", self.recipe.seed, epoch, step).integers(2**63))
        generator = torch.Generator(self.device).manual_seed(seed)
        return augment_batch(batch, self.transform, generator, (rank(), world_size()))

    def _step(self, batch: Batch, criterion: Criterion, where: str) -> tuple[dict[str, float], Tensor]:
        """Take one step; return the losses and the norm of the gradient, which stays on the device."""
        pid = all_gather(torch.tensor([self.classes[p] for p in batch.pid.tolist()], device=self.device))
        # Outside of autocast: features of the frozen tower are cached, and the evaluation reads the same cache.
        text = None
        if self.text:
            recipe, captions = self.recipe, batch.captions
            draw = caption_sampler(captions, batch.keys, batch.draws, recipe.seed, recipe.caption_keep_ratio)
            text = self.model.prepare_text(captions, draw)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp == "bf16"):
            heads, own, parts, embedding = self._forward(batch, text)
        views = self.model.modality_parts(embedding) if self.recipe.contrast_weight else None
        losses = criterion(heads, pid, own | self.model.identity_losses(parts, pid), views)
        values = {name: loss.item() for name, loss in losses.items()}
        if not torch.isfinite(losses["total"]):
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._stop(f"loss ({numbers})", where, batch, heads)
        self.model.zero_grad(set_to_none=True)
        losses["total"].backward()
        # Each process has the whole gradient of what belongs to identities, and of the rest what its own samples give.
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        whole = [p for name in self.model.of_identities for p in self.model.get_submodule(name).parameters()]
        all_reduce_gradients(trained, whole)
        parameters = [p for p in trained if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(norm):
            self._stop("gradient", where, batch, heads)
        if self.recipe.grad_clip is not None:
            clip_grads_with_norm_(parameters, self.recipe.grad_clip, norm)
        self.optimizer.step()
        self.model.after_step({name: part.detach() for name, part in parts.items()}, pid)
        return values, norm

    def _forward(
        self, batch: Batch, text: Tensor | None
    ) -> tuple[tuple[Head, ...], dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return heads, own losses, ``loss_parts``, embedding of the whole batch, whichever processes hold samples."""
        output = self.forward(batch.images, text=text, present=batch.present, camid=batch.camid)
        names = self.model.loss_parts
        if world_size() == 1:
            parts = {name: output.features[name] for name in names if name in output.features}
            return output.heads, {n: loss.float() for n, loss in output.losses.items()}, parts, output.embedding
        vectors, own, features, embedding = output
        gathered = [(all_gather(vector), None if rows is None else all_gather(rows)) for vector, rows in vectors]
        means = {name: all_gather(loss.float().reshape(1)).mean() for name, loss in own.items()}
        parts = {name: all_gather(features[name]) for name in names if name in features}
        whole = all_gather(embedding) if self.recipe.contrast_weight else embedding
        return self.model.classify(gathered), means, parts, whole

    def _stop(self, what: str, where: str, batch: Batch, heads: Sequence[Head]) -> None:
        """Raise in all processes alike, naming the samples whose embedding is bad, or else the batch."""
        keys = all_gather_objects(batch.keys)
        finite = torch.stack([head.feature.isfinite().all(1) for head in heads]).all(0).tolist()
        bad = [key for key, fine in zip(keys, finite, strict=True) if not fine]
        shown = ", ".join(map(repr, (bad or keys)[:4])) + (", ..." if len(bad or keys) > 4 else "")
        whose = f"the embeddings of {len(bad)} of its samples are not: {shown}" if bad else f"its samples: {shown}"
        raise FloatingPointError(
            f"the {what} is not finite in {where} ({whose}); the files of the epoch before are as they were. "
            "Lower lr_new or lr_tower, set grad_clip, or set amp='off'"
        )


def _train_pids(dataset: ReIDDataset) -> list[int]:
    if not dataset.train:
        raise ValueError(
            f"dataset {dataset.name!r} has no training samples; images of your own need splits: say where their paths "
            "name them (--pattern), or draw some identities (train=0.5, --dataset-arg train=0.5)"
        )
    pids = sorted({sample.pid for sample in dataset.train})
    if len(pids) < 2:
        raise ValueError(f"dataset {dataset.name!r} has one training identity ({pids[0]}); it takes two to compare")
    if pids[0] < 0:
        raise ValueError(f"dataset {dataset.name!r} has training samples without identity (pid {pids[0]}); drop them")
    return pids


@contextmanager
def _seeded(device: torch.device, *key: int | str) -> Iterator[None]:
    """Seed torch's generators of the CPU and of `device` by `key` inside; leave them as they were."""
    seed = int(seeded_rng(*key).integers(2**63))
    on_gpu = device.type == "cuda"
    # Not torch.manual_seed, which would move the generators of every other GPU for good.
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
