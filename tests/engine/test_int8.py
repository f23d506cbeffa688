"""Models in 8 bits: they find what the model finds, or they are not given out."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import nextreid
from nextreid.engine import FeatureExtractor, embed_samples, to_int8
from nextreid.engine.int8 import compare, rank_agreement
from nextreid.layers.int8 import Int8Layer

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.fixture(scope="module")
def trained():
    return nextreid.create_model("baseline_tiny.synthetic_persons", pretrained=True).eval()


@pytest.fixture(scope="module")
def samples():
    return nextreid.load_dataset("synthetic-persons", profile="tiny", num_train=0, num_test=12).query


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, Int8Layer)]


def test_a_trained_model_passes_and_stays_as_it_is(trained, samples):
    before = copy.deepcopy(trained.state_dict())
    small, report = to_int8(trained, samples)
    assert len(layers_of(small)) >= 16 and not layers_of(trained) and not small.training
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert report.samples == len(samples) and report.protocol == "camera"
    ours, theirs = embed_samples(trained, samples), embed_samples(small, samples)
    assert not torch.equal(ours, theirs) and F.cosine_similarity(ours, theirs).min() > 0.995
    assert report == compare(ours, theirs, samples)


def test_an_extractor_in_8_bits_is_one_in_all(trained, samples):
    extractor = FeatureExtractor(trained, dtype="int8", check=samples)
    assert extractor.int8.rank_agreement > 0.998
    some = [dict(zip(trained.modalities, sample.images, strict=True)) for sample in samples[:3]]
    vectors = extractor(some)
    expected = F.normalize(embed_samples(extractor.model, samples[:3]), dim=1)
    torch.testing.assert_close(vectors, expected)
    assert torch.equal(pickle.loads(pickle.dumps(extractor))(some), vectors)


def test_a_model_that_loses_is_rejected(trained, samples):
    spoiled = copy.deepcopy(trained)
    with torch.no_grad():  # one huge weight a row leaves the others no steps
        for block in spoiled.image_tower.modules():
            if isinstance(block, torch.nn.Linear):
                block.weight[:, 0] += 1e4 * block.weight[:, 0].sign()
                block.weight[:, 1:] += 1e-3 * torch.randn_like(block.weight[:, 1:])
    with pytest.raises(ValueError, match=r"int8 is rejected: .*take bfloat16 or float32"):
        to_int8(spoiled, samples)


def test_collapse_is_named_where_nothing_is_ranked_wrongly(samples):
    """All vectors move towards one direction: the order stays, the space they fill does not."""
    rows = torch.randn(len(samples), 32, generator=torch.Generator().manual_seed(0))
    one = F.normalize(torch.ones(32), dim=0)
    report = compare(rows, F.normalize(rows, dim=1) + 20 * one, samples)
    with pytest.raises(ValueError, match="the embeddings collapse"):
        report.check()
    same = torch.ones(len(samples), 32) + 1e-4 * rows
    with pytest.raises(ValueError, match="nearly all the same in float32"):
        compare(same, same, samples).check()
    right = rows[[sample.pid % 97 for sample in samples]]  # the same for all samples of an identity
    with pytest.raises(ValueError, match=r"mAP falls by more than 0\.2 points"):
        compare(right, rows, samples).check()


def test_effective_rank_of_known_spaces(samples):
    samples = samples[: len(samples) // 4 * 4]
    n = len(samples)
    rows = torch.zeros(n, 8)
    rows[torch.arange(n), torch.arange(n) % 4 * 2] = 1  # four directions, centred: three dimensions of equal energy
    assert compare(rows, rows, samples).effective_rank[0] == pytest.approx(3, rel=1e-6)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.integers(3, 9), st.floats(0, 0.5), st.integers(0, 1000))
def test_rank_agreement_is_that_of_plain_loops(n, apart, seed):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (F.normalize(torch.randn(n, 4, generator=generator), dim=1) for _ in range(2))
    a, b = ours @ ours.T, theirs @ theirs.T
    told = [
        bool(b[q, i] > b[q, j])
        for q in range(n)
        for i in range(n)
        for j in range(n)
        if q not in (i, j) and a[q, i] - a[q, j] > apart
    ]
    found = rank_agreement(ours, theirs, apart)
    assert found == pytest.approx(sum(told) / len(told)) if told else found != found


def test_what_is_asked_wrongly_is_named(trained, samples):
    with pytest.raises(ValueError, match="needs a check set: samples of known identities"):
        FeatureExtractor(trained, dtype="int8")
    with pytest.raises(ValueError, match="at least two have two samples"):
        to_int8(trained, samples[:1] * 4)
    with pytest.raises(ValueError, match="check set is for dtype='int8' alone"):
        FeatureExtractor(trained, check=samples)
    with pytest.raises(ValueError, match=r"computes on a CPU from float32 weights, the model is torch.bfloat16"):
        to_int8(copy.deepcopy(trained).bfloat16(), samples)
    with pytest.raises(ValueError, match="got 'int4'"):
        FeatureExtractor(trained, dtype="int4")
