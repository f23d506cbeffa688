"""Pages of rankings: the queries of one model, one query, two models on the same queries."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nextreid._names import unknown

from .library import BrowsedDataset, Library, Model
from .pages import Card, Templates, address, card, item, labels, pages, whole, word
from .ranks import ORDERS, TOP, Filter, Ranker, Ranking, Shown, choose

_QUERIES, _NEAREST = 10, 8  # of a page, and entries of each query on it
_ANSWERS = ("right", "wrong")


class RankViews:
    """Pages of rankings."""

    def __init__(self, library: Library, templates: Templates, ranker: Ranker) -> None:
        self._library, self._templates, self._ranker = library, templates, ranker

    def routes(self) -> list[Route]:
        """Addresses and what answers them."""
        return [
            Route("/ranks", self.ranks),
            Route("/query", self.query),
            Route("/masks", self.masks),
            Route("/compare", self.compare),
        ]

    def ranks(self, request: Request) -> Any:
        """The queries of one model that fit a filter, each with its nearest entries."""
        number, browsed = self._dataset(request)
        model, shown = self._model(request, "model"), _shown(request, browsed)
        wanted = Filter(
            word(request, "key"),
            word(request, "identity"),
            word(request, "camera"),
            word(request, "found", _ANSWERS),
            word(request, "order", ORDERS) or "worst",
        )
        ranking = self._ranker.rank(model, number, shown)
        places = choose(ranking, browsed, wanted)
        paged = pages(request, len(places), _QUERIES)
        rows = [
            self._row(number, browsed, model, ranking, shown, at, _NEAREST) for at in places[paged.first : paged.stop]
        ]
        return self._templates.page(
            "ranks.html",
            rows=rows,
            pages=paged,
            wanted=wanted,
            orders=ORDERS,
            answers=_ANSWERS,
            **self._choices(number, browsed, shown),
            model=model,
            ranking=ranking,
        )

    def query(self, request: Request) -> Any:
        """One query: its captions, its nearest entries, and what the model looks at in it."""
        number, browsed = self._dataset(request)
        model, shown, place = self._model(request, "model"), _shown(request, browsed), _query(request, browsed)
        asked = browsed.samples[place]
        ranking = self._ranker.rank(model, number, shown)
        at = next((i for i, sample in enumerate(ranking.dataset.query) if sample.key == asked.key), None)
        if at is None:
            raise ValueError(f"{asked.key} was left out of the ranking, as it cannot be read (--on-error)")
        sample = ranking.dataset.query[at]
        masks, problem = "", ""
        if request.query_params.get("masks"):
            try:
                self._ranker.masks(model, number, sample, shown)
                masks = address("/masks", _fields(number, shown), model=model.number, sample=place)
            except ValueError as error:
                problem = str(error)
        captions = [
            (modality, " ".join(caption))
            for modality, caption in zip(browsed.dataset.modalities, sample.captions, strict=False)
            if caption and modality not in shown.missing
        ]
        return self._templates.page(
            "query.html",
            row=self._row(number, browsed, model, ranking, shown, at, TOP),
            key=sample.key,
            captions=captions,
            masks=masks,
            problem=problem,
            **self._choices(number, browsed, shown),
            model=model,
            ranking=ranking,
            ask=address("/query", _fields(number, shown), model=model.number, sample=place, masks=1),
            back=address("/ranks", _fields(number, shown), model=model.number),
            page_of=f"/dataset/{number}/sample/{place}",
            labels=labels(browsed, sample),
        )

    def masks(self, request: Request) -> Response:
        """What the model looks at in one query, as an image."""
        number, browsed = self._dataset(request)
        model, shown = self._model(request, "model"), _shown(request, browsed)
        sample = browsed.samples[_query(request, browsed)]
        return Response(self._ranker.masks(model, number, sample, shown), media_type="image/png")

    def compare(self, request: Request) -> Any:
        """Two models on the same queries, those first on which they differ most."""
        number, browsed = self._dataset(request)
        shown = _shown(request, browsed)
        models = [self._model(request, name) for name in ("model", "other")]
        (one, two), test, pairs = self._ranker.compare(models, number, shown)
        better = sum(two.ranked.ap[b] > one.ranked.ap[a] for a, b in pairs)
        worse = sum(two.ranked.ap[b] < one.ranked.ap[a] for a, b in pairs)
        paged = pages(request, len(pairs), _QUERIES // 2)
        rows = [
            {
                "gap": 100 * (two.ranked.ap[b] - one.ranked.ap[a]),
                "rows": [
                    self._row(number, browsed, model, ranking, shown, at, _NEAREST)
                    for model, ranking, at in zip(models, (one, two), (a, b), strict=True)
                ],
            }
            for a, b in pairs[paged.first : paged.stop]
        ]
        return self._templates.page(
            "compare.html",
            rows=rows,
            pages=paged,
            test=test,
            better=better,
            worse=worse,
            rankings=(one, two),
            **self._choices(number, browsed, shown),
            model=models[0],
            other=models[1],
        )

    def _row(
        self, number: int, browsed: BrowsedDataset, model: Model, ranking: Ranking, shown: Shown, at: int, top: int
    ) -> dict[str, Any]:
        """What a page shows of one query: its card, the cards of its nearest entries, its metrics."""
        query, result = ranking.dataset.query[at], ranking.ranked.result
        numbers = browsed.numbers
        place = numbers["query"][query.key]
        link = address("/query", _fields(number, shown), model=model.number, sample=place)
        asked = card(number, browsed, place, shown.missing, link, mark="query", note="query")
        entries = list[Card]()
        scores = ranking.scores(at, top)
        for rank, (place, match, score) in enumerate(
            zip(ranking.places[at, :top].tolist(), ranking.matches[at, :top].tolist(), scores, strict=True), start=1
        ):
            if place < 0:
                break
            key = ranking.dataset.gallery[place].key
            mark = ("right" if match else "wrong") if query.pid >= 0 else ""
            note = f"{rank} · {score:.4f}"
            entries.append(card(number, browsed, numbers["gallery"][key], shown.missing, mark=mark, note=note))
        return {
            "query": asked,
            "entries": entries,
            "model": model.name,
            "href": link,
            "ap": float(result.ap[at]),
            "first": int(result.first[at]),
        }

    def _choices(self, number: int, browsed: BrowsedDataset, shown: Shown) -> dict[str, Any]:
        """What the forms of these pages choose from."""
        return {"number": number, "browsed": browsed, "shown": shown, "models": self._library.all_models()}

    def _model(self, request: Request, name: str) -> Model:
        models = self._library.all_models()
        if not models:
            raise ValueError("no model was given: name a run or a checkpoint, too (nextreid browse RUN DATASET)")
        given = word(request, name)
        if not given:
            return models[min(len(models) - 1, int(name == "other"))]
        wanted = {str(model.number): model for model in models}
        if given not in wanted:
            raise KeyError(unknown("model", given, [f"{m.number} ({m.name})" for m in models]))
        return wanted[given]

    def _dataset(self, request: Request) -> tuple[int, BrowsedDataset]:
        if not self._library.browsed:
            raise ValueError("no dataset was given to rank: name one, too (nextreid browse RUN DATASET)")
        number = whole(request, "dataset", 0, 10**6)
        return number, item("dataset", self._library.browsed, number)


def _shown(request: Request, browsed: BrowsedDataset) -> Shown:
    """The condition that a request asks for, its modalities in the dataset's order."""
    names = browsed.dataset.modalities
    given = set(request.query_params.getlist("missing"))
    if wrong := given - set(names):
        raise ValueError(unknown("modality", wrong, names))
    return Shown(tuple(name for name in names if name in given), word(request, "text", ("yes", "no")) != "no")


def _query(request: Request, browsed: BrowsedDataset) -> int:
    """The number of the sample that a request asks for; KeyError if it is no query."""
    number = whole(request, "sample", 0, 10**9)
    if browsed.split(number) != "query":
        raise KeyError(f"sample {number} of {browsed.name} is no query")
    return number


def _fields(number: int, shown: Shown) -> list[tuple[str, Any]]:
    """The fields of an address that say what was ranked."""
    fields = [("dataset", number), *(("missing", name) for name in shown.missing)]
    return fields if shown.text else [*fields, ("text", "no")]
