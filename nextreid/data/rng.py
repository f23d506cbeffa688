"""Random generators that are pure functions of explicit keys."""

import hashlib

import numpy as np


def seeded_rng(*key: int | str) -> np.random.Generator:
    """Return the generator that belongs to `key`, the same on every machine and in every process.

    The key is written as text, hashed with BLAKE2b (16 bytes) and seeds a PCG64. A string and a number that
    look alike (``"1"`` and ``1``) are different keys. NumPy integers count as plain integers.

    Args:
        *key: Any number of integers and strings, such as ``("augment", seed, epoch, slot, sample.key)``.

    Returns:
        A fresh generator at the start of its stream.

    Raises:
        TypeError: If a part of the key is neither an integer nor a string.
    """
    for part in key:
        if not isinstance(part, str | int | np.integer):
            raise TypeError(f"seeded_rng takes integers and strings, got {part!r} of type {type(part).__name__}")
    parts = tuple(str(part) if isinstance(part, str) else int(part) for part in key)
    # ascii, not repr: which characters repr escapes depends on the interpreter's Unicode version
    digest = hashlib.blake2b(ascii(parts).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
