"""The server: what it answers, what it refuses, and that no request breaks it."""

import base64
import io
import json
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image

pytest.importorskip("starlette", reason="needs nextreid[serve]")
pytest.importorskip("httpx", reason="the test client needs httpx")

from starlette.testclient import TestClient

import nextreid
from nextreid.app import Limits, make_app
from nextreid.app.server import check_address
from nextreid.engine import calibrate, create_gallery
from nextreid.synthetic import synthetic_persons

TOKEN = "a token that is long enough"


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def data():
    return synthetic_persons("tiny", num_train=6, num_test=4, frames_per_visit=1).dataset


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nextreid.create_model("baseline_tiny")


@pytest.fixture
def gallery(model, tmp_path):
    with create_gallery(tmp_path / "g", model) as gallery:
        yield gallery


@pytest.fixture
def client(gallery):
    return TestClient(make_app(gallery), base_url="http://localhost", raise_server_exceptions=True)


@pytest.fixture
def filled(client, data):
    for sample in data.gallery[:6]:
        body = {
            "images": images(data, sample),
            "key": sample.key,
            "identity": sample.pid,
            "metadata": {"shift": "night"},
        }
        assert client.post("/entries", json=body).json() == {"key": sample.key}
    return client


def images(data, sample, names=None):
    return {m: encoded(i) for m, i in zip(data.modalities, sample.images, strict=True) if names is None or m in names}


def test_what_was_added_is_found_matched_and_forgotten(filled, gallery, data):
    sample = data.gallery[0]
    assert filled.get("/health").json() == {"status": "ok", "entries": 6}
    query = {"images": images(data, sample), "k": 3}
    hits = filled.post("/search", json=query).json()["hits"]
    expected = gallery.search(dict(zip(data.modalities, sample.images, strict=True)), k=3)
    assert [(hit["key"], hit["score"]) for hit in hits] == [(hit.entry.key, hit.score) for hit in expected]
    assert hits[0]["key"] == sample.key and hits[0]["metadata"] == {"shift": "night"}
    only = {"key": [entry.key for entry in data.gallery[1:3]]}
    assert {hit["key"] for hit in filled.post("/search", json={**query, "where": only}).json()["hits"]} == set(
        only["key"]
    )

    asked = {"images": images(data, sample, ("rgb", "tir"))}
    answer = filled.post("/match", json=asked)
    assert answer.status_code == 409 and "not calibrated" in answer.json()["error"]
    calibrate(gallery.encoder.model, data, text=False, cross=True).write(gallery.folder)
    found, direct = (
        filled.post("/match", json=asked).json(),
        gallery.match({m: sample.images[i] for m, i in (("rgb", 0), ("tir", 2))}),
    )
    assert (found["identity"], found["probability"]) == (direct.identity, pytest.approx(direct.probability))

    same = sum(s.pid == sample.pid for s in data.gallery[:6])
    assert filled.delete(f"/identities/{sample.pid}").json() == {"deleted": same}
    assert filled.post("/compact").json() == {"deleted": same} and len(gallery) == 6 - same
    assert filled.delete(f"/entries/{sample.key}").status_code == 404
    assert str(gallery.folder) not in json.dumps(filled.post("/search", json={"text": "a person"}).json())


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "images"),
        ({"images": {}}, 422, "one or more of rgb"),
        ({"images": {"xray": "AAAA"}}, 422, "unknown modality 'xray'"),
        ({"images": {"rgb": "no base64!"}}, 422, "rgb image is not base64"),
        (
            {"images": {"rgb": base64.b64encode(b"GIF89a" + b"0" * 40).decode()}},
            422,
            "rgb image is no PNG, JPEG, WEBP file",
        ),
        ({"images": {"rgb": encoded(np.zeros((300, 300), np.uint8))}}, 422, "300 x 300, more than 10000 pixels"),
        ({"images": {"rgb": encoded(np.zeros((9, 9), np.uint16))}}, 422, "more than 8 bits"),
        ({"images": 3}, 422, "body: images must be"),
        ({"image": {}}, 422, "unknown key 'image'"),
        ({"images": {"rgb": encoded(np.zeros((9, 9), np.uint8))}, "time": "noon"}, 422, "time must be"),
        (b"{", 400, "no JSON"),
        (b'{"k": NaN}', 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"\xff", 400, "no JSON"),
        (b"[]", 422, "the body must be"),
        (b" " * 200_001, 413, "at most 200000 bytes"),
    ],
)
def test_what_does_not_fit_is_named(gallery, body, status, message):
    client = TestClient(make_app(gallery, limits=Limits(bytes=200_000, pixels=10_000)), base_url="http://localhost")
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/entries", content=sent, headers={"content-type": "application/json"})
    assert answer.status_code == status and message in answer.json()["error"]
    assert len(gallery) == 0


def test_a_body_without_a_length_is_cut_too(gallery):
    client = TestClient(make_app(gallery, limits=Limits(bytes=1000)), base_url="http://localhost")
    parts = (b" " * 400 for _ in range(10))
    answer = client.post("/search", content=parts, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_key_is_taken_once(filled, data):
    body = {"images": images(data, data.gallery[0], ("rgb",)), "key": data.gallery[0].key}
    assert filled.post("/entries", json=body).status_code == 409
    assert filled.post("/entries", json={**body, "key": ""}).status_code == 201


def test_pages_of_a_browser_do_not_reach_it(filled):
    form = {"content-type": "text/plain"}  # what a page may send to another origin without asking
    assert filled.post("/search", content=b"{}", headers=form).status_code == 415
    assert filled.get("/health", headers={"host": "evil.example"}).status_code == 400
    assert "access-control-allow-origin" not in filled.get("/health", headers={"origin": "http://evil.example"}).headers


def test_a_token_opens_everything_but_health(gallery):
    client = TestClient(make_app(gallery, token=TOKEN), base_url="http://localhost")
    assert client.get("/health").status_code == 200
    for wrong in ({}, {"authorization": "Bearer x"}, {"authorization": TOKEN}, {"authorization": "Basic " + TOKEN}):
        answer = client.post("/search", json={}, headers=wrong)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert client.delete("/entries/a", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 404
    assert client.get("/openapi.json").json()["security"] == [{"token": []}]


def test_elsewhere_it_needs_a_token():
    assert check_address("127.0.0.1", None) == ("localhost", "127.0.0.1", "127.0.0.1")
    assert check_address("0.0.0.0", TOKEN) == ("*",)
    for host in ("0.0.0.0", "::", "192.168.0.7", "my.host"):
        with pytest.raises(ValueError, match="set a token in the environment variable NEXTREID_TOKEN"):
            check_address(host, None)
    with pytest.raises(ValueError, match="5 characters, take at least 16"):
        check_address("localhost", "short")
    with pytest.raises(ValueError, match="limits must be at least 1; pixels is 0"):
        Limits(pixels=0)


def test_no_more_than_some_are_computed_and_wait(gallery, data, monkeypatch):
    """Six requests at once, two may be inside: two are answered, the others sent away, and all is well after."""
    go, inside, most = threading.Event(), [], []

    def slow(*args, **kwargs):
        inside.append(1)
        most.append(len(inside))
        go.wait(60)
        inside.pop()
        return []

    monkeypatch.setattr(gallery, "search", slow)
    app = make_app(gallery, limits=Limits(at_once=1, waiting=2))
    codes = []
    with TestClient(app, base_url="http://localhost") as client:  # one event loop for all
        threads = [threading.Thread(target=lambda: codes.append(client.post("/search", json={}))) for _ in range(6)]
        for thread in threads:
            thread.start()
        while len(codes) < 4:
            threading.Event().wait(0.01)
        go.set()
        for thread in threads:
            thread.join(60)
        assert sorted(answer.status_code for answer in codes) == [200] * 2 + [503] * 4
        assert max(most) == 1 and client.post("/search", json={}).status_code == 200
    assert next(answer for answer in codes if answer.status_code == 503).headers["retry-after"] == "1"


@pytest.mark.slow
def test_no_request_breaks_it(gallery, data):
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    client = TestClient(make_app(gallery), base_url="http://localhost")
    body = {"images": images(data, data.gallery[0]), "key": "a", "identity": "anna", "metadata": {"shift": 1}}
    assert client.post("/entries", json=body).status_code == 201
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(gallery, hosts=("*",)))
    statuses = set()
    right, wrong = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in (right, wrong) if operation.method == "post" and operation.path != "/compact" else (right,):

            @settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def fuzz(case):
                answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])  # base64 of no image
                statuses.add(answer.status_code)

            fuzz()
    assert statuses >= {200, 404, 422}
    assert gallery.verify() == []
