"""The sum of the two losses, with one head and with several."""

import pytest
import torch

from nextreid.losses import Criterion, batch_hard_triplet, identity_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(8, 12, generator=generator, requires_grad=True)
    logits = torch.randn(8, 3, 4, generator=generator, requires_grad=True)
    return embedding, logits, torch.arange(4).repeat(2)


def test_one_head(batch):
    embedding, logits, pid = batch
    parts = Criterion(identity_weight=0.5, triplet_weight=2.0, smoothing=0.2, margin=0.3)(embedding, logits[:, 0], pid)
    assert list(parts) == ["total", "identity", "triplet"]
    torch.testing.assert_close(parts["identity"], identity_loss(logits[:, 0], pid, 0.2))
    torch.testing.assert_close(parts["triplet"], batch_hard_triplet(embedding, pid, 0.3))
    torch.testing.assert_close(parts["total"], 0.5 * parts["identity"] + 2 * parts["triplet"])


def test_heads_read_equal_groups(batch):
    embedding, logits, pid = batch
    parts = Criterion()(embedding, logits, pid)
    heads = [Criterion()(embedding[:, 4 * h : 4 * h + 4], logits[:, h], pid) for h in range(3)]
    for name, value in parts.items():
        torch.testing.assert_close(value, sum(head[name] for head in heads) / 3)


def test_gradients_reach_both_inputs(batch):
    embedding, logits, pid = batch
    Criterion()(embedding, logits, pid)["total"].backward()
    assert (embedding.grad.abs().sum(1) > 0).any() and (logits.grad.abs().sum((1, 2)) > 0).all()


def test_features_must_split_into_heads(batch):
    embedding, logits, pid = batch
    with pytest.raises(ValueError, match="11 features, which 3 heads cannot share"):
        Criterion()(embedding[:, :11], logits, pid)
