"""A small CLIP for the synthetic persons: image tower and text tower aligned on identities that no test knows.

No published CLIP fits towers this small, and with a text tower that knows nothing the modulation of NEXT (Eq. 5-6)
reads noise. So both towers learn on the third pool of the set, and the text tower stays frozen afterwards, as CLIP's.
"""

import json
import logging
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextreid._files import read_tensors, write_json, write_tensors
from nextreid.data import Sample, seeded_rng
from nextreid.data.captions import draw_sentences
from nextreid.data.sampler import PKSampler
from nextreid.layers import BNNeck
from nextreid.losses import Criterion
from nextreid.models import ReIDModel, create_model
from nextreid.synthetic import PARTS, synthetic_persons
from nextreid.synthetic.person import MARGINALS
from nextreid.towers import pack_sentences

_logger = logging.getLogger(__name__)

TOWERS, REPORT = "towers.safetensors", "pretrain.json"
_TOWER_NAMES = ("image_tower.", "text_tower.")
_NUMBER = re.compile(r"^image_tower\.\d+\.")
_PROJECTION = "image_tower.0.proj.weight"


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pretraining; two runs of equal settings give equal towers on one machine.

    Attributes:
        profile: Profile of `synthetic_persons`; it sets the size of the images.
        patch: Side of a patch in pixels.
        num_ids: Identities of the pretrain pool.
        pool_options: Further settings of the pool, such as ``{"bystander": 0.5}``.
        data_seed: Seed of the pool. Runs that start from these towers use other seeds, and other pools.
        seed: Seed of the weights and of every draw.
        epochs: Passes of the identity sampler.
        batch_ids: Identities of a batch.
        batch_instances: Samples of each.
        lr: Peak learning rate of AdamW, after a linear warm-up over the first twentieth of the steps; cosine to zero.
        temperature: Of every softmax over cosines.
        align_weight: Weight of the matching of texts and images.
        ground_weight: Weight of the matching of texts and patches.
        identity_weight: Weight of the identity loss.
    """

    profile: str = "small"
    patch: int = 16
    num_ids: int = 480
    pool_options: dict[str, Any] = field(default_factory=dict)
    data_seed: int = 1000
    seed: int = 0
    epochs: int = 8
    batch_ids: int = 16
    batch_instances: int = 4
    lr: float = 1e-3
    temperature: float = 0.07
    align_weight: float = 1.0
    ground_weight: float = 0.5
    identity_weight: float = 1.0


def tower_arguments(config: PretrainConfig) -> dict[str, Any]:
    """Arguments of ``create_model("next_tiny" | "baseline_tiny", ...)`` whose towers these settings fill."""
    from nextreid.synthetic import PROFILES

    size = {"patch_size": config.patch, "embed_dim": 96, "depth": 4, "num_heads": 3}
    return {"img_size": list(PROFILES[config.profile].img_size), "image_tower_args": size}


def pretrain(
    out: str | Path, config: PretrainConfig | None = None, *, samples: Sequence[Sample] | None = None
) -> dict[str, Any]:
    """Pretrain both towers and keep them in a folder; towers of equal settings that are there already are kept.

    Three losses, on captions as noisy as the published ones: (1) Texts name images: a text that some images of the
    batch hold and others do not must score the former higher (softmax over the batch's images of one modality,
    several right answers), once with the class token and once with a soft maximum over patches. Texts are the
    captions' clauses ("carrying a backpack"), which are few and repeat, whole sentences, and joined subsets of
    sentences. An image holds a text if its caption holds all the text's clauses. (2) Texts name patches: the softmax
    over the patches of an image must lie where the part map of the pool shows what the text speaks of. (3) Identity
    loss and triplet loss on the joined class tokens, so that the start is one for re-identification. What (2) reads
    no captioned photograph has: it stands for the knowledge of places that CLIP's patches owe to 400 million images.

    Pieces of words that no caption of the pool held say nothing afterwards: their rows of the text tower are zero.

    Args:
        out: Folder; gets ``towers.safetensors`` and ``pretrain.json``.
        config: The settings; None for the defaults.
        samples: The pool, where it is rendered already.

    Returns:
        The report: settings, one row for each epoch, seconds.

    Raises:
        FileExistsError: The folder has towers of other settings.
    """
    config = config or PretrainConfig()
    folder = Path(out)
    if (folder / TOWERS).exists():
        found = towers_config(folder)
        if found != config:
            changed = {k: (v, asdict(config)[k]) for k, v in asdict(found).items() if v != asdict(config)[k]}
            raise FileExistsError(f"{folder} holds towers of other settings ({changed}); take another folder")
        return json.loads((folder / REPORT).read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    samples = samples or pool_samples(config)
    rendered = time.perf_counter() - start
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = create_model("next_tiny", **tower_arguments(config))
        history = _Pretraining(model, samples, config).run()
    report = {
        "config": asdict(config),
        "samples": len(samples),
        "history": history,
        "seconds": {"render": round(rendered, 1), "train": round(time.perf_counter() - start - rendered, 1)},
        "threads": torch.get_num_threads(),
    }
    kept = {name: value for name, value in model.state_dict().items() if name.startswith(_TOWER_NAMES)}
    write_json(folder / REPORT, report)
    write_tensors(folder / TOWERS, kept, {"config": asdict(config)})
    return report


def pool_samples(config: PretrainConfig) -> tuple[Sample, ...]:
    """Render the pretrain pool of the settings."""
    options = {"num_pretrain": config.num_ids, **config.pool_options}
    built = synthetic_persons(config.profile, seed=config.data_seed, splits=("pretrain",), **options)
    return built.pretrain


def load_towers(model: ReIDModel, folder: str | Path) -> PretrainConfig:
    """Fill a model's towers from a folder of `pretrain`; its other layers stay as they are.

    Where a method has a tower for each modality, all start alike. What it adds to its towers (adapters, prompts,
    cameras) stays new, and so does a projection to a width of its own.

    Args:
        model: Built with `tower_arguments` of the folder's settings; a text tower is filled if there is one.
        folder: Where `pretrain` wrote.

    Returns:
        The settings.

    Raises:
        FileNotFoundError: The folder has no towers.
        ValueError: The towers have another shape.
    """
    path = _towers(folder)
    tensors, metadata = read_tensors(path)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(_TOWER_NAMES)}
    chosen, missing = {}, []
    for name, value in own.items():
        source = _NUMBER.sub("image_tower.0.", name)
        if source in tensors and (source != _PROJECTION or tensors[source].shape == value.shape):
            chosen[name] = tensors[source]
        elif source != _PROJECTION and not name.endswith(".camera") and model.param_role(name) != "adapters":
            missing.append(name)
    left = {name for name in tensors if name.startswith("image_tower.")} - own.keys() - {_PROJECTION}
    if missing or left:
        raise ValueError(
            f"the model was built with other towers than those of {path}, {metadata['config']}: "
            f"{', '.join([*missing, *sorted(left)][:3])}"
        )
    try:
        model.load_state_dict(chosen, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this model ({error}); build it with tower_arguments()") from error
    return PretrainConfig(**metadata["config"])


def take_towers(model: ReIDModel, name: str) -> None:
    """Fill a model's towers with those of a model of the zoo, such as ``"next_tiny.synthetic_persons"``, pretrained."""
    other = create_model(name, pretrained=True).state_dict()
    wanted = {key for key in model.state_dict() if key.startswith(_TOWER_NAMES)}
    model.load_state_dict({key: other[key] for key in wanted}, strict=False)


def towers_config(folder: str | Path) -> PretrainConfig:
    """Read the settings that the towers in a folder were made with.

    Raises:
        FileNotFoundError: The folder has no towers.
    """
    return PretrainConfig(**read_tensors(_towers(folder))[1]["config"])


def _towers(folder: str | Path) -> Path:
    path = Path(folder) / TOWERS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no pretrained towers ({TOWERS}): make them by 'python -m benchmarks paper pretrain'"
        )
    return path


_SPLIT = re.compile(r",? paired with | with | and | (?=seen from |during |in [a-z]+ lighting)")
_SUBJECT = re.compile(r"^(?:he|she|the person) is ")


def clauses(sentence: str) -> tuple[str, ...]:
    """Split a sentence of a person caption into the statements that it makes.

    >>> clauses("He is wearing a red coat with blue jeans, paired with casual boots.")
    ('wearing a red coat', 'blue jeans', 'casual boots')
    """
    parts = (_SUBJECT.sub("", part.strip()) for part in _SPLIT.split(sentence.rstrip(".").lower()))
    return tuple(part for part in parts if part)


_WORDS: dict[str, tuple[str, ...]] = {
    "hair": ("hair",),
    "upper": tuple(MARGINALS["upper_clothing"]),
    "lower": tuple(MARGINALS["lower_clothing"]),
    "footwear": tuple(MARGINALS["footwear"]),
    "glasses": ("glasses",),
    "backpack": ("backpack",),
    "handbag": ("handbag",),
    "suitcase": ("suitcase",),
    "held": ("holding",),
}
_BODY = ("skin", "hair", "upper", "lower", "footwear", "glasses", "backpack", "handbag", "suitcase", "held")


@cache
def clause_parts(clause: str) -> tuple[str, ...]:
    """Parts (see ``PARTS``) that a statement speaks of; none for denials and for statements about the image."""
    words = clause.split()
    if "not" in words or "appears" in words:
        return ()
    named = tuple(part for part, marks in _WORDS.items() if any(mark in words for mark in marks))
    return named or (_BODY if words[0] in ("a", "an", "seen") else ())


@dataclass(frozen=True)
class _Text:
    """A text and the statements that it makes, by number."""

    text: str
    facts: frozenset[int]


class _Pretraining:
    def __init__(self, model: ReIDModel, samples: Sequence[Sample], config: PretrainConfig) -> None:
        self.model, self.config = model, config
        self.modalities = len(model.modalities)
        self.images = torch.from_numpy(
            np.stack([np.stack([np.asarray(image) for image in sample.images]) for sample in samples])
        ).permute(0, 1, 4, 2, 3)
        self.parts = torch.from_numpy(np.stack([sample.truth["parts"] for sample in samples]))  # type: ignore[index]
        self.captions = [sample.captions for sample in samples]
        pids = sorted({sample.pid for sample in samples})
        self.classes = torch.tensor([pids.index(sample.pid) for sample in samples])
        self.sampler = PKSampler(
            [sample.pid for sample in samples], config.batch_ids, config.batch_instances, config.seed
        )
        self.numbers: dict[str, int] = {}
        self.split: dict[str, frozenset[int]] = {}
        assert model.text_tower is not None
        self.text_tower = model.text_tower
        self.met = torch.zeros(self.text_tower.vocab_size, dtype=torch.bool)
        width = model.embed_dim * self.modalities
        self.neck = BNNeck(width, len(pids))
        self.criterion = Criterion(identity_weight=1.0, triplet_weight=0.05)

    def run(self) -> list[dict[str, float]]:
        config, model, text = self.config, self.model, self.text_tower
        text.requires_grad_(True)
        parameters = [*model.image_tower.parameters(), *text.parameters(), *self.neck.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.02, fused=True)
        total, step, history = config.epochs * len(self.sampler), 0, []
        model.train()
        for epoch in range(1, config.epochs + 1):
            self.sampler.set_epoch(epoch)
            start, sums = time.perf_counter(), dict[str, float]()
            for items in self.sampler:
                step += 1
                warm = min(1.0, step / max(1, total // 20))
                optimizer.param_groups[0]["lr"] = (
                    config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1, step / total)))
                )
                losses = self._losses(items, seeded_rng("pretrain", config.seed, epoch, step))
                optimizer.zero_grad()
                losses["total"].backward()
                torch.nn.utils.clip_grad_norm_(parameters, 5.0)
                optimizer.step()
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(loss.detach())
            row = {name: round(value / len(self.sampler), 4) for name, value in sums.items()}
            history.append({"epoch": epoch, **row, "seconds": round(time.perf_counter() - start, 1)})
            _logger.info("pretraining: %s", history[-1])
        text.requires_grad_(False)
        text.transformer.token_embedding.weight[~self.met] = 0.0
        text.clear_cache()
        return history

    def _losses(self, items: Sequence[tuple[int, int, int]], rng: np.random.Generator) -> dict[str, Tensor]:
        rows = [index for index, _, _ in items]
        images, parts = _augment(self.images[rows], self.parts[rows], rng, pad=6)
        encoded = self.model.encode_images((images.float() / 255 - 0.5) / 0.5)
        cls, tokens = encoded["cls"], encoded["tokens"]
        embedding = cls.flatten(1)
        identity = self.criterion([(self.neck(embedding), embedding, None)], self.classes[rows])["total"]
        cover = _coverage(parts, self.config.patch)  # (B, N, parts)
        align, ground = [], []
        texts = [self._texts([self.captions[row][m] for row in rows], rng) for m in range(self.modalities)]
        flat = self._encode([text.text for part in texts for text in part])
        for m, (part, features) in enumerate(zip(texts, flat.split([len(p) for p in texts]), strict=True)):
            held = [self._facts(self.captions[row][m]) for row in rows]
            owns = torch.tensor([[text.facts <= facts for facts in held] for text in part])
            whole = features @ F.normalize(cls[:, m], dim=-1).T
            patches = torch.einsum("td,bnd->tbn", features, F.normalize(tokens[:, m], dim=-1))
            share = (patches / self.config.temperature).softmax(-1)
            align += [
                _name_images(score / self.config.temperature, owns) for score in (whole, (share * patches).sum(-1))
            ]
            ground.append(self._ground(part, patches, cover, owns))
        losses = {"align": torch.stack(align).mean(), "ground": torch.stack(ground).mean(), "identity": identity}
        weights = {name: getattr(self.config, f"{name}_weight") for name in losses}
        return {"total": sum(weights[name] * loss for name, loss in losses.items()), **losses}

    def _ground(self, texts: Sequence[_Text], patches: Tensor, cover: Tensor, owns: Tensor) -> Tensor:
        names = list(self.numbers)
        speaks = torch.tensor(
            [[float(any(part in clause_parts(names[n]) for n in text.facts)) for part in PARTS] for text in texts]
        )
        target = torch.einsum("tp,bnp->tbn", speaks, cover)
        amount = target.sum(-1)
        used = owns & (amount > 0.1)
        if not used.any():
            return patches.sum() * 0
        share = target[used] / amount[used][:, None]
        return -(share * (patches[used] / self.config.temperature).log_softmax(-1)).sum(-1).mean()

    def _facts(self, sentences: Sequence[str]) -> frozenset[int]:
        for sentence in sentences:
            if sentence not in self.split:
                found = clauses(sentence)
                self.split[sentence] = frozenset(self.numbers.setdefault(c, len(self.numbers)) for c in found)
        return frozenset().union(*(self.split[sentence] for sentence in sentences))

    def _texts(self, captions: Sequence[Sequence[str]], rng: np.random.Generator) -> list[_Text]:
        """Texts of one modality: clauses, sentences and joined subsets, distinct within the batch."""
        found: dict[str, frozenset[int]] = {}
        facts = sorted({fact for sentences in captions for fact in self._facts(sentences)})
        names = list(self.numbers)
        for fact in rng.permutation(facts)[:48].tolist():
            found[names[fact]] = frozenset((fact,))
        sentences = sorted({sentence for caption in captions for sentence in caption})
        for i in rng.permutation(len(sentences))[:32].tolist():
            found[sentences[i]] = self._facts([sentences[i]])
        tower = self.text_tower
        for i in rng.permutation(len(captions))[:16].tolist():
            subset = draw_sentences(captions[i], rng)
            if subset:
                window = pack_sentences(subset, tower.count_tokens)[0]
                found[window] = self._facts(subset)
        return [_Text(text, facts_of) for text, facts_of in found.items()]

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """Unit features; texts of like length share a forward pass, so that little is padding."""
        tower = self.text_tower
        distinct = sorted(set(texts), key=lambda text: (tower.count_tokens(text), text))
        rows = {text: i for i, text in enumerate(distinct)}
        tokens = tower.tokenize(distinct)
        self.met[tokens[torch.arange(tokens.shape[1]) <= tokens.argmax(-1, keepdim=True)]] = True
        features = torch.cat([tower(chunk) for chunk in tokens.split(64)])
        return F.normalize(features, dim=-1)[[rows[text] for text in texts]]


def _name_images(scores: Tensor, owns: Tensor) -> Tensor:
    """Cross-entropy of naming the images ``(T, B)`` that hold a text; texts that all or none hold say nothing."""
    count = owns.sum(-1)
    used = (count > 0) & (count < owns.shape[1])
    if not used.any():
        return scores.sum() * 0
    right = scores.log_softmax(-1).masked_fill(~owns, 0.0).sum(-1)[used] / count[used]
    return (-right - count[used].log()).mean()


def _augment(images: Tensor, parts: Tensor, rng: np.random.Generator, pad: int) -> tuple[Tensor, Tensor]:
    """Flip and shift images ``(B, M, 3, H, W)`` and part maps ``(B, H, W)`` alike; black and background come in."""
    height, width = images.shape[-2:]
    wide = F.pad(images, (pad, pad, pad, pad))
    labels = F.pad(parts, (pad, pad, pad, pad))
    out, out_parts = torch.empty_like(images), torch.empty_like(parts)
    for i in range(len(images)):
        y, x = rng.integers(0, 2 * pad + 1, 2).tolist()
        image, label = wide[i, ..., y : y + height, x : x + width], labels[i, y : y + height, x : x + width]
        if rng.random() < 0.5:
            image, label = image.flip(-1), label.flip(-1)
        out[i], out_parts[i] = image, label
    return out, out_parts


def _coverage(parts: Tensor, patch: int) -> Tensor:
    """Share of each patch that each part covers, ``(B, H, W)`` to ``(B, N, parts)``."""
    onehot = F.one_hot(parts.long(), len(PARTS)).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(onehot, patch).flatten(2).transpose(1, 2)
