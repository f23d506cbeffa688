"""Pages of datasets: samples, one sample, what the checks found, the captions."""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nextreid.captioning import Audit, audit_captions
from nextreid.captioning.audit import DEFECTS, Label, find_defects
from nextreid.captioning.text import clip_token_counter
from nextreid.data import ReIDDataset, Sample, check_dataset
from nextreid.data.checks.findings import Report, each_sample
from nextreid.data.image import Image
from nextreid.engine.ablations import has_captions
from nextreid.retrieval import get_protocol

from .images import Thumbnails
from .jobs import Jobs, Progress
from .library import BrowsedDataset, Library
from .pages import Templates, address, audit_table, card, item, labels, pages, table, word

_SAMPLES = 48  # of a page
_ALIKE = 24  # samples of the same identity
_SPLITS = ("train", "query", "gallery")
_DEFECTS = (*DEFECTS, "color")


class DataViews:
    """Pages of datasets and the images of their samples."""

    def __init__(self, library: Library, templates: Templates, thumbnails: Thumbnails, jobs: Jobs) -> None:
        self._library, self._templates, self._thumbnails, self._jobs = library, templates, thumbnails, jobs

    def routes(self) -> list[Route]:
        """Addresses and what answers them."""
        of = "/dataset/{dataset:int}"
        return [
            Route(of, self.samples),
            Route(f"{of}/sample/{{sample:int}}", self.sample),
            Route(f"{of}/check", self.check),
            Route(f"{of}/captions", self.captions),
            Route(f"{of}/stack/{{sample:int}}", self.stack),
            Route(f"{of}/image/{{sample:int}}/{{modality:int}}", self.image),
        ]

    def samples(self, request: Request) -> Any:
        """Samples by page."""
        number, browsed = self._dataset(request)
        dataset = browsed.dataset
        wanted = {name: word(request, name) for name in ("key", "identity", "camera")}
        split, without = word(request, "split", _SPLITS), word(request, "without", (*dataset.modalities, "captions"))
        found = list[int]()
        start = 0
        for name, samples in dataset.splits().items():
            if split in ("", name):
                found += [start + i for i, s in enumerate(samples) if _fits(browsed, s, wanted, without)]
            start += len(samples)
        paged = pages(request, len(found), _SAMPLES)
        cards = [card(number, browsed, at, note=browsed.split(at)) for at in found[paged.first : paged.stop]]
        counts = [
            [name, facts["samples"], facts["ids"], facts["cameras"], facts["scenes"], *facts["images"].values()]
            for name, facts in dataset.summary().items()
        ]
        columns = ["split", "samples", "identities", "cameras", "scenes", *(f"{m} images" for m in dataset.modalities)]
        return self._templates.page(
            "samples.html",
            number=number,
            browsed=browsed,
            cards=cards,
            pages=paged,
            counts=table(columns, counts),
            wanted={**wanted, "split": split, "without": without},
            splits=_SPLITS,
            captions=has_captions(browsed.samples),
        )

    def sample(self, request: Request) -> Any:
        """One sample: its images as they are, its captions, others of its identity."""
        number, browsed = self._dataset(request)
        at = request.path_params["sample"]
        sample: Sample = item(f"sample of {browsed.name}", browsed.samples, at)
        captions = sample.captions or ((),) * len(browsed.dataset.modalities)
        shown = [
            {
                "modality": modality,
                "missing": image is None,
                "problem": None if image is None else self._thumbnails.problem(image, sample.key, modality),
                "caption": " ".join(caption),
            }
            for modality, image, caption in zip(browsed.dataset.modalities, sample.images, captions, strict=True)
        ]
        split = browsed.split(at)
        alike = [
            other
            for other, another in enumerate(browsed.samples)
            if another.pid == sample.pid >= 0 and another is not sample
        ]
        return self._templates.page(
            "sample.html",
            number=number,
            browsed=browsed,
            at=at,
            sample=sample,
            split=split,
            shown=shown,
            labels=labels(browsed, sample),
            alike=len(alike),
            same=address(f"/dataset/{number}", identity=browsed.label("pid", sample)),
            cards=[card(number, browsed, other, note=browsed.split(other)) for other in alike[:_ALIKE]],
            models=self._library.all_models() if split == "query" else [],
        )

    def check(self, request: Request) -> Any:
        """What ``nextreid data check`` finds, with the images of its examples."""
        number, browsed = self._dataset(request)
        dataset = browsed.dataset

        def look(progress: Progress) -> Report:
            rule = get_protocol(dataset.protocol)
            return check_dataset(
                dataset,
                rule.exclude,
                protocol=rule.name,
                count_tokens=clip_token_counter(),
                workers=os.cpu_count() or 1,
                progress=progress,
            )

        report = self._jobs.get(("check", number), f"check {browsed.name}", look)
        findings = [
            (finding, [(example, _cards(number, browsed, example)) for example in finding.examples])
            for finding in report.findings
        ]
        return self._templates.page("check.html", number=number, browsed=browsed, report=report, findings=findings)

    def captions(self, request: Request) -> Any:
        """The audit of the captions, and those with defects."""
        number, browsed = self._dataset(request)
        if not has_captions(browsed.samples):
            raise ValueError(f"{browsed.name} has no captions to audit")
        what = f"audit the captions of {browsed.name}"
        found = self._jobs.get(("captions", number), what, lambda progress: _audited(browsed.dataset))
        defect = word(request, "defect", _DEFECTS)
        listed = [each for each in found.defective if not defect or defect in each.defects]
        paged = pages(request, len(listed), _SAMPLES)
        rows = [
            (card(number, browsed, browsed.numbers[each.split][each.key]), each)
            for each in listed[paged.first : paged.stop]
        ]
        return self._templates.page(
            "captions.html",
            number=number,
            browsed=browsed,
            audit=found.audit,
            rows=rows,
            pages=paged,
            defect=defect,
            tables=[audit_table(one) for one in found.audit.tables.values()],
            defects=[name for name in _DEFECTS if any(name in each.defects for each in found.defective)],
        )

    def stack(self, request: Request) -> Response:
        """The images of a sample below each other."""
        _, browsed = self._dataset(request)
        sample: Sample = item(f"sample of {browsed.name}", browsed.samples, request.path_params["sample"])
        hidden = set(request.query_params.getlist("hide"))
        shown = [i for i, name in zip(sample.images, browsed.dataset.modalities, strict=True) if name not in hidden]
        return stack_response(self._thumbnails, shown or sample.images)

    def image(self, request: Request) -> Response:
        """One image of a sample."""
        _, browsed = self._dataset(request)
        sample: Sample = item(f"sample of {browsed.name}", browsed.samples, request.path_params["sample"])
        place = request.path_params["modality"]
        image: Image | None = item("modality", sample.images, place)
        modality = browsed.dataset.modalities[place]
        if image is None:
            raise KeyError(f"sample {sample.key!r} has no {modality} image")
        return Response(self._thumbnails.large(image, sample.key, modality), media_type="image/jpeg")

    def _dataset(self, request: Request) -> tuple[int, BrowsedDataset]:
        number = request.path_params["dataset"]
        return number, item("dataset", self._library.browsed, number)


def stack_response(thumbnails: Thumbnails, images: Sequence[Image | None]) -> Response:
    """A stack of images as an answer, which is kept once it was sent."""
    data, place = thumbnails.stack(images)
    later = None if place is None else BackgroundTask(thumbnails.keep, data, place)
    return Response(data, media_type="image/jpeg", background=later)


def _fits(browsed: BrowsedDataset, sample: Sample, wanted: dict[str, str], without: str) -> bool:
    if wanted["key"] and wanted["key"].casefold() not in sample.key.casefold():
        return False
    if wanted["identity"] and browsed.label("pid", sample) != wanted["identity"]:
        return False
    if wanted["camera"] and browsed.label("camid", sample) != wanted["camera"]:
        return False
    if without == "captions":
        return not any(sample.captions)
    return not without or sample.images[browsed.dataset.modalities.index(without)] is None


def _cards(number: int, browsed: BrowsedDataset, example: str) -> list[Any]:
    """Cards of the samples that an example of a finding names: keys that stand in it as words, long ones first."""
    split = example.split(" ", 1)[0]
    order = sorted(browsed.numbers, key=lambda name: name != split)
    found: dict[str, int] = {}
    left = example
    named = {key for numbers in browsed.numbers.values() for key in numbers if key in example}
    for key in sorted(named, key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(key)}(?!\w)"
        if re.search(pattern, left):
            left = re.sub(pattern, " ", left)
            found[key] = next(browsed.numbers[name][key] for name in order if key in browsed.numbers[name])
    return [card(number, browsed, at, note=browsed.split(at)) for at in list(found.values())[:4]]


class _Defective(NamedTuple):
    split: str
    key: str
    modality: str
    caption: str
    defects: tuple[str, ...]


class _Audited(NamedTuple):
    audit: Audit
    defective: list[_Defective]


def _audited(dataset: ReIDDataset) -> _Audited:
    """The audit of a dataset's captions, and those that have defects."""
    captions: dict[tuple[str, str], dict[str, str]] = {}
    known: dict[str, Label] = {}
    for split, sample in each_sample(dataset):
        known[sample.key] = Label(sample.pid, sample.camid, sample.sceneid)
        for modality, sentences in zip(dataset.modalities, sample.captions, strict=False):
            if sentences:
                captions.setdefault((split, modality), {})[sample.key] = " ".join(sentences)
    audit = audit_captions(captions, labels=lambda key: label if (label := known[key]).pid >= 0 else None)
    defective = [
        _Defective("query" if split == "test" else split, key, modality, text, defects)
        for (split, modality), texts in captions.items()
        for key, text in texts.items()
        if (defects := find_defects(text, modality))
    ]
    return _Audited(audit, defective)
