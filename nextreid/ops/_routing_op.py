"""The routing kernels as operators that torch.compile and torch.export see: schema, shapes and gradient.

Triton is imported when an operator runs, not when it is traced, so that an exported program loads without it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WEIGHTS = (1, 2, 7, 8, 9, 10)  # places of weight, bias, w1, b1, w2 and b2 among the arguments of `route_op`


@torch.library.custom_op("nextreid::route", mutates_args=())
def route_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    sigma: Tensor,
    tokens: Tensor | None,
    text: Tensor | None,
    captioned: Tensor | None,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    present: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`nextreid.ops.route` by the Triton kernels: mask, gamma and beta, which has no elements without text."""
    from . import routing_triton

    return routing_triton.forward(hidden, weight, bias, sigma, tokens, text, captioned, w1, b1, w2, b2, present)


@torch.library.custom_op("nextreid::route_backward", mutates_args=())
def route_backward_op(
    grad_mask: Tensor,
    grad_gamma: Tensor,
    grad_beta: Tensor,
    gamma: Tensor,
    beta: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    sigma: Tensor,
    tokens: Tensor | None,
    text: Tensor | None,
    captioned: Tensor | None,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    present: Tensor | None,
    temperature: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden, sigma, all weights ``(E, S)``, tokens and text; see `routing_triton.backward`."""
    from . import routing_triton

    return routing_triton.backward(
        (grad_mask, grad_gamma, grad_beta), gamma, beta, hidden, weight, sigma, tokens, text, captioned, w1, b1, w2,
        present, temperature, needs,
    )  # fmt: skip


@route_op.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, text = inputs[0], inputs[5]
    b, m, n, e, _ = hidden.shape
    mask, gamma = (hidden.new_empty(b, e, m, n, dtype=torch.float32) for _ in range(2))
    return mask, gamma, mask.new_empty(mask.shape if text is not None else 0)


@route_backward_op.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    gamma, (hidden, _, _, sigma, tokens, text), needs = inputs[3], inputs[5:11], inputs[-1]
    size = sum(_sizes(inputs[5:]))
    return (
        torch.empty_like(hidden) if needs[0] else gamma.new_empty(0),
        gamma.new_empty(sigma.shape),
        gamma.new_empty((hidden.shape[3], size) if needs[1] else 0),
        torch.empty_like(tokens) if needs[2] else gamma.new_empty(0),
        text.new_empty(text.shape) if needs[3] else gamma.new_empty(0),
    )


def _sizes(inputs: Sequence[Any]) -> list[int]:
    """Elements that each weight has per expert."""
    return [math.prod(inputs[place].shape[1:]) for place in WEIGHTS if inputs[place] is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.temperature = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, gamma, beta = ctx.saved_tensors
    want = ctx.needs_input_grad
    needs = [want[0], any(want[place] for place in WEIGHTS), want[4], want[5]]
    to_hidden, to_sigma, parts, to_tokens, to_text = route_backward_op(
        *grads, gamma, beta, *inputs, ctx.temperature, needs
    )
    found: dict[int, Tensor] = {0: to_hidden, 3: to_sigma, 4: to_tokens, 5: to_text}
    if needs[1]:
        given = [place for place in WEIGHTS if inputs[place] is not None]
        found |= zip(given, parts.split(_sizes(inputs), dim=1), strict=True)
    return tuple(
        found[place].reshape(inputs[place].shape).to(inputs[place].dtype) if wanted and place in found else None
        for place, wanted in enumerate(want)
    )


route_op.register_autograd(_backward, setup_context=_setup_context)
