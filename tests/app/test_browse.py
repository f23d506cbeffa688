"""The pages of ``nextreid browse``: what each shows, what is refused, and that nothing hostile gets through."""

import io
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace
from html import escape
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette", reason="needs nextreid[browse]")
pytest.importorskip("jinja2", reason="needs nextreid[browse]")
pytest.importorskip("python_multipart", reason="needs nextreid[browse]")
pytest.importorskip("httpx", reason="the test client needs httpx")

from starlette.testclient import TestClient

import nextreid
from nextreid.app import Limits
from nextreid.app.browse import Library, RankOptions, make_browser, sort_sources
from nextreid.app.browse.jobs import Jobs, StillRunning
from nextreid.cli import main
from nextreid.data import ReIDDataset, load_dataset
from nextreid.engine import calibrate, create_gallery, evaluate, get_recipe, train
from nextreid.engine.gallery import add_samples
from nextreid.models import save_model
from nextreid.synthetic import synthetic_persons

EVIL = "<script>alert(1)</script>"
PATIENT = {"jobs": Jobs(patience=60)}


@pytest.fixture(scope="module")
def data():
    return synthetic_persons("tiny", num_train=4, num_test=5, frames_per_visit=2).dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """A run of one epoch, two models, a gallery with words, and images in files with a manifest."""
    root = tmp_path_factory.mktemp("browse")
    torch.manual_seed(0)
    model = nextreid.create_model("next_tiny")
    train(
        model,
        data,
        get_recipe("tiny", epochs=1, num_ids=2, num_instances=2),
        root / "runs" / "one",
        progress=False,
    )
    save_model(nextreid.create_model("baseline_tiny"), root / "baseline")
    rows = ["split,pid,camid,rgb,nir,tir"]
    for split, samples in data.splits().items():
        for sample in samples:
            files = []
            for modality, image in zip(data.modalities, sample.images, strict=True):
                files.append(f"{modality}/{split}_{sample.key[:-4]}.png")
                (root / "own" / modality).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(root / "own" / files[-1])
            rows.append(f"{split},{sample.pid},{sample.camid},{','.join(files)}")
    (root / "own" / "list.csv").write_text("\n".join(rows))
    own = load_dataset("manifest", root / "own" / "list.csv")
    with create_gallery(root / "people", root / "runs" / "one" / "last", words=True) as gallery:
        add_samples(gallery, own.gallery, attributes=lambda sample: {"shift": "night"})
        calibrate(gallery.encoder.model, data, split="test", allow_test=True, text=False).write(gallery.folder)
    return root


@pytest.fixture(scope="module")
def library(folder, data):
    run = next((folder / "runs").iterdir())
    own = load_dataset("manifest", folder / "own" / "list.csv")
    return Library(
        runs={EVIL: run},
        models={"baseline": str(folder / "baseline")},
        galleries={"people": str(folder / "people")},
        datasets={"persons": data, "own": own},
        folders=[folder / "own"],
    )


@pytest.fixture(scope="module")
def client(library, tmp_path_factory):
    app = make_browser(library, cache=tmp_path_factory.mktemp("cache"), **PATIENT)
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=True)


def links(page):
    """Addresses that a page leads to and loads."""
    found = re.findall(r'(?:href|src|action)="([^"]*)"', page.text)
    return [address.replace("&amp;", "&") for address in found if not address.startswith("data:")]


def test_every_page_that_a_page_leads_to_is_there_and_nothing_else_is_loaded(client):
    """Walk from the first page; each page escapes the run's name, has no script and no address of another machine."""
    left, seen = ["/"], set()
    while left:
        address = left.pop(0)
        kind = re.sub(r"\d+", "0", urlsplit(address).path) + str(sorted(parse_qs(urlsplit(address).query)))
        if kind in seen or address.startswith("#"):
            continue
        seen.add(kind)
        page = client.get(address)
        assert page.status_code == 200 or address.endswith("/search"), (address, page.text)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "no-store" in page.headers["cache-control"]
        if page.headers["content-type"].startswith("text/html"):
            assert "<script" not in page.text and "style=" not in page.text
            assert not [link for link in links(page) if not link.startswith(("/", "?"))]
            left += [link if link.startswith("/") else urlsplit(address).path + link for link in links(page)]
    views = (
        "/run/0",
        "/runs",
        "/dataset/0",
        "/dataset/0/sample/0",
        "/dataset/0/check",
        "/dataset/0/captions",
        "/ranks",
        "/query",
        "/compare",
        "/gallery/0",
        "/dataset/0/stack/0",
        "/dataset/0/image/0/0",
        "/gallery/0/stack",
    )
    assert not [view for view in views if not any(kind.startswith(view) for kind in seen)]


def test_a_run_shows_its_recipe_where_it_came_from_and_its_curves(client, library):
    page = client.get("/run/0").text
    assert escape(EVIL) in page and page.count("<svg") >= 2
    for part in ("num_instances", "synthetic-persons", "threads", "digest"):
        assert part in page
    assert "loss by step" in page and "gradient norm by step" in page
    both = client.get("/runs?run=0").text
    assert "mAP, % by epoch" in both and f"{escape(EVIL)}, epoch 1:" in both


def test_rank_lists_are_those_of_evaluate(client, library, data):
    """Metrics, the order of the queries, and the filters, against an evaluation of the same checkpoint."""
    model = nextreid.create_model(library.models["baseline"], pretrained=True)
    result = evaluate(model, data, missing=["tir"], text=False).result
    address = "/ranks?model=0&dataset=0&missing=tir&text=no"
    page = client.get(address).text
    assert f"mAP <b>{100 * result.mAP:.1f}</b>" in page and "without tir" in page
    keys = [sample.key for sample in data.query]
    worst = [keys[i] for i in np.lexsort((keys, result.ap))]
    assert re.findall(r"<h3><a [^>]*>([^<]*)</a>", page) == worst[:10]
    assert re.findall(r"<h3><a [^>]*>([^<]*)</a>", client.get(f"{address}&page=2").text) == worst[10:20]
    for found, expected in (("right", result.first == 1), ("wrong", result.first > 1)):
        text = client.get(f"{address}&found={found}").text
        assert f"of {expected.sum()} queries" in text or (not expected.any() and "no queries" in text)
        assert text.count('class="card right"') >= (expected.sum() > 0) * (found == "right")
    query = data.query[7]
    text = client.get(f"{address}&key={query.key.upper()}&identity={data.label_name('pid', query.pid)}").text
    assert re.findall(r"<h3><a [^>]*>([^<]*)</a>", text) == [query.key]
    assert "no queries" in client.get(f"{address}&camera=nowhere").text


def test_a_ranking_is_made_once(library, monkeypatch):
    from nextreid.app.browse import ranks

    calls = []
    real = ranks.rank_queries
    monkeypatch.setattr(ranks, "rank_queries", lambda *args: calls.append(1) or real(*args))
    client = TestClient(make_browser(library, jobs=Jobs(patience=60)), base_url="http://localhost")
    for address in ("/ranks?dataset=0", "/ranks?dataset=0&page=2&found=wrong", "/query?dataset=0&sample=%d"):
        assert (
            client.get(address % len(library.datasets["persons"].train) if "%" in address else address).status_code
            == 200
        )
    assert len(calls) == 1
    client.get("/ranks?dataset=0&missing=rgb")
    assert len(calls) == 2


def test_a_query_shows_captions_and_masks(client, library, data):
    at = len(data.train)
    page = client.get(f"/query?dataset=0&model=1&sample={at}&masks=1").text
    for caption in data.query[0].captions:
        assert escape(" ".join(caption)) in page
    (masks,) = [link for link in links(client.get(f"/query?dataset=0&model=1&sample={at}&masks=1")) if "/masks" in link]
    assert Image.open(io.BytesIO(client.get(masks).content)).width > 300
    other = client.get(f"/query?dataset=0&model=0&sample={at}&masks=1").text  # a model without experts
    assert ("/masks?" in other) != ('class="problem"' in other)
    assert client.get("/query?dataset=0&model=1&sample=0").status_code == 404


def test_two_models_are_compared_on_the_queries_where_they_differ_most(client, library, data):
    first, second = (
        evaluate(nextreid.create_model(name, pretrained=True), data).result
        for name in (library.models["baseline"], str(library.runs[EVIL] / "last"))
    )
    page = client.get("/compare?dataset=0&model=0&other=1").text
    gap = second.ap - first.ap
    shown = re.findall(r"<h2>([^<]*): ([+-][\d.]+)</h2>", page)
    order = np.argsort(-np.abs(gap), kind="stable")[:5]
    assert shown == [(data.query[i].key, f"{100 * gap[i]:+.1f}") for i in order]
    assert f"better on {(gap > 0).sum()} queries and worse on {(gap < 0).sum()}" in page


def test_samples_are_filtered_and_paged(client, data):
    first, second = client.get("/dataset/0").text, client.get("/dataset/0?page=2").text
    count = sum(map(len, data.splits().values()))
    assert f"1–48 of {count} samples" in first and f"49–{min(96, count)} of {count}" in second
    one = data.query[0]
    page = client.get(f"/dataset/0?split=query&identity={data.label_name('pid', one.pid)}").text
    assert f"of {sum(sample.pid == one.pid for sample in data.query)} samples" in page
    assert "no samples" in client.get("/dataset/0?without=nir").text
    image = Image.open(io.BytesIO(client.get(f"/dataset/0/image/{len(data.train)}/0").content))
    assert np.abs(np.asarray(image, float) - one.images[0]).mean() < 8
    tall = Image.open(io.BytesIO(client.get("/dataset/0/stack/0").content))
    assert (
        tall.height > 3 * 140 and Image.open(io.BytesIO(client.get("/dataset/0/stack/0?hide=nir").content)).height < 300
    )


def test_a_gallery_is_searched_by_images_and_words_and_matches(client, folder):
    own = folder / "own"
    names = {m: sorted((own / m).glob("gallery_*.png"))[0] for m in ("rgb", "nir", "tir")}
    sent = {m: (path.name, path.read_bytes(), "image/png") for m, path in names.items()}
    page = client.post("/gallery/0/search", files=sent)
    assert page.status_code == 200
    assert f"images of rgb/{names['rgb'].name}" in page.text.partition("nearest entries")[2].partition("</li>")[0]
    assert re.search(r'class="verdict">(identity|unknown)', page.text) and "data:image/jpeg" in page.text
    assert "nearest entries" in client.get("/gallery/0?words=a person in red").text
    key = f"rgb/{names['rgb'].name}"
    assert "shift" in client.get("/gallery/0", params={"key": key}).text
    assert "no entries" in client.get("/gallery/0", params={"identity": "nobody"}).text
    assert client.get("/gallery/0/stack", params={"key": key}).headers["content-type"] == "image/jpeg"
    assert client.get("/gallery/0/stack", params={"key": "other"}).status_code == 404


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ({}, 422, "no image was sent"),
        ({"rgb": b"GIF89a" + b"0" * 99}, 422, "the rgb image is no PNG"),
        ({"xray": None}, 422, "unknown modality"),
        ({"rgb": b"0" * 300_000}, 413, "at most 200000 bytes"),
        ({"rgb": (200, 200)}, 422, "more than 10000 pixels"),
    ],
)
def test_what_is_sent_is_bounded(library, sent, status, message):
    def content(given):
        buffer = io.BytesIO()
        Image.new("RGB", given or (9, 9)).save(buffer, "PNG")
        return buffer.getvalue()

    app = make_browser(library, limits=Limits(bytes=200_000, pixels=10_000))
    files = {name: (EVIL, given if isinstance(given, bytes) else content(given)) for name, given in sent.items()}
    page = TestClient(app, base_url="http://localhost").post("/gallery/0/search", files=files or None)
    assert page.status_code == status and message in page.text and "Traceback" not in page.text


def test_other_pages_and_other_names_are_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
        {"sec-fetch-site": "same-site"},
    ):
        assert client.post("/gallery/0/search", files={"rgb": b"x"}, headers=headers).status_code == 403
    assert client.get("/dataset/0/stack/0", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=followed).status_code == 200
    ours = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    assert client.post("/gallery/0/search", files={"rgb": b"x"}, headers=ours).status_code == 422
    assert client.post("/").status_code == 405


@pytest.mark.parametrize(
    ("address", "status", "message"),
    [
        ("/nowhere", 404, "no such page"),
        ("/dataset/9", 404, "there is no dataset 9"),
        ("/dataset/0/sample/999999", 404, "there is no sample of persons 999999"),
        ("/dataset/0/image/0/7", 404, "there is no modality 7"),
        ("/dataset/0/stack/-1", 404, ""),
        ("/dataset/0?page=x", 422, "page must be a whole number"),
        ("/dataset/0?page=99999", 200, "next"),
        ("/dataset/0?split=<b>", 422, "&lt;b&gt;"),
        ("/run/5", 404, "there is no run 5"),
        ("/runs?run=x", 422, "run must be a whole number of 0 to 0"),
        ("/ranks?model=9", 404, "unknown model"),
        ("/ranks?missing=xray", 422, "unknown modality"),
        ("/ranks?missing=rgb&missing=nir&missing=tir", 422, "leave at least one"),
        ("/ranks?order=<b>", 422, "&lt;b&gt;"),
        ("/gallery/0?metadata=x", 422, "NAME=VALUE"),
        ("/gallery/3", 404, "there is no gallery 3"),
        ("/dataset/1/captions", 422, "no captions"),
        (f"/dataset/0?key={'x' * 2000}", 422, "2000 characters"),
        (f"/dataset/{'9' * 5000}", 422, ""),
        (f"/dataset/0?page={'0' * 30}1", 422, "page must be"),
        ("/static/../server.py", 404, ""),
        ("/static/%2e%2e/server.py", 404, ""),
        ("/dataset/0/stack/..%2f..%2fetc%2fpasswd", 404, ""),
    ],
)
def test_bad_addresses_are_named(client, address, status, message):
    page = client.get(address)
    assert (
        page.status_code == status and message in page.text and "Traceback" not in page.text and "<b>&" not in page.text
    )


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_only_images_of_the_given_folders_are_shown(tmp_path):
    """Files elsewhere, links that lead out, files that are no images, and files that are gone."""
    (tmp_path / "given").mkdir()
    (tmp_path / "secret").mkdir()
    Image.new("RGB", (32, 64), (200, 30, 30)).save(tmp_path / "secret" / "a.png")
    (tmp_path / "given" / "link.png").symlink_to(tmp_path / "secret" / "a.png")
    (tmp_path / "given" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "given" / "text.png").write_text(EVIL)
    Image.new("RGB", (32, 64), (30, 200, 30)).save(tmp_path / "given" / "good.png")
    given = tmp_path / "given"
    paths = [
        given / "good.png",
        given / "link.png",
        given / "out" / "a.png",
        given / ".." / "secret" / "a.png",
        given / "text.png",
        given / "gone.png",
    ]
    sample = synthetic_persons("tiny", num_train=2, num_test=2).dataset.train[0]
    samples = tuple(
        replace(sample, key=f"{i}{EVIL}\udce9", images=(path,), captions=((EVIL,),)) for i, path in enumerate(paths)
    )
    dataset = ReIDDataset(EVIL, ("rgb",), "person", "none", samples, (), (), (EVIL,), {"pid": {sample.pid: EVIL}})
    client = TestClient(make_browser(Library(datasets={EVIL: dataset}, folders=[given])), base_url="http://localhost")
    codes = [client.get(f"/dataset/0/image/{i}/0").status_code for i in range(len(paths))]
    assert codes == [200, 403, 403, 403, 422, 404]
    for i in range(1, len(paths)):
        stack = np.asarray(Image.open(io.BytesIO(client.get(f"/dataset/0/stack/{i}").content)), float)
        assert not ((stack[..., 0] > 150) & (stack[..., 1] < 80) & (stack[..., 2] < 80)).any()  # none of the red one
        page = client.get(f"/dataset/0/sample/{i}").text
        assert 'class="problem"' in page and escape(str(paths[i])) in page
    for address in ("/", "/dataset/0", "/dataset/0/sample/0", "/dataset/0/captions"):
        page = client.get(address)
        assert page.status_code in (200, 202) and "<script" not in page.text and escape(EVIL) in page.text


def test_a_broken_run_is_shown_as_far_as_it_can_be_read(tmp_path):
    (tmp_path / "recipe.json").write_text('{"recipe": {"name": "<script>"')
    (tmp_path / "metrics.jsonl").write_text(
        '{"epoch": 1, "loss": {"total": 2.5}, "lr": "<script>"}\n'
        '{"epoch": 2, "loss": 7, "evaluation": {"mAP": "x"}}\n{no\n'
    )
    client = TestClient(make_browser(Library(runs={"x": tmp_path})), base_url="http://localhost")
    for address in ("/", "/run/0", "/runs"):
        page = client.get(address)
        assert page.status_code == 200 and "<script" not in page.text
        assert "recipe.json is not JSON" in page.text and "metrics.jsonl, line 3, is not JSON" in page.text
    assert "total, epoch 1: 2.5" in client.get("/run/0").text
    assert client.get("/ranks").status_code == 422


def test_findings_have_the_images_of_their_samples(folder):
    own = folder / "broken"
    shutil.copytree(folder / "own", own)
    broken = sorted((own / "nir").glob("train_*.png"))[2]
    broken.write_bytes(b"x")
    library = Library(datasets={"own": load_dataset("manifest", own / "list.csv")}, folders=[own])
    client = TestClient(make_browser(library, jobs=Jobs(patience=60)), base_url="http://localhost")
    page = client.get("/dataset/0/check").text
    finding = page.partition("images that cannot be read: 1")[2].partition("</section>")[0]
    assert "not usable" in page and f'alt="images of rgb/{broken.name}"' in finding
    ranked = client.get("/ranks")
    assert ranked.status_code == 422 and "no model was given" in ranked.text


def test_what_cannot_be_read_stops_a_ranking_by_name_or_is_left_out(folder, data):
    own = folder / "unreadable"
    shutil.copytree(folder / "own", own)
    broken = sorted((own / "tir").glob("query_*.png"))[3]
    broken.write_bytes(b"x")
    dataset = load_dataset("manifest", own / "list.csv")
    library = Library(models={"m": str(folder / "baseline")}, datasets={"own": dataset}, folders=[own])
    number = len(dataset.train) + [sample.images[2] for sample in dataset.query].index(broken)

    def ranks(on_error, address="/ranks"):
        app = make_browser(library, options=RankOptions(on_error=on_error), jobs=Jobs(patience=60))
        return TestClient(app, base_url="http://localhost").get(address)

    page = ranks("raise")
    assert page.status_code == 422 and broken.name in page.text and "--on-error skip" in page.text
    assert f"of {len(dataset.query)} queries" in ranks("mask").text
    left, rest = len(dataset.query) - 1, ranks("skip").text
    assert f"of {left} queries" in rest and f"rgb/{broken.name}<" not in rest
    assert "was left out" in ranks("skip", f"/query?sample={number}").text
    query = dataset.query[-1]  # its place is another one now, its number is not
    shown = ranks("skip", f"/query?sample={len(dataset.train) + len(dataset.query) - 1}").text
    assert f"<h1>{query.key}</h1>" in shown


def test_images_of_entries_outside_of_the_given_folders_are_not_shown(client, folder):
    library = Library(galleries={"people": str(folder / "people")})
    outside = TestClient(make_browser(library), base_url="http://localhost")
    address = re.search(r'src="(/gallery/0/stack[^"]*)"', outside.get("/gallery/0").text)[1]
    hidden, shown = (
        np.asarray(Image.open(io.BytesIO(each.get(address).content)).convert("L"), float) for each in (outside, client)
    )
    assert np.median(hidden) > 230 > np.median(shown)  # hatched, and an image


def test_thumbnails_are_made_once_and_bounded(tmp_path, data, monkeypatch):
    from nextreid.app.browse import images

    made = []
    real = images._tiles
    monkeypatch.setattr(images, "_tiles", lambda opened: made.append(1) or real(opened))
    thumbnails = images.Thumbnails(tmp_path / "cache", [], most=20_000)
    shown = data.train[0].images
    first, place = thumbnails.stack(shown)
    thumbnails.keep(first, place)
    assert images.Thumbnails(tmp_path / "cache", []).stack(shown) == (first, None) and len(made) == 1
    for sample in data.train[1:12]:
        thumbnails.keep(*thumbnails.stack(sample.images))
        os.utime(place, (0, 0)) if place.exists() else None
    files = list((tmp_path / "cache").rglob("*.jpg"))
    assert 0 < sum(path.stat().st_size for path in files) <= 20_000 and not place.exists()
    assert os.name == "nt" or os.stat(tmp_path / "cache").st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    thumbnails = images.Thumbnails(tmp_path / "file" / "cache", [])
    thumbnails.keep(*thumbnails.stack(shown))  # cannot be written: a warning
    assert thumbnails.stack(shown)[0] == first


def test_jobs_are_done_once_wait_and_are_bounded():
    jobs, go, done = Jobs(bytes=10, count=2, patience=0.01), threading.Event(), []

    def work(progress):
        progress(3, 7)
        go.wait(10)
        done.append(1)
        return "result"

    with pytest.raises(StillRunning) as waiting:
        while True:
            jobs.get("a", "what", work)
            time.sleep(0.01)
    with pytest.raises(StillRunning):
        jobs.get("a", "what", work)
    assert (waiting.value.job.done, waiting.value.job.total) == (3, 7)
    go.set()
    patient = Jobs(bytes=10, count=2, patience=10)
    assert patient.get("a", "what", work) == patient.get("a", "what", work) == "result" and len(done) <= 2
    for key in "bcd":
        patient.get(key, "what", lambda progress: 1, lambda result: 4)
    time.sleep(0.05)
    assert len(patient._jobs) == 2

    def fail(progress):
        raise ValueError("no")

    for _ in range(2):  # tried again
        with pytest.raises(ValueError, match="no"):
            patient.get("e", "what", fail)


def test_a_page_that_waits_looks_again_by_itself(library):
    app = make_browser(library, jobs=Jobs(patience=0))
    client = TestClient(app, base_url="http://localhost")
    page = client.get("/dataset/0/check")
    assert page.status_code == 202 and 'http-equiv="refresh"' in page.text and "check persons" in page.text
    for _ in range(600):
        page = client.get("/dataset/0/check")
        if page.status_code == 200:
            break
        time.sleep(0.05)
    assert page.status_code == 200


def test_words_of_the_command_line_name_what_they_are(folder, tmp_path):
    run = next((folder / "runs").iterdir())
    found = sort_sources(
        [
            str(folder / "runs"),
            str(folder / "people"),
            str(folder / "own" / "list.csv"),
            "next_tiny",
            str(folder / "baseline"),
            "synthetic-persons",
            str(tmp_path),
        ]
    )
    assert found.runs == [run] and found.galleries == [str(folder / "people")]
    assert found.models == ["next_tiny", str(folder / "baseline")]
    assert found.datasets == [str(folder / "own" / "list.csv"), "synthetic-persons", str(tmp_path)]
    with pytest.raises(FileNotFoundError, match="Did you mean 'synthetic-persons'"):
        sort_sources(["synthetic-person"])


def test_the_command_gives_what_its_words_name(folder, monkeypatch, capsys):
    from nextreid.app import browse as package

    given = []
    monkeypatch.setattr(package, "browse", lambda library, **options: given.append((library, options)))
    own, people = folder / "own", str(folder / "people")
    words = ["browse", str(folder / "runs"), people, str(own / "list.csv"), "next_tiny", "--images", str(folder)]
    assert main([*words, "--no-cache", "--on-error", "mask", "--device", "cpu", "--port", "9"]) == 0
    library, options = given[0]
    assert list(library.models) == ["next_tiny"] and list(library.galleries.values()) == [people]
    assert len(library.datasets["list.csv"].query) and set(library.folders) == {folder, own}
    assert options["cache"] is None and options["port"] == 9 and options["options"].on_error == "mask"
    options["started"]("http://127.0.0.1:9")
    assert "1 run, 1 model, 1 gallery, 1 dataset: http://127.0.0.1:9" in capsys.readouterr().out
    monkeypatch.undo()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["browse", "next_tiny", "--port", port]) == 2
        assert f"port {port} cannot be used" in capsys.readouterr().err
    monkeypatch.chdir(folder / "own")
    for wrong, message in (
        ([], "there is no run and no gallery in this folder"),
        (["nothing"], "there is no file and no folder nothing"),
        (["next_tiny", "--images", "nowhere"], "there is no folder nowhere"),
        (["next_tiny", "--port", "0"], "--port takes"),
    ):
        assert main(["browse", *wrong]) == 2 and message in capsys.readouterr().err
    assert len(given) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_chromium_loads_a_page_with_its_style_and_images(library, tmp_path):
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(make_browser(library), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        shot = tmp_path / "page.png"
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={shot}",
            "--window-size=1000,900",
            f"http://127.0.0.1:{port}/dataset/0",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=500)
    finally:
        server.should_exit = True
        thread.join(10)
    pixels = np.asarray(Image.open(shot).convert("RGB"), int)
    assert ((pixels[..., 0] == 244) & (pixels[..., 1] == 246)).sum() > 5000  # the style's background of the header
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500  # images
