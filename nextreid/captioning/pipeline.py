"""From images to stored answers, and from stored answers to merged ones."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image as PILImage

from ..data.image import Image, open_image
from .answers import ParsedReply, parse_distributions, parse_reply
from .classifier import Classifier
from .client import Server
from .decisions import PATHS, questions_of, statement_of
from .distribution import Distribution
from .image import data_url, image_digest, prepare
from .merge import Absence, Merged, Rule, best_of, complement
from .runner import Job, Progress, Source, ask
from .schema import Answers, Schema, get_schema
from .store import Store

_logger = logging.getLogger(__name__)

_HINT = "\nYour last answer to this could not be read as JSON. Answer with the JSON object alone, complete and short."
_ASSUMED = {"prompt_tokens": 1100, "completion_tokens": 300}  # of a call, before any was measured


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """One image to be captioned.

    Attributes:
        key: Name of the sample, the same for its images in all modalities; it never leaves this machine.
        modality: Such as ``"rgb"``.
        image: A file, a part of one, or an array, as `nextreid.data.open_image` accepts it; None if it is not needed,
            because its answers are in the store.
        split: Such as ``"train"``; captions are written for each split.
        digest: Digest of the pixels that are sent; `index_images` sets it.
    """

    key: str
    modality: str
    image: Image | None
    split: str = "all"
    digest: str = ""

    def prepared(self) -> PILImage.Image:
        """Open the image and convert it to what is sent.

        Raises:
            ValueError: If it cannot be read; names file, sample and modality.
        """
        if self.image is None:
            raise ValueError(f"the {self.modality} image of sample {self.key!r} is not given")
        return prepare(open_image(self.image, self.key, self.modality))

    def encoded(self) -> str:
        """Return the image as the data URL that is sent."""
        return data_url(self.prepared())


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model is sampled.

    Attributes:
        samples: Answers to one image.
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
            raise ValueError(f"{self.samples} samples at temperature 0 are all the same; set a temperature")

    def options(self, sample: int) -> dict[str, Any]:
        """Return the options of the n-th sample's call."""
        seed = {"seed": sample} if self.samples > 1 else {}
        return {"max_tokens": self.max_tokens, "temperature": self.temperature, **seed}


class Estimate(NamedTuple):
    """What a run would need.

    Attributes:
        stored, calls: Calls whose answers are in the store, and calls that are missing.
        prompt_tokens, completion_tokens: Tokens that the missing calls would need.
        cost: Their cost; None if a price is unknown.
        measured: Stored calls that the estimate is based on; 0: an assumption.
        spent: Cost of what is in the store.
    """

    stored: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    measured: int
    spent: float


class Collected(NamedTuple):
    """Answers from the store.

    Attributes:
        answers: By sample ``(split, key)`` and modality, the answers of each annotator: a model, or ``model#n`` for its
            n-th sample.
        counts: How many replies were ok, refused, unusable or missing, and how often each flag occurs.
    """

    answers: dict[tuple[str, str], dict[str, dict[str, Answers]]]
    counts: Counter[str]


def index_images(
    requests: Sequence[CaptionRequest], *, on_error: Literal["raise", "skip"] = "raise"
) -> list[CaptionRequest]:
    """Open every image once, before anything is paid for.

    Args:
        requests: The images.
        on_error: ``"raise"`` an error if an image cannot be read, or ``"skip"`` it.

    Returns:
        The requests whose images can be read, with their digests.

    Raises:
        ValueError: If images cannot be read (names the first few and counts them), or one sample has two images of one
            modality.
    """
    counts = Counter((one.split, one.key, one.modality) for one in requests)
    if double := next((place for place, count in counts.items() if count > 1), None):
        raise ValueError(f"sample {double[1]!r} of split {double[0]!r} has two {double[2]} images; keys must be unique")

    def index(one: CaptionRequest) -> CaptionRequest | str:
        try:
            return replace(one, digest=image_digest(one.prepared()))
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(index, requests))
    bad = [result for result in results if isinstance(result, str)]
    if bad and on_error == "raise":
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(f"{len(bad)} images cannot be read: {'; '.join(bad[:3])}{more}. --on-error skip leaves them")
    for message in bad:
        _logger.warning("left out: %s", message)
    return [result for result in results if isinstance(result, CaptionRequest)]


def caption_jobs(
    requests: Sequence[CaptionRequest],
    schema: str | Schema,
    sources: Sequence[Server | Classifier | Source],
    sampling: Sampling,
) -> list[Job]:
    """Return one job for every image content (see `index_images`), source and sample; equal images share theirs.

    Classifiers and servers that answer typed questions give the same answer each time, so they have one sample.

    Raises:
        ValueError: If a server is asked by typed questions, and the schema has a prompt of its own instead.
    """
    schema = get_schema(schema)
    typed = [source.model for source in sources if source.api in PATHS]
    if schema.prompt and typed:
        raise ValueError(f"{typed[0]!r} is asked by the schema's typed questions, not by a prompt such as the paper's")
    unique = {(one.digest, one.modality): one for one in reversed(requests)}
    known = [(server, source_of(server)) for server in sources]
    shown = {one.modality for one in requests}
    asked = {(source, m): _asked(schema, source, m) for _, source in known for m in shown}
    head = {"schema": schema.digest(), "schema_name": f"{schema.name} {schema.version}"}
    return [
        Job(
            server,
            {**head, "image": one.digest, "modality": one.modality, "sample": sample, **_api(source)},
            image=None if one.image is None else one.prepared if source.api == "classifier" else one.encoded,
            options=sampling.options(sample) if source.api == "chat" else {},
            **asked[source, one.modality],
        )
        for one in reversed(unique.values())
        for server, source in known
        if not source.modalities or one.modality in source.modalities
        for sample in range(sampling.samples if source.api == "chat" else 1)
    ]


def _api(source: Source) -> dict[str, str]:
    return {} if source.api == "chat" else {"api": source.api}  # as in the rows that are stored already


def _asked(schema: Schema, source: Source, modality: str) -> dict[str, Any]:
    """Return what a job asks of an image of a modality."""
    if source.api == "classifier":
        return {"prompt": source.digest}
    if source.api != "chat":
        return {"prompt": statement_of(schema, modality), "questions": questions_of(schema, modality)}
    return {
        "prompt": schema.instructions(modality),
        # a prompt of its own lists its own choices, which the schema's would contradict
        "json_schema": None if schema.prompt else schema.json_schema(modality),
        "judge": partial(_judge, schema, modality),
    }


def estimate(jobs: Sequence[Job], store: Store | None) -> Estimate:
    """Estimate what the jobs that are not in the store would need, from the calls in the store if there are some."""
    missing = [job for job in jobs if store is None or not job.is_done(store)]
    asked = [job.server for job in missing if isinstance(job.server, Server)]  # classifiers run here, at no cost
    models = {job.server.model for job in jobs}
    measured = [
        row for row in (store.rows() if store else ()) if row.get("model") in models and row.get("prompt_tokens")
    ]
    totals, cost = dict.fromkeys(_ASSUMED, 0.0), 0.0
    for model in models:
        rows = [row for row in measured if row["model"] == model] or measured or [_ASSUMED]
        calls = [server for server in asked if server.model == model]
        for n, column in enumerate(totals):
            mean = sum(row.get(column) or 0 for row in rows) / len(rows)
            totals[column] += mean * len(calls)
            cost += sum((server.price or (0.0, 0.0))[n] * mean / 1e6 for server in calls)
    return Estimate(
        stored=len(jobs) - len(missing),
        calls=len(missing),
        cost=cost if all(server.price is not None for server in asked) else None,
        measured=len(measured),
        spent=store.spent if store else 0.0,
        **{column: round(total) for column, total in totals.items()},
    )


def run_captions(
    requests: Sequence[CaptionRequest],
    schema: str | Schema,
    sources: Sequence[Server | Classifier],
    store: str | Path,
    *,
    sampling: Sampling | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    **settings: Any,
) -> Progress:
    """Ask every model about every image; answers in the store are not asked for again.

    Args:
        requests: The images. Only their pixels are sent.
        schema: ``"person"``, ``"vehicle"`` or a custom schema.
        sources: The models and classifiers.
        store: File of the answers; created, or continued if it exists.
        sampling: How to sample the models.
        on_error: What to do about images that cannot be read, see `index_images`.
        **settings: ``limits``, ``budget``, ``max_calls``, ``probing`` and ``report`` of `runner.ask`.

    Returns:
        The outcome; `Progress.stopped` says why it ended early.

    Raises:
        ValueError, ConnectionError, PermissionError, OSError: As `runner.ask`. Whatever was answered is in the store.
    """
    jobs = caption_jobs(index_images(requests, on_error=on_error), schema, sources, sampling or Sampling())
    with open_store(store, get_schema(schema)) as rows:
        return run_jobs(jobs, rows, **settings)


def open_store(path: str | Path, schema: Schema, *, write: bool = True) -> Store:
    """Open a store, with a warning about lines that are damaged and rows that this schema does not use."""
    store = Store(Path(path), write=write)
    if store.damaged:
        shown = ", ".join(map(str, store.damaged[:5])) + (", …" if len(store.damaged) > 5 else "")
        _logger.warning("%s: %d damaged lines are not used: %s", path, len(store.damaged), shown)
    if others := store.count_other_schemas(schema.digest()):
        _logger.warning("%s: %d answers belong to another version of the schema; kept, not used", path, others)
    return store


def run_jobs(jobs: Sequence[Job], store: Store, **settings: Any) -> Progress:
    """Run `ask` to its end, in another thread if an event loop is already running (as in a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(ask(jobs, store, **settings))
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(ask(jobs, store, **settings))).result()


def collect(
    requests: Sequence[CaptionRequest],
    schema: str | Schema,
    models: Sequence[str | Source],
    store: Store,
    sampling: Sampling | None = None,
) -> Collected:
    """Read the answers of some models to these (indexed) images from the store; nothing is asked.

    A name stands for a model that was asked for a text.
    """
    schema, sampling = get_schema(schema), sampling or Sampling()
    sources = [Source(model) if isinstance(model, str) else model for model in models]
    jobs = caption_jobs(requests, schema, sources, sampling)
    counts: Counter[str] = Counter()
    known: dict[tuple[str, str], dict[str, Answers]] = {}
    for job in jobs:
        image, modality, sample = (job.parts[name] for name in ("image", "modality", "sample"))
        replies = [_parsed(schema, modality, row) for row in job.stored(store)]
        if not replies:
            counts["missing"] += 1
            continue
        best = max(replies, key=lambda reply: len(reply.answers))
        counts.update([best.status, *best.flags, *(flag for a in best.answers.values() for flag in a.flags)])
        if best.status == "ok":
            several = sampling.samples > 1 and job.server.api == "chat"
            annotator = f"{job.server.model}#{sample}" if several else job.server.model
            known.setdefault((image, modality), {})[annotator] = best.answers
    answers: dict[tuple[str, str], dict[str, dict[str, Answers]]] = {}
    for one in requests:
        answers.setdefault((one.split, one.key), {})[one.modality] = known.get((one.digest, one.modality), {})
    return Collected(answers, counts)


def merge_sample(
    annotations: Mapping[str, Mapping[str, Answers]],
    schema: str | Schema,
    *,
    rule: Rule = "confidence",
    fields: Sequence[str] | None = None,
    absence: Absence | None = None,
    min_confidence: float = 0.0,
    priors: Mapping[str, Distribution] | None = None,
) -> dict[str, Merged]:
    """Merge the answers about one sample: the best of the annotators in each modality, then over the modalities.

    Args:
        annotations: Answers by modality and annotator.
        schema: Schema of the answers.
        rule: See `best_of`.
        fields: Fields that the modalities complement, see `complement`; ``()`` for none.
        absence: Whether "none" yields to a modality that sees something, see `complement`.
        min_confidence: Confidence of an answer to which it yields.
        priors: How frequent the values are, see `complement`.

    Returns:
        By modality; a modality without any answer is absent.
    """
    best = {modality: best_of(annotators, rule=rule) for modality, annotators in annotations.items() if annotators}
    how: dict[str, Any] = {"rule": rule, "absence": absence, "min_confidence": min_confidence, "priors": priors}
    return complement(best, schema, fields=fields, **how)


def source_of(server: Server | Classifier | Source) -> Source:
    """Return what finds the answers of a model or classifier in a store."""
    if isinstance(server, Source):
        return server
    if isinstance(server, Server):
        return Source(server.model, server.api)
    return Source(server.model, server.api, server.digest, server.modalities)


def _parsed(schema: Schema, modality: str, row: Mapping[str, Any]) -> ParsedReply:
    if row.get("api"):
        return parse_distributions(row.get("text"), schema, modality, refusal=row.get("refusal"))
    given = {name: row.get(name) for name in ("finish", "refusal")}
    return parse_reply(row.get("text"), schema, modality, **given, reasoned=bool(row.get("reasoned")))


def _judge(schema: Schema, modality: str, row: Mapping[str, Any]) -> str | None:
    return _HINT if _parsed(schema, modality, row).needs_repair else None
