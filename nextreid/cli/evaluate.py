"""``nextreid eval``."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import (
    dataset_arguments,
    dataset_of,
    load_model,
    numbers_line,
    open_text_cache,
    pick_device,
    policy_arguments,
    run_arguments,
)


def add(command: Any) -> None:
    """Add the command to the parser."""
    evaluation = command(
        "eval",
        run,
        "Evaluate a trained model under a protocol, with its captions and without.",
        epilog="example:\n  nextreid eval runs/rgbnt201/last --dataset rgbnt201 --root data \\\n"
        "      --captions captions/RGBNT201\n\nthermal queries in a gallery of colour images:\n"
        "  nextreid eval runs/rgbnt201/last --dataset rgbnt201 --root data --protocol 'rgbnt201:tir>rgb'",
    )
    evaluation.add_argument("checkpoint", help="checkpoint folder (config.json and model.safetensors)")
    dataset_arguments(evaluation)
    evaluation.add_argument(
        "--protocol", default=None, help="such as camera or camera:tir>rgb (default: the dataset's own)"
    )
    evaluation.add_argument(
        "--missing",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODALITY",
        help="modalities to hide at test; 'all': every subset in turn",
    )
    evaluation.add_argument("--cross", action="store_true", help="every subset as query against every one as gallery")
    evaluation.add_argument("--no-text", action="store_true", help="only without captions")
    evaluation.add_argument("--rerank", action="store_true", help="rank by k-reciprocal neighbours")
    evaluation.add_argument(
        "--bootstrap", type=int, default=0, metavar="N", help="95 %% intervals over identities from N draws"
    )
    evaluation.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the numbers here")
    evaluation.add_argument(
        "--save-queries",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="write the numbers of every query, a file for each result, for load_result and compare",
    )
    policy_arguments(evaluation)
    run_arguments(evaluation)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from nextreid._files import write_json
    from nextreid.engine import is_main, process_group

    if args.bootstrap < 0:
        raise ValueError(f"--bootstrap takes a number of draws, got {args.bootstrap}")
    matrix = args.cross or args.missing == ["all"]
    if (matrix and args.missing not in ([], ["all"])) or (not matrix and "all" in args.missing):
        raise ValueError("--missing takes names of modalities or 'all'; with --cross it is 'all' or left out")
    device = pick_device(args.device)
    for folder in filter(None, (args.json and args.json.parent, args.save_queries)):
        folder.mkdir(parents=True, exist_ok=True)
    with process_group(device):
        dataset = dataset_of(args)
        if args.on_error != "raise":
            dataset = dataset.drop_unreadable(args.on_error)
        model = load_model(args.checkpoint)
        open_text_cache(model, args.text_cache)
        reports = []
        for text in (False,) if args.no_text or not model.uses_text else (True, False):
            cells = _evaluate(args, model, dataset, text, matrix, device)
            if not text or cells[0].text:
                reports.append(cells)
        if not is_main():
            return
        rows = []
        for cells in reports:
            rows += [_row(cell, args.bootstrap, args.save_queries) for cell in cells]
            lines = _cross_table(cells) if args.cross else _table(cells, dataset.modalities) if matrix else []
            print("\n".join(lines or [_line(rows[-1])]))
        if args.json:
            trained_on = model.pretrained_cfg.trained_on
            about = {"checkpoint": args.checkpoint, "dataset": dataset.name, "trained_on": trained_on}
            write_json(args.json, {**about, "results": rows})


def _evaluate(args: argparse.Namespace, model: Any, dataset: Any, text: bool, matrix: bool, device: str) -> list[Any]:
    from nextreid.engine import evaluate, modality_matrix
    from nextreid.retrieval import Rerank

    options = {
        "protocol": args.protocol,
        "text": text,
        "rerank": Rerank() if args.rerank else None,
        "allow_leak": args.allow_leak,
        "batch_size": args.batch_size,
        "device": device,
        "workers": args.workers,
    }
    if matrix:
        return modality_matrix(model, dataset, cross=args.cross, **options)
    return [evaluate(model, dataset, missing=args.missing, **options)]


def _row(report: Any, draws: int, folder: Path | None) -> dict[str, Any]:
    row = report.to_dict()
    if draws:
        measures = ("mAP", "rank-1", "mINP")
        row["bootstrap"] = {name: report.result.bootstrap(name, samples=draws).to_dict() for name in measures}
    if folder:
        words = [row["protocol"], "text" if row["text"] else "no-text", *(f"no-{name}" for name in row["missing"])]
        file = folder / (re.sub(r"[^\w+-]+", "_", "_".join(words)) + ".safetensors")
        report.result.save(file)
        row["queries_file"] = str(file)
    return row


def _line(row: dict[str, Any]) -> str:
    line = numbers_line(row)
    if "bootstrap" in row:
        for name, interval in row["bootstrap"].items():
            low, high = 100 * interval["low"], 100 * interval["high"]
            line += f"\n  {name} between {low:.1f} and {high:.1f} in 95 % of {interval['samples']} draws of identities"
    return line


def _table(cells: Sequence[Any], modalities: Sequence[str]) -> list[str]:
    """Return one line for each set of modalities that both sides show."""
    from nextreid.retrieval import METRICS

    width = len("+".join(modalities))
    lines = [_title(cells), f"{'shown':{width}}  {'  '.join(f'{name:>7}' for name in METRICS)}  queries"]
    for cell in cells:
        row = cell.to_dict()
        shown = "+".join(m for m in modalities if m not in cell.missing)
        numbers = "  ".join(f"{100 * row[name]:7.1f}" for name in METRICS)
        left_out = f", {cell.left_out} samples show none of it" if cell.left_out else ""
        lines.append(f"{shown:{width}}  {numbers}  {row['valid_queries']} of {row['queries']}{left_out}")
    return lines


def _cross_table(cells: Sequence[Any]) -> list[str]:
    """Return two tables, a line for each set that the query shows and a column for each that the gallery shows."""
    numbers = {
        ("+".join(c.result.protocol.query_modalities), "+".join(c.result.protocol.gallery_modalities)): c for c in cells
    }
    queries, galleries = ([*dict.fromkeys(pair[side] for pair in numbers)] for side in (0, 1))
    width = max(len("rank-1, query down"), *map(len, queries))
    lines = [_title(cells)]
    for name in ("mAP", "rank-1"):
        lines.append(f"{name + ', query down':{width}}  " + "  ".join(f"{g:>6}" for g in galleries))
        for q in queries:
            line = f"{q:{width}}"
            for g in galleries:
                cell = numbers.get((q, g))
                value = "" if cell is None else f"{100 * cell.result.metric(name):.1f}"
                line += f"  {value:>{max(6, len(g))}}"
            lines.append(line)
    lines.append("cells off the diagonal: the modalities' parts of the embeddings are averaged")
    return lines


def _title(cells: Sequence[Any]) -> str:
    rule = cells[0].result.protocol.name.partition(":")[0]
    return f"protocol {rule}, {'with' if cells[0].text else 'no'} captions at test"
