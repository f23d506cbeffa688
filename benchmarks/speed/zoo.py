"""Every method of the zoo beside its authors' own code: parameters, FLOPs, operator calls, a step and an embedding.

Checkouts are named as `benchmarks.speed.authors` says; a method whose code is not there has rows of ours alone. Both
have the same batch and sizes (RGBNT201's settings, float32), random weights and one CPU thread, and take turns: best
CPU seconds of 3 rounds after a counted one. A step is the training loop's: forward, losses, backward, the optimizer.
``ratio`` is ours over theirs: below 1 ours is faster. Calls are eager operators that compute or copy, as many as ran;
``calls_of_scan`` are those among them of MambaPro's scan, which in its authors' code is a kernel of CUDA with a loop in
its place here. NEXTREID_ZOO names models, separated by commas, to measure only these.
"""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import nextreid
from nextreid.models import list_authors
from nextreid.models._authors import get_authors
from nextreid.ops import selective_scan

from .authors import AUTHORS, BATCH, check_size, found, scan, theirs
from .counting import count
from .models import CLASSES
from .related import ours
from .text import training_captions
from .turns import Child, Piece, serve

ROUNDS, DTYPE = 3, "float32"


def run() -> Iterator[dict[str, Any]]:
    """Yield two rows for each method, ours and the authors', and two pieces."""
    torch.set_num_threads(1)
    size = f"{BATCH} x 3 x 256x128, {CLASSES} identities"
    for model in _models():
        prefix = model.split("_")[0]
        title = get_authors(prefix).title if prefix in list_authors() else model
        codes = [model, title] if title in AUTHORS and found(title) else [model]
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(Child(__name__, code)) for code in codes]
            if len(codes) > 1:
                check_size(title, children[1].facts["params_M"])
            pieces = list(children[0].facts["counts"])
            best = {(code, piece): math.inf for code in codes for piece in pieces}
            for _ in range(ROUNDS):
                for piece in pieces:
                    for code, child in zip(codes, children, strict=True):
                        best[code, piece] = min(best[code, piece], child.seconds(piece))
            for code, child in zip(codes, children, strict=True):
                for piece in pieces:
                    flops, calls = child.facts["counts"][piece]
                    yield {
                        "model": model,
                        "method": title,
                        "code": "ours" if code == model else "authors",
                        "what": piece.split("/")[0],
                        "size": size,
                        "seconds": round(best[code, piece], 3),
                        "ratio": round(best[model, piece] / best[codes[-1], piece], 3) if len(codes) > 1 else "",
                        "TFLOP": round(flops / 1e12, 3),
                        "calls": calls,
                        "calls_of_scan": scan_calls(code == model, piece) if title == "MambaPro" else "",
                        "params_M": child.facts["params_M"],
                        "trainable_M": child.facts["trainable_M"],
                    }


def scan_calls(own: bool, piece: str) -> int:
    """Calls of MambaPro's scans: in each of two blocks, three over 128 tokens and one over all 384."""
    step = piece.startswith("step")

    def calls(groups: int, length: int) -> int:
        x, delta, b, c = (torch.rand(1, groups, length, width, requires_grad=step) for width in (1, 1, 2, 2))
        a, d, bias = (torch.rand(groups, *shape, requires_grad=step) for shape in ((1, 2), (1,), (1,)))

        def scans() -> None:
            if own:
                outputs = [selective_scan(x, delta, a, b, c, d)]
            else:
                along = [[t[:, g].mT for t in (x, delta, b, c)] for g in range(groups)]
                outputs = [scan(u, w, a[g], r, q, d[g], bias[g], True) for g, (u, w, r, q) in enumerate(along)]
            if step:
                torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])

        return count(scans).calls

    return 2 * (calls(3, 128) + calls(1, 384))


def _models() -> list[str]:
    """Models at full size, one for each method."""
    given = os.environ.get("NEXTREID_ZOO")
    return given.split(",") if given else nextreid.list_models("*_b16")


def _build(name: str) -> tuple[nn.Module, dict[str, Piece]]:
    captions = training_captions("RGBNT201")[1][:BATCH]
    return theirs(name, captions) if name in AUTHORS else ours(name, captions)


if __name__ == "__main__":
    serve(partial(_build, sys.argv[1]), (DTYPE,))
