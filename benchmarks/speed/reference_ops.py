"""The masked operations of `nextreid.ops` as the equations write them: the reference of both their forms."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nextreid.ops import Mix, Routes, straight_through_mask


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
    """`nextreid.ops.route`, one expert and one modality at a time; the arguments are not checked."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    modalities, experts = hidden.shape[1], hidden.shape[3]
    masks, gammas, betas = [], [], []
    with torch.autocast(hidden.device.type, enabled=False):
        for e in range(experts):
            scores = [
                F.linear(F.gelu(hidden[:, m, :, e].to(dtype)), weight[e, m, None].to(dtype), bias[e, m, None].to(dtype))
                for m in range(modalities)
            ]
            gamma = torch.cat(scores, dim=-1)  # (B, N, M)
            if text is not None and tokens is not None:
                cosines = []
                for m in range(modalities):
                    unit_token = F.normalize(tokens[:, m].to(dtype), dim=-1)
                    unit_text = F.normalize(text[:, e, m, None].to(dtype), dim=-1)
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


def gated_attention_reference(
    query: Tensor,
    residual: Tensor,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """`nextreid.ops.gated_attention`: the gated tokens are formed (Eq. 7), then attended to (Eq. 11)."""
    tokens = residual[:, None] if update is None else residual[:, None] + update
    tokens = tokens.to(query.dtype)
    if gate is not None:
        tokens = gate[..., None].to(tokens.dtype) * tokens
    logits = torch.einsum("brd,beld->berl", query, tokens)
    if keys is None:
        weights = logits.softmax(-1)
    else:
        keys = keys[:, None, None] if keys.dim() == 2 else keys[:, :, None]
        # A softmax over nothing is NaN: a set without keys attends to all its tokens and is zeroed after.
        some = keys.any(-1, keepdim=True)
        weights = logits.masked_fill(~(keys | ~some), float("-inf")).softmax(-1) * some
    return torch.einsum("berl,beld->berd", weights.to(tokens.dtype), tokens)
