"""Which form of an operation runs: PyTorch's operators or the Triton kernel."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Found out once: older versions of torch cannot ask inside of a compiled graph.
_AUTOCAST = frozenset(d for d in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia") if torch.amp.is_autocast_available(d))
BACKENDS = ("auto", "torch", "triton")
_KERNEL_DTYPES = {torch.float32, torch.float16, torch.bfloat16}

# Plain module state, which torch.compile can read and guard on.
_chosen: str | None = None
_has_triton = importlib.util.find_spec("triton") is not None


def get_backend() -> str:
    """Name of the backend in force: what `set_backend` or `use_backend` chose, else ``NEXTREID_OPS``, else ``auto``.

    Raises:
        ValueError: If the environment variable names no backend.
    """
    return _chosen or _known(os.environ.get("NEXTREID_OPS") or "auto", "the environment variable NEXTREID_OPS")


def set_backend(name: str | None) -> None:
    """Choose a backend for this process; None returns the choice to the environment.

    Args:
        name: ``"auto"`` (Triton on a GPU, else PyTorch), ``"torch"``, or ``"triton"`` (the kernels).

    Raises:
        ValueError: If the name is unknown.
    """
    global _chosen
    _chosen = None if name is None else _known(name, "set_backend")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose a backend inside a ``with`` block; see `set_backend`."""
    before = _chosen
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def resolve(*tensors: Tensor | None) -> str:
    """Name of the form that serves these tensors: ``"torch"`` or ``"triton"``.

    ``auto`` takes the kernels where all tensors are on a GPU, none is in double precision and Triton is there.

    Raises:
        ValueError: If ``triton`` was asked for and cannot serve them; the message says why.
    """
    name = get_backend()
    obstacle = None if name == "torch" else _obstacle([tensor for tensor in tensors if tensor is not None])
    if name == "triton" and obstacle:
        raise ValueError(f"the backend 'triton' cannot serve this call: {obstacle}; use 'auto' or 'torch'")
    return "torch" if name == "torch" or obstacle else "triton"


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _obstacle(tensors: list[Tensor]) -> str | None:
    if others := {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - _KERNEL_DTYPES:
        names = ", ".join(sorted(map(str, others)))
        return f"it has tensors of {names}, and the kernels take float32, float16 and bfloat16"
    devices = {tensor.device.type for tensor in tensors}
    explicit = get_backend() == "triton"
    # Meta tensors stand for those of any device: what is asked for is counted on them.
    simulated = explicit and (devices == {"meta"} or (devices == {"cpu"} and interpreted()))
    if devices != {"cuda"} and not simulated:
        return (
            f"its tensors are on {', '.join(sorted(devices))}; the kernels need a GPU, or TRITON_INTERPRET=1 on a CPU"
        )
    return None if _has_triton else "Triton is not installed"


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} names the backend {name!r}; allowed: {', '.join(BACKENDS)}")
    return name


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The type that autocast gives products of this tensor; None where autocast is off or its device knows none."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if autocast_is_on(device) else None


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on for a type of device; False where there is none."""
    return device in _AUTOCAST and torch.is_autocast_enabled(device)
