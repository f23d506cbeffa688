from dataclasses import replace

import pytest

from nextreid.data import MODALITIES
from nextreid.engine import Condition, with_caption_quality
from nextreid.engine.ablations import has_captions, hide_modalities
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


@pytest.mark.parametrize(("share", "kept"), [(0.35, 1), (0.7, 2), (1.0, 3)])
def test_quality_keeps_a_share_of_every_caption_in_every_split(dataset, share, kept):
    reduced = with_caption_quality(dataset, share)
    for split in ("train", "query", "gallery"):
        for before, after in zip(getattr(dataset, split), getattr(reduced, split), strict=True):
            for full, some in zip(before.captions, after.captions, strict=True):
                assert len(some) == kept and [s for s in full if s in some] == list(some)
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
