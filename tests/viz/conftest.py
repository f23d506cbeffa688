"""Samples made of flat colours."""

import numpy as np
import pytest

from nextreid.data.sample import Sample

MODALITIES = ("rgb", "nir", "tir")


@pytest.fixture
def make_sample():
    def make(pid=1, camid=0, missing=(), height=64, width=32):
        colours = ((180, 60, 40), 128, 30)
        images = []
        for m, colour in enumerate(colours):
            shape = (height, width, 3) if m == 0 else (height, width)
            images.append(None if m in missing else np.full(shape, colour, np.uint8))
        return Sample(f"{pid:06d}_cam{camid + 1}.jpg", pid, camid, -1, tuple(images))

    return make
