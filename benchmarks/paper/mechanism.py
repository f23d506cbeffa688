"""Whether masks and captions matter where they should: rows of NEXT on synthetic persons made for the question."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nextreid.engine.recipe import get_recipe
from nextreid.retrieval import RetrievalResult, compare, load_result

from .pretraining import PretrainConfig, pretrain, tower_arguments
from .runs import ORACLE, RANKINGS, RESULT, RUNS, Unit, run_unit
from .tables import mean_interval, write_csv

PROFILE = "tiny"
SIZE: dict[str, Any] = {"num_train": 40, "num_test": 32, "frames_per_visit": 4}
RECIPE: dict[str, Any] = {"name": "mechanism", "epochs": 4, "lr_tower": 3e-4, "pad": 4, "warmup_epochs": 1}
RECIPE |= {"eval_every": 0}
BUNDLED = "next_tiny.synthetic_persons"
START = PretrainConfig(profile=PROFILE, patch=8, num_ids=300, epochs=6, pool_options={"bystander": 0.5, "clutter": 0.5})
# The bundled towers, which cost nothing to make; or one pretraining with and one without its identity loss.
STARTS = {"bundled": None, "identity": START, "no-identity": replace(START, identity_weight=0.0)}
_TMSE: dict[str, Any] = {"num_structure_experts": 0}
P_VALUE = 0.01


@dataclass(frozen=True)
class Setting:
    """Persons and a start.

    Attributes:
        data: Settings of `PersonsConfig`.
        start: A name of `STARTS`.
    """

    data: dict[str, Any] = field(default_factory=dict)
    start: str = "bundled"


@dataclass(frozen=True)
class Row:
    """A model.

    Attributes:
        title: What it is.
        head: Settings of the head.
        shuffled: Whether captions are exchanged between samples.
        oracle: Whether the part map is the mask.
        recipe: Fields of the recipe to change.
    """

    title: str
    head: dict[str, Any]
    shuffled: bool = False
    oracle: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)


SETTINGS = {
    "crowd": Setting({"bystander": 1.0, "clutter": 0.5}),
    "plain": Setting(),
    "part": Setting({"evidence": "upper:nir", "clutter": 0.5}),
    "gap": Setting({"view_gap": 1.0}),
    "identity": Setting(start="identity"),
    "no-identity": Setting(start="no-identity"),
}
_BACKBONE = {"num_semantic_experts": 0, "num_structure_experts": 0}
ROWS = {
    "A": Row("class tokens, concatenated", {**_BACKBONE, "aggregation": "concat"}),
    "B": Row("+ MMFA", _BACKBONE),
    "C": Row("+ MMFA + TMSE", _TMSE),
    "D": Row("+ MMFA + TMSE + CSSE", {}),
    "no text": Row("C, masks from the image alone", {**_TMSE, "text_modulation": False}),
    "shuffled": Row("C, captions exchanged between samples", _TMSE, shuffled=True),
    "random": Row("C, as many random patches", {**_TMSE, "sampling": "random", "sampling_keep_ratio": 0.5}),
    "oracle": Row("C, the part map as mask", {**_TMSE, "sampling": "all"}, oracle=True),
    "contrast": Row("C, modulation by contrast", {**_TMSE, "modulation_contrast": True}),
    # Table 5 on D.
    "35 %": Row("D, 35 % of the sentences", {}, recipe={"caption_quality": 0.35}),
    "70 %": Row("D, 70 % of the sentences", {}, recipe={"caption_quality": 0.7}),
    "35 %, words": Row("D, 35 % of the words", {}, recipe={"caption_quality": 0.35, "caption_unit": "word"}),
    "70 %, words": Row("D, 70 % of the words", {}, recipe={"caption_quality": 0.7, "caption_unit": "word"}),
}
# Pairs that a hypothesis speaks of: first minus second.
PAIRS = (
    *((row, "A") for row in ("B", "C", "D")),
    *((row, "C") for row in ("no text", "shuffled", "random", "oracle", "contrast")),
    ("oracle", "random"),
    ("contrast", "shuffled"),
    *((row, "D") for row in ROWS if "%" in row),
)


def unit_of(setting: str, row: str, seed: int) -> Unit:
    """Resolve a row of a setting to one run."""
    chosen, model = SETTINGS[setting], ROWS[row]
    start = STARTS[chosen.start]
    data = {"name": f"synthetic-{PROFILE}", "seed": seed, **SIZE, **chosen.data}
    if model.shuffled:
        data["caption_source"] = "shuffled"
    if model.oracle:
        data["part_maps"] = True
    arguments = {**(tower_arguments(start) if start else {}), "head": model.head}
    recipe = get_recipe("tiny", **{**RECIPE, **model.recipe, "seed": seed})
    made = asdict(start) if start else {"weights": BUNDLED}
    return Unit(data, ORACLE if model.oracle else "next_tiny", arguments, recipe.to_dict(), made)


def run_mechanism(
    out: Path, settings: Sequence[str], rows: Sequence[str], seeds: Sequence[int], starts: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Run rows of settings, setting by setting and seed by seed; what is finished is read.

    Args:
        out: Folder of the runs.
        settings: Names of `SETTINGS`.
        rows: Names of `ROWS`.
        seeds: One run each.
        starts: Folder of the starts; None makes them in ``out/starts``.

    Yields:
        The result of each run, see `run_unit`, with setting, row and seed.
    """
    for setting in settings:
        name = SETTINGS[setting].start
        start: Path | str = BUNDLED
        if config := STARTS[name]:
            start = (starts or out / "starts") / name
            pretrain(start, config)
        for seed in seeds:
            for row in rows:
                yield {
                    "setting": setting,
                    "row": row,
                    "seed": seed,
                    **run_unit(unit_of(setting, row, seed), out, start),
                }


def collect(out: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Read what is finished of all settings and rows; return one row for each run and text setting."""
    found = []
    for setting in SETTINGS:
        for row in ROWS:
            for seed in seeds:
                unit = unit_of(setting, row, seed)
                path = out / RUNS / unit.digest / RESULT
                if not path.is_file():
                    continue
                result = json.loads(path.read_text(encoding="utf-8"))
                kept = [share for expert in result["kept"] for share in expert]
                for report in result["evaluations"]:
                    found.append(
                        {
                            **{"setting": setting, "row": row, "title": ROWS[row].title, "seed": seed},
                            "text_at_test": "yes" if report["text"] else "no",
                            **{name: round(report[name], 5) for name in ("mAP", "rank-1", "mINP")},
                            **{"valid_queries": report["valid_queries"], "protocol": report["protocol"]},
                            "tokens_kept": round(statistics.fmean(kept), 4) if kept else "",
                            **{"epochs": result["epochs"], "trainable": result["trainable"], "run": unit.digest},
                            "data": json.dumps(unit.data, sort_keys=True),
                            "start": SETTINGS[setting].start,
                            "data_note": "; ".join(result["data"]["notes"]),
                            **{"seconds": result["seconds"], **result["machine"]},
                        }
                    )
    return found


def pairs(out: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Compare rows over the seeds that both have: Student's t over seeds, sign flips over the identities of all seeds.

    The pair ``(row, "row, captions hidden")`` compares one trained model with itself.
    """
    found = []
    for setting in SETTINGS:
        wanted = [(a, True, b, True) for a, b in PAIRS]
        wanted += [(row, True, row, False) for row in ("C", "D", "shuffled", "contrast")]
        for a, a_text, b, b_text in wanted:
            both = [
                (seed, one, other)
                for seed in seeds
                if (one := _result(out, setting, a, seed, a_text)) and (other := _result(out, setting, b, seed, b_text))
            ]
            if not both:
                continue
            gains = [100 * float(np.nanmean(one.ap) - np.nanmean(other.ap)) for _, one, other in both]
            mean, half = mean_interval(gains)
            joined = [
                RetrievalResult.concat([_apart(parts[i], seed) for seed, *parts in both])
                for i in (1, 0)  # the reference first
            ]
            test = compare(joined[0], joined[1])
            found.append(
                {
                    **{"setting": setting, "row": a, "reference": b if b_text else f"{b}, captions hidden"},
                    **{"seeds": len(both), "difference": round(mean, 3)},
                    "low": round(mean - half, 3) if half is not None else "",
                    "high": round(mean + half, 3) if half is not None else "",
                    **{"p_value": round(test.p_value, 5), "identities": test.difference.identities},
                    "separates": "yes"
                    if half is not None and abs(mean) > half and test.p_value < P_VALUE and len(both) > 2
                    else "no",
                }
            )
    return found


def _result(out: Path, setting: str, row: str, seed: int, text: bool) -> RetrievalResult | None:
    folder = out / RUNS / unit_of(setting, row, seed).digest
    if not (folder / RESULT).is_file():
        return None
    path = folder / RANKINGS[0 if text else 1]
    return load_result(path) if path.is_file() else None


def _apart(result: RetrievalResult, seed: int) -> RetrievalResult:
    """Give the identities of a seed numbers of their own: those of two seeds are different persons."""
    keys = result.keys and tuple(f"{seed}/{key}" for key in result.keys)
    return replace(result, pid=result.pid + np.int64(1_000_000) * seed, keys=keys)


def tables(rows: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]]) -> str:
    """Write the means and the comparisons of every setting as Markdown."""
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        lines += ["| row | runs | mAP | mAP, captions hidden | R-1 | tokens kept |", "|---|---:|---|---|---|---:|"]
        for name in ROWS:
            mine = [row for row in rows if (row["setting"], row["row"]) == (setting, name)]
            if not mine:
                continue
            first = [row for row in mine if row["text_at_test"] == "yes"] or mine
            hidden = [row for row in mine if row["text_at_test"] == "no"] if first is not mine else []
            kept = first[0]["tokens_kept"]
            lines.append(
                f"| {name} | {len(first)} | {_spread(first, 'mAP')} | {_spread(hidden, 'mAP')} | "
                f"{_spread(first, 'rank-1')} | "
                + (f"{statistics.fmean(float(r['tokens_kept']) for r in first):.2f} |" if kept != "" else "– |")
            )
        lines += [
            "",
            f"Table: `{setting}`",
            "",
            "| row − reference | seeds | mAP | p | separates |",
            "|---|---:|---|---:|---|",
        ]
        for pair in compared:
            if pair["setting"] == setting:
                interval = f" [{pair['low']:+.1f}, {pair['high']:+.1f}]" if pair["low"] != "" else ""
                lines.append(
                    f"| {pair['row']} − {pair['reference']} | {pair['seeds']} | {pair['difference']:+.1f}{interval} | "
                    f"{pair['p_value']:.4f} | {pair['separates']} |"
                )
        lines.append("")
    return "\n".join(lines)


def _spread(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    values = [100 * float(row[metric]) for row in rows]
    if not values:
        return "–"
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def write(out: Path, seeds: Sequence[int]) -> str:
    """Write ``mechanism.csv`` and ``mechanism_pairs.csv``; return the tables as Markdown."""
    rows, compared = collect(out, seeds), pairs(out, seeds)
    if not rows:
        raise FileNotFoundError(f"{out} has no finished run of these settings")
    write_csv(out / "mechanism.csv", rows)
    if compared:
        write_csv(out / "mechanism_pairs.csv", compared)
    return tables(rows, compared)
