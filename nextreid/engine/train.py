"""The training loop."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader
from tqdm import tqdm

from nextreid.data import Batch, ReIDDataset, keyed_rng
from nextreid.data.captions import draw_captions
from nextreid.data.loader import make_loader
from nextreid.data.sampler import PKSampler
from nextreid.data.transforms import TrainTransform
from nextreid.losses import ReIDLoss
from nextreid.models import ReIDModel, save_model

from .checkpoint import load_state, save_state, write_jsonl
from .conditions import has_captions, with_caption_quality
from .evaluate import check_modalities, evaluate, place
from .optim import build_optimizer, lr_factor, set_lr
from .recipe import Recipe
from .run_folder import BEST, LAST, METRICS, STATE, TrainReport, best_row, describe, open_run

_logger = logging.getLogger(__name__)


def train(
    model: ReIDModel,
    dataset: ReIDDataset,
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> TrainReport:
    """Train a model and keep the run in a folder.

    After every epoch the folder holds ``metrics.jsonl`` (one row an epoch), ``last/`` and ``best/`` (model folders for
    ``create_model("local-dir:...")``) and ``state.safetensors``, which ``resume=True`` continues from. On the CPU an
    interrupted and resumed run ends with the same weights, to the last bit, as one that was not interrupted.

    Args:
        model: A model of the zoo, changed in place. Without a classifier it gets one for the training identities.
        dataset: Its ``train`` split is learned from; ``query`` and ``gallery`` are evaluated on.
        recipe: How; see `get_recipe`.
        out: The run folder, made if there is none.
        resume: Continue the run in `out` after its last whole epoch, or start it if there is none yet.
        device: Where to compute; None stays where the model is, otherwise the model moves there.
        progress: Whether to show a progress bar.

    Returns:
        The rows of all epochs; the last and the best apart.

    Raises:
        FileExistsError: `out` has a run already and `resume` is False.
        ValueError: The data set has too few identities, its modalities are not the model's, the classifier has another
            size, or the run to resume was made with something else.
        FloatingPointError: A loss or gradient is not finite; the files of the epoch before stay.
    """
    folder = Path(out)
    pids = _train_pids(dataset)
    check_modalities(model, dataset)
    if recipe.eval_every and not (dataset.query and dataset.gallery):
        raise ValueError(f"data set {dataset.name!r} has no query or no gallery to evaluate on; set eval_every=0")
    sampler = PKSampler([sample.pid for sample in dataset.train], recipe.num_ids, recipe.num_instances, recipe.seed)
    dataset = with_caption_quality(dataset, recipe.caption_quality, recipe.seed)
    text = recipe.text and model.uses_text and has_captions(dataset.train)
    if recipe.text and not text:
        _logger.info("training without text: the model reads none or data set %r has no captions", dataset.name)
    if not model.num_classes:
        with _seeded(torch.device("cpu"), "classifier", recipe.seed):
            model.reset_classifier(len(pids))
    elif model.num_classes != len(pids):
        raise ValueError(
            f"the model has {model.num_classes} classes but data set {dataset.name!r} has {len(pids)} training "
            "identities; create it with num_classes=0 and the classifier is made to fit"
        )
    device = place(model, device)
    optimizer = build_optimizer(model, recipe)
    loader = make_loader(
        dataset.train,
        _train_transform(model, recipe),
        dataset.modalities,
        sampler=sampler,
        seed=recipe.seed,
        workers=recipe.workers,
        pin_memory=device.type == "cuda",
    )
    open_run(folder, describe(model, dataset, recipe), resume)
    history = load_state(folder / STATE, model, optimizer) if (folder / STATE).exists() else []
    if history:
        _logger.info("continuing %s after epoch %d", folder, len(history))
    loop = _Epoch(model, optimizer, recipe, loader, {pid: i for i, pid in enumerate(pids)}, text, device, progress)
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        start = time.perf_counter()
        sampler.set_epoch(epoch)
        row = {"epoch": epoch, **loop.run(epoch)}
        row["train_seconds"] = round(time.perf_counter() - start, 3)
        if recipe.eval_every and (epoch % recipe.eval_every == 0 or epoch == recipe.epochs):
            row["evaluation"] = evaluate(
                model,
                dataset,
                text=text,
                batch_size=recipe.eval_batch_size,
                workers=recipe.workers,
                progress=progress,
            ).to_dict()
        history.append(row)
        _logger.info("%s: %s", folder.name, row)
        if best_row(history) is row:
            save_model(model, folder / BEST)
        save_model(model, folder / LAST)
        write_jsonl(folder / METRICS, history)
        # The state comes last: a run that dies before it repeats the epoch and writes the same files again.
        save_state(folder / STATE, model, optimizer, history)
    return TrainReport(folder, tuple(history))


@dataclass(frozen=True)
class _Epoch:
    """One pass over the training data."""

    model: ReIDModel
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    loader: DataLoader
    classes: dict[int, int]
    text: bool
    device: torch.device
    progress: bool

    def run(self, epoch: int) -> dict[str, Any]:
        """Train for one epoch; return the mean losses, the rates and the number of steps."""
        recipe = self.recipe
        criterion = ReIDLoss(recipe.identity_weight, recipe.triplet_weight, recipe.smoothing, recipe.margin)
        rates = set_lr(self.optimizer, lr_factor(recipe, epoch))
        sums: dict[str, float] = {}
        steps = 0
        self.model.train()
        bar = tqdm(self.loader, f"epoch {epoch}/{recipe.epochs}", unit="batch", disable=not self.progress, leave=False)
        with _seeded(self.device, "epoch", recipe.seed, epoch), bar:
            for steps, batch in enumerate(bar, start=1):
                losses = self._step(batch.to(self.device), criterion, f"epoch {epoch}, step {steps}")
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
                done = steps / len(self.loader)
                left = (recipe.epochs - epoch + 1 - done) * bar.format_dict["elapsed"] / done / 60
                bar.set_postfix(loss=f"{losses['total']:.3f}", lr=f"{max(rates.values()):.1e}", left=f"{left:.0f} min")
        if not steps:
            raise ValueError(f"the sampler gave no batch of {recipe.num_ids} identities in epoch {epoch}")
        return {"loss": {name: value / steps for name, value in sums.items()}, "lr": rates, "steps": steps}

    def _step(self, batch: Batch, criterion: ReIDLoss, where: str) -> dict[str, float]:
        pid = torch.tensor([self.classes[int(p)] for p in batch.pid], device=self.device)
        # Outside of autocast: features of the frozen tower are cached, and the evaluation reads the same cache.
        text = self._draw_text(batch) if self.text else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp == "bf16"):
            output = self.model(batch.images, text=text, present=batch.present, camid=batch.camid)
        losses = criterion(output.embedding.float(), output.logits.float(), pid)
        values = {name: loss.item() for name, loss in losses.items()}
        _require_finite(losses["total"], f"loss ({', '.join(f'{n} {v:.4g}' for n, v in values.items())})", where)
        self.model.zero_grad(set_to_none=True)
        losses["total"].backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        _require_finite(norm, "gradient", where)
        if self.recipe.grad_clip is not None:
            clip_grads_with_norm_(parameters, self.recipe.grad_clip, norm)
        self.optimizer.step()
        return values

    def _draw_text(self, batch: Batch) -> Tensor:
        experts = self.model.num_semantic_experts
        rows = draw_captions(
            batch.captions, batch.keys, batch.draws, experts, self.recipe.seed, keep=self.recipe.caption_keep
        )
        return self.model.encode_text(rows).unflatten(0, (len(batch), experts))  # (B, E, M, D)


def _train_pids(dataset: ReIDDataset) -> list[int]:
    if not dataset.train:
        raise ValueError(f"data set {dataset.name!r} has no training samples")
    pids = sorted({sample.pid for sample in dataset.train})
    if len(pids) < 2:
        raise ValueError(f"data set {dataset.name!r} has one training identity ({pids[0]}); it takes two to compare")
    if pids[0] < 0:
        raise ValueError(f"data set {dataset.name!r} has training samples without identity (pid {pids[0]}); drop them")
    return pids


def _train_transform(model: ReIDModel, recipe: Recipe) -> TrainTransform:
    config = model.pretrained_cfg
    return TrainTransform(
        model.img_size,
        config.mean,
        config.std,
        flip=recipe.flip,
        pad=recipe.pad,
        erase=recipe.erase,
        geometry=recipe.geometry,
        interpolation=config.interpolation,
    )


def _require_finite(value: Tensor, what: str, where: str) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(
            f"the {what} is not finite in {where}; the files of the epoch before are as they were. "
            "Lower lr_new or lr_image_tower, set grad_clip, or set amp='off'"
        )


@contextmanager
def _seeded(device: torch.device, *key: int | str) -> Iterator[None]:
    """Seed torch's generators of the CPU and of `device` by `key` inside; leave them as they were."""
    seed = int(keyed_rng(*key).integers(2**63))
    on_gpu = device.type == "cuda"
    # Not torch.manual_seed, which would move the generators of every other GPU for good.
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
