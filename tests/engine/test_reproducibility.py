"""Batches are a function of seed, epoch and index, whoever loads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextreid.data.captions import caption_sampler
from nextreid.data.loader import make_loader
from nextreid.data.sampler import PKSampler
from nextreid.data.transforms import TrainTransform


def batches(samples, workers, rank=0, world_size=1, epochs=(1, 2)):
    """Everything that training reads of each batch, as bytes and names."""
    sampler = PKSampler([s.pid for s in samples], 4, 2, 7, rank, world_size)
    loader = make_loader(samples, TrainTransform((64, 32)), sampler=sampler, seed=7, workers=workers)
    out = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for b in loader:
            sample = caption_sampler(b.captions, b.keys, b.draws, 7)
            captions = [[sample(i, m, e) for m in range(3)] for i in range(len(b.keys)) for e in range(3)]
            fields = (b.present, b.pid, b.camid, b.sceneid)
            pixels = [image.numpy().tobytes() for image in b.images]
            out.append(list(zip(pixels, *(f.tolist() for f in fields), b.keys, b.draws, strict=True)) + captions)
    return out


def test_workers_change_no_byte(dataset):
    alone = batches(dataset.train, 0)
    assert len(alone) >= 4 and alone[0] != alone[1]
    assert batches(dataset.train, 4) == alone


@given(
    st.lists(st.integers(1, 9), min_size=4, max_size=9),
    st.sampled_from([(4, 2), (4, 4), (6, 3), (6, 2), (8, 4)]),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_ranks_share_the_batches_of_one(sizes, shape, k, epoch):
    (p, world), pids = shape, [pid for pid, size in enumerate(sizes) for _ in range(size)]
    if len(sizes) < p:
        return
    whole, *shares = (PKSampler(pids, p, k, 5, r, w) for r, w in [(0, 1), *((r, world) for r in range(world))])
    for sampler in (whole, *shares):
        sampler.set_epoch(epoch)
    assert {len(share) for share in shares} == {len(whole)}
    assert list(whole) == [[item for part in parts for item in part] for parts in zip(*shares, strict=True)]
    for share in shares:
        for batch in share:
            assert len(batch) == share.batch_size == p * k // world
            assert len({pids[index] for index, _, _ in batch}) == p // world  # identities are not torn apart


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match=r"num_ids=4 .* 3 processes: set num_ids to a multiple of 3"):
        PKSampler([1, 1, 2, 2, 3, 3, 4, 4], 4, 2, rank=0, world_size=3)
