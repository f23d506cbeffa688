from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextreid.data import PKSampler


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=8),
    st.integers(2, 4),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_batches_hold_p_identities_with_k_instances(sizes: list[int], p: int, k: int, epoch: int) -> None:
    pids = [pid for pid, size in enumerate(sizes) for _ in range(size)]
    if len(sizes) < p:
        with pytest.raises(ValueError, match="cannot be drawn"):
            PKSampler(pids, p, k)
        return
    sampler = PKSampler(pids, p, k, seed=5)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert [slot for batch in batches for _, _, slot in batch] == list(range(len(batches) * p * k))
    uses: Counter[int] = Counter()
    for batch in batches:
        assert Counter(pids[index] for index, _, _ in batch).keys() == {pids[batch[j * k][0]] for j in range(p)}
        assert set(Counter(pids[index] for index, _, _ in batch).values()) == {k}
        assert {e for _, e, _ in batch} == {epoch}
        uses.update(index for index, _, _ in batch)
    # without replacement where an identity has enough samples, and no more chunks than it has
    for pid, size in enumerate(sizes):
        drawn = {index: count for index, count in uses.items() if pids[index] == pid}
        if size >= k:
            assert all(count == 1 for count in drawn.values())
        assert sum(drawn.values()) <= max(k, size)
    # it stops only where fewer than P identities have a chunk left
    chunks = {pid: max(1, size // k) for pid, size in enumerate(sizes)}
    left = [pid for pid in chunks if chunks[pid] * k > sum(uses[i] for i, q in enumerate(pids) if q == pid)]
    assert len(left) < p


def test_small_identity_is_drawn_with_replacement() -> None:
    (batch,) = PKSampler([7, 3, 3, 3, 3], 2, 4)
    assert [index for index, _, _ in batch].count(0) == 4


def test_is_a_function_of_seed_and_epoch() -> None:
    pids = [i // 5 for i in range(50)]
    one, two = PKSampler(pids, 4, 2, seed=1), PKSampler(pids, 4, 2, seed=1)
    first = list(one)
    assert first == list(one) == list(two)
    two.set_epoch(1)
    assert [[i for i, _, _ in b] for b in two] != [[i for i, _, _ in b] for b in one]
    two.set_epoch(0)
    assert list(two) == first
    assert list(PKSampler(pids, 4, 2, seed=2)) != first


@pytest.mark.parametrize(
    ("pids", "p", "k", "message"),
    [
        ([1, 1, 1, 1], 2, 2, "at least two"),
        ([1, 1, 2, 2], 3, 2, "set num_ids to 2 … 2"),
        ([1, 1, 2, 2], 1, 2, "needs two identities"),
        ([1, 1, 2, 2], 2, 0, "num_instances=0"),
        ([1, -1, 2, 2], 2, 2, "unknown identity"),
        ([], 2, 2, "cannot be drawn from 0"),
    ],
)
def test_impossible_settings_are_refused(pids: list[int], p: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PKSampler(pids, p, k)
