"""Several processes as one run: ranks and the few collectives they need. In one process each is a no-op."""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Value = TypeVar("Value")


def world_size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this is, counted from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process writes the files and prints."""
    return rank() == 0


@contextmanager
def process_group(device: str | torch.device, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Join the processes that ``torchrun`` started; do nothing where it did not, or where they are joined already.

    Args:
        device: This process's device. CUDA exchanges by NCCL, all else by gloo.
        timeout: How long a process waits for another one. ``torchrun`` ends all of them as soon as one fails; this is
            for a machine that falls silent.
    """
    started = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if not started or int(os.environ["WORLD_SIZE"]) == 1 or dist.is_initialized():
        yield
        return
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    yield
    # Only after success: a process that failed must end without waiting for those that wait for it.
    dist.destroy_process_group()


def broadcast(value: Value) -> Value:
    """Return the first process's value in all of them; it must be picklable."""
    if world_size() == 1:
        return value
    box: list[Any] = [value if is_main() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(call: Callable[[], Value]) -> Value:
    """Call in the first process alone; its result, or its error, is that of all, so that none waits for another."""
    if world_size() == 1:
        return call()
    result, error = None, None
    if is_main():
        try:
            result = call()
        except Exception as raised:
            error = raised
    sent_result, sent_error = broadcast((result, _sendable(error)))
    if failure := error or sent_error:
        raise failure
    return sent_result  # type: ignore[return-value]


def _sendable(error: Exception | None) -> Exception | None:
    if error is not None:
        try:
            if type(pickle.loads(pickle.dumps(error))) is type(error):
                return error
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def all_gather_objects(values: Sequence[Value]) -> list[Value]:
    """Return the processes' values one after the other, in the order of the ranks; they must be picklable."""
    if world_size() == 1:
        return list(values)
    boxes: list[Any] = [None] * world_size()
    dist.all_gather_object(boxes, list(values))
    return [value for box in boxes for value in box]


def all_gather(rows: Tensor) -> Tensor:
    """Return the processes' rows one after the other ``(world_size * n, ...)``; every process has n of them.

    The gradient of a process's own rows comes back as it is, not summed: each process computes the same loss of all
    rows, and `all_reduce_gradients` adds up what the rows give to the weights.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.count = len(rows)
        # As bytes: a backend need not know the number format.
        sent = rows.detach().contiguous().to(_carrier(rows.device)).view(torch.uint8)
        parts = [torch.empty_like(sent) for _ in range(world_size())]
        dist.all_gather(parts, sent)
        return torch.cat(parts).view(rows.dtype).to(rows.device)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        start = rank() * context.count
        return gradients[0][start : start + context.count]


def all_reduce_gradients(parameters: Sequence[nn.Parameter], everywhere: Sequence[nn.Parameter] = ()) -> None:
    """Add up the gradients of all processes, in place, and average those that every process has whole (`everywhere`).

    The parameters have the same order in every process. One without a gradient in every process stays without: the
    optimiser passes over it as it would in one process.
    """
    count = world_size()
    if count == 1 or not parameters:
        return
    whole = {id(parameter) for parameter in everywhere}
    pieces = [torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)]
    for p in parameters:
        grad = torch.zeros_like(p) if p.grad is None else p.grad / count if id(p) in whole else p.grad
        pieces.append(grad.detach().flatten())
    carrier = _carrier(parameters[0].device)
    flat = torch.cat([piece.to(carrier) for piece in pieces])
    dist.all_reduce(flat)
    flat = flat.to(parameters[0].device)
    has_gradient, start = flat[: len(parameters)].tolist(), len(parameters)
    for p, has in zip(parameters, has_gradient, strict=True):
        if has:
            p.grad = flat[start : start + p.numel()].view_as(p).to(p.dtype)
        start += p.numel()


def broadcast_parameters(model: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if world_size() == 1:
        return
    # Not in place: what caches by weight must hear of it.
    model.load_state_dict(broadcast({name: tensor.cpu() for name, tensor in model.state_dict().items()}))


def _carrier(device: torch.device) -> torch.device:
    """Return the device that the backend exchanges from: NCCL knows CUDA only, gloo is asked for the CPU only."""
    if dist.get_backend() == "nccl":
        return device if device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
