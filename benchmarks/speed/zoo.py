"""Every method of the zoo beside its authors' own code, counted: parameters, FLOPs, operator calls.

Checkouts are named as `benchmarks.speed.authors` says; a method whose code is not there has rows of ours alone. Both
have the same batch and sizes, RGBNT201's settings: the embedding of a batch, and the forward and backward pass of a
training step from the sum of all outputs, without losses and optimizer. They are counted on meta tensors where the code
reads no values, so that the machine does not matter. Calls are eager operators that compute or copy; ``calls_of_scan``
are those among them of MambaPro's scan, which in its authors' code is a kernel of CUDA with a loop in its place here.
NEXTREID_ZOO names models, separated by commas, to count only these. `zoo_times` has the seconds.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nextreid
from nextreid.models import list_authors
from nextreid.models._authors import get_authors
from nextreid.ops import selective_scan

from .authors import AUTHORS, batch, check_size, found, scan, theirs
from .counting import count
from .models import CAMERAS, CLASSES
from .text import Captions, training_captions
from .turns import Piece

BATCH = 4
READ_VALUES = ("IDEA", "EDITOR", "editor_vit_b16")


def run() -> Iterator[dict[str, Any]]:
    """Yield a row for each method, ours and the authors', and each piece."""
    for model, title in methods():
        for code in codes(model, title):
            facts = _count(code)
            if code == title:
                check_size(title, facts["params_M"])
            for what, (flops, calls) in facts["counts"].items():
                yield {
                    "model": model,
                    "method": title,
                    "code": "ours" if code == model else "authors",
                    "what": what,
                    "size": f"{BATCH} x 3 x 256x128, {CLASSES} identities",
                    "TFLOP": round(flops / 1e12, 3),
                    "calls": calls,
                    "calls_of_scan": scan_calls(code == model, what) if title == "MambaPro" else "",
                    "params_M": facts["params_M"],
                    "trainable_M": facts["trainable_M"],
                }


def methods() -> list[tuple[str, str]]:
    """Models at full size, one for each method, and the methods' names as their papers have them."""
    given = os.environ.get("NEXTREID_ZOO")
    names = given.split(",") if given else nextreid.list_models("*_b16")
    known = list_authors()
    prefixes = [name.split("_")[0] for name in names]
    return [(name, get_authors(p).title if p in known else name) for name, p in zip(names, prefixes, strict=True)]


def codes(model: str, title: str) -> list[str]:
    """What there is to measure: ours, and the authors' where a checkout is named."""
    return [model, title] if title in AUTHORS and found(title) else [model]


def scan_calls(own: bool, what: str) -> int:
    """Calls of MambaPro's scans: in each of two blocks, three over 128 tokens and one over all 384."""
    step = what == "step"

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


def _count(code: str) -> dict[str, Any]:
    """Counts of one code in a process of its own, since those of several authors cannot be imported together."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", __name__, code],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return json.loads(done.stdout)


def _main(code: str) -> None:
    """What such a process prints."""
    with contextlib.redirect_stdout(io.StringIO()):  # the authors' code prints
        captions = training_captions("RGBNT201")[1][:BATCH]
        model, pieces = _build(code, captions)
        counts = {name: _flops_and_calls(partial(piece, torch.float32)) for name, piece in pieces.items()}
    facts = {
        "params_M": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        "trainable_M": round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6, 2),
        "counts": counts,
    }
    print(json.dumps(facts))


def _build(code: str, captions: Captions) -> tuple[nn.Module, Mapping[str, Piece]]:
    device = "cpu" if code in READ_VALUES else "meta"
    return theirs(code, captions, device, bare=True) if code in AUTHORS else _ours(code, captions, device)


def _flops_and_calls(code: partial[object]) -> tuple[int, int]:
    return count(code)[:2]


def _ours(name: str, captions: Captions, device: str) -> tuple[nn.Module, Mapping[str, Piece]]:
    with torch.device(device):
        model = nextreid.create_model(name, num_classes=CLASSES, num_cameras=CAMERAS)
    images, pid, _ = (t.to(device) for t in batch(len(captions)))
    # A camera is checked by its value, and there are none: all are unknown.

    def step(dtype: torch.dtype) -> None:
        model.train()
        out = model(images, captions if model.uses_text else None)
        total = sum(head.logits.sum() + head.feature.sum() for head in out.heads) + sum(out.losses.values())
        parts = {part: out.features[part] for part in model.loss_parts if part in out.features}
        (total + sum(model.identity_losses(parts, pid).values())).backward()
        model.zero_grad(set_to_none=True)

    def embed(dtype: torch.dtype) -> None:
        model.eval()
        with torch.no_grad():
            model.pool(model.forward_features(images, captions if model.uses_text else None))

    return model, {"step": step, "embedding": embed}


if __name__ == "__main__":
    _main(sys.argv[1])
