"""Triton kernels of `nextreid.ops.routing`: one forward and two backward, all arithmetic in float32.

A row of work is one token position of all M modalities, because modulation mixes the M cosines of a position. Every
tile holds whole rows (all of D, H or K, padded to a power of two), so that each length, score and cosine is one sum in
registers; padded lanes are loaded as zeros. The backward pass starts from the scores and cosines that the forward
pass returned, and recomputes the activations. Weight gradients are partial sums per program, added in a fixed order.
"""

# mypy: allow-untyped-defs

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = tl.constexpr(1e-12)  # of F.normalize
TILE = 2048  # elements of a program's widest tile, where a single position is not wider
CHUNK = 64  # positions that one program of the backward pass adds up before it writes partial sums


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_slope(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
def _load(pointer, inside):
    return tl.load(pointer, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward(
    hidden, weight, bias, sigma, tokens, text, captioned, w1, b1, w2, b2, present, mask, gamma, beta,
    count, blocks, hb, hm, hn, he, hh, tb, tm, tn, td,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Scores, cosines and masks of some positions of one sample; what is None is left out when this is compiled."""
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks * BN + tl.arange(0, BN)).to(tl.int64)[:, None]
    m = tl.arange(0, BM).to(tl.int64)
    mods = m < M
    rows = (n < count) & mods[None]  # (BN, BM)
    h = tl.arange(0, BH)
    heads = mods[:, None] & (h < H)[None]
    if text is not None:
        d = tl.arange(0, BD)
        place = tokens + b * tb + n * tn + m[None] * tm
        token = _load(place[:, :, None] + d * td, rows[:, :, None] & (d < D))  # (BN, BM, BD)
        token_length = tl.maximum(tl.sqrt_rn(tl.sum(token * token, 2)), EPS)
    for e in range(E):
        place = hidden + b * hb + n * hn + m[None] * hm + e * he
        active = _gelu(_load(place[:, :, None] + h * hh, rows[:, :, None] & (h < H)))
        second = _load(weight + (e * M + m[:, None]) * H + h[None], heads)
        score = tl.sum(active * second[None], 2) + _load(bias + e * M + m, mods)[None]
        group = (b * E + e) * M
        cell = (group + m[None]) * count + n
        if text is not None:
            caption = _load(text + (group + m[:, None]) * D + d[None], mods[:, None] & (d < D)[None])
            text_length = tl.maximum(tl.sqrt_rn(tl.sum(caption * caption, 1)), EPS)
            cosine = tl.sum(token * caption[None], 2) / (token_length * text_length[None])
            if captioned is not None:
                real = tl.load(captioned + group + m, mask=mods, other=0).to(tl.int32)
                cosine = tl.where(real[None] != 0, cosine, 0.0)
            tl.store(beta + cell, cosine, mask=rows)
            if w1 is not None:
                k = tl.arange(0, BK)
                inner = _mixed(cosine, w1, b1, e, m, k, M, K)
                out = _load(w2 + (e * M + m[:, None]) * K + k[None], mods[:, None] & (k < K)[None])
                shift = tl.sum(_gelu(inner)[:, None, :] * out[None], 2) + _load(b2 + e * M + m, mods)[None]
                if captioned is not None:
                    shift = tl.where(tl.max(real, 0) != 0, shift, 0.0)
                score += shift
        keep = score > _load(sigma + group + m, mods)[None]
        if present is not None:
            keep = keep & (tl.load(present + b * M + m, mask=mods, other=0) != 0)[None]
        tl.store(gamma + cell, score, mask=rows)
        tl.store(mask + cell, keep.to(tl.float32), mask=rows)


@triton.jit
def _mixed(cosine, w1, b1, e, m, k, M: tl.constexpr, K: tl.constexpr):
    """First layer of the modulation network before its activation, (BN, BK)."""
    first = _load(w1 + (e * K + k[None]) * M + m[:, None], (m < M)[:, None] & (k < K)[None])  # (BM, BK)
    return tl.sum(cosine[:, :, None] * first[None], 1) + _load(b1 + e * K + k, k < K)[None]


@triton.jit
def _backward_scores(
    grad_mask, grad_gamma, grad_beta, gamma, beta, hidden, weight, sigma, captioned, w1, b1, w2, present,
    to_hidden, to_sigma, to_cosine, parts,  # parts: weight, bias, w1, b1, w2, b2 of an expert, one after another
    count, chunks, hb, hm, hn, he, hh, gb, gm, gn, ge, gh, scale,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr, K: tl.constexpr, SIZE: tl.constexpr, SPAN: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Gradients behind the scores, for one expert and ``SPAN`` positions of one sample."""
    row = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1)
    b = row // chunks
    start = row % chunks * SPAN
    m = tl.arange(0, BM).to(tl.int64)
    mods = m < M
    h = tl.arange(0, BH)
    heads = mods[:, None] & (h < H)[None]
    k = tl.arange(0, BK)
    inners = mods[:, None] & (k < K)[None]
    group = (b * E + e) * M
    threshold = _load(sigma + group + m, mods)[None]
    second = _load(weight + (e * M + m[:, None]) * H + h[None], heads)
    alive = mods
    if present is not None:
        alive = mods & (tl.load(present + b * M + m, mask=mods, other=0) != 0)
    spoken = 1
    real = mods
    if captioned is not None:
        real = tl.load(captioned + group + m, mask=mods, other=0) != 0
        spoken = tl.max(real.to(tl.int32), 0)
    sum_sigma = tl.zeros((BN, BM), tl.float32)
    sum_bias = tl.zeros((BN, BM), tl.float32)
    sum_weight = tl.zeros((BN, BM, BH), tl.float32)
    if w1 is not None:
        first = _load(w1 + (e * K + k[None]) * M + m[:, None], inners)
        out = _load(w2 + (e * M + m[:, None]) * K + k[None], inners)
        sum_w1 = tl.zeros((BN, BM, BK), tl.float32)
        sum_b1 = tl.zeros((BN, BK), tl.float32)
        sum_w2 = tl.zeros((BN, BM, BK), tl.float32)
    for offset in range(0, SPAN, BN):
        n = (start + offset + tl.arange(0, BN)).to(tl.int64)[:, None]
        rows = (n < count) & mods[None]
        cell = (group + m[None]) * count + n
        soft = tl.sigmoid((_load(gamma + cell, rows) - threshold) * scale)
        through = _load(grad_mask + cell, rows & alive[None]) * soft * (1.0 - soft) * scale
        to_score = _load(grad_gamma + cell, rows) + through
        sum_sigma -= through
        sum_bias += to_score
        place = hidden + b * hb + n * hn + m[None] * hm + e * he
        each = rows[:, :, None] & (h < H)
        x = _load(place[:, :, None] + h * hh, each)
        if to_hidden is not None:
            place = to_hidden + b * gb + n * gn + m[None] * gm + e * ge
            slope = to_score[:, :, None] * second[None] * _gelu_slope(x)
            tl.store(place[:, :, None] + h * gh, slope, mask=each)
        if parts is not None:
            sum_weight += to_score[:, :, None] * _gelu(x)
        if grad_beta is not None:
            back = _load(grad_beta + cell, rows)
            if w1 is not None:
                to_shift = tl.where(spoken != 0, to_score, 0.0)
                cosine = _load(beta + cell, rows)
                inner = _mixed(cosine, w1, b1, e, m, k, M, K)
                to_inner = tl.sum(to_shift[:, :, None] * out[None], 1) * _gelu_slope(inner)
                back += tl.sum(to_inner[:, None, :] * first[None], 2)
                sum_w1 += cosine[:, :, None] * to_inner[:, None, :]
                sum_b1 += to_inner
                sum_w2 += to_shift[:, :, None] * _gelu(inner)[:, None, :]
            if to_cosine is not None:
                tl.store(to_cosine + cell, tl.where(real[None], back, 0.0), mask=rows)
    tl.store(to_sigma + (row * E + e) * M + m, tl.sum(sum_sigma, 0), mask=mods)
    if parts is not None:
        part = parts + (row * E + e) * SIZE
        bias = tl.sum(sum_bias, 0)
        tl.store(part + m[:, None] * H + h[None], tl.sum(sum_weight, 0), mask=heads)
        part += M * H
        tl.store(part + m, bias, mask=mods)
        if w1 is not None:
            part += M
            tl.store(part + k[None] * M + m[:, None], tl.sum(sum_w1, 0), mask=inners)
            part += K * M
            tl.store(part + k, tl.sum(sum_b1, 0), mask=k < K)
            part += K
            tl.store(part + m[:, None] * K + k[None], tl.sum(sum_w2, 0), mask=inners)
            part += M * K
            tl.store(part + m, tl.where(spoken != 0, bias, 0.0), mask=mods)


@triton.jit
def _backward_cosine(
    to_cosine, beta, tokens, text, to_tokens, to_text,
    count, blocks, tb, tm, tn, td, gb, gm, gn, gd,
    E: tl.constexpr, M: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients of both factors of the cosines, for some positions of one sample and modality."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1).to(tl.int64)
    b = row // blocks
    n = row % blocks * BN + tl.arange(0, BN)
    d = tl.arange(0, BD)
    rows = n < count
    each = rows[:, None] & (d < D)[None]
    token = _load(tokens + b * tb + m * tm + n[:, None] * tn + d[None] * td, each)
    raw_length = tl.sqrt_rn(tl.sum(token * token, 1))
    length = tl.maximum(raw_length, EPS)
    across = tl.zeros((BN, BD), tl.float32)
    along = tl.zeros((BN,), tl.float32)
    for e in range(E):
        group = (b * E + e) * M + m
        back = _load(to_cosine + group * count + n, rows)
        inward = back * _load(beta + group * count + n, rows)
        caption = _load(text + group * D + d, d < D)
        raw_text = tl.sqrt_rn(tl.sum(caption * caption, 0))
        text_length = tl.maximum(raw_text, EPS)
        across += (back / text_length)[:, None] * caption[None]
        along += inward
        if to_text is not None:
            # A vector shorter than EPS is divided by EPS, a constant: then only the first term is there.
            pull = tl.where(raw_text >= EPS, tl.sum(inward, 0) / text_length, 0.0) * (caption / text_length)
            push = tl.sum((back / length)[:, None] * token, 0) / text_length
            tl.store(to_text + ((row * E + e) * M + m) * D + d, push - pull, mask=d < D)
    if to_tokens is not None:
        pull = tl.where(raw_length >= EPS, along / length, 0.0)[:, None] * (token / length[:, None])
        place = to_tokens + b * gb + m * gm + n[:, None] * gn + d[None] * gd
        tl.store(place, across / length[:, None] - pull, mask=each)


def forward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernel; see `nextreid.ops.routing.route`. Without text, beta has no elements."""
    b, m, n, e, h = hidden.shape
    sizes = _padded(M=m, H=h, D=_axis(text, 3), K=_axis(w1, 1))
    mask, gamma = (hidden.new_empty(b, e, m, n, dtype=torch.float32) for _ in range(2))
    beta = mask.new_empty(mask.shape if text is not None else 0)
    if mask.numel():
        bn, warps = _shape(n, sizes["BM"] * max(sizes["BH"], sizes["BD"], sizes["BK"]), 1024)
        blocks = triton.cdiv(n, bn)
        with torch.cuda.device_of(hidden):
            _forward[(b * blocks,)](
                hidden, *_dense(weight, bias, sigma), tokens, *_dense(text, captioned, w1, b1, w2, b2, present),
                mask, gamma, beta,
                n, blocks, *hidden.stride(), *_strides(tokens, 4), E=e, BN=bn, **sizes, num_warps=warps,
            )  # fmt: skip
    return mask, gamma, beta


def backward(
    grads: tuple[Tensor, Tensor, Tensor],
    gamma: Tensor,
    beta: Tensor,
    hidden: Tensor,
    weight: Tensor,
    sigma: Tensor,
    tokens: Tensor | None,
    text: Tensor | None,
    captioned: Tensor | None,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    present: Tensor | None,
    temperature: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward kernels for the gradients that are needed: of hidden, of the weights, of tokens, of text.

    Returns:
        Gradients of hidden, sigma ``(B, E, M)``, all weights (``(E, S)``: weight, bias, w1, b1, w2 and b2 one after
        another), tokens and text; a tensor without elements for each that is not needed.
    """
    b, m, n, e, h = hidden.shape
    k = _axis(w1, 1)
    sizes = _padded(M=m, H=h, K=k)
    bn, warps = _shape(n, sizes["BM"] * max(sizes["BH"], sizes["BK"]), 512)
    span = bn * max(1, min(CHUNK // bn, triton.cdiv(n, bn)))
    chunks = triton.cdiv(n, span)
    size = m * h + m + (2 * m * k + k + m if w1 is not None else 0)
    to_hidden = torch.empty_like(hidden) if needs[0] else gamma.new_empty(0)
    to_sigma = gamma.new_empty(b, chunks, e, m)
    parts = gamma.new_empty(b * chunks if needs[1] else 0, e, size)
    to_cosine = torch.empty_like(gamma) if needs[2] or needs[3] else None
    grad_mask, grad_gamma, grad_beta = _dense(*grads)
    if gamma.numel():
        with torch.cuda.device_of(hidden):
            _backward_scores[(b * chunks, e)](
                grad_mask, grad_gamma, grad_beta if text is not None else None, gamma, beta,
                hidden, *_dense(weight, sigma, captioned, w1, b1, w2, present),
                to_hidden if needs[0] else None, to_sigma, to_cosine, parts if needs[1] else None,
                n, chunks, *hidden.stride(), *_strides(to_hidden if needs[0] else None, 5), 1 / temperature,
                E=e, SIZE=size, SPAN=span, BN=bn, **sizes, num_warps=warps,
            )  # fmt: skip
    to_tokens, to_text = gamma.new_empty(0), gamma.new_empty(0)
    if to_cosine is not None and tokens is not None and text is not None:
        to_tokens, to_text = _backward_sides(to_cosine, beta, tokens, text, needs[2], needs[3])
    return to_hidden, to_sigma.sum(1), parts.sum(0) if needs[1] else gamma.new_empty(0), to_tokens, to_text


def _backward_sides(
    to_cosine: Tensor, beta: Tensor, tokens: Tensor, text: Tensor, need_tokens: bool, need_text: bool
) -> tuple[Tensor, Tensor]:
    b, e, m, n = beta.shape
    d = tokens.shape[-1]
    sizes = _padded(M=m, D=d)
    bn, warps = _shape(n, sizes["BD"], 512)
    blocks = triton.cdiv(n, bn)
    to_tokens = torch.empty_like(tokens) if need_tokens else beta.new_empty(0)
    parts = beta.new_empty(b, blocks if need_text else 0, e, m, d)
    if beta.numel():
        with torch.cuda.device_of(tokens):
            _backward_cosine[(b * blocks, m)](
                to_cosine, beta, tokens, *_dense(text),
                to_tokens if need_tokens else None, parts if need_text else None,
                n, blocks, *tokens.stride(), *_strides(to_tokens if need_tokens else None, 4),
                E=e, M=m, D=d, BN=bn, BD=sizes["BD"], num_warps=warps,
            )  # fmt: skip
    return to_tokens, parts.sum(1).to(text.dtype) if need_text else beta.new_empty(0)


def _padded(**sizes: int) -> dict[str, int]:
    """Every size with the power of two that holds it."""
    return sizes | {f"B{name}": triton.next_power_of_2(max(1, size)) for name, size in sizes.items()}


def _shape(count: int, width: int, share: int) -> tuple[int, int]:
    """Positions and warps of a program.

    Args:
        count: Positions there are.
        width: Elements of one position in the program's widest tile, a power of two.
        share: Elements of that tile that a warp takes: few where the registers hold many such tiles.
    """
    positions = max(1, min(TILE // width, triton.next_power_of_2(count)))
    return positions, max(1, min(8, positions * width // share))


def _axis(tensor: Tensor | None, axis: int) -> int:
    return 0 if tensor is None else tensor.shape[axis]


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _strides(tensor: Tensor | None, axes: int) -> tuple[int, ...]:
    return (0,) * axes if tensor is None else tensor.stride()
