"""Several conditions against one, in CPU seconds of one thread: with and without captions, and the matrix of 7 subsets.

One evaluation with captions is the unit. Images pass the tower once for all conditions, so what a condition costs is
the head, the ranking and, with captions, their preparation; caption features come from the text tower's cache in every
form. Random weights and synthetic persons. next_clip_b16 has the paper's proportions of tower and
head; in next_tiny the tower is so small that head and ranking dominate.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import nextreid
from nextreid.data import load_dataset
from nextreid.engine import Condition, EmbedOptions, evaluate_conditions, modality_matrix

from ..harness import best_in_turn

ROUNDS = {"next_clip_b16": 2, "next_tiny": 5}
SAMPLES = {"next_clip_b16": 8, "next_tiny": 88}
TARGETS = {"with and without captions": 1.1, "matrix of 7 subsets": 2.0}


def run() -> Iterator[dict[str, Any]]:
    """Yield one row per model and form."""
    torch.set_num_threads(1)
    for name in ROUNDS:
        yield from _rows(name)


def _rows(name: str) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    model = nextreid.create_model(name)
    dataset = load_dataset("synthetic-persons", num_train=2, num_test=8, frames_per_visit=4)
    some = dataset.query[: SAMPLES[name]]
    dataset = replace(dataset, query=some, gallery=some, protocol="none")
    options = EmbedOptions(batch_size=8)
    calls: list[int] = []
    model.image_tower.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    both = [Condition(), Condition(text=False)]
    forms = {
        "one evaluation": lambda: evaluate_conditions(model, dataset, both[:1], options=options),
        "with and without captions": lambda: evaluate_conditions(model, dataset, both, options=options),
        "matrix of 7 subsets": lambda: modality_matrix(model, dataset, options=options),
    }
    encoded = {}
    for form, code in forms.items():
        calls.clear()
        code()
        encoded[form] = sum(calls)
    seconds = dict(zip(forms, best_in_turn(list(forms.values()), ROUNDS[name]), strict=True))
    for form, best in seconds.items():
        ratio = best / seconds["one evaluation"]
        target = TARGETS.get(form) if name == "next_clip_b16" else None
        yield {
            "model": name,
            "form": form,
            "samples": len(dataset.query),
            "samples_encoded": encoded[form],
            "seconds": round(best, 3),
            "ratio": round(ratio, 3),
            "target": f"<= {target}" if target else "",
            "met": ratio <= target if target else "",
        }
