"""From router activations to sampling masks: scores, cosines, modulation and threshold (NEXT, Eq. 2, 3, 5 and 6).

Three forms of one function: `route_reference` (the equations as they are written, one expert and one modality at a
time), `route_torch` (the same numbers in a few batched calls) and the Triton kernels of ``routing_triton.py``.
`route` checks its arguments and takes the form that `nextreid.ops.resolve` names. The arithmetic of all forms is
float32 (float64 for float64 ``hidden``) whatever the inputs' types, and autocast does not touch it: in half precision
the cosines move by more than the margins between scores.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._backend import resolve
from ._routing_op import route_op

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
    form = {"reference": route_reference, "torch": route_torch, "triton": _route_triton}[
        resolve(hidden, weight, bias, sigma, tokens, text, *(mix or ()))
    ]
    return form(hidden, weight, bias, sigma, tokens, text, captioned, mix, present, temperature)


def route_reference(
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
    """`route` as the paper writes it, one expert and one modality at a time; the arguments are not checked."""
    dtype = _work_dtype(hidden)
    modalities, experts = hidden.shape[1], hidden.shape[3]
    masks, gammas, betas = [], [], []
    with _full_precision(hidden):
        for e in range(experts):
            scores = [
                F.linear(F.gelu(hidden[:, m, :, e].to(dtype)), weight[e, m, None].to(dtype), bias[e, m, None].to(dtype))
                for m in range(modalities)
            ]
            gamma = torch.cat(scores, dim=-1)  # (B, N, M)
            if text is not None and tokens is not None:
                cosines = []
                for m in range(modalities):
                    unit_token = F.normalize(tokens[:, m].to(dtype), dim=-1, eps=EPS)
                    unit_text = F.normalize(text[:, e, m, None].to(dtype), dim=-1, eps=EPS)
                    cosine = (unit_token * unit_text).sum(-1)
                    cosines.append(cosine if captioned is None else cosine * captioned[:, e, m, None])
                beta = torch.stack(cosines, dim=-1)  # (B, N, M)
                if mix is not None:
                    w1, b1, w2, b2 = (part[e].to(dtype) for part in mix)
                    shift = F.linear(F.gelu(F.linear(beta, w1, b1)), w2, b2)
                    gamma = gamma + (shift if captioned is None else shift * captioned[:, e].any(1)[:, None, None])
                betas.append(beta.mT)
            mask = straight_through_mask(gamma, sigma[:, e, None].to(dtype), temperature)
            masks.append((mask if present is None else mask * present[:, None]).mT)
            gammas.append(gamma.mT)
    return Routes(torch.stack(masks, 1), torch.stack(gammas, 1), torch.stack(betas, 1) if betas else None)


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
    """`route` in a few calls over all experts and modalities; the arguments are not checked.

    Vectors are never normalised: their lengths divide the products, which are D times smaller.
    """
    dtype = _work_dtype(hidden)
    batch, modalities, count, experts, _ = hidden.shape
    with _full_precision(hidden):
        active = F.gelu(hidden.to(dtype)).permute(0, 3, 1, 2, 4)
        gamma = (active * weight[:, :, None].to(dtype)).sum(-1) + bias[..., None].to(dtype)
        beta = None
        if text is not None and tokens is not None:
            wide, captions = tokens.to(dtype), text.to(dtype)
            captioned_length = torch.linalg.vector_norm(captions, dim=-1).clamp_min(EPS)
            share = captioned_length.reciprocal() if captioned is None else captioned / captioned_length
            length = torch.linalg.vector_norm(wide, dim=-1).clamp_min(EPS)
            product = captions.transpose(1, 2) @ wide.mT  # (B, M, E, N)
            beta = (product / length[:, :, None]).transpose(1, 2) * share[..., None]
            if mix is not None:
                w1, b1, w2, b2 = (part.to(dtype) for part in mix)
                positions = beta.permute(1, 2, 0, 3).reshape(experts, modalities, batch * count)
                inner = F.gelu(torch.baddbmm(b1[..., None], w1, positions))
                shift = torch.baddbmm(b2[..., None], w2, inner).view(experts, modalities, batch, count)
                shift = shift.permute(2, 0, 1, 3)
                gamma = gamma + (shift if captioned is None else shift * captioned.any(2)[..., None, None])
        mask = straight_through_mask(gamma, sigma[..., None].to(dtype), temperature)
    return Routes(mask if present is None else mask * present[:, None, :, None], gamma, beta)


def _route_triton(
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
) -> Routes:
    if text is None:
        tokens = captioned = mix = None
    w1, b1, w2, b2 = mix or (None,) * 4
    mask, gamma, beta = route_op(
        hidden, weight, bias, sigma, tokens, text, captioned, w1, b1, w2, b2, present, float(temperature)
    )
    return Routes(mask, gamma, None if text is None else beta)


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
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
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
