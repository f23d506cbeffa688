"""Parameters and forward FLOPs of every registered model, counted on meta tensors, beside related methods."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import nextreid
from nextreid.models import ReIDModel

# Parameters and multiply-adds of one triplet on RGBNT201 (171 classes, 4 cameras), counted with fvcore on the
# authors' code with random weights: M parameters in all, M trainable, GMAC.
RELATED = {
    "DeMo": (98.80, 98.79, 34.1),
    "IDEA": (155.11, 91.67, 42.5),
    "TOP-ReID": (324.53, 324.52, 35.5),
    "EDITOR": (119.71, 119.32, 40.7),
    "MambaPro": (160.94, 74.79, None),
    "ICPL-ReID": (350.24, 45.42, None),
}
CLASSES, CAMERAS = 171, 4


def run() -> Iterator[dict[str, Any]]:
    """One row for each registered model and each related method."""
    for name in nextreid.list_models():
        with torch.device("meta"):
            model = nextreid.create_model(name, num_classes=CLASSES, num_cameras=CAMERAS).eval()
            count = len(model.modalities)
            images = torch.empty(1, count, 3, *model.img_size)
            text = torch.empty(1, count, model.embed_dim) if model.uses_text else None
            visual = _flops(lambda model=model, images=images: model.encode_images(images))
            # A camera number is checked by value, and meta tensors have no values: None is the unknown camera.
            total = _flops(lambda model=model, images=images, text=text: model(images, text))
            tower = model.text_tower
            window = 0.0 if tower is None else _flops(lambda tower=tower: _encode(tower))
        parameters = [p.numel() for p in model.parameters()]
        trainable = [p.numel() for p in model.parameters() if p.requires_grad]
        texts = 0 if tower is None else _drawn_captions(model)
        yield {
            "model": name,
            "img_size": "x".join(map(str, model.img_size)),
            "params_M": round(sum(parameters) / 1e6, 2),
            "trainable_M": round(sum(trainable) / 1e6, 2),
            "GMAC_total_without_text_tower": round(total / 2e9, 2),
            "GMAC_image_tower": round(visual / 2e9, 2),
            "GMAC_head": round((total - visual) / 2e9, 2),
            "GMAC_text_uncached": round(texts * window / 2e9, 2),
            "source": "counted here",
        }
    for name, (params, trainable_m, gmac) in RELATED.items():
        yield {
            "model": name,
            "img_size": "256x128",
            "params_M": params,
            "trainable_M": trainable_m,
            "GMAC_total_without_text_tower": "" if gmac is None else gmac,
            "GMAC_image_tower": "",
            "GMAC_head": "",
            "GMAC_text_uncached": "",
            "source": "authors' code, fvcore; text tower included where it has one",
        }


def _drawn_captions(model: ReIDModel) -> int:
    """How many captions of a sample a training step draws."""
    drawn: list[int] = []

    def note(row: int, modality: int, draw: int) -> tuple[str, ...]:
        drawn.append(draw)
        return ()

    model.prepare_text([[()] * len(model.modalities)], note)
    return len(drawn)


def _encode(tower: Any) -> torch.Tensor:
    transformer = tower.transformer
    x = torch.empty(1, 77, transformer.width)
    return transformer.transformer(x, attn_mask=transformer.attn_mask)


def _flops(call: Any) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
