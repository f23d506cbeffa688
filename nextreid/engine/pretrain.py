"""Towers from nothing: a small contrastive pretraining where no CLIP weights fit (Radford et al. 2021)."""

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from nextreid.data import Batch, Sample, TrainTransform, collate, draw_captions, keyed_rng
from nextreid.data.loader import SampleDataset
from nextreid.models import ReIDModel
from nextreid.towers import TextTower, pack_sentences

_logger = logging.getLogger(__name__)


def pretrain_towers(
    model: ReIDModel,
    samples: Sequence[Sample],
    *,
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 1e-3,
    temperature: float = 0.07,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[dict[str, float]]:
    """Align a model's image tower and text tower on pictures and their captions, then freeze the text tower.

    Every picture of a batch, of any modality, is matched with a random subset of its own caption's sentences against
    all other captions of the batch, in both directions (InfoNCE). The class token and the mean patch token are both
    matched: the modulation (NEXT, Eq. 5) compares captions with patches, so patches must lie in the captions' space.
    Equal captions count as one. Identities are not used.

    Args:
        model: A model with a text tower; its image tower and text tower are changed in place.
        samples: Captioned samples, of other identities than any test.
        epochs: Passes.
        batch_size: Samples of a batch; each gives one picture and caption per modality.
        lr: Peak rate of AdamW; linear warm-up over the first tenth of the steps, then cosine to zero.
        temperature: Of the softmax.
        seed: Key of every draw.
        device: Where to compute.
        progress: Whether to show a progress bar.

    Returns:
        For each epoch the mean ``loss`` and the mean ``accuracy`` of naming a picture's caption within its batch.

    Raises:
        ValueError: The model has no text tower, or fewer than two samples have captions.
    """
    tower = model.text_tower
    if tower is None:
        raise ValueError("contrastive pretraining aligns pictures with captions; this model has no text tower")
    captioned = [sample for sample in samples if any(sample.captions)]
    if len(captioned) < 2:
        raise ValueError(f"contrastive pretraining takes two captioned samples or more, got {len(captioned)}")
    model.to(device)
    cfg = model.pretrained_cfg
    transform = TrainTransform(model.img_size, cfg.mean, cfg.std, pad=max(1, model.img_size[0] // 32), erase=0.0)
    source = SampleDataset(captioned, transform, model.modalities, seed=seed)
    tower.requires_grad_(True)
    parameters = [*model.image_tower.parameters(), *tower.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
    total = epochs * -(-len(captioned) // batch_size)
    warmup = max(1, total // 10)
    history, step = [], 0
    bar = tqdm(total=total, desc="pretrain towers", unit="batch", leave=False, disable=not progress)
    with bar, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keyed_rng("pretrain", seed).integers(2**63)))
        model.train()
        for epoch in range(1, epochs + 1):
            order = keyed_rng("pretrain", seed, epoch).permutation(len(captioned))
            start, sums = time.perf_counter(), np.zeros(2)
            chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
            for chunk in chunks:
                step += 1
                warm, done = min(1.0, step / warmup), step / total
                optimizer.param_groups[0]["lr"] = lr * warm * 0.5 * (1 + np.cos(np.pi * done))
                batch = collate([source[(int(i), epoch, slot)] for slot, i in enumerate(chunk)]).to(device)
                loss, accuracy = _contrast(model, batch, temperature, seed)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                sums += (loss.item(), accuracy)
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.2f}")
            mean = sums / len(chunks)
            history.append({"loss": float(mean[0]), "accuracy": float(mean[1])})
            _logger.info("pretraining epoch %d: %s, %.1f s", epoch, history[-1], time.perf_counter() - start)
    tower.requires_grad_(False)
    tower.clear_cache()
    return history


def _contrast(model: ReIDModel, batch: Batch, temperature: float, seed: int) -> tuple[Tensor, float]:
    tower = model.text_tower
    assert tower is not None
    rows = draw_captions(batch.captions, batch.keys, batch.draws, 1, seed)
    texts = [_first_window(tower, caption) for row in rows for caption in row]
    used = torch.tensor([bool(text) for text in texts], device=batch.images.device) & batch.present.flatten()
    unique = sorted({text for text, ok in zip(texts, used.tolist(), strict=True) if ok})
    index = {text: i for i, text in enumerate(unique)}
    target = torch.tensor([index.get(text, -1) for text in texts], device=used.device)[used]
    captions = F.normalize(tower(tower.tokenize(unique).to(used.device)), dim=-1)
    cls, tokens = model.encode_images(batch.images, batch.present)
    losses, correct = [], 0.0
    for feature in (cls, tokens.mean(2)):
        pictures = F.normalize(rearrange(feature, "b m d -> (b m) d")[used], dim=-1)
        logits = pictures @ captions.T / temperature
        # A caption shared by several pictures has as many right answers.
        owners = F.one_hot(target, len(unique)).T.float()
        back = -(owners * logits.T.log_softmax(-1)).sum(-1) / owners.sum(-1)
        losses.append((F.cross_entropy(logits, target) + back.mean()) / 2)
        correct = float((logits.argmax(-1) == target).float().mean())
    return torch.stack(losses).mean(), correct


def _first_window(tower: TextTower, sentences: Sequence[str]) -> str:
    windows = pack_sentences(sentences, tower.count_tokens)
    return windows[0] if windows else ""
