"""From router activations to sampling masks: scores, cosines, modulation and threshold (NEXT, Eq. 2, 3, 5 and 6).

Two forms of one function: `route_torch` (a few batched calls over all experts and modalities) and the Triton kernels of
``routing_triton.py``. `route` checks its arguments and takes the form that `nextreid.ops.resolve` names. The arithmetic
of both is float32 (float64 for float64 ``hidden``) whatever the inputs' types, and autocast does not touch it: in half
precision the cosines move by more than the margins between scores.

The kernels are registered as operators that torch.compile and torch.export see: schema, shapes and gradient. Triton is
imported when an operator runs, not when it is traced, so that an exported program loads without it.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._backend import autocast_is_on, resolve

Mix = tuple[Tensor, Tensor, Tensor, Tensor]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EPS = 1e-12  # of F.normalize: a vector shorter than this is divided by it


class Routes(NamedTuple):
    """What the experts sample, and why; every tensor ``(B, E, M, N)``, float32 (float64 for float64 ``hidden``).

    Attributes:
        mask: 1 where a token is sampled, else 0; carries the straight-through gradient (Eq. 3).
        gamma: Modulated scores (Eq. 6).
        beta: Caption-to-token cosines (Eq. 5); None without captions.
    """

    mask: Tensor
    gamma: Tensor
    beta: Tensor | None


def route(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    sigma: Tensor,
    tokens: Tensor | None = None,
    text: Tensor | None = None,
    captioned: Tensor | None = None,
    mix: Mix | None = None,
    present: Tensor | None = None,
    temperature: float = 1.0,
) -> Routes:
    """Which tokens each expert samples (NEXT, Eq. 2, 3, 5 and 6).

    ``alpha = GELU(hidden) . weight + bias`` are the routers' scores, ``beta = captioned * cos(tokens, text)`` what the
    caption says, ``gamma = alpha + w2 GELU(w1 beta + b1) + b2`` both together, where the small network reads the betas
    of all modalities at one position; ``mask = 1[gamma > sigma] * present``. Its gradient is that of
    ``sigmoid((gamma - sigma) / temperature)``, to ``gamma`` and ``sigma`` (see `straight_through_mask`).

    Where no modality of a sample and expert has a caption, and without ``text``, ``gamma = alpha`` exactly.

    Args:
        hidden: First layer of the score routers before its activation, ``(B, M, N, E, H)`` with any strides: one
            product per modality, ``tokens[:, m] @ W_m`` with ``W_m (D, E * H)``, gives it without a copy.
        weight: Second layer of the score routers ``(E, M, H)``; a router shared by the modalities is expanded over M.
        bias: Its bias ``(E, M)``.
        sigma: Thresholds ``(B, E, M)``.
        tokens: Patch tokens ``(B, M, N, D)``; read only with ``text``.
        text: Caption features ``(B, E, M, D)``, or None for no captions at all.
        captioned: Which caption features are real, bool ``(B, E, M)``; None for all of them.
        mix: The modulation network ``w1 (E, K, M)``, ``b1 (E, K)``, ``w2 (E, M, K)``, ``b2 (E, M)``; None reports
            ``beta`` and adds nothing to the scores.
        present: Which modalities exist, bool ``(B, M)``; None for all of them. Absent ones are never sampled.
        temperature: Width of the sigmoid in the backward pass, in units of the score.

    Returns:
        Masks, scores and cosines.

    Raises:
        ValueError: If shapes, types or devices do not agree, or the backend ``triton`` cannot serve the call.
    """
    _check(hidden, weight, bias, sigma, tokens, text, captioned, mix, present, temperature)
    if resolve(hidden, weight, bias, sigma, tokens, text, *(mix or ())) == "torch":
        return route_torch(hidden, weight, bias, sigma, tokens, text, captioned, mix, present, temperature)
    if text is None:
        tokens = captioned = mix = None
    w1, b1, w2, b2 = mix or (None,) * 4
    mask, gamma, beta = route_op(
        hidden, weight, bias, sigma, tokens, text, captioned, w1, b1, w2, b2, present, float(temperature)
    )
    return Routes(mask, gamma, None if text is None else beta)


def route_torch(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    sigma: Tensor,
    tokens: Tensor | None = None,
    text: Tensor | None = None,
    captioned: Tensor | None = None,
    mix: Mix | None = None,
    present: Tensor | None = None,
    temperature: float = 1.0,
) -> Routes:
    """`route` in a few calls over all experts and modalities; the arguments are not checked."""
    dtype = _work_dtype(hidden)
    with _full_precision(hidden):
        active = F.gelu(hidden.to(dtype)).permute(0, 3, 1, 2, 4)  # (B, E, M, N, H)
        gamma = (active * weight[:, :, None].to(dtype)).sum(-1) + bias[..., None].to(dtype)
        beta = None
        if text is not None and tokens is not None:
            beta = cosine(tokens, text, captioned, dtype)
            if mix is not None:
                shift = modulation_shift(beta, mix)
                gamma = gamma + (shift if captioned is None else shift * captioned.any(2)[..., None, None])
        mask = straight_through_mask(gamma, sigma[..., None].to(dtype), temperature)
    return Routes(mask if present is None else mask * present[:, None, :, None], gamma, beta)


def cosine(tokens: Tensor, text: Tensor, captioned: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Cosines ``(B, E, M, N)`` of captions and patch tokens (NEXT, Eq. 5), in float32 at least.

    Vectors are never normalised: their lengths divide the products, which are D times smaller.

    Args:
        tokens: ``(B, M, N, D)``.
        text: ``(B, E, M, D)``.
        captioned: Which caption features are real, bool ``(B, E, M)``; the others' cosines are zero. None for all.
        dtype: Of the arithmetic; None for float32, or float64 for float64 tokens.
    """
    dtype = dtype or _work_dtype(tokens)
    with _full_precision(tokens):
        wide, captions = tokens.to(dtype), text.to(dtype)
        caption_length = torch.linalg.vector_norm(captions, dim=-1).clamp_min(EPS)
        share = caption_length.reciprocal() if captioned is None else captioned / caption_length
        length = torch.linalg.vector_norm(wide, dim=-1).clamp_min(EPS)
        product = captions.transpose(1, 2) @ wide.mT  # (B, M, E, N)
        return (product / length[:, :, None]).transpose(1, 2) * share[..., None]


def modulation_shift(beta: Tensor, mix: Mix) -> Tensor:
    """What the modulation network adds to the scores (NEXT, Eq. 6): ``w2 GELU(w1 beta + b1) + b2`` over the third axis.

    Args:
        beta: ``(B, E, W, P)``: W numbers that the network reads together, at P places.
        mix: ``w1 (E, K, W)``, ``b1 (E, K)``, ``w2 (E, W, K)``, ``b2 (E, W)``.

    Returns:
        ``(B, E, W, P)``.
    """
    batch, experts, width, places = beta.shape
    with _full_precision(beta):
        w1, b1, w2, b2 = (part.to(beta.dtype) for part in mix)
        rows = beta.permute(1, 2, 0, 3).reshape(experts, width, batch * places)
        inner = F.gelu(torch.baddbmm(b1[..., None], w1, rows))
        shift = torch.baddbmm(b2[..., None], w2, inner).view(experts, width, batch, places)
    return shift.permute(2, 0, 1, 3)


def straight_through_mask(score: Tensor, threshold: Tensor | float, temperature: float = 1.0) -> Tensor:
    """Hard mask ``1[score > threshold]`` whose gradient is that of a sigmoid (NEXT, Eq. 3).

    The paper asks for a hard choice "while keeping the operation differentiable" and names no estimator; this is
    the straight-through one: the forward value is exactly 0 or 1, the backward pass is that of
    ``sigmoid((score - threshold) / temperature)``, for the score and for the threshold.

    Args:
        score: Routing scores, any shape.
        threshold: A number or a tensor that broadcasts against ``score``.
        temperature: Width of the sigmoid in the backward pass, in units of the score.

    Returns:
        A mask of zeros and ones with the shape and dtype of ``score``.
    """
    margin = score - threshold
    soft = torch.sigmoid(margin / temperature if temperature != 1.0 else margin)
    # (soft - soft) is exactly zero, which ``hard + soft - soft.detach()`` is not once it is rounded.
    return (soft - soft.detach()) + (margin > 0)


def _work_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _full_precision(tensor: Tensor) -> AbstractContextManager:
    """Products in the types of their operands, also where autocast is on."""
    device = tensor.device.type
    if autocast_is_on(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    sigma: Tensor,
    tokens: Tensor | None,
    text: Tensor | None,
    captioned: Tensor | None,
    mix: Mix | None,
    present: Tensor | None,
    temperature: float,
) -> None:
    if hidden.dim() != 5:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}, expected five axes (B, M, N, E, H)")
    if text is not None and tokens is None:
        raise ValueError("text was given without tokens: the cosines of Eq. 5 need both")
    if mix is not None and len(mix) != 4:
        raise ValueError(f"mix is the modulation network (w1, b1, w2, b2), got {len(mix)} tensors")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    b, m, n, e, h = hidden.shape
    if not (m and e):
        raise ValueError(f"hidden (B, M, N, E, H) has {m} modalities and {e} experts; both must be at least 1")
    d = tokens.shape[-1] if tokens is not None else 0
    k = mix[0].shape[1] if mix is not None and mix[0].dim() == 3 else 0
    w1, b1, w2, b2 = mix or (None,) * 4
    for name, tensor, axes, shape in (
        ("hidden", hidden, "(B, M, N, E, H)", (b, m, n, e, h)),
        ("weight", weight, "(E, M, H)", (e, m, h)),
        ("bias", bias, "(E, M)", (e, m)),
        ("sigma", sigma, "(B, E, M)", (b, e, m)),
        ("tokens", tokens, "(B, M, N, D)", (b, m, n, d)),
        ("text", text, "(B, E, M, D)", (b, e, m, d)),
        ("captioned", captioned, "(B, E, M)", (b, e, m)),
        ("w1 of mix", w1, "(E, K, M)", (e, k, m)),
        ("b1 of mix", b1, "(E, K)", (e, k)),
        ("w2 of mix", w2, "(E, M, K)", (e, m, k)),
        ("b2 of mix", b2, "(E, M)", (e, m)),
        ("present", present, "(B, M)", (b, m)),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {axes} = {shape}")
        allowed = (torch.bool,) if name in ("captioned", "present") else DTYPES
        if tensor.dtype not in allowed:
            raise ValueError(f"{name} has type {tensor.dtype}; allowed: {', '.join(map(str, allowed))}")
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device} and hidden on {hidden.device}; move them to one device")


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
