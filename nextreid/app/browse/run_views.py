"""Pages of runs: what there is, one run, several over each other."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.routing import Route

from nextreid.retrieval import METRICS

from .charts import Line, chart
from .library import Library, Run, read_run
from .pages import Templates, as_whole, item, table

_EPOCHS = 200  # rows of the table; of longer runs the last
_CURVES = (
    ("loss, total", ("loss", "total")),
    ("mAP, %", ("evaluation", "mAP")),
    ("rank-1, %", ("evaluation", "rank-1")),
    ("highest learning rate", ("lr",)),
    ("seconds of training", ("train_seconds",)),
)


class RunViews:
    """The first page, and those of runs."""

    def __init__(self, library: Library, templates: Templates) -> None:
        self._library, self._templates = library, templates

    def routes(self) -> list[Route]:
        """Addresses and what answers them."""
        return [
            Route("/", self.overview),
            Route("/run/{run:int}", self.run),
            Route("/runs", self.compare),
        ]

    def overview(self, request: Request) -> Any:
        """All that is browsed."""
        runs = [(number, name, read_run(folder)) for number, (name, folder) in enumerate(self._library.runs.items())]
        datasets = [
            (number, browsed.name, browsed.dataset, len(browsed.samples))
            for number, browsed in enumerate(self._library.browsed)
        ]
        return self._templates.page("overview.html", runs=runs, datasets=datasets, models=self._library.all_models())

    def run(self, request: Request) -> Any:
        """One run."""
        number = request.path_params["run"]
        name, folder = item("run", list(self._library.runs.items()), number)
        run = read_run(folder)
        charts = [
            chart("loss", [Line(part, run.series("loss", part)) for part in run.names("loss")]),
            chart("learning rate", [Line(part, run.series("lr", part)) for part in run.names("lr")]),
            chart("evaluation, %", [Line(m, _points(run, ("evaluation", m))) for m in METRICS]),
            chart(
                "mAP with and without captions, %",
                [
                    Line("with", _points(run, ("evaluation", "mAP"))),
                    Line("without", _points(run, ("evaluation_without_text", "mAP"))),
                ]
                if run.series("evaluation_without_text", "mAP")
                else [],
            ),
        ]
        logged = [
            chart(group.replace("_", " "), [Line(name, points) for name, points in lines.items()], "step")
            for group, lines in run.logged().items()
        ]
        parts = [
            (part, list(value.items())) for part, value in run.described.items() if isinstance(value, Mapping) and value
        ]
        models = [model for model in self._library.all_models() if model.checkpoint.startswith(f"{folder}/")]
        return self._templates.page(
            "run.html",
            number=number,
            name=name,
            folder=folder,
            run=run,
            charts=charts,
            logged=logged,
            parts=parts,
            models=models,
            epochs=_epochs(run),
        )

    def compare(self, request: Request) -> Any:
        """The curves of several runs over each other."""
        every = list(self._library.runs.items())
        asked = request.query_params.getlist("run")
        numbers = list(dict.fromkeys(as_whole("run", number, len(every) - 1) for number in asked)) or range(len(every))
        runs = [(number, item("run", every, number)[0], read_run(every[number][1])) for number in numbers]
        charts = [chart(title, [Line(name, _points(run, path)) for _, name, run in runs]) for title, path in _CURVES]
        return self._templates.page("runs.html", runs=runs, charts=charts)


def _points(run: Run, path: tuple[str, ...]) -> list[tuple[float, float]]:
    """Points of a curve: shares in percent, and of learning rates the highest."""
    if path == ("lr",):
        by_epoch: dict[float, float] = {}
        for name in run.names("lr"):
            for epoch, value in run.series("lr", name):
                by_epoch[epoch] = max(value, by_epoch.get(epoch, value))
        return sorted(by_epoch.items())
    scale = 100 if path[0].startswith("evaluation") else 1
    return [(epoch, scale * value) for epoch, value in run.series(*path)]


def _epochs(run: Run) -> Markup:
    rows = []
    for row in run.history[-_EPOCHS:]:
        found, loss = (part if isinstance(part := row.get(name), Mapping) else {} for name in ("evaluation", "loss"))
        metrics = [found.get(name) for name in METRICS]
        shares = [f"{100 * value:.1f}" if isinstance(value, int | float) else None for value in metrics]
        rows.append([row.get("epoch"), loss.get("total"), row.get("train_seconds"), *shares])
    return table(["epoch", "loss", "seconds", *(f"{name}, %" for name in METRICS)], rows)
