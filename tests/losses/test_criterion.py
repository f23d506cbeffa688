"""The sum of identity and triplet loss over any number of heads, and the model's own losses."""

import pytest
import torch

from nextreid.losses import Criterion, batch_hard_triplet, identity_loss


@pytest.fixture
def heads():
    """Three heads of different widths; the second has the last three samples only."""
    generator = torch.Generator().manual_seed(0)
    rows = (None, torch.tensor([False] * 5 + [True] * 3), None)
    return [
        (
            torch.randn(8, 4, generator=generator, requires_grad=True),
            torch.randn(8, width, generator=generator, requires_grad=True),
            present,
        )
        for width, present in zip((12, 5, 7), rows, strict=True)
    ]


PID = torch.tensor([0, 1, 2, 3, 0, 0, 0, 1])


def test_one_head(heads):
    logits, feature, _ = heads[0]
    parts = Criterion(identity_weight=0.5, triplet_weight=2.0, smoothing=0.2, margin=0.3)(heads[:1], PID)
    assert list(parts) == ["total", "identity", "triplet"]
    torch.testing.assert_close(parts["identity"], identity_loss(logits, PID, 0.2))
    torch.testing.assert_close(parts["triplet"], batch_hard_triplet(feature, PID, 0.3))
    torch.testing.assert_close(parts["total"], 0.5 * parts["identity"] + 2 * parts["triplet"])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_heads_add_up(heads, count):
    parts = Criterion()(heads[:count], PID)
    each = [Criterion()([head], PID) for head in heads[:count]]
    for name, value in parts.items():
        torch.testing.assert_close(value, sum(losses[name] for losses in each))


def test_a_head_is_as_if_the_batch_were_the_rows_that_take_part(heads):
    logits, feature, rows = heads[1]
    parts, alone = Criterion()([heads[1]], PID), Criterion()([(logits[rows], feature[rows], None)], PID[rows])
    for name, value in alone.items():
        torch.testing.assert_close(parts[name], value)
    parts["total"].backward()
    for x in (logits, feature):
        assert (x.grad[~rows] == 0).all() and (x.grad[rows].abs().sum(1) > 0).any()


def test_a_head_without_rows_adds_nothing(heads):
    logits, feature, _ = heads[1]
    empty = (logits, feature, torch.zeros(8, dtype=torch.bool))
    with_empty, without = Criterion()([heads[0], empty], PID), Criterion()([heads[0]], PID)
    assert all(torch.equal(with_empty[name], value) for name, value in without.items())
    with_empty["total"].backward()
    assert (logits.grad == 0).all() and (feature.grad == 0).all()


def test_losses_of_the_model_are_added_as_they_are(heads):
    own = {"balance": torch.tensor(0.3, requires_grad=True), "align": torch.tensor(1.5, requires_grad=True)}
    parts, plain = Criterion()(heads, PID, own), Criterion()(heads, PID)
    assert list(parts) == ["total", "identity", "triplet", "balance", "align"]
    torch.testing.assert_close(parts["total"], plain["total"] + 0.3 + 1.5)
    parts["total"].backward()
    assert own["balance"].grad == own["align"].grad == 1


def test_gradients_reach_every_head(heads):
    Criterion()(heads, PID)["total"].backward()
    for logits, feature, rows in heads:
        taking_part = torch.ones(8, dtype=torch.bool) if rows is None else rows
        assert (logits.grad[taking_part].abs().sum(1) > 0).all() and feature.grad.any()


def test_no_head_and_taken_names_are_rejected(heads):
    with pytest.raises(ValueError, match=r"no head to train.*num_classes"):
        Criterion()([], PID)
    with pytest.raises(ValueError, match="must not be named identity, total"):
        Criterion()(heads, PID, {"total": torch.zeros(()), "identity": torch.zeros(()), "mine": torch.zeros(())})
