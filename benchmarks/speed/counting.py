"""What a piece of code asks of a machine, counted on meta tensors: FLOPs, operator calls, bytes read and written."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Counts(NamedTuple):
    """Attributes: ``flops``, ``calls`` of operators that compute or copy, ``bytes`` they read and write."""

    flops: int
    calls: int
    bytes: int


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        # A view costs nothing; an operator in place reads and writes the same tensor.
        view = func.is_view or func._schema.name in ("aten::detach", "aten::_unsafe_view", "aten::alias")
        if not view and (inputs or outputs):
            self.calls += 1
            self.bytes += sum(_distinct_bytes(x) for x in (*inputs, *outputs))
        return out


class _Untracked(nullcontext):
    """In the place of the counter's tracker of modules, whose hooks fail on inputs that are views of parameters."""

    parents = frozenset(("Global",))


def _distinct_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, axes that are expanded counted once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()


def count(code: Callable[[], object]) -> Counts:
    """Run code twice and count; eager, so nothing is fused.

    Not both in one run: the counter of FLOPs holds on to the gradients of leaves, which autograd then copies.
    """
    return count_calls(code, count_flops(code))


def count_flops(code: Callable[[], object]) -> int:
    """Run code and count its FLOPs."""
    flops = FlopCounterMode(display=False)
    flops.mod_tracker = _Untracked()  # type: ignore[assignment]
    with flops:
        code()
    return flops.get_total_flops()


def count_calls(code: Callable[[], object], flops: int = 0) -> Counts:
    """Run code and count its calls and bytes."""
    with _Operators() as operators:
        code()
    return Counts(flops, operators.calls, operators.bytes)
