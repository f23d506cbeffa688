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
from bisect import bisect_left
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


@cache
def runs(file):
    """Rows that differ in nothing but their seed, and what follows from them: means, spreads, differences."""
    groups = defaultdict(dict)
    for row in records(file):
        groups[tuple(row.get(column, "") for column in KEYS)][row.get("seed")] = row
    found = [(list(group.values()), {len(group)}) for group in groups.values()]
    for rows, follows in found:
        for metric in ("mAP", "rank-1", "rank_1", "tokens_kept"):
            values = [number(row.get(metric, "")) for row in rows]
            if None not in values:
                follows |= {statistics.fmean(values), *([statistics.stdev(values)] if len(values) > 1 else ())}
    comparable = [pair for pair in zip(groups.values(), found, strict=True) if "seed" in pair[1][0][0]]
    for (group, (_, mine)), (other, (_, theirs)) in itertools.combinations(comparable, 2):
        both = sorted(group.keys() & other.keys())
        gains = [tuple(number(of[seed].get("mAP", "")) for of in (group, other)) for seed in both]
        if len(both) > 1 and not any(None in pair for pair in gains):
            mean, half = mean_interval([a - b for a, b in gains])
            for follows in (mine, theirs):
                follows |= {mean, mean - half, mean + half}
    return found


@cache
def published():
    """Figures of the paper, and by how much they differ."""
    paper = [row.paper for row in load_rows().values() if row.paper]
    return {value for row in paper for value in row.values()} | {abs(a["mAP"] - b["mAP"]) for a in paper for b in paper}


def candidates(files, key):
    """Numbers that a row of a table may hold: those of the rows that have its first cell, else of all."""
    found = set()
    for file in files:
        rows = records(file)
        mine = [row for row in rows if key in (label(value) for value in row.values())] or rows
        found |= {value for row in mine for text in row.values() if (value := number(text)) is not None}
        chosen = set(map(id, mine))
        found |= set().union(*(follows for group, follows in runs(file) if chosen & set(map(id, group))))
    return {abs(value) for value in found} | {abs(100 * value) for value in found} | published()


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
                at = bisect_left(known, value - near)
                if not known[at : at + 1] or known[at] > value + near:
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
