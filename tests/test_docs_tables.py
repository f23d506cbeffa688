"""Figures in the tables of the docs are rows of benchmarks/results, or say that they are not.

The line above a table of figures says where they come from: ``<!-- figures: FILE.csv ... -->``, or
``<!-- figures: observed once -->`` for what was seen and not recorded, or ``<!-- figures: published -->`` for what
others state.
"""

import csv
import itertools
import json
import re
import statistics
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from benchmarks.paper.rows import load_rows
from benchmarks.paper.tables import mean_interval

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?")
NUMERIC = re.compile(r"[-+−±<>~*(\[]*\d[\d.,/ ±%+−\-\[\]*]*")
SOURCE = re.compile(r"<!-- figures: (.+) -->")
KEYS = ("setting", "name", "row", "model", "reference", "text_at_test", "drop_modality", "query", "gallery", "lr_new")
WORDS = ("observed once", "published")


def tables(path):
    """Line number, line above and body cells of every table, its columns of goals apart."""
    lines = path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        size = len(list(itertools.takewhile(lambda line: line.startswith("|"), lines[at:])))
        if size:
            heading, _, *body = [
                [cell.strip() for cell in line.strip("|").split("|")] for line in lines[at : at + size]
            ]
            goals = [at for at, title in enumerate(heading) if title.startswith("goal")]
            yield at + 1, lines[at - 1] if at else "", body, goals
        at += size or 1


ALL = [(path, *table) for path in PAGES for table in tables(path)]
MARKED = [table for table in ALL if SOURCE.fullmatch(table[2])]


def name(table):
    return f"{table[0].name}:{table[1]}"


def test_every_table_of_figures_says_where_they_come_from():
    silent = []
    for path, line, above, body, _ in ALL:
        cells = [cell for row in body for cell in row[1:]]
        if 3 * sum(bool(NUMERIC.fullmatch(cell)) for cell in cells) >= len(cells) and not SOURCE.fullmatch(above):
            silent.append(f"{path.name}:{line}")
    assert not silent, f"tables of figures without a line <!-- figures: ... --> above them: {silent}"


@cache
def records(file):
    with (ROOT / "benchmarks" / "results" / file).open(newline="", encoding="utf-8") as text:
        found = list(csv.DictReader(text))
    for row in found:
        row["lr_new"] = str(json.loads(row["recipe"]).get("lr_new")) if row.get("recipe") else ""
    return found


def number(text):
    """A value, or the number of a goal such as ``"<= 1.3"``."""
    try:
        return float(re.sub(r"^[<>]= ", "", text))
    except ValueError:
        return None


def measured(row):
    """What was compared with the goal, as a table prints it."""
    return row.get("ratio") or row.get("ours")


def label(text):
    return re.sub(r"[`*]", "", text).strip()


def candidates(files, key):
    """Numbers that a row of a table may hold: values, means and spreads over seeds, differences of pairs of rows."""
    found = set()
    for file in files:
        rows = records(file)
        mine = [row for row in rows if key in (label(value) for value in row.values())] or rows
        groups = defaultdict(dict)
        for row in rows:
            groups[tuple(row.get(column, "") for column in KEYS)][row.get("seed")] = row
            if row in mine:
                found |= {value for text in row.values() if (value := number(text)) is not None}
        for group in groups.values():
            if not any(row in mine for row in group.values()):
                continue
            for metric in ("mAP", "rank-1", "rank_1", "tokens_kept"):
                values = [number(row.get(metric, "")) for row in group.values()]
                if None in values:
                    continue
                found |= {statistics.fmean(values), *([statistics.stdev(values)] if len(values) > 1 else ())}
                for other in groups.values() if metric == "mAP" and "seed" in rows[0] else ():
                    both = sorted(group.keys() & other.keys())
                    if len(both) > 1:
                        gains = [float(group[seed][metric]) - float(other[seed][metric]) for seed in both]
                        mean, half = mean_interval(gains)
                        found |= {mean, mean - half, mean + half}
            found.add(len(group))
    paper = [row.paper for row in load_rows().values() if row.paper]
    figures = {value for row in paper for value in row.values()}
    gaps = {a["mAP"] - b["mAP"] for a in paper for b in paper}
    return (
        {abs(value) for value in found} | {abs(100 * value) for value in found} | figures | {abs(gap) for gap in gaps}
    )


@pytest.mark.parametrize("table", MARKED, ids=name)
def test_figures_are_rows_of_results(table):
    path, line, above, body, _ = table
    source = SOURCE.fullmatch(above).group(1)
    if source in WORDS:
        return
    wrong = []
    for cells in body:
        known = sorted(candidates(source.split(), label(cells[0])))
        for cell in cells[1:]:
            for text in FIGURE.findall(re.sub(r"`[^`]*`|R-1", "", cell)):
                digits = len(text.partition(".")[2])
                value, near = float(text.replace(",", "")), 0.5001 * 10**-digits
                if not any(abs(value - other) <= near for other in known):
                    wrong.append(f"{label(cells[0])}: {text}")
    assert not wrong, f"{path.name}:{line} has figures that {source} has not: {wrong}"


def test_a_goal_that_was_missed_says_so():
    """Where a table shows a value that its CSV has as not met, the row says "missed"."""
    for path, line, above, body, goals in MARKED:
        source = SOURCE.fullmatch(above).group(1)
        if source in WORDS:
            continue
        for file in source.split():
            for cells in body:
                for cell in (cell for at, cell in enumerate(cells[1:], start=1) if at not in goals):
                    shown = FIGURE.findall(cell)
                    rows = [row for row in records(file) if row.get("met") == "False" and measured(row) in shown]
                    assert not rows or "missed" in " ".join(cells), f"{path.name}:{line} hides a missed goal: {cells}"
