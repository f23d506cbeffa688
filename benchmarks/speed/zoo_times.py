"""Every method of the zoo beside its authors' own code, timed: a training step and the embedding of a batch.

As `zoo`, with real tensors, losses and random weights, float32, one CPU thread: ours and theirs take turns, best CPU
seconds of 2 rounds after the counted ones, with losses and optimizer. ``ratio`` is ours over theirs: below 1 ours is
faster. A method whose authors' code is not there is left out. A pair needs up to 12 GiB.
"""

import contextlib
import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from .authors import AUTHORS, check_size, theirs
from .models import CLASSES
from .related import ours
from .text import training_captions
from .turns import Child, Piece, serve
from .zoo import codes, methods

BATCH, ROUNDS = 2, 2


def run() -> Iterator[dict[str, Any]]:
    """Yield a row for each method and piece."""
    torch.set_num_threads(1)
    for model, title in methods():
        pair = codes(model, title)
        if len(pair) < 2:
            continue
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(Child(__name__, code)) for code in pair]
            check_size(title, children[1].facts["params_M"])
            pieces = list(children[0].facts["counts"])
            best = {(child.name, piece): math.inf for child in children for piece in pieces}
            for _ in range(ROUNDS):
                for piece in pieces:
                    for child in children:
                        best[child.name, piece] = min(best[child.name, piece], child.seconds(piece))
        for piece in pieces:
            own, other = (best[code, piece] for code in pair)
            yield {
                "model": model,
                "method": title,
                "what": piece.split("/")[0],
                "size": f"{BATCH} x 3 x 256x128, {CLASSES} identities",
                "ours_s": round(own, 3),
                "authors_s": round(other, 3),
                "ratio": round(own / other, 3),
            }


def _build(name: str) -> tuple[nn.Module, dict[str, Piece]]:
    captions = training_captions("RGBNT201")[1][:BATCH]
    return theirs(name, captions) if name in AUTHORS else ours(name, captions)


if __name__ == "__main__":
    serve(partial(_build, sys.argv[1]), ("float32",))
