"""``nextreid browse`` at 10,000 samples: seconds to the first view, and of the clicks after it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nextreid.synthetic import synthetic_persons

SAMPLES = 10_000
_SIZE = (128, 256)  # width and height of an image
_AT_ONCE = 6  # images that browsers ask a server for at a time
_SCRATCH = Path(tempfile.gettempdir()) / "nextreid-browse"


def run() -> Iterator[dict[str, Any]]:
    """Yield the seconds of each step, by the clock and of the server's CPU (Linux), each measured once.

    The images are JPEG files of 256 x 128 pixels, enlarged from drawn persons with noise of their own, three a sample;
    half of the samples are for training, a tenth are queries. They are written once, into the folder of temporary
    files.
    """
    table = _write(_SCRATCH)
    cache = Path(tempfile.mkdtemp(prefix="nextreid-thumbnails-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    words = ["next_tiny", "baseline_tiny", str(table), "--port", str(port), "--cache", str(cache), "--no-progress"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    start = time.perf_counter()
    server = subprocess.Popen([sys.executable, "-m", "nextreid", "browse", *words], env=environment)
    try:
        while True:
            with suppress(urllib.error.URLError, ConnectionError):
                _get(base + "/")
                break
            time.sleep(0.05)
        yield _row("start of the program to the first page", time.perf_counter() - start, cpu=_cpu_seconds(server.pid))
        query = SAMPLES // 2 + 7
        steps = (
            ("samples, first page", "/dataset/0"),
            ("samples, the same page again", "/dataset/0"),
            ("samples, page 100", "/dataset/0?page=100"),
            ("samples of one identity", "/dataset/0?identity=7"),
            ("one sample", "/dataset/0/sample/5000"),
            ("rank lists: embed and rank once", "/ranks?model=0"),
            ("rank lists, wrong ones, page 2", "/ranks?model=0&found=wrong&page=2"),
            ("one query, 50 entries", f"/query?model=0&sample={query}"),
            ("one query, masks", f"/query?model=0&sample={query}&masks=1"),
            ("compare: embed and rank the other model once", "/compare?model=0&other=1"),
            ("compare, page 2", "/compare?model=0&other=1&page=2"),
            ("check: decode 30,000 images once", "/dataset/0/check"),
            ("check, again", "/dataset/0/check"),
        )
        for name, address in steps:
            before = _cpu_seconds(server.pid)
            seen = _view(base, address)
            yield _row(name, *seen, cpu=_cpu_seconds(server.pid) - before)
        kept = list(cache.rglob("*.jpg"))
        yield {**_row("thumbnails kept", 0.0), "images": len(kept), "bytes": sum(p.stat().st_size for p in kept)}
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(cache, ignore_errors=True)


def _row(
    step: str, page: float, images: float = 0.0, count: int = 0, size: int = 0, *, cpu: float = 0.0
) -> dict[str, Any]:
    return {
        "samples": SAMPLES,
        "step": step,
        "page_seconds": round(page, 3),
        "with_images_seconds": round(page + images, 3),
        "cpu_seconds": round(cpu, 2),
        "images": count,
        "bytes": size,
    }


def _cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used; 0 where the system does not say so."""
    path = Path(f"/proc/{pid}/stat")
    if not path.is_file():
        return 0.0
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _view(base: str, address: str) -> tuple[float, float, int, int]:
    """Seconds of a page, until it is whole, and of its images after it; their number, and the bytes of all."""
    start = time.perf_counter()
    while True:
        status, page = _get(base + address)
        if status == 200:
            break
        time.sleep(0.2)
    shown = time.perf_counter()
    images = dict.fromkeys(a.replace("&amp;", "&") for a in re.findall(r'<img[^>]* src="([^"]*)"', page.decode()))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sizes = [len(body) for _, body in pool.map(lambda image: _get(base + image), images)]
    return shown - start, time.perf_counter() - shown, len(images), len(page) + sum(sizes)


def _get(address: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(address, timeout=600) as answer:
        return answer.status, answer.read()


def _write(folder: Path) -> Path:
    """Write images and manifest, unless they are there."""
    table = folder / f"list_{SAMPLES}.csv"
    if table.is_file():
        return table
    persons = synthetic_persons("tiny").dataset
    drawn = (*persons.train, *persons.gallery)
    rng = np.random.default_rng(0)
    rows = ["split,pid,camid,rgb,nir,tir"]
    for modality in persons.modalities:
        (folder / modality).mkdir(parents=True, exist_ok=True)
    for number in range(SAMPLES):
        sample = drawn[number % len(drawn)]
        files = []
        for modality, image in zip(persons.modalities, sample.images, strict=True):
            assert isinstance(image, np.ndarray)
            pixels = np.asarray(Image.fromarray(image).resize(_SIZE, Image.Resampling.BICUBIC), np.int16)
            noise = rng.integers(-6, 7, (*pixels.shape[:2], 1), np.int16)
            files.append(f"{modality}/{number:05}.jpg")
            Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(folder / files[-1], quality=85)
        part = number / SAMPLES
        split = "train" if part < 0.5 else "query" if part < 0.6 else "gallery"
        rows.append(f"{split},{sample.pid},{max(sample.camid, 0)},{','.join(files)}")
    table.write_text("\n".join(rows), encoding="utf-8")
    return table
