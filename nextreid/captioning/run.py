"""From images to stored answers, and from stored answers to merged ones."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .answers import Reading, read_reply
from .client import Server
from .image import data_url, image_digest, open_upright, prepare
from .merge import Merged, Rule, best_of, complement
from .requests import Job, Progress, ask
from .schema import Answers, Schema, get_schema
from .store import Store
from .throttle import Limits

if TYPE_CHECKING:
    from PIL import Image

_logger = logging.getLogger(__name__)

_HINT = "\nYour last answer to this could not be read as JSON. Answer with the JSON object alone, complete and short."
_ASSUMED = (1100, 300)  # prompt and answer tokens of a call, where none was measured yet


@dataclass(frozen=True, slots=True)
class Work:
    """One image to be described.

    Attributes:
        key: Name of the sample, the same for its images in all modalities; it never leaves this machine.
        modality: Such as ``"rgb"``.
        image: Its file, or a function that opens it.
        split: Such as ``"train"``; captions are written for each split.
    """

    key: str
    modality: str
    image: "Path | Callable[[], Image.Image]"
    split: str = "all"

    def prepared(self) -> "Image.Image":
        """Open the image and bring it into the form that is sent.

        Raises:
            ValueError: If it cannot be read; names file, sample and modality.
        """
        try:
            image = open_upright(self.image) if isinstance(self.image, Path) else self.image()
            return prepare(image)
        except (OSError, ValueError) as error:
            raise ValueError(f"{error} [sample {self.key!r}, {self.modality}]") from error


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image whose content is known.

    Attributes:
        key: As in `Work`.
        modality: Likewise.
        split: Likewise.
        digest: Of the pixels that are sent.
    """

    key: str
    modality: str
    split: str
    digest: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model is asked.

    Attributes:
        samples: How often it is asked about one image.
        temperature: 0 for its most likely answer.
        max_tokens: Most tokens of an answer.

    Raises:
        ValueError: If a number is out of range, or several samples would all be the same.
    """

    samples: int = 1
    temperature: float = 0.0
    max_tokens: int = 1500

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_tokens < 1 or not 0 <= self.temperature <= 2:
            raise ValueError(f"samples and max_tokens start at 1 and temperature lies in [0, 2], got {self}")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"{self.samples} samples at temperature 0 are one and the same; say a temperature")

    def options(self, sample: int) -> dict[str, Any]:
        """Return the options of the n-th sample's call."""
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return options | ({"seed": sample} if self.samples > 1 else {})


@dataclass(frozen=True)
class Estimate:
    """What a run would ask for.

    Attributes:
        images: Images that can be read.
        stored: Calls whose answers are in the store.
        calls: Calls that are missing.
        prompt_tokens: They would need.
        completion_tokens: Likewise.
        cost: Money for them; None where a price is unknown.
        measured: Stored calls that the estimate rests on; 0: an assumption.
        spent: Money for what is in the store.
    """

    images: int
    stored: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    measured: int
    spent: float


@dataclass
class Collected:
    """Answers from the store.

    Attributes:
        answers: By sample ``(split, key)`` and modality, what each voice said; a voice is a model, or ``model#n`` for
            its n-th sample.
        counts: How many readings were ok, refused, unusable or missing, and how often each flag occurs.
    """

    answers: dict[tuple[str, str], dict[str, dict[str, Answers]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def look_at(
    work: Sequence[Work], *, on_error: Literal["raise", "skip"] = "raise", threads: int = 4
) -> tuple[list[ImageEntry], list[Work]]:
    """Open every image once, before anything is paid for.

    Args:
        work: The images.
        on_error: Whether images that cannot be read end it or are left without a caption.
        threads: Threads that open them.

    Returns:
        The images that can be read, and the work they came from.

    Raises:
        ValueError: If images cannot be read; names the first few and says how many there are. Also if one sample
            has two images of one modality.
    """
    places = [(item.split, item.key, item.modality) for item in work]
    if len(set(places)) < len(places):
        double = next(place for place in places if places.count(place) > 1)
        raise ValueError(f"sample {double[1]!r} of split {double[0]!r} has two {double[2]} images; keys must be unique")

    def look(item: Work) -> ImageEntry | ValueError:
        try:
            return ImageEntry(item.key, item.modality, item.split, image_digest(item.prepared()))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        seen = list(pool.map(look, work))
    bad = [str(result) for result in seen if isinstance(result, ValueError)]
    if bad and on_error == "raise":
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(f"{len(bad)} images cannot be read: {'; '.join(bad[:3])}{more}. --on-error skip leaves them")
    for message in bad:
        _logger.warning("left out: %s", message)
    good = [(image, item) for image, item in zip(seen, work, strict=True) if isinstance(image, ImageEntry)]
    return [image for image, _ in good], [item for _, item in good]


def caption_jobs(
    images: Sequence[ImageEntry],
    work: Sequence[Work] | None,
    schema: str | Schema,
    servers: Sequence[Server],
    sampling: Sampling,
) -> list[Job]:
    """Return one job for every image content, model and sample; two equal images are asked about once.

    Args:
        images: As `look_at` returns them.
        work: Where to open them again; None if nothing will be asked.
        schema: What to ask.
        servers: Whom.
        sampling: How.
    """
    schema = get_schema(schema)
    modalities = {image.modality for image in images}
    prompts = {modality: schema.instructions(modality) for modality in modalities}
    digest = schema.digest()
    shapes = {modality: schema.json_schema(modality) for modality in modalities}
    jobs: dict[tuple[str, ...], Job] = {}
    for index, image in enumerate(images):
        for server in servers:
            for sample in range(sampling.samples):
                place = (image.digest, image.modality, server.model, str(sample))
                if place in jobs:
                    continue
                jobs[place] = Job(
                    server=server,
                    parts={"schema": digest, **_parts(schema, image, sample)},
                    prompt=prompts[image.modality],
                    image=partial(_encoded, work[index]) if work is not None else None,
                    json_schema=shapes[image.modality],
                    options=sampling.options(sample),
                    judge=partial(_judge, schema, image.modality),
                )
    return list(jobs.values())


def estimate(jobs: Sequence[Job], images: Sequence[ImageEntry], store: Store | None) -> Estimate:
    """Say what the jobs that are not in the store would need, from the calls in the store where there are some."""
    missing = [job for job in jobs if store is None or not job.is_done(store)]
    models = {job.server.model for job in jobs}
    measured = [row for row in (store.rows() if store else ()) if row["model"] in models and row["prompt_tokens"]]
    totals, cost = [0.0, 0.0], 0.0
    for model in models:
        own = [row for row in measured if row["model"] == model] or measured
        calls = [job for job in missing if job.server.model == model]
        for n, column in enumerate(("prompt_tokens", "completion_tokens")):
            mean = sum(row[column] for row in own) / len(own) if own else _ASSUMED[n]
            totals[n] += mean * len(calls)
            cost += sum((job.server.price or (0.0, 0.0))[n] * mean / 1e6 for job in calls)
    known = all(job.server.price is not None for job in missing)
    return Estimate(
        images=len(images),
        stored=len(jobs) - len(missing),
        calls=len(missing),
        prompt_tokens=round(totals[0]),
        completion_tokens=round(totals[1]),
        cost=cost if known else None,
        measured=len(measured),
        spent=store.spent if store else 0.0,
    )


def run_captions(
    work: Sequence[Work],
    schema: str | Schema,
    servers: Sequence[Server],
    store: str | Path,
    *,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    budget: float | None = None,
    max_calls: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    probing: bool = True,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Have every image described by every model; what is in the store is not asked again.

    Args:
        work: The images. Nothing but their pixels is sent.
        schema: ``"person"``, ``"vehicle"`` or a schema of your own.
        servers: The models.
        store: File of the answers; made if there is none, continued if there is.
        sampling: How to ask.
        limits: What each server is asked to bear.
        budget: Money that everything in the store may cost; needs the servers' prices.
        max_calls: Calls that this run may make.
        on_error: What to do about images that cannot be read, see `look_at`.
        probing: Whether to see first that each model answers and can see.
        report: Called as the run goes on.

    Returns:
        What happened; `Progress.stopped` says whether the means ran out.

    Raises:
        ValueError: A setting, image or model is of no use; the message says which.
        ConnectionError: A server is not there or went away.
        PermissionError: A key is missing or not accepted.
        OSError: The disk is full. Whatever was answered is in the store.
    """
    images, readable = look_at(work, on_error=on_error)
    jobs = caption_jobs(images, readable, schema, servers, sampling or Sampling())
    with Store(Path(store), write=True) as rows:
        if others := rows.count_other_schemas(get_schema(schema).digest()):
            _logger.warning("%s: %d answers belong to another version of the schema; kept, not used", store, others)
        return run_jobs(jobs, rows, limits=limits, budget=budget, max_calls=max_calls, probing=probing, report=report)


def run_jobs(jobs: Sequence[Job], store: Store, **settings: Any) -> Progress:
    """Run `ask` to its end, in a thread of its own where an event loop is running already (as in a notebook)."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(ask(jobs, store, **settings))
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(ask(jobs, store, **settings))).result()


def collect(
    images: Sequence[ImageEntry],
    schema: str | Schema,
    models: Sequence[str],
    store: Store,
    sampling: Sampling | None = None,
) -> Collected:
    """Read the answers of some models to these images from the store; nothing is asked."""
    schema, sampling = get_schema(schema), sampling or Sampling()
    # where a model runs is no part of a call's name, so any address will do
    jobs = caption_jobs(images, None, schema, [Server("http://127.0.0.1", model) for model in models], sampling)
    readings = {
        (job.parts["image"], job.parts["modality"], _voice(job, sampling)): _best_reading(schema, job, store)
        for job in jobs
    }
    found = Collected()
    for reading in readings.values():
        noticed = [flag for answer in (reading.answers if reading else {}).values() for flag in answer.flags]
        for name in [reading.status if reading else "missing", *(reading.flags if reading else ()), *noticed]:
            found.counts[name] = found.counts.get(name, 0) + 1
    voices = list(dict.fromkeys(voice for _, _, voice in readings))
    for image in images:
        said = found.answers.setdefault((image.split, image.key), {}).setdefault(image.modality, {})
        for voice in voices:
            reading = readings.get((image.digest, image.modality, voice))
            if reading is not None and reading.status == "ok":
                said[voice] = reading.answers
    return found


def merge_sample(
    said: Mapping[str, Mapping[str, Answers]],
    schema: str | Schema,
    *,
    rule: Rule = "confidence",
    fields: Sequence[str] | None = None,
) -> dict[str, Merged]:
    """Merge what the voices said of one sample: the best of them in each modality, then over the modalities.

    Args:
        said: By modality and voice.
        schema: Of the answers.
        rule: See `best_of`.
        fields: Fields that the modalities complement, see `complement`; ``()`` for none.

    Returns:
        By modality; a modality of which nobody said anything is absent.
    """
    best = {modality: best_of(voices, rule=rule) for modality, voices in said.items() if voices}
    return complement(best, schema, fields=fields, rule=rule)


def _encoded(work: Work) -> str:
    return data_url(work.prepared())


def _parts(schema: Schema, image: ImageEntry, sample: int) -> dict[str, Any]:
    return {
        "schema_name": f"{schema.name} {schema.version}",
        "image": image.digest,
        "modality": image.modality,
        "sample": sample,
    }


def _voice(job: Job, sampling: Sampling) -> str:
    return f"{job.server.model}#{job.parts['sample']}" if sampling.samples > 1 else job.server.model


def _read(schema: Schema, modality: str, row: Mapping[str, Any]) -> Reading:
    return read_reply(row["text"], schema, modality, finish=row["finish"], refusal=row["refusal"])


def _judge(schema: Schema, modality: str, row: Mapping[str, Any]) -> str | None:
    return _HINT if _read(schema, modality, row).needs_repair else None


def _best_reading(schema: Schema, job: Job, store: Store) -> Reading | None:
    readings: Iterable[Reading] = [_read(schema, job.parts["modality"], row) for row in job.stored(store)]
    return max(readings, key=lambda reading: len(reading.answers), default=None)
