"""Attention of a few query rows over gated tokens whose keys and values are the tokens themselves (Eq. 7, 10-11).

The logits and the weighted sum both read the tokens: a projection of the keys can be moved to the queries and one of
the values behind the sum, ``q (W_k z) = (W_k^T q) z`` and ``sum p (W_v z) = W_v (sum p z)``, so neither keys nor values
are ever formed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._backend import autocast_dtype, get_backend, resolve

# Bytes of one token up to which `auto` takes the kernels, which then need at most 96 KiB of shared memory, and up to
# which they can be asked for, on a GPU with 160 KiB.
_GOOD_WIDTH, _MOST_WIDTH = 1024, 2048


def gated_attention(
    query: Tensor,
    residual: Tensor,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """Attend from a few rows to E sets of gated tokens (NEXT, Eq. 7 and 11), in the form `nextreid.ops` chooses.

    A set's tokens are ``z = gate * (residual + update)``; then
    ``context[b, e, r] = sum_l softmax_l(query[b, r] . z[b, e, l]) * z[b, e, l]``. A token of gate zero keeps its place
    in the softmax, with logit zero and value zero, as a sampled-out token does in Eq. 7. A token that is no key has no
    place in it. Gradients flow to query, residual, update and gate, to a gate also where it is zero; not twice.

    All values must be finite, those of tokens that are no keys too. Under autocast, query is taken in autocast's type;
    it is the type of the products and of the result. Logits and softmax are in float32 (float64 for float64).

    Args:
        query: Rows ``(B, R, D)``, one for each query and head, which carry the scale and the projection of the keys.
        residual: Tokens that all sets share ``(B, L, D)``.
        update: What each set adds to them ``(B, E, L, D)``; None adds nothing.
        gate: Factors of the tokens ``(B, E, L)``, any real numbers of any floating type; None for ones.
        keys: Which tokens are keys, bool ``(B, L)`` or ``(B, E, L)``; None for all. A set without any gives zeros.

    Returns:
        Contexts ``(B, E, R, D)`` in query's type; E is that of update or gate, and 1 without both.

    Raises:
        ValueError: If shapes, types or devices do not go together, or the chosen backend cannot serve them.
    """
    if resolve(query, residual, update, gate, keys) == "triton":
        checked = _checked(query, residual, update, gate, keys)
        if _suits_kernels(checked):
            from .gated_attention_triton import gated_attention_triton

            return gated_attention_triton(checked, residual, update, gate, keys)
    return gated_attention_torch(query, residual, update, gate, keys)


def gated_attention_torch(
    query: Tensor,
    residual: Tensor,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """`gated_attention` in PyTorch with ``residual + update`` as its only tensor of token size.

    The gate multiplies logits and weights, ``q (g z) = g (q z)`` and ``p (g z) = (p g) z``, never tokens. Without an
    update all sets share one product with the tokens.
    """
    query = _checked(query, residual, update, gate, keys)
    batch, rows, width = query.shape
    residual = residual.to(query.dtype)
    experts = next((given.shape[1] for given in (update, gate) if given is not None), 1)
    if keys is not None and keys.dim() == 2:
        keys = keys[:, None].expand(-1, experts, -1)
    if update is None:
        factor, exists = (None if given is None else given.mT[..., None] for given in (gate, keys))
        return _Attend.apply(query, residual, factor, exists)
    # The sets keep the order they have in memory: samples first, or experts first as one product per expert leaves it.
    swapped = not update.is_contiguous() and update.transpose(0, 1).is_contiguous()
    order = (1, 0) if swapped else (0, 1)

    def flat(given: Tensor) -> Tensor:
        return given.permute(*order, *range(2, given.dim())).flatten(0, 1)

    tokens = flat(residual[:, None] + update.to(query.dtype))
    factor, exists = (None if given is None else flat(given)[..., None, None] for given in (gate, keys))
    context = _Attend.apply(flat(query[:, None].expand(-1, experts, -1, -1)), tokens, factor, exists)
    size = (batch, experts, rows, width)
    return context.view(*(size[i] for i in order), rows, width).permute(*order, 2, 3)


def _suits_kernels(query: Tensor) -> bool:
    token = query.shape[-1] * query.element_size()
    if get_backend() != "triton":
        return token <= _GOOD_WIDTH
    if token > _MOST_WIDTH:
        most = _MOST_WIDTH // query.element_size()
        raise ValueError(
            f"the kernels take tokens of at most {most} channels in {query.dtype}, got {query.shape[-1]}: use the "
            "backend 'auto' or 'torch'"
        )
    return True


class _Attend(torch.autograd.Function):
    """Attention from queries ``(n, R, D)`` to tokens ``(n, L, D)`` with K gates each; gives ``(n, K, R, D)``.

    The token gradient is one product instead of a sum of two, which are as large as the tokens. Everything between is
    laid out (n, L, K, R), which the products read and write as it lies; gate and keys are (n, L, K, 1).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, tokens: Tensor, gate: Tensor | None, keys: Tensor | None) -> Tensor:
        plain = torch.bmm(tokens, query.mT)[:, :, None]
        logits = plain.to(_precise(query)) if gate is None else plain * gate.to(_precise(query))
        if keys is not None:
            logits = logits.masked_fill(~keys, torch.finfo(logits.dtype).min)
        weights = logits.softmax(1)
        if keys is not None:
            weights = weights.masked_fill(~keys, 0)  # of sets that have none
        gated = (weights if gate is None else weights * gate).to(query.dtype)
        context = torch.bmm(gated.flatten(2).mT, tokens)
        ctx.save_for_backward(query, tokens, gate, plain if ctx.needs_input_grad[2] else None, weights, gated)
        return context.unflatten(1, gated.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, tokens, gate, plain, weights, gated = ctx.saved_tensors
        grad = grad.flatten(1, 2)
        of_gated = torch.bmm(tokens, grad.mT).view(weights.shape) * weights
        of_logits = of_gated if gate is None else of_gated * gate
        of_logits = of_logits - weights * of_logits.sum(1, keepdim=True)
        of_gate = (of_logits * plain + of_gated).sum(-1, keepdim=True).to(gate.dtype) if plain is not None else None
        of_plain = of_logits if gate is None else of_logits * gate
        of_plain = (of_plain.sum(2) if of_plain.shape[2] > 1 else of_plain.squeeze(2)).to(query.dtype)
        of_query = of_tokens = None
        if ctx.needs_input_grad[0]:
            of_query = torch.bmm(of_plain.mT, tokens)
        if ctx.needs_input_grad[1]:
            of_tokens = torch.bmm(torch.cat([of_plain, gated.flatten(2)], 2), torch.cat([query, grad], 1))
        return of_query, of_tokens, of_gate, None


def _precise(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def _checked(
    query: Tensor, residual: Tensor, update: Tensor | None, gate: Tensor | None, keys: Tensor | None
) -> Tensor:
    """Query in the type of the products, once all arguments go together."""
    if query.dim() != 3 or residual.dim() != 3 or query.shape[::2] != residual.shape[::2]:
        raise ValueError(
            f"query (B, R, D) and residual (B, L, D) must agree in B and D; got {tuple(query.shape)} and "
            f"{tuple(residual.shape)}"
        )
    batch, length, width = residual.shape
    experts = next((given.shape[1] for given in (update, gate) if given is not None and given.dim() > 2), 1)
    of_sets = (batch, experts, length)
    if update is not None and tuple(update.shape) != (*of_sets, width):
        raise ValueError(f"update must be (B, E, L, D) = ({batch}, E, {length}, {width}); got {tuple(update.shape)}")
    if gate is not None and tuple(gate.shape) != of_sets:
        raise ValueError(f"gate must be (B, E, L) = {of_sets}; got {tuple(gate.shape)}")
    if gate is not None and not gate.is_floating_point():
        raise ValueError(f"gate must be floating-point; got {gate.dtype}: convert it, or give it as keys")
    if keys is not None and keys.dtype != torch.bool:
        raise ValueError(f"keys must be bool; got {keys.dtype}")
    if keys is not None and tuple(keys.shape) not in ((batch, length), of_sets):
        raise ValueError(f"keys must be (B, L) = {batch, length} or (B, E, L) = {of_sets}; got {tuple(keys.shape)}")
    tokens = {"query": query, "residual": residual, "update": update}
    given = {**tokens, "gate": gate, "keys": keys}
    devices = {name: tensor.device for name, tensor in given.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        raise ValueError(f"all tensors must be on one device; got {_listed(devices)}")
    dtypes = {name: tensor.dtype for name, tensor in tokens.items() if tensor is not None}
    if not all(dtype.is_floating_point for dtype in dtypes.values()):
        raise ValueError(f"query, residual and update must be floating-point; got {_listed(dtypes)}")
    autocast = autocast_dtype(query)
    if len(set(dtypes.values())) > 1 and (autocast is None or torch.float64 in dtypes.values()):
        raise ValueError(f"query, residual and update must be of one type outside autocast; got {_listed(dtypes)}")
    return query if autocast is None or query.dtype == torch.float64 else query.to(autocast)


def _listed(dtypes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
