"""Results of rows to CSV and Markdown, with the paper's figure beside ours."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nextreid._files import write_whole
from nextreid.retrieval import METRICS

# Two-sided 95 % quantiles of Student's t by degrees of freedom; 1.96 beyond.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95 % interval (Student's t); no width for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def result_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Flatten results of `run_bench` to one row for each run and text setting; runs that failed have a row too."""
    out = []
    for result in results:
        row, unit, data = result["row"], result["unit"], result["data"]
        kept = [share for expert in result.get("kept", ()) for share in expert]
        head = {"table": row["table"], "row": row["row"], "name": row["name"], "title": row["title"]}
        head["dataset"] = data["name"]
        tail = {
            "epochs": result.get("epochs", ""),
            "error": result.get("error", ""),
            "trainable": result["trainable"],
            "tokens_kept": round(statistics.fmean(kept), 4) if kept else "",
            "run": result["digest"],
            "model": unit["model"],
            "arguments": json.dumps(unit["arguments"], sort_keys=True),
            "recipe": json.dumps(unit["recipe"], sort_keys=True),
            "data_options": json.dumps(unit["data"], sort_keys=True),
            "start": json.dumps(unit["start"], sort_keys=True),
            "data_note": "; ".join(data["notes"]) if unit["start"] else data["name"],
            "seconds": result["seconds"],
            **result["machine"],
        }
        for report in result.get("evaluations") or [{}]:
            numbers = {measure: round(report[measure], 5) if report else "" for measure in METRICS}
            text = ("yes" if report["text"] else "no") if report else ""
            queries = {"valid_queries": report.get("valid_queries", ""), "protocol": report.get("protocol", "")}
            out.append({**head, "seed": result["seed"], "text_at_test": text, **numbers, **queries, **tail})
    return out


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal columns whole."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, lambda temporary: temporary.write_text(buffer.getvalue(), encoding="utf-8"))


def markdown(results: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], synthetic: bool) -> str:
    """Write one table: the paper's figures, ours over the seeds, differences to the reference row.

    Args:
        results: Of `run_bench`; rows that are still open are named below the table.
        rows: The rows that the table is to have, as dicts.
        synthetic: Whether ours were measured on the synthetic persons: then the paper's figure is another dataset's,
            and only the differences between rows can be compared.
    """
    paper_heading = "paper, its own data: mAP / R-1" if synthetic else "paper: mAP / R-1"
    sets = {result["data"]["name"] for result in results if "data" in result}
    ours = sets.pop() if len(sets) == 1 else "ours"
    of_sets = len({row["dataset"] for row in rows}) > 1
    columns = ["row", "", paper_heading, "runs", f"{ours}: mAP", "R-1", "mAP without text", "mAP − reference", "paper"]
    if not synthetic:
        columns.insert(8, "mAP − paper's")
    of_tracks = any(row["track"] for row in rows)
    if of_tracks:
        columns.insert(2, "may use")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    by_row = {row["name"]: _numbers(results, row["name"]) for row in rows}
    for row in rows:
        numbers, reference = by_row[row["name"]], by_row.get(row["reference"], {})
        paper = row["paper"]
        title = row["title"] + (f", {row['dataset']}" if of_sets else "")
        cells = [row["row"], title, f"{paper['mAP']} / {paper['rank-1']}" if paper else "–", str(len(numbers))]
        cells += [_spread([run["on"]["mAP"] for run in numbers.values()])]
        cells += [_spread([run["on"]["rank-1"] for run in numbers.values()])]
        cells += [_spread([run["off"]["mAP"] for run in numbers.values() if run["reads_text"]])]
        both = sorted(numbers.keys() & reference.keys())
        cells += [_difference([numbers[s]["on"]["mAP"] - reference[s]["on"]["mAP"] for s in both])]
        if not synthetic:
            mean = statistics.fmean(run["on"]["mAP"] for run in numbers.values()) if numbers else None
            cells += [f"{mean - paper['mAP']:+.1f}" if paper and mean is not None else "–"]
        other: dict[str, float] = next((r["paper"] for r in rows if r["name"] == row["reference"]), {})
        cells += [f"{paper['mAP'] - other['mAP']:+.1f}" if paper and other else "–"]
        if of_tracks:
            cells.insert(2, row["track"])
        lines.append("| " + " | ".join(cells) + " |")
    failed = [f"{r['row']['name']} seed {r['seed']}: {r['error']}" for r in results if "error" in r]
    names = {row["name"] for row in rows}
    lines += ["", *(f"Failed: {line}" for line in failed if line.split(" ", 1)[0] in names)]
    return "\n".join(lines).rstrip() + "\n"


def _numbers(results: Sequence[Mapping[str, Any]], name: str) -> dict[int, dict[str, Any]]:
    """Percentages of a row by seed, with text at test and without; a row that reads none has the same twice."""
    out = {}
    for result in results:
        if result["row"]["name"] != name or "error" in result:
            continue
        percent = [{m: 100 * report[m] for m in METRICS} for report in result["evaluations"]]
        reads = result["evaluations"][0]["text"]
        out[result["seed"]] = {"on": percent[0], "off": percent[-1], "reads_text": reads}
    return out


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _difference(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, half = mean_interval(values)
    return f"{mean:+.1f}" + ("" if half is None else f" [{mean - half:+.1f}, {mean + half:+.1f}]")


def write_tables(
    results: Sequence[Mapping[str, Any]], rows: Sequence[Any], out: Path, *, synthetic: bool
) -> list[Path]:
    """Write ``TABLE.csv`` and ``TABLE.md`` of every table that has a finished run.

    Args:
        results: Of `run_bench` or `finished`.
        rows: The `BenchRow` of the tables.
        out: Folder.
        synthetic: See `markdown`.

    Returns:
        The files.
    """
    paths = []
    for table in dict.fromkeys(row.table for row in rows):
        members = [row.to_dict() for row in rows if row.table == table]
        mine = [result for result in results if result["row"]["table"] == table]
        if not mine:
            continue
        paths += [out / f"{table}.csv", out / f"{table}.md"]
        order = [row["name"] for row in members]
        mine.sort(key=lambda result: (order.index(result["row"]["name"]), result["seed"]))
        write_csv(paths[-2], result_rows(mine))
        text = markdown(mine, members, synthetic)
        write_whole(paths[-1], partial(Path.write_text, data=text, encoding="utf-8"))
    return paths
