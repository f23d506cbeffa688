"""Prompts that pass from block to block and between modalities."""

import pytest
import torch

from nextreid.towers import TransferPrompts

B, T, W, K = 2, 3, 6, 2


def adapter(x, down, down_bias, up, up_bias):
    hidden = x @ down + down_bias
    return (hidden / (1 + (-1.702 * hidden).exp())) @ up + up_bias


def mix(block, tokens):
    """A block that mixes tokens ``(..., T, W)``."""
    return torch.tanh(tokens + tokens.mean(-2, keepdim=True) + 0.1 * block)


@pytest.mark.parametrize("modalities", [1, 3])
def test_they_are_their_equations(modalities):
    torch.manual_seed(0)
    prompts = TransferPrompts(3, W, modalities, K, hidden=4).double()
    with torch.no_grad():
        for parameter in prompts.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(B, modalities, T, W, dtype=torch.float64)
    lengths = []
    found = prompts(x, lambda block, tokens: lengths.append(tokens.shape[2]) or mix(block, tokens))
    assert lengths == [T + K * modalities] * 3
    for m in range(modalities):
        tokens, passed = x[:, m], None
        for i in range(3):
            groups = []
            for k in range(modalities):
                p = prompts.prompts[i, k].expand(B, -1, -1)
                if k == m and passed is not None:
                    side = prompts.transfers[i]
                    weights = side.down.weight.T, side.down.bias, side.up.weight.T, side.up.bias
                    p = p + passed + adapter(passed, *weights)
                elif k != m:
                    weights = (getattr(prompts, name)[i, k] for name in ("down_weight", "down_bias"))
                    p = p + adapter(p, *weights, prompts.up_weight[i, k], prompts.up_bias[i, k])
                groups.append(p)
            behind = mix(i, torch.cat([tokens, *groups], 1))
            tokens, passed = behind[:, :T], behind[:, T:].unflatten(1, (modalities, K)).mean(1)
        torch.testing.assert_close(found[:, m], tokens)


def test_no_modality_sees_anothers_image():
    torch.manual_seed(0)
    prompts, x = TransferPrompts(2, W), torch.randn(B, 3, T, W)
    other = x.clone()
    other[:, 1] = 7.0
    found, changed = (prompts(tokens, mix) for tokens in (x, other))
    assert torch.equal(found[:, [0, 2]], changed[:, [0, 2]]) and not torch.equal(found[:, 1], changed[:, 1])
