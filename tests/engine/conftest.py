import numpy as np
import pytest
import torch

from nextreid.data import MODALITIES, ReIDDataset, Sample, seeded_rng
from nextreid.engine import get_recipe
from nextreid.models import create_model

PIDS = (3, 7, 11, 20, 31, 42)  # neither dense nor from 0: classes are not pids
WORDS = ("red", "blue", "green", "dark", "pale", "striped")


def make_sample(pid, number, camid=None, captions=True):
    rng = seeded_rng("engine test", pid, number)
    tint = seeded_rng("engine test", pid).integers(0, 60, 3)
    # Every image has its own light, so that an untrained model mixes identities up.
    images = tuple(
        (rng.integers(0, 96, (64, 32, 3)) + tint + rng.integers(0, 90, 3)).astype(np.uint8) for _ in MODALITIES
    )
    word = WORDS[PIDS.index(pid)]
    said = tuple((f"A {word} coat.", f"View {number} in {m}.", "The person walks.") for m in MODALITIES)
    camera = number % 2 if camid is None else camid
    return Sample(f"{pid:03}_{number}", pid, camera, -1, images, said if captions else ())


def make_dataset(pids=PIDS, captions=True, each=4):
    train = tuple(make_sample(pid, n, captions=captions) for pid in pids for n in range(each))
    test = tuple(make_sample(pid, n, captions=captions) for pid in pids for n in range(10, 13))
    return ReIDDataset("tints", MODALITIES, "person", "camera", train, test, test)


@pytest.fixture(scope="session")
def dataset():
    return make_dataset()


@pytest.fixture
def recipe():
    return get_recipe("tiny", epochs=2, num_ids=3, num_instances=4, warmup_epochs=1, eval_every=1)


@pytest.fixture
def build():
    def build(name="next_tiny", seed=0, **kwargs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return create_model(name, **kwargs)

    return build
