"""Learned words in a sentence of fixed ones."""

import pytest
import torch

from nextreid.layers import ClassPrompts


def test_words_of_each_identity_stand_between_the_fixed_ones():
    torch.manual_seed(0)
    prompts = ClassPrompts(5, 6, num_words=2, num_sets=3)
    before, after, pid = torch.randn(4, 6), torch.randn(3, 1, 6), torch.tensor([4, 0])
    found = prompts(before, after, pid)
    assert found.shape == (3, 2, 7, 6) and prompts(before, after).shape == (3, 5, 7, 6)
    for k in range(3):
        for row, c in enumerate(pid):
            assert torch.equal(found[k, row], torch.cat([before, prompts.contexts[k, c], after[k]]))
    found.sum().backward()
    assert prompts.contexts.grad[:, [1, 2, 3]].abs().sum() == 0 < prompts.contexts.grad[:, pid].abs().min()
    with pytest.raises(ValueError, match="at least one"):
        ClassPrompts(0)
