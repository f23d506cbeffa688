"""8-bit integers against float32 and bfloat16 weights, in CPU seconds of one thread, and what they lose.

Full-size models have random weights: one batch of 4 samples of three images, all forms in turn. The goals are 2.8 times
float32 and 1.5 times bfloat16. What is lost is measured on synthetic persons that the bundled weights have not seen.
"""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import nextreid
from nextreid.engine import EmbedOptions, embed_samples
from nextreid.engine.int8 import compare, rounded

from ..harness import best_in_turn

MODELS = ("baseline_clip_b16", "next_clip_b16", "baseline_resnet50")
BUNDLED = ("baseline_tiny.synthetic_persons", "next_tiny.synthetic_persons")
BATCH, ROUNDS, SAMPLES = 4, 3, 400
GOALS = {"float32": 2.8, "weights bfloat16": 1.5}


def run() -> Iterator[dict[str, Any]]:
    """Yield two rows per model, and one per bundled checkpoint."""
    torch.set_num_threads(1)
    for name in MODELS:
        yield from _seconds(name)
    for name in BUNDLED:
        yield from _loss(name)


def _seconds(name: str) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    model = nextreid.create_model(name).eval()
    images = torch.randn(BATCH, len(model.modalities), 3, *model.img_size)
    forms = {"int8": rounded(model), "float32": model, "weights bfloat16": copy.deepcopy(model).bfloat16()}
    with torch.no_grad():
        cosine = torch.cosine_similarity(forms["int8"](images), model(images)).min().item()
        ours, *others = best_in_turn([partial(form, images.to(_dtype(form))) for form in forms.values()], ROUNDS)
    for (against, goal), theirs in zip(GOALS.items(), others, strict=True):
        ratio = theirs / ours
        yield {
            "what": f"{name}, batch {BATCH}",
            "against": against,
            "int8": round(ours, 3),
            "other": round(theirs, 3),
            "unit": "s",
            "ratio": round(ratio, 2),
            "goal": f"ratio >= {goal}",
            "met": ratio >= goal,
            "least_cosine": round(cosine, 5),
        }


def _dtype(model: torch.nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _loss(name: str) -> Iterator[dict[str, Any]]:
    model = nextreid.create_model(name, pretrained=True).eval()
    samples = nextreid.load_dataset("synthetic-persons").query[:SAMPLES]
    options = EmbedOptions(progress=False)
    ours, theirs = (embed_samples(form, samples, options=options) for form in (model, rounded(model)))
    report = compare(ours, theirs, samples)
    agreement = (1.0, report.rank_agreement)
    for what, (exact, small), scale, digits in (
        ("mAP", report.mAP, 100, 2),
        ("rank agreement", agreement, 100, 2),
        ("effective rank", report.effective_rank, 1, 1),
    ):
        points = scale == 100
        yield {
            "what": f"{name}, {len(samples)} samples, {what}",
            "against": "float32",
            "int8": round(scale * small, digits),
            "other": round(scale * exact, digits),
            "unit": "%" if points else "dimensions",
            "ratio": round(small / exact, 4),
            "goal": "at most 0.2 points less" if points else "ratio >= 0.9",
            "met": small >= exact - 0.002 if points else small >= 0.9 * exact,
            "least_cosine": round(torch.cosine_similarity(ours, theirs).min().item(), 5),
        }
