"""Procedural persons: determinism, separation of streams, and the physics of three sensors."""

import dataclasses
import hashlib

import numpy as np
import pytest
from PIL import Image

from nextreid.data import ReIDDataset, load_dataset
from nextreid.synthetic import PARTS, PersonsConfig, synthetic_persons, write_folder_layout
from nextreid.synthetic.dataset import render_identity, render_sample
from nextreid.synthetic.figure import PERSON
from nextreid.synthetic.identity import pool_pids, twin_of
from nextreid.synthetic.person import MATERIALS, person_materials
from nextreid.synthetic.person import make_person as make_identity
from nextreid.synthetic.person_drawing import draw_person
from nextreid.synthetic.scene import make_camera, make_frame, make_visit, view_of, visited_cameras
from nextreid.synthetic.sensors import material_table

CONFIG = PersonsConfig()
PID = 200_001
RGB, NIR, TIR = range(3)


def same(a, b):
    assert (a.key, a.pid, a.camid, a.sceneid, a.captions) == (b.key, b.pid, b.camid, b.sceneid, b.captions)
    assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    assert np.array_equal(a.truth["parts"], b.truth["parts"])
    assert {k: v for k, v in a.truth.items() if k != "parts"} == {k: v for k, v in b.truth.items() if k != "parts"}


def moment(config=CONFIG, pid=PID, number=0, visit=None, body_of=None, **frame):
    """One sample at the first camera of `pid`, with parts of its visit, frame or body exchanged."""
    camid = visited_cameras(config, pid)[0]
    seen = dataclasses.replace(make_visit(config, pid, camid), **(visit or {}))
    taken = dataclasses.replace(
        make_frame(config, seen, pid, camid, number), **{"occluder": None, "flare": None} | frame
    )
    identity = make_identity(config, pid)
    if body_of is not None:
        identity = dataclasses.replace(make_identity(config, body_of), pid=pid)
    return render_sample(config, identity, seen, taken, camid, number)


@pytest.fixture(scope="module")
def tiny():
    return synthetic_persons("tiny")


def test_shape_of_the_set(tiny):
    dataset = tiny.dataset
    assert isinstance(dataset, ReIDDataset)
    assert (dataset.name, dataset.protocol, dataset.modalities) == ("synthetic-persons",) * 2 + (("rgb", "nir", "tir"),)
    assert len({s.pid for s in dataset.train}) == 24 and len({s.pid for s in dataset.gallery}) == 16
    assert dataset.query == dataset.gallery and tiny.pretrain == ()
    for samples in (dataset.train, dataset.gallery):
        keys = [s.key for s in samples]
        assert keys == sorted(set(keys))
    for sample in dataset.train:
        assert len(sample.captions) == 3 and sample.sceneid == -1 and 0 <= sample.camid < 4
        for image in sample.images:
            assert image.shape == (64, 32, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        for grey in sample.images[1:]:
            assert np.array_equal(grey[..., 0], grey[..., 1]) and np.array_equal(grey[..., 0], grey[..., 2])
    views = {s.truth["view"] for s in dataset.train}
    assert views == {"front", "back", "side"}
    assert "version 1" in dataset.notes[0] and "seed 0" in dataset.notes[0]


def test_every_identity_visits_two_or_three_cameras_in_full(tiny):
    for pid in {s.pid for s in tiny.dataset.gallery}:
        cameras = [s.camid for s in tiny.dataset.gallery if s.pid == pid]
        assert len(set(cameras)) in (2, 3) and len(cameras) == 6 * len(set(cameras))


def test_pools_never_meet_in_ids_or_identity_seeds():
    config = PersonsConfig(num_pretrain=100_000, num_train=100_000, num_test=100_000)
    pools = [set(pool_pids(config, pool)) for pool in ("train", "test", "pretrain")]
    assert len(set.union(*pools)) == sum(len(pool) for pool in pools) == 300_000
    assert max(set.union(*pools)) < 10**6  # six digits of the file name
    # the pid is the only thing of the pool in an identity's seed: distinct pids are distinct bodies
    bodies = {make_identity(config, pid).body.stature for pool in pools for pid in sorted(pool)[:50]}
    assert len(bodies) == 150


def test_same_seed_same_bytes_other_seed_other_bytes(tiny):
    again = synthetic_persons("tiny", splits=("test",), num_test=3).dataset.gallery
    for a, b in zip(again, tiny.dataset.gallery, strict=False):  # nor do the other identities matter
        same(a, b)
    other = synthetic_persons("tiny", seed=1, splits=("test",), num_test=1).dataset.gallery
    assert not np.array_equal(other[0].images[RGB], again[0].images[RGB])


def test_workers_change_nothing(tiny):
    parallel = synthetic_persons("tiny", splits=("test",), workers=2).dataset.gallery
    assert len(parallel) == len(tiny.dataset.gallery)
    for a, b in zip(parallel, tiny.dataset.gallery, strict=True):
        same(a, b)


def test_pretrain_pool_is_built_on_demand():
    built = synthetic_persons("tiny", splits="pretrain", num_pretrain=2, frames_per_visit=1)
    assert len({s.pid for s in built.pretrain}) == 2 and built.dataset.train == built.dataset.gallery == ()


def test_frames_of_a_visit_do_not_depend_on_how_many_there_are():
    few, many = (render_identity(dataclasses.replace(CONFIG, frames_per_visit=n), PID) for n in (1, 3))
    same(few[0], many[0])
    same(few[1], many[3])


def test_nothing_but_the_body_shows_the_identity():
    """The same moment with another person in it: what neither silhouette nor its blur reaches is equal to the bit."""
    for number in range(6):
        one = moment(number=number, defocus=0.0, motion=0.0)
        two = moment(number=number, defocus=0.0, motion=0.0, body_of=200_007)
        near = (one.truth["parts"] > 0) | (two.truth["parts"] > 0)
        for _ in range(4):  # optical blur reaches a few pixels at this size
            padded = np.pad(near, 1)
            near = np.any([padded[y : y + 64, x : x + 32] for y in range(3) for x in range(3)], axis=0)
        assert (~near).mean() > 0.2
        for a, b in zip(one.images, two.images, strict=True):
            assert np.array_equal(a[~near], b[~near])
        assert not np.array_equal(one.images[TIR], two.images[TIR])


def test_flare_and_light_reach_rgb_and_nir_but_never_tir():
    plain, flared = moment(), moment(flare=(0.5, 0.3, 0.2, 1.0))
    assert flared.images[RGB].mean() > plain.images[RGB].mean() + 5
    assert flared.images[NIR].mean() > plain.images[NIR].mean() + 5
    assert np.array_equal(flared.images[TIR], plain.images[TIR])
    dark, bright = moment(visit={"night": False}, light=0.3), moment(visit={"night": False}, light=1.0)
    assert bright.images[RGB].mean() > dark.images[RGB].mean() + 5
    assert bright.images[NIR].mean() > dark.images[NIR].mean() + 5
    assert np.array_equal(bright.images[TIR], dark.images[TIR])


def chroma(image):
    return np.mean(image.max(2).astype(int) - image.min(2))


def test_night_takes_light_and_colour_from_rgb_only():
    white = np.ones(3)
    by_day = [moment(pid=p, visit={"night": False, "cast": white}, light=0.9) for p in range(1, 13)]
    by_night = [moment(pid=p, visit={"night": True, "cast": white}, light=0.04) for p in range(1, 13)]

    def average(samples, m):
        return np.mean([s.images[m].mean() for s in samples])

    assert average(by_night, RGB) < 0.6 * average(by_day, RGB)
    assert np.mean([chroma(s.images[RGB]) for s in by_night]) < 0.7 * np.mean([chroma(s.images[RGB]) for s in by_day])
    assert average(by_night, NIR) > 0.6 * average(by_day, NIR)  # it brings its own lamp
    assert all(np.array_equal(a.images[TIR], b.images[TIR]) for a, b in zip(by_day, by_night, strict=True))


def test_skin_is_the_warmest_and_bags_and_occluders_are_cold():
    samples = synthetic_persons("tiny", splits=("test",), num_test=8, frames_per_visit=3, blur=0.0).dataset.gallery

    def warmth(part):
        label, values = PARTS.index(part), []
        for s in samples:
            values.extend(s.images[TIR][s.truth["parts"] == label, 0].tolist())
        return np.mean(values)

    assert warmth("skin") > warmth("upper") > warmth("backpack") > warmth("background")
    assert warmth("skin") > warmth("lower") > warmth("occluder")


def test_nir_corr_ties_reflectance_to_colour():
    def correlation(share):
        bodies = [make_identity(PersonsConfig(nir_corr=share), pid).body for pid in range(1, 80)]
        return np.corrcoef([b.nir[0] for b in bodies], [b.color[0].mean() for b in bodies])[0, 1]

    assert abs(correlation(0.0)) < 0.3 and correlation(1.0) > 0.99


def test_heat_sep_and_structure_scale_their_spread_to_nothing():
    def bodies(**settings):
        return [make_identity(PersonsConfig(**settings), pid).body for pid in range(1, 60)]

    assert np.ptp([b.heat for b in bodies(heat_sep=0.0)]) < 1e-9 < 0.1 < np.ptp([b.heat for b in bodies()])
    assert len({round(b.hip, 9) for b in bodies(structure=0.0)}) == 2  # women's and men's mean
    assert np.std([b.shoulder for b in bodies(structure=2.0)]) > np.std([b.shoulder for b in bodies(structure=0.0)])
    # settings move only what they name
    assert all(
        np.array_equal(a.color, b.color) for a, b in zip(bodies(), bodies(heat_sep=0.0, nir_corr=1.0), strict=True)
    )


def test_shares_of_night_occlusion_flare_and_view_changes_follow_their_settings():
    def drawn(**settings):
        config = PersonsConfig(**settings)
        visits = [(p, c, make_visit(config, p, c)) for p in range(1, 150) for c in visited_cameras(config, p)]
        return [v for *_, v in visits], [make_frame(config, v, p, c, 0) for p, c, v in visits]

    visits, frames = drawn(night=0.3, occlusion=0.4, flare=0.2, view_persistence=0.0)
    assert abs(np.mean([v.night for v in visits]) - 0.3) < 0.08
    assert abs(np.mean([f.occluder is not None for f in frames]) - 0.4) < 0.08
    assert abs(np.mean([f.flare is not None for f in frames]) - 0.2) < 0.07
    turned = [abs(np.cos(f.yaw) - np.cos(v.yaw)) > 0.5 for v, f in zip(visits, frames, strict=True)]
    visits, frames = drawn(view_persistence=1.0, blur=0.0)
    kept = [abs(np.cos(f.yaw) - np.cos(v.yaw)) > 0.5 for v, f in zip(visits, frames, strict=True)]
    assert np.mean(turned) > 0.3 > 0.02 > np.mean(kept)
    assert all(f.defocus == f.motion == 0 for f in frames)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_twins_share_described_attributes_but_not_pixels(share):
    config = PersonsConfig(twins=share)
    people = [make_identity(config, pid) for pid in range(1, 41)]
    twins = [p for p in people if p.twin >= 0]
    assert len(twins) == round(40 * share)
    for person in twins:
        other = make_identity(config, person.twin)
        assert twin_of(config, other.pid) == person.pid and other.attributes == person.attributes
        assert not np.allclose(other.body.nir, person.body.nir) and other.body.waist != person.body.waist
    if share:
        pid, twin = twins[0].pid, twins[0].twin
        assert not np.array_equal(moment(config, pid).images[TIR], moment(config, pid, body_of=twin).images[TIR])


def test_parts_agree_with_visibility_and_attributes(tiny):
    for sample in tiny.dataset.train:
        truth = sample.truth
        counts = np.bincount(truth["parts"].ravel(), minlength=len(PARTS))
        assert counts.tolist() == [truth["visibility"][part] for part in PARTS]
        assert truth["parts"].shape == (64, 32) and truth["parts"].dtype == np.uint8
        for thing in ("backpack", "handbag", "suitcase", "glasses"):
            if truth["attributes"][thing] == "no":
                assert truth["visibility"][thing] == 0
        if truth["held"] == "none":
            assert truth["visibility"]["held"] == 0
        assert (truth["visibility"]["occluder"] > 0) >= any(truth["hidden"].values())
    bags = [s.truth["visibility"]["backpack"] for s in tiny.dataset.train if s.truth["attributes"]["backpack"] == "yes"]
    assert np.mean(np.array(bags) > 0) > 0.7


def test_the_body_stands_in_its_crop(tiny):
    cover = np.mean([s.truth["parts"] > 0 for s in tiny.dataset.train], axis=0)
    assert cover[20:40, 14:18].min() > 0.85  # the trunk is nearly always in the middle
    assert cover[:, [0, -1]].mean() < 0.12  # the border nearly never
    assert 0.15 < cover.mean() < 0.5


def test_every_region_has_a_material_and_the_background_none():
    body, camid = make_identity(CONFIG, PID).body, visited_cameras(CONFIG, PID)[0]
    visit = make_visit(CONFIG, PID, camid)
    table = material_table(PERSON, person_materials(body, visit, make_frame(CONFIG, visit, PID, camid, 0)), 0.2)
    assert table.shape == (256, 6) and table.dtype == np.float32
    assert (table[1 : len(PERSON.number), 5] == 1).all() and (table[PERSON.number["background"]] == 0).all()
    assert table[:, 3].max() <= 1 and table[:, 4].max() <= 1.1


def test_views_hide_what_they_should():
    def parts(yaw):
        camid = visited_cameras(CONFIG, 1)[0]
        frame = dataclasses.replace(
            make_frame(CONFIG, make_visit(CONFIG, 1, camid), 1, camid, 0), yaw=yaw, state="none"
        )
        person = make_identity(CONFIG, 1)
        dressed = person.attributes | {"glasses": "yes", "backpack": "yes", "hair_length": "short"}
        labels = draw_person(
            dataclasses.replace(person, attributes=dressed), frame, make_camera("persons", 0, camid), (128, 64)
        )
        return np.bincount(PERSON.part_map(labels).ravel(), minlength=len(PARTS))

    front, back = parts(0.0), parts(np.pi)
    glasses, pack, hair = (PARTS.index(name) for name in ("glasses", "backpack", "hair"))
    assert front[glasses] > 0 == back[glasses]
    assert back[pack] > 2 * front[pack] > 0
    assert back[hair] > 1.3 * front[hair]


def test_written_folders_read_back_as_rgbnt201(tmp_path):
    dataset = synthetic_persons("tiny", num_train=2, num_test=2, frames_per_visit=2).dataset
    root = write_folder_layout(dataset, tmp_path / "RGBNT201")
    back = load_dataset("rgbnt201", root, captions=root)
    for written, read in ((dataset.train, back.train), (dataset.gallery, back.gallery)):
        assert [s.key for s in read] == [s.key for s in written]
        assert [(s.pid, s.camid, s.captions) for s in read] == [(s.pid, s.camid, s.captions) for s in written]
    image = np.asarray(Image.open(back.train[0].images[TIR]).convert("RGB")).astype(int)
    assert np.abs(image - dataset.train[0].images[TIR]).mean() < 3
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(FileExistsError, match="empty folder"):
        write_folder_layout(dataset, root)


def test_folders_without_captions_and_bad_datasets(tmp_path):
    dataset = synthetic_persons("tiny", num_train=1, num_test=1, frames_per_visit=1, caption_source="empty").dataset
    assert not list(write_folder_layout(dataset, tmp_path / "plain").glob("*.json"))
    with pytest.raises(ValueError, match="depth"):
        write_folder_layout(dataclasses.replace(dataset, modalities=("rgb", "nir", "depth")), tmp_path / "x")
    paths = tuple(dataclasses.replace(s, images=(tmp_path / "a.jpg",) * 3) for s in dataset.train)
    with pytest.raises(ValueError, match=dataset.train[0].key):
        write_folder_layout(dataclasses.replace(dataset, train=paths), tmp_path / "y")


def digest(samples):
    found = hashlib.blake2b(digest_size=8)
    for sample in samples:
        truth = sorted((name, str(value)) for name, value in sample.truth.items() if name not in ("parts", "answers"))
        found.update(repr((sample.key, sample.pid, sample.camid, sample.captions, truth)).encode())
        for array in (*sample.images, sample.truth["parts"]):
            found.update(array.tobytes())
    return found.hexdigest()


def test_sets_without_the_later_knobs_keep_every_byte():
    """Digests of the generator before it had clutter, bystanders, evidence and a view gap."""
    size = {"num_train": 3, "num_test": 3, "frames_per_visit": 2}
    plain = synthetic_persons("tiny", **size).dataset
    odd = synthetic_persons("tiny", **size, seed=3, occlusion=1.0, flare=1.0, caption_source="shuffled").dataset
    assert digest((*plain.train, *plain.gallery)) == "3fd7ee464686f7a0"
    assert digest((*odd.train, *odd.gallery)) == "22ba42ea03a93097"


@pytest.mark.parametrize("knob", [{"clutter": 1.0}, {"bystander": 1.0}, {"view_gap": 1.0}, {"evidence": "upper:nir"}])
def test_what_a_knob_adds_says_nothing_of_the_person(knob):
    """With the same body, what lies away from it is the same whoever it is: neither things nor bystanders tell."""
    config = dataclasses.replace(CONFIG, **knob, img_size=(64, 64))
    one, two = (moment(config, body_of=pid, defocus=0.0, motion=0.0) for pid in (PID, 200_007))
    near = (one.truth["parts"] > 0) | (two.truth["parts"] > 0)
    for _ in range(4):
        padded = np.pad(near, 1)
        near = np.any([padded[y : y + 64, x : x + 64] for y in range(3) for x in range(3)], axis=0)
    assert all(np.array_equal(a[~near], b[~near]) for a, b in zip(one.images, two.images, strict=True))


def test_a_bystander_stands_on_either_side_and_is_no_part_of_the_person():
    config = dataclasses.replace(CONFIG, bystander=1.0)
    samples = render_identity(config, PID)
    middle = [np.nonzero(sample.truth["parts"] > 0)[1].mean() for sample in samples]
    assert min(middle) < 14 and max(middle) > 18  # of 32 columns
    alone = [dataclasses.replace(config, bystander=share) for share in (0.0, 1.0)]
    frames = [make_frame(c, make_visit(c, PID, 0), PID, 0, 0) for c in alone]
    assert frames[0].bystander is None and frames[1].bystander.pid > 800_000
    assert frames[1].dx * frames[1].bystander.dx < 0 and abs(abs(frames[1].dx - frames[0].dx) - 0.2) < 1e-9


def test_evidence_is_in_one_part_of_one_modality():
    config = dataclasses.replace(CONFIG, evidence="upper:nir")
    one, two = make_identity(config, 1), make_identity(config, 2)
    assert one.attributes == two.attributes and one.twin == -1
    fields = [field.name for field in dataclasses.fields(one.body)]
    differ = [name for name in fields if not np.array_equal(getattr(one.body, name), getattr(two.body, name))]
    assert differ == ["nir"]
    assert [MATERIALS[i] for i in np.nonzero(one.body.nir != two.body.nir)[0]] == ["upper", "upper_trim", "inner"]
    assert make_identity(dataclasses.replace(CONFIG, evidence="backpack:tir"), 1).attributes["backpack"] == "yes"


def test_a_view_gap_gives_neighbouring_cameras_opposite_sides():
    config = dataclasses.replace(CONFIG, view_gap=1.0)
    for camid, view in ((0, "back"), (1, "front"), (2, "back")):
        frames = [make_frame(config, make_visit(config, pid, camid), pid, camid, 0) for pid in range(1, 13)]
        assert sum(view_of("persons", frame.yaw) == view for frame in frames) >= 10
