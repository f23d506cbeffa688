from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.data import MODALITIES, Batch
from nextreid.engine import Condition, with_caption_quality
from nextreid.engine.ablations import drop_modalities, has_captions, hide_modalities
from nextreid.engine.embedding import check_visible


def test_a_condition_is_what_is_left():
    assert hide_modalities(MODALITIES, ()) == Condition() and Condition().hidden(MODALITIES) == ()
    condition = hide_modalities(MODALITIES, ["nir"], text=False)
    assert condition == Condition(False, ("rgb", "tir"))
    assert condition.shows(MODALITIES) == [True, False, True] and condition.hidden(MODALITIES) == ("nir",)


def test_a_string_is_one_modality():
    assert hide_modalities(MODALITIES, "nir") == hide_modalities(MODALITIES, ["nir"])
    assert Condition(modalities="rgb") == Condition(modalities=("rgb",))
    assert Condition(modalities="rgb").shows(MODALITIES) == [True, False, False]
    with pytest.raises(ValueError, match="'rgbnir'"):
        hide_modalities(MODALITIES, "rgbnir")


def test_what_cannot_be_hidden_is_named(dataset):
    with pytest.raises(ValueError, match=r"'uv'.*rgb, nir, tir"):
        hide_modalities(MODALITIES, ("uv",))
    with pytest.raises(ValueError, match=r"'uv'.*rgb, nir, tir"):
        Condition(modalities=("uv",)).shows(MODALITIES)
    with pytest.raises(ValueError, match="leave at least one"):
        hide_modalities(MODALITIES, MODALITIES)
    lone = replace(dataset.query[0], images=(dataset.query[0].images[0], None, None))
    with pytest.raises(ValueError, match=rf"1 of 2 samples.*rgb is hidden: '{lone.key}'"):
        check_visible((lone, dataset.query[1]), MODALITIES, hide_modalities(MODALITIES, ("rgb",)))


@pytest.mark.parametrize(("share", "kept"), [(0.35, (1, 2)), (0.7, (2, 3)), (1.0, (3,))])
def test_quality_keeps_a_share_of_every_caption_in_every_split(dataset, share, kept):
    reduced = with_caption_quality(dataset, share)
    for split in ("train", "query", "gallery"):
        for before, after in zip(getattr(dataset, split), getattr(reduced, split), strict=True):
            for full, some in zip(before.captions, after.captions, strict=True):
                assert len(some) in kept and [s for s in full if s in some] == list(some)
    assert reduced == with_caption_quality(dataset, share)
    assert reduced.query == reduced.gallery  # one sample, one caption, whichever split it is in


def test_quality_depends_on_the_seed_and_tolerates_absent_captions(dataset):
    assert with_caption_quality(dataset, 0.35, seed=1) != with_caption_quality(dataset, 0.35, seed=2)
    bare = replace(dataset, train=tuple(replace(s, captions=()) for s in dataset.train))
    assert with_caption_quality(bare, 0.35).train == bare.train
    assert has_captions(dataset.train) and not has_captions(bare.train)
    assert not has_captions([replace(dataset.train[0], captions=((), (), ()))])
    only_rgb = [replace(dataset.train[0], captions=(("A coat.",), (), ()))]
    assert has_captions(only_rgb, [True, False, False]) and not has_captions(only_rgb, [False, True, True])
    with pytest.raises(ValueError, match="0"):
        with_caption_quality(dataset, 0.0)


def batch_of(rows, epoch=1, slots=None):
    """Samples with all but one modality of the last, as a loader collates them."""
    present = torch.ones(rows, 3, dtype=torch.bool)
    present[-1, 1] = False
    ids = torch.zeros(rows, dtype=torch.long)
    captions = [[("A.",) if shown else () for shown in row] for row in present.tolist()]
    keys, draws = [f"{i}.jpg" for i in range(rows)], [(epoch, slot) for slot in (slots or range(rows))]
    return Batch(torch.ones(rows, 3, 3, 2, 2), present, captions, ids, ids, ids, keys, draws)


@given(st.floats(0, 1), st.integers(0, 5), st.integers(1, 9))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_dropped_modalities_are_gone_and_one_is_always_left(probability, seed, epoch):
    batch = batch_of(6, epoch)
    less = drop_modalities(batch, probability, seed)
    assert less.present.any(1).all() and not (less.present & ~batch.present).any()
    assert torch.equal(less.images[:, :, 0, 0, 0] > 0, less.present)
    assert all(
        bool(c) == p
        for row, shown in zip(less.captions, less.present.tolist(), strict=True)
        for c, p in zip(row, shown, strict=True)
    )
    assert int(batch.present.sum()) == 17 and sum(bool(c) for row in batch.captions for c in row) == 17  # as it was
    alone = drop_modalities(replace_rows(batch, 2), probability, seed)  # whatever else is in the batch
    assert torch.equal(alone.present[0], less.present[2])


def replace_rows(batch, row):
    part = slice(row, row + 1)
    fields = {name: getattr(batch, name)[part] for name in ("images", "present", "captions", "keys", "draws")}
    return replace(batch, **fields, pid=batch.pid[part], camid=batch.camid[part], sceneid=batch.sceneid[part])


def test_modalities_are_dropped_as_often_as_asked_and_anew_every_epoch():
    shown = torch.stack([drop_modalities(batch_of(400, epoch), 0.3, 0).present[:-1] for epoch in range(4)]).float()
    # 0.3 each, but for the 0.3^3 of samples that get one of three back
    assert float(1 - shown.mean()) == pytest.approx(0.3 - 0.3**3 / 3, abs=0.02)
    assert not torch.equal(shown[0], shown[1])
    assert torch.equal(drop_modalities(batch_of(4), 0.0, 0).present, batch_of(4).present)
