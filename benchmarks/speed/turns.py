"""Models that take turns: a process holds each, counts its pieces once, and times one when it is asked to."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .counting import count_calls, count_flops

Piece = Callable[[torch.dtype], object]
DTYPES = ("float32", "bfloat16")


class Child:
    """A process that holds one model, and computes when it is asked to; its module ends with `serve`.

    Args:
        module: Its name, such as ``"benchmarks.speed.related"``.
        *arguments: Given to it.

    Attributes:
        facts: Parameters in millions, and of each piece the FLOPs and calls.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self.name = arguments[0]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.facts = self._answer()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.__exit__(None, None, None)  # the end of its input ends it

    def seconds(self, piece: str) -> float:
        """CPU seconds of one run of a piece."""
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


def serve(build: Callable[[], tuple[nn.Module, Mapping[str, Piece]]], dtypes: tuple[str, ...] = DTYPES) -> None:
    """What such a process does: build the model, count every piece, then time the pieces that are asked for."""

    def answer(what: object) -> None:
        print(json.dumps(what), file=sys.__stdout__, flush=True)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):  # the authors' code prints
        model, given = build()
        pieces = {f"{piece}/{dtype}": (given[piece], getattr(torch, dtype)) for piece in given for dtype in dtypes}
        # The first step also makes the optimizer's state, which costs calls and no FLOPs.
        flops = {name: count_flops(partial(piece, dtype)) for name, (piece, dtype) in pieces.items()}
        answer(
            {
                "params_M": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
                "trainable_M": round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6, 2),
                "counts": {
                    name: count_calls(partial(piece, dtype), flops[name])[:2] for name, (piece, dtype) in pieces.items()
                },
            }
        )
        for line in sys.stdin:
            piece, dtype = pieces[line.strip()]
            start = time.process_time()
            piece(dtype)
            answer(time.process_time() - start)
