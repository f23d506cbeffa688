"""Gated attention as Triton kernels: the tokens' sums are formed in registers, block by block, and never written.

The forward kernel reads a set's tokens once (online softmax). The backward kernel reads them once more, all sets' at a
few positions, and writes their gradients and a part of the query's.

Tokens and rows are held as (slices, tokens, channels of a slice), and products with them are batched over the slices:
each warp keeps its own channels from the load to the last product, and only the small logits are summed across warps.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._backend import interpreted


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    query, residual, update, gate, keys, context, lse, E, R, L, D, residual_b, update_b, update_e, keys_b, keys_e,
    HAS_UPDATE: tl.constexpr, HAS_GATE: tl.constexpr, HAS_KEYS: tl.constexpr, KIND: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, SLICES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program for one sample and set."""
    place = tl.program_id(0).to(tl.int64)
    b, e = place // E, place % E
    d = tl.arange(0, SLICES)[:, None, None] * WIDTH + tl.arange(0, WIDTH)[None, None]
    r = tl.arange(0, BLOCK_R)
    rows = r[None, :, None] * D + d
    in_rows = (r < R)[None, :, None] & (d < D)
    q = tl.load(query + b * R * D + rows, mask=in_rows, other=0.0).to(KIND)
    # A finite start, so that a block without keys gives exp(0) and not exp(inf - inf).
    top = tl.full((BLOCK_R,), -1e30, tl.float32)
    mass = tl.zeros((BLOCK_R,), tl.float32)
    total = tl.zeros((SLICES, BLOCK_R, WIDTH), tl.float32)
    for start in range(0, L, BLOCK_L):
        t = start + tl.arange(0, BLOCK_L)
        is_key = t < L
        if HAS_KEYS:
            is_key = is_key & (tl.load(keys + b * keys_b + e * keys_e + t, mask=is_key, other=0) != 0)
        counts = is_key
        if HAS_GATE:
            g = tl.load(gate + place * L + t, mask=is_key, other=0.0).to(tl.float32)
            counts = g != 0  # keys alone, and of them those that have a logit and a value: others are not read
        tokens = t[None, :, None] * D + d
        in_tokens = counts[None, :, None] & (d < D)
        z = tl.load(residual + b * residual_b + tokens, mask=in_tokens, other=0.0).to(tl.float32)
        if HAS_UPDATE:
            z += tl.load(update + b * update_b + e * update_e + tokens, mask=in_tokens, other=0.0).to(tl.float32)
        z = z.to(KIND)
        logit = tl.sum(tl.dot(q, tl.trans(z, (0, 2, 1)), input_precision=PRECISION), 0)
        if HAS_GATE:
            logit = logit * g[None]
        logit = tl.where(is_key[None], logit, float("-inf"))
        new_top = tl.maximum(top, tl.max(logit, 1))
        shrink = tl.exp(top - new_top)
        weight = tl.exp(logit - new_top[:, None])
        mass = mass * shrink + tl.sum(weight, 1)
        top = new_top
        if HAS_GATE:
            weight = weight * g[None]
        weight = tl.broadcast_to(weight.to(KIND)[None], (SLICES, BLOCK_R, BLOCK_L))
        total = tl.dot(weight, z, acc=total * shrink[None, :, None], input_precision=PRECISION)
    mass = tl.where(mass > 0, mass, 1.0)
    tl.store(context + place * R * D + rows, total / mass[None, :, None], mask=in_rows)
    tl.store(lse + place * R + r, top + tl.log(mass), mask=r < R)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    query, residual, update, gate, keys, lse, grad, inner, of_query, of_residual, of_update, of_gate,
    E, R, L, D, chunks, blocks, residual_b, update_b, update_e, of_update_b, of_update_e, keys_b, keys_e,
    HAS_UPDATE: tl.constexpr, HAS_GATE: tl.constexpr, HAS_KEYS: tl.constexpr, TO_QUERY: tl.constexpr,
    TO_RESIDUAL: tl.constexpr, TO_UPDATE: tl.constexpr, TO_GATE: tl.constexpr, KIND: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, SLICES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program for one sample and a chunk of its positions, all sets: their gradients add up in the residual's."""
    place = tl.program_id(0).to(tl.int64)
    b, chunk = place // chunks, place % chunks
    d = tl.arange(0, SLICES)[:, None, None] * WIDTH + tl.arange(0, WIDTH)[None, None]
    r = tl.arange(0, BLOCK_R)
    rows = r[None, :, None] * D + d
    in_rows = (r < R)[None, :, None] & (d < D)
    q = tl.load(query + b * R * D + rows, mask=in_rows, other=0.0).to(KIND)
    if TO_QUERY:
        query_total = tl.zeros((SLICES, BLOCK_R, WIDTH), tl.float32)
    for block in range(blocks):
        t = (chunk * blocks + block) * BLOCK_L + tl.arange(0, BLOCK_L)
        exists = t < L
        tokens = t[None, :, None] * D + d
        in_tokens = exists[None, :, None] & (d < D)
        x = tl.load(residual + b * residual_b + tokens, mask=in_tokens, other=0.0)
        if not HAS_UPDATE:
            z = x.to(KIND)
            plain = tl.sum(tl.dot(q, tl.trans(z, (0, 2, 1)), input_precision=PRECISION), 0)
        if TO_RESIDUAL:
            residual_total = tl.zeros((SLICES, BLOCK_L, WIDTH), tl.float32)
        for e in range(E):
            both = b * E + e
            e_wide = both - b * E  # in 64 bits, as b is: sets may lie far apart
            if HAS_UPDATE:
                u = tl.load(update + b * update_b + e_wide * update_e + tokens, mask=in_tokens, other=0.0)
                z = (x.to(tl.float32) + u.to(tl.float32)).to(KIND)
                plain = tl.sum(tl.dot(q, tl.trans(z, (0, 2, 1)), input_precision=PRECISION), 0)
            dc = tl.load(grad + both * R * D + rows, mask=in_rows, other=0.0).to(KIND)
            of_gated = tl.sum(tl.dot(dc, tl.trans(z, (0, 2, 1)), input_precision=PRECISION), 0)
            is_key = exists
            if HAS_KEYS:
                is_key = is_key & (tl.load(keys + b * keys_b + e * keys_e + t, mask=exists, other=0) != 0)
            logit = plain
            of_weight = of_gated
            if HAS_GATE:
                g = tl.load(gate + both * L + t, mask=exists, other=0.0).to(tl.float32)
                logit = plain * g[None]
                of_weight = of_gated * g[None]
            logit -= tl.load(lse + both * R + r, mask=r < R, other=0.0)[:, None]
            weight = tl.exp(tl.where(is_key[None], logit, float("-inf")))
            of_logit = weight * (of_weight - tl.load(inner + both * R + r, mask=r < R, other=0.0)[:, None])
            if TO_GATE:
                tl.store(of_gate + both * L + t, tl.sum(of_logit * plain + weight * of_gated, 0), mask=exists)
            if HAS_GATE:
                of_logit = of_logit * g[None]
                weight = weight * g[None]
            of_plain = tl.broadcast_to(of_logit.to(KIND)[None], (SLICES, BLOCK_R, BLOCK_L))
            if TO_UPDATE or TO_RESIDUAL:
                gated = tl.broadcast_to(weight.to(KIND)[None], (SLICES, BLOCK_R, BLOCK_L))
                dz = tl.dot(tl.trans(of_plain, (0, 2, 1)), q, input_precision=PRECISION)
                dz = tl.dot(tl.trans(gated, (0, 2, 1)), dc, acc=dz, input_precision=PRECISION)
                if TO_UPDATE:
                    tl.store(of_update + b * of_update_b + e_wide * of_update_e + tokens, dz, mask=in_tokens)
                if TO_RESIDUAL:
                    residual_total += dz
            if TO_QUERY:
                query_total = tl.dot(of_plain, z, acc=query_total, input_precision=PRECISION)
        if TO_RESIDUAL:
            tl.store(of_residual + b * L * D + tokens, residual_total, mask=in_tokens)
    if TO_QUERY:
        tl.store(of_query + place * R * D + rows, query_total, mask=in_rows)


_PROGRAMS = 256  # of the backward kernel, at least, where positions allow: enough to fill a large GPU
_KINDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def gated_attention_triton(
    query: Tensor, residual: Tensor, update: Tensor | None, gate: Tensor | None, keys: Tensor | None
) -> Tensor:
    """`nextreid.ops.gated_attention` by the kernels, many rows in several launches."""
    parts = [_gated_attention(part, residual, update, gate, keys)[0] for part in query.split(_rows_a_launch(query), 1)]
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


@torch.library.custom_op(
    "nextreid::gated_attention",
    mutates_args=(),
    schema="(Tensor query, Tensor residual, Tensor? update, Tensor? gate, Tensor? keys) -> (Tensor, Tensor)",
)
def _gated_attention(
    query: Tensor, residual: Tensor, update: Tensor | None, gate: Tensor | None, keys: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Context ``(B, E, R, D)``, and the logarithm of the softmax's sum ``(B, E, R)``."""
    context, lse = _fake_forward(query, residual, update, gate, keys)
    if not context.numel() or not residual.numel():
        return context.zero_(), lse.zero_()
    batch, experts = context.shape[:2]
    given = _Given(query, residual, update, gate, keys, experts)
    with torch.cuda.device_of(query):
        _forward[(batch * experts,)](
            **given.tensors, context=context, lse=lse, **given.sizes, **given.form, **_blocks(query, 32), num_stages=1
        )
    return context, lse


@_gated_attention.register_fake
def _fake_forward(
    query: Tensor, residual: Tensor, update: Tensor | None, gate: Tensor | None, keys: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, rows, width = query.shape
    sets = gate if update is None else update
    experts = 1 if sets is None else sets.shape[1]
    context = query.new_empty(batch, experts, rows, width)
    return context, query.new_empty(batch, experts, rows, dtype=torch.float32)


@torch.library.custom_op(
    "nextreid::gated_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor query, Tensor residual, Tensor? update, Tensor? gate, Tensor? keys, Tensor context, "
    "Tensor lse, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _gated_attention_backward(
    grad: Tensor, query: Tensor, residual: Tensor, update: Tensor | None, gate: Tensor | None, keys: Tensor | None,
    context: Tensor, lse: Tensor, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, residual, update and gate; those that are not wanted are empty."""
    found = _fake_backward(grad, query, residual, update, gate, keys, context, lse, wanted)
    if not context.numel() or not residual.numel():
        for tensor in found:
            tensor.zero_()
        return found
    (batch, experts, rows, width), length = context.shape, residual.shape[1]
    given = _Given(query, residual, update, gate, keys, experts)
    block = _blocks(query, 16)
    blocks_of_all = triton.cdiv(length, block["BLOCK_L"])
    chunks = min(blocks_of_all, triton.cdiv(_PROGRAMS, batch))
    blocks = triton.cdiv(blocks_of_all, chunks)
    to_query, to_residual, to_update, to_gate = wanted
    parts = query.new_empty((batch, chunks, rows, width) if to_query else 0, dtype=torch.float32)
    stride = found[2].stride() if to_update else (0, 0)
    with torch.cuda.device_of(query):
        _backward[(batch * chunks,)](
            **given.tensors, lse=lse, grad=grad.contiguous(), inner=(grad.float() * context.float()).sum(-1),
            of_query=parts, of_residual=found[1], of_update=found[2], of_gate=found[3],
            **given.sizes, chunks=chunks, blocks=blocks, of_update_b=stride[0], of_update_e=stride[1], **given.form,
            TO_QUERY=to_query, TO_RESIDUAL=to_residual, TO_UPDATE=to_update, TO_GATE=to_gate, **block, num_stages=1,
        )  # fmt: skip
    return (parts.sum(1).to(query.dtype) if to_query else found[0]), *found[1:]


@_gated_attention_backward.register_fake
def _fake_backward(
    grad: Tensor, query: Tensor, residual: Tensor, update: Tensor | None, gate: Tensor | None, keys: Tensor | None,
    context: Tensor, lse: Tensor, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    to_query, to_residual, to_update, to_gate = wanted
    return (
        query.new_empty(query.shape if to_query else 0),
        residual.new_empty(residual.shape if to_residual else 0),
        query.new_empty(0) if update is None or not to_update else torch.empty_like(_rows_whole(update)),
        query.new_empty(0) if gate is None else gate.new_empty(gate.shape if to_gate else 0),
    )


def _remember(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [bool(need) for need in ctx.needs_input_grad[:4]]
    found = _gated_attention_backward(grad, *ctx.saved_tensors, wanted)
    return *(tensor if want else None for tensor, want in zip(found, wanted, strict=True)), None


_gated_attention.register_autograd(_differentiate, setup_context=_remember)


class _Given:
    """Arguments that both kernels take, in the layout they want."""

    def __init__(
        self,
        query: Tensor,
        residual: Tensor,
        update: Tensor | None,
        gate: Tensor | None,
        keys: Tensor | None,
        experts: int,
    ) -> None:
        (_, rows, width), length = query.shape, residual.shape[1]
        residual = _rows_whole(residual)
        update = None if update is None else _rows_whole(update)
        self.tensors = {
            "query": query.contiguous(),
            "residual": residual,
            "update": update,
            "gate": None if gate is None else gate.contiguous(),
            "keys": None if keys is None else keys.contiguous(),
        }
        self.sizes = {
            "E": experts,
            "R": rows,
            "L": length,
            "D": width,
            "residual_b": residual.stride(0),
            "update_b": 0 if update is None else update.stride(0),
            "update_e": 0 if update is None else update.stride(1),
            "keys_b": 0 if keys is None else keys[0].numel(),
            "keys_e": length if keys is not None and keys.dim() == 3 else 0,
        }
        self.form = {
            "HAS_UPDATE": update is not None,
            "HAS_GATE": gate is not None,
            "HAS_KEYS": keys is not None,
            # The interpreter keeps bfloat16 as 16-bit integers: arithmetic on them is wrong without a word.
            "KIND": tl.float32 if interpreted() else _KINDS[query.dtype],
            "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        }


def _rows_whole(tokens: Tensor) -> Tensor:
    """Tokens whose channels and positions lie one after the other; samples and sets may lie anywhere."""
    return tokens if tokens.stride()[-2:] == (tokens.shape[-1], 1) else tokens.contiguous()


def _blocks(query: Tensor, most: int) -> dict[str, int]:
    """Sizes of a program's blocks, at most so many tokens; a slice of the channels for each of its warps."""
    _, rows, width = query.shape
    width = triton.next_power_of_2(max(width, 64))
    slices = min(16, max(4, width * query.element_size() // 128))
    return {
        "BLOCK_R": triton.next_power_of_2(max(rows, 16)),
        "BLOCK_L": most if width <= 512 and query.element_size() == 2 else 16,
        "SLICES": slices,
        "WIDTH": width // slices,
        "num_warps": slices,
    }


def _rows_a_launch(query: Tensor) -> int:
    """Rows for which a program has registers and shared memory."""
    return 32 if query.shape[2] <= (512 if query.element_size() == 2 else 128) else 16
