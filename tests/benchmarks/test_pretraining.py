"""Pretraining of the small dual encoder: its texts, its losses, its folder, and what its towers then know."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.paper.pointing import naming, pointing
from benchmarks.paper.pretraining import (
    PretrainConfig,
    _augment,
    _coverage,
    _name_images,
    clause_parts,
    clauses,
    load_towers,
    pool_samples,
    pretrain,
    tower_arguments,
    towers_config,
)
from nextreid.models import create_model
from nextreid.synthetic import PARTS, synthetic_persons

SMALL = PretrainConfig(profile="tiny", patch=8, num_ids=6, epochs=2, batch_ids=3, batch_instances=4)


@pytest.fixture(scope="module")
def pool():
    return pool_samples(SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pool):
    out = tmp_path_factory.mktemp("start")
    pretrain(out, SMALL, samples=pool)
    return out


def build(name="next_tiny", seed=0, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(name, **{**tower_arguments(SMALL), **more})


@pytest.mark.parametrize(
    ("sentence", "said", "parts"),
    [
        (
            "He is wearing a red coat with blue jeans, paired with casual boots.",
            ("wearing a red coat", "blue jeans", "casual boots"),
            (("upper",), ("lower",), ("footwear",)),
        ),
        ("She is carrying a handbag and holding a phone.", ("carrying a handbag", "holding a phone"), None),
        ("Long wavy hair and she is not wearing glasses.", ("long wavy hair", "not wearing glasses"), (("hair",), ())),
        ("The person is not carrying a handbag.", ("not carrying a handbag",), ((),)),
        ("The image appears blurry.", ("the image appears blurry",), ((),)),
        (
            "An adult male seen from the back during nighttime in dim lighting.",
            ("an adult male", "seen from the back", "during nighttime", "in dim lighting"),
            None,
        ),
    ],
)
def test_clauses_and_what_they_speak_of(sentence, said, parts):
    assert clauses(sentence) == said
    if parts is not None:
        assert tuple(clause_parts(clause) for clause in said) == parts


def test_every_named_part_exists_and_a_person_is_the_whole_body():
    assert clause_parts("carrying a handbag") == ("handbag",) and clause_parts("holding a phone") == ("held",)
    whole = clause_parts("an adult male")
    assert {"skin", "hair", "upper", "lower"} <= set(whole) <= set(PARTS) and "occluder" not in whole
    assert clause_parts("during nighttime") == ()


def test_no_word_of_a_caption_is_lost_or_made_up(pool):
    for sample in pool:
        for sentence in (s for caption in sample.captions for s in caption):
            left = " ".join(clauses(sentence)).split()
            rest = sentence.lower().rstrip(".").replace(",", "").split()
            for word in left:
                assert word in rest
            assert len(rest) - len(left) <= 8, (sentence, left)


def test_coverage_is_the_share_of_each_patch():
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.integers(0, len(PARTS), (2, 16, 8)).astype(np.uint8))
    cover = _coverage(maps, 4)
    assert cover.shape == (2, 8, len(PARTS))
    for b in range(2):
        for y in range(4):
            for x in range(2):
                cell = maps[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                share = [float((cell == part).float().mean()) for part in range(len(PARTS))]
                assert cover[b, 2 * y + x].tolist() == pytest.approx(share, abs=1e-6)


def test_naming_images_against_a_loop():
    torch.manual_seed(0)
    scores, owns = torch.randn(7, 5, dtype=torch.float64), torch.rand(7, 5) < 0.4
    owns[0], owns[1] = False, True  # say nothing
    losses = []
    for row, own in zip(scores, owns, strict=True):
        count = int(own.sum())
        if 0 < count < 5:
            share = row.exp() / row.exp().sum()
            losses.append(float(-(share[own].log().mean() + np.log(count))))
    assert float(_name_images(scores, owns)) == pytest.approx(np.mean(losses))
    assert float(_name_images(scores, torch.ones(7, 5, dtype=torch.bool))) == 0
    right = torch.where(owns, 50.0, 0.0)
    assert float(_name_images(right, owns)) == pytest.approx(0, abs=1e-6)


def test_images_and_part_maps_move_together():
    parts = torch.from_numpy(np.random.default_rng(0).integers(1, 12, (20, 16, 8)).astype(np.uint8))
    images = parts[:, None, None].expand(-1, 3, 3, -1, -1)
    moved, labels = _augment(images, parts, np.random.default_rng(1), pad=3)
    assert torch.equal(moved[:, 2, 1], labels) and (labels == 0).any()
    assert not torch.equal(labels, parts)
    kept = [bool((labels[i] == parts[i]).all()) for i in range(20)]
    assert sum(kept) <= 2


def test_deterministic_cached_and_quiet(folder, pool, tmp_path):
    state = torch.get_rng_state()
    report = pretrain(tmp_path / "b", SMALL, samples=pool)
    assert torch.equal(torch.get_rng_state(), state)
    one, two = build(seed=1), build(seed=1)
    load_towers(one, folder), load_towers(two, tmp_path / "b")
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert report["samples"] == len(pool) and [row["epoch"] for row in report["history"]] == [1, 2]
    before = (folder / "towers.safetensors").stat().st_mtime_ns
    rows = [[row | {"seconds": 0} for row in pretrain(out, SMALL)["history"]] for out in (folder, tmp_path / "b")]
    assert rows[0] == rows[1]
    assert (folder / "towers.safetensors").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="epochs"):
        pretrain(folder, replace(SMALL, epochs=3))
    assert towers_config(folder) == SMALL


def test_towers_are_filled_and_nothing_else(folder):
    fresh, filled, baseline = build(), build(), build("baseline_tiny")
    load_towers(filled, folder), load_towers(baseline, folder)
    for name, value in fresh.state_dict().items():
        tower = name.startswith(("image_tower.", "text_tower."))
        if tower and value.is_floating_point() and value.numel() > 200:
            assert not torch.equal(value, filled.state_dict()[name]), name
        if not tower:
            assert torch.equal(value, filled.state_dict()[name]), name
    for name, value in baseline.image_tower.state_dict().items():
        assert torch.equal(value, filled.image_tower.state_dict()[name])
    towers = build("unicat_tiny", num_cameras=2)  # one for each modality, without a projection
    cameras = [tower.camera.clone() for tower in towers.image_tower]
    load_towers(towers, folder)
    for tower, camera in zip(towers.image_tower, cameras, strict=True):
        assert torch.equal(tower.camera, camera)
        for name, value in tower.trunk.state_dict().items():
            assert torch.equal(value, filled.image_tower[0].trunk.state_dict()[name])
    assert not any(p.requires_grad for p in filled.text_tower.parameters())
    assert all(p.requires_grad for p in filled.image_tower.parameters())


def test_pieces_of_words_that_were_never_met_are_zero(folder, pool):
    model = build()
    load_towers(model, folder)
    rows = model.text_tower.transformer.token_embedding.weight
    tower, zero = model.text_tower, (rows == 0).all(1)
    said = [sentence for sample in pool for caption in sample.captions for sentence in caption]
    tokens = tower.tokenize(sorted(set(said)))
    known = set(tokens.flatten().tolist()) | set(tower.tokenize(["he she is"])[0].tolist())
    met = set((~zero).nonzero().flatten().tolist())
    lower = {tower.vocab_size - 2, tower.vocab_size - 1}  # start and end are in every text
    assert lower <= met <= known and len(met) > 40
    assert zero[tower.tokenize(["zeppelin"])[0, 1]] and not zero[tower.tokenize(["wearing"])[0, 1]]


def test_mistakes_say_what_to_do(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="paper pretrain"):
        load_towers(build(), tmp_path)
    with pytest.raises(ValueError, match=r"does not fit|other towers"):
        load_towers(create_model("next_tiny", embed_dim=32, text_tower={"width": 32, "heads": 2, "layers": 2}), folder)
    shallow = {**tower_arguments(SMALL)["image_tower_args"], "depth": 3}
    with pytest.raises(ValueError, match=r"other towers.*blocks\.3"):
        load_towers(build("baseline_tiny", image_tower_args=shallow), folder)


def test_pointing_and_naming_of_a_model_that_knows():
    """A stand-in whose patches are the parts' own directions must point without a mistake, one of noise at chance."""
    people = synthetic_persons("tiny", seed=3, num_test=6, splits=("test",)).dataset.query
    model = build().eval()

    def encode_text(rows):
        out = torch.zeros(len(rows), 3, 64)
        for i, row in enumerate(rows):
            for m, (sentence,) in enumerate(row):
                for part in clause_parts(clauses(sentence)[0]):
                    out[i, m, PARTS.index(part)] = 1
        return out

    covers = iter([people[i : i + 64] for i in range(0, len(people), 64)])

    def encode_images(images, present=None, camid=None):
        cover = _coverage(torch.stack([torch.from_numpy(s.truth["parts"]) for s in next(covers)]), 8)
        tokens = torch.zeros(len(images), 3, cover.shape[1], 64)
        tokens[..., : len(PARTS)] = cover[:, None]
        return {"cls": tokens.mean(2), "tokens": tokens}

    model.encode_images, model.encode_text = encode_images, encode_text
    rows = {(row["modality"], row["part"]): row for row in pointing(model, people)}
    for part in ("hair", "upper", "lower"):
        row = rows["rgb", part]
        assert row["accuracy"] == 1.0 and row["chance"] < 0.6 and row["lift"] > 0.2
    assert rows["rgb", "upper"]["images"] <= len(people)
    model = build().eval()
    for row in pointing(model, people):
        assert 0 <= row["accuracy"] <= 1 and 0 < row["chance"] < 0.6
    for row in naming(model, people):
        assert 0 <= row["balanced_accuracy"] <= 1 and row["chance"] <= 1


def test_no_truth_no_pointing(pool):
    with pytest.raises(ValueError, match="truth"):
        pointing(build(), [replace(sample, truth=None) for sample in pool])
