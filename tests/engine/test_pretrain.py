"""Contrastive pretraining: it aligns pictures with captions, repeats exactly, and leaves the text tower frozen."""

import pytest
import torch

import nextreid
from nextreid.data import synthetic_persons
from nextreid.engine import pretrain_towers


@pytest.fixture(scope="module")
def samples():
    return synthetic_persons("tiny", num_pretrain=6, num_train=2, num_test=2, splits=("pretrain",)).pretrain


def model(**kwargs):
    torch.manual_seed(0)
    return nextreid.create_model("next_tiny", **kwargs)


def test_pretraining_learns_repeats_and_freezes(samples):
    first, again = model(), model()
    before = first.text_tower.transformer.ln_final.weight.clone()
    state = torch.get_rng_state()
    history = pretrain_towers(first, samples, epochs=4, batch_size=32)
    assert torch.equal(torch.get_rng_state(), state)
    assert history == pretrain_towers(again, samples, epochs=4, batch_size=32)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert len(history) == 4 and history[-1]["loss"] < history[0]["loss"]
    assert not torch.equal(first.text_tower.transformer.ln_final.weight, before)
    assert not any(p.requires_grad for p in first.text_tower.parameters())
    assert not first.text_tower.encode([["a man"]]).requires_grad


def test_what_cannot_be_aligned_is_named(samples):
    with pytest.raises(ValueError, match="no text tower"):
        pretrain_towers(nextreid.create_model("baseline_tiny"), samples)
    with pytest.raises(ValueError, match="two captioned samples or more, got 1"):
        pretrain_towers(model(), samples[:1])
