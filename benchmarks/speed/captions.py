"""The caption pipeline: quality against known attributes, calls a second, and the cost of kills and faults."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nextreid.captioning import Answer, Answers, best_of, complement
from nextreid.captioning.client import Server
from nextreid.captioning.image import data_url
from nextreid.captioning.pipeline import CaptionRequest, collect, index_images, run_captions
from nextreid.captioning.runner import Progress
from nextreid.captioning.store import Store
from nextreid.captioning.throttle import RateLimits
from nextreid.data import MODALITIES, Sample
from nextreid.synthetic import SyntheticDataset, synthetic_persons
from nextreid.synthetic.captioner import DESCRIPTIONS, ask_captioners, true_answers
from nextreid.synthetic.dataset import make_identity
from nextreid.synthetic.scene import make_frame, make_visit

from .caption_server import REPLIES, TRANSPORT, Annotation, Behaviour, CaptionServer, image_name

DELAY, KILLS = 0.1, 10
_CAPTIONERS = ("first", "second")


def run() -> Iterator[dict[str, Any]]:
    """Rows of kills, of calls a second, of faults, and of quality."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _kills(Path(folder))  # first: it forks, and nothing else should have started threads
        yield from _speed(Path(folder))
        yield from _faults(Path(folder))
        yield from _quality(Path(folder))


def _row(measure: str, setting: str, value: float, unit: str, count: int, expected: str = "") -> dict[str, Any]:
    shown = round(value, 4) if isinstance(value, float) else value
    return {"measure": measure, "setting": setting, "value": shown, "unit": unit, "count": count, "expected": expected}


def _kills(folder: Path) -> Iterator[dict[str, Any]]:
    """Kill a run ten times at random moments; compare paid calls with stored ones."""
    requests, path, in_flight, rng = _noise(600), folder / "kills.jsonl", 8, random.Random(0)
    fork = multiprocessing.get_context("fork")
    with _serving("--delay", "0.02") as url:
        for kill in range(KILLS + 1):
            child = fork.Process(target=_describe, args=(requests, url, path, RateLimits(in_flight)))
            before = _paid(url)["answers"]
            child.start()
            if kill < KILLS:
                goal = before + rng.randint(10, 50)
                while _paid(url)["answers"] < goal:
                    time.sleep(0.005)
                os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
        paid = _paid(url)
    with Store(path) as store:
        stored, damaged = len(store), len(store.damaged)
    bound = KILLS * in_flight
    yield _row("stored answers", f"{KILLS} kills, {in_flight} in flight", stored, "of images", len(requests), "all")
    yield _row("damaged lines", f"{KILLS} kills, {in_flight} in flight", damaged, "lines", len(requests), "0")
    repeated = paid["answers"] - paid["questions"]
    yield _row(
        "calls paid twice", f"{KILLS} kills, {in_flight} in flight", repeated, "calls", len(requests), f"<= {bound}"
    )


def _speed(folder: Path) -> Iterator[dict[str, Any]]:
    """Calls a second once all slots are in use; ideal is slots over delay."""
    with _serving("--delay", str(DELAY)) as url:
        for in_flight, calls in ((1, 60), (8, 480), (32, 1920)):
            ends: list[float] = []

            def record(progress: Progress, ends: list[float] = ends) -> None:
                ends.append(time.perf_counter())

            _describe(_noise(calls), url, folder / f"speed{in_flight}.jsonl", RateLimits(in_flight), report=record)
            settled = ends[in_flight : calls - in_flight]
            rate = (len(settled) - 1) / (settled[-1] - settled[0])
            ideal = in_flight / DELAY
            setting = f"{in_flight} in flight, answers after {1000 * DELAY:.0f} ms"
            yield _row("calls a second", setting, rate, "1/s", calls, f"ideal {ideal:.0f}")
            yield _row("share of the ideal", setting, rate / ideal, "", calls, ">= 0.9")


def _faults(folder: Path) -> Iterator[dict[str, Any]]:
    """A fifth of all requests fails, in every way that is not a refusal."""
    kinds = [f for f in (*TRANSPORT, *REPLIES) if not f.startswith(("slow", "refus", "filter"))]
    server = CaptionServer(Behaviour(faults=0.2, kinds=kinds, seed=1))
    requests = _noise(1000)
    with server.running():
        done = _describe(requests, server.url, folder / "faults.jsonl", RateLimits(8, backoff=0.01))
    images = index_images(requests)
    with Store(folder / "faults.jsonl") as store:
        found = collect(images, "person", ["m"], store)
    setting = f"20 % of requests fail, {len(kinds)} kinds"
    yield _row("images described", setting, found.counts.get("ok", 0), "of images", len(requests), "all")
    yield _row("attempts repeated", setting, done.retries, "attempts", len(requests))
    yield _row("calls paid twice", setting, sum(server.paid.values()) - len(server.paid), "calls", len(requests), "0")


def _quality(folder: Path) -> Iterator[dict[str, Any]]:
    """Two simulated captioners over the whole way, against the known truth."""
    persons = synthetic_persons("tiny", splits=("test",))
    truth: dict[tuple[str, str], dict[str, str]] = {}
    annotations: dict[tuple[str, str], Annotation] = {}
    requests = []
    for sample in persons.dataset.query:
        annotators, true = _ask(persons, sample)
        for modality, image in zip(MODALITIES, sample.images, strict=True):
            item = CaptionRequest(sample.key, modality, np.asarray(image))
            requests.append(item)
            truth[sample.key, modality] = true
            name = image_name(data_url(item.prepared()))
            for captioner in _CAPTIONERS:
                annotations[captioner, name] = _words(annotators[modality][captioner], persons.config.caption_floor)
    server = CaptionServer(Behaviour(answers=annotations))
    with server.running():
        for captioner in _CAPTIONERS:
            _describe(requests, server.url, folder / "quality.jsonl", RateLimits(8), captioner)
    images = index_images(requests)
    with Store(folder / "quality.jsonl") as store:
        found = collect(images, "person", _CAPTIONERS, store).answers
    results: dict[str, dict[tuple[str, str], Answers]] = {
        name: {} for name in ("one captioner", "best", "complemented")
    }
    for (_, key), modalities in found.items():
        best = {m: best_of(annotators) for m, annotators in modalities.items()}
        both = complement(best, "person")
        for m, answers in modalities.items():
            results["one captioner"][key, m] = answers["first"]
            results["best"][key, m], results["complemented"][key, m] = best[m].answers, both[m].answers
    settings = {
        "one captioner": "(a) one captioner",
        "best": "(b) best of two by confidence",
        "complemented": "(c) (b) and the complement of the modalities",
    }
    described = DESCRIPTIONS["persons"]
    for fields, which in ((tuple(described.fields), "all fields"), (described.merged, "complemented fields")):
        for name, merged in results.items():
            right, unknown, count = _score(merged, truth, fields)
            yield _row("accuracy", f"{settings[name]}, {which}", right, "", count)
            yield _row("unknown rate", f"{settings[name]}, {which}", unknown, "", count)


def _ask(persons: SyntheticDataset, sample: Sample) -> tuple[Mapping[str, Mapping[str, Answers]], dict[str, str]]:
    """Ask the simulated captioners about a sample; return their answers and the truth."""
    config, number = persons.config, int(Path(sample.key).stem.rsplit("_", 1)[1])
    identity, visit = make_identity(config, sample.pid), make_visit(config, sample.pid, sample.camid)
    frame = make_frame(config, visit, sample.pid, sample.camid, number)
    known: Mapping[str, Any] = sample.truth or {}
    key = (sample.pid, sample.camid, number)
    annotators = ask_captioners(config, identity, visit, frame, key, known["visibility"], known["hidden"])
    return annotators, true_answers(config, identity, visit, frame)


def _words(answers: Mapping[str, Answer], floor: float) -> Annotation:
    """The answers of a captioner, unknown below the floor."""
    return {
        name: (str(answer.value), float(answer.confidence or 0))
        if answer.value and (answer.confidence or 0) >= floor
        else ("unknown", 0.0)
        for name, answer in answers.items()
    }


def _score(
    results: Mapping[tuple[str, str], Answers],
    truth: Mapping[tuple[str, str], Mapping[str, str]],
    fields: Sequence[str],
) -> tuple[float, float, int]:
    """Return the shares of right and of unknown answers among the fields a captioner answers, and their count."""
    right = unknown = count = 0
    for place, answers in results.items():
        for name in fields:
            if name in answers and truth[place][name]:
                count += 1
                right += answers[name].value == truth[place][name]
                unknown += answers[name].value is None
    return right / count, unknown / count, count


def _describe(
    requests: Sequence[CaptionRequest], url: str, path: Path, limits: RateLimits, model: str = "m", **more: Any
) -> Progress:
    return run_captions(requests, "person", [Server(url, model)], path, limits=limits, probing=False, **more)


def _noise(count: int) -> list[CaptionRequest]:
    rng = np.random.default_rng(count)
    arrays = [rng.integers(0, 255, (128, 64, 3), dtype=np.uint8) for _ in range(count)]
    return [CaptionRequest(f"{n:05d}.jpg", MODALITIES[n % 3], a) for n, a in enumerate(arrays)]


@contextlib.contextmanager
def _serving(*options: str) -> Iterator[str]:
    """Start the server as another process; yield its address."""
    command = [sys.executable, "-m", "benchmarks.speed.caption_server", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def _paid(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/paid") as response:
        counts: dict[str, int] = json.load(response)
    return counts
