"""Procedural vehicles: what they share with the persons, what each sensor and each side shows of them."""

import dataclasses
import json

import numpy as np
import pytest

from nextreid.data import load_dataset
from nextreid.data.card import data_card
from nextreid.synthetic import (
    PROFILES,
    VEHICLE_PARTS,
    VEHICLE_PROFILES,
    PersonsConfig,
    VehiclesConfig,
    synthetic_vehicles,
)
from nextreid.synthetic.dataset import render_sample
from nextreid.synthetic.scene import make_frame, make_visit, view_of, visited_cameras
from nextreid.synthetic.vehicle import MARGINALS, make_vehicle, plate_of

CONFIG = VehiclesConfig(img_size=(64, 128))
PID = 200_001
RGB, NIR, TIR = range(3)
CAR = {"vehicle_type": "sedan", "roof_rack": "not present", "exhaust_type": "dual", "spoiler": "not present"}


def moment(yaw=0.7, config=CONFIG, pid=PID, body_of=None, night=True, attributes=CAR, repaint=None, **frame):
    """One sample at the first camera of `pid`, undisturbed, with parts of its frame or body exchanged."""
    camid = visited_cameras(config, pid)[0]
    visit = dataclasses.replace(make_visit(config, pid, camid), night=night, light=0.05 if night else 0.9, engine=1.0)
    clean = {"occluder": None, "flare": None, "defocus": 0.0, "motion": 0.0, "light": visit.light, "state": "off"}
    taken = dataclasses.replace(make_frame(config, visit, pid, camid, 0), yaw=yaw, **clean | frame)
    identity = make_vehicle(config, body_of or pid)
    body = identity.body
    if repaint is not None:
        body = dataclasses.replace(body, color=np.tile(repaint, (len(body.color), 1)))
    attributes = {**identity.attributes, **attributes}
    identity = dataclasses.replace(identity, pid=pid, attributes=attributes, body=body)
    return render_sample(config, identity, visit, taken, camid, 0)


def level(sample, m, part):
    return sample.images[m][sample.truth["parts"] == VEHICLE_PARTS.index(part)].mean()


@pytest.fixture(scope="module")
def tiny():
    return synthetic_vehicles("tiny", num_train=12, num_test=4, frames_per_visit=2)


def test_shape_of_the_set(tiny):
    dataset = tiny.dataset
    assert (dataset.name, dataset.protocol, dataset.object_type) == ("synthetic-vehicles",) * 2 + ("vehicle",)
    assert data_card(dataset.name).protocol == dataset.protocol
    assert len({s.pid for s in dataset.train}) == 12 and dataset.query == dataset.gallery and tiny.pretrain == ()
    for sample in dataset.train:
        assert all(image.shape == (32, 64, 3) and image.dtype == np.uint8 for image in sample.images)
        assert all(np.ptp(image, axis=2).max() == 0 for image in sample.images[1:])
        counts = np.bincount(sample.truth["parts"].ravel(), minlength=len(VEHICLE_PARTS))
        assert counts.tolist() == [sample.truth["visibility"][part] for part in VEHICLE_PARTS]
    assert {s.truth["view"] for s in dataset.train} == {"front", "back", "side", "diagonal"}


def test_same_seed_same_bytes_other_seed_other_bytes(tiny):
    again = load_dataset("synthetic-vehicles", num_train=2, num_test=0, frames_per_visit=2).train
    for a, b in zip(again, tiny.dataset.train, strict=False):  # nor do the other identities matter
        assert (a.key, a.captions, a.truth["attributes"]) == (b.key, b.captions, b.truth["attributes"])
        assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    other = synthetic_vehicles("tiny", seed=1, num_train=1, num_test=0, frames_per_visit=1).dataset.train
    assert not np.array_equal(other[0].images[RGB], again[0].images[RGB])


def test_settings_are_those_of_the_persons_but_three():
    def defaults(config):
        return {name: value for name, value in config.to_dict().items() if name != "img_size"}

    persons, vehicles = defaults(PersonsConfig()), defaults(VehiclesConfig())
    assert set(persons) - set(vehicles) == {"bystander", "evidence"} and set(vehicles) - set(persons) == {"plates"}
    assert persons.items() & vehicles.items() == {(k, v) for k, v in vehicles.items() if k != "plates"}
    assert {n: c.img_size[::-1] for n, c in VEHICLE_PROFILES.items()} == {n: c.img_size for n, c in PROFILES.items()}
    config = VehiclesConfig(night=0.25, plates=False, seed=9)
    assert VehiclesConfig(**json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"^plates must be True or False"):
        VehiclesConfig(plates=1)
    with pytest.raises(ValueError, match=r"setting of synthetic vehicles.*bystander"):
        synthetic_vehicles("tiny", bystander=0.5)


def test_nothing_but_the_vehicle_shows_the_identity():
    """The same moment with another vehicle in it: what neither silhouette nor its blur reaches is equal to the bit."""
    for yaw in (0.0, 0.8, 1.6, 3.1):
        one, two = moment(yaw), moment(yaw, body_of=200_006)
        near = (one.truth["parts"] > 0) | (two.truth["parts"] > 0)
        for _ in range(4):  # optical blur reaches a few pixels at this size
            padded = np.pad(near, 1)
            near = np.any([padded[y : y + 64, x : x + 128] for y in range(3) for x in range(3)], axis=0)
        assert (~near).mean() > 0.15
        assert all(np.array_equal(a[~near], b[~near]) for a, b in zip(one.images, two.images, strict=True))
        assert not np.array_equal(one.images[TIR], two.images[TIR])


def test_plates_differ_are_drawn_and_can_be_left_blank():
    assert len({plate_of(0, pid) for pid in range(1, 900_000, 250)}) == 3600
    assert len({plate_of(0, pid) for pid in range(200_001, 201_001)}) == 1000
    one, other = moment(0.0), moment(0.0, config=dataclasses.replace(CONFIG, seed=0, plates=False))
    assert one.truth["plate"] == plate_of(0, PID) and other.truth["plate"] == ""
    changed = np.any(one.images[RGB] != other.images[RGB], axis=2)
    plate = one.truth["parts"] == VEHICLE_PARTS.index("plate")
    assert changed.any() and changed[plate].mean() > 20 * changed[~plate].mean()
    assert not any(one.truth["plate"] in sentence for caption in one.captions for sentence in caption)


def test_sides_show_what_is_on_them():
    def shown(yaw, *parts):
        seen = moment(yaw, attributes=CAR | {"roof_rack": "present"}).truth["visibility"]
        return [seen[part] > 0 for part in parts]

    assert shown(0.0, "grille", "headlights", "plate", "exhaust", "taillights") == [True, True, True, False, False]
    assert shown(np.pi, "taillights", "exhaust", "plate", "grille", "headlights") == [True, True, True, False, False]
    for side in (-np.pi / 2, np.pi / 2):
        assert shown(side, "wheels", "windows", "roof rack", "plate", "badge") == [True, True, True, False, False]
    views = [view_of("vehicles", yaw) for yaw in (0.1, -0.8, 1.6, 2.3, 3.0)]
    assert views == ["front", "diagonal", "side", "diagonal", "back"]


def test_left_and_right_are_mirrored():
    """A vehicle turned to the left shows what it shows turned to the right, but for the light and the place."""
    left, right = (moment(yaw, dx=0.0).truth["parts"] for yaw in (1.0, -1.0))
    assert (left == right[:, ::-1]).mean() > 0.93


def test_each_sensor_sees_its_own():
    rear, front = moment(np.pi), moment(0.0)
    assert level(rear, TIR, "exhaust") > level(rear, TIR, "body") + 60 > level(rear, TIR, "windows") + 60
    assert level(front, TIR, "hood") > level(front, TIR, "body") + 30  # the engine runs
    side = moment(np.pi / 2)
    assert level(side, TIR, "wheels") > level(side, TIR, "body") + 30
    lit = moment(0.0, state="on")
    for m in (RGB, NIR):
        assert level(lit, m, "headlights") > level(front, m, "headlights") + 30
    assert abs(level(lit, RGB, "roof") - level(front, RGB, "roof")) < 1
    assert level(front, NIR, "plate") > level(front, NIR, "windows") + 60  # it throws the camera's lamp back
    assert np.array_equal(moment(np.pi, night=False).images[TIR], rear.images[TIR])  # by day as by night


def test_colour_is_in_rgb_alone():
    red, plain = moment(repaint=(0.7, 0.1, 0.1)), moment()
    assert not np.array_equal(red.images[RGB], plain.images[RGB])
    assert all(np.array_equal(red.images[m], plain.images[m]) for m in (NIR, TIR))
    bodies = [make_vehicle(CONFIG, pid).body for pid in range(1, 150)]
    assert abs(np.corrcoef([b.nir[0] for b in bodies], [b.color[0].mean() for b in bodies])[0, 1]) < 0.25
    tied = [make_vehicle(dataclasses.replace(CONFIG, nir_corr=1.0), pid).body for pid in range(1, 20)]
    assert all(np.allclose(b.nir, b.color.mean(1)) for b in tied)


def test_attributes_come_as_often_as_written_and_twins_share_them():
    vehicles = [make_vehicle(CONFIG, pid) for pid in range(1, 801)]
    for name in ("vehicle_type", "color", "branding"):
        drawn = [v.attributes[name] for v in vehicles]
        whole = sum(MARGINALS[name].values())
        assert all(abs(drawn.count(value) / 800 - share / whole) < 0.07 for value, share in MARGINALS[name].items())
    twins = [v for v in vehicles if v.twin >= 0]
    assert len(twins) == 320
    for one in twins[:20]:
        other = make_vehicle(CONFIG, one.twin)
        assert other.attributes == one.attributes and other.body.plate != one.body.plate
        assert other.body.length != one.body.length and not np.allclose(other.body.nir, one.body.nir)


@pytest.mark.parametrize("kind", MARGINALS["vehicle_type"])
def test_every_type_fits_its_image_from_all_sides(kind):
    for yaw in np.linspace(-np.pi, np.pi, 7):
        cover = moment(yaw, attributes={"vehicle_type": kind}, dx=0.0, dy=0.0).truth["parts"] > 0
        rows, columns = np.nonzero(cover)
        assert rows.min() > 1 and rows.max() < 62 and columns.min() > 1 and columns.max() < 126
        assert 0.12 < cover.mean() < 0.65 and max(np.ptp(rows) / 64, np.ptp(columns) / 128) > 0.65


def test_captions_name_colours_in_rgb_and_what_is_true_when_exact():
    exact = synthetic_vehicles(
        "tiny", num_train=4, num_test=0, frames_per_visit=1, caption_source="exact"
    ).dataset.train
    for sample in exact:
        known, (rgb, nir, tir) = sample.truth["attributes"], (" ".join(c) for c in sample.captions)
        assert f" {known['color']} {known['branding']} {known['vehicle_type']} viewed from the " in rgb
        assert f" {known['color']} " not in nir + tir and "light" not in tir.replace("headlights", "").replace(
            "taillights", ""
        )
        assert f"Roof rack is {known['roof_rack']}." in tir and sample.truth["plate"] not in rgb
