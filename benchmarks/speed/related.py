"""A training step and the embedding of a batch: ours beside the code of IDEA's and DeMo's authors, on one CPU thread.

NEXTREID_IDEA and NEXTREID_DEMO name checkouts of github.com/924973292/IDEA and .../DeMo; a method that is not there is
skipped. Nothing of theirs is copied or changed: a process per model imports the checkout, with stand-ins for what is
missing (CLIP's weights, which are random here, CUDA, packages that draw, count or read settings), builds the model of
its RGBNT201 settings, and steps as its training loop does with its own loss and its Adam of a group per parameter, but
in float32 or bfloat16 where theirs is float16 with a gradient scaler. The parameters must be as many as were counted in
their code elsewhere, and every result finite, before anything is timed.

All processes wait while one computes, so that models take turns; best CPU seconds of 3 rounds after a counted one. They
need 16 GiB together. ``ratio`` is to the row of next_clip_b16 with its captions in the table: above 1 that model is
slower than ours. The models do not do the same work: NEXT adds six experts with a hidden width of 4 D to the tower,
IDEA a text tower with learned tokens, which it has to run on every batch, DeMo seven attentions. Read the seconds with
the FLOPs beside them.
"""

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm

import nextreid
from nextreid.data import seeded_rng
from nextreid.data.captions import draw_sentences
from nextreid.engine import get_recipe
from nextreid.engine.optimizer import build_optimizer
from nextreid.losses import Criterion
from nextreid.models import ReIDModel

from .authors import autocast, batch, check_size, finite, found, theirs
from .models import CAMERAS, CLASSES
from .text import Captions, training_captions
from .turns import DTYPES, Child, Piece, serve

OURS, THEIRS = ("next_clip_b16", "baseline_clip_b16"), ("IDEA", "DeMo")
BATCH, ROUNDS = 4, 3
KNOWN, AGAIN, NONE = "captions in the table", "captions encoded again", "no captions"


def run() -> Iterator[dict[str, Any]]:
    """Yield a row for each model, piece and dtype."""
    torch.set_num_threads(1)
    size = f"{BATCH} x 3 x 256x128, {CLASSES} identities, captions of {training_captions('RGBNT201')[0]}"
    with contextlib.ExitStack() as stack:
        models = {name: stack.enter_context(Child(__name__, name)) for name in (*OURS, *filter(found, THEIRS))}
        for name, model in models.items():
            check_size(name, model.facts["params_M"])
        turns = [(name, piece) for name, model in models.items() for piece in model.facts["counts"]]
        best = dict.fromkeys(turns, math.inf)
        for _ in range(ROUNDS):
            for name, piece in turns:
                best[name, piece] = min(best[name, piece], models[name].seconds(piece))
    for (name, piece), seconds in sorted(best.items(), key=lambda item: _order(item[0][1])):
        goal, what, dtype = piece.split("/")
        facts = models[name].facts
        flops, calls = facts["counts"][piece]
        yield {
            "goal": goal,
            "model": name,
            "what": what,
            "size": size,
            "dtype": dtype,
            "seconds": round(seconds, 3),
            "samples_per_s": round(BATCH / seconds, 3),
            "ratio": round(seconds / best[OURS[0], f"{goal}/{KNOWN}/{dtype}"], 2),
            "TFLOP": round(flops / 1e12, 3),
            "calls": calls,
            "params_M": facts["params_M"],
            "trainable_M": facts["trainable_M"],
        }


def _order(piece: str) -> tuple[bool, int]:
    goal, _, dtype = piece.split("/")
    return goal != "step", DTYPES.index(dtype)


def _build(name: str) -> tuple[nn.Module, dict[str, Piece]]:
    captions = training_captions("RGBNT201")[1][:BATCH]
    if name not in OURS:
        model, pieces = theirs(name, captions)
        return model, {f"{piece}/{AGAIN if name == 'IDEA' else NONE}": code for piece, code in pieces.items()}
    own, pieces = ours(name, captions)
    tower = own.text_tower
    if tower is None:
        return own, {f"{piece}/{NONE}": code for piece, code in pieces.items()}

    def again(piece: Piece, dtype: torch.dtype) -> None:
        tower.clear_cache()
        piece(dtype)

    # Those that clear the table come first: each leaves its own captions there, and the other piece keeps them.
    return own, {
        f"{piece}/{what}": code if what == KNOWN else partial(again, code)
        for piece, code in pieces.items()
        for what in (AGAIN, KNOWN)
    }


def ours(name: str, captions: Captions) -> tuple[ReIDModel, dict[str, Piece]]:
    """The library's model, and its pieces: the training loop's step, and the evaluation's embedding."""
    model = nextreid.create_model(name, num_classes=CLASSES, num_cameras=CAMERAS)
    recipe = get_recipe()
    optimizer = build_optimizer(model, recipe)
    criterion = Criterion(recipe.identity_weight, recipe.triplet_weight, recipe.smoothing, recipe.margin)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    images, pid, camid = batch(len(captions))

    def sample(row: int, modality: int, draw: int) -> Sequence[str]:
        return draw_sentences(captions[row][modality], seeded_rng("benchmark", row, modality, draw))

    def step(dtype: torch.dtype) -> None:
        model.train()
        text = model.prepare_text(captions, sample)
        with autocast(dtype):
            out = model(images, text=text, camid=camid)
        parts = {part: out.features[part] for part in model.loss_parts if part in out.features}
        loss = criterion(out.heads, pid, out.losses | model.identity_losses(parts, pid))["total"]
        loss.item()
        model.zero_grad(set_to_none=True)
        loss.backward()
        finite(get_total_norm([p.grad for p in trained if p.grad is not None]))
        optimizer.step()
        model.after_step({part: value.detach() for part, value in parts.items()}, pid)

    def embed(dtype: torch.dtype) -> None:
        model.eval()
        with torch.no_grad(), autocast(dtype):
            finite(model.pool(model.forward_features(images, captions, camid=camid)))

    return model, {"step": step, "embedding": embed}


if __name__ == "__main__":
    serve(partial(_build, sys.argv[1]))
