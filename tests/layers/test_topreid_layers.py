"""TOP-ReID's blocks against its equations, one query and one pair at a time, in float64."""

import pytest
import torch
from torch.nn import functional as F

from nextreid import create_layer

B, M, N, D, HEADS = 2, 3, 5, 8, 2


def tokens(modalities=M, length=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, modalities, length, D, generator=generator, dtype=torch.float64)


def attend(layer, cls, patches):
    """One query ``(D,)``, its keys ``(N, D)``: keys and values formed, heads one after the other."""
    query, key, value = layer.q(layer.query_norm(cls)), layer.k(layer.key_norm(patches)), layer.v(patches)
    width = D // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * width, (h + 1) * width)
        logits = torch.stack([query[part] @ key[n, part] for n in range(N)]) / width**0.5
        heads.append(sum(w * value[n, part] for n, w in enumerate(logits.softmax(0))))
    cls = cls + layer.proj(torch.cat(heads))
    return cls + layer.mlp(layer.mlp_norm(cls))


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_token_permutation(modalities):
    torch.manual_seed(1)
    layer = create_layer("TokenPermutation", dim=D, num_modalities=modalities, num_heads=HEADS).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    patches = tokens(modalities)
    cls = tokens(modalities, 1, seed=2)[:, :, 0]
    found = layer(cls, patches)
    for b in range(B):
        state = list(cls[b])
        for r, round_ in enumerate(layer.rounds, start=1):
            state = [attend(round_, state[m], patches[b, (m + r) % modalities]) for m in range(modalities)]
        torch.testing.assert_close(found[b], torch.stack(state))


def test_token_permutation_rejects_other_modalities_and_heads():
    with pytest.raises(ValueError, match="permutes 3 modalities"):
        create_layer("TokenPermutation", dim=D, num_heads=2)(torch.zeros(B, 2, D), torch.zeros(B, 2, N, D))
    for name in ("TokenPermutation", "ComplementaryReconstruction"):
        with pytest.raises(ValueError, match="num_heads=3, dim=8"):
            create_layer(name, dim=D, num_heads=3)


def block(layer, x):
    """A transformer block with no bias in its first projection, written out for one sample ``(N, D)``."""
    q, k, v = (layer.attn.qkv.weight @ F.layer_norm(x, (D,), layer.norm1.weight, layer.norm1.bias, 1e-5).mT).mT.chunk(
        3, -1
    )
    width, heads = D // HEADS, []
    for h in range(HEADS):
        part = slice(h * width, (h + 1) * width)
        heads.append((q[:, part] @ k[:, part].mT / width**0.5).softmax(-1) @ v[:, part])
    x = x + layer.attn.proj(torch.cat(heads, -1))
    y = F.layer_norm(x, (D,), layer.norm2.weight, layer.norm2.bias, 1e-5)
    return x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(y)))


def test_reconstruction_and_its_loss():
    torch.manual_seed(1)
    layer = create_layer("ComplementaryReconstruction", dim=D, num_heads=HEADS).double()
    x = tokens()
    present = torch.tensor([[True, True, False], [True, False, True]])
    predicted = layer(x)
    losses, partial = [], []
    for s in range(M):
        for t in range(M):
            ours = predicted[:, s, t]
            expected = x[:, s] if s == t else torch.stack([block(layer.blocks[f"{s}_{t}"], x[b, s]) for b in range(B)])
            torch.testing.assert_close(ours, expected)
            if s != t:
                losses.append((expected - x[:, t]).square().mean())
                rows = present[:, s] & present[:, t]
                partial += [(expected - x[:, t])[rows].square().mean()] if rows.any() else []
    torch.testing.assert_close(layer.loss(x, predicted), sum(losses))
    torch.testing.assert_close(layer.loss(x, predicted, present), sum(partial))
    complete = layer.complete(x, predicted, present)
    torch.testing.assert_close(complete[0, 2], (predicted[0, 0, 2] + predicted[0, 1, 2]) / 2)
    torch.testing.assert_close(complete[1, 1], (predicted[1, 0, 1] + predicted[1, 2, 1]) / 2)
    assert torch.equal(complete[present], x[present])
