"""Goals P17 to P24, those that need a GPU, with one command: steps, embedding, kernels, head, evaluation, a run.

It needs one GPU of the H200 kind (the sizes are made for 141 GB; each goal's last row says what it took), a torch with
CUDA and its Triton, a few GB of disk for temporary files, and less than ten minutes, after which what is left is cut
off and says so. It needs no data, no network and no weights: images, captions and weights are synthetic, at the real
sizes. Without a GPU everything runs in its smallest form, in less than a minute: such figures mean nothing, and the
goals stay open. Kernels then run where ``TRITON_INTERPRET=1`` is set.

Each goal runs in a process of its own, so that a kernel that breaks the GPU's context takes no other goal with it.
Results are compared before anything is timed. Times are medians, with the quantiles 0.2 and 0.8, of calls that take
turns, by CUDA events, with caches swept before each call. "floor" is the best that this GPU allows, from the bytes and
operations that there must be and the ceilings measured in the same process; "ratio" says how many times better ours is.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from .gpu_head import head
from .gpu_kernels import attention, everywhere, routing
from .gpu_model import embedding, training_step
from .gpu_retrieval import evaluation, large_reranking
from .gpu_rig import Rig, Row, guarded, remark
from .gpu_run import run_of_rgbnt201

SECONDS = 560.0
"""Of the whole script, the last rows not counted."""


def ceilings(rig: Rig) -> Iterator[Row]:
    """What the floors of all goals are made of."""
    (side, count), (product, copy) = rig.ceiling_sizes(), rig.ceiling_timings()
    size = f"{side} x {side}, bf16"
    yield rig.row("ceilings", "product", size, "TFLOP/s", product.rate(1).times(2 * side**3 / 1e12))
    yield rig.row("ceilings", "copy, read and written", f"{count} bytes", "GB/s", copy.rate(1).times(2 * count / 1e9))


GOALS: dict[str, tuple[Callable[[Rig], Iterator[Row]], float]] = {
    "ceilings": (ceilings, 60),
    "P19": (attention, 90),
    "P20": (routing, 75),
    "P17": (training_step, 180),
    "P22": (evaluation, 90),
    "P18": (embedding, 90),
    "P21": (head, 120),
    "P24": (everywhere, 75),
    "P23": (run_of_rgbnt201, 120),
    "P22, MSMT17": (large_reranking, 300),
}
"""What measures each goal, and the most seconds that it may take; the first are those that the others build on."""


def run(goals: Sequence[str] = tuple(GOALS), seconds: float = SECONDS) -> Iterator[Row]:
    """Yield the rows of some goals, in their order."""
    start = time.monotonic()
    context = processes()
    for goal in goals:
        begun = time.monotonic()
        for row in _apart(context, goal, min(start + seconds, begun + GOALS[goal][1])):
            text = "  ".join(f"{key} {value}" for key, value in row.items() if value != "")
            print(f"[{time.monotonic() - start:4.0f} s]  {text}", file=sys.stderr, flush=True)
            yield row


def processes() -> Any:
    """How goals get processes of their own: spawned where there is CUDA, else forked from one with all imports."""
    context = get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _apart(context: Any, goal: str, deadline: float) -> Iterator[Row]:
    """Measure a goal in a process of its own, and end that when time is up."""
    if time.monotonic() >= deadline:
        yield remark(goal, "all of it", "skipped: no time was left")
        return
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(goal, deadline, sender))
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            row = receiver.recv()
            if row is None:
                process.join(timeout=5)
                return
            yield row
        yield remark(goal, "the rest of it", "cut off: its time was up")
    except EOFError:
        process.join()
        yield remark(goal, "the rest of it", f"failed: its process ended with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        receiver.close()


def _measure(goal: str, deadline: float, sender: Connection) -> None:
    logging.getLogger("nextreid").setLevel(logging.ERROR)
    start = time.monotonic()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    rig = Rig(deadline)
    for row in guarded(goal, "the rest of it", GOALS[goal][0](rig)):
        sender.send(row)
    most = f"{rig.most_memory():.1f} GiB of GPU memory at most" if rig.gpu else f"{time.process_time():.1f} s of CPU"
    sender.send(rig.row(goal, "all of it", "", "s", time.monotonic() - start, note=most))
    sender.send(None)
