"""Embedding in half precision and compiled, against eager float32, in CPU seconds of one thread: goal P15.

next_clip_b16 with random weights, captions as features, 4 samples of 3 images. Every form's embeddings are compared
with those of float32 before anything is timed; the forms take turns.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

import nextreid

from ..harness import best_in_turn

MODEL, BATCH, ROUNDS = "next_clip_b16", 4, 3


def run() -> Iterator[dict[str, Any]]:
    """Yield one row per form."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nextreid.create_model(MODEL).eval()
    images = torch.randn(BATCH, 3, 3, *model.img_size)
    text = torch.randn(BATCH, 3, 3, model.embed_dim)
    half = copy.deepcopy(model).bfloat16()
    compiled, compiled_half = (torch.compile(module, fullgraph=True) for module in (model, half))

    def embed(module: Callable, autocast: bool = False) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return module(images, text)

    forms = {
        "eager, float32": lambda: embed(model),
        "compiled, float32": lambda: embed(compiled),
        "autocast bfloat16": lambda: embed(model, autocast=True),
        "weights bfloat16": lambda: embed(half),
        "weights bfloat16, compiled": lambda: embed(compiled_half),
    }
    exact = forms["eager, float32"]()
    likeness = {
        name: torch.cosine_similarity(form().float(), exact, dim=-1).min().item() for name, form in forms.items()
    }
    if min(likeness.values()) < 0.98:
        raise ValueError(f"the forms disagree: {likeness}")
    seconds = dict(zip(forms, best_in_turn(list(forms.values()), ROUNDS), strict=True))
    slowest = seconds["eager, float32"]
    for name, best in seconds.items():
        last = name == "weights bfloat16, compiled"
        yield {
            "goal": "P15",
            "form": name,
            "batch": BATCH,
            "seconds": round(best, 3),
            "images_per_s": round(3 * BATCH / best, 2),
            "ratio": round(slowest / best, 2),
            "least_cosine": round(likeness[name], 4),
            "target": ">= 3.3" if last else "",
            "met": slowest / best >= 3.3 if last else "",
        }
