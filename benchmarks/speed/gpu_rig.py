"""What the goals on a GPU share: where they run, how they are timed, what a row says. See ``gpu.py``."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

GIB = 2.0**30
Row = dict[str, Any]
COLUMNS = (
    "goal", "what", "size", "unit", "ours", "ours_20", "ours_80", "against", "theirs", "theirs_20", "theirs_80",
    "ratio", "floor", "x_of_floor", "target", "met", "note",
)  # fmt: skip


class Timing(NamedTuple):
    """Median and the quantiles 0.2 and 0.8 of a call's seconds, or of what follows from them."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> "Timing":
        """All three, so many times."""
        return Timing(*(factor * value for value in self))

    def ms(self) -> "Timing":
        """In milliseconds."""
        return self.times(1000)

    def rate(self, count: int) -> "Timing":
        """Of `count` things a call: how many a second."""
        return Timing(count / self.median, count / self.high, count / self.low)


class Ceilings(NamedTuple):
    """Attributes: ``flops`` a second of a large product, ``bytes`` a second of a copy, read and written."""

    flops: float
    bytes: float


class Rig:
    """One goal's place of work: the first GPU, or the CPU with the smallest sizes.

    Args:
        deadline: When its time is up, on `time.monotonic`'s clock.

    Attributes:
        gpu: Whether there is a GPU. Without one nothing is meant to be fast: all lines run, on sizes that mean nothing.
        device: Where.
        dtype: Type of activations: bfloat16, on the CPU float32 (Triton's interpreter computes no bfloat16).
        kernel: Whether the Triton kernels run: on a GPU, or interpreted where ``TRITON_INTERPRET=1``.
        largest: Bytes of GPU memory at most so far.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", 0) if self.gpu else torch.device("cpu")
        self.dtype = torch.bfloat16 if self.gpu else torch.float32
        self.kernel = self.gpu or os.environ.get("TRITON_INTERPRET") == "1"
        self.largest = 0

    def pick(self, real: Any, smallest: Any) -> Any:
        """The first on a GPU, else the second."""
        return real if self.gpu else smallest

    def left(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.gpu:
            torch.cuda.synchronize()

    def autocast(self) -> AbstractContextManager:
        """As training casts, on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.gpu)

    def compile(self, code: Any, fullgraph: bool = False) -> Any:
        """`torch.compile`; on the CPU only a full graph, without Inductor: all else takes longer than it tells."""
        if self.gpu or fullgraph:
            return torch.compile(code, fullgraph=fullgraph, backend=self.pick("inductor", "aot_eager"))
        return code

    @cached_property
    def _waste(self) -> Tensor:
        return torch.empty(int(GIB), dtype=torch.uint8, device=self.device)

    def _sweep(self) -> None:
        """Empty the caches; meanwhile (a millisecond) the host gets ahead, so that launching is not what is timed."""
        for _ in range(4):
            self._waste.zero_()

    def time(self, *codes: Callable[[], object]) -> list[Timing]:
        """Time pieces of code that take turns, each call behind a sweep, by events on the GPU.

        As many rounds as fit into half a second of the slowest, 5 to 100. Each piece has run twice before.
        """
        longest = 0.0
        for code in codes:
            code()
            longest = max(longest, self.wall(code))
        rounds = int(min(max(0.5 / longest, 5), 100)) if self.gpu else 2
        seconds = [[self._once(code) for code in codes] for _ in range(rounds)]
        self.wait()
        quantiles = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
        columns = torch.tensor([[end() for end in row] for row in seconds], dtype=torch.float64)
        return [Timing(*column.quantile(quantiles).tolist()) for column in columns.T]

    def _once(self, code: Callable[[], object]) -> Callable[[], float]:
        """Run code; what is returned gives its seconds, once the GPU has been waited for."""
        if not self.gpu:
            start = time.perf_counter()
            code()
            passed = time.perf_counter() - start
            return lambda: passed
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._sweep()
        begin.record()
        code()
        end.record()
        return lambda: begin.elapsed_time(end) / 1000

    def wall(self, code: Callable[[], object]) -> float:
        """Seconds of one call on the clock, for code that takes long and works on the host, too."""
        self.wait()
        start = time.perf_counter()
        code()
        self.wait()
        return time.perf_counter() - start

    def peak(self, code: Callable[[], object]) -> float:
        """GiB that a call takes at most on top of what is held before it; 0 on the CPU, where it is not counted."""
        code()
        if not self.gpu:
            return 0.0
        self.most_memory()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        code()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / GIB

    def most_memory(self) -> float:
        """GiB of GPU memory that this process has taken at most so far."""
        self.largest = max(self.largest, torch.cuda.max_memory_allocated() if self.gpu else 0)
        return self.largest / GIB

    @cached_property
    def ceilings(self) -> Ceilings:
        """Measured here and now, on random numbers."""
        product, copy = self.ceiling_timings()
        size, count = self.ceiling_sizes()
        return Ceilings(2 * size**3 / product.median, 2 * count / copy.median)

    def ceiling_sizes(self) -> tuple[int, int]:
        """Side of the square matrices that are multiplied, and bytes that are copied."""
        return self.pick((8192, 2**31), (128, 2**16))

    def ceiling_timings(self) -> list[Timing]:
        """A product of bfloat16 matrices, and a copy."""
        size, count = self.ceiling_sizes()
        a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=self.device) for _ in range(2))
        source = torch.randint(0, 256, (count,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return self.time(lambda: a @ b, lambda: target.copy_(source))

    def row(
        self, goal: str, what: str, size: str, unit: str, ours: Timing | float, against: str = "",
        theirs: Timing | float | None = None, floor: float | None = None, *, bound: float | None = None,
        ratio: float | None = None, of_floor: float | None = None, note: str = "",
    ) -> Row:  # fmt: skip
        """Make a row; a unit that ends in "/s" is one of which more is better, and the ratio is how much better.

        Args:
            goal: Its number, P17 to P24.
            what: What was measured.
            size: On what.
            unit: Of ours, theirs and floor.
            ours: The library's figure.
            against: What it is compared with.
            theirs: The figure of that.
            floor: The best that the ceilings allow.
            bound: What ours must reach.
            ratio: What the ratio must reach.
            of_floor: How many times the floor it may be.
            note: Anything else.
        """
        more = unit.endswith("/s")
        mine, other = (_timing(value) for value in (ours, theirs))
        times = _over(mine[0], other[0]) if more else _over(other[0], mine[0])
        off = _over(floor, mine[0]) if more else _over(mine[0], floor)
        aims = [
            (f"{'>=' if more else '<='} {bound:g}", mine[0] >= bound if more else mine[0] <= bound)
            if bound is not None and mine[0] is not None
            else None,
            (f"ratio >= {ratio:g}", times is not None and times >= ratio) if ratio is not None else None,
            (f"<= {of_floor:g} x floor", off is not None and off <= of_floor) if of_floor is not None else None,
        ]
        told = [aim for aim in aims if aim is not None]
        met: Any = (all(reached for _, reached in told) if self.gpu else "open: no GPU") if told else ""
        numbers = map(_shown, (*mine, against, *other, times, floor, off))
        row = (goal, what, size, unit, *numbers, ", ".join(text for text, _ in told), met, note)
        return dict(zip(COLUMNS, row, strict=True))


def remark(goal: str, what: str, note: str) -> Row:
    """A row without figures."""
    return {**dict.fromkeys(COLUMNS, ""), "goal": goal, "what": what, "note": note}


def guarded(goal: str, what: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows of a part of a goal, and one with the error where it fails."""
    try:
        yield from rows
    except Exception as error:
        text = " ".join(str(error).split())
        yield remark(goal, what, f"failed: {type(error).__name__}: {text[:400]}")


def check(what: str, ours: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor]) -> str:
    """Hold results against exact ones: they may be off twice as far as those of the plain form in the same types.

    Returns:
        The largest deviations of both, in words.

    Raises:
        ValueError: If one is farther off.
    """
    worst = (0.0, 0.0)
    for number, tensors in enumerate(zip(ours, plain, exact, strict=True)):
        mine, other, truth = (tensor.detach().double() for tensor in tensors)
        pair = ((mine - truth).norm() / truth.norm()).item(), ((other - truth).norm() / truth.norm()).item()
        if not pair[0] <= 2 * pair[1] + 1e-5:
            raise ValueError(
                f"{what}: tensor {number} is off by {pair[0]:.1e}, that of the plain form by {pair[1]:.1e}"
            )
        worst = max(worst, pair)
    return f"off by {worst[0]:.1e}, plain form by {worst[1]:.1e}"


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def _timing(value: Timing | float | None) -> tuple[float | None, float | None, float | None]:
    return value if isinstance(value, Timing) else (value, None, None)


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _shown(value: Any) -> Any:
    return "" if value is None else float(f"{value:.4g}") if isinstance(value, float) else value
