"""What an image tower and a text tower know together: where sentences point, what they name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nextreid.data import EvalTransform, Sample
from nextreid.data.loader import make_loader
from nextreid.models import ReIDModel
from nextreid.synthetic import PARTS, compose_person

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "hair": ("hair_length", "hair_style"),
    "upper": ("upper_clothing", "upper_clothing_color"),
    "lower": ("lower_clothing", "lower_clothing_color"),
    "footwear": ("footwear", "footwear_style"),
    "glasses": ("glasses",),
    "backpack": ("backpack",),
    "handbag": ("handbag",),
    "suitcase": ("suitcase",),
}
"""Parts that a sentence can name, with the attributes that the sentence then holds."""

_NAMED = ("gender", "upper_clothing", "lower_clothing", "hair_length", "backpack", "handbag")
_SHOWS = 0.1  # share of a patch that a part must cover for the patch to show it


def pointing(model: ReIDModel, samples: Sequence[Sample], batch_size: int = 64) -> list[dict[str, Any]]:
    """Measure whether the patch most similar to a true sentence shows what the sentence speaks of.

    For each image and each part in sight, the sentence says the sample's true attributes of this part alone, such as
    "She is carrying a backpack.". A patch shows a part that covers a tenth of it or more.

    Args:
        model: With towers that are to be measured; sentences and patches are compared as in NEXT, Eq. 5.
        samples: Synthetic persons, whose `truth` knows the parts.
        batch_size: Samples of a forward pass.

    Returns:
        One row for each modality and part: ``accuracy``, ``chance`` (mean share of patches that show the part),
        ``lift`` (share of the cosine's variance range: mean cosine of patches that show the part minus that of the
        others) and ``images``.
    """
    sums: dict[tuple[str, str], Tensor] = {}
    for _, tokens, batch in _encoded(model, samples, batch_size):
        parts = _onehot([_truth(sample)["parts"] for sample in batch])
        cover = F.avg_pool2d(parts, model.image_tower.patch_size).flatten(2)
        for m, modality in enumerate(model.modalities):
            unit = F.normalize(tokens[:, m], dim=-1)
            for part, fields in _FIELDS.items():
                shows = cover[:, PARTS.index(part)] >= _SHOWS
                sentences = [_sentence(sample, fields, modality) for sample in batch]
                rows = [
                    i for i, text in enumerate(sentences) if text and shows[i].any() and batch[i].images[m] is not None
                ]
                if not rows:
                    continue
                text = _encode(model, [sentences[i] for i in rows])[:, m]
                beta = torch.einsum("bnd,bd->bn", unit[rows], text)
                seen = shows[rows].float()
                hit = seen.gather(1, beta.argmax(1, keepdim=True)).sum()
                inside, outside = (beta * seen).sum(1) / seen.sum(1), (beta * (1 - seen)).sum(1) / (1 - seen).sum(1)
                found = torch.tensor([hit, seen.mean(1).sum(), (inside - outside).sum(), len(rows)])
                sums[modality, part] = sums.get((modality, part), torch.zeros(4)) + found
    return [
        {
            "modality": modality,
            "part": part,
            "accuracy": round(float(total[0] / total[3]), 4),
            "chance": round(float(total[1] / total[3]), 4),
            "lift": round(float(total[2] / total[3]), 4),
            "images": int(total[3]),
        }
        for (modality, part), total in sorted(sums.items())
    ]


def naming(model: ReIDModel, samples: Sequence[Sample], batch_size: int = 64) -> list[dict[str, Any]]:
    """Measure whether the class token names an attribute's true value by its sentence, among all values of the samples.

    Args:
        model: See `pointing`.
        samples: See `pointing`.
        batch_size: See `pointing`.

    Returns:
        One row for each modality and attribute: ``balanced_accuracy`` (mean recall over the values) and ``chance``.
    """
    classes = torch.cat([cls for cls, _, _ in _encoded(model, samples, batch_size)])
    rows = []
    for field in _NAMED:
        truth = [_truth(sample)["attributes"][field] for sample in samples]
        values = sorted(set(truth) - {""})
        for m, modality in enumerate(model.modalities):
            texts = [compose_person({field: value}, modality)[-1] for value in values]
            features = _encode(model, texts)[:, m]
            scores = F.normalize(classes[:, m], dim=-1) @ features.T
            # Captions name values unequally often; a text's mean over the images says how often, not of whom.
            guess = (scores - scores.mean(0)).argmax(1)
            recall = [
                float((guess[[i for i, t in enumerate(truth) if t == value]] == v).float().mean())
                for v, value in enumerate(values)
            ]
            row = {"modality": modality, "attribute": field, "chance": round(1 / len(values), 4)}
            rows.append({**row, "balanced_accuracy": round(sum(recall) / len(recall), 4), "images": len(samples)})
    return rows


def _encode(model: ReIDModel, texts: Sequence[str]) -> Tensor:
    """Features ``(n, M, D)`` of texts."""
    features = model.prepare_text([[(text,)] * len(model.modalities) for text in texts])
    if features is None:
        raise ValueError(f"{type(model).__name__} reads no text: there is nothing that could point or name")
    return features


def _truth(sample: Sample) -> Mapping[str, Any]:
    if sample.truth is None:
        raise ValueError(f"sample {sample.key!r} has no truth to point at; only synthetic persons have")
    return sample.truth


def _sentence(sample: Sample, fields: Sequence[str], modality: str) -> str:
    attributes = _truth(sample)["attributes"]
    said = {name: attributes[name] for name in fields}
    if not any(said.values()) or "no" in said.values():
        return ""
    said["gender"] = attributes["gender"]
    return compose_person(said, modality)[-1]


def _encoded(model: ReIDModel, samples: Sequence[Sample], batch_size: int) -> Any:
    """Yield class tokens ``(B, M, D)``, patch tokens ``(B, M, N, D)`` and the samples of each batch."""
    config = model.pretrained_cfg
    transform = EvalTransform(model.img_size, config.mean, config.std, config.interpolation)
    loader = make_loader(samples, transform, model.modalities, batch_size=batch_size)
    training = model.training
    model.eval()
    with torch.no_grad():
        for number, batch in enumerate(loader):
            encoded = model.encode_images(batch.images, batch.present)
            yield encoded["cls"], encoded["tokens"], samples[number * batch_size : (number + 1) * batch_size]
    model.train(training)


def _onehot(maps: Sequence[Any]) -> Tensor:
    labels = torch.stack([torch.from_numpy(part) for part in maps])
    return F.one_hot(labels.long(), len(PARTS)).permute(0, 3, 1, 2).float()
