"""One real scene in three spectra, TNO's, described by a scripted server: what each spectrum adds to the captions."""

import os
from pathlib import Path

import pytest

from benchmarks.speed.caption_server import Behaviour, CaptionServer, image_name
from nextreid.captioning.client import Server
from nextreid.captioning.export import describe_images
from nextreid.captioning.pipeline import CaptionRequest, index_images, run_captions
from nextreid.captioning.store import Store
from nextreid.captioning.throttle import RateLimits

MODALITIES = ("rgb", "nir", "tir")
TNO = Path(os.environ.get("NEXTREID_REAL") or "no folder") / "tno"
SEEN = {  # a dark jeep before a house: what the thermal image shows is hidden in the others
    "rgb": {"vehicle_type": ("SUV", 0.6), "color": ("black", 0.5), "roof_rack": ("not present", 0.9)},
    "nir": {"vehicle_type": ("SUV", 0.7), "illumination": ("dim", 0.8), "spoiler": ("not present", 0.6)},
    "tir": {"vehicle_type": ("SUV", 0.9), "roof_rack": ("present", 0.8), "color": ("green", 0.9)},
}

pytestmark = pytest.mark.skipif(not TNO.is_dir(), reason="NEXTREID_REAL names no folder with tno/rgb, tno/nir, tno/tir")


def test_the_spectra_of_a_scene_complement_each_other(tmp_path):
    requests = [CaptionRequest("Marne_04.png", m, TNO / m / "Marne_04.png") for m in MODALITIES]
    sent = {request.modality: request.prepared() for request in requests}
    assert all(max(image.size) == 512 for image in sent.values())  # of 620 x 450
    answers = {("m", image_name(request.encoded())): SEEN[request.modality] for request in requests}
    assert len(answers) == 3
    with CaptionServer(Behaviour(answers=answers)).running() as server:
        settings = {"limits": RateLimits(concurrency=2, backoff=0.001, timeout=60), "probing": True}
        done = run_captions(requests, "vehicle", [Server(server.url, "m")], tmp_path / "calls", **settings)
    assert (done.jobs, done.done, done.failed) == (3, 3, 0)
    with Store(tmp_path / "calls") as store:
        descriptions, counts = describe_images(index_images(requests), "vehicle", ["m"], store)
    assert counts["ok"] == 3
    captions = {description.modality: description for description in descriptions}
    assert set(captions) == set(MODALITIES)
    assert all(found.answers["roof_rack"].value == "present" for found in captions.values())  # seen by one is enough
    assert "color" not in captions["tir"].answers and captions["rgb"].answers["color"].value == "black"
    assert "illumination" in captions["nir"].answers and "illumination" not in captions["tir"].answers
    assert "black" in captions["rgb"].caption and "green" not in captions["tir"].caption
    assert len({found.caption for found in captions.values()}) == 3
