"""From images to merged answers: what is asked, what is stored, what stops a run, what a kill costs."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from benchmarks.speed.caption_server import REPLIES, TRANSPORT, Behaviour, CaptionServer, image_name
from nextreid.captioning import get_schema, runner
from nextreid.captioning.client import Server
from nextreid.captioning.image import data_url
from nextreid.captioning.pipeline import (
    CaptionRequest,
    Sampling,
    caption_jobs,
    collect,
    estimate,
    index_images,
    merge_sample,
    run_captions,
)
from nextreid.captioning.store import Store
from nextreid.captioning.throttle import RateLimits

QUICK = RateLimits(concurrency=4, backoff=0.001, timeout=60)


def images(count, modalities=("rgb", "nir", "tir"), seed=0):
    rng = np.random.default_rng(seed)
    return [
        CaptionRequest(f"{n:04d}.jpg", m, rng.integers(0, 255, (16, 8, 3), dtype=np.uint8))
        for n in range(count)
        for m in modalities
    ]


@pytest.fixture
def server():
    with CaptionServer(Behaviour()).running() as running:
        yield running


def go(requests, server, path, models=("m",), schema="person", price=None, **settings):
    servers = [Server(server.url, model, price=price) for model in models]
    settings = {"limits": QUICK, "probing": False} | settings
    return run_captions(requests, schema, servers, path, **settings)


def answered(requests, path, models=("m",), schema="person", sampling=None):
    seen = index_images(requests)
    with Store(path) as store:
        return collect(seen, schema, models, store, sampling)


@pytest.mark.parametrize("schema", ["person", "vehicle"])
def test_every_image_is_asked_about_once_and_read_back(server, tmp_path, schema):
    requests = images(4)
    done = go(requests, server, tmp_path / "c", ("a", "b"), schema, probing=True)
    assert (done.jobs, done.done, done.calls, done.failed) == (24, 24, 24, 0) and set(server.paid.values()) == {1}
    found = answered(requests, tmp_path / "c", ("a", "b"), schema)
    assert found.counts["ok"] == 24 and len(found.answers) == 4
    annotations = found.answers["all", "0000.jpg"]
    asked = {m: {f.name for f in get_schema(schema).for_modality(m)} for m in annotations}
    assert all(set(answers) == asked[m] for m, annotators in annotations.items() for answers in annotators.values())
    merged = merge_sample(annotations, schema)
    name = get_schema(schema).merged[0]
    assert len({m.answers[name] for m in merged.values() if name in m.answers}) == 1
    again = go(requests, server, tmp_path / "c", ("a", "b"), schema, probing=True)
    assert (again.jobs, again.calls) == (0, 0) and len(server.bodies) == 24 + 4  # probes: two a model


def test_nothing_but_pixels_and_prompt_is_sent(server, tmp_path):
    requests = [CaptionRequest("0042_c1_secret.jpg", "rgb", images(1)[0].image, "secretsplit")]
    go(requests, server, tmp_path / "c")
    sent = str(server.bodies) + str(server.headers)
    assert "secret" not in sent and "0042" not in sent
    assert (server.bodies[0]["messages"]) == [get_schema("person").instructions("rgb")]


def test_the_published_prompt_is_sent_alone_and_its_answers_are_read(server, tmp_path):
    requests, schema = images(1), get_schema("person", prompt="paper")
    assert go(requests, server, tmp_path / "c", schema=schema).calls == 3
    assert {body["messages"][0] for body in server.bodies} == {schema.prompt}
    assert not any("response_format" in body for body in server.bodies)
    found = answered(requests, tmp_path / "c", schema=schema)
    assert found.counts["ok"] == 3 and not found.counts["out-of-vocabulary"]
    assert "upper_clothing_color" not in found.answers["all", "0000.jpg"]["tir"]["m"]  # asked for, and not believed
    assert go(requests, server, tmp_path / "c").calls == 3  # another prompt is another call


def test_a_server_that_counts_nothing_is_paid_what_a_call_may_cost(server, tmp_path, monkeypatch):
    from benchmarks.speed import caption_server

    completion = caption_server._completion
    monkeypatch.setattr(
        caption_server, "_completion", lambda *a: {**completion(*a), "usage": {"prompt_tokens": "many"}}
    )
    done = go(images(3, ("rgb",)), server, tmp_path / "c", price=(0.0, 1000.0), budget=3.0)
    assert done.stopped == "budget" and done.calls == 2 and done.spent == pytest.approx(2 * 1.5)


@pytest.mark.parametrize("amount", [float("nan"), -1, float("inf")])
def test_amounts_that_are_none_are_named(server, tmp_path, amount):
    for name in ("budget", "max_calls"):
        with pytest.raises(ValueError, match=f"{name} must be a number from 0 on"):
            go(images(1), server, tmp_path / "c", price=(1.0, 1.0), **{name: amount})


def test_equal_images_are_paid_for_once_and_changes_are_new_calls(server, tmp_path):
    one = images(1, ("rgb",))[0].image
    twins = [CaptionRequest("a.jpg", "rgb", one), CaptionRequest("b.jpg", "rgb", one)]
    assert go(twins, server, tmp_path / "c").calls == 1
    assert set(answered(twins, tmp_path / "c").answers) == {("all", "a.jpg"), ("all", "b.jpg")}
    assert go([CaptionRequest("a.jpg", "nir", one)], server, tmp_path / "c").calls == 1
    assert go(twins, server, tmp_path / "c", ("other",)).calls == 1
    assert go(twins, server, tmp_path / "c", sampling=Sampling(temperature=0.5)).calls == 1
    assert go(twins, server, tmp_path / "c", schema="vehicle").calls == 1
    assert go(images(1, ("rgb",), seed=1), server, tmp_path / "c").calls == 1
    with Store(tmp_path / "c") as store:
        assert store.count_other_schemas(get_schema("person").digest()) == 1


def test_several_samples_are_several_annotators(server, tmp_path):
    requests, sampling = images(2, ("rgb",)), Sampling(samples=3, temperature=0.7)
    assert go(requests, server, tmp_path / "c", sampling=sampling).calls == 6
    assert sorted(body["seed"] for body in server.bodies) == [0, 0, 1, 1, 2, 2]
    annotations = answered(requests, tmp_path / "c", sampling=sampling).answers["all", "0000.jpg"]["rgb"]
    assert list(annotations) == ["m#0", "m#1", "m#2"]
    with pytest.raises(ValueError, match="temperature 0 are all the same"):
        Sampling(samples=2)


@pytest.mark.parametrize(
    ("script", "calls", "counts"),
    [
        (["garbage"], 2, {"ok": 1}), (["garbage", "empty"], 2, {"unusable": 1, "no-json": 1}),
        (["refusal"], 1, {"refused": 1}), (["filtered"], 1, {"refused": 1}), (["fenced"], 1, {"ok": 1, "fenced": 1}),
    ],
)  # fmt: skip
def test_unusable_answers_are_asked_again_once_and_refusals_never(server, tmp_path, script, calls, counts):
    server.behaviour.script = script
    requests = images(1, ("rgb",))
    done = go(requests, server, tmp_path / "c")
    assert (done.calls, done.done) == (calls, 1)
    assert go(requests, server, tmp_path / "c").calls == 0  # nor in a later run
    found = answered(requests, tmp_path / "c").counts
    assert {name: found[name] for name in counts} == counts
    if script == ["garbage"]:
        assert "could not be read as JSON" in server.bodies[1]["messages"][0]
        with Store(tmp_path / "c") as store:
            assert [row["repair"] for row in store.rows()] == [False, True]


def test_nothing_is_lost_under_faults(server, tmp_path):
    requests = images(20)
    server.behaviour.faults, server.behaviour.seed = 0.2, 3
    answers = [f for f in REPLIES if not f.startswith(("refus", "filter"))]
    server.behaviour.kinds = [f for f in TRANSPORT if f != "slow"] * 4 + answers
    done = go(requests, server, tmp_path / "c")
    assert done.done == 60 and done.failed == 0 and done.retries > 0
    found = answered(requests, tmp_path / "c")
    assert found.counts["ok"] == 60 and set(server.paid.values()) == {1}


def test_a_slow_answer_times_out_and_is_retried(server, tmp_path):
    server.behaviour.script = ["slow"]
    done = go(images(1, ("rgb",)), server, tmp_path / "c", limits=RateLimits(timeout=0.3, backoff=0.001))
    assert done.done == 1 and done.retries >= 1


def test_calls_that_fail_are_left_for_the_next_run(server, tmp_path):
    server.behaviour.script = ["500"] * 2
    requests, limits = images(3, ("rgb",)), RateLimits(concurrency=1, attempts=2, backoff=0.001)
    done = go(requests, server, tmp_path / "c", limits=limits)
    assert (done.done, done.failed) == (2, 1) and "500" in done.failures[0]
    assert go(requests, server, tmp_path / "c").calls == 1


def test_the_budget_is_never_passed_and_the_next_one_goes_on(server, tmp_path):
    requests, price = images(10, ("rgb",)), (1000.0, 2000.0)
    with pytest.raises(ValueError, match="a budget needs prices; there is none for m"):
        go(requests, server, tmp_path / "c", budget=1)
    first = go(requests, server, tmp_path / "c", price=price, budget=9.0, limits=RateLimits(concurrency=4))
    assert first.stopped == "budget" and 1 <= first.done < 10
    assert first.spent == pytest.approx(first.cost) and first.spent <= 9
    each = first.cost / first.calls
    assert first.spent + 0.9 + 2 * 1.5 >= 9 - each  # and it is used up but for what one call could cost at most
    assert go(requests, server, tmp_path / "c", price=price, budget=9.0).calls == 0
    last = go(requests, server, tmp_path / "c", price=price, budget=1000.0)
    assert last.done == 10 - first.done and last.spent == pytest.approx(10 * each, rel=0.2)


def test_max_calls(server, tmp_path):
    requests = images(10, ("rgb",))
    counts = []
    for _ in range(3):
        done = go(requests, server, tmp_path / "c", max_calls=4)
        counts.append((done.calls, done.stopped))
    assert counts == [(4, "max-calls"), (4, "max-calls"), (2, "")]


def test_estimates_are_measured_where_something_was(server, tmp_path):
    requests = images(10, ("rgb",))
    seen = index_images(requests)
    jobs = caption_jobs(seen, "person", [Server(server.url, "m", price=(1, 10))], Sampling())
    guess = estimate(jobs, None)
    assert (guess.calls, guess.measured, guess.prompt_tokens) == (10, 0, 11_000)
    assert guess.cost == pytest.approx(10 * (1100 + 3000) / 1e6)
    done = go(requests, server, tmp_path / "c", max_calls=4)
    with Store(tmp_path / "c") as store:
        seen_now = estimate(jobs, store)
    assert (seen_now.calls, seen_now.stored, seen_now.measured, seen_now.prompt_tokens) == (6, 4, 4, 5400)
    assert seen_now.completion_tokens == pytest.approx(6 * done.completion_tokens / 4, abs=1)


def test_bad_images_are_named_before_anything_is_paid(server, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    requests = [
        *images(1, ("rgb",)),
        CaptionRequest("x", "nir", tmp_path / "bad.jpg"),
        CaptionRequest("y", "tir", tmp_path / "gone.jpg"),
    ]
    with pytest.raises(
        ValueError, match=r"2 images cannot be read: .*bad\.jpg, the nir image of sample 'x'.*gone\.jpg"
    ):
        go(requests, server, tmp_path / "c")
    assert not server.bodies and not (tmp_path / "c").exists()
    assert go(requests, server, tmp_path / "c", on_error="skip").calls == 1
    with pytest.raises(ValueError, match=r"sample '0000\.jpg' of split 'all' has two rgb images"):
        index_images(images(1, ("rgb",)) * 2)


def test_a_model_that_cannot_see_and_a_lost_key_stop_the_run(server, tmp_path):
    server.behaviour.blind = "Green."
    with pytest.raises(ValueError, match="cannot see"):
        go(images(1), server, tmp_path / "c", probing=True)
    server.behaviour.key = "k"
    with pytest.raises(PermissionError, match="401"):
        go(images(40), server, tmp_path / "c")
    server.behaviour.key, server.behaviour.models = None, ["another"]
    with pytest.raises(ConnectionError, match=r"calls in a row failed, the last: .*404"):
        go(images(40), server, tmp_path / "c")
    assert not server.paid


def test_a_full_disk_ends_the_run_and_keeps_the_store(server, tmp_path, monkeypatch):
    requests, write, lines = images(10, ("rgb",)), os.write, []

    def full(file, data):
        if data.startswith(b'{"v"'):
            lines.append(data)
            if len(lines) > 3:
                write(file, data[:20])
                raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="the disk is full: the run stops; 3 answers are safe"):
        go(requests, server, tmp_path / "c")
    monkeypatch.undo()
    done = go(requests, server, tmp_path / "c")
    assert done.calls == 7 and sum(server.paid.values()) <= 10 + QUICK.concurrency


def test_it_runs_where_a_loop_is_running(server, tmp_path):
    import asyncio

    async def notebook():
        return go(images(1), server, tmp_path / "c")

    assert asyncio.run(notebook()).calls == 3


def test_interrupt_lets_calls_in_flight_finish(server, tmp_path, monkeypatch):
    """The server answers only once the run has noticed the interrupt, which comes while four calls wait there."""
    path, noticed = tmp_path / "c", threading.Event()
    server.behaviour.hold = noticed

    class Watched(runner.Progress):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if value == "interrupted":
                noticed.set()

    def interrupt():
        while server.in_flight < 4:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(runner, "Progress", Watched)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            go(images(20), server, path)
    finally:
        signal.signal(signal.SIGINT, before)
    with Store(path) as store:
        assert len(store) == sum(server.paid.values()) == 4


@pytest.mark.slow
def test_ten_kills_repeat_and_lose_nothing_but_what_was_in_flight(server, tmp_path):
    """A run killed ten times at random: every stored call was paid once, every other at most once for each kill."""
    rng, path, in_flight = random.Random(5), tmp_path / "c", 4
    server.behaviour.delay = 0.01
    requests = images(200)
    code = f"""
        import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        import importlib.util
        spec = importlib.util.spec_from_file_location("runs", {__file__!r})
        runs = importlib.util.module_from_spec(spec); spec.loader.exec_module(runs)
        import os, types
        requests = runs.images(200)
        runs.index_images(requests)
        while sys.stdin.readline():
            pid = os.fork()
            if pid == 0:
                runs.go(requests, types.SimpleNamespace(url={server.url!r}), {str(path)!r})
                os._exit(0)
            print(pid, flush=True)
            os.waitpid(pid, 0)
            print("ended", flush=True)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    kept = set()
    try:
        for kill in range(11):
            parent.stdin.write("go\n")
            parent.stdin.flush()
            pid = int(parent.stdout.readline())
            if kill < 10:
                before = sum(server.paid.values())
                goal = before + rng.randint(1, 40)
                while sum(server.paid.values()) < goal:
                    time.sleep(0.001)
                os.kill(pid, signal.SIGKILL)
            assert parent.stdout.readline() == "ended\n"
            with Store(path) as store:
                keys = {row["key"] for row in store.rows()}
                assert kept <= keys and store.damaged == []
                assert sum(server.paid.values()) - len(keys) <= in_flight * (kill + 1)
                kept = keys
    finally:
        parent.stdin.close()
        parent.wait(20)
    assert len(kept) == len(requests) == len(server.paid)
    assert sum(server.paid.values()) - len(requests) <= 10 * in_flight


def test_the_server_knows_the_images_it_is_given(server, tmp_path):
    requests = images(1, ("rgb",))
    name = image_name(data_url(requests[0].prepared()))
    server.behaviour.answers = {("m", name): {"age": ("senior", 0.875)}}
    go(requests, server, tmp_path / "c")
    answer = answered(requests, tmp_path / "c").answers["all", "0000.jpg"]["rgb"]["m"]["age"]
    assert (answer.value, answer.confidence, answer.source) == ("senior", 0.875, "verbal")
