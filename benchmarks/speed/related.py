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
import importlib
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

import nextreid
from nextreid.data import seeded_rng
from nextreid.data.captions import draw_sentences
from nextreid.engine import get_recipe
from nextreid.engine.optimizer import build_optimizer
from nextreid.losses import Criterion

from .counting import count
from .models import CAMERAS, CLASSES, RELATED
from .text import Captions, training_captions

OURS, THEIRS = ("next_clip_b16", "baseline_clip_b16"), ("IDEA", "DeMo")
BATCH, ROUNDS = 4, 3
KNOWN, AGAIN, NONE = "captions in the table", "captions encoded again", "no captions"
DTYPES = ("float32", "bfloat16")

Piece = Callable[[torch.dtype], object]


def run() -> Iterator[dict[str, Any]]:
    """Yield a row for each model, piece and dtype."""
    torch.set_num_threads(1)
    size = f"{BATCH} x 3 x 256x128, {CLASSES} identities, captions of {training_captions('RGBNT201')[0]}"
    with contextlib.ExitStack() as stack:
        models = {name: stack.enter_context(_Child(name)) for name in (*OURS, *filter(_found, THEIRS))}
        for name, model in models.items():
            _check_size(name, model.facts["params_M"])
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


def _found(name: str) -> bool:
    checkout = os.environ.get(f"NEXTREID_{name.upper()}", "")
    found = bool(checkout) and (Path(checkout) / "modeling" / "make_model.py").is_file()
    if not found:
        print(f"{name} is skipped: NEXTREID_{name.upper()} is {checkout!r}; set it to a checkout of 924973292/{name}")
    return found


def _check_size(name: str, millions: float) -> None:
    if name in RELATED and abs(millions - RELATED[name][0]) > 0.02:
        raise ValueError(f"{name} has {millions} M parameters here and {RELATED[name][0]} M where it was counted")


def _order(piece: str) -> tuple[bool, int]:
    goal, _, dtype = piece.split("/")
    return goal != "step", DTYPES.index(dtype)


class _Child:
    """A process that holds one model, and computes when it is asked to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.speed.related", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.facts = self._answer()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.__exit__(None, None, None)  # the end of its input ends it

    def seconds(self, piece: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{piece}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended; its messages are above")
        return json.loads(line)


def _serve(name: str) -> None:
    """What such a process does: build the model, count every piece, then time the pieces that are asked for."""

    def answer(what: object) -> None:
        print(json.dumps(what), file=sys.__stdout__, flush=True)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):  # the authors' code prints
        captions = training_captions("RGBNT201")[1][:BATCH]
        model, given = _ours(name, captions) if name in OURS else _theirs(name, captions)
        pieces = {f"{piece}/{dtype}": (given[piece], getattr(torch, dtype)) for piece in given for dtype in DTYPES}
        next(iter(given.values()))(torch.float32)  # the first step also makes the optimizer's state: not counted
        answer(
            {
                "params_M": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
                "trainable_M": round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6, 2),
                "counts": {name: count(partial(piece, dtype))[:2] for name, (piece, dtype) in pieces.items()},
            }
        )
        for line in sys.stdin:
            piece, dtype = pieces[line.strip()]
            start = time.process_time()
            piece(dtype)
            answer(time.process_time() - start)


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images ``(B, M, 3, H, W)``, identities and cameras: two samples of each identity."""
    return torch.randn(BATCH, 3, 3, 256, 128), torch.arange(BATCH) // 2, torch.arange(BATCH) % CAMERAS


def _autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def _finite(values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise FloatingPointError("the result is not finite")


def _ours(name: str, captions: Captions) -> tuple[nn.Module, dict[str, Piece]]:
    """The library's model, and its pieces: the training loop's step, and the evaluation's embedding."""
    model = nextreid.create_model(name, num_classes=CLASSES, num_cameras=CAMERAS)
    recipe = get_recipe()
    optimizer = build_optimizer(model, recipe)
    criterion = Criterion(recipe.identity_weight, recipe.triplet_weight, recipe.smoothing, recipe.margin)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    images, pid, camid = _batch()

    def sample(row: int, modality: int, draw: int) -> Sequence[str]:
        return draw_sentences(captions[row][modality], seeded_rng("benchmark", row, modality, draw))

    def step(dtype: torch.dtype) -> None:
        model.train()
        text = model.prepare_text(captions, sample)
        with _autocast(dtype):
            out = model(images, text=text, camid=camid)
        loss = criterion(out.heads, pid, out.losses)["total"]
        loss.item()
        model.zero_grad(set_to_none=True)
        loss.backward()
        _finite(get_total_norm([p.grad for p in trained if p.grad is not None]))
        optimizer.step()

    def embed(dtype: torch.dtype) -> None:
        model.eval()
        with torch.no_grad(), _autocast(dtype):
            _finite(model.pool(model.forward_features(images, captions, camid=camid)))

    tower = model.text_tower

    def again(piece: Piece) -> Piece:
        def cleared(dtype: torch.dtype) -> None:
            assert tower is not None
            tower.clear_cache()
            piece(dtype)

        return cleared

    if tower is None:
        return model, {f"step/{NONE}": step, f"embedding/{NONE}": embed}
    # Those that clear the table come first: each leaves its own captions there, and the other piece keeps them.
    return model, {
        f"step/{AGAIN}": again(step),
        f"step/{KNOWN}": step,
        f"embedding/{AGAIN}": again(embed),
        f"embedding/{KNOWN}": embed,
    }


def _theirs(name: str, captions: Captions) -> tuple[nn.Module, dict[str, Piece]]:
    """The model of a checkout, and its pieces as its training loop and its evaluation have them."""
    checkout = Path(os.environ[f"NEXTREID_{name.upper()}"])
    _stand_in()
    sys.path.insert(0, str(checkout))
    cfg = importlib.import_module("config").cfg
    for section, values in yaml.safe_load((checkout / f"configs/RGBNT201/{name}.yml").read_text()).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            setattr(getattr(cfg, section), key, value)
    vars(importlib.import_module("modeling.meta_arch"))["load_clip_to_cpu"] = _random_clip
    model = importlib.import_module("modeling").make_model(cfg, num_class=CLASSES, camera_num=CAMERAS)
    criterion, center = importlib.import_module("layers.make_loss").make_loss(cfg, num_classes=CLASSES)
    optimizer, _ = importlib.import_module("solver.make_optimizer").make_optimizer(cfg, model, center)
    images, pid, camid = _batch()
    inputs: dict[str, Any] = {"cam_label": camid}
    by_name = {key: images[:, m] for m, key in enumerate(("RGB", "NI", "TI"))}
    if name == "IDEA":
        tokenize = importlib.import_module("modeling.clip.clip").tokenize
        texts = {key: [" ".join(sentences[m]) for sentences in captions] for m, key in enumerate(("rgb", "ni", "ti"))}
        inputs["text"] = {f"{key}_text": tokenize(text, truncate=True) for key, text in texts.items()}

    def step(dtype: torch.dtype) -> None:
        model.train()
        optimizer.zero_grad()
        with _autocast(dtype):
            output = model(by_name, label=pid, **inputs)
            loss: Any = output[-1] if len(output) % 2 else 0.0  # behind scores and features in turn
            for i in range(0, len(output) - 1, 2):
                loss = loss + criterion(score=output[i], feat=output[i + 1], target=pid, target_cam=camid)
        loss.backward()
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of {name} is not finite")

    def embed(dtype: torch.dtype) -> None:
        model.eval()
        with torch.no_grad(), _autocast(dtype):
            feature = model(by_name, **inputs)
        _finite(feature["LOCAL"] if isinstance(feature, dict) else feature)

    what = AGAIN if name == "IDEA" else NONE
    return model, {f"step/{what}": step, f"embedding/{what}": embed}


def _stand_in() -> None:
    """Let the authors' code run where there is no GPU and where packages are missing that no step needs."""
    wanted = "fvcore fvcore.nn fvcore.nn.jit_handles cv2 gdown matplotlib matplotlib.pyplot yacs yacs.config".split()
    missing = [name for name in wanted if importlib.util.find_spec(name.split(".")[0]) is None]
    sys.modules.update({name: MagicMock() for name in missing})
    if "yacs.config" in missing:
        vars(sys.modules["yacs.config"])["CfgNode"] = SimpleNamespace
    move = nn.Module.to
    # Their code moves what it makes to the GPU by name.
    patch.object(nn.Module, "to", lambda self, *to, **how: self if to == ("cuda",) else move(self, *to, **how)).start()
    patch.object(torch.Tensor, "cuda", lambda self: self).start()


def _random_clip(cfg: Any, name: str, height: int, width: int, stride: Any) -> nn.Module:
    """The authors' CLIP class in the sizes of ViT-B/16, in place of its reader of downloaded weights."""
    build = importlib.import_module("modeling.clip.model").CLIP
    return build(cfg, 512, 224, 12, 768, 16, stride, 77, 49408, 512, 8, 12, height, width).eval()


if __name__ == "__main__":
    _serve(sys.argv[1])
