import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextreid.data import seeded_rng

PARTS = st.lists(st.integers() | st.text(max_size=8), max_size=4).map(tuple)


def test_is_blake2b_of_the_text_of_the_key() -> None:
    seed = int.from_bytes(hashlib.blake2b(b"('augment', 3, 'a.jpg')", digest_size=16).digest(), "little")
    expected = np.random.Generator(np.random.PCG64(seed)).integers(0, 2**62, 4)
    np.testing.assert_array_equal(seeded_rng("augment", 3, "a.jpg").integers(0, 2**62, 4), expected)


@given(PARTS, PARTS)
def test_equal_keys_agree_and_different_keys_do_not(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> None:
    same = seeded_rng(*a).integers(0, 2**62, 2).tolist() == seeded_rng(*b).integers(0, 2**62, 2).tolist()
    assert same == (a == b)


def test_text_and_number_are_different_keys_and_numpy_integers_are_numbers() -> None:
    assert seeded_rng("1").random() != seeded_rng(1).random()
    assert seeded_rng(np.int64(7)).random() == seeded_rng(7).random()


def test_is_the_same_on_every_machine() -> None:
    assert seeded_rng("é\u0378", -5).integers(0, 2**60, 2).tolist() == [687524545299073920, 1047332097456486545]


@pytest.mark.parametrize("part", [1.5, None, (1, 2)])
def test_other_parts_are_refused(part: object) -> None:
    with pytest.raises(TypeError, match="integers and strings"):
        seeded_rng("a", part)  # type: ignore[arg-type]
